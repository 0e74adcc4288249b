"""Writes of routes that are not in their table yet: a log of batches, folded into the table much later.

A batch of routes under random keys touches a page of the table for each of them; as one row at the end of a
log it touches a few. What is written again before it is folded never touches the table at all.

Rules of this file:

1. The log is two generations: ``_new`` takes what is committed, ``_old`` is on its way into the table. Each
   holds, for its keys, the newest record (None: deleted; b"": damaged). The table holds the rest.
2. A generation is old when it has KEPT_MIN writes, or an eighth of the routes that there are. It is folded in
   small steps, of so many keys and bytes, when the new one is half as long: most of what is written often
   stands there again by then, and is passed over. Then its rows of the log are removed.
3. Memory changes when a transaction has committed (``appended``, ``folded``), never before.
4. A log in which something is damaged, or of which a step met a damaged page of the table, is folded no more:
   it grows up to STUCK_BYTES_MAX, and ``mesh repair`` mends it. Where a batch does not
   even say which keys it had, ``lost`` is set: what stands in the table may be older than the truth.

A row is ``(n, boot, sum, head, records)``: head is the msgpack of ``[keys, sizes, checksums]``, sum is the
checksum of head, records are the encoded routes behind one another (size 0: deleted).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from typing import Any, NamedTuple

import apsw
import msgspec
from xxhash import xxh3_64_intdigest

from mesh.core.slots import route_slot
from mesh.store.file import DAMAGE, checksum, readable_behind

Records = dict[str, bytes | None]
#: Writes of a generation, at least; a start reads up to 1.5 generations, 1 us each, before it answers.
KEPT_MIN = 8_192
#: With many routes a generation is as long as this part of them, or a page of the table takes one write.
KEPT_SHARE = 8
KEPT_BYTES_MAX = 16 * 1024 * 1024
#: What a log that cannot be folded may grow to.
STUCK_BYTES_MAX = 16 * KEPT_BYTES_MAX
#: Keys of a row, at most: what a step that removes rows may touch is bounded by it.
KEYS_PER_ROW = 1_024
#: Bytes of records of a row of several keys, at most, for the same reason.
ROW_BYTES_MAX = 512 * 1024
KEYS_PER_STEP = 128
ROWS_PER_STEP = 32
#: What a step writes or removes, about: 3 ms.
BYTES_PER_STEP = 512 * 1024

#: Not INSERT OR REPLACE, which deletes and inserts: 2.4 us per row instead of 6.3.
PUT_ROUTE = (
    "INSERT INTO route VALUES (?, ?, ?, ?, ?) ON CONFLICT(key) "
    "DO UPDATE SET boot = excluded.boot, record = excluded.record, sum = excluded.sum"
)
DELETE_ROUTE = "DELETE FROM route WHERE key = ?"

_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(tuple[list[str], list[int], list[int]]).decode


class _Generation:
    """The newest record of each key that was written in one part of the log."""

    def __init__(self) -> None:
        self.records: Records = {}
        self.writes = 0
        self.bytes = 0
        self._order: list[str] = []

    def add(self, records: Records, size: int) -> None:
        self.records.update(records)
        self.writes += len(records)
        self.bytes += size

    @property
    def order(self) -> list[str]:
        """The keys in order. Keys only come, at the dict's end: those since the last time are merged in."""
        if len(self._order) < len(self.records):
            self._order.extend(islice(self.records, len(self._order), None))
            self._order.sort()
        return self._order

    def between(self, after: str, upto: str | None, most: int | None) -> list[str]:
        """Keys behind one, up to another, in order; the first so many."""
        order = self.order
        begin = bisect_right(order, after)
        end = len(order) if upto is None else bisect_right(order, upto)
        return order[begin : end if most is None else min(end, begin + most)]


