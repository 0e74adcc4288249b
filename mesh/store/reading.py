"""What is read from a partition's file: committed rows only, each checked against its checksum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import apsw
import msgspec

from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core import wire
from mesh.core.announced import unpacked
from mesh.core.receipts import Receipt
from mesh.core.run import RunState
from mesh.core.session import SessionState
from mesh.core.slots import run_key
from mesh.errors import StoreError
from mesh.store.file import DAMAGED, checksum, guard
from mesh.store.schema import SPENT_AT

T = TypeVar("T")
#: Different findings that are remembered.
DAMAGE_MAX = 100
#: Rows that one page of a list looks at.
LIST_ROWS = 4_000
#: Bytes of a page of runs that are only summed up.
_PAGE_BYTES = 8 * 1024 * 1024
#: Events of a session (the first argument) by its log; what an entry points to must be of that session.
OF_SESSION = "FROM log l CROSS JOIN event e ON e.pos = l.pos AND e.session = l.session WHERE l.session = ?"
_EVENT_COLUMNS = "e.pos, e.session, e.seq, e.type, e.run, e.ts, e.fragment, e.sum"


class StoredEvent(NamedTuple):
    """A row of the log."""

    pos: int
    seq: int
    type: int
    fragment: bytes
    sum: int = 0  #: as stored; checked before anybody sees the row


class StoredRows(ABC):
    """The reading half of a store.

    Every method raises ``StoreError`` when the disk refuses or a row is damaged.
    """

    def __init__(self, path: Path, db: apsw.Connection) -> None:
        self.path = path
        self._db = db
        self.boot = 0  #: the row of the present boot; 0 before ``acquire``
        self.damaged = 0  #: rows that recovery had to leave out; reading one by its id says why
        self._damage: dict[str, None] = {}

    @abstractmethod
    def settle(self, session: int) -> None:
        """Make the table ``log`` complete for a session (a row number); before it is read by that."""

    @property
    def damage(self) -> str | None:
        """What was found damaged since the start, in one sentence; None when nothing was."""
        if not self._damage:
            return None
        count = f"{len(self._damage)} times" if len(self._damage) > 1 else "once"
        return f"{self.path.name} is damaged, found {count}: {next(iter(self._damage))}"

    def note_damage(self, what: str) -> None:
        """Remember it for the status."""
        if len(self._damage) < DAMAGE_MAX:
            self._damage[what] = None

    def guarded(self, work: Callable[[], T], what: str, undo: Callable[[], None] | None = None) -> T:
        """Run database work; what it raises becomes ``StoreError``, and damage is remembered."""
        try:
            return guard(work, what, undo)
        except StoreError as error:
            if error.code == DAMAGED:
                self.note_damage(error.message)
            raise

    def meta(self, name: str) -> Any:
        """A value of the meta table, None when absent."""
        return self._one("SELECT value FROM meta WHERE name = ?", name)

    def _one(self, sql: str, *args: Any) -> Any:
        row = self._db.execute(sql, args).fetchone()
        return row[0] if row is not None else None

    def _all(self, sql: str, *args: Any) -> list[Any]:
        return self._db.execute(sql, args).fetchall()

    def counters(self) -> dict[str, int]:
        """pos, lseq and the next row numbers, as the last commit left them."""
        return self.guarded(lambda: {
            "pos": max(self.meta("pos") or 0, self._one("SELECT max(pos) FROM event") or 0),
            "lseq": max(self.meta("lseq") or 0, self._one("SELECT max(lseq) FROM lifecycle") or 0),
            "next_session": self._next("session"),
            "next_run": self._next("run"),
            "sessions": self._one("SELECT count(*) FROM session")
            - self._one("SELECT count(*) FROM session WHERE deleted <= 0"),  # two indexes, no row is read
        }, "read the counters")

    def _next(self, table: str) -> int:
        highest: int = self._one(f"SELECT max(n) FROM {table}") or 0
        return max(self.meta(f"next_{table}") or 1, highest + 1)

    def session(self, session_id: str) -> SessionState | None:
        """The stored session with the highest seq of its log."""

        def read() -> SessionState | None:
            row = self._db.execute("SELECT record, sum FROM session WHERE id = ?", (session_id,)).fetchone()
            if row is None:
                return None
            state = sessions.decode(checked_record(row, f"session {session_id}"))
            return self._with_seq(state)

        return self.guarded(read, "read a session")

    def _with_seq(self, state: SessionState) -> SessionState:
        self.settle(state.n)
        seq = self._one("SELECT max(seq) FROM log WHERE session = ?", state.n) or 0
        return _replace_seq(state, max(seq, state.seq))  # the end of the log may have been pruned

    def has_session(self, session_id: str) -> bool:
        """Whether a session with this id is stored, damaged or not."""
        sql = "SELECT 1 FROM session WHERE id = ?"
        return self.guarded(lambda: self._one(sql, session_id), "look for a session") is not None

    def has_run(self, run_id: str) -> bool:
        """Whether a run with this id is stored, damaged or not."""
        sql = "SELECT 1 FROM run WHERE id = ?"
        return self.guarded(lambda: self._one(sql, run_key(run_id)), "look for a run") is not None

    def newest_session(self, scope: str) -> str:
        """The greatest stored session id that begins so, "" when there is none."""
        return self._newest("session", scope)

    def newest_run(self, scope: str) -> str:
        """The greatest stored key of a run that begins so, "" when there is none."""
        return self._newest("run", scope)

    def _newest(self, table: str, scope: str) -> str:
        sql = f"SELECT max(id) FROM {table} WHERE id >= ? AND id < ?"
        end = scope + chr(0x10FFFF)
        return self.guarded(lambda: self._one(sql, scope, end), "look for the newest id") or ""

    def is_left_over(self, run_id: str) -> bool:
        """Whether a run is stored that belongs to a session that is being removed."""
        sql = "SELECT 1 FROM run r JOIN session s ON s.n = r.session WHERE r.id = ? AND s.deleted = ?"
        found = self.guarded(lambda: self._one(sql, run_key(run_id), sessions.ERASED), "look for a run")
        return found is not None

    def run(self, run_id: str) -> RunState | None:
        """The stored run; not one whose session is being removed."""

        def read() -> RunState | None:
            sql = ("SELECT r.record, r.sum, r.n FROM run r LEFT JOIN session s ON s.n = r.session"
                   " WHERE r.id = ? AND s.deleted IS NOT ?")
            row = self._db.execute(sql, (run_key(run_id), sessions.ERASED)).fetchone()
            return None if row is None else self._with_progress(row)

        return self.guarded(read, "read a run")

    def _with_progress(self, row: Any) -> RunState:
        state = runs.decode(checked_record(row, f"run row {row[2]}"))
        if state.ended_at is None and state.attempt:
            at = self._db.execute("SELECT attempt, batch FROM progress WHERE run = ?", (row[2],)).fetchone()
            if at is not None and at[0] == state.attempt:
                return _replace_batch(state, at[1])
        return state

    def event_type(self, session: int, seq: int) -> int | None:
        """The type's code of an event, None when there is none."""
        self.settle(session)
        sql = f"SELECT e.type {OF_SESSION} AND l.seq = ?"
        found: int | None = self.guarded(lambda: self._one(sql, session, seq), "read an event's type")
        return found

    def live_sessions(self) -> list[SessionState]:
        """Sessions that were live, or had a driver, at the last commit."""
        rows = self.guarded(lambda: self._db.execute(
            "SELECT record, sum FROM session WHERE live = 1 ORDER BY n").fetchall(), "read the live sessions")
        return self._sound(
            rows, lambda row: self._with_seq(sessions.decode(checked_record(row, "a session"))))

    def active_runs(self) -> list[RunState]:
        """Runs that wait or execute, oldest first."""
        rows = self.guarded(lambda: self._db.execute(
            "SELECT record, sum, n FROM run WHERE status BETWEEN 1 AND 3 ORDER BY n").fetchall(),
            "read the active runs")
        return self._sound(rows, self._with_progress)

    def _sound(self, rows: list[Any], decode: Callable[[Any], T]) -> list[T]:
        """The rows that can be read: one flipped byte must not keep the whole partition down."""
        found = []
        for row in rows:
            try:
                found.append(self.guarded(lambda row=row: decode(row), "read a row"))  # type: ignore[misc]
            except StoreError:
                self.damaged += 1
        return found

    def list_sessions(
        self, *, status: int | None, agent_id: str | None, after: int, limit: int, bytes_max: int
    ) -> tuple[list[SessionState], int | None]:
        """(sessions in order of creation, after a row number; the one to go on after, None at the end).

        Deleted ones are left out. LIST_ROWS are looked at, whatever is found among them.
        """
        given: list[tuple[str, Any]] = [("agent_id", agent_id), ("status", status)]
        given = [(name, value) for name, value in given if value is not None]
        conditions = [f"{name} = ?" for name, _ in given]
        values = [value for _, value in given]
        led = " AND ".join(["n > ?", *conditions[:1]])  # one index leads; the rest is looked at row by row

        def read() -> tuple[list[SessionState], int | None]:
            window = f"SELECT n FROM session WHERE {led} ORDER BY n LIMIT 1 OFFSET {LIST_ROWS - 1}"
            bound = self._one(window, after, *values[:1])
            where = " AND ".join(["n > ?", "n <= ?", *conditions, "deleted IS NULL"])
            sql = f"SELECT record, sum FROM session WHERE {where} ORDER BY n LIMIT ?"
            rows, more = self._page(sql, [after, bound or 1 << 62, *values], limit, bytes_max)
            found = [self._with_seq(sessions.decode(checked_record(row, "a session"))) for row in rows]
            return found, found[-1].n if more else bound

        return self.guarded(read, "list sessions")

    def list_runs(
        self, session: int, *, after: int, limit: int, bytes_max: int
    ) -> tuple[list[RunState], bool]:
        """(runs of a session in order of creation, after a row number; whether there are more)."""

        def read() -> tuple[list[RunState], bool]:
            sql = "SELECT record, sum, n FROM run WHERE session = ? AND n > ? ORDER BY n LIMIT ?"
            rows, more = self._page(sql, [session, after], limit, bytes_max)
            return [self._with_progress(row) for row in rows], more

        return self.guarded(read, "list runs")

    def runs_of(self, session: int) -> Iterator[RunState]:
        """All runs of a session."""
        after, more = 0, True
        while more:
            found, more = self.list_runs(session, after=after, limit=LIST_ROWS, bytes_max=_PAGE_BYTES)
            yield from found
            after = found[-1].n if found else after

    def spent_by_tag(self, tag: str) -> list[dict[str, float]]:
        """What the runs of a tag used: one map per slot."""
        return [{name: sum_ for name, sum_ in row.items() if name != SPENT_AT} for row in self._spent(tag)]

    def spent_at(self, tag: str) -> float:
        """When a run with this tag ended last."""
        return max((row.get(SPENT_AT, 0.0) for row in self._spent(tag)), default=0.0)

    def _spent(self, tag: str) -> list[dict[str, float]]:
        sql = "SELECT record FROM spent WHERE tag = ?"
        return [wire.unpack(row[0]) for row in self.guarded(lambda: self._all(sql, tag), "read a tag's sums")]

    def _page(self, sql: str, args: list[Any], limit: int, bytes_max: int) -> tuple[list[Any], bool]:
        """Rows whose first column is a record: at most so many, of at most so many bytes, but one."""
        found: list[Any] = []
        size = 0
        for row in self._db.execute(sql, (*args, limit + 1)):
            if len(found) == limit or size > bytes_max:
                return found, True
            size += len(row[0])
            found.append(row)
        return found, False

    def events(
        self, session: int, *, after: int = 0, before: int | None = None, run: int | None = None,
        types: Iterable[int] = (), since: float | None = None, until: float | None = None,
        limit: int = 1000, bytes_max: int = 1 << 20,
    ) -> tuple[list[StoredEvent], bool]:
        """(events after a seq that match, whether these are all)."""
        self.settle(session)
        sql = f"SELECT e.pos, e.seq, e.type, e.fragment, e.sum {OF_SESSION} AND l.seq > ?"
        args: list[Any] = [session, after]
        for clause, value in (
            ("l.seq < ?", before), ("e.run = ?", run), ("e.ts >= ?", since), ("e.ts <= ?", until)
        ):
            if value is not None:
                sql, args = f"{sql} AND {clause}", [*args, value]
        codes = list(types)
        if codes:
            sql += f" AND e.type IN ({','.join('?' * len(codes))})"
        sql += " ORDER BY l.seq LIMIT ?"
        return self.guarded(
            lambda: self._take_events(sql, (*args, *codes, limit + 1), limit, bytes_max), "read events"
        )

    def _take_events(
        self, sql: str, args: tuple[Any, ...], limit: int, bytes_max: int
    ) -> tuple[list[StoredEvent], bool]:
        found: list[Any] = []
        size, cut = 0, False
        for row in self._db.execute(sql, args):
            fragment = row[3]
            if checksum(fragment) != row[4]:
                raise self._damaged_event(row[0])
            size += len(fragment)
            if size > bytes_max and found:
                cut = True  # so that an event larger than a page is a page of its own
                break
            found.append(row)
        complete = len(found) <= limit and not cut
        return list(map(_as_event, repeat(StoredEvent), found[:limit])), complete

    def events_at(self, positions: Iterable[int]) -> list[StoredEvent]:
        """The events at these positions of the log, in their order."""
        sql = "SELECT pos, session, seq, type, run, ts, fragment, sum FROM event WHERE pos = ?"
        return self.guarded(lambda: [
            self._stored_event(row) for pos in positions for row in self._db.execute(sql, (pos,))
        ], "read events")

    def _stored_event(self, row: Any) -> StoredEvent:
        if checksum(row[6]) != row[7]:
            raise self._damaged_event(row[0])
        return StoredEvent(row[0], row[2], row[3], row[6])

    def _damaged_event(self, pos: int) -> StoreError:
        return StoreError(f"event {pos} of {self.path.name} is damaged", code="storage_read_failed")

    def ends_of_log(self, session: int) -> tuple[Any, Any]:
        """(seq, ts) of the first and of the last event that is kept, None when there is none."""
        self.settle(session)
        sql = f"SELECT e.seq, e.ts {OF_SESSION} ORDER BY l.seq {{}} LIMIT 1"
        ends = self.guarded(lambda: [
            self._db.execute(sql.format(turn), (session,)).fetchone() for turn in ("ASC", "DESC")
        ], "read the ends of a log")
        return ends[0], ends[1]

    def feed_events(self, after: int, limit: int, bytes_max: int) -> list[tuple[str, StoredEvent]]:
        """(session id, event) in order of pos, after one."""

        def read() -> list[tuple[str, StoredEvent]]:
            sql = (f"SELECT {_EVENT_COLUMNS}, s.id FROM event e JOIN session s ON s.n = e.session"
                   " WHERE e.pos > ? AND ifnull(s.deleted, 1) > 0 ORDER BY e.pos LIMIT ?")
            found: list[tuple[str, StoredEvent]] = []
            size = 0
            for row in self._db.execute(sql, (after, limit)):
                size += len(row[6])
                if size > bytes_max and found:
                    break
                found.append((row[8], self._stored_event(row)))
            return found

        return self.guarded(read, "read the feed")

    def feed_lifecycle(self, after: int, limit: int) -> list[tuple[str, bytes]]:
        """(topic, payload) in order of lseq, after one."""

        def read() -> list[tuple[str, bytes]]:
            sql = "SELECT lseq, topic, payload FROM lifecycle WHERE lseq > ? ORDER BY lseq LIMIT ?"
            found: list[tuple[str, bytes]] = []
            for row in self._db.execute(sql, (after, limit)):
                found += [(topic, payload) for lseq, topic, payload in _messages(*row) if lseq > after]
                if len(found) >= limit:
                    break
            return found[:limit]

        return self.guarded(read, "read the feed")

    def lowest_lifecycle(self) -> int:
        """The lowest lseq that is kept (0: none)."""
        sql = "SELECT lseq, topic, payload FROM lifecycle ORDER BY lseq LIMIT 1"
        return self.guarded(
            lambda: next((_messages(*row)[0][0] for row in self._db.execute(sql)), 0), "read the feed")

    def receipts(self, client: bytes) -> list[tuple[int, Receipt]]:
        """The stored receipts of a client."""
        sql = "SELECT number, parts, below FROM receipt WHERE client = ? ORDER BY number"
        return self.guarded(lambda: [
            (row[0], Receipt(tuple(wire.unpack(row[1])), row[2])) for row in self._all(sql, client)
        ], "read receipts")


#: What ``StoredEvent._make`` does, without its frame: half of its time, and a log is read by the thousand.
_as_event: Callable[[type[StoredEvent], Any], StoredEvent] = tuple.__new__


def _replace_seq(state: SessionState, seq: int) -> SessionState:
    return msgspec.structs.replace(state, seq=seq)


def _replace_batch(state: RunState, batch: int) -> RunState:
    return msgspec.structs.replace(state, batch=batch)


def checked_record(row: Any, what: str) -> bytes:
    """The blob of (blob, its checksum, ...).

    Raises:
        StoreError: ``storage_read_failed``.
    """
    record: bytes = row[0]
    if checksum(record) != row[1]:
        raise StoreError(f"{what} is damaged on the disk (checksum)", code="storage_read_failed")
    return record


def _messages(lseq: int, topic: str, payload: bytes) -> list[tuple[int, str, bytes]]:
    """(lseq, topic, payload) of the lifecycle messages of a row: one with a topic is of an older mesh."""
    return [(lseq, topic, payload)] if topic else unpacked(payload)


__all__ = ["OF_SESSION", "StoredEvent", "StoredRows", "checked_record"]
