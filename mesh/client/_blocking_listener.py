"""The blocking listener: an iterator over the feed. Nothing is buffered but ZeroMQ's bounded pipe."""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from mesh.client import _link
from mesh.client import _surface_feed as plans
from mesh.client._blocking_link import BlockingLink
from mesh.client._cursor import FeedCursor
from mesh.client._surface import check_timeout
from mesh.core.notification import Notification
from mesh.errors import ClientClosed
from mesh.net import sockets


class Listener:
    """Follows topics of the feed: each message once and in order. Made by ``Client.listen``.

    One thread iterates; ``close`` may come from any.
    """

    def __init__(self, link: BlockingLink, machine: FeedCursor, endpoint: str, token: str) -> None:
        self._link = link
        self._machine = machine
        self._ready: deque[Notification] = deque()  #: at most one page of a fetch, or one drain of the socket
        self._mutex = threading.RLock()  #: held by whoever touches the socket
        self._closed = False
        self._shut = False
        self._pid = os.getpid()
        self._ends = os.pipe()
        self._context = _link.use_context()
        self._socket: Any = sockets.subscriber_socket(self._context, endpoint)
        self._receive = sockets.receiver(self._socket)
        for prefix in machine.subscriptions(token):
            self._socket.subscribe(prefix)
        self._poller = select.poll()
        self._poller.register(self._ends[0], select.POLLIN)
        self._poller.register(self._socket.fileno(), select.POLLIN)
        link.listeners.add(self)

    @classmethod
    def open(
        cls, link: BlockingLink, topics: Sequence[str], after: str | None, timeout_s: float | None
    ) -> Self:
        """Subscribe and wait until every partition's echo has come back."""
        check_timeout(timeout_s)
        machine, token, facts = link.drive(plans.begin(topics, after, timeout_s), timeout_s)
        listener = cls(link, machine, _link.feed_endpoint(link.endpoint, facts), token)
        try:
            limit_s = link.timeout_s if timeout_s is None else timeout_s
            link.drive(plans.go_live(machine, token, listener._drain, limit_s), timeout_s)
        except BaseException:
            listener.close()
            raise
        return listener

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Notification:
        """The next message; waits for it.

        Raises:
            InvalidArgument: ``invalid_cursor``, we were away so long that history was not kept.
        """
        while not self._ready:
            if self._closed or self._pid != os.getpid():
                self._finish()
                raise StopIteration
            if self._machine.holes:
                self._fetch()
                continue
            for topic, data in self._drain():
                self._ready += self._machine.on_message(topic, data)
            if not self._ready and not self._machine.holes:
                self._wait()
        return self._ready.popleft()

    def _fetch(self) -> None:
        try:
            self._ready += self._link.drive(plans.fetch(self._machine, self._machine.holes[0]))
        except ClientClosed:
            self.close()

    def _wait(self) -> None:
        with self._mutex:
            if self._closed or self._socket.getsockopt(sockets.EVENTS) & sockets.POLLIN:
                return
        self._poller.poll()

    def _drain(self) -> list[tuple[str, dict[str, Any]]]:
        messages: list[tuple[str, dict[str, Any]]] = []
        with self._mutex:
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
        """End the iteration, from any thread. Idempotent."""
        with self._mutex:
            if self._closed or self._pid != os.getpid():
                return
            self._closed = True
            self._link.listeners.discard(self)
            os.write(self._ends[1], b"!")
            self._poller.unregister(self._socket.fileno())
            self._socket.close(0)
            _link.release_context(self._context)

    def _finish(self) -> None:
        """The last word of the iterating thread: the pipe that woke it is not needed any more."""
        with self._mutex:
            if not self._shut and self._pid == os.getpid():
                self._shut = True
                for end in self._ends:
                    os.close(end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_socket"):
            self.close()
            self._finish()


__all__ = ["Listener"]
