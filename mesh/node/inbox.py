"""A partition's mailbox, in turns: as it comes while little waits, a share for every peer when it is much."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from mesh.config import LimitsSection
from mesh.core.credit import TOLD_COST
from mesh.core.fair import Fair, cost
from mesh.net import sockets

#: When more waits than one turn can do, a turn is made to take about so much of the CPU: who has little to
#: ask waits so long at most. Shorter turns would commit oftener than they have to.
TURN_S = 0.004
#: The work of such a turn, in the cost of ``core/fair.py``, stays above this.
TURN_COST_MIN = 16_384
#: So much is taken as it comes. Beyond it everybody has his turn, and after as much more it is looked again
#: who came: a read is answered within the turn.
FEW_COST = 16_384


class Inbox:
    """The receiving side of the socket. Each turn ends with the batch that it feeds."""

    def __init__(self, socket: Any, limits: LimitsSection) -> None:
        self.crowded = False  #: something waits for its turn already: do not sleep
        self.taken = 0  #: the work of clients' requests since the beginning
        self._told = 0
        self._socket = socket
        self._cost_max = limits.batch_bytes
        self._cost = self._cost_max
        self._began_s = 0.0
        self._used_up = False
        # The router lets so much through; what is beyond stays in the pipe.
        self._fair = Fair(
            frames_max=limits.inflight_per_partition + limits.waiters_per_partition,
            bytes_max=limits.inflight_bytes_per_partition,
        )

    def turn(self) -> Iterator[bytes]:
        """The frames of the next batch: as they come while they are few, then every peer's in turn."""
        crowded = self.crowded
        if crowded:
            self._adapt()
        else:
            few, recv, nowait = FEW_COST, self._socket.recv, sockets.NOWAIT
            while few > 0:
                try:
                    frame = recv(nowait)
                except sockets.Again:
                    return
                few -= self._count(frame)
                yield frame
        try:
            yield from self._in_turn(self._cost if crowded else self._cost_max - FEW_COST)
        finally:
            self.crowded = len(self._fair) > 0

    def _in_turn(self, most: int) -> Iterator[bytes]:
        fair = self._fair
        self._used_up = False
        while most > 0:
            self._take_in()
            look_again = max(0, most - FEW_COST)
            while most > look_again:
                frame = fair.take()
                if frame is None:
                    return
                most -= self._count(frame)
                yield frame
        self._used_up = True

    def _take_in(self) -> None:
        recv, nowait, fair = self._socket.recv, sockets.NOWAIT, self._fair
        with suppress(sockets.Again):
            while not fair.full:
                fair.add(recv(nowait))

    def _count(self, frame: bytes) -> int:
        work = cost(frame)
        if frame[0]:
            self.taken += work
        return work

    def to_be_told(self) -> int:
        """What was taken when the router is to know it now, else 0."""
        if self.taken - self._told < TOLD_COST:
            return 0
        self._told = self.taken
        return self.taken

    def _adapt(self) -> None:
        """Some calls cost a hundred times as much as others: measure what the last full turn took."""
        began_s = time.thread_time()
        if self._used_up and self._began_s:
            ratio = TURN_S / max(began_s - self._began_s, 1e-6)
            wanted = int(self._cost * min(2.0, max(0.5, ratio)))
            self._cost = min(self._cost_max, max(TURN_COST_MIN, wanted))
        self._began_s = began_s


__all__ = ["TURN_COST_MIN", "TURN_S", "Inbox"]
