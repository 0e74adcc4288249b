"""The blocking shell: threads share one link, and the thread that finds nobody driving it drives it.

Rules of this file:

1. ``_mutex`` guards the protocol and the list of who waits. Sockets are touched by the driver alone.
2. The driver sends, polls and completes everybody's calls until its own are done; then it wakes one of
   those that still wait, and that one drives on. A thread alone does: add, send, poll, receive.
3. A thread that adds a call while the driver polls writes one byte to a pipe. No timer, no thread of ours,
   no event loop: a running loop (Jupyter) is neither needed nor in the way.
"""

from __future__ import annotations

import os
import select
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any

from mesh.client import _link
from mesh.client._payload import Call, Pair, error_pair
from mesh.client._protocol import HELLO, Completion, Facts, Protocol
from mesh.client._surface import Ask, Emit, Meanwhile, Pause, Plan, Request, check_timeout, failure, result_of
from mesh.client._traffic import FOREVER
from mesh.errors import ClientClosed, MeshError, NodeUnreachable
from mesh.net import sockets

_POLL_MS_MAX = 60_000


class _Waiter:
    """A thread's own primitive for waiting; reused for all its calls."""

    __slots__ = ("drives", "lock", "waits")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        self.waits = False
        self.drives = False  #: it was woken to drive

    def wake(self) -> None:
        """Let the thread go on; called with the mutex held, at most once per wait."""
        if self.waits:
            self.waits = False
            self.lock.release()


class Slot:
    """One call of a thread: its pair, when it is there."""

    __slots__ = ("pair", "waiter")

    def __init__(self, waiter: _Waiter) -> None:
        self.pair: Pair | None = None
        self.waiter = waiter


