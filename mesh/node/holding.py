"""What a runner has for a partition gathers while a frame of it is being stored.

Rules of this file:

1. The first news leaves at once. What comes then leaves when the partition has answered, or after ``HOLD_S``:
   a partition commits once for each frame, so a busy one gets fewer and fuller ones.
2. Nothing is lost by waiting: logs keep what is new, and commands that are not acknowledged come again.
3. What gathers is bounded by ``core/frames.py``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from mesh.core.runner import RunLog

#: A commit of a busy partition takes some ten ms; an answer may be lost with its partition.
HOLD_S = 0.1


class Holding:
    """For each partition: logs with new events, whether commands are to be acknowledged, and since when a
    frame is on its way. ``wake`` is called when something may leave."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._logs: dict[int, dict[RunLog, None]] = {}
        self._acks: set[int] = set()
        self._sent_s: dict[int, float] = {}  #: while there is one, the timer of ``_over`` runs
        self._timer: asyncio.TimerHandle | None = None

    def changed(self, log: RunLog) -> None:
        """A log has something to send. While a frame is on its way, its answer or the time wakes."""
        logs = self._logs.get(log.partition)
        if logs is None:
            logs = self._logs[log.partition] = {}
        logs[log] = None
        if log.partition not in self._sent_s:
            self._wake()

    def acknowledge(self, partition: int) -> None:
        """Commands of a partition were taken."""
        self._acks.add(partition)
        self._wake()

    def answered(self, partition: int) -> None:
        """The partition stored what it was sent, or said why not."""
        if self._sent_s.pop(partition, None) is not None and (self._logs.get(partition) or self._acks):
            self._wake()

    def release(self, partition: int) -> None:
        """Let what there is leave with this turn: something that has to stand behind it follows."""
        self._sent_s.pop(partition, None)

    def due(self) -> list[tuple[int, dict[RunLog, None], bool]]:
        """What leaves now: (partition, its changed logs, whether to acknowledge)."""
        now_s = time.monotonic()
        found = []
        for partition in {*self._logs, *self._acks}:
            if now_s - self._sent_s.get(partition, 0.0) < HOLD_S:
                continue
            logs = self._logs.pop(partition, {})
            acks = partition in self._acks
            self._acks.discard(partition)
            if logs:
                self._sent_s[partition] = now_s
                self._look_again()
            found.append((partition, logs, acks))
        return found

    def _look_again(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(HOLD_S, self._over)

    def _over(self) -> None:
        now_s, self._timer = time.monotonic(), None
        self._sent_s = {partition: s for partition, s in self._sent_s.items() if now_s - s < HOLD_S}
        if self._sent_s:
            self._look_again()
        if self._logs or self._acks:
            self._wake()


__all__ = ["HOLD_S", "Holding"]
