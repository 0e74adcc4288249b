"""The pieces of one run that several tasks make: for a library that calls back while it works."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from mesh.providers.base import Piece

#: Pieces that callbacks may be ahead of the run; then they wait.
AHEAD_MAX = 64
#: What works for a run that is over has so long to clean up.
CLOSE_S = 3.0


class Channel:
    """Pieces in the order in which they were put."""

    def __init__(self) -> None:
        self._pieces: deque[Piece] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def room(self) -> None:
        """Return when what was put is not too far ahead of the run."""
        await self._room.wait()

    async def put(self, *pieces: Piece) -> None:
        """Hand them over, together; waits for room first."""
        await self.room()
        self._pieces.extend(pieces)
        self._news.set()
        if len(self._pieces) >= AHEAD_MAX:
            self._room.clear()

    async def of(self, work: Coroutine[Any, Any, None]) -> AsyncGenerator[Piece, None]:
        """Yield what is put until the work is done and nothing is left; then raise what it raised.

        Closed before that (``aclosing``), it cancels the work and waits for it.
        """
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda _: self._news.set())
        try:
            while True:
                done = task.done()
                while self._pieces:
                    piece = self._pieces.popleft()
                    self._room.set()
                    yield piece
                if done:
                    break
                self._news.clear()
                if not self._pieces and not task.done():
                    await self._news.wait()
            task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=CLOSE_S)
            if task.done() and not task.cancelled():
                task.exception()  # the run ended for another reason


__all__ = ["AHEAD_MAX", "CLOSE_S", "Channel"]
