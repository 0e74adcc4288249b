"""Who is next when more waits than one turn of a partition can do: every peer gets its share of the work.

Rules of this file:

1. What one peer sent stays in its order. A peer is a client or an actor: the first 16 bytes of a frame.
2. Work is counted in bytes, plus ``FRAME_COST`` for each frame: the two grow with the time that a partition
   needs (about 20 bytes for each us), and both are known before anything is decoded.
3. Next is the peer that was given the least work so far (start-time fair queueing): each has a mark, which
   grows by the cost of what is taken from it. Who comes anew begins at the mark that is served now: it waits
   for nobody's backlog, and saves nothing up while it is silent. So between any two peers that both wait, the
   work taken differs by no more than one frame of each.
4. It holds a bounded number of frames and bytes; the rest stays in ZeroMQ's pipe, and behind that the router
   refuses (``core/router.py``).

A queue for each peer with turns of one frame was rejected: a frame may hold 1 call or 4 096.
"""

from __future__ import annotations

import heapq
from collections import deque

from mesh.core import wire

#: What any frame costs beside its bytes: header, reply and receipt take as long as so many bytes of calls.
FRAME_COST = 400


def cost(frame: bytes) -> int:
    """The work that a frame is."""
    return FRAME_COST + len(frame)


class Fair:
    """Frames that wait for a later turn."""

    __slots__ = ("_bytes", "_bytes_max", "_frames", "_frames_max", "_heap", "_mark", "_queues", "_serial")

    def __init__(self, *, frames_max: int, bytes_max: int) -> None:
        self._frames_max = frames_max
        self._bytes_max = bytes_max
        self._frames = 0
        self._bytes = 0
        self._queues: dict[bytes, deque[bytes]] = {}
        self._heap: list[tuple[int, int, bytes]] = []  #: (mark, order of coming, peer), one for each queue
        self._mark = 0
        self._serial = 0

    def __len__(self) -> int:
        return self._frames

    @property
    def full(self) -> bool:
        """Whether no more is to be added now."""
        return self._frames >= self._frames_max or self._bytes >= self._bytes_max

    def add(self, frame: bytes) -> None:
        """Keep a frame behind the others of its peer."""
        peer = frame[: wire.CLIENT_ID_BYTES]
        queue = self._queues.get(peer)
        if queue is None:
            queue = self._queues[peer] = deque()
            self._serial += 1
            heapq.heappush(self._heap, (self._mark, self._serial, peer))
        queue.append(frame)
        self._frames += 1
        self._bytes += len(frame)

    def holds(self, peer: bytes) -> bool:
        """Whether something of a peer waits."""
        return bool(self._queues.get(peer))

    def take(self) -> bytes | None:
        """The next frame, or None when nothing waits."""
        heap = self._heap
        while heap:
            mark, serial, peer = heap[0]
            queue = self._queues[peer]
            if not queue:  # it was served, and sent nothing more until the others caught up with it
                heapq.heappop(heap)
                del self._queues[peer]
                continue
            frame = queue.popleft()
            self._mark = mark
            heapq.heapreplace(heap, (mark + cost(frame), serial, peer))
            self._frames -= 1
            self._bytes -= len(frame)
            return frame
        return None


__all__ = ["FRAME_COST", "Fair", "cost"]
