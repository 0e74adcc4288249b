"""One run as a stream of its agent's events: ``StreamSession``, and ``AsyncStreamSession`` for asyncio.

    with StreamSession("coder", "fix the tests", client=client, idle_timeout_s=60) as stream:
        for event in stream:
            ...

Nothing is buffered but one page of events: the log is read by cursor, at the reader's pace. An error, a
silence of ``idle_timeout_s`` or the loss of the node is the last item, ``error_occurred``; nothing is raised
for what happens inside. Closing cancels the run, waits for that ``shutdown_timeout_s`` at most, and ends what
the stream started itself: without a client it has a node of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from mesh.client._surface_stream import Course
from mesh.client.local_node import LocalNode
from mesh.errors import ClientClosed, InvalidArgument

if TYPE_CHECKING:
    from mesh.core.records import Event

#: So long an agent may say nothing, and so long its end may take.
IDLE_TIMEOUT_S, SHUTDOWN_TIMEOUT_S = 120.0, 5.0


class StreamMeta(NamedTuple):
    """Whose stream it is. The ids are known before anything is started."""

    agent: str
    session_id: str
    run_id: str


class _Stream:
    """What both colours share: the course of the run, and what is ready to be given."""

    def __init__(
        self,
        agent: str,
        input: str | Mapping[str, Any],
        *,
        client: Any = None,
        config: Mapping[str, Any] | None = None,
        session_id: str | None = None,
        run_opts: Mapping[str, Any] | None = None,
        idle_timeout_s: float | None = IDLE_TIMEOUT_S,
        shutdown_timeout_s: float | None = SHUTDOWN_TIMEOUT_S,
    ) -> None:
        if client is None and session_id is not None:
            raise InvalidArgument("a session is on a node: a stream in one needs a client")
        if client is not None and config is not None:
            raise InvalidArgument("config is for a node of the stream's own: give either it or a client")
        self._course = Course(
            agent, input, session_id, dict(run_opts or {}), idle_timeout_s, shutdown_timeout_s
        )
        self._client = client
        self._node = LocalNode(partitions=1, config=config) if client is None else None
        self._ready: deque[Event] = deque()  #: at most a page
        self._mutex = threading.RLock()  #: what was started is ended once, whoever closes

    @property
    def meta(self) -> StreamMeta:
        """Agent, session and run."""
        course = self._course
        return StreamMeta(course.agent, str(course.session_id), str(course.run_id))


class StreamSession(_Stream):
    """A run and its agent's events, blocking: an iterator, and a context manager.

    ``agent`` and ``input`` as for ``run_once``; ``run_opts`` are its options. ``client``: the node to run on;
    without one the stream has a node of its own, with ``config``. ``session_id``: a session there in which
    the run is one of many; else it has one of its own, which ends with it. ``close`` may come from any
    thread.

    Raises:
        InvalidArgument: an argument is wrong; nothing was started.
    """

    def start(self) -> Self:
        """Start the run; iterating does it as well. What the node says against it is the stream's last item.

        Raises:
            MeshError: a node of its own cannot start.
        """
        with self._mutex:
            if self._client is None and self._node is not None:
                self._client = self._node.start().client()
        if self._client is not None:
            self._client._link.drive(self._course.begin(self._client._link))
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        """The next event; waits for it."""
        if not self._ready and not self._course.closed:
            self.start()
            if self._client is not None:
                self._ready += self._client._link.drive(self._course.page(self._client._link))
        if self._course.closed or not self._ready:
            self._release()
            raise StopIteration
        return self._ready.popleft()

    def close(self) -> None:
        """End the stream: its run is cancelled, what it started itself ends. Idempotent, at any time."""
        if not self._course.closed:
            self._course.closed = True
            if self._client is not None:
                with suppress(ClientClosed):
                    self._client._link.drive(self._course.stop(self._client._link))
        self._release()

    def _release(self) -> None:
        with self._mutex:
            node, self._node = self._node, None
            if node is not None:
                if self._client is not None:
                    self._client.close()
                node.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncStreamSession(_Stream):
    """The same on asyncio: an async iterator, and an async context manager.

    Raises:
        InvalidArgument: an argument is wrong; nothing was started.
    """

    async def start(self) -> Self:
        """Start the run; iterating does it as well. What the node says against it is the stream's last item.

        Raises:
            MeshError: a node of its own cannot start.
        """
        if self._client is None and self._node is not None:
            node = await asyncio.to_thread(self._begin_node, self._node)
            self._client = None if node is None else node.async_client()
        if self._client is not None:
            await self._client._link.drive(self._course.begin(self._client._link))
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event; waits for it."""
        if not self._ready and not self._course.closed:
            await self.start()
            if self._client is not None:
                self._ready += await self._client._link.drive(self._course.page(self._client._link))
        if self._course.closed or not self._ready:
            await self._release()
            raise StopAsyncIteration
        return self._ready.popleft()

    async def close(self) -> None:
        """End the stream: its run is cancelled, what it started itself ends. Idempotent, at any time."""
        if not self._course.closed:
            self._course.closed = True
            if self._client is not None:
                with suppress(ClientClosed):
                    await self._client._link.drive(self._course.stop(self._client._link))
        await self._release()

    async def _release(self) -> None:
        node, self._node = self._node, None
        if node is not None:
            if self._client is not None:
                await self._client.close()
            await asyncio.to_thread(self._end_node, node)

    def _begin_node(self, node: LocalNode) -> LocalNode | None:
        """In a thread, which goes on when the stream is cancelled: what it starts is ended behind it."""
        with self._mutex:
            return None if self._node is None else node.start()

    def _end_node(self, node: LocalNode) -> None:
        with self._mutex:
            node.close()

    async def __aenter__(self) -> Self:
        try:
            return await self.start()
        except BaseException:
            await self.close()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


__all__ = ["IDLE_TIMEOUT_S", "SHUTDOWN_TIMEOUT_S", "AsyncStreamSession", "StreamMeta", "StreamSession"]
