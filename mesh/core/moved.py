"""Writes that may have happened before their slots moved: a node began with another number of partitions.

Rules of this file:

1. A receipt stays with the partition that wrote it: it is found under its client, its number and that
   partition. So a write that may have happened goes on to its former partition (``Flag.MOVED``), which
   answers it from the receipt. Where there is none nothing was done, nor will be: each call on a slot that
   moved is answered ``again``, under that number, and its caller places it anew.
2. Receipts of a partition that is no more are its ``heir``'s, under the client's id and one more byte, the
   former partition: the client has numbers of its own at the heir. They go back when the partition does.
"""

from __future__ import annotations

from mesh.core.wire import CLIENT_ID_BYTES
from mesh.errors import InvalidArgument


def heir(partition: int, partitions: int) -> int:
    """Who has the receipts of a partition, of so many that there are now."""
    return partition if partition < partitions else partition % partitions


def sender(client: bytes, partition: int, index: int) -> bytes:
    """Under whose name partition ``index`` keeps the receipt of a write to ``partition``."""
    return client if partition == index else client + bytes((partition,))


def place(name: bytes, index: int, partitions: int) -> tuple[int, bytes]:
    """Where a receipt that partition ``index`` has under this name belongs, and its name there."""
    client, former = name[:CLIENT_ID_BYTES], name[CLIENT_ID_BYTES:]
    written_by = former[0] if former else index
    owner = heir(written_by, partitions)
    return owner, sender(client, written_by, owner)


def elsewhere() -> InvalidArgument:
    """The refusal of a call on a slot that another partition has; nothing was done."""
    return InvalidArgument(
        "this belongs to another partition: place it by the present map", code="invalid_argument",
        details={"again": True},
    )


__all__ = ["elsewhere", "heir", "place", "sender"]
