"""The runner's one mailbox: a DEALER on the runner's loop, many messages in few frames.

What is posted in one turn of the loop leaves at its end, one frame per partition. When the router cannot
take more, what is left waits here and is tried again; it is bounded by the outbox, whose bytes these are.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from mesh.core import mailbox, wire
from mesh.core.runner import FRAME_BYTES, groups, join_many
from mesh.errors import ProtocolError
from mesh.log import Log
from mesh.net import sockets
from mesh.node.child import Child

#: Frames taken in one turn; then the runs get theirs.
FRAMES_PER_TURN = 256
RETRY_S = 0.02

OnMessage = Callable[[bytes, int, int, list[Any]], None]


class Link:
    """Sends to partitions and to the router; hands on what arrives as (kind, index, incarnation, message).

    ``on_turn`` is called before what was posted leaves; ``on_wake`` when the socket stirred without a
    message: perhaps it is connected anew, to a router that does not know us.
    """

    def __init__(
        self, child: Child, log: Log, *, on_message: OnMessage, on_turn: Callable[[], None],
        on_wake: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._log = log
        self._on_message = on_message
        self._on_turn = on_turn
        self._on_wake = on_wake
        self._context = sockets.context()
        identity = mailbox.identity(mailbox.RUNNER, child.index, child.incarnation)
        self._socket = sockets.dealer_socket(
            self._context, child.back_endpoint, identity, frame_bytes=child.config.limits.frame_bytes,
        )
        self._fd = self._socket.fileno()
        self._posted: dict[int, list[bytes]] = {}
        self._frames: deque[bytes] = deque()
        self._scheduled = False
        self._retry: asyncio.TimerHandle | None = None
        self.refused = 0
        self._loop.add_reader(self._fd, self._readable)

    @property
    def blocked(self) -> bool:
        """Whether frames wait because the router takes no more, or is not there."""
        return bool(self._frames)

    def post(self, partition: int, message: bytes) -> None:
        """Send an encoded message to a partition, with everything else of this turn."""
        self._posted.setdefault(partition, []).append(message)
        self.wake()

    def wake(self) -> None:
        """Have ``on_turn`` and the sending done at the end of this turn."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def tell_router(self, message: list[Any]) -> bool:
        """Send to the router, or not at all: what it is told is repeated every second."""
        if self._socket.closed:
            return False  # a last timer of a loop that ends
        try:
            self._socket.send(wire.ROUTER_ID + wire.pack(message), sockets.NOWAIT)
        except sockets.Again:
            return False
        finally:  # also a send that fails may have swallowed the edge
            self._loop.call_soon(self._drain)
        return True

    def close(self) -> None:
        """Close, with a moment for the last frame to leave."""
        self._loop.remove_reader(self._fd)
        if self._retry is not None:
            self._retry.cancel()
        self._socket.close(linger=100)
        self._context.term()

    def _flush(self) -> None:
        if self._socket.closed:
            return  # what did not leave in time is settled by the next life of the node
        self._scheduled = False
        self._on_turn()
        for partition, messages in self._posted.items():
            peer = wire.actor_id(mailbox.PARTITION, partition)
            self._frames.extend(peer + join_many(group) for group in groups(messages, FRAME_BYTES))
        self._posted.clear()
        if self._frames and self._retry is None:
            self._send()

    def _send(self) -> None:
        self._retry = None
        try:
            while self._frames:
                self._socket.send(self._frames[0], sockets.NOWAIT)
                self._frames.popleft()
        except sockets.Again:
            self._retry = self._loop.call_later(RETRY_S, self._send)
        # A send may have swallowed the edge that says "there is something to read".
        self._loop.call_soon(self._drain)

    def _readable(self) -> None:
        if not self._drain():
            self._on_wake()

    def _drain(self) -> int:
        """Take what is there; returns how many frames it was."""
        for count in range(FRAMES_PER_TURN):
            if self._socket.closed:
                return count
            try:
                frame = self._socket.recv(sockets.NOWAIT)
            except sockets.Again:
                return count
            self._take(frame)
        self._loop.call_soon(self._drain)
        return FRAMES_PER_TURN

    def _take(self, frame: bytes) -> None:
        try:
            kind, index, incarnation = wire.parse_actor_id(frame[:wire.CLIENT_ID_BYTES])
            message = wire.unpack(memoryview(frame)[wire.ACTOR_PREFIX_BYTES:])
            for one in message[1] if message[0] == "many" else (message,):
                self._on_message(kind, index, incarnation, one)
        except (ProtocolError, ValueError, TypeError, IndexError, KeyError, AttributeError) as exc:
            self.refused += 1
            why = f"{type(exc).__name__}: {exc}"[:300]
            self._log.write("a message was refused", why=why, bytes=len(frame))


__all__ = ["Link"]
