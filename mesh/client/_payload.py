"""What the protocol core keeps of each payload: its calls, its number, its limit; and how calls are packed.

Rules of this file:

1. A number is taken once, released only when the node surely did not execute it, and settled when it was
   answered or given up. ``done_below`` is the lowest number that is neither.
2. A payload is packed once and sent as often as needed; only its header is made anew, because the
   remaining time and ``done_below`` change.
3. One bad value fails its own call, not the calls that happened to travel with it.
4. Neighbours of one op travel as its ``*_many`` form (``_gather.py``).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from mesh.client._gather import Call, Pair, Spans, gather
from mesh.core import wire
from mesh.errors import InvalidArgument, LocalProtocolError, MeshError

LOCAL_ERROR = 2
#: The placement map changed under a call that names keys of many slots: place it anew.
STALE: Pair = (3, None)
#: Calls packed at a time; several such pieces are joined up to the next bound.
PIECE_CALLS = 256
#: A payload is closed when it holds so many: it is executed whole, and the other clients wait so long.
PAYLOAD_CALLS = 512
#: A payload is closed when it has reached this size; a single call may be larger.
PAYLOAD_BYTES = 1024 * 1024
#: What the header's field can say; a longer limit is kept by the client alone.
REMAINING_S_MAX = 4_000_000.0

_PLACED = frozenset((int(wire.Kind.READ), int(wire.Kind.WRITE), int(wire.Kind.WAIT)))
_PARTITION, _MOVED, _WAIT = int(wire.Flag.PARTITION), int(wire.Flag.MOVED), int(wire.Kind.WAIT)


class Numbering:
    """The numbers of one client at one partition."""

    __slots__ = ("_free", "_next", "_open")

    def __init__(self) -> None:
        self._next = 1
        self._open: set[int] = set()
        self._free: list[int] = []

    def take(self) -> int:
        """The number of a new write."""
        if self._free:
            number = heapq.heappop(self._free)
        else:
            number = self._next
            self._next += 1
        self._open.add(number)
        return number

    def settle(self, number: int) -> None:
        """Answered, or given up by the caller: it must never land any more."""
        self._open.discard(number)

    def release(self, number: int) -> None:
        """Surely not executed: the next write may have it."""
        if number in self._open:
            self._open.discard(number)
            heapq.heappush(self._free, number)

    def opened_before(self, number: int) -> bool:
        """Whether a lower number is neither settled nor released."""
        return min(self._open, default=number) < number

    def done_below(self) -> int:
        """Every number below it is settled."""
        lowest = min(self._open, default=self._next)
        return min(lowest, self._free[0]) if self._free else lowest


class Identity:
    """One client id and its numbers. It ends when the node has forgotten it and nothing is open any more."""

    __slots__ = ("client_id", "numberings", "open")

    def __init__(self, client_id: bytes) -> None:
        self.client_id = client_id
        self.numberings: dict[int, Numbering] = {}
        self.open = 0

    def numbering(self, partition: int) -> Numbering:
        """The numbers at one partition."""
        found = self.numberings.get(partition)
        if found is None:
            found = self.numberings[partition] = Numbering()
        return found


class Payload:
    """One request on its way to its answer."""

    __slots__ = (
        "attempts",
        "body",
        "boot",
        "calls",
        "deadline_s",
        "declined",
        "done",
        "due_s",
        "epoch",
        "identity",
        "kind",
        "map_version",
        "moved",
        "number",
        "op",
        "opened_s",
        "partition",
        "queued",
        "refusal",
        "refusals",
        "renewals",
        "request_id",
        "sends",
        "slots",
        "spans",
        "tokens",
        "waiting",
    )

    def __init__(
        self,
        *,
        kind: int,
        partition: int,
        request_id: int,
        deadline_s: float,
        now_s: float,
        body: bytes = b"",
        calls: Sequence[Call] = (),
        slots: Sequence[int] = (),
        tokens: Sequence[Any] = (),
        spans: Spans = (),
        op: str = "",
        map_version: int = 0,
    ) -> None:
        self.kind = kind
        self.partition = partition
        self.request_id = request_id
        self.deadline_s = deadline_s
        self.opened_s = now_s
        self.body = body
        self.calls = calls
        self.slots = slots
        self.tokens = tokens
        self.spans = spans
        self.op = op
        self.map_version = map_version  #: by which it was placed
        self.moved = False  #: that one is old, and the write may have happened
        self.number = 0
        self.identity: Identity | None = None
        self.boot = 0  #: router's boot id when it was sent last; 0: not known then
        self.epoch = 0  #: the partition's epoch then
        self.due_s = deadline_s  #: when the core looks at it again
        self.sends = 0  #: since it was refused last
        self.attempts = 0  #: frames that left
        self.refusals = 0
        self.declined = 0  #: refusals that promised that nothing was done
        self.renewals = 0
        self.refusal: dict[str, Any] | None = None
        self.queued = False
        self.done = False
        #: Of several waiting reads, those without an answer: place -> token. None: one reply answers all.
        self.waiting = dict(enumerate(tokens)) if kind == _WAIT and len(tokens) > 1 else None

    def encode(self, now_s: float, map_version: int) -> bytes:
        """The frame as it is to be sent now."""
        kind, done_below = self.kind, 0
        if self.number and self.identity is not None:
            done_below = self.identity.numbering(self.partition).done_below()
        remaining_ms = max(1, int(min(self.deadline_s - now_s, REMAINING_S_MAX) * 1000))
        flags, placed_by = (_PARTITION, self.map_version) if kind in _PLACED else (0, 0)
        if self.moved:
            flags, placed_by = _PARTITION | _MOVED, map_version
        number, request_id, partition = self.number, self.request_id, self.partition
        head = wire.pack_header(
            kind, flags, 0, partition, placed_by, remaining_ms, request_id, number, done_below
        )
        return head + self.body

    def take(self, found: Iterable[tuple[int, Pair]]) -> tuple[list[Any], list[Pair]]:
        """The (tokens, pairs) of some waiting reads; afterwards ``tokens`` are those still open."""
        waiting = self.waiting or {}
        fresh = [(waiting.pop(place), pair) for place, pair in found if place in waiting]
        self.tokens = list(waiting.values())
        return [token for token, _ in fresh], [pair for _, pair in fresh]

    def rows(self) -> list[tuple[int, Call, Any]]:
        """(slot, call, token) of each call that has no answer."""
        if self.waiting is None:
            return list(zip(self.slots, self.calls, self.tokens, strict=True))
        return [(self.slots[place], self.calls[place], token) for place, token in self.waiting.items()]

    @property
    def untouched(self) -> bool:
        """Whether the node surely did nothing with it: every frame that left was refused with AGAIN."""
        return self.attempts == self.declined

    @property
    def what(self) -> str:
        """For messages: the op, or the kind of a payload without calls."""
        if not self.calls:
            return wire.Kind(self.kind).name
        others = len(self.calls) - 1
        return self.calls[0][0] + (f" (and {others} calls with it)" if others else "")


class Packed(NamedTuple):
    """The body of calls[first:end], and how the pairs of its answer belong to them."""

    first: int
    end: int
    body: bytes
    spans: Spans
    op: str  #: of all that travels; empty when they differ


def told_and_rest(
    payload: Payload, pairs: Iterable[Pair]
) -> tuple[tuple[list[Any], list[Pair]], list[tuple[int, Call, Any]]]:
    """What a reply says: (tokens, pairs) that are answered, and the rows that are to be asked again."""
    tokens: list[Any] = []
    told: list[Pair] = []
    rest = []
    for row, pair in zip(payload.rows(), pairs, strict=True):
        if pair[0] == 1 and _asks_again(pair[1]):
            rest.append(row)
        else:
            tokens.append(row[2])
            told.append(pair)
    return (tokens, told), rest


def _asks_again(error: Any) -> bool:
    details = error.get("details") if type(error) is dict else None
    return type(details) is dict and details.get("again") is True


class Unsent(InvalidArgument):
    """A call that never left: its arguments are too large, or one of them has no encoding."""

    def __init__(self, op: str, error: LocalProtocolError) -> None:
        large = error.code == "limit_exceeded"
        super().__init__(f"{op}: {error.message}", code=error.code if large else None, details=error.details)


def split(
    calls: Sequence[Call], frame_bytes: int
) -> tuple[list[Packed], list[tuple[int, Unsent]]]:
    """Pack calls into bodies, and name the calls that cannot travel.

    Order is kept. A body holds at most PAYLOAD_CALLS calls and, unless one call alone is larger,
    about PAYLOAD_BYTES.
    """
    bodies: list[Packed] = []
    bad: list[tuple[int, Unsent]] = []
    limit = frame_bytes - wire.HEADER_BYTES
    if len(calls) <= PIECE_CALLS:
        _pack_range(calls, 0, len(calls), limit=limit, bodies=bodies, bad=bad)
        return bodies, bad
    pieces: list[Packed] = []
    for first in range(0, len(calls), PIECE_CALLS):
        _pack_range(calls, first, min(first + PIECE_CALLS, len(calls)), limit=limit, bodies=pieces, bad=bad)
    return _join(pieces, limit), bad


def _pack_range(
    calls: Sequence[Call],
    first: int,
    end: int,
    *,
    limit: int,
    bodies: list[Packed],
    bad: list[tuple[int, Unsent]],
) -> None:
    """Pack calls[first:end], halving where it does not fit or holds something that cannot travel."""
    try:
        gathered, spans = gather(calls[first:end])
        body = wire.pack(gathered)
        if len(body) > limit:
            raise LocalProtocolError(
                f"{len(body)} bytes are over the frame limit of {limit + wire.HEADER_BYTES}: split the call",
                code="limit_exceeded",
            )
    except LocalProtocolError as error:
        if end - first == 1:
            bad.append((first, Unsent(calls[first][0], error)))
            return
        middle = (first + end) // 2
        _pack_range(calls, first, middle, limit=limit, bodies=bodies, bad=bad)
        _pack_range(calls, middle, end, limit=limit, bodies=bodies, bad=bad)
        return
    op = gathered[0][0]
    same = len(gathered) == 1 or all(other == op for other, _ in gathered)
    bodies.append(Packed(first, end, body, spans, op if same else ""))


def _join(pieces: list[Packed], limit: int) -> list[Packed]:
    """Join neighbouring packed arrays into larger ones, within the bounds of a payload."""
    joined: list[Packed] = []
    group: list[Packed] = []
    size = 0

    def close() -> None:
        if len(group) == 1:
            joined.append(group[0])
        elif group:
            spans = [span for piece in group for span in piece.spans]
            parts = [piece.body[_header_bytes(len(piece.spans)) :] for piece in group]
            body = wire.array_header(len(spans)) + b"".join(parts)
            op = group[0].op if all(piece.op == group[0].op for piece in group) else ""
            joined.append(Packed(group[0].first, group[-1].end, body, spans, op))
        group.clear()

    for piece in pieces:
        count = piece.end - group[0].first if group else 0
        torn = bool(group) and group[-1].end != piece.first
        grown = size + len(piece.body)
        if torn or count > PAYLOAD_CALLS or grown > PAYLOAD_BYTES or grown + 8 > limit:
            close()
            size = 0
        group.append(piece)
        size += len(piece.body)
    close()
    return joined


def _header_bytes(count: int) -> int:
    return 1 if count < 16 else 3


def error_pair(error: MeshError) -> Pair:
    """The form in which a call that failed here is completed; everybody raises an error of his own."""
    return (1, error.to_wire())


__all__ = [
    "LOCAL_ERROR",
    "PAYLOAD_BYTES",
    "PAYLOAD_CALLS",
    "PIECE_CALLS",
    "STALE",
    "Call",
    "Identity",
    "Numbering",
    "Packed",
    "Pair",
    "Payload",
    "Spans",
    "Unsent",
    "error_pair",
    "split",
    "told_and_rest",
]
