"""The agent that ``mesh bench`` measures event delivery with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mesh

PIECE = "x" * 64


async def burst(run: mesh.RunContext) -> AsyncIterator[str]:
    """Yield as many pieces of text as the prompt says."""
    for _ in range(int(run.prompt)):
        yield PIECE


__all__ = ["PIECE", "burst"]
