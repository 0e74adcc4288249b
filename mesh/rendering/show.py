"""Events through one renderer into several sinks: ``render``, ``arender``, or one by one with ``Rendering``.

Rules of this file:

1. What cannot be opened is refused before the first event, and what was opened is closed again.
2. A sink that raises gets no more; the others go on, and so does whatever makes the events. The report, and
   ``on_broken`` at once, say which and why. Nobody is left: ``render`` stops reading.
3. Nothing is buffered here. A slow sink slows the reading of events, and no run: those are in the log. Who
   wants it apart gives it a ``Queued``, whose bound is ``QUEUE_EVENTS_MAX``.
"""

from __future__ import annotations

import inspect
import queue
import threading
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from mesh.core.records import Event
from mesh.errors import InvalidArgument, Overloaded, shown
from mesh.rendering.base import Renderer
from mesh.rendering.sinks import Sink

#: So many events may wait for a slow sink that has a thread of its own.
QUEUE_EVENTS_MAX = 1000
#: So long its last events may take at the end.
QUEUE_CLOSE_S = 5.0


class Broken(NamedTuple):
    """A sink that failed."""

    sink: Sink
    error: Exception


class Report(NamedTuple):
    """What became of it: how many events were shown, and which sinks failed."""

    events: int
    broken: tuple[Broken, ...]


class Rendering:
    """A renderer and its sinks, open. ``show`` each event, then ``finish`` once.

    Raises:
        OSError, MeshError: a sink cannot be opened; the others are closed again.
    """

    def __init__(
        self,
        renderer: Renderer,
        sinks: Sequence[Sink],
        *,
        on_broken: Callable[[Sink, Exception], Any] | None = None,
    ) -> None:
        self.renderer = renderer
        self.last = ""  #: the text of the event that was shown last
        self._on_broken = on_broken
        self._broken: list[Broken] = []
        self._alive: list[Sink] = []
        self._report: Report | None = None
        try:
            for sink in sinks:
                sink.open()
                self._alive.append(sink)
        except BaseException:
            while self._alive:
                self._close(self._alive[0])
            raise

    @property
    def alive(self) -> bool:
        """Whether any sink is left."""
        return bool(self._alive)

    @property
    def broken(self) -> tuple[Broken, ...]:
        """The sinks that failed by now."""
        return tuple(self._broken)

    def show(self, event: Event) -> None:
        """Render an event and give it to every sink."""
        for sink, answer in self._shown(event):
            if inspect.iscoroutine(answer):
                answer.close()
            self._close(sink, InvalidArgument("a coroutine function needs arender"))

    async def ashow(self, event: Event) -> None:
        """``show``, for sinks whose answer is to be awaited."""
        for sink, answer in self._shown(event):
            try:
                await answer
            except Exception as exc:  # noqa: BLE001 - it may be anybody's code
                self._close(sink, exc)

    def _shown(self, event: Event) -> list[tuple[Sink, Awaitable[Any]]]:
        self.last = text = self.renderer.event(event)
        answers = self._each(lambda sink: sink.write(event, text))
        status = self.renderer.status
        self._each(lambda sink: sink.status(status))
        return [(sink, answer) for sink, answer in answers if inspect.isawaitable(answer)]

    def interrupt(self) -> None:
        """Have everything at the beginning of a line: somebody else is about to write there."""
        text = self.renderer.interrupt()
        self._each(lambda sink: sink.status(""))
        self._each(lambda sink: sink.remark(text))

    def finish(self) -> Report:
        """The last words; every sink is flushed and closed. Again gives the same report."""
        if self._report is None:
            text = self.renderer.finish()
            self._each(lambda sink: sink.status(""))
            self._each(lambda sink: sink.remark(text))
            self._each(lambda sink: sink.flush())
            while self._alive:
                self._close(self._alive[0])
            self._report = Report(self.renderer.events, self.broken)
        return self._report

    def _each(self, step: Callable[[Sink], Any]) -> list[tuple[Sink, Any]]:
        answers = []
        for sink in tuple(self._alive):
            try:
                answers.append((sink, step(sink)))
            except Exception as exc:  # noqa: BLE001 - rule 2
                self._close(sink, exc)
        return answers

    def _close(self, sink: Sink, error: Exception | None = None) -> None:
        """A sink's end, because of an error or not: closing it may be one."""
        if sink not in self._alive:
            return
        self._alive.remove(sink)
        try:
            sink.close()
        except Exception as exc:  # noqa: BLE001 - rule 2
            error = error or exc
        if error is not None:
            self._broken.append(Broken(sink, error))
            if self._on_broken is not None:
                self._on_broken(sink, error)