class RouteLog:
    """The log of one partition. What writes runs inside a transaction of the store."""

    def __init__(self) -> None:
        self._new, self._old = _Generation(), _Generation()
        self._boots: dict[str, int] = {}  # of keys that were logged before this incarnation
        self._last = self._old_first = self._old_last = 0  # numbers of rows
        self._rows = self._bytes = 0  # of the transaction under way
        self._at = self._taken = 0  # keys of the old generation that are done; with the step under way
        self._removed_to = 0
        self._met: tuple[int, int] | None = None  # writes and bytes of the new generation, at the last step
        self.damage: list[str] = []  #: what could not be read
        self.lost = False  #: a batch's keys are not known

    # --- looking ---

    def get(self, key: str) -> tuple[bytes | None, int | None] | None:
        """(record, the boot it was written in, None: the present one) of a key in the log, else None."""
        for part in (self._new.records, self._old.records):
            if key in part:
                return part[key], self._boots.get(key)
        return None

    def between(self, after: str, upto: str | None, most: int | None = None) -> set[str]:
        """The keys of the log behind one, up to another; the first so many at least."""
        return {*self._new.between(after, upto, most), *self._old.between(after, upto, most)}

    # --- writing ---

    def append(self, db: apsw.Connection, boot: int, routes: Records) -> None:
        """Write a batch behind the others."""
        self._rows = self._bytes = 0
        if len(routes) <= KEYS_PER_ROW:
            self._append(db, boot, list(routes), list(routes.values()))
            return
        pairs = iter(routes.items())
        while part := dict(islice(pairs, KEYS_PER_ROW)):
            self._append(db, boot, list(part), list(part.values()))

    def _append(self, db: apsw.Connection, boot: int, keys: list[str], values: list[bytes | None]) -> None:
        records = [record or b"" for record in values]
        body = b"".join(records)
        if len(body) > ROW_BYTES_MAX and len(keys) > 1:
            middle = len(keys) // 2
            self._append(db, boot, keys[:middle], values[:middle])
            self._append(db, boot, keys[middle:], values[middle:])
            return
        head = _encode((keys, list(map(len, records)), list(map(xxh3_64_intdigest, records))))
        self._rows += 1
        self._bytes += len(head) + len(body)
        db.execute("INSERT INTO route_log VALUES (?, ?, ?, ?, ?)",
                   (self._last + self._rows, boot, checksum(head), head, body))

    def appended(self, routes: Records) -> None:
        """The transaction of ``append`` has committed."""
        self._last += self._rows
        self._new.add(routes, self._bytes)
        if self._boots:
            for key in routes:
                self._boots.pop(key, None)

    # --- folding ---

    def turn(self, routes: int) -> None:
        """Begin a new generation when the present one is long enough, where there are so many routes."""
        new = self._new
        if not self._old.writes and not self.damage and (
            new.writes >= _most(routes) or new.bytes >= KEPT_BYTES_MAX
        ):
            self._turn()

    def due(self, routes: int) -> bool:
        """Whether a step of folding is to be taken, where there are so many routes; of a damaged log, whether
        it is full."""
        new, old = self._new, self._old
        if self.damage:
            return new.bytes + old.bytes >= STUCK_BYTES_MAX
        return old.writes > 0 and (
            2 * (new.writes + old.writes) >= 3 * _most(routes)
            or 2 * (new.bytes + old.bytes) >= 3 * KEPT_BYTES_MAX)

    def _turn(self) -> None:
        self._old, self._new = self._new, _Generation()
        self._old_last = self._last
        self._at, self._met = 0, None

    def fold(self, db: apsw.Connection, boot: int) -> None:
        """Take a step: fold some keys of the old generation, or remove some of its rows. Faster than the new
        one grows."""
        new = self._new
        writes, size = self._met or (new.writes, new.bytes)
        most_bytes = max(BYTES_PER_STEP, 2 * (new.bytes - size))
        self._taken, live = self._next(max(KEYS_PER_STEP, 2 * (new.writes - writes)), most_bytes)
        if self._taken:
            boots = self._boots
            db.executemany(PUT_ROUTE, [
                (key, route_slot(key), boots.get(key, boot), record, checksum(record))
                for key, record in live if record is not None])
            db.executemany(DELETE_ROUTE, [(key,) for key, record in live if record is None])
            return
        rows = max(ROWS_PER_STEP, 2 * (self._last - self._old_last) // ROWS_PER_STEP)
        self._removed_to = min(self._old_first + rows, self._old_last)
        for n, size in db.execute(_SIZES, (self._old_first, self._removed_to)):
            most_bytes -= size
            if most_bytes <= 0:
                self._removed_to = n
                break
        db.execute("DELETE FROM route_log WHERE n <= ?", (self._removed_to,))

    def _next(self, most: int, most_bytes: int) -> tuple[int, list[tuple[str, bytes | None]]]:
        """How many of the old generation's keys a step takes, and what of them is still the newest."""
        old, newer = self._old.records, self._new.records
        live: list[tuple[str, bytes | None]] = []
        some = self._old.order[self._at : self._at + most]
        for taken, key in enumerate(some, 1):
            if key not in newer:
                record = old[key]
                live.append((key, record))
                most_bytes -= len(record or b"")
                if most_bytes <= 0:
                    return taken, live
        return len(some), live

    def folded(self) -> None:
        """The transaction of ``fold`` has committed."""
        self._met = self._new.writes, self._new.bytes
        self._at += self._taken
        if not self._taken:
            self._old_first = self._removed_to
            if self._removed_to == self._old_last:
                self._old, self._boots = _Generation(), {}

    def finish(self) -> bool:
        """Whether anything is left to fold, for who wants to fold all; a damaged log is left as it is."""
        if not self._old.writes and self._new.writes:
            self._turn()
        return self._old.writes > 0 and not self.damage

    # --- starting ---

    def replay(self, db: apsw.Connection) -> None:
        """Read what is there."""
        for n, boot, keys, records in read(db, self.damage.append):
            if not self._last:
                self._old_first = n - 1  # rows of former lives are gone: no step is spent on their numbers
            self._last = n
            if keys is None:
                self.lost = True
                continue
            self._old.add(dict(zip(keys, records, strict=True)), sum(map(len, filter(None, records))))
            self._boots.update(dict.fromkeys(keys, boot))
        self._old_last = self._last


def _most(routes: int) -> int:
    """Writes of a generation, where there are so many routes."""
    return max(KEPT_MIN, routes // KEPT_SHARE)


class Batch(NamedTuple):
    """A row of the log. ``keys`` is None where they are lost; a damaged record is b""."""

    n: int
    boot: int
    keys: list[str] | None
    records: list[bytes | None]


def read(db: apsw.Connection, note: Callable[[str], object]) -> Iterator[Batch]:
    """All batches, in order; what is damaged is noted."""
    if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'route_log'").fetchone():
        return
    last = 0
    while True:
        try:
            for row in db.execute(_NEXT.format('*'), (last,)):
                last = row[0]
                yield decode(row, note)
            return
        except DAMAGE as exc:
            found = _head_behind(db, last)
            if found is None:
                note(f"the log of routes behind its row {last} cannot be read ({exc})")
                following = _number_behind(db, last)
                yield Batch(following or last, 0, None, [])  # its number stays taken
                if following is None:
                    return
                last = following
            else:
                last = found[0]
                yield decode((*found, b""), note)


def _head_behind(db: apsw.Connection, last: int) -> Any:
    """The next row without its records, whose pages may be those that cannot be read; else None."""
    try:
        return db.execute(f"{_NEXT.format('n, boot, sum, head')} LIMIT 1", (last,)).fetchone()
    except DAMAGE:
        return None


def _number_behind(db: apsw.Connection, last: int) -> int | None:
    """Behind which number to go on: that of the row that cannot be read, or the last of such a page."""
    numbers = f"{_NEXT.format('n')} LIMIT 1"
    try:
        found: Any = db.execute(numbers, (last,)).fetchone()
    except DAMAGE:
        return readable_behind(db, numbers, last)
    return None if found is None else int(found[0])


def decode(row: Any, note: Callable[[str], object]) -> Batch:
    """One row ``(n, boot, sum, head, records)``."""
    n, boot, total, head, body = row
    try:
        keys, sizes, sums = _decode_head(head) if checksum(head) == total else (None, [], [])
    except (msgspec.MsgspecError, TypeError):
        keys, sizes, sums = None, [], []
    if keys is None:
        note(f"row {n} of the log of routes (its checksum is wrong)")
        return Batch(n, 0, None, [])
    if not isinstance(body, bytes):  # repair reads pages whose checksum is wrong
        body = b""
    ends = list(accumulate(sizes))
    found = [body[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    records: list[bytes | None] = [record or None for record in found] if 0 in sizes else [*found]
    digests = list(map(xxh3_64_intdigest, found))
    if digests != sums:
        for place, key in enumerate(keys):
            if digests[place] != sums[place]:
                note(f"the route of {key} (its checksum is wrong)")
                records[place] = b""
    return Batch(n, boot, keys, records)


_SIZES = "SELECT n, length(head) + length(records) FROM route_log WHERE n > ? AND n <= ? ORDER BY n"
_NEXT = "SELECT {} FROM route_log WHERE n > ? ORDER BY n"


__all__ = [
    "DELETE_ROUTE", "KEPT_MIN", "KEYS_PER_ROW", "PUT_ROUTE", "Batch", "Records", "RouteLog", "decode", "read",
]
