"""What one partition remembers about routes, and every change to it. Answers are made in ``routes.py``.

Rules of this file:

1. ``entries`` is in order of use: its first key was used longest ago. Records are bytes (``route_record``).
2. Every key of ``entries`` has one filing in the expiry index; its slot stands in the record.
3. ``dirty`` says how the store differs from the memory: key -> record, or None for "delete the row". Who
   stores takes it with ``take_dirty`` and, when the transaction fails, gives it back with ``put_back``
   BEFORE it runs the undo list in reverse.
4. Undo works key by key: it restores the record and the dirty mark as they were before the change. What
   was only *used* stays used; an evicted key returns to the cold end, where it came from. An undo may leave
   the table over its capacity; the next write trims it.
5. Expired entries go when a read meets them, when room is needed (before any live one) and in a sweep.
   The key is remembered for a while (``expired_memory_max`` keys), so ``resolve`` can still say "stale".

Measured: ``tests/core/test_route_state.py::test_a_route_costs_at_most_450_bytes``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Protocol

from mesh.core.expiry import ExpiryIndex
from mesh.core.route_record import (
    BARE_BYTES,
    BIN,
    HEADER,
    HEADER_BYTES,
    SLOT,
    TIMES,
    Body,
    encode_record,
    header_of,
    rebase,
)
from mesh.core.wire import unpack

pack_header, unpack_slot = HEADER.pack, SLOT.unpack_from
Undo = list[Callable[[], None]]
Note = tuple[str, dict[str, Any]]

#: Changes that may wait for the store beyond one per entry; with more, guesses are not written back.
DIRTY_SPARE_MAX = 65_536
#: Stored keys that one look at the store's index brings.
KEYS_PER_LOOK = 512
#: Buckets of the expiry index per default time to live: fine enough that one bucket is no pause.
_BUCKETS_PER_TTL = 1024
#: The mark of a key whose row in the store is as the memory says; no record is empty.
_CLEAN = b""
#: What an undo restores beside the record: at the hot end of the order of use, a remembered expiry, a row
#: that no longer counts.
HOT, _REMEMBERED, _GONE = 1, 2, 4


class RouteSettings(Protocol):
    """The settings of ``[routes]`` that decide something here."""

    @property
    def ttl_ms(self) -> int: ...
    @property
    def guess_ttl_ms(self) -> int: ...
    @property
    def max_entries_per_partition(self) -> int: ...
    @property
    def expired_memory_max(self) -> int: ...


class RouteState:
    """The routes of one partition with their order of use, their expiry and what is still to be stored."""

    def __init__(self, settings: RouteSettings, *, route_bytes_max: int, partition: int) -> None:
        self.ttl_ms = settings.ttl_ms
        self.guess_ttl_ms = min(settings.guess_ttl_ms, settings.ttl_ms)
        self.entries_max = settings.max_entries_per_partition
        self.expired_memory_max = settings.expired_memory_max
        self.route_bytes_max = route_bytes_max
        self.partition = partition
        self.entries: OrderedDict[str, bytes] = OrderedDict()
        self.dirty: dict[str, bytes | None] = {}
        self.watched = False  #: somebody listens to route.*; notes are collected only then
        self.notes: list[Note] = []
        self.loading = False  #: rows of the store are still missing here
        self.fetch: Callable[[str], bytes | None] | None = None  #: one such row, times already rebased
        self.keys_after: Callable[[str, int], list[str]] | None = None  #: stored keys in order, after one
        self._gone: set[str] = set()  # while loading: keys whose row in the store no longer counts
        self._expired: OrderedDict[str, None] = OrderedDict()
        self._expiry = ExpiryIndex(settings.ttl_ms // _BUCKETS_PER_TTL)
        self._swept = 0

    @property
    def count(self) -> int:
        """Entries in memory, the expired ones that nobody met yet included."""
        return len(self.entries)

    @property
    def may_guess(self) -> bool:
        """Whether a fallback may be written back: not while the store takes nothing for long."""
        return len(self.dirty) < self.entries_max + DIRTY_SPARE_MAX

    def in_order(self, after: str, now_ms: int) -> Iterator[str]:
        """Live keys behind one, in order, from the store's index and what it does not have yet: the memory is
        ordered by use, and a look at all of it for each page would hold everybody up."""
        assert self.keys_after is not None
        fresh = sorted(key for key, record in self.dirty.items() if record is not None and key > after)
        more = True
        while more:
            stored = self.keys_after(after, KEYS_PER_LOOK)
            more = len(stored) == KEYS_PER_LOOK
            upto = bisect_right(fresh, stored[-1]) if more else len(fresh)
            for key in sorted({*stored, *fresh[:upto]}):
                record = self.entries.get(key)
                if record is not None and not is_expired(record, now_ms):
                    yield key
            fresh = fresh[upto:]
            after = stored[-1] if more else after

    # --- storing and loading ---

    def take_dirty(self) -> dict[str, bytes | None]:
        """Hand over what the next transaction must write."""
        dirty, self.dirty = self.dirty, {}
        return dirty

    def put_back(self, dirty: dict[str, bytes | None]) -> None:
        """Take back what ``take_dirty`` gave: the transaction failed. Run the undo list afterwards."""
        self.dirty = dirty | self.dirty

    def load(
        self, rows: Iterable[tuple[str, bytes]], shift_ms: int = 0, *, now_ms: int | None = None
    ) -> None:
        """Take stored rows, behind everything that was used since the start.

        Rows come hottest first where the store knows an order. A row whose key is here already, or was
        deleted or changed since the start, is passed over. What does not fit is evicted from the store.
        ``now_ms`` must be given with a ``shift_ms`` (see ``rebase``).

        Raises:
            StoreError: ``storage_error``, a row is damaged; the rows before it were taken.
        """
        for key, record in rows:
            if key in self.entries or key in self._gone:
                continue
            if shift_ms:
                assert now_ms is not None, "a shift needs the time"
                record = rebase(record, shift_ms, now_ms)
            if len(self.entries) >= self.entries_max:
                self.dirty[key] = None
                self._gone.add(key)
                self._say_evicted(key, record, None)
                continue
            self._adopt(key, record)
            self.entries.move_to_end(key, last=False)

    def loaded(self) -> None:
        """Every row was offered to ``load``: the memory is the whole truth from here on."""
        self.loading = False
        self.fetch = None
        self._gone = set()

    def _find(self, key: str, now_ms: int) -> bytes | None:
        """The record of a key, from the store when it was not loaded yet."""
        record = self.entries.get(key)
        if record is not None or not self.loading or self.fetch is None or key in self._gone:
            return record
        row = self.fetch(key)
        if row is None:
            return None
        self._adopt(key, row)
        self._trim(now_ms, None)
        return self.entries.get(key)  # one that has expired is the first to go

    def _adopt(self, key: str, record: bytes) -> bytes:
        updated, expires, flags, _, body = header_of(record)
        record = encode_record(updated, expires, flags, self._expiry.file(key, expires), body)
        self.entries[key] = record
        return record

    # --- changes; ``undo`` is None where the change is lazy: nobody was promised it ---

    def _store(self, key: str, body: Body, times: tuple[int, int], flags: int, undo: Undo | None) -> int:
        """Write one entry as the most recently used; returns how many others had to go."""
        updated, expires = times
        route, at, size = body
        entries = self.entries
        old = entries.get(key)
        if undo is not None:
            undo.append(self._before(key, old, HOT))
        if old is None:
            slot = self._expiry.file(key, expires)
        else:
            (slot,) = unpack_slot(old)
            self._expiry.refile(slot, expires)
            entries.move_to_end(key)
        whole = BARE_BYTES + len(route)
        record = pack_header(BIN, whole, updated, expires, flags, slot, at + HEADER_BYTES, size) + route
        entries[key] = self.dirty[key] = record
        if self._expired:
            self._expired.pop(key, None)
        if len(entries) > self.entries_max:
            return self._trim(updated, undo)
        return 0

    def _trim(self, now_ms: int, undo: Undo | None) -> int:
        """Evict until the capacity is kept: expired entries first, then those used longest ago."""
        evicted = 0
        while len(self.entries) > self.entries_max:
            expired = self._expiry.first_expired(now_ms)
            key = next(iter(self.entries)) if expired is None else expired
            record = self.entries[key]
            if undo is not None:
                undo.append(self._before(key, record, 0))
            self._remove(key, record)
            if expired is not None:
                self._remember(key)
            self._say_evicted(key, record, undo)
            evicted += 1
        return evicted

    def _expire(self, key: str, record: bytes, undo: Undo | None = None) -> None:
        """Remove an expired entry that was met, and remember that it was there."""
        if undo is not None:
            undo.append(self._before(key, record, 0))
        self._remove(key, record)
        self._remember(key)
        if self.watched:
            self._say("stale", {"count": 1, "session_key": key}, undo)

    def _prune(self, now_ms: int, budget: int, undo: Undo | None) -> int:
        removed = 0
        while removed < budget and (key := self._expiry.first_expired(now_ms)) is not None:
            self._expire(key, self.entries[key], undo)
            removed += 1
        return removed

    def _remove(self, key: str, record: bytes) -> None:
        del self.entries[key]
        self._expiry.remove(SLOT.unpack_from(record)[0])
        self.dirty[key] = None
        if self.loading:
            self._gone.add(key)

    def _remember(self, key: str) -> None:
        self._expired[key] = None
        self._expired.move_to_end(key)
        while len(self._expired) > self.expired_memory_max:
            self._expired.popitem(last=False)

    def _forget(self, key: str, undo: Undo) -> None:
        """Forget that a key without an entry expired lately."""
        if key in self._expired:
            undo.append(self._before(key, None, 0))
            del self._expired[key]

    # --- undo ---

    def _before(self, key: str, record: bytes | None, past: int) -> Callable[[], None]:
        """What brings one key back to where it stands now; memory and dirty mark."""
        if self._expired and key in self._expired:
            past |= _REMEMBERED
        if self._gone and key in self._gone:
            past |= _GONE
        return partial(self._restore, key, record, self.dirty.get(key, _CLEAN), past)

    def _restore(self, key: str, record: bytes | None, mark: bytes | None, past: int) -> None:
        current = self.entries.get(key)
        if current is not None:
            self._remove(key, current)
        if record is not None:
            self._adopt(key, record)
            self.entries.move_to_end(key, last=bool(past & HOT))
        if mark is _CLEAN:
            self.dirty.pop(key, None)
        else:
            self.dirty[key] = mark
        if past & _REMEMBERED:
            self._remember(key)
        else:
            self._expired.pop(key, None)
        if past & _GONE:
            self._gone.add(key)
        else:
            self._gone.discard(key)

    # --- telemetry (spec 2.7) ---

    def _say(self, what: str, fields: dict[str, Any], undo: Undo | None = None) -> None:
        note = (what, {**fields, "component": "session_manager", "partition": self.partition})
        self.notes.append(note)
        if undo is not None:
            undo.append(partial(self._unsay, note))

    def _say_evicted(self, key: str, record: bytes, undo: Undo | None) -> None:
        if self.watched:
            at, size = HEADER.unpack_from(record)[6:]
            fields = {"count": 1, "entries": len(self.entries), "session_key": key, "reason": "capacity"}
            self._say("evicted", fields | {"external_room_id": unpack(record[at : at + size])}, undo)

    def _unsay(self, note: Note) -> None:
        for index in range(len(self.notes) - 1, -1, -1):
            if self.notes[index] is note:
                del self.notes[index]
                return


def is_expired(record: bytes, now_ms: int) -> bool:
    """Whether a record's time has come; at the very millisecond it has."""
    expires: int = TIMES.unpack_from(record)[1]
    return expires <= now_ms


__all__ = ["DIRTY_SPARE_MAX", "HOT", "Note", "RouteSettings", "RouteState", "Undo", "is_expired"]
