"""Agents for routers: what the first one does stands in a file; its name is in the session's context."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import mesh
from mesh.providers.base import ProviderFailure


def mood(run: mesh.RunContext) -> str:
    """What the test wants now."""
    file = Path(run.context["mood"])
    return file.read_text() if file.exists() else "well"


async def moody(run: mesh.RunContext) -> AsyncIterator[Any]:
    """Well, down, refusing what the caller wants, or slow: silent until its mood changes."""
    with Path(run.context["mood"] + ".calls").open("a") as calls:
        calls.write("x")
    while (now := mood(run)) == "slow":
        await asyncio.sleep(0.01)
    if now == "down":
        yield {"type": "token_usage_updated", "data": {"input_tokens": 1_000, "output_tokens": 0}}
        raise ProviderFailure("no answer", code="provider_timeout")
    if now == "refusing":
        raise ProviderFailure("no such argument", code="validation_error")
    yield "from moody"


async def steady(run: mesh.RunContext) -> AsyncIterator[Any]:
    """Always well, with a session and a model of its own."""
    own = run.resume or f"own-{run.run_id}"
    yield {"type": "run_started", "data": {"provider_session_id": own, "model": "small-2"}}
    yield {"type": "token_usage_updated", "data": {"input_tokens": 100, "output_tokens": 10}}
    yield {"type": "output", "data": {
        "content": f"re {run.prompt}", "resumed": run.resume,
        "seen": [f"{m.role}: {m.content}" for m in run.transcript.messages]}}


async def patient(run: mesh.RunContext) -> AsyncIterator[Any]:
    """Can be paused, and goes on until it is told to stop."""
    yield "begun"
    while True:
        await run.paused.over()
        await asyncio.sleep(0.01)