def render(
    events: Iterable[Event],
    renderer: Renderer,
    sinks: Sequence[Sink],
    *,
    on_broken: Callable[[Sink, Exception], Any] | None = None,
) -> Report:
    """Render events until they end, or until no sink is left.

    What the events raise is raised here, behind the last words; so the sinks are closed in any case.
    """
    rendering = Rendering(renderer, sinks, on_broken=on_broken)
    try:
        for event in events:
            rendering.show(event)
            if not rendering.alive:
                break
    finally:
        report = rendering.finish()
    return report


async def arender(
    events: AsyncIterable[Event],
    renderer: Renderer,
    sinks: Sequence[Sink],
    *,
    on_broken: Callable[[Sink, Exception], Any] | None = None,
) -> Report:
    """``render`` on asyncio. Sinks write in the loop: give one that may block a ``Queued``."""
    rendering = Rendering(renderer, sinks, on_broken=on_broken)
    try:
        async for event in events:
            await rendering.ashow(event)
            if not rendering.alive:
                break
    finally:
        report = rendering.finish()
    return report


_Work = tuple[Callable[[], Any], threading.Event | None]


class Queued(Sink):
    """A sink in a thread of its own, for one that may block. It is given up when it falls behind.

    At most ``events_max`` events wait; the next one is ``queue_full`` and its end, as is what it raises.
    ``wait_s``: so long an event may wait for room before that, for who reads faster than a disk writes.
    """

    def __init__(self, sink: Sink, *, events_max: int = QUEUE_EVENTS_MAX, wait_s: float = 0.0) -> None:
        if type(events_max) is not int or events_max < 1:
            raise InvalidArgument(f"events_max is a number from 1, not {shown(events_max)}")
        self.name = sink.name
        self._sink = sink
        self._wait_s = wait_s
        self._queue: queue.Queue[_Work | None] = queue.Queue(events_max)
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._behind = False

    def open(self) -> None:
        """Open it here, where a refusal is heard; the thread begins behind that."""
        self._sink.open()
        self._thread = threading.Thread(target=self._work, name=f"mesh-sink-{self.name}", daemon=True)
        self._thread.start()

    def write(self, event: Event, text: str) -> None:
        """Have it written, soon.

        Raises:
            Overloaded: ``queue_full``, it is too slow.
        """
        self._put(lambda: self._sink.write(event, text))

    def remark(self, text: str) -> None:
        """Have it written, soon."""
        self._put(lambda: self._sink.remark(text))

    def flush(self) -> None:
        """Wait until all is written, ``QUEUE_CLOSE_S`` at most.

        Raises:
            Overloaded: it is not.
        """
        done = threading.Event()
        self._put(self._sink.flush, done, QUEUE_CLOSE_S)
        if not done.wait(QUEUE_CLOSE_S) or self._error is not None:
            raise self._error or self._late()

    def close(self) -> None:
        """Have it closed behind what waits; of one that is behind the thread is left to itself."""
        if self._thread is None:
            return
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            self._behind = True
        if not self._behind:
            self._thread.join(QUEUE_CLOSE_S)

    def _put(
        self, work: Callable[[], Any], done: threading.Event | None = None, wait_s: float | None = None
    ) -> None:
        if self._error is not None:
            raise self._error
        wait_s = self._wait_s if wait_s is None else wait_s
        try:
            self._queue.put((work, done), wait_s > 0, wait_s)
        except queue.Full as exc:
            raise self._late() from exc

    def _late(self) -> Overloaded:
        self._behind = True
        return Overloaded(f"{self.name} is {self._queue.qsize()} events behind", code="queue_full")

    def _work(self) -> None:
        while not self._behind and (item := self._queue.get()) is not None:
            work, done = item
            try:
                if self._error is None:
                    work()
            except Exception as exc:  # noqa: BLE001 - told at the next write
                self._error = exc
            if done is not None:
                done.set()
        with suppress(Exception):
            self._sink.close()


__all__ = [
    "QUEUE_CLOSE_S",
    "QUEUE_EVENTS_MAX",
    "Broken",
    "Queued",
    "Rendering",
    "Report",
    "arender",
    "render",
]
