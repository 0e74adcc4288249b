"""The frames of batches that one partition gets from a runner, and how much may wait for it.

Rules of this file:

1. Batches of many runs travel in one frame, and one answer says that they are stored, but for those it names.
   A batch that has to be sent again travels alone.
2. What was said and is not stored is at most what the partition stores in ``WINDOW_S``, as the frames before
   were stored. So when there is more to say than can be stored, the agents wait, and not the readers. What
   is sent again does not count: a partition that is not there, or a run that it refuses, holds up nobody.
3. A frame without an answer is forgotten when its batches are sent again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mesh.core.wire import array_header, pack, repack

if TYPE_CHECKING:
    from mesh.core.runner import Batch, RunLog

#: What is said waits so long at most, half of it here and half of it on its way.
WINDOW_S = 0.05
#: So much may wait in any case: a frame that is smaller says little about how fast the partition is.
LEAST_BYTES = 64 * 1024
MOST_BYTES = 4 * 1024 * 1024
_FRAME = array_header(3) + pack("frame")

#: A batch and its log.
Entry = tuple["RunLog", "Batch"]


class _Frame(NamedTuple):
    entries: Sequence[Entry]
    bytes: int
    sent_s: float


class Frames:
    """What one partition was sent, and what is left for it."""

    __slots__ = ("_next", "_open", "_rate", "bytes", "most")

    def __init__(self) -> None:
        self.bytes = 0  #: of all runs: said and not stored
        self.most = LEAST_BYTES  #: with more than this, agents wait
        self._rate = 0.0
        self._next = 1
        self._open: dict[int, _Frame] = {}

    def encode(self, messages: Sequence[bytes], entries: Sequence[Entry], now_s: float) -> bytes:
        """A frame of these batches, to be sent now."""
        number, self._next = self._next, self._next + 1
        frame = b"".join((_FRAME, repack(number), array_header(len(messages)), *messages))
        self._open[number] = _Frame(entries, len(frame), now_s)
        return frame

    def answered(self, number: int, missing: Collection[int], now_s: float) -> Sequence[Entry]:
        """What the answer to a frame says is stored; ``missing`` are places of batches that are not."""
        frame = self._open.pop(number, None)
        if frame is None:
            return []
        self._measure(frame, now_s)
        if not missing:
            return frame.entries
        return [entry for place, entry in enumerate(frame.entries) if place not in missing]

    def _measure(self, frame: _Frame, now_s: float) -> None:
        if 2 * frame.bytes < self.most:
            return
        rate = frame.bytes / max(now_s - frame.sent_s, 1e-3)
        self._rate = (self._rate + rate) / 2 if self._rate else rate
        self.most = min(max(LEAST_BYTES, int(self._rate * WINDOW_S)), MOST_BYTES)

    def forget(self, sent_before_s: float) -> None:
        """Their answers were lost, or will be no answers any more."""
        self._open = {n: frame for n, frame in self._open.items() if frame.sent_s >= sent_before_s}


__all__ = ["LEAST_BYTES", "MOST_BYTES", "WINDOW_S", "Entry", "Frames"]
