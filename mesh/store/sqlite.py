"""One partition's SQLite file: one connection, one writer, one transaction per batch.

Facts this obeys (sqlite.org/wal.html, pragma.html):

- ``locking_mode=EXCLUSIVE``: no other process can open the file, and WAL needs no shared memory. The WAL-reset
  corruption bug (3.7.0 to 3.51.2) needs two connections; apsw ships a fixed SQLite besides.
- ``synchronous=FULL`` syncs the WAL at each commit (``power``), NORMAL only at checkpoints (``process``: a commit
  survives the death of the process, not of the machine). It is switched between transactions, per batch.
- Automatic checkpoints are off: they would stop a batch at a random moment. PASSIVE ones when idle, or when the
  WAL is over WAL_BYTES_MAX.
- A row's ``sum`` is an xxh3 checksum of its blob: a flipped byte on the disk is an error, not an answer.

The epoch is checked inside the write transaction, so a zombie writer cannot write.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import msgspec
from xxhash import xxh3_64_intdigest

from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core import wire
from mesh.core.receipts import Receipt
from mesh.core.run import RunState
from mesh.core.session import SessionState
from mesh.core.slots import route_slot, session_slot
from mesh.core.state import EventRow, State
from mesh.errors import StoreError
from mesh.store.schema import SCHEMA_VERSION, TABLES

WAL_BYTES_MAX = 32 * 1024 * 1024
PAGE_BYTES = 4096
#: A frozen former owner may hold the lock until the supervisor has killed it.
LOCK_WAIT_MS = 5_000

_EVENT_COLUMNS = "e.pos, e.session, e.seq, e.type, e.run, e.ts, e.fragment, e.sum"


class StoredEvent(NamedTuple):
    """A row of the log."""

    pos: int
    seq: int
    type: int
    fragment: bytes


class Store:
    """The file of one partition. All methods belong to the partition's one thread.

    Every method raises ``StoreError`` when the disk refuses or a row is damaged; a refused ``commit`` wrote
    nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = guard(lambda: _open(path), f"open {path.name}")
        self._full = True
        self.epoch = 0
        self.boot = 0
        self._wal_pages = 0
        self._db.set_wal_hook(self._on_wal)

    @property
    def connection(self) -> apsw.Connection:
        """For ``resize``, which moves rows between two files."""
        return self._db

    # --- opening ---

    def acquire(self, *, boot_id: str, offset_ms: int) -> int:
        """Take the lease: raise the epoch, in a transaction. Returns the new epoch."""

        def take() -> int:
            with self._db:
                self._db.execute(TABLES)
                version = self.meta("schema")
                if version is not None and version > SCHEMA_VERSION:
                    raise StoreError(
                        f"{self.path.name} has schema {version}; this mesh knows {SCHEMA_VERSION}: update mesh",
                        code="migration_required",
                    )
                self.epoch = (self.meta("epoch") or 0) + 1
                self._set_meta(schema=SCHEMA_VERSION, epoch=self.epoch)
                self._db.execute("INSERT OR IGNORE INTO boot(boot_id, offset_ms) VALUES (?, ?)", (boot_id, offset_ms))
                self.boot = self._one("SELECT id FROM boot WHERE boot_id = ?", boot_id)
            return self.epoch

        return guard(take, "acquire the lease")

    def meta(self, name: str) -> Any:
        """A value of the meta table, None when absent."""
        return self._one("SELECT value FROM meta WHERE name = ?", name)

    def _set_meta(self, **values: Any) -> None:
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(values.items()))

    def _one(self, sql: str, *args: Any) -> Any:
        row = self._db.execute(sql, args).fetchone()
        return row[0] if row is not None else None

    def counters(self) -> dict[str, int]:
        """pos, lseq and the next row numbers, as the last commit left them."""
        return guard(lambda: {
            "pos": max(self.meta("pos") or 0, self._one("SELECT max(pos) FROM event") or 0),
            "lseq": max(self.meta("lseq") or 0, self._one("SELECT max(lseq) FROM lifecycle") or 0),
            "next_session": (self._one("SELECT max(n) FROM session") or 0) + 1,
            "next_run": (self._one("SELECT max(n) FROM run") or 0) + 1,
            "sessions": self._one("SELECT count(*) FROM session") or 0,
        }, "read the counters")

    # --- reading ---

    def session(self, session_id: str) -> SessionState | None:
        """The stored session with the highest seq of its log."""

        def read() -> SessionState | None:
            row = self._db.execute("SELECT record, sum FROM session WHERE id = ?", (session_id,)).fetchone()
            if row is None:
                return None
            state = sessions.decode(_checked(row, f"session {session_id}"))
            return self._with_seq(state)

        return guard(read, "read a session")

    def _with_seq(self, state: SessionState) -> SessionState:
        seq = self._one("SELECT max(seq) FROM event WHERE session = ?", state.n) or 0
        return _replace_seq(state, seq)

    def run(self, run_id: str) -> RunState | None:
        """The stored run."""

        def read() -> RunState | None:
            row = self._db.execute("SELECT record, sum, n FROM run WHERE id = ?", (run_id,)).fetchone()
            return None if row is None else self._with_progress(row)

        return guard(read, "read a run")

    def _with_progress(self, row: Any) -> RunState:
        state = runs.decode(_checked(row, f"run row {row[2]}"))
        if state.ended_at is None and state.attempt:
            at = self._db.execute("SELECT attempt, batch FROM progress WHERE run = ?", (row[2],)).fetchone()
            if at is not None and at[0] == state.attempt:
                return _replace_batch(state, at[1])
        return state

    def live_sessions(self) -> list[SessionState]:
        """Sessions that were live at the last commit."""
        return guard(lambda: [
            self._with_seq(sessions.decode(_checked(row, "a session")))
            for row in self._db.execute("SELECT record, sum FROM session WHERE live = 1 ORDER BY n").fetchall()
        ], "read the live sessions")

    def active_runs(self) -> list[RunState]:
        """Runs that are not over, oldest first."""
        return guard(lambda: [
            self._with_progress(row)
            for row in self._db.execute("SELECT record, sum, n FROM run WHERE status < 4 ORDER BY n").fetchall()
        ], "read the active runs")

    def list_sessions(self, *, status: int | None, agent_id: str | None, after: int, limit: int) -> list[SessionState]:
        """Sessions in order of creation, after a row number."""
        sql = "SELECT record, sum FROM session WHERE n > ?"
        args: list[Any] = [after]
        if status is not None:
            sql, args = sql + " AND status = ?", [*args, status]
        if agent_id is not None:
            sql, args = sql + " AND agent_id = ?", [*args, agent_id]
        return guard(lambda: [
            self._with_seq(sessions.decode(_checked(row, "a session")))
            for row in self._db.execute(sql + " ORDER BY n LIMIT ?", (*args, limit)).fetchall()
        ], "list sessions")

    def list_runs(self, session: int, *, after: int, limit: int) -> list[RunState]:
        """Runs of a session in order of creation."""
        sql = "SELECT record, sum, n FROM run WHERE session = ? AND n > ? ORDER BY n LIMIT ?"
        return guard(lambda: [
            self._with_progress(row) for row in self._db.execute(sql, (session, after, limit)).fetchall()
        ], "list runs")

    def events(
        self, session: int, *, after: int = 0, before: int | None = None, run: int | None = None,
        types: Iterable[int] = (), since: float | None = None, limit: int = 1000, bytes_max: int = 1 << 20,
    ) -> tuple[list[StoredEvent], bool]:
        """(events after a seq that match, whether these are all)."""
        sql = f"SELECT {_EVENT_COLUMNS} FROM event e WHERE e.session = ? AND e.seq > ?"
        args: list[Any] = [session, after]
        for clause, value in (("e.seq < ?", before), ("e.run = ?", run), ("e.ts >= ?", since)):
            if value is not None:
                sql, args = f"{sql} AND {clause}", [*args, value]
        codes = list(types)
        if codes:
            sql += f" AND e.type IN ({','.join('?' * len(codes))})"
        return guard(
            lambda: self._take_events(sql + " ORDER BY e.seq LIMIT ?", (*args, *codes, limit + 1), limit, bytes_max),
            "read events",
        )

    def _take_events(
        self, sql: str, args: tuple[Any, ...], limit: int, bytes_max: int
    ) -> tuple[list[StoredEvent], bool]:
        found: list[StoredEvent] = []
        size = 0
        for row in self._db.execute(sql, args):
            if len(found) == limit or (size > bytes_max and found):
                return found, False
            fragment = row[6]
            if checksum(fragment) != row[7]:
                raise StoreError(f"event {row[0]} of {self.path.name} is damaged", code="storage_read_failed")
            size += len(fragment)
            found.append(StoredEvent(row[0], row[2], row[3], fragment))
        return found, True

    def feed_events(self, after: int, limit: int, bytes_max: int) -> list[tuple[str, StoredEvent]]:
        """(session id, event) in order of pos, after one."""

        def read() -> list[tuple[str, StoredEvent]]:
            sql = (f"SELECT {_EVENT_COLUMNS}, s.id FROM event e JOIN session s ON s.n = e.session"
                   " WHERE e.pos > ? ORDER BY e.pos LIMIT ?")
            found: list[tuple[str, StoredEvent]] = []
            size = 0
            for row in self._db.execute(sql, (after, limit)):
                if size > bytes_max:
                    break
                size += len(row[6])
                found.append((row[8], StoredEvent(row[0], row[2], row[3], row[6])))
            return found

        return guard(read, "read the feed")

    def feed_lifecycle(self, after: int, limit: int) -> list[tuple[str, bytes]]:
        """(topic, payload) in order of lseq, after one."""
        return guard(lambda: [
            (row[0], row[1]) for row in self._db.execute(
                "SELECT topic, payload FROM lifecycle WHERE lseq > ? ORDER BY lseq LIMIT ?", (after, limit)).fetchall()
        ], "read the feed")

    def lowest_lifecycle(self) -> int:
        """The lowest lseq that is kept (0: none)."""
        return int(guard(lambda: self._one("SELECT min(lseq) FROM lifecycle") or 0, "read the feed"))

    def receipts(self, client: bytes) -> list[tuple[int, Receipt]]:
        """The stored receipts of a client."""
        return guard(lambda: [
            (row[0], Receipt(tuple(wire.unpack(row[1])))) for row in self._db.execute(
                "SELECT number, parts FROM receipt WHERE client = ? ORDER BY number", (client,)).fetchall()
        ], "read receipts")

    def routes(self, after: str, limit: int) -> list[tuple[str, bytes, int, str]]:
        """(key, record, offset_ms, boot id) in key order, after one; damaged rows are left out."""
        rows = guard(lambda: self._db.execute(
            "SELECT r.key, r.record, b.offset_ms, b.boot_id, r.sum FROM route r JOIN boot b ON b.id = r.boot"
            " WHERE r.key > ? ORDER BY r.key LIMIT ?", (after, limit)).fetchall(), "read routes")
        return [(row[0], row[1], row[2], row[3]) for row in rows if checksum(row[1]) == row[4]]

    def route(self, key: str) -> tuple[bytes, int, str] | None:
        """(record, offset_ms, boot id) of one key."""
        row = guard(lambda: self._db.execute(
            "SELECT r.record, b.offset_ms, b.boot_id FROM route r JOIN boot b ON b.id = r.boot WHERE r.key = ?",
            (key,)).fetchone(), "read a route")
        return None if row is None else (row[0], row[1], row[2])

    # --- writing ---

    def commit(
        self, state: State, routes: dict[str, bytes | None], receipts: dict[tuple[bytes, int], Receipt],
        settled: dict[bytes, int], *, power: bool,
    ) -> None:
        """Write a whole batch in one transaction, fenced by the epoch.

        Raises:
            StoreError: ``stale_epoch`` when another incarnation owns the file now (exit the process), else
                ``store_unavailable``; nothing was written.
        """
        guard(lambda: self._commit(state, routes, receipts, settled, power), "commit", undo=self._rollback)

    def _commit(
        self, state: State, routes: dict[str, bytes | None], receipts: dict[tuple[bytes, int], Receipt],
        settled: dict[bytes, int], power: bool,
    ) -> None:
        db = self._db
        if power != self._full:
            db.execute(f"PRAGMA synchronous = {'FULL' if power else 'NORMAL'}")
            self._full = power
        db.execute("BEGIN IMMEDIATE")
        if self._one("SELECT value FROM meta WHERE name = 'epoch'") != self.epoch:
            raise StoreError("another incarnation owns this partition now", code="stale_epoch")
        if routes:
            self._write_routes(routes)
        if state.dirty_sessions:
            self._write_sessions([state.sessions[s] for s in state.dirty_sessions])
        if state.dirty_runs:
            db.executemany(_PUT_RUN, [_run_row(state, state.runs[r]) for r in state.dirty_runs])
        if state.progress:
            db.executemany("INSERT OR REPLACE INTO progress VALUES (?, ?, ?)",
                           [(run, attempt, batch) for run, (attempt, batch) in state.progress.items()])
        if state.events:
            db.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [_event_row(e) for e in state.events])
        if state.lifecycle:
            db.executemany("INSERT INTO lifecycle VALUES (?, ?, ?)", state.lifecycle)
        if receipts:
            seen = int(time.time())
            db.executemany("INSERT OR REPLACE INTO receipt VALUES (?, ?, ?, ?)",
                           [(c, n, seen, wire.pack(list(r.parts))) for (c, n), r in receipts.items()])
        if settled:
            db.executemany("DELETE FROM receipt WHERE client = ? AND number < ?", list(settled.items()))
        db.execute("COMMIT")

    def _write_routes(self, routes: dict[str, bytes | None]) -> None:
        boot = self.boot
        puts = [
            (key, route_slot(key), boot, record, checksum(record))
            for key, record in routes.items() if record is not None
        ]
        if puts:
            self._db.executemany("INSERT OR REPLACE INTO route VALUES (?, ?, ?, ?, ?)", puts)
        if len(puts) != len(routes):
            self._db.executemany("DELETE FROM route WHERE key = ?",
                                 [(key,) for key, record in routes.items() if record is None])

    def _write_sessions(self, states: list[SessionState]) -> None:
        rows = []
        for s in states:
            record = sessions.encode(s)
            rows.append((s.n, s.id, session_slot(s.id), sessions.STATUS_CODE[s.status], s.agent_id, int(s.live),
                         record, checksum(record)))
        self._db.executemany("INSERT OR REPLACE INTO session VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def _on_wal(self, db: Any, name: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _rollback(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def probe(self) -> None:
        """Try a small write; raises while the disk refuses."""

        def write() -> None:
            with self._db:
                self._set_meta(probe=int(time.time()))

        guard(write, "probe")

    # --- housekeeping ---

    def sweep(self, *, silent_before: int, lifecycle_below: int) -> None:
        """Delete receipts of silent clients and old lifecycle messages."""

        def delete() -> None:
            with self._db:
                self._db.execute("DELETE FROM receipt WHERE seen < ?", (silent_before,))
                if lifecycle_below > 0:
                    self._db.execute("DELETE FROM lifecycle WHERE lseq < ? AND lseq < (SELECT max(lseq) FROM lifecycle)",
                                     (lifecycle_below,))

        guard(delete, "sweep")

    def save_counters(self, state: State, node_boot: int) -> None:
        """Keep the counters beside the rows, so that deleting the newest row never turns them back."""

        def write() -> None:
            with self._db:
                self._set_meta(pos=state.pos, lseq=state.lseq, node_boot=node_boot)

        guard(write, "save the counters")

    def wal_bytes_estimate(self) -> int:
        """Bytes that commits put into the write-ahead log since the last checkpoint, without a system call."""
        return self._wal_pages * PAGE_BYTES

    def checkpoint(self, *, truncate: bool = False) -> None:
        """Copy the WAL into the file. Never waits for anybody."""
        mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if truncate else apsw.SQLITE_CHECKPOINT_PASSIVE
        guard(lambda: self._db.wal_checkpoint(mode=mode), "checkpoint")
        self._wal_pages = 0

    def backup_to(self, target: Path, pages: int) -> Iterator[bool]:
        """Copy the file while it is written; each step copies some pages, the last one yields True."""
        other = guard(lambda: apsw.Connection(str(target)), "open the backup's target")
        try:
            with other.backup("main", self._db, "main") as copy:
                while not copy.done:
                    guard(lambda: copy.step(pages), "back up")
                    yield copy.done
        finally:
            other.close()

    def close(self) -> None:
        """Checkpoint and release the file."""
        try:
            self.checkpoint(truncate=True)
        except StoreError:
            pass  # the WAL is replayed at the next start
        self._db.close()


_PUT_RUN = "INSERT OR REPLACE INTO run VALUES (?, ?, ?, ?, ?, ?)"


def _run_row(state: State, run: RunState) -> tuple[Any, ...]:
    record = runs.encode(run)
    return (run.n, run.id, state.session(run.session_id).n, runs.STATUS_CODE[run.status], record,
            checksum(record))


def _event_row(event: EventRow) -> tuple[Any, ...]:
    return (event.pos, event.session, event.seq, event.type, event.run, event.ts, event.fragment,
            checksum(event.fragment))


def _replace_seq(state: SessionState, seq: int) -> SessionState:
    return msgspec.structs.replace(state, seq=seq)


def _replace_batch(state: RunState, batch: int) -> RunState:
    return msgspec.structs.replace(state, batch=batch)


def checksum(data: bytes) -> int:
    """What a row keeps of its blob, so that a flipped byte is found: 63 bits, SQLite's integers are signed."""
    return xxh3_64_intdigest(data) >> 1


def _checked(row: Any, what: str) -> bytes:
    record: bytes = row[0]
    if checksum(record) != row[1]:
        raise StoreError(f"{what} is damaged on the disk (checksum)", code="storage_read_failed")
    return record


def _open(path: Path) -> apsw.Connection:
    db = apsw.Connection(str(path))
    db.set_busy_timeout(LOCK_WAIT_MS)
    for pragma in (
        "locking_mode = EXCLUSIVE", "journal_mode = WAL", "wal_autocheckpoint = 0", "synchronous = FULL",
        "temp_store = MEMORY", "cache_size = -65536", "journal_size_limit = 67108864",
    ):
        db.execute(f"PRAGMA {pragma}").fetchall()
    return db


def guard(work: Any, what: str, undo: Any = None) -> Any:
    """Run database work; its exceptions become StoreError, once, here."""
    try:
        return work()
    except StoreError:
        if undo is not None:
            undo()
        raise
    except (apsw.Error, OSError) as exc:
        if undo is not None:
            undo()
        code = "storage_read_failed" if isinstance(exc, apsw.CorruptError | apsw.NotADBError) else "store_unavailable"
        raise StoreError(f"cannot {what}: {exc}", code=code, details={"reason": type(exc).__name__}) from exc


__all__ = ["LOCK_WAIT_MS", "WAL_BYTES_MAX", "Store", "StoredEvent", "checksum", "guard"]
