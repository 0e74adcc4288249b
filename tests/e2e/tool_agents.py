"""Agents of the tests of providers together: one that tells what it remembers, one that calls tools."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import mesh


async def mind(run: mesh.RunContext) -> AsyncIterator[Any]:
    """Say all that was said before."""
    yield " | ".join(message.content or str(message.tool_output or "") for message in run.transcript)
    yield f" | {run.prompt}"


async def caller(run: mesh.RunContext) -> AsyncIterator[Any]:
    """Call the tools that the prompt names, one after another."""
    assert run.tools is not None
    async with run.tools() as box:
        for number, name in enumerate(run.prompt.split()):
            async for piece in box.call(f"call_{number}", name, {"a": 2, "b": 3}):
                if isinstance(piece, dict):
                    yield piece
                else:
                    yield f"{name}: {piece.text}\n"
