"""The one mailbox of a client and of a partition: a DEALER, towards a ROUTER.

libzmq gives every socket to a thread of its own. Where one call at a time is made, most of its time is the
waking of such threads: two for each message at each end. A mailbox has one peer, mostly on the same machine,
so its end of the protocol (ZMTP 3.0 over a unix socket) is small enough to be spoken here, by the thread that
has something to say. The ROUTER stays libzmq's, and sees no difference. Over TCP, where heartbeats and names
are to be seen to, it is libzmq's socket.

Rules of this file:

1. Nothing blocks and nothing raises: ``send`` says whether a frame was taken, ``take`` gives None when there
   is none. Who was refused asks again; that is also what makes a lost connection anew, after 10 .. 200 ms.
2. The descriptor of a connection is watched by whoever sleeps (``Watch``); after a loss it is another one.
   All that it does not tell of is what ``waiting`` says.
3. A frame that was taken leaves whole, or is lost with the connection, as it would be in libzmq's pipe. What
   waits to leave is bounded in bytes.
4. The usual case, one short frame whole, is done in one function: waking up on a busy machine, every line of
   Python costs twice.
"""

from __future__ import annotations

import select
import socket
import struct
from collections import deque
from itertools import islice
from time import monotonic
from typing import Any, Protocol

from mesh.core.wire import FRAME_BYTES_MAX
from mesh.net.sockets import EVENTS, NOWAIT, POLLIN, POLLOUT, Again, dealer_socket

RETRY_MIN_S, RETRY_MAX_S = 0.01, 0.2
#: What one look at the connection takes; frames beyond stay with the kernel, and behind it with the ROUTER.
RECEIVE_BYTES = 64 * 1024
#: While more than this waits to leave, ``send`` takes nothing. Who may not lose anything sets his own.
UNSENT_BYTES = 16 * 1024 * 1024
#: Frames up to this size are put behind their header; larger ones are not copied.
COPY_BYTES = 16 * 1024
#: Pieces given to the kernel at a time.
PIECES = 64

_GREETING_BYTES = 64
#: Signature, version 3.0, the mechanism NULL: no secrets on a socket that only its user can open.
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_LONG, _COMMAND = 2, 4
_READY, _ERROR, _PING = b"\5READY", b"\5ERROR", b"\4PING"
_LENGTH = struct.Struct(">Q")
#: The headers of short frames.
_SHORT = tuple(bytes((0, size)) for size in range(256))
Piece = bytes | memoryview


class Watch(Protocol):
    """Who sleeps until a descriptor has something to tell."""

    def add(self, descriptor: int) -> None:
        """Wake up when it can be read."""

    def room(self, descriptor: int, wanted: bool) -> None:
        """Wake up also when it can be written, or no more."""

    def remove(self, descriptor: int) -> None:
        """It ends."""


class PollWatch:
    """One who sleeps in ``poll``."""

    def __init__(self, poller: Any) -> None:
        self._poller = poller

    def add(self, descriptor: int) -> None:
        """Wake up when it can be read."""
        self._poller.register(descriptor, select.POLLIN)

    def room(self, descriptor: int, wanted: bool) -> None:
        """Wake up also when it can be written, or no more."""
        self._poller.modify(descriptor, select.POLLIN | select.POLLOUT if wanted else select.POLLIN)

    def remove(self, descriptor: int) -> None:
        """It ends."""
        self._poller.unregister(descriptor)


class Remote:
    """The same over TCP: libzmq's socket."""

    def __init__(self, ctx: Any, endpoint: str, routing_id: bytes, watch: Watch) -> None:
        self._socket = dealer_socket(ctx, endpoint, routing_id)
        self._watch = watch
        watch.add(self._socket.fileno())

    def send(self, frame: bytes) -> bool:
        """Take a frame, or not."""
        try:
            self._socket.send(frame, NOWAIT)
        except Again:
            return False
        return True

    def take(self) -> bytes | None:
        """The next frame."""
        if int(self._socket.getsockopt(EVENTS)) & POLLIN:
            frame: bytes = self._socket.recv(NOWAIT)
            return frame
        return None

    @property
    def open(self) -> bool:
        """Whether a frame would be taken."""
        return bool(int(self._socket.getsockopt(EVENTS)) & POLLOUT)

    @property
    def waiting(self) -> bool:
        """Always perhaps: libzmq's descriptor tells of changes alone, and a send may have swallowed one."""
        return True

    def close(self) -> None:
        """Close it; what was not sent is dropped."""
        self._watch.remove(self._socket.fileno())
        self._socket.close(0)


