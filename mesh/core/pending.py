"""A payload of writes between its arrival and its answer."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from mesh.core import wire
from mesh.core.moved import sender
from mesh.core.receipts import Key
from mesh.core.state import State
from mesh.errors import InvalidArgument

#: The successful answers of one payload; what its errors need beside them fits into the frame too.
REPLY_BYTES_MAX = wire.FRAME_BYTES_MAX - 2 * 1024 * 1024

#: The part of it that one list's answer may have: beside it is room for what is said of the list's rest.
MANY_BYTES_MAX = REPLY_BYTES_MAX - 1024 * 1024

_MOVED = int(wire.Flag.MOVED | wire.Flag.PARTITION)


def too_much() -> InvalidArgument:
    """What answers of more than REPLY_BYTES_MAX are refused with."""
    return InvalidArgument("the answers of one payload do not fit into a frame: ask for less at once",
                           code="limit_exceeded")


#: For what would fit alone.
ASK_AGAIN = wire.failure(InvalidArgument(
    "the answers of one payload do not fit into a frame: ask again for this", code="limit_exceeded",
    details={"again": True},
))
_NIL = wire.pack(None)
_AGAIN = ASK_AGAIN[len(wire.ERROR) :]


def _fitting(answers: Sequence[bytes]) -> int:
    """How many of a list's first answers fit into its own; at least one."""
    return max(1, bisect_right(list(accumulate(map(len, answers))), MANY_BYTES_MAX))


def cut_records(records: list[bytes], errors: list[bytes]) -> None:
    """Of ``route.get_many``: have those asked for again that find no room."""
    for place in range(_fitting(records), len(records)):
        if records[place] != _NIL:
            records[place] = _NIL
            errors.append(wire.array_header(2) + wire.pack(place) + _AGAIN)


def join_list(parts: list[bytes]) -> bytes:
    """One answer of the answers to a list's calls; those that find no room are to be asked for again."""
    if sum(map(len, parts)) > MANY_BYTES_MAX:
        fit = _fitting(parts)
        parts[fit:] = [ASK_AGAIN] * (len(parts) - fit)
    return b"".join((wire.OK, wire.array_header(len(parts)), *parts))


def was_cut(answers: Sequence[bytes]) -> bool:
    """Whether a list among them was cut: then that is its end."""
    return any(answer.endswith(_AGAIN) for answer in answers)


class Pending:
    """A write payload on its way to its answer."""

    __slots__ = (
        "answer_bytes",
        "audited",
        "calls",
        "client",
        "deadline_s",
        "held",
        "kind",
        "moved",
        "number",
        "over",
        "parts",
        "reply_flags",
        "request_id",
        "sender",
        "size",
    )

    def __init__(
        self, client: bytes, header: wire.Header, size: int, calls: list[Any], deadline_s: float,
        index: int = 0,
    ) -> None:
        self.client = client
        self.moved = header.flags & _MOVED == _MOVED  #: it was placed by an older map
        self.sender = sender(client, header.address, index) if self.moved else client
        self.reply_flags = int(wire.Flag.MORE) if self.moved else 0
        self.request_id = header.request_id
        self.number = header.number
        self.kind = header.kind
        self.size = size
        self.calls = calls
        self.parts: list[bytes | None] = [None] * len(calls)
        self.answer_bytes = 0
        self.deadline_s = deadline_s
        self.held: set[int] = set()  #: slots of parked calls: what follows there waits behind them
        self.audited = False  #: one of its calls leaves an entry in the audit log
        self.over = False  #: answered or refused: a late part is of no use

    @property
    def key(self) -> Key:
        """What its receipt is kept under."""
        return self.sender, self.number

    def body(self) -> bytes:
        """The reply, when every part is there."""
        return wire.join_replies([part for part in self.parts if part is not None])

    def fits(self, answer: bytes) -> bool:
        """Whether the answer fits into the reply; counts it when it does."""
        if self.answer_bytes + len(answer) > REPLY_BYTES_MAX:
            return False
        self.answer_bytes += len(answer)
        return True


class PartOf:
    """The place of one answer in a pending payload."""

    __slots__ = ("_index", "_state", "pending")

    def __init__(self, state: State, pending: Pending, index: int) -> None:
        self._state = state
        self._index = index
        self.pending = pending

    def resolve(self, answer: bytes) -> None:
        """Give the answer; it leaves with this batch's commit."""
        self._state.resolutions.append((self.pending, self._index, answer))


__all__ = [
    "ASK_AGAIN", "MANY_BYTES_MAX", "REPLY_BYTES_MAX", "PartOf", "Pending", "cut_records", "join_list",
    "too_much", "was_cut",
]
