"""Saving what can be read of a damaged file, for ``mesh repair``, on a node that is down.

The damaged file is copied row by row into a new one: rows whose page or checksum is bad are left out, and so
is what belongs to a session that is lost; a log that lost events says so (``pruned_to``), as if retention
had taken them. Then the files change places: the damaged one is kept beside it as ``*.damaged-<time>``.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import msgspec

from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core.session import SessionState
from mesh.core.slots import route_slot
from mesh.store import route_log
from mesh.store.by_session import fill_all
from mesh.store.file import DAMAGE, checksum, connect, guard, header, page_checksums, readable_behind
from mesh.store.rows import PUT_RUN, PUT_SESSION, run_row, session_row
from mesh.store.schema import META, SCHEMA_VERSION, TABLES

#: Above every epoch that a file whose own cannot be read may have given.
EPOCH_UNKNOWN = 1 << 40
_PLAIN = ("boot", "lifecycle", "audit", "progress", "spent")


class Repaired(NamedTuple):
    """What became of a file. ``lost`` counts by table what was seen and could not be saved; where whole
    pages are unreadable nobody knows how much was there: ``gaps`` names those places."""

    file: str
    kept_as: str
    saved: dict[str, int]
    lost: dict[str, int]
    gaps: list[str]


def repair(path: Path) -> Repaired:
    """Mend one partition's file.

    Raises:
        StoreError: it is no database any more, it is in use, or the disk refuses; nothing was changed.
    """
    copy, fresh = path.with_name(f"{path.name}.salvage"), path.with_name(f"{path.name}.mended")
    try:
        return guard(lambda: _repair(path, copy, fresh), f"repair {path.name}")
    finally:
        for file in (copy, fresh):
            for suffix in ("", "-wal", "-shm", "-journal"):
                with suppress(OSError):
                    file.with_name(file.name + suffix).unlink()


def _repair(path: Path, copy: Path, fresh: Path) -> Repaired:
    page_checksums()
    header(path)
    with closing(_open(path)) as lock:
        lock.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        lock.execute("BEGIN EXCLUSIVE")  # nobody uses it
        lock.execute("ROLLBACK")
    for suffix in ("", "-wal"):
        if path.with_name(path.name + suffix).exists():
            shutil.copyfile(path.with_name(path.name + suffix), copy.with_name(copy.name + suffix))
    with closing(_open(copy)) as old, closing(connect(fresh)) as new:
        salvage = _Salvage(old, new)
        with new:
            new.execute(META)
            new.execute(TABLES)
            salvage.all()
    kept = f"damaged-{int(time.time())}"
    for suffix in ("", "-wal", "-shm"):
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.rename(file.with_name(f"{path.name}.{kept}{suffix}"))
    fresh.rename(path)
    return Repaired(path.name, f"{path.name}.{kept}", salvage.saved, salvage.lost, salvage.gaps)


def _open(path: Path) -> apsw.Connection:
    """For reading what is damaged: a row has a checksum of its own. The log beside it stays as it is."""
    db = apsw.Connection(str(path))
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    db.execute("PRAGMA checksum_verification = OFF").fetchall()
    return db


class _Salvage:
    """From the damaged copy into the new file."""

    def __init__(self, old: apsw.Connection, new: apsw.Connection) -> None:
        self.old, self.new = old, new
        self.saved: dict[str, int] = {}
        self.lost: dict[str, int] = {}
        self.gaps: list[str] = []
        self.sessions: dict[int, SessionState] = {}

    def all(self) -> None:
        """Every table, sessions first: what belongs to a lost one is lost."""
        self.meta()
        for table in _PLAIN:
            for row in self.numbered(table):
                self._put(table, row)
        self.routes()
        self.session_rows()
        self.run_rows()
        self.events()

    def meta(self) -> None:
        """Counters that are lost are replaced by safe ones."""
        values: dict[str, Any] = dict(self.keyed("meta", "name"))
        values["epoch"] = values.get("epoch") if isinstance(values.get("epoch"), int) else EPOCH_UNKNOWN
        values["schema"] = SCHEMA_VERSION
        values.pop("filled", None)
        self.new.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(values.items()))

    def routes(self) -> None:
        for row in self.keyed("route", "key"):
            if isinstance(row[3], bytes) and checksum(row[3]) == row[4]:
                self._put("route", row)
            else:
                self._lose("route")
        self.logged_routes()
        for client in self.keyed("receipt", "client, number"):
            self._put("receipt", client)

    def logged_routes(self) -> None:
        """What stands in the log of routes is newer than the table; one that is lost there is lost."""
        newest: dict[str, tuple[int, bytes | None]] = {}
        for _, boot, keys, records in route_log.read(self.old, self.gaps.append):
            for key, record in zip(keys or (), records, strict=True):
                newest[key] = boot, record
        self.new.executemany(route_log.DELETE_ROUTE, [(key,) for key in newest])
        for key, (boot, record) in newest.items():
            if record:
                self._put("route", (key, route_slot(key), boot, record, checksum(record)))
            elif record is not None:
                self._lose("route")
        [(self.saved["route"],)] = self.new.execute("SELECT count(*) FROM route")

    def session_rows(self) -> None:
        for row in self.numbered("session", "n, record, sum"):
            state = self._decoded(sessions.decode, row, "session")
            if state is not None:
                self.sessions[state.n] = state
                self.new.execute(PUT_SESSION, session_row(state))

    def run_rows(self) -> None:
        for row in self.numbered("run", "n, record, sum, session"):
            if row[3] not in self.sessions:
                self._lose("run")
                continue
            state = self._decoded(runs.decode, row, "run")
            if state is not None:
                self.new.execute(PUT_RUN, run_row(state, row[3]))

    def _decoded(self, decode: Any, row: Any, table: str) -> Any:
        try:
            if isinstance(row[1], bytes) and checksum(row[1]) == row[2]:
                state = decode(row[1])
                self.saved[table] = self.saved.get(table, 0) + 1
                return state
        except msgspec.MsgspecError:
            pass
        self._lose(table)
        return None

    def events(self) -> None:
        seen: dict[int, tuple[int, int]] = {}  # session -> highest seq, events
        for row in self.numbered("event"):
            session, seq, fragment = row[1], row[2], row[6]
            sound = isinstance(fragment, bytes) and checksum(fragment) == row[7]
            if session not in self.sessions or not sound:
                self._lose("event")
                continue
            highest, count = seen.get(session, (0, 0))
            if not isinstance(seq, int) or seq <= highest:
                self._lose("event")
                continue
            self._put("event", row)
            seen[session] = seq, count + 1
        fill_all(self.new)
        for n, (highest, count) in seen.items():
            self._note_holes(self.sessions[n], highest, count)

    def _note_holes(self, state: SessionState, highest: int, count: int) -> None:
        """A log that is shorter than its numbers lost events: from now on it says so."""
        missing = highest - count
        if missing <= state.pruned:
            return
        sql = ("SELECT max(a.seq) FROM log a WHERE a.session = ? AND a.seq > 1 AND NOT EXISTS"
               " (SELECT 1 FROM log b WHERE b.session = a.session AND b.seq = a.seq - 1)")
        [(behind,)] = self.new.execute(sql, (state.n,))
        [(first,)] = self.new.execute("SELECT min(seq) FROM log WHERE session = ?", (state.n,))
        pruned_to = max(state.pruned_to, int(behind or 1) - 1, int(first or 1) - 1)
        self.new.execute(PUT_SESSION, session_row(
            msgspec.structs.replace(state, pruned=missing, pruned_to=pruned_to)))
        self.gaps.append(f"session {state.id}: {missing - state.pruned} events up to seq {pruned_to}")

    def _put(self, table: str, row: Any) -> None:
        try:
            self.new.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
        except apsw.ConstraintError:
            return self._lose(table)
        self.saved[table] = self.saved.get(table, 0) + 1
        return None

    def _lose(self, table: str) -> None:
        self.lost[table] = self.lost.get(table, 0) + 1

    # --- reading what is damaged ---

    def _present(self, table: str) -> bool:
        sql = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
        return self.old.execute(sql, (table,)).fetchone() is not None

    def numbered(self, table: str, columns: str = "*") -> Iterator[Any]:
        """Rows by number; over a place that cannot be read, the next one that can be is looked for."""
        if not self._present(table):
            return
        sql, last = f"SELECT rowid, {columns} FROM {table} WHERE rowid > ? ORDER BY rowid", -1
        while True:
            try:
                for row in self.old.execute(sql, (last,)):
                    last = row[0]
                    yield row[1:]
                return
            except DAMAGE:
                following = readable_behind(self.old, f"{sql} LIMIT 1", last)
                end = "the end" if following is None else following
                self.gaps.append(f"{table}: rows behind {last} up to {end} cannot be read")
                if following is None:
                    return
                last = following

    def keyed(self, table: str, key: str) -> Iterator[Any]:
        """Rows of a table without numbers: from its beginning, and when that breaks off, from its end."""
        if not self._present(table):
            return
        count, whole = 0, False
        last: Any = None
        width = key.count(",") + 1
        with suppress(*DAMAGE):
            for row in self.old.execute(f"SELECT * FROM {table} ORDER BY {key}"):
                last, count = row[:width], count + 1
                yield row
            whole = True
        if whole:
            return
        self.gaps.append(f"{table}: behind {count} rows from its beginning")
        with suppress(*DAMAGE):
            backwards = ", ".join(f"{name} DESC" for name in key.split(", "))
            for row in self.old.execute(f"SELECT * FROM {table} ORDER BY {backwards}"):
                if last is not None and row[:width] <= last:
                    return
                yield row


__all__ = ["EPOCH_UNKNOWN", "Repaired", "repair"]
