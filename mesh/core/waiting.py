"""Parked reads: who waits for a session's events or a run's end. Nobody polls.

Rules of this file: a waiter is answered when its own filter matches, or empty when its time is over; both
bounds (per partition, per client) are refused by name; a wake-up looks at the waiters of what changed only.
"""

from __future__ import annotations

import heapq
from typing import Any

from mesh.core import wire
from mesh.errors import Overloaded

#: What is waited for: ("session", its id), ("run", its id) or ("drain", a session's id or "" for all); an id
#: alone might be any.
Key = tuple[str, str]


class Group:
    """The calls of one WAIT payload: how many have no answer yet, and the answers that have not left."""

    __slots__ = ("bytes", "client", "count", "left", "parts", "request_id")

    def __init__(self, client: bytes, request_id: int, count: int) -> None:
        self.client = client
        self.request_id = request_id
        self.count = self.left = count
        self.parts: list[tuple[int, bytes]] = []  #: (place of the call, its answer)
        self.bytes = 0

    def add(self, index: int, part: bytes) -> None:
        """A call has its answer."""
        self.left -= 1
        self.parts.append((index, part))
        self.bytes += len(part)

    def take(self) -> bytes:
        """The body of the next reply: of a single call ``[[status, value]]``, else ``[place, status, value]``
        of each that has its answer now."""
        parts, self.parts, self.bytes = self.parts, [], 0
        if self.count == 1:
            return b"\x91" + parts[0][1]
        rows = (b"\x93" + wire.repack(index) + part[1:] for index, part in parts)  # of two becomes of three
        return b"".join((wire.array_header(len(parts)), *rows))


class Waiter:
    """One parked read. ``filters`` say what wakes it; everything up to ``seen`` was looked at already."""

    __slots__ = ("deadline_s", "done", "filters", "group", "index", "key", "seen")

    def __init__(self, group: Group, index: int, deadline_s: float) -> None:
        self.group = group
        self.index = index
        self.deadline_s = deadline_s
        self.key: Key = ("", "")
        self.filters: dict[str, Any] = {}
        self.seen = 0
        self.done = False

    @property
    def client(self) -> bytes:
        """Who waits."""
        return self.group.client


class Waiters:
    """All parked reads of a partition, by the session or run they wait for."""

    def __init__(self, *, partition_max: int, client_max: int) -> None:
        self._partition_max = partition_max
        self._client_max = client_max
        self._by_key: dict[Key, list[Waiter]] = {}
        self._per_client: dict[bytes, int] = {}
        self._heap: list[tuple[float, int, Waiter]] = []
        self._count = 0
        self._serial = 0

    def __len__(self) -> int:
        return self._count

    def park(self, waiter: Waiter) -> None:
        """Keep a waiter.

        Raises:
            Overloaded: too many in this partition or of this client.
        """
        mine = self._per_client.get(waiter.client, 0)
        if self._count >= self._partition_max or mine >= self._client_max:
            name = "waiters_per_client" if mine >= self._client_max else "waiters_per_partition"
            raise Overloaded(f"too many waiting reads (limits.{name})", details={"retry_after_ms": 200})
        self._per_client[waiter.client] = mine + 1
        self._count += 1
        self._serial += 1
        self._by_key.setdefault(waiter.key, []).append(waiter)
        heapq.heappush(self._heap, (waiter.deadline_s, self._serial, waiter))

    def of(self, key: Key) -> list[Waiter]:
        """Who waits for this session or run."""
        found = self._by_key.get(key)
        return [] if found is None else found.copy()

    def about(self, session_id: str) -> list[Waiter]:
        """Who waits for this session or a run of it. Looks at everybody: for what happens rarely."""
        everybody = (waiter for same in self._by_key.values() for waiter in same)
        return [w for w in everybody if w.key == ("session", session_id)
                or (w.key[0] == "run" and w.filters.get("session") == session_id)]

    def finish(self, waiter: Waiter) -> None:
        """The waiter was answered."""
        if waiter.done:
            return
        waiter.done = True
        self._count -= 1
        left = self._per_client[waiter.client] - 1
        if left:
            self._per_client[waiter.client] = left
        else:
            del self._per_client[waiter.client]
        same = self._by_key[waiter.key]
        same.remove(waiter)
        if not same:
            del self._by_key[waiter.key]
        if len(self._heap) > 64 and len(self._heap) > 2 * self._count:
            self._heap = [entry for entry in self._heap if not entry[2].done]
            heapq.heapify(self._heap)

    def expired(self, now_s: float) -> list[Waiter]:
        """Waiters whose time is over; each is to be answered empty and finished."""
        found = []
        while self._heap and self._heap[0][0] <= now_s:
            waiter = heapq.heappop(self._heap)[2]
            if not waiter.done:
                found.append(waiter)
        return found

    def next_deadline_s(self) -> float | None:
        """When the next one is due."""
        while self._heap and self._heap[0][2].done:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None


__all__ = ["Group", "Key", "Waiter", "Waiters"]
