"""The asyncio shell: one loop, plain sockets watched with ``add_reader``, one timer for everything.

Calls issued in one loop turn are flushed by one ``call_soon``. The socket's descriptor is edge-triggered:
after every send and receive the events are read until nothing is left.
"""

from __future__ import annotations

import asyncio
import inspect
import weakref
from asyncio import Future, InvalidStateError, get_running_loop
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from mesh.client import _link
from mesh.client._payload import Call, Pair
from mesh.client._protocol import HELLO, Completion, Facts, Protocol
from mesh.client._surface import Ask, Emit, Meanwhile, Pause, Plan, Request, check_timeout, failure, result_of
from mesh.client._traffic import FOREVER
from mesh.errors import ClientClosed, InvalidState, MeshError, NodeUnreachable
from mesh.net import sockets

#: Frames taken in one go before other callbacks of the loop have their turn.
RECEIVE_MAX = 64


class AsyncLink:
    """One AsyncClient's connection to its node, bound to the running loop at first use."""

    def __init__(self, address: str | None, timeout_s: float) -> None:
        check_timeout(timeout_s)
        self.address = address
        self.timeout_s = timeout_s
        self.closed = False
        self.endpoint = ""
        self.listeners: weakref.WeakSet[Any] = weakref.WeakSet()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sockets: _link.Sockets | None = None
        self._forget_link()
        _link.register(self)

    def _forget_link(self) -> None:
        """Drop loop and sockets without touching them: they are the parent's, or their loop is closed."""
        self._loop = None
        _link.keep(self._sockets)
        self._sockets = None
        self._watched: dict[bytes, Any] = {}
        self._protocol = Protocol(_link.new_client_id, str(self.address), self.timeout_s)
        self._flushing = False
        self._down = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = FOREVER

    # --- calls ---

    def call(self, kind: int, slot: int, call: Call, timeout_s: float | None = None) -> asyncio.Future[Pair]:
        """Queue a call; it leaves with the others of this loop turn. The future never gets an error."""
        if not self._flushing:
            self._begin_turn()
        if timeout_s is not None:
            check_timeout(timeout_s)
        future: asyncio.Future[Pair] = Future(loop=self._loop)
        self._protocol.add(kind, slot, call, future, timeout_s)
        return future

    def control(self, kind: int, partition: int = 0, timeout_s: float | None = None) -> asyncio.Future[Pair]:
        """Queue a request to the router itself."""
        if not self._flushing:
            self._begin_turn()
        check_timeout(timeout_s)
        future: asyncio.Future[Pair] = Future(loop=self._loop)
        self._protocol.add_control(kind, partition, future, timeout_s)
        return future

    def _begin_turn(self) -> None:
        """The first call of a loop turn. Looked up here only: asking for the running loop costs a syscall."""
        loop = get_running_loop()
        if loop is not self._loop:
            self._bind(loop)
        self._flushing = True
        loop.call_soon(self._flush)

    def note(self, partition: int) -> None:
        """Tell the router that a fallback was used because of that partition."""
        self._protocol.note(partition, monotonic())
        if not self._flushing and self._loop is not None:
            self._flushing = True
            self._loop.call_soon(self._flush)

    async def facts(self, timeout_s: float | None = None) -> Facts:
        """What HELLO said of the node.

        Raises:
            NodeUnreachable: there is no node.
            RemoteProtocolError: it is not one, or of another version.
        """
        known = self._protocol.known
        if known is None or self._loop is not get_running_loop():
            status, known = await self.control(HELLO, 0, timeout_s)
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

    async def drive(self, plan: Plan, timeout_s: float | None = None) -> Any:
        """Perform a plan. ``timeout_s`` is the limit of each question that does not name its own."""
        check_timeout(timeout_s)
        try:
            request = next(plan)
            while True:
                try:
                    answer = await self._perform(request, timeout_s)
                except MeshError as error:
                    request = plan.throw(error)
                else:
                    request = plan.send(answer)
        except StopIteration as stop:
            return stop.value
        finally:
            plan.close()

    async def _perform(self, request: Request, limit_s: float | None) -> Any:
        if isinstance(request, list):
            return await self._ask_all(request, limit_s)
        if isinstance(request, Meanwhile):
            return await self._ask_all(request.asks, limit_s, request.work)
        if isinstance(request, Pause):
            return await asyncio.sleep(request.seconds)
        if isinstance(request, Emit):
            answer = request.callback(request.value)
            return await answer if inspect.isawaitable(answer) else None
        return await self.facts(limit_s if request.timeout_s is None else request.timeout_s)

    async def _ask_all(
        self, asks: list[Ask], limit_s: float | None, work: Callable[[], object] | None = None
    ) -> list[Any]:
        try:
            if len(asks) == 2 and asks[0].gate and work is None:
                return await self._ask_behind(asks[0], asks[1], limit_s)
            futures = [self._ask(ask, limit_s) for ask in asks]
        except NodeUnreachable as error:
            return [error] * len(asks)
        results: list[Any] = []
        try:
            if work is not None:
                self._flush()
                work()
            for ask, future in zip(asks, futures, strict=True):
                status, value = await future
                results.append(result_of(status, value))
                if ask.gate and status:
                    break
        finally:
            for future in futures[len(results) :]:
                future.cancel()
        return results

    async def _ask_behind(self, first: Ask, second: Ask, limit_s: float | None) -> list[Any]:
        """Ask both at once. The second answer stands behind the first, so that the caller is woken once."""
        assert first.call is not None
        if not self._flushing:
            self._begin_turn()
        gate = _Gate()
        timeout_s = limit_s if first.timeout_s is None else first.timeout_s
        self._protocol.add(first.kind, first.slot, first.call, gate, timeout_s)
        gate.behind = self._ask(second, limit_s)
        status, value = await gate.behind
        opened, said = gate.pair or await gate.opened()
        return [result_of(opened, said)] if opened else [result_of(opened, said), result_of(status, value)]

    def _ask(self, ask: Ask, limit_s: float | None) -> asyncio.Future[Pair]:
        timeout_s = limit_s if ask.timeout_s is None else ask.timeout_s
        if ask.call is None:
            return self.control(ask.kind, ~ask.slot, timeout_s)
        return self.call(ask.kind, ask.slot, ask.call, timeout_s)

    # --- the loop's callbacks ---

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.closed:
            raise ClientClosed("this client is closed; make a new one")
        if self._loop is not None:
            if self._loop.is_running():
                raise InvalidState(
                    "an AsyncClient belongs to one event loop; make one for each", code="invalid_operation"
                )
            self._detach()
        endpoint = _link.endpoint_of(self.address)
        self._forget_link()
        self.endpoint = endpoint
        self._protocol = Protocol(_link.new_client_id, endpoint, self.timeout_s)
        self._sockets = _link.Sockets(endpoint)
        self._loop = loop

    def _flush(self) -> None:
        self._flushing = False
        now_s = monotonic()
        _finish(self._protocol.flush(now_s))
        self._send(now_s)
        self._receive()

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
        assert self._sockets is not None and self._loop is not None
        dealer = self._watched[client_id] = self._sockets.dealer(client_id)
        self._loop.add_reader(dealer.fileno(), self._receive)
        return dealer

    def _receive(self) -> None:
        if self._loop is None:
            return
        now_s = monotonic()
        back = False
        answered = self._protocol.answered
        for dealer in list(self._watched.values()):
            back |= self._drain(dealer, now_s)
        if back and self._down:
            self._down = False
            self._protocol.reconnected(now_s)
            self._send(now_s)
        if self._protocol.retired:
            self._retire()
        if self._protocol.gathering and self._protocol.answered != answered and not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)  # behind the tasks that the answers woke: their calls join
        if self._protocol.due_s < self._timer_s:
            self._arm(now_s)

    def _drain(self, dealer: Any, now_s: float) -> bool:
        """Take what is there; True when the socket could send again."""
        protocol = self._protocol
        for _ in range(RECEIVE_MAX):
            events = dealer.getsockopt(sockets.EVENTS)
            if not events & sockets.POLLIN:
                back = bool(events & sockets.POLLOUT)
                self._down = self._down or not back
                return back
            frame = dealer.recv(sockets.NOWAIT)
            _finish(protocol.on_frame(frame, now_s))
            if protocol.unsent:
                self._send(now_s)
        if self._loop is not None:
            self._loop.call_soon(self._receive)
        return False

    def _arm(self, now_s: float) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = self._protocol.due_s
        self._timer = self._loop.call_later(max(0.0, self._timer_s - now_s), self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_s = None, FOREVER
        now_s = monotonic()
        _finish(self._protocol.tick(now_s))
        self._send(now_s)
        self._receive()

    def _retire(self) -> None:
        for identity in self._protocol.retired:
            dealer = self._watched.pop(identity.client_id, None)
            if dealer is not None and self._loop is not None and self._sockets is not None:
                self._loop.remove_reader(dealer.fileno())
                self._sockets.drop(identity.client_id)
        self._protocol.retired.clear()

    def _detach(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            if self._timer is not None:
                self._timer.cancel()
            for dealer in self._watched.values():
                self._loop.remove_reader(dealer.fileno())
        if self._sockets is not None:
            self._sockets.close()
            self._sockets = None

    def close(self) -> None:
        """Close the sockets; what is waiting ends with ``client_closed``. Idempotent."""
        self.closed = True
        for listener in list(self.listeners):
            listener.close()
        if self._loop is not None and not self._loop.is_closed():
            _finish(self._protocol.close())
        self._detach()
        self._forget_link()


class _Gate:
    """Takes an answer that nobody waits for while it is good: what stands behind it follows."""

    __slots__ = ("_late", "behind", "pair")

    def __init__(self) -> None:
        self.pair: Pair | None = None
        self.behind: asyncio.Future[Pair] | None = None
        self._late: asyncio.Future[Pair] | None = None

    def set_result(self, pair: Pair) -> None:
        """The answer is there; when it is an error, nothing stands behind it."""
        self.pair = pair
        if pair[0] and self.behind is not None and not self.behind.done():
            self.behind.set_result(pair)
        if self._late is not None and not self._late.done():
            self._late.set_result(pair)

    async def opened(self) -> Pair:
        """The answer, when what stands behind it came first."""
        self._late = get_running_loop().create_future()
        return await self._late


def _finish(completions: Iterable[Completion]) -> None:
    for tokens, pairs in completions:
        for future, pair in zip(tokens, pairs, strict=False):
            try:
                future.set_result(pair)
            except InvalidStateError:  # cancelled: rare, so nobody is asked whether it is done
                pass


__all__ = ["AsyncLink"]