class Dealer:
    """One connection to a ROUTER under an identity. Not thread-safe; belongs to one process."""

    def __init__(
        self, path: str, routing_id: bytes, watch: Watch, *, frame_bytes: int = FRAME_BYTES_MAX,
        unsent_max: float = UNSENT_BYTES,
    ) -> None:
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._frame_bytes = frame_bytes + 64
        self._unsent_max = unsent_max
        identity = b"\x08Identity" + struct.pack(">I", len(routing_id)) + routing_id
        hello = _READY + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER" + identity
        self._hello = _GREETING + _header(len(hello), _COMMAND) + hello
        self._watch = watch
        self._link: socket.socket | None = None
        self._again_s = 0.0  #: when the next connection may be tried
        self._wait_s = RETRY_MIN_S
        self._frames: deque[bytes] = deque()
        self._forget()
        self._connect()

    def _forget(self) -> None:
        """A new connection begins with nothing."""
        self._greeted = self.connected = self._blocked = False
        self._pieces: list[bytes] = []  #: the beginning of what has not come whole
        self._held = 0  #: its bytes
        self._missing = _GREETING_BYTES  #: so many must be there before it is looked at again
        self._queue: deque[Piece] = deque()
        self.unsent = 0  #: the bytes in it

    # --- frames ---

    def send(self, frame: bytes) -> bool:
        """Take a frame, or not; what does not leave at once leaves while ``take`` is called after waking."""
        size, link = len(frame), self._link
        if size > 255 or self.unsent or not self.connected or link is None:
            if not self.post(frame):
                return False
            if not self._blocked:
                self.flush()
            return True
        data = _SHORT[size] + frame
        try:
            sent = link.send(data)
        except OSError:
            sent = 0
        if sent <= size:  # not all of it, with its header of two bytes
            self._queue.append(data)
            self.unsent += len(data)
            self._left(sent)
            self.flush()
        return True

    def post(self, frame: bytes) -> bool:
        """Take a frame that leaves with the next ``flush``: several cost one call of the system."""
        if not self.open:
            self._attend()
            if not self.open:
                return False
        size = len(frame)
        head = _SHORT[size] if size < 256 else _header(size, 0)
        if size <= COPY_BYTES:
            self._queue.append(head + frame)
        else:
            self._queue += (head, frame)
        self.unsent += len(head) + size
        return True

    def flush(self) -> None:
        """Send what waits, as far as the kernel takes it."""
        queue, link = self._queue, self._link
        if not queue or link is None:
            return
        try:
            while queue:
                self._left(link.send(queue[0]) if len(queue) == 1 else link.sendmsg(islice(queue, PIECES)))
        except BlockingIOError:
            if not self._blocked:
                self._blocked = True
                self._watch.room(link.fileno(), True)
            return
        except OSError:
            self._drop()
            return
        if self._blocked:
            self._blocked = False
            self._watch.room(link.fileno(), False)

    def take(self) -> bytes | None:
        """The next frame."""
        frames, link = self._frames, self._link
        if frames:
            return frames.popleft()
        if link is None or self._queue or self._pieces:
            self._attend()
            return frames.popleft() if frames else None
        try:
            data = link.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        size = len(data)
        if size > 2 and not data[0] and size == data[1] + 2 and self._greeted:
            return data[2:]
        self._take_in(data)
        return frames.popleft() if frames else None

    @property
    def open(self) -> bool:
        """Whether a frame would be taken."""
        return self.connected and self.unsent <= self._unsent_max

    @property
    def waiting(self) -> bool:
        """Whether frames are here already, of which the descriptor says nothing any more."""
        return bool(self._frames)

    def wait(self, limit_s: float) -> None:
        """Wait until something comes, or until what waits to leave goes on leaving."""
        if self._link is not None:
            poller = select.poll()
            poller.register(self._link, select.POLLIN | (select.POLLOUT if self._queue else 0))
            poller.poll(limit_s * 1000)
        self._attend()

    def close(self, linger: int = 0) -> None:
        """Close the connection; what has not left within ``linger`` ms is dropped. Idempotent."""
        until_s = monotonic() + linger / 1000
        while self.unsent and (left_s := until_s - monotonic()) > 0:
            self.wait(left_s)
        self._again_s = float("inf")
        self._drop()

    def abandon(self) -> None:
        """In a forked child: close our copy, and touch nothing that the parent goes on using."""
        if self._link is not None:
            self._link.close()

    # --- the connection ---

    def _attend(self) -> None:
        """Connect if it is time, send what waits, take what is there."""
        if self._link is None:
            if monotonic() < self._again_s:
                return
            self._connect()
        if self._queue:
            self.flush()
        link = self._link
        if link is None:
            return
        try:
            data = link.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._drop()
        else:
            self._take_in(data)

    def _connect(self) -> None:
        self._again_s = monotonic() + self._wait_s
        self._wait_s = min(2 * self._wait_s, RETRY_MAX_S)
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.setblocking(False)
            link.connect(self._address)
            link.send(self._hello)  # a hundred bytes into an empty buffer
        except OSError:  # nobody listens there, or too many knock at the door
            link.close()
            return
        self._link = link
        self._watch.add(link.fileno())

    def _drop(self) -> None:
        """The connection is lost, and with it what is only half here or half there."""
        if self._link is not None:
            self._watch.remove(self._link.fileno())
            self._link.close()
            self._link = None
        self._forget()

    def _left(self, sent: int) -> None:
        """So many bytes of the queue are the kernel's now."""
        queue = self._queue
        self.unsent -= sent
        while queue and sent >= len(queue[0]):
            sent -= len(queue.popleft())
        if sent:
            queue[0] = memoryview(queue[0])[sent:]

    def _take_in(self, data: bytes) -> None:
        """Bytes from the connection; none are its end."""
        if not data:
            return self._drop()
        if self._pieces:
            self._pieces.append(data)
            self._held += len(data)
            if self._held < self._missing:
                return None
            data = b"".join(self._pieces)
        return self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Cut what came into frames; keep the beginning of one that is not whole."""
        at, end = 0, len(data)
        if not self._greeted:
            if end < _GREETING_BYTES:
                return self._keep(data, _GREETING_BYTES)
            if data[0] != 0xFF or data[10] < 3:
                return self._drop()
            self._greeted, at = True, _GREETING_BYTES
        while end - at >= 2:
            flags, size, first = data[at], data[at + 1], at + 2
            if flags & _LONG:
                if end - at < 9:
                    break
                first = at + 9
                size = int.from_bytes(data[at + 1 : first], "big")
                if size > self._frame_bytes:
                    return self._drop()
            following = first + size
            if following > end:
                return self._keep(data[at:], following - at)
            if not flags & _COMMAND:
                self._frames.append(data[first:following])
            elif not self._on_command(data[first:following]):
                return self._drop()
            at = following
        return self._keep(data[at:], 0)

    def _keep(self, rest: bytes, missing: int) -> None:
        self._pieces = [rest] if rest else []
        self._held, self._missing = len(rest), missing

    def _on_command(self, body: bytes) -> bool:
        """False: the peer does not want us."""
        if body.startswith(_READY):
            self.connected, self._wait_s = True, RETRY_MIN_S
        elif body.startswith(_PING):  # two bytes of its time to live, then what it wants to hear again
            pong = b"\4PONG" + body[7:]
            self._queue.append(_header(len(pong), _COMMAND) + pong)
            self.unsent += len(self._queue[-1])
        return not body.startswith(_ERROR)


def mailbox_of(ctx: Any, endpoint: str, routing_id: bytes, watch: Watch) -> Dealer | Remote:
    """The link of a client to a node of this machine, or of another one."""
    if endpoint.startswith("ipc://"):
        return Dealer(endpoint.removeprefix("ipc://"), routing_id, watch)
    return Remote(ctx, endpoint, routing_id, watch)


def _header(size: int, flags: int) -> bytes:
    return bytes((flags, size)) if size < 256 else bytes((flags | _LONG,)) + _LENGTH.pack(size)


__all__ = [
    "RECEIVE_BYTES", "RETRY_MAX_S", "RETRY_MIN_S", "UNSENT_BYTES", "Dealer", "PollWatch", "Remote", "Watch",
    "mailbox_of",
]
