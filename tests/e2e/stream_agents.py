"""Agents for streams: one that speaks, one that fails, one that says nothing, one that asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import mesh


async def speaker(run: mesh.RunContext) -> AsyncIterator[Any]:
    """Two pieces and a tool."""
    yield "a "
    yield {"type": "tool_call_started", "data": {"tool_name": "look", "tool_call_id": "1"}}
    yield {"type": "tool_call_completed", "data": {"tool_name": "look", "tool_call_id": "1"}}
    yield "b"


async def failing(run: mesh.RunContext) -> AsyncIterator[Any]:
    """A piece, then the end."""
    yield "a"
    raise RuntimeError("no luck")


async def silent(run: mesh.RunContext) -> AsyncIterator[Any]:
    """Says one word, then nothing for as long as it may."""
    yield "a"
    await asyncio.sleep(600)


async def asking(run: mesh.RunContext) -> AsyncIterator[Any]:
    """Asks before it goes on."""
    await run.permit("write", {"path": "x"}, tool_call_id="w1")
    yield "written"
