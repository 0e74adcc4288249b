"""Agents that tell what they were given of the past."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import mesh


def shown(run: mesh.RunContext) -> list[str]:
    """The transcript, one line per message."""
    return [f"{m.role}: {m.content or m.tool_call_id}" for m in run.transcript.messages]


async def parrot(run: mesh.RunContext) -> dict[str, Any]:
    """Says what it was asked, and puts what it was given into the output."""
    return {"content": f"re {run.prompt}", "seen": shown(run), "system": run.context.get("system_prompt"),
            "messages": run.messages, "resume": run.resume}


async def worker(run: mesh.RunContext) -> AsyncIterator[Any]:
    """Uses a tool; the second one never ends."""
    yield "looking"
    first, second = {"tool_call_id": "1", "tool_name": "ls"}, {"tool_call_id": "2", "tool_name": "rm"}
    yield {"type": "tool_call_started", "data": first | {"tool_input": {}}}
    yield {"type": "tool_call_completed", "data": first | {"tool_output": "a"}}
    yield {"type": "tool_call_started", "data": second | {"tool_input": {}}}
    yield "done"


async def resumer(run: mesh.RunContext) -> AsyncIterator[Any]:
    """Has a session of its own: goes on with it, unless the prompt says that it is lost or another."""
    how, own = run.prompt, run.resume or f"own-{run.run_id}"
    if run.resume and how == "lost":
        raise RuntimeError("no rollout found")
    if run.resume and how == "other":
        own = "another"
    if run.resume and how == "silent":
        yield "no word about it"
    yield {"type": "run_started", "data": {"provider_session_id": own, "model": "m1"}}
    yield {"type": "output", "data": {"content": f"re {how}", "seen": shown(run), "resumed": run.resume}}


async def summariser(run: mesh.RunContext) -> str:
    """Makes one line of the conversation."""
    return "" if "nothing" in run.prompt else f"summary of {len(run.transcript.messages)}"


async def broken(run: mesh.RunContext) -> str:
    """Makes no summary."""
    raise RuntimeError("no summary today")
