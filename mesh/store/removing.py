"""Removing rows in small steps: sessions that were deleted hard, and events that retention prunes.

Each step is one small transaction that a loss of power may forget: it is then done again. What it leaves is
consistent: a session that loses events says so in its own row, in the same transaction, and the counters are
kept, so that no position and no row number is ever used twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from mesh.core import session as sessions
from mesh.core.session import ERASED, IMPORTING, SessionState
from mesh.core.state import State
from mesh.store.reading import OF_SESSION, checked_record
from mesh.store.rows import PUT_SESSION, session_row
from mesh.store.sqlite import Store

#: Events or rows that a window looks at, whether they are wanted or not.
WINDOW_ROWS = 2_000


class Removing:
    """Of one partition's file; between two batches, so that memory is what is stored."""

    def __init__(self, store: Store, state: State) -> None:
        self.store = store
        self.state = state
        self._db = store.connection

    # --- hard-deleted sessions ---

    def erased(self) -> int | None:
        """The row of a session whose rows are to be removed, or None."""
        row = self._read("SELECT n FROM session WHERE deleted = ? ORDER BY n LIMIT 1", ERASED)
        return None if not row else int(row[0][0])

    def purge(self, session: int, limit: int) -> int:
        """Remove some runs, then some events, and when none are left the session; how many events went."""
        removed = 0
        self.store.settle(session)

        def work() -> None:
            nonlocal removed
            self._keep_counters()
            db = self._db
            runs = db.execute("SELECT n FROM run WHERE session = ? LIMIT ?", (session, limit)).fetchall()
            if runs:
                db.executemany("DELETE FROM progress WHERE run = ?", runs)
                db.executemany("DELETE FROM run WHERE n = ?", runs)
                return
            some = "SELECT pos, session, seq FROM log WHERE session = ? ORDER BY seq LIMIT ?"
            events = db.execute(some, (session, limit)).fetchall()
            self._delete(events)
            removed = len(events)
            if removed < limit:
                db.execute("DELETE FROM session WHERE n = ? AND deleted = ?", (session, ERASED))

        self.store.small_write(work, "remove a deleted session")
        return removed

    def _keep_counters(self) -> None:
        state = self.state
        self.store.set_meta(pos=state.pos, next_session=state.next_session, next_run=state.next_run)

    def _delete(self, events: list[Any]) -> None:
        """Delete (pos, session, seq) from both tables."""
        self._db.executemany("DELETE FROM event WHERE pos = ? AND session = ? AND seq = ?", events)
        self._db.executemany("DELETE FROM main.log WHERE pos = ? AND session = ? AND seq = ?", events)

    # --- candidates ---

    def old_sessions(
        self, column: str, after: tuple[float, int], before: float, limit: int
    ) -> list[tuple[float, SessionState]]:
        """Sessions whose ``updated`` or ``created`` lies before a time, oldest first, behind a key."""
        rows = self._read(
            f"SELECT {column}, record, sum FROM session INDEXED BY session_{column}"
            f" WHERE ({column}, n) > (?, ?) AND {column} < ? ORDER BY {column}, n LIMIT ?",
            *after, before, limit)
        return [(row[0], sessions.decode(checked_record(row[1:], "a session"))) for row in rows]

    def deleted_sessions(self, before: float, limit: int) -> list[SessionState]:
        """Sessions that were deleted softly before a time."""
        rows = self._read(
            "SELECT record, sum FROM session INDEXED BY session_deleted"
            " WHERE deleted > 0 AND deleted < ? ORDER BY deleted LIMIT ?", before, limit)
        return [sessions.decode(checked_record(row, "a session")) for row in rows]

    def left_imports(self, before: float, limit: int) -> list[SessionState]:
        """Imports that were begun before a time and never finished."""
        sql = "SELECT record, sum FROM session INDEXED BY session_deleted WHERE deleted = ? LIMIT ?"
        rows = self._read(sql, IMPORTING, limit)
        found = [sessions.decode(checked_record(row, "a session")) for row in rows]
        return [session for session in found if session.updated_at < before]

    def sessions_behind(self, n: int, limit: int) -> list[SessionState]:
        """Sessions in the order of their rows, with their highest seq."""
        rows = self._read(
            "SELECT id, n FROM session WHERE n > ? AND ifnull(deleted, 1) > 0 ORDER BY n LIMIT ?", n, limit)
        found = [self.state.sessions.get(row[0]) or self.store.session(row[0]) for row in rows]
        return [session for session in found if session is not None]

    # --- events ---

    def count_events(self, behind: int) -> tuple[int, int | None]:
        """(events of a window of the log, its end, None at the end of all)."""
        end = self._end("SELECT pos FROM event WHERE pos > ? ORDER BY pos", behind)
        rows = self._read("SELECT count(*) FROM event WHERE pos > ? AND pos <= ?", behind, end or 1 << 62)
        return int(rows[0][0]), end

    def events_of(
        self, session: int, behind: int, types: Iterable[int], *, but: bool
    ) -> tuple[list[Any], int | None]:
        """((pos, session, seq) of those in a window of a log that have one of these types, or none of them;
        the window's end)."""
        self.store.settle(session)
        end = self._end("SELECT seq FROM log WHERE session = ? AND seq > ? ORDER BY seq", session, behind)
        codes, sql = _types(types, but=but)
        rows = self._read(
            f"SELECT e.pos, e.session, e.seq {OF_SESSION} AND l.seq > ? AND l.seq <= ? AND {sql}"
            " ORDER BY l.seq",
            session, behind, end or 1 << 62, *codes)
        return rows, end

    def events_behind(self, behind: int, types: Iterable[int], *, but: bool) -> tuple[list[Any], int | None]:
        """The same of the whole log, by pos."""
        end = self._end("SELECT pos FROM event WHERE pos > ? ORDER BY pos", behind)
        codes, sql = _types(types, but=but)
        rows = self._read(
            f"SELECT pos, session, seq FROM event WHERE pos > ? AND pos <= ? AND {sql} ORDER BY pos",
            behind, end or 1 << 62, *codes)
        return rows, end

    def _end(self, sql: str, *args: Any) -> int | None:
        rows = self._read(f"{sql} LIMIT 1 OFFSET {WINDOW_ROWS - 1}", *args)
        return int(rows[0][0]) if rows else None

    def session_of(self, n: int) -> SessionState | None:
        """The session of a row, with its highest seq; None when it is not there, or being removed."""
        rows = self._read("SELECT id FROM session WHERE n = ? AND ifnull(deleted, 1) > 0", n)
        if not rows:
            return None
        return self.state.sessions.get(rows[0][0]) or self.store.session(rows[0][0])

    def prune(self, session: SessionState, events: list[Any]) -> None:
        """Remove events of one session; its row remembers how many, and up to where."""
        left = msgspec.structs.replace(
            session, pruned=session.pruned + len(events),
            pruned_to=max(session.pruned_to, *(seq for _, _, seq in events)),
        )

        self.store.settle(session.n)

        def work() -> None:
            self._keep_counters()
            self._delete(events)
            self._db.execute(PUT_SESSION, session_row(left))

        self.store.small_write(work, "prune events")
        if session.id in self.state.sessions:
            self.state.sessions[session.id] = left

    def trim_audit(self, kept: int) -> None:
        """Remove the oldest entries of the audit log, some thousand at a time."""
        old = "SELECT id FROM audit WHERE id <= (SELECT max(id) FROM audit) - ? ORDER BY id LIMIT ?"
        sql = f"DELETE FROM audit WHERE id IN ({old})"
        self.store.small_write(lambda: self._db.execute(sql, (kept, WINDOW_ROWS)), "trim the audit log")

    def old_tags(self, behind: str, before: float, limit: int) -> tuple[list[str], str | None]:
        """The tags with which no run ended here since then, of some tags behind one: (those, and where to go
        on, None at the end)."""
        rows = self._read("SELECT DISTINCT tag FROM spent WHERE tag > ? ORDER BY tag LIMIT ?", behind, limit)
        old = [tag for (tag,) in rows if self.is_old(tag, before)]
        return old, rows[-1][0] if len(rows) == limit else None

    def is_old(self, tag: str, before: float) -> bool:
        """Whether no run with the tag ended here since then."""
        return self.store.spent_at(tag) < before

    def forget_tags(self, tags: list[str]) -> None:
        """Forget what these tags used."""
        sql = "DELETE FROM spent WHERE tag = ?"
        self.store.small_write(
            lambda: self._db.executemany(sql, [(tag,) for tag in tags]), "forget what tags used")

    def _read(self, sql: str, *args: Any) -> list[Any]:
        return self.store.guarded(lambda: self._db.execute(sql, args).fetchall(), "look for what may go")


def _types(types: Iterable[int], *, but: bool) -> tuple[list[int], str]:
    codes = sorted(types)
    marks = ", ".join("?" * len(codes))
    return codes, f"type {'NOT IN' if but else 'IN'} ({marks})"


__all__ = ["WINDOW_ROWS", "Removing"]
