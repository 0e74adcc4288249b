"""What a partition sends through its mailbox: answers to clients, and words to the other actors."""

from __future__ import annotations

from typing import Any

from mesh.core import mailbox, wire
from mesh.errors import MeshError
from mesh.net import sockets
from mesh.net.window import MARK_BYTES, ROOM_BYTES, Window

REPLY, WAIT = int(wire.Kind.REPLY), int(wire.Kind.WAIT)
AGAIN, REFUSED = int(wire.Flag.AGAIN), int(wire.Flag.REFUSED)


class Replies:
    """The sending side of the socket."""

    def __init__(self, socket: Any, *, index: int, epoch: int, map_version: int) -> None:
        self.dropped = 0  #: messages that no router took
        self.router_boot = 0  #: of the router that welcomed us; 0 before one did
        self._socket, self._send, self._unsent = socket, sockets.sender(socket), Window()
        self._index, self._epoch, self._map_version = index, epoch, map_version

    def welcomed(self, boot: int) -> None:
        """A router knows us from now on."""
        self.router_boot = boot

    def has_room(self) -> bool:
        """Whether more may be asked of the partition; waits a moment for it."""
        return self._unsent.has_room()

    @property
    def full(self) -> bool:
        """Whether so much is on its way that this batch should end."""
        return self._unsent.bytes > ROOM_BYTES

    def reply(
        self, client: bytes, request_id: int, kind: int, size: int, body: bytes, flags: int = 0
    ) -> None:
        """Answer a payload of ``size`` bytes."""
        self.send(client + self._header(request_id, kind, size, flags) + body)

    def reply_wait(self, client: bytes, request_id: int, flags: int, body: bytes) -> None:
        """Answer a waiting read, or a part of it."""
        self.send(client + self._header(request_id, WAIT, 0, flags) + body)

    def refuse(self, client: bytes, request_id: int, kind: int, size: int, error: MeshError) -> None:
        """Refuse a payload of ``size`` bytes as a whole."""
        flags = REFUSED | (AGAIN if error.code == "partition_unavailable" else 0)
        self.send(client + self._header(request_id, kind, size, flags) + wire.pack(error.to_wire()))

    def _header(self, request_id: int, kind: int, size: int, flags: int) -> bytes:
        return wire.pack_header(
            REPLY, flags, kind, self._index, self._map_version, size, request_id, self.router_boot,
            self._epoch,
        )

    def took(self, total: int) -> None:
        """Tell the router that there is room for more requests (``core/credit.py``)."""
        self.send(wire.ROUTER_ID + wire.pack(["took", total]))

    def tell_partition(self, index: int, message: list[Any]) -> None:
        """Say something to whoever is another partition now; it may be lost."""
        self.send(wire.actor_id(mailbox.PARTITION, index) + wire.pack(message))

    def send(self, frame: bytes) -> None:
        """Send what is complete with its address."""
        try:
            if len(frame) > MARK_BYTES:
                self._unsent.send(self._socket, frame)
            else:
                self._send(frame, sockets.NOWAIT)
        except sockets.Again:
            self.dropped += 1  # no router now: clients and runners send again what was not answered


__all__ = ["Replies"]