class BlockingLink:
    """One Client's connection to its node, for any number of threads."""

    def __init__(self, address: str | None, timeout_s: float) -> None:
        check_timeout(timeout_s)
        self.address = address
        self.timeout_s = timeout_s
        self.closed = False
        self.endpoint = ""
        self.listeners: weakref.WeakSet[Any] = weakref.WeakSet()
        self._sockets: _link.Sockets | None = None
        self._pipe: tuple[int, int] | None = None
        self._forget_link()
        _link.register(self)

    def _forget_link(self) -> None:
        """In a forked child: the parent's sockets are not ours; our copies of its pipe are closed."""
        self._mutex = threading.RLock()
        self._local = threading.local()
        _link.keep(self._sockets)
        self._sockets = None
        if self._pipe is not None:
            for descriptor in self._pipe:
                os.close(descriptor)
        self._pipe = None
        self._poller: Any = None
        self._watched: dict[bytes, Any] = {}
        self._protocol = Protocol(_link.new_client_id, str(self.address), self.timeout_s)
        self._waiting: dict[_Waiter, None] = {}
        self._driver: _Waiter | None = None
        self._polling = False
        self._down = False

    # --- calls ---

    def call(self, kind: int, slot: int, call: Call, timeout_s: float | None = None) -> Pair:
        """Make one call and wait for its pair."""
        if timeout_s is not None:
            check_timeout(timeout_s)
        waiter = self._waiter()
        own = Slot(waiter)
        with self._mutex:
            self._open()
            self._protocol.add(kind, slot, call, own, timeout_s)
            drive = self._join(waiter)
        self._await(waiter, (own,), drive)
        assert own.pair is not None
        return own.pair

    def control(self, kind: int, partition: int = 0, timeout_s: float | None = None) -> Pair:
        """Ask the router itself and wait for the pair."""
        check_timeout(timeout_s)
        waiter = self._waiter()
        own = Slot(waiter)
        with self._mutex:
            self._open()
            self._protocol.add_control(kind, partition, own, timeout_s)
            drive = self._join(waiter)
        self._await(waiter, (own,), drive)
        assert own.pair is not None
        return own.pair

    def note(self, partition: int) -> None:
        """Tell the router that a fallback was used. It leaves at once, or with the driver's next turn."""
        with self._mutex:
            if self._sockets is None:
                return
            self._protocol.note(partition, monotonic())
            if self._driver is not None:
                self._ring()
            else:
                self._send(monotonic())

    def facts(self, timeout_s: float | None = None) -> Facts:
        """What HELLO said of the node.

        Raises:
            NodeUnreachable: there is no node.
            RemoteProtocolError: it is not one, or of another version.
        """
        known: Any = self._protocol.known
        if known is None or self.closed:
            status, known = self.control(HELLO, 0, timeout_s)
            if status:
                raise failure(known)
        facts: Facts = known
        return facts

    @property
    def slot_map(self) -> bytes:
        """The placement map in force; empty before the first answer."""
        facts = self._protocol.facts
        return facts.slot_map if facts is not None else b""

    @property
    def fallback_after_s(self) -> float:
        """How long a resolve with fallbacks waits for the node."""
        facts = self._protocol.facts
        return facts.fallback_after_s if facts is not None else 0.5

    # --- plans ---

    def drive(self, plan: Plan, timeout_s: float | None = None) -> Any:
        """Perform a plan. ``timeout_s`` is the limit of each question that does not name its own."""
        check_timeout(timeout_s)
        try:
            request = next(plan)
            while True:
                try:
                    answer = self._perform(request, timeout_s)
                except MeshError as error:
                    request = plan.throw(error)
                else:
                    request = plan.send(answer)
        except StopIteration as stop:
            return stop.value
        finally:
            plan.close()

    def _perform(self, request: Request, limit_s: float | None) -> Any:
        if isinstance(request, list | Meanwhile):
            asks, work = request if isinstance(request, Meanwhile) else (request, None)
            try:
                return self._ask_all(asks, limit_s, work)
            except NodeUnreachable as error:
                return [error] * len(asks)
        if isinstance(request, Pause):
            return time.sleep(request.seconds)
        if isinstance(request, Emit):
            return request.callback(request.value)
        return self.facts(limit_s if request.timeout_s is None else request.timeout_s)

    def _ask_all(
        self, asks: list[Ask], limit_s: float | None, work: Callable[[], object] | None = None
    ) -> list[Any]:
        waiter = self._waiter()
        slots = [Slot(waiter) for _ in asks]
        with self._mutex:
            self._open()
            for ask, own in zip(asks, slots, strict=True):
                timeout_s = limit_s if ask.timeout_s is None else ask.timeout_s
                if ask.call is None:
                    self._protocol.add_control(ask.kind, ~ask.slot, own, timeout_s)
                else:
                    self._protocol.add(ask.kind, ask.slot, ask.call, own, timeout_s)
            drive = self._join(waiter)
            if work is not None and drive:
                self._put(monotonic())
        gate = slots[0] if asks[0].gate else None
        self._await(waiter, slots, drive, gate, work)
        return [result_of(*own.pair) for own in slots if own.pair is not None]

    # --- leader and followers ---

    def _waiter(self) -> _Waiter:
        waiter: _Waiter | None = getattr(self._local, "waiter", None)
        if waiter is None:
            waiter = self._local.waiter = _Waiter()
        return waiter

    def _open(self) -> None:
        """Make the link at first use. Called with the mutex held."""
        if self.closed:
            raise ClientClosed("this client is closed; make a new one")
        if self._sockets is not None:
            return
        endpoint = _link.endpoint_of(self.address)
        self._protocol = Protocol(_link.new_client_id, endpoint, self.timeout_s)
        self._sockets = _link.Sockets(endpoint)
        self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else _pipe()
        self._poller = select.poll()
        self._poller.register(self._pipe[0], select.POLLIN)
        self.endpoint = endpoint

    def _join(self, waiter: _Waiter) -> bool:
        """True: this thread drives. Else it waits for its driver. Called with the mutex held."""
        if self._driver is None or self._driver is waiter:
            self._driver = waiter
            return True
        waiter.waits = True
        self._waiting[waiter] = None
        self._ring()
        return False

    def _ring(self) -> None:
        if self._polling and self._pipe is not None:
            self._polling = False
            os.write(self._pipe[1], b"!")

    def _await(
        self, waiter: _Waiter, slots: Sequence[Slot], drive: bool, gate: Slot | None = None,
        work: Callable[[], object] | None = None,
    ) -> None:
        """Wait for the pairs of this thread's calls, driving the link when it is our turn."""
        try:
            if work is not None:
                work()
            while not _settled(slots, gate):
                if drive:
                    self._turn()
                    continue
                waiter.lock.acquire()
                with self._mutex:
                    drive, waiter.drives = waiter.drives, False
                    if not drive and not _settled(slots, gate):
                        drive = self._join(waiter)
        finally:
            self._leave(waiter, drive)

    def _leave(self, waiter: _Waiter, drive: bool) -> None:
        """Give the wheel to one of those who wait; also when this thread was interrupted."""
        with self._mutex:
            self._waiting.pop(waiter, None)
            if waiter.waits:
                waiter.waits = False
            else:
                waiter.lock.acquire(blocking=False)  # it may have been woken while it was interrupted
                drive = drive or waiter.drives
            waiter.drives = False
            if not drive:
                return
            self._driver = None
            for other in self._waiting:
                del self._waiting[other]
                self._driver, other.drives = other, True
                other.wake()
                break
            if self.closed and self._driver is None:
                self._shut()

    def _turn(self) -> None:
        """One round of the driver: send, wait for something, receive."""
        with self._mutex:
            if self.closed:
                self._finish(self._protocol.close())
                return
            now_s = monotonic()
            done = self._put(now_s)
            if self._receive(now_s) or done:
                return
            wait_ms = self._wait_ms(now_s)
            self._polling = True
        ready = self._poller.poll(wait_ms)
        with self._mutex:
            self._polling = False
            assert self._pipe is not None
            for descriptor, _ in ready:
                if descriptor == self._pipe[0]:
                    os.read(descriptor, 4096)
            now_s = monotonic()
            if not self._take_answer(now_s):
                self._receive(now_s)
            self._finish(self._protocol.tick(now_s))

    def _wait_ms(self, now_s: float) -> int:
        due_s = self._protocol.due_s
        return (
            _POLL_MS_MAX if due_s == FOREVER else min(_POLL_MS_MAX, max(0, int((due_s - now_s) * 1000) + 1))
        )

    def _put(self, now_s: float) -> bool:
        """Send what there is. True: something was completed, for what cannot travel ends here."""
        done = self._finish(self._protocol.flush(now_s))
        self._send(now_s)
        return done

    def _send(self, now_s: float) -> None:
        protocol = self._protocol
        while (outgoing := protocol.next_frame(now_s)) is not None:
            client_id, frame = outgoing
            dealer = self._watched.get(client_id) or self._watch(client_id)
            try:
                dealer.send(frame, sockets.NOWAIT)
            except sockets.Again:
                protocol.blocked(now_s)
                self._down = True
                return
            protocol.sent()

    def _watch(self, client_id: bytes) -> Any:
        assert self._sockets is not None
        dealer = self._watched[client_id] = self._sockets.dealer(client_id)
        self._poller.register(dealer.fileno(), select.POLLIN)
        return dealer

    def _take_answer(self, now_s: float) -> bool:
        """After a poll the answer is there: take it without asking for events, 3 us each time.

        False: look properly. What else is there is seen before the next poll, which begins with events.
        """
        if len(self._watched) != 1:
            return False
        (dealer,) = self._watched.values()
        try:
            frame = dealer.recv(sockets.NOWAIT)
        except sockets.Again:
            return False
        return self._finish(self._protocol.on_frame(frame, now_s))

    def _receive(self, now_s: float) -> bool:
        """Take what is there; True when something was completed."""
        back = done = False
        for dealer in list(self._watched.values()):
            while (events := dealer.getsockopt(sockets.EVENTS)) & sockets.POLLIN:
                done |= self._finish(self._protocol.on_frame(dealer.recv(sockets.NOWAIT), now_s))
            if events & sockets.POLLOUT:
                back = True
            else:
                self._down = True
        if back and self._down:
            self._down = False
            self._protocol.reconnected(now_s)
        if self._protocol.retired:
            self._retire()
        return done or (back and self._protocol.unsent)

    def _retire(self) -> None:
        for identity in self._protocol.retired:
            dealer = self._watched.pop(identity.client_id, None)
            if dealer is not None and self._sockets is not None:
                self._poller.unregister(dealer.fileno())
                self._sockets.drop(identity.client_id)
        self._protocol.retired.clear()

    def _finish(self, completions: Iterable[Completion]) -> bool:
        """Store the pairs and wake their threads."""
        done = False
        for slots, pairs in completions:
            for own, pair in zip(slots, pairs, strict=False):
                own.pair = pair
                done = True
                waiter = own.waiter
                if waiter.waits:
                    self._waiting.pop(waiter, None)
                    waiter.wake()
        return done

    # --- the end ---

    def close(self) -> None:
        """Close the link; calls of other threads end with ``client_closed``. Idempotent."""
        with self._mutex:
            if self.closed:
                return
            self.closed = True
            for listener in list(self.listeners):
                listener.close()
            if self._driver is not None:
                self._polling = True
                self._ring()  # the driver ends what is open; the last to leave closes the sockets
                return
            self._finish(self._protocol.close())
            self._shut()

    def _shut(self) -> None:
        if self._sockets is not None:
            self._sockets.close()
        self._watched = {}
        if self._pipe is not None:
            for descriptor in self._pipe:
                os.close(descriptor)
            self._pipe = None

    def __del__(self) -> None:
        pipe: tuple[int, int] | None = getattr(self, "_pipe", None)
        if pipe is not None:
            self._pipe = None
            for descriptor in pipe:
                os.close(descriptor)


def _settled(slots: Sequence[Slot], gate: Slot | None) -> bool:
    """Whether nothing more has to be waited for: all are there, or the gate has failed."""
    if gate is not None and gate.pair is not None and gate.pair[0]:
        return True
    return all(own.pair is not None for own in slots)


def _pipe() -> tuple[int, int]:
    ends = os.pipe()
    for descriptor in ends:
        os.set_blocking(descriptor, False)
    return ends


__all__ = ["BlockingLink", "Slot", "error_pair"]
