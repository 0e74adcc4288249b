"""Agents that ask before they act, for the tests of approvals. The prompt is a file that says they did."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import mesh


async def writer(run: mesh.RunContext) -> Any:
    """Asks once, writes once, and says so."""
    call = {"tool_call_id": "t1", "tool_name": "write", "tool_input": {"path": run.prompt}}
    await run.permit("write", call["tool_input"], tool_call_id="t1")
    with Path(run.prompt).open("a") as file:
        file.write("written\n")
    yield {"type": "tool_call_started", "data": call}
    yield {"type": "tool_call_completed", "data": {**call, "tool_output": "ok"}}
    yield "done"


async def twice(run: mesh.RunContext) -> Any:
    """Uses one tool twice, without ids."""
    for n in range(2):
        await run.permit("write", {"n": n})
        yield {"type": "tool_call_started", "data": {"tool_call_id": f"c{n}", "tool_name": "write"}}
        yield {"type": "tool_call_completed", "data": {"tool_call_id": f"c{n}", "tool_name": "write"}}
    yield "done"


async def reporter(run: mesh.RunContext) -> Any:
    """Never asks: it says what it did."""
    for n in range(2):
        yield {"type": "tool_call_started",
               "data": {"tool_call_id": f"c{n}", "tool_name": "write", "tool_input": {}}}
    Path(run.prompt).write_text("went on")
    yield "done"


async def spender(run: mesh.RunContext) -> Any:
    """Uses 100 tokens at a time, and writes down how often."""
    for total in (100, 200, 300):
        with Path(run.prompt).open("a") as file:
            file.write("x")
        yield {"type": "token_usage_updated",
               "data": {"input_tokens": total, "output_tokens": 0, "total_tokens": total}}
    yield "spent"


async def impatient(run: mesh.RunContext) -> Any:
    """Waits for a moment only."""
    try:
        async with asyncio.timeout(0.2):
            await run.permit("write", {})
    except TimeoutError:
        yield "went on without"


async def crowd(run: mesh.RunContext) -> Any:
    """Asks many things at once."""
    asked = [run.permit("write", {"n": n}, tool_call_id="same") for n in range(int(run.prompt))]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    yield str(sum(answer is None for answer in answers))
