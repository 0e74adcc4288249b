"""The asyncio listener: an async iterator over the feed. Nothing is buffered but ZeroMQ's bounded pipe."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from mesh.client import _link
from mesh.client import _surface_feed as plans
from mesh.client._aio_link import AsyncLink
from mesh.client._cursor import FeedCursor
from mesh.client._surface import check_timeout
from mesh.core.notification import Notification
from mesh.errors import ClientClosed
from mesh.net import sockets


class AsyncListener:
    """Follows topics of the feed: each message once and in order. Made by ``AsyncClient.listen``."""

    def __init__(self, link: AsyncLink, machine: FeedCursor, endpoint: str, token: str) -> None:
        self._link = link
        self._machine = machine
        self._ready: deque[Notification] = deque()  #: at most one page of a fetch, or one drain of the socket
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Future[None] | None = None
        self._reading = False
        self._closed = False
        self._context = _link.use_context()
        self._socket: Any = sockets.subscriber_socket(self._context, endpoint)
        self._receive = sockets.receiver(self._socket)
        for prefix in machine.subscriptions(token):
            self._socket.subscribe(prefix)
        self._loop.add_reader(self._socket.fileno(), self._wake)
        link.listeners.add(self)

    @classmethod
    async def open(
        cls, link: AsyncLink, topics: Sequence[str], after: str | None, timeout_s: float | None
    ) -> Self:
        """Subscribe and wait until every partition's echo has come back."""
        check_timeout(timeout_s)
        machine, token, facts = await link.drive(plans.begin(topics, after, timeout_s), timeout_s)
        listener = cls(link, machine, _link.feed_endpoint(link.endpoint, facts), token)
        try:
            limit_s = link.timeout_s if timeout_s is None else timeout_s
            await link.drive(plans.go_live(machine, token, listener._drain, limit_s), timeout_s)
        except BaseException:
            listener.close()
            raise
        return listener

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Notification:
        """The next message; waits for it.

        Raises:
            InvalidArgument: ``invalid_cursor``, we were away so long that history was not kept.
        """
        if self._ready and not self._reading:
            return self._ready.popleft()
        if self._reading:
            raise RuntimeError("a listener is read by one task at a time; make another listener")
        self._reading = True
        try:
            return await self._next()
        finally:
            self._reading = False

    async def _next(self) -> Notification:
        while not self._ready:
            if self._closed:
                raise StopAsyncIteration
            if self._machine.holes:
                await self._fetch()
                continue
            for topic, data in self._drain():
                self._ready += self._machine.on_message(topic, data)
            if not self._ready and not self._machine.holes:
                await self._wait()
        return self._ready.popleft()

    async def _fetch(self) -> None:
        try:
            self._ready += await self._link.drive(plans.fetch(self._machine, self._machine.holes[0]))
        except ClientClosed:
            self.close()

    async def _wait(self) -> None:
        if self._closed or self._socket.getsockopt(sockets.EVENTS) & sockets.POLLIN:
            return
        self._heard = self._loop.create_future()
        try:
            await self._heard
        finally:
            self._heard = None

    def _wake(self) -> None:
        if self._heard is not None and not self._heard.done():
            self._heard.set_result(None)
        elif not self._closed:
            # Nobody reads: The descriptor stays ready until the events are looked at; the loop would spin.
            self._socket.getsockopt(sockets.EVENTS)

    def _drain(self) -> list[tuple[str, dict[str, Any]]]:
        messages: list[tuple[str, dict[str, Any]]] = []
        while not self._closed and len(messages) < plans.DRAIN_MAX:
            try:
                message = plans.decode_message(self._receive())
            except sockets.Again:
                break
            if message is None:
                self._machine.stray += 1
            else:
                messages.append(message)
        return messages

    def close(self) -> None:
        """End the iteration. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._link.listeners.discard(self)
        self._wake()
        if not self._loop.is_closed():
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close(0)
        _link.release_context(self._context)

    async def aclose(self) -> None:
        """End the iteration. Idempotent."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


__all__ = ["AsyncListener"]
