"""An agent that streams: what it yields reaches the caller at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mesh


async def hello(run: mesh.RunContext) -> AsyncIterator[str]:
    """Greet whoever the prompt names, word by word."""
    for word in ("Hello", ", ", run.prompt.strip() or "world", "!"):
        yield word
        await asyncio.sleep(0)
