"""What one attempt of a run asks humans, on the runner's side: names, who waits, and for how long.

Rules of this file:

1. A name is used once in an attempt: an answer to one question must never let another one pass. So what an
   agent names twice gets a mark. Names of several attempts are told apart by the partition.
2. Time in which a run waits for a human counts for no limit; ``on_change`` tells when it begins and ends.
3. Who gives up waiting says so, and the question is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

#: Ask for ``name``, and call back with the decision; a request of None takes the question back.
Ask = Callable[[str, dict[str, Any] | None, Callable[[dict[str, Any]], None]], None]


class Questions:
    """The questions of one attempt. Everything happens on the runner's loop."""

    def __init__(self, ask: Ask, redacted: Callable[[str], str] = str) -> None:
        self._ask = ask
        self._redacted = redacted
        self._loop = asyncio.get_running_loop()
        self._names: set[str] = set()
        self._count = 0
        self._open: set[str] = set()
        self._held: set[str] = set()
        self._free = asyncio.Event()
        self._since_s = 0.0
        self.over_s = 0.0  #: when the run last ceased to wait
        self.on_change: Callable[[float], None] = lambda _: None

    @property
    def waiting(self) -> bool:
        """Whether a human is asked something."""
        return bool(self._open)

    @property
    def held(self) -> bool:
        """Whether the run may not go on before it is answered."""
        return bool(self._held)

    def name(self, call_id: str | None) -> str:
        """The name of a new question."""
        self._count += 1
        name = self._redacted(call_id) if call_id else f"apr_{self._count}"
        if name in self._names:
            name = f"{name}.{self._count}"
        while name in self._names:
            name += "."
        self._names.add(name)
        return name

    async def decision(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """Ask, and wait for the answer."""
        answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._begin(name)
        self._ask(name, request, lambda given: None if answer.done() else answer.set_result(given))
        try:
            return await answer
        except asyncio.CancelledError:
            self._ask(name, None, lambda _: None)
            raise
        finally:
            self._end(name)

    def hold(
        self, name: str, request: dict[str, Any], decided: Callable[[dict[str, Any]], None]
    ) -> None:
        """Ask whether the run may go on; ``free`` waits for the answer."""
        self._begin(name)
        self._held.add(name)
        self._free.clear()

        def answered(decision: dict[str, Any]) -> None:
            self._held.discard(name)
            self._end(name)
            decided(decision)
            if not self._held:
                self._free.set()

        self._ask(name, request, answered)

    async def free(self) -> None:
        """Return when the run may go on."""
        while self._held:
            await self._free.wait()

    def _begin(self, name: str) -> None:
        first = not self._open
        self._open.add(name)
        if first:
            self._since_s = self._loop.time()
            self.on_change(0.0)

    def _end(self, name: str) -> None:
        self._open.discard(name)
        if not self._open:
            self.over_s = self._loop.time()
            self.on_change(self.over_s - self._since_s)


__all__ = ["Ask", "Questions"]
