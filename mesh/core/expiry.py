"""An index of what expires when: exactly one filing per key, taken out at once when the key goes.

Rules of this file:

1. A filing is a *slot*, a small number that its owner keeps; buckets hold slots, in no order.
2. Every change is O(1): a slot leaves its bucket by swapping places with the last one.
3. No clock: ``first_expired`` is told the time. Nothing is removed here on its own account.

Why not a heap: an entry of a heap that is overtaken by a newer expiry stays until it surfaces, so a key
that is refreshed leaks, and a tuple per key costs 100 bytes. This costs about 25 bytes per key, and no
garbage can gather.
"""

from __future__ import annotations

from array import array
from heapq import heapify, heappop, heappush

_NEVER = 2**62
#: Slots that one look at a bucket makes ready, so that a bucket of a million is no pause.
_RIPE_MAX = 1024


class ExpiryIndex:
    """Keys by the time at which they expire, in buckets ``width_ms`` wide."""

    def __init__(self, width_ms: int) -> None:
        self._width_ms = max(width_ms, 1)
        self._keys: list[str] = []
        self._expires = array("q")
        self._place = array("I")
        self._free = array("I")
        self._buckets: dict[int, array[int]] = {}
        self._ticks: list[int] = []  # a heap of the buckets' numbers; may name buckets that are gone
        self._ripe: list[int] = []
        self._soon_ms = _NEVER  # nothing expires before; a bound, not the exact time

    def file(self, key: str, expires_ms: int) -> int:
        """File a key that has no filing yet; returns its slot."""
        if self._free:
            slot = self._free.pop()
            self._keys[slot] = key
            self._expires[slot] = expires_ms
        else:
            slot = len(self._keys)
            self._keys.append(key)
            self._expires.append(expires_ms)
            self._place.append(0)
        self._enter(slot, expires_ms)
        return slot

    def refile(self, slot: int, expires_ms: int) -> None:
        """Give a filed key another expiry, sooner or later than the old one."""
        width_ms = self._width_ms
        if expires_ms // width_ms != self._expires[slot] // width_ms:
            self._leave(slot)
            self._enter(slot, expires_ms)
        elif expires_ms < self._soon_ms:
            self._soon_ms = expires_ms
        self._expires[slot] = expires_ms

    def remove(self, slot: int) -> None:
        """Forget a filing; its slot may be given to another key."""
        self._leave(slot)
        self._keys[slot] = ""
        self._expires[slot] = _NEVER
        self._free.append(slot)

    def first_expired(self, now_ms: int) -> str | None:
        """Some key whose time has come (``expires == now`` has), of the oldest bucket that holds one."""
        if now_ms < self._soon_ms:
            return None
        while self._ripe:
            slot = self._ripe[-1]
            if self._expires[slot] <= now_ms:
                return self._keys[slot]
            self._ripe.pop()
        return self._ripen(now_ms)

    def _ripen(self, now_ms: int) -> str | None:
        while self._ticks:
            tick = self._ticks[0]
            bucket = self._buckets.get(tick)
            if bucket is None:
                heappop(self._ticks)
                continue
            if tick * self._width_ms > now_ms:
                self._soon_ms = tick * self._width_ms
                return None
            ripe = self._ripe_of(bucket, now_ms, over=tick < now_ms // self._width_ms)
            if not ripe:
                self._soon_ms = min(self._expires[slot] for slot in bucket)
                return None
            self._ripe = ripe
            return self._keys[ripe[-1]]
        self._soon_ms = _NEVER
        return None

    def _ripe_of(self, bucket: array[int], now_ms: int, *, over: bool) -> list[int]:
        if over:
            return bucket[-_RIPE_MAX:].tolist()
        expires = self._expires
        return [slot for slot in bucket if expires[slot] <= now_ms]

    def _enter(self, slot: int, expires_ms: int) -> None:
        tick = expires_ms // self._width_ms
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = array("I")
            self._announce(tick)
        self._place[slot] = len(bucket)
        bucket.append(slot)
        self._soon_ms = min(self._soon_ms, expires_ms)

    def _leave(self, slot: int) -> None:
        tick = self._expires[slot] // self._width_ms
        bucket = self._buckets[tick]
        last = bucket.pop()
        if last != slot:
            place = self._place[slot]
            bucket[place] = last
            self._place[last] = place
        elif not bucket:
            del self._buckets[tick]

    def _announce(self, tick: int) -> None:
        if len(self._ticks) > 2 * len(self._buckets) + 64:
            self._ticks = list(self._buckets)
            heapify(self._ticks)
        else:
            heappush(self._ticks, tick)


__all__ = ["ExpiryIndex"]
