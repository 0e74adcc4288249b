"""What the protocol core keeps of each payload: its calls, its number, its limit; and how calls are packed.

Rules of this file:

1. A number is taken once, released only when the node surely did not execute it, and settled when it was
   answered or given up. ``done_below`` is the lowest number that is neither.
2. A payload is packed once and sent as often as needed; only its header is made anew, because the
   remaining time and ``done_below`` change.
3. One bad value fails its own call, not the calls that happened to travel with it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

from mesh.core import wire
from mesh.errors import LocalProtocolError, MeshError

Call = tuple[str, Sequence[Any]]
#: (0, value), (1, error map), (LOCAL_ERROR, MeshError) or STALE.
Pair = Sequence[Any]

LOCAL_ERROR = 2
#: The placement map changed under a call that names keys of many slots: place it anew.
STALE: Pair = (3, None)
#: Calls packed at a time; several such pieces are joined up to the next bound.
PIECE_CALLS = 256
#: A payload is closed when it has reached this size; a single call may be larger.
PAYLOAD_BYTES = 1024 * 1024
#: What the header's field can say; a longer limit is kept by the client alone.
REMAINING_S_MAX = 4_000_000.0

_PLACED = frozenset((int(wire.Kind.READ), int(wire.Kind.WRITE), int(wire.Kind.WAIT)))
_PARTITION = int(wire.Flag.PARTITION)


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


class Batch:
    """Calls of one loop turn that travel together: same kind, partition and time limit."""

    __slots__ = ("calls", "kind", "partition", "slots", "timeout_s", "tokens")

    def __init__(self, kind: int, partition: int, timeout_s: float | None = None) -> None:
        self.kind = kind
        self.partition = partition
        self.timeout_s = timeout_s  #: None: the client's own
        self.calls: list[Call] = []
        self.slots: list[int] = []
        self.tokens: list[Any] = []

    def take(self) -> tuple[list[Call], list[int], list[Any]]:
        """(calls, slots, tokens); the batch is empty then, for the next turn."""
        taken = self.calls, self.slots, self.tokens
        self.calls, self.slots, self.tokens = [], [], []
        return taken


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
        "number",
        "opened_s",
        "partition",
        "queued",
        "refusal",
        "refusals",
        "renewals",
        "request_id",
        "sends",
        "slots",
        "tokens",
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

    def encode(self, now_s: float, map_version: int) -> bytes:
        """The frame as it is to be sent now."""
        kind, done_below = self.kind, 0
        if self.number and self.identity is not None:
            done_below = self.identity.numbering(self.partition).done_below()
        placed = kind in _PLACED
        return (
            wire.encode_header(
                kind,
                flags=_PARTITION if placed else 0,
                address=self.partition,
                map_version=map_version if placed else 0,
                remaining_ms=max(1, int(min(self.deadline_s - now_s, REMAINING_S_MAX) * 1000)),
                request_id=self.request_id,
                number=self.number,
                done_below=done_below,
            )
            + self.body
        )

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


def split(
    calls: Sequence[Call], frame_bytes: int
) -> tuple[list[tuple[int, int, bytes]], list[tuple[int, LocalProtocolError]]]:
    """Pack calls into bodies: [(first, end, body), ...], and the calls that cannot travel.

    Order is kept. A body holds at most CALLS_PER_PAYLOAD_MAX calls and, unless one call alone is larger,
    about PAYLOAD_BYTES.
    """
    bodies: list[tuple[int, int, bytes]] = []
    bad: list[tuple[int, LocalProtocolError]] = []
    limit = frame_bytes - wire.HEADER_BYTES
    if len(calls) <= PIECE_CALLS:
        _pack_range(calls, 0, len(calls), limit=limit, bodies=bodies, bad=bad)
        return bodies, bad
    pieces: list[tuple[int, int, bytes]] = []
    for first in range(0, len(calls), PIECE_CALLS):
        _pack_range(calls, first, min(first + PIECE_CALLS, len(calls)), limit=limit, bodies=pieces, bad=bad)
    return _join(pieces, limit), bad


def _pack_range(
    calls: Sequence[Call],
    first: int,
    end: int,
    *,
    limit: int,
    bodies: list[tuple[int, int, bytes]],
    bad: list[tuple[int, LocalProtocolError]],
) -> None:
    """Pack calls[first:end], halving where it does not fit or holds something that cannot travel."""
    try:
        body = wire.pack(calls[first:end])
        if len(body) > limit:
            raise LocalProtocolError(
                f"{len(body)} bytes are over the frame limit of {limit + wire.HEADER_BYTES}: split the call",
                code="limit_exceeded",
            )
    except LocalProtocolError as error:
        if end - first == 1:
            bad.append((first, error))
            return
        middle = (first + end) // 2
        _pack_range(calls, first, middle, limit=limit, bodies=bodies, bad=bad)
        _pack_range(calls, middle, end, limit=limit, bodies=bodies, bad=bad)
        return
    bodies.append((first, end, body))


def _join(pieces: list[tuple[int, int, bytes]], limit: int) -> list[tuple[int, int, bytes]]:
    """Join neighbouring packed arrays into larger ones, within the bounds of a payload."""
    joined: list[tuple[int, int, bytes]] = []
    group: list[tuple[int, int, bytes]] = []
    size = 0

    def close() -> None:
        if len(group) == 1:
            joined.append(group[0])
        elif group:
            first, end = group[0][0], group[-1][1]
            parts = [body[_header_bytes(stop - start) :] for start, stop, body in group]
            joined.append((first, end, wire.array_header(end - first) + b"".join(parts)))
        group.clear()

    for piece in pieces:
        count = piece[1] - group[0][0] if group else 0
        torn = bool(group) and group[-1][1] != piece[0]
        grown = size + len(piece[2])
        if torn or count > wire.CALLS_PER_PAYLOAD_MAX or grown > PAYLOAD_BYTES or grown + 8 > limit:
            close()
            size = 0
        group.append(piece)
        size += len(piece[2])
    close()
    return joined


def _header_bytes(count: int) -> int:
    return 1 if count < 16 else 3


def error_pair(error: MeshError) -> Pair:
    """The form in which a call that failed here is completed; everybody raises an error of his own."""
    return (1, error.to_map())


__all__ = [
    "LOCAL_ERROR",
    "PAYLOAD_BYTES",
    "PIECE_CALLS",
    "STALE",
    "Batch",
    "Call",
    "Identity",
    "Numbering",
    "Pair",
    "Payload",
    "error_pair",
    "split",
]
