"""How much work a partition is given at a time, and who is next when there is more.

Rules of this file:

1. The router hands a partition requests until ``WINDOW_COST`` of work is on its way there; what comes beyond
   waits in the router, each client's in its order, and the clients in turns by work (``core/fair.py``).
   In ZeroMQ's pipes and in the kernel's buffers everybody stands in one line: it is kept short.
2. A client with little in flight does not wait for room: it stands behind one window at most, and the
   partition takes turns between those that it was given (``node/inbox.py``). Waiting reads count by number:
   they are small, and most of them are parked in the partition, not on their way.
3. The partition says how much it took since it began, in steps of ``TOLD_COST``, behind the answers to it: so
   what is answered and not yet read by the router is bounded, too. Nothing is said for less: a single call
   costs none. Each READY says it again, so a word that was lost is made good.
4. A partition that took nothing between two READYs has nothing: what was sent before the first is lost.
5. A request may be larger than the window: it is sent when there is any room.
6. While somebody else asks for little, what waits goes in turns with rests between them (``core/pace.py``),
   and a large request waits behind ``LONG_COST``.
7. Work is counted as in ``core/fair.py``, on both sides: nothing is kept of a request. A new router begins
   with what the partition says, as if nothing were on its way.

Counting answers instead was rejected: a call like ``run_once`` is answered when its run is over. So was a
window for each client: many floods together are as long a line as one large one.
"""

from __future__ import annotations

from mesh.core import wire
from mesh.core.fair import Fair, cost
from mesh.core.inflight import WAIT, InFlight
from mesh.core.pace import TURN_COST, Pace, Turns

#: About 3 ms of a partition's work: its pipe must not run dry while the word of what was taken is on its way.
WINDOW_COST = 64 * 1024
TOLD_COST = TURN_COST
#: With more than a turn on its way, and what is not told yet, a client may be a flood.
LONG_COST = TURN_COST + TOLD_COST
#: Who has no more than this in flight does not wait for room.
LITTLE_BYTES = 2 * 1024
#: Nor does a waiting read of who has no more of them than this.
LITTLE_WAITS = 8
_KIND = wire.ACTOR_PREFIX_BYTES + 3  #: where a frame says it: behind magic and version


class Credit:
    """The requests of one partition's present incarnation that it has not taken."""

    __slots__ = ("_pace", "_ready", "_sent", "_took", "_turns", "_waiting")

    def __init__(self, pace: Pace, *, frames_max: int, bytes_max: int) -> None:
        self._pace = pace
        self._turns = Turns(pace)
        self._sent = 0  #: all the work that it was given and that is not known to be lost
        self._took = 0  #: all that it took, by its word
        self._ready = (-1, 0)  #: both, at its last READY
        self._waiting = Fair(frames_max=frames_max, bytes_max=bytes_max)

    def __len__(self) -> int:
        """How many requests wait in the router."""
        return len(self._waiting)

    def send(self, frame: bytes, inflight: InFlight) -> bool:
        """Whether to send a frame, which is counted as in flight, now. Else it is kept for its turn."""
        waiting, on_its_way = self._waiting, self._sent - self._took
        if on_its_way >= LONG_COST or waiting:
            client = frame[: wire.CLIENT_ID_BYTES]
            many = frame[_KIND] == WAIT and inflight.waits_of(client) > LITTLE_WAITS
            if many or max(inflight.bytes_of(client), len(frame)) > LITTLE_BYTES or waiting.holds(client):
                self._pace.much(client)
                if waiting or on_its_way >= WINDOW_COST or self._pace.slow:
                    waiting.add(frame)
                    return False
            else:
                self._pace.little(client)
        self._sent += cost(frame)
        return True

    def took(self, total: int) -> None:
        """The partition took so much since it began."""
        self._took = max(self._took, total)
        self._sent = max(self._sent, self._took)

    def ready(self, total: int) -> None:
        """The same, with its READY."""
        self.took(total)
        took, sent = self._ready
        if took == self._took < sent:
            self._sent -= sent - took
        self._ready = self._took, self._sent

    def unsent(self, frame: bytes) -> None:
        """A frame could not be sent."""
        self._sent -= cost(frame)

    def next(self) -> bytes | None:
        """The frame to be sent next, if there is one and room for it."""
        on_its_way = self._sent - self._took
        if not self._waiting:
            self._turns.end(on_its_way)
            return None
        if not (self._turns.on(on_its_way) if self._pace.slow else on_its_way < WINDOW_COST):
            return None
        if (frame := self._waiting.take()) is not None:
            work = cost(frame)
            self._sent += work
            self._turns.gave(work)
            self._pace.much(frame[: wire.CLIENT_ID_BYTES])  # it may have waited for longer than HEARD_S
        return frame

    def clear(self) -> list[bytes]:
        """A new incarnation was given nothing; the frames that waited for the old one."""
        self._sent, self._took, self._ready = 0, 0, (-1, 0)
        self._turns.clear()
        return list(iter(self._waiting.take, None))


__all__ = ["LITTLE_BYTES", "LITTLE_WAITS", "LONG_COST", "TOLD_COST", "WINDOW_COST", "Credit"]
