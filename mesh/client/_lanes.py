"""Where calls gather until they leave together: one batch for each kind, partition and time limit.

Rules of this file:

1. A batch leaves at the end of the loop turn that found calls in it, unless a payload of it is on its way:
   then the next calls gather until that one is answered, for HOLD_S at most. Else a busy node gets ever more,
   ever smaller payloads, each at the full price of a frame, and writes commits of a few rows.
2. Waiting reads never gather: those of one turn share a payload, and each is answered for itself.
"""

from __future__ import annotations

from typing import Any

from mesh.client._payload import PAYLOAD_CALLS, Call, Payload
from mesh.client._traffic import WAIT

#: Calls wait no longer than this for the answer to those before them; a payload may stay open for seconds (a
#: run is to settle, a partition starts again), and must not hold up others. A commit takes 3 ms of a busy
#: partition; with less than that, payloads leave half full and each costs its own.
HOLD_S = 0.008
#: Time limits of callers' own that are remembered with their batches.
LIMITED_MAX = 64


class Batch:
    """Calls that travel together: same kind, partition and time limit."""

    __slots__ = ("_sent", "calls", "kind", "partition", "since_s", "slots", "timeout_s", "tokens")

    def __init__(self, kind: int, partition: int, timeout_s: float | None = None) -> None:
        self.kind = kind
        self.partition = partition
        self.timeout_s = timeout_s  #: None: the client's own
        self.since_s: float | None = None  #: the first flush that found calls here; their time runs from then
        self.calls: list[Call] = []
        self.slots: list[int] = []
        self.tokens: list[Any] = []
        self._sent: Payload | None = None  #: the last one of this batch

    def take(self) -> tuple[list[Call], list[int], list[Any]]:
        """(calls, slots, tokens); the batch is empty then, for the next turn."""
        taken = self.calls, self.slots, self.tokens
        self.calls, self.slots, self.tokens = [], [], []
        self.since_s = None
        return taken

    def opened(self, payload: Payload) -> None:
        """One of its payloads is on its way."""
        if self.kind != WAIT:
            self._sent = payload

    def held_until_s(self, now_s: float) -> float:
        """Until when its calls gather: ``now_s`` or before, when they may leave."""
        sent = self._sent
        if sent is None or sent.done or len(self.calls) >= PAYLOAD_CALLS:
            return now_s
        return sent.opened_s + HOLD_S


class Lanes:
    """The batches of one placement map."""

    __slots__ = ("_limited", "_named", "by_slot")

    def __init__(self, slot_map: bytes = b"", kinds: int = 0) -> None:
        partitions = range(max(slot_map, default=-1) + 1)
        self._named = [[Batch(kind, partition) for partition in partitions] for kind in range(kinds)]
        #: [kind][slot], for the client's own time limit. A dict of triples costs 0.1 us a call. Empty: nobody
        #: said yet who has which slot.
        self.by_slot = tuple([batches[partition] for partition in slot_map] for batches in self._named)
        self._limited: dict[tuple[int, int, float | None], Batch] = {}

    def find(self, kind: int, slot: int, timeout_s: float | None) -> Batch:
        """The batch of a call that names its partition (``slot`` is ~partition), or has its own time limit.

        Raises:
            IndexError: nobody said yet who has which slot.
        """
        named = self._named[kind]
        partition = self.by_slot[kind][slot].partition if slot >= 0 else ~slot
        if timeout_s is None and partition < len(named):
            return named[partition]
        key = (kind, partition, timeout_s)
        batch = self._limited.get(key)
        if batch is None:
            if len(self._limited) >= LIMITED_MAX:
                self._limited = {k: b for k, b in self._limited.items() if b.calls}
            batch = self._limited[key] = Batch(*key)
        return batch


__all__ = ["HOLD_S", "LIMITED_MAX", "Batch", "Lanes"]
