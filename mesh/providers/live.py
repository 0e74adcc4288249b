"""What is said to a run while it executes: ``run.paused`` and ``run.steering``. Everything on the loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager


class _News:
    """Wakes whoever waits for a change."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter


class Paused:
    """Whether somebody paused the run: True or False wherever it is asked, from any thread.

    An agent that declares the capabilities ``pause`` and ``resume`` calls ``await run.paused.over()`` between
    its steps: it returns at once, or when the run is resumed.
    """

    __slots__ = ("_news", "_set", "_timers")

    def __init__(self) -> None:
        self._set = False
        self._news = _News()
        self._timers: dict[asyncio.Timeout, float | None] = {}  #: what each had left when the pause began

    def __bool__(self) -> bool:
        return self._set

    def __repr__(self) -> str:
        return f"Paused({self._set})"

    def turn(self, paused: bool) -> None:
        """Called by the node."""
        self._set = paused
        for timer in self._timers:
            self._turn(timer)
        self._news.wake()

    @contextmanager
    def stopping(self, timer: asyncio.Timeout) -> Iterator[None]:
        """Inside, time passes for the timer only while the run is not paused. On the loop."""
        self._timers[timer] = None
        self._turn(timer)
        try:
            yield
        finally:
            del self._timers[timer]

    def let_go(self, timer: asyncio.Timeout) -> None:
        """The timer is over; the end of a pause does not begin it again."""
        if timer in self._timers:
            self._timers[timer] = None
        if not timer.expired():
            timer.reschedule(None)

    def _turn(self, timer: asyncio.Timeout) -> None:
        now_s, due_s, left_s = asyncio.get_running_loop().time(), timer.when(), self._timers[timer]
        if timer.expired():
            return
        if self._set and due_s is not None:
            self._timers[timer] = max(0.0, due_s - now_s)
            timer.reschedule(None)
        elif not self._set and left_s is not None:
            self._timers[timer] = None
            timer.reschedule(now_s + left_s)

    async def over(self) -> None:
        """Return when the run is not paused."""
        while self._set:
            await self._news.wait()


class Steering:
    """What was said to the run since it began, for an agent that listens while it works.

    ``texts = await run.steering()`` takes all that waits, in order; it asks nobody when nothing does.
    ``async for text in run.steering`` gives each text as it comes, without end: leave it by ``break``.
    What was taken is in the log as a message of this run; what nobody takes is the session's next turn.
    """

    __slots__ = ("_ask", "_news", "_texts", "count", "hinted", "open")

    def __init__(self, ask: Callable[[Steering], None] = lambda _: None) -> None:
        self._ask = ask
        self.count = 0  #: how often something was taken
        self._texts: list[str] = []  #: taken, and not given to the agent yet
        self._news = _News()
        self.hinted = False  #: something waits, by the node's word
        self.open = 0  #: the number of the question that was not answered yet

    async def __call__(self) -> list[str]:
        """Take all that waits."""
        if self.hinted and not self.open:
            self.hinted = False
            self.open = self.count + 1
            self._ask(self)
        while self.open and not self._texts:
            await self._news.wait()
        texts, self._texts = self._texts, []
        return texts

    async def __aiter__(self) -> AsyncIterator[str]:
        while True:
            for text in await self():
                yield text
            if not (self.hinted or self._texts):
                await self._news.wait()

    def hint(self) -> None:
        """Called by the node: something waits."""
        self.hinted = True
        self._news.wake()

    def taken(self, number: int, texts: list[str]) -> None:
        """Called by the node: the answer to a question. One that comes twice is given once."""
        if number != self.open:
            return
        if texts:
            self.count = number
            self._texts += texts
        self.open = 0
        self._news.wake()


__all__ = ["Paused", "Steering"]
