"""What a partition sends through its mailbox: answers to clients, and words to the other actors."""

from __future__ import annotations

from mesh.core import wire
from mesh.errors import MeshError
from mesh.net.dealer import Dealer

#: While more than this waits to leave, nothing more is asked of the partition.
ROOM_BYTES = 16 * 1024 * 1024
ROOM_WAIT_S = 0.01
#: Answers leave together up to this size: a turn may be long, and who asked for little is answered within it.
TOGETHER_BYTES = 4 * 1024

REPLY, WAIT = int(wire.Kind.REPLY), int(wire.Kind.WAIT)
AGAIN, REFUSED = int(wire.Flag.AGAIN), int(wire.Flag.REFUSED)


class Replies:
    """The sending side of the mailbox. What is complete leaves with ``flush``, many answers at a time."""

    def __init__(self, mailbox: Dealer, *, index: int, epoch: int, map_version: int) -> None:
        self.dropped = 0  #: messages that no router took
        self.router_boot = 0  #: of the router that welcomed us; 0 before one did
        self._mailbox, self._post, self.flush = mailbox, mailbox.post, mailbox.flush
        self._index, self._epoch, self._map_version = index, epoch, map_version

    def welcomed(self, boot: int) -> None:
        """A router knows us from now on."""
        self.router_boot = boot

    def has_room(self) -> bool:
        """Whether more may be asked of the partition; waits a moment for it."""
        if self.full:
            self._mailbox.wait(ROOM_WAIT_S)
        return not self.full

    @property
    def full(self) -> bool:
        """Whether so much is on its way that this batch should end."""
        return self._mailbox.unsent > ROOM_BYTES

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

    def send(self, frame: bytes) -> None:
        """Send what is complete with its address."""
        if not self._post(frame):
            self.dropped += 1  # no router now: clients and runners send again what was not answered
        elif self._mailbox.unsent > TOGETHER_BYTES:
            self.flush()


__all__ = ["ROOM_BYTES", "TOGETHER_BYTES", "Replies"]
