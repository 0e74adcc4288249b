"""A partition's mailbox, in turns: as it comes while little waits, a share for every peer when it is much."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from mesh.config import LimitsSection
from mesh.core.fair import FRAME_COST, Fair
from mesh.net import sockets

#: When more waits than one turn can do, a turn is made to take about so much of the CPU: who has little to
#: ask waits so long at most. Shorter turns would commit oftener than they have to.
TURN_S = 0.004
#: The work of such a turn, in the cost of ``core/fair.py``, stays above this.
TURN_COST_MIN = 16_384


class Inbox:
    """The receiving side of the socket. Each turn ends with the batch that it feeds."""

    def __init__(self, socket: Any, limits: LimitsSection) -> None:
        self.crowded = False  #: something waits for its turn already: do not sleep
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
        """The frames of the next batch."""
        return self._in_turn() if self.crowded else self._as_they_come()

    def _as_they_come(self) -> Iterator[bytes]:
        recv, nowait, cost = self._socket.recv, sockets.NOWAIT, self._cost_max
        while cost > 0:
            try:
                frame = recv(nowait)
            except sockets.Again:
                return
            cost -= FRAME_COST + len(frame)
            yield frame
        self.crowded, self._used_up, self._cost = True, False, self._cost_max

    def _in_turn(self) -> Iterator[bytes]:
        self._adapt()
        recv, nowait, fair, cost = self._socket.recv, sockets.NOWAIT, self._fair, self._cost
        with suppress(sockets.Again):
            while not fair.full:
                fair.add(recv(nowait))
        while cost > 0 and (frame := fair.take()) is not None:
            cost -= FRAME_COST + len(frame)
            yield frame
        self._used_up = cost <= 0
        self.crowded = len(fair) > 0

    def _adapt(self) -> None:
        """Some calls cost a hundred times as much as others: measure what the last full turn took."""
        began_s = time.thread_time()
        if self._used_up:
            ratio = TURN_S / max(began_s - self._began_s, 1e-6)
            wanted = int(self._cost * min(2.0, max(0.5, ratio)))
            self._cost = min(self._cost_max, max(TURN_COST_MIN, wanted))
        self._began_s = began_s


__all__ = ["TURN_COST_MIN", "TURN_S", "Inbox"]
