"""One partition's SQLite file: one connection, one writer, one transaction per batch.

Facts this obeys (sqlite.org/wal.html, pragma.html):

- ``locking_mode=EXCLUSIVE``: no other process can open the file, and WAL needs no shared memory. The
  WAL-reset corruption bug (3.7.0 to 3.51.2) needs two connections; apsw ships a fixed SQLite besides.
- ``synchronous=FULL`` syncs the WAL at each commit (``power``), NORMAL only at checkpoints (``process``: a
  commit survives the death of the process, not of the machine). It is switched between transactions.
- Automatic checkpoints are off: they would stop a batch at a random moment. PASSIVE ones when idle, or when
  the WAL is over WAL_BYTES_MAX.
- Each page has a checksum (``store/file.py``), and a row's ``sum`` is an xxh3 checksum of its blob: a
  flipped byte on the disk is an error, not an answer.

The epoch is checked inside the write transaction, so a zombie writer cannot write.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw

from mesh.core import wire
from mesh.core.announced import packed
from mesh.core.receipts import Receipt
from mesh.core.session import ERASED, SessionState
from mesh.core.spent import added
from mesh.core.state import State
from mesh.errors import StoreError
from mesh.store import migrate, wal
from mesh.store.by_session import BySession, has_old_index
from mesh.store.file import DAMAGED, LOCK_WAIT_MS, checksum, guard, make_private, open_file, telling
from mesh.store.reading import StoredEvent
from mesh.store.routes import StoredRoutes
from mesh.store.rows import PUT_RUN, PUT_SESSION, run_row, session_row
from mesh.store.schema import META, SCHEMA_VERSION, SPENT_AT, TABLES

#: A checkpoint holds up the loop while the disk takes it: at 32 MiB the p99 of an open loop at a quarter
#: of the maximum was 50 ms, at 4 MiB 18, at 1 MiB 12; the rates are the same.
WAL_BYTES_MAX = 2 * 1024 * 1024
PAGE_BYTES = 4096


class Store(StoredRoutes):
    """The file of one partition. All methods belong to the partition's one thread.

    Every method raises ``StoreError`` when the disk refuses or a row is damaged; a refused ``commit`` wrote
    nothing.
    """

    def __init__(self, path: Path, tell: Callable[[str], object] = str) -> None:
        """``tell`` hears of what takes long here, each second."""
        log = guard(lambda: wal.look(path), f"read the log of {path.name}")
        super().__init__(path, guard(lambda: open_file(path, tell), f"open {path.name}"))
        self.leased = False  #: whether ``acquire`` succeeded; nothing is written before
        self.sealed = False  #: a write met damage: readers have nothing filled in any more
        self._check_log(log)
        self._full = True
        self.epoch = 0
        self.by_session = BySession(self._db, self.note_damage)
        self.unfilled: list[str] = []  #: tables of an older file whose new columns have no values yet
        #: Told of the former schema and the seconds so far, each second, while an older file becomes ours.
        self.on_migration: Callable[[int, float], None] = lambda _version, _seconds: None
        self._served_from_s = 0.0
        self._wal_pages = 0
        self._db.set_wal_hook(self._on_wal)

    def _check_log(self, log: wal.Log | None) -> None:
        """Nothing of the log is overwritten yet: keep it when SQLite could not read all of it."""
        if log is None:
            return
        read = guard(lambda: self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)[0], "read the log")
        lost = wal.lost(log, read)
        if not lost:
            return
        file = self.path.with_name(f"{self.path.name}-wal")
        kept = file.with_name(f"{file.name}.damaged")
        with suppress(OSError, StoreError):
            shutil.copyfile(file, kept)
            self.checkpoint(truncate=True)  # a new log: what is left of this one is not found again
        count = "its commits are" if lost < 0 else f"{lost} commits behind a damaged place are"
        self.note_damage(f"{count} lost from {file.name}, which is kept as {kept.name}")

    @property
    def connection(self) -> apsw.Connection:
        """For ``resize``, which moves rows between two files."""
        return self._db

    # --- opening ---

    def acquire(self, *, boot_id: str, offset_ms: int) -> int:
        """Take the lease: raise the epoch, in a transaction. Returns the new epoch, or the borrowed one."""

        def take() -> int:
            with self._db:
                self._db.execute(META)
                version = self.meta("schema")
                if version is not None and version > SCHEMA_VERSION:
                    raise StoreError(
                        f"{self.path.name} has schema {version}, we know {SCHEMA_VERSION}: update mesh",
                        code="migration_required",
                    )
                with telling(self._db, lambda s: self.on_migration(version or 0, s)):
                    if version is not None and version < SCHEMA_VERSION:
                        migrate.step(self._db, version)
                    self._db.execute(TABLES)
                self.unfilled = migrate.unfilled(self._db)
                self.epoch = max((self.meta("epoch") or 0) + 1, self.epoch)
                self.set_meta(schema=SCHEMA_VERSION, epoch=self.epoch)
                self._db.execute(
                    "INSERT OR IGNORE INTO boot(boot_id, offset_ms) VALUES (?, ?)", (boot_id, offset_ms))
                self.boot = self._one("SELECT id FROM boot WHERE boot_id = ?", boot_id)
                # A file that has none yet has receipts with wall times: go on from there.
                self._served_from_s = (self.meta("served") or time.time()) - time.monotonic()
            self.leased = True
            self.by_session.open()
            return self.epoch

        epoch = self.guarded(take, "acquire the lease")
        if self.by_session.copying:
            self.guarded(self.by_session.view, "read an older file")
        else:
            with suppress(StoreError):  # then there is the view
                self.fill_log()
        return epoch

    def borrow(self, starts: int) -> int:
        """An epoch for serving reads while the lease cannot be written: above all that were stored.

        ``starts`` grows with each start, so that no two incarnations serve under one epoch. The lock on the
        file keeps others out meanwhile.
        """
        self.epoch = int(self.guarded(lambda: self.meta("epoch"), "read the epoch")) + starts
        self.guarded(self.by_session.open, "look at the logs of sessions")
        self.guarded(self.by_session.view, "look at the logs of sessions")
        return self.epoch

    def set_meta(self, **values: Any) -> None:
        """Put values into the meta table, inside a transaction."""
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(values.items()))

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
        self.guarded(
            lambda: self._commit(state, routes, receipts, settled, power), "commit", undo=self._rollback
        )

    def _commit(
        self, state: State, routes: dict[str, bytes | None], receipts: dict[tuple[bytes, int], Receipt],
        settled: dict[bytes, int], power: bool,
    ) -> None:
        db = self._db
        self._synchronize(power)
        self._begin()
        if routes:
            self.route_log.append(db, self.boot, routes)
        if state.dirty_sessions:
            self._write_sessions([state.sessions[s] for s in state.dirty_sessions])
        if state.dirty_runs:
            runs = [state.runs[run_id] for run_id in state.dirty_runs]
            db.executemany(PUT_RUN, [run_row(run, state.session(run.session_id).n) for run in runs])
        if state.spent:
            self._add_spent(state.spent, state.now)
        if state.progress:
            db.executemany("INSERT OR REPLACE INTO progress VALUES (?, ?, ?)",
                           [(run.n, run.attempt, run.batch) for run in state.progress])
        if state.events:
            db.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [
                (e.pos, e.session, e.seq, e.type, e.run, e.ts, e.fragment, checksum(e.fragment))
                for e in state.events
            ])
            news = self.by_session.take(state.events)
        if state.lifecycle:
            db.executemany("INSERT INTO lifecycle VALUES (?, '', ?)", packed(state.lifecycle))
        if state.audit:
            db.executemany(
                "INSERT INTO audit(ts, client, op, target, outcome) VALUES (?, ?, ?, ?, ?)", state.audit)
        if receipts:
            seen = self.served_s()
            db.executemany("INSERT OR REPLACE INTO receipt VALUES (?, ?, ?, ?, ?)", [
                (c, n, seen, r.done_below, wire.pack(r.parts)) for (c, n), r in receipts.items()])
        if settled:
            db.executemany("DELETE FROM receipt WHERE client = ? AND number < ?", list(settled.items()))
        self._end()
        if routes:
            self.route_log.appended(routes)
        if state.events:
            self.by_session.took(news)

    def _synchronize(self, power: bool) -> None:
        """Whether the next transactions survive a loss of power."""
        if power != self._full:
            self._db.execute(f"PRAGMA synchronous = {'FULL' if power else 'NORMAL'}")
            self._full = power

    def _begin(self) -> None:
        """Begin a transaction of the present owner."""
        if not self.leased:
            raise StoreError("the lease could not be taken yet")
        self._db.execute("BEGIN IMMEDIATE")
        if self._one("SELECT value FROM meta WHERE name = 'epoch'") != self.epoch:
            raise StoreError("another incarnation owns this partition now", code="stale_epoch")

    def _end(self) -> None:
        self._db.execute("COMMIT")

    def small_write(self, write: Callable[[], object], what: str) -> None:
        """Run a small write as the present owner. A loss of power may forget it."""

        def work() -> None:
            self._synchronize(False)
            self._begin()
            write()
            self._end()

        self.guarded(work, what, undo=self._rollback)

    def _write_sessions(self, states: list[SessionState]) -> None:
        erased = [(s.id, s.n) for s in states if s.deleted_at == ERASED]
        if erased:  # the id is free from now on
            self._db.executemany("UPDATE session SET id = ? WHERE n = ?", erased)
        self._db.executemany(PUT_SESSION, [session_row(state) for state in states])

    def _add_spent(self, more: dict[tuple[int, str], dict[str, float]], now: float) -> None:
        for (slot, tag), sums in more.items():
            record = self._one("SELECT record FROM spent WHERE tag = ? AND slot = ?", tag, slot)
            total = {**added(wire.unpack(record) if record else {}, sums), SPENT_AT: now}
            self._db.execute("INSERT OR REPLACE INTO spent VALUES (?, ?, ?)", (tag, slot, wire.pack(total)))

    def _on_wal(self, _db: Any, _name: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _rollback(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def probe(self) -> None:
        """Try a small write, and the checkpoint that is due; raises while the disk refuses."""
        self.small_write(lambda: self.set_meta(probe=int(time.time())), "probe")
        if self.wal_bytes_estimate() > WAL_BYTES_MAX:
            self.checkpoint()

    # --- housekeeping ---

    def sweep(self, *, silent_before: int, lifecycle_below: int) -> None:
        """Delete old lifecycle messages, and the receipts of clients silent since then (see ``served_s``)."""

        def delete() -> None:
            self._db.execute("DELETE FROM receipt WHERE seen < ?", (silent_before,))
            if lifecycle_below > 0:
                self._db.execute(
                    "DELETE FROM lifecycle WHERE lseq < ? AND lseq < (SELECT max(lseq) FROM lifecycle)",
                    (lifecycle_below,))

        self.small_write(delete, "sweep")

    def served_s(self) -> int:
        """The age of this file in seconds of service, all its incarnations together: a clock that nobody
        sets, and that stands still while clients have nobody to speak to."""
        return int(self._served_from_s + time.monotonic())

    def fill(self) -> None:
        """Fill the new columns of some rows of an older file; ``unfilled`` is empty at the end."""
        done: list[bool] = []
        table = self.unfilled[0]
        self.small_write(lambda: done.append(migrate.fill_step(self._db, table)), "fill new columns")
        if done[0]:
            self.unfilled.remove(table)

    def settle(self, session: int) -> None:
        """Fill in the table ``log`` when this session has events that are not in there."""
        if session in self.by_session.behind:
            with suppress(StoreError):  # whoever writes is told; the view shows what is behind
                self.fill_log()

    def fill_log(self) -> None:
        """Bring the table ``log`` up to date, unless an older file's index is still being copied; in a file
        that nobody writes any more the view shows what is behind."""
        log = self.by_session
        if log.copying or log.complete:
            return
        if self.sealed:
            self.guarded(log.view, "read the logs of sessions")
            return
        try:
            self.small_write(log.fill, "fill in the logs of sessions")
            self.guarded(log.filled, "read the logs of sessions")
        except StoreError:
            self.guarded(log.view, "read the logs of sessions")
            raise

    def copy_log(self) -> None:
        """Copy some entries of an older file's index; with the last ones the table is up to date."""
        log = self.by_session
        self.small_write(log.copy, "copy the logs of sessions")
        log.copying = self.guarded(lambda: has_old_index(self._db), "copy the logs of sessions")
        self.fill_log()

    def fold_routes(self) -> None:
        """Take a step of bringing logged routes into their table. One that meets a damaged page of the table
        is the last: the log grows instead, so that routes can still be written.

        Raises StoreError ``storage_read_failed`` when such a log is full.
        """
        log = self.route_log
        if log.damage:
            raise StoreError(f"the log of routes is full: {log.damage[0]}", code=DAMAGED)
        try:
            self.small_write(lambda: log.fold(self._db, self.boot), "fold the log of routes")
        except StoreError as error:
            if error.code != DAMAGED:
                raise
            log.damage.append(error.message)
        else:
            log.folded()

    def fold_all_routes(self) -> None:
        """Bring all of them there; a log in which something is damaged stays as it is."""
        while self.route_log.finish():
            self.fold_routes()

    def save_counters(self, state: State, node_boot: int) -> None:
        """Keep the counters beside the rows, so that deleting the newest row never turns them back."""

        counters = {"pos": state.pos, "lseq": state.lseq, "node_boot": node_boot, "served": self.served_s()}
        self.small_write(lambda: self.set_meta(**counters), "save the counters")

    def wal_bytes_estimate(self) -> int:
        """Bytes that commits put into the WAL since the last checkpoint, without a system call."""
        return self._wal_pages * PAGE_BYTES

    def checkpoint(self, *, truncate: bool = False) -> None:
        """Copy the WAL into the file. Never waits for anybody."""
        if self.leased:
            with suppress(StoreError):  # the view shows what is behind
                self.fill_log()
        mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if truncate else apsw.SQLITE_CHECKPOINT_PASSIVE
        self.guarded(lambda: self._db.wal_checkpoint(mode=mode), "checkpoint")
        self._wal_pages = 0

    def backup_to(self, target: Path, pages: int) -> Generator[bool, None, None]:
        """Copy the file while it is written; each step copies some pages, the last one yields True.

        The copy has another name until it is whole.
        """
        draft = target.with_name(target.name + ".part")
        draft.unlink(missing_ok=True)
        make_private(draft)
        what = f"back up to {target}"
        other = guard(lambda: apsw.Connection(str(draft)), what)
        try:
            copy = self.guarded(lambda: other.backup("main", self._db, "main"), what)
            with copy:
                while not copy.done:
                    self.guarded(lambda: copy.step(pages), what)
                    if not copy.done:
                        yield False
            other.close()
            draft.rename(target)
            yield True
        finally:
            other.close()
            draft.unlink(missing_ok=True)

    def close(self) -> None:
        """Checkpoint and release the file."""
        try:
            self.checkpoint(truncate=True)
        except StoreError:
            pass  # the WAL is replayed at the next start
        self._db.close()


__all__ = ["LOCK_WAIT_MS", "WAL_BYTES_MAX", "Store", "StoredEvent"]
