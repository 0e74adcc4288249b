"""How many bytes wait in ZeroMQ for one peer. Its own marks count messages, and a message may have 16 MiB.

libzmq tells nobody how full a pipe is, but it says when it no longer needs a buffer that it did not copy.
So now and then (each ``MARK_BYTES``) a message is sent that way: when its buffer is free, all before it has
left. Messages up to ``SMALL_BYTES`` are not looked at: the pipe's mark bounds them.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from mesh.net import sockets

#: Frames up to this size are sent without a window.
SMALL_BYTES = 1024
#: What may be unconfirmed although it has left.
MARK_BYTES = 64 * 1024
#: Who has more than this on its way to one peer, should do something else first.
ROOM_BYTES = 16 * 1024 * 1024
ROOM_WAIT_S = 0.01


class Window:
    """The bytes on their way to one peer, at most ``MARK_BYTES`` too many."""

    __slots__ = ("_marks", "_unmarked", "bytes")

    def __init__(self) -> None:
        self.bytes = 0
        self._marks: deque[tuple[Any, int]] = deque()
        self._unmarked = 0

    def send(self, socket: Any, frame: bytes | memoryview) -> None:
        """Send the last part of a message, never waiting, and count it.

        Raises:
            ZMQError: as ``socket.send``; nothing was counted.
        """
        size = self._unmarked + len(frame)
        if size < MARK_BYTES:
            socket.send(frame, sockets.NOWAIT)
            self._unmarked = size
        else:
            self._marks.append((socket.send(frame, sockets.NOWAIT, copy=False, track=True), size))
            self._unmarked = 0
        self.bytes += len(frame)

    def settle(self) -> int:
        """Forget what has left; how many bytes that were."""
        before, marks = self.bytes, self._marks
        while marks and marks[0][0].done:
            self.bytes -= marks.popleft()[1]
        return before - self.bytes

    @property
    def waiting(self) -> bool:
        """Whether something surely has not left yet."""
        return bool(self._marks)

    def has_room(self) -> bool:
        """Whether at most ``ROOM_BYTES`` are on their way; waits a moment for it."""
        if self._marks:
            self.settle()
            if self.bytes > ROOM_BYTES:
                try:
                    self._marks[0][0].wait(ROOM_WAIT_S)
                except sockets.NotDone:
                    return False
                self.settle()
        return self.bytes <= ROOM_BYTES


__all__ = ["MARK_BYTES", "ROOM_BYTES", "ROOM_WAIT_S", "SMALL_BYTES", "Window"]
