"""Moving slots between partitions, before a node with another number of partitions is READY.

copy -> commit in the target -> flip the map -> delete at the source. Each step may be killed and is simply
done again at the next start: until the flip, what lies in a target is a copy that nobody reads (deleted
before it is copied again); after it, what lies in a source is a remainder that nobody reads (deleted).
Receipts stay where they were written, as long as that partition is there (``core/moved.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apsw
import msgspec

from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core.moved import place
from mesh.core.slots import PARTITIONS_MAX, moved_map
from mesh.errors import StoreError
from mesh.store.by_session import fill_all
from mesh.store.file import DAMAGED, guard
from mesh.store.node_db import NodeDb
from mesh.store.reading import OF_SESSION
from mesh.store.rows import PUT_RUN, PUT_SESSION, run_row, session_row
from mesh.store.sqlite import Store

ROWS_PER_STEP = 2_000


def resize(data_dir: Path, partitions: int) -> None:
    """Move slots until the map has this many partitions; finishes a move that was killed first.

    Raises:
        StoreError: a file cannot be read or written; the next start goes on where this one ended.
    """
    with NodeDb(data_dir / "node.db") as node:
        pending = node.pending_map()
        if pending is not None:
            _move(data_dir, node, pending)
        owners, _, count = node.slot_map()
        if count != partitions:
            target = moved_map(owners, partitions)
            node.set_pending(target)
            _move(data_dir, node, target)


def _move(data_dir: Path, node: NodeDb, target: bytes) -> None:
    owners, _, count = node.slot_map()
    if owners != target:
        for source in range(count):
            for goal in sorted(set(target) - {source}):
                slots = [s for s in range(len(owners)) if owners[s] == source and target[s] == goal]
                if slots:
                    _copy(data_dir, source, goal, slots)
        for source in range(count):
            _copy_receipts(data_dir, source, max(target) + 1)
        node.set_map(target)
    for index in range(PARTITIONS_MAX):  # also the files of partitions that are no more, after a kill
        _sweep(data_dir, index, target)
    node.set_pending(None)


def _file(data_dir: Path, index: int) -> Path:
    return data_dir / f"partition-{index}.db"


def _copy(data_dir: Path, source: int, goal: int, slots: list[int]) -> None:
    if not _file(data_dir, source).exists():
        return
    giver, taker = Store(_file(data_dir, source)), Store(_file(data_dir, goal))
    try:
        for store in (giver, taker):
            _acquire(store)
        mover = _Mover(giver.connection, taker.connection, slots)
        guard(mover.move, f"move slots from partition {source} to {goal}")
    finally:
        giver.close()
        taker.close()


def _acquire(store: Store) -> None:
    """Acquire, with each session's log complete, and the routes where their slots are known.

    Raises:
        StoreError: also when the log of routes is damaged.
    """
    store.acquire(boot_id="resize", offset_ms=0)
    while store.by_session.copying:
        store.copy_log()
    store.fill_log()  # raises when it could not
    store.fold_all_routes()
    if store.route_log.damage:
        raise StoreError(f"{store.damage}: mesh repair mends it", code=DAMAGED)


def _copy_receipts(data_dir: Path, source: int, partitions: int) -> None:
    """Copy what another partition is to answer from now on."""
    if not _file(data_dir, source).exists():
        return
    giver = Store(_file(data_dir, source))
    try:
        _acquire(giver)
        leaving = _leaving(giver.connection, source, partitions)
        for goal in sorted({owner for owner, _ in leaving.values()}):
            names = {name: there for name, (owner, there) in leaving.items() if owner == goal}
            _hand_over(giver, _file(data_dir, goal), names)
    finally:
        giver.close()


def _hand_over(giver: Store, file: Path, names: dict[bytes, bytes]) -> None:
    taker = Store(file)
    try:
        _acquire(taker)
        guard(lambda: _give(giver, taker, names), f"move receipts to {file.name}")
    finally:
        taker.close()


def _leaving(db: apsw.Connection, index: int, partitions: int) -> dict[bytes, tuple[int, bytes]]:
    """Names of receipts that belong into another file, or under another name: who has them, and their name
    there."""
    sql = "SELECT DISTINCT client FROM receipt"
    found = {name: place(name, index, partitions) for (name,) in db.execute(sql)}
    return {name: there for name, there in found.items() if there != (index, name)}


def _give(giver: Store, taker: Store, names: dict[bytes, bytes]) -> None:
    later_s = taker.served_s() - giver.served_s()  # each file counts its own time of service
    with taker.connection:
        for name, there in names.items():
            taker.connection.execute("DELETE FROM receipt WHERE client = ?", (there,))
            rows = giver.connection.execute(
                "SELECT number, seen, below, parts FROM receipt WHERE client = ?", (name,))
            taker.connection.executemany("INSERT INTO receipt VALUES (?, ?, ?, ?, ?)", [
                (there, number, seen + later_s, below, parts) for number, seen, below, parts in rows])


def _forget_receipts(db: apsw.Connection, index: int, partitions: int) -> None:
    with db:
        gone = [(name,) for name in _leaving(db, index, partitions)]
        db.executemany("DELETE FROM receipt WHERE client = ?", gone)


def _sweep(data_dir: Path, index: int, target: bytes) -> None:
    if not _file(data_dir, index).exists():
        return
    slots = [slot for slot, owner in enumerate(target) if owner != index]
    store = Store(_file(data_dir, index))
    try:
        _acquire(store)
        guard(lambda: _delete(store.connection, slots), f"sweep partition {index}")
        guard(lambda: _forget_receipts(store.connection, index, max(target) + 1), f"sweep partition {index}")
    finally:
        store.close()


def _delete(db: apsw.Connection, slots: list[int]) -> None:
    """Delete everything of these slots, in one transaction."""
    with db:
        db.execute("CREATE TEMP TABLE IF NOT EXISTS moved (slot INTEGER PRIMARY KEY)")
        db.execute("DELETE FROM moved")
        db.executemany("INSERT INTO moved VALUES (?)", [(slot,) for slot in slots])
        gone = "SELECT n FROM session WHERE slot IN moved"
        highest = max(_one(db, "SELECT max(pos) FROM event") or 0,
                      _one(db, "SELECT value FROM meta WHERE name = 'pos'") or 0)
        db.execute("DELETE FROM route WHERE slot IN moved")
        db.execute("DELETE FROM spent WHERE slot IN moved")
        db.execute(f"DELETE FROM event WHERE pos IN (SELECT pos FROM log WHERE session IN ({gone}))")
        db.execute(f"DELETE FROM log WHERE session IN ({gone})")
        db.execute(f"DELETE FROM progress WHERE run IN (SELECT n FROM run WHERE session IN ({gone}))")
        db.execute(f"DELETE FROM run WHERE session IN ({gone})")
        db.execute("DELETE FROM session WHERE slot IN moved")
        db.execute("INSERT OR REPLACE INTO meta VALUES ('pos', ?)", (highest,))


class _Mover:
    """Copies some slots from one open file to another, giving rows the target's own numbers."""

    def __init__(self, giver: apsw.Connection, taker: apsw.Connection, slots: list[int]) -> None:
        self.giver = giver
        self.taker = taker
        self.slots = slots

    def move(self) -> None:
        _delete(self.taker, self.slots)
        with self.taker:
            self.routes()
            for row in self._rows("SELECT tag, slot, record FROM spent WHERE slot = ?"):
                self.taker.execute("INSERT INTO spent VALUES (?, ?, ?)", row)
            known = "SELECT record FROM session WHERE slot = ? AND ifnull(deleted, 1) > 0 ORDER BY n"
            for record in self._rows(known):  # not ERASED, nor IMPORTING
                self.session(sessions.decode(record[0]))
            fill_all(self.taker)

    def _rows(self, sql: str) -> Iterator[Any]:
        for slot in self.slots:
            yield from self.giver.execute(sql, (slot,))

    def _next(self, table: str, column: str) -> int:
        highest: Any = _one(self.taker, f"SELECT max({column}) FROM {table}")
        kept: Any = _one(self.taker, "SELECT value FROM meta WHERE name = ?", column)
        return int(max(highest or 0, kept or 0)) + 1

    def routes(self) -> None:
        boots: dict[int, int] = {}
        for number, boot_id, offset_ms in self.giver.execute("SELECT id, boot_id, offset_ms FROM boot"):
            self.taker.execute(
                "INSERT OR IGNORE INTO boot(boot_id, offset_ms) VALUES (?, ?)", (boot_id, offset_ms))
            boots[number] = _one(self.taker, "SELECT id FROM boot WHERE boot_id = ?", boot_id)
        rows = self._rows("SELECT key, slot, boot, record, sum FROM route WHERE slot = ?")
        for step in _steps(rows):
            self.taker.executemany(
                "INSERT OR REPLACE INTO route VALUES (?, ?, ?, ?, ?)",
                [(key, slot, boots[boot], record, total) for key, slot, boot, record, total in step],
            )

    def session(self, old: sessions.SessionState) -> None:
        new = msgspec.structs.replace(old, n=self._next("session", "n"))
        self.taker.execute(PUT_SESSION, session_row(new))
        numbers = {0: 0}
        for (blob,) in self.giver.execute("SELECT record FROM run WHERE session = ? ORDER BY n", (old.n,)):
            run = runs.decode(blob)
            numbers[run.n] = self._next("run", "n")
            moved = msgspec.structs.replace(run, n=numbers[run.n])
            self.taker.execute(PUT_RUN, run_row(moved, new.n))
            for attempt, batch in self.giver.execute(
                "SELECT attempt, batch FROM progress WHERE run = ?", (run.n,)
            ):
                self.taker.execute("INSERT INTO progress VALUES (?, ?, ?)", (numbers[run.n], attempt, batch))
        self._events(old.n, new.n, numbers)

    def _events(self, old: int, new: int, numbers: dict[int, int]) -> None:
        pos = self._next("event", "pos")
        rows = self.giver.execute(
            f"SELECT e.seq, e.type, e.run, e.ts, e.fragment, e.sum {OF_SESSION} ORDER BY l.seq", (old,))
        for step in _steps(rows):
            self.taker.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [
                (pos + i, new, seq, kind, numbers[run], ts, fragment, total)
                for i, (seq, kind, run, ts, fragment, total) in enumerate(step)])
            pos += len(step)


def _one(db: apsw.Connection, sql: str, *args: Any) -> Any:
    row = db.execute(sql, args).fetchone()
    return None if row is None else row[0]


def _steps(rows: Iterable[Any]) -> Iterator[list[Any]]:
    step: list[Any] = []
    for row in rows:
        step.append(row)
        if len(step) == ROWS_PER_STEP:
            yield step
            step = []
    if step:
        yield step


__all__ = ["resize"]
