"""What an agent asks before it acts: may this tool be called, do these tokens still fit?

Coroutines ask on the runner's loop. A plain function runs in a thread of its own and blocks there until it is
answered, or until its run is over.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Coroutine, Mapping
from typing import Any, Protocol, TypeVar

from mesh.core.policy import LIMITS
from mesh.errors import InvalidArgument, RunError, shown

T = TypeVar("T")
#: What can be reserved: all that policies count, but time.
RESERVABLE = tuple(kind.metric for kind in LIMITS.values() if kind.metric != "duration_ms")


class Budget(Protocol):
    """What a run's policy lets it use."""

    def left(self, metric: str) -> float | None:
        """What may still be used, as far as it is known; None: as much as you like."""

    async def reserve(self, amounts: Mapping[str, float]) -> None:
        """Return when so much may be used, or raise."""

    def release(self, amounts: Mapping[str, float]) -> None:
        """What was reserved is not held any more. On the loop."""


class Blocking:
    """How the thread of a plain function waits for its run's loop."""

    __slots__ = ("_loop", "_open", "_over")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: set[concurrent.futures.Future[Any]] = set()
        self._over = False

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """The function is about to be called in a thread."""
        self._loop = loop

    def end(self) -> None:
        """The run is over: nobody waits any more."""
        self._over = True
        for future in tuple(self._open):
            future.cancel()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """What the coroutine gives, on the loop; only from the thread of a plain function.

        Raises:
            RunError: ``cancelled``: the run is over.
            InvalidArgument: this is no such thread.
        """
        if self._loop is None or _on_a_loop():
            work.close()
            raise InvalidArgument("a coroutine awaits: only an agent that is a plain function can block")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._open.add(future)
        try:
            if self._over:
                future.cancel()
            return future.result()
        except concurrent.futures.CancelledError as exc:
            raise RunError("the run is over", code="cancelled") from exc
        finally:
            self._open.discard(future)

    def tell(self, budget: Budget, amounts: Mapping[str, float]) -> None:
        """Release on the loop; nobody waits for that."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(budget.release, amounts)


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Reservation:
    """``async with run.reserve(total_tokens=4_000):`` (or ``with``, in a plain function)."""

    __slots__ = ("_amounts", "_blocking", "_budget")

    def __init__(self, budget: Budget | None, blocking: Blocking, amounts: Mapping[str, float]) -> None:
        """Check the amounts.

        Raises:
            InvalidArgument: an amount of nothing that is counted, or no number from 0.
        """
        for metric, amount in amounts.items():
            if metric not in RESERVABLE:
                known = ", ".join(RESERVABLE)
                raise InvalidArgument(f"nothing counts {shown(metric, 60)} (known: {known})")
            if type(amount) not in (int, float) or not 0 <= amount < float("inf"):
                raise InvalidArgument(f"{metric} must be a number from 0, not {shown(amount, 60)}")
        self._budget = budget
        self._blocking = blocking
        self._amounts = dict(amounts)

    async def __aenter__(self) -> None:
        if self._budget is not None:
            await self._budget.reserve(self._amounts)

    async def __aexit__(self, *_: object) -> None:
        if self._budget is not None:
            self._budget.release(self._amounts)

    def __enter__(self) -> None:
        if self._budget is not None:
            self._blocking.wait(self._budget.reserve(self._amounts))

    def __exit__(self, *_: object) -> None:
        if self._budget is not None:
            self._blocking.tell(self._budget, self._amounts)


__all__ = ["RESERVABLE", "Blocking", "Budget", "Reservation"]
