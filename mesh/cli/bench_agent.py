"""The agents that ``mesh bench`` measures event delivery and approvals with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mesh

PIECE = "x" * 64
#: A paced burst is made of so many small ones a second: sleeping for each piece would be too slow.
TICKS_PER_S = 200


async def burst(run: mesh.RunContext) -> AsyncIterator[str]:
    """Yield pieces of text. The prompt is their number, and perhaps how many a second."""
    count, _, rate = run.prompt.partition(" ")
    at_once = max(1, int(rate) // TICKS_PER_S) if rate else 0
    began_s = time.monotonic()
    for number in range(int(count)):
        yield PIECE
        if at_once and number % at_once == at_once - 1:
            due_s = began_s + (number + 1) / int(rate)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))


async def gate(run: mesh.RunContext) -> AsyncIterator[str]:
    """Ask a human as often as the prompt says; the answer is when each time it went on."""
    for _ in range(int(run.prompt)):
        await run.permit("gate")
        yield f"{time.time()} "


__all__ = ["PIECE", "TICKS_PER_S", "burst", "gate"]
