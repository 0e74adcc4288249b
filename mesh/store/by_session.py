"""Each session's log in its order: the table ``log``, (session, seq) -> pos, filled from ``event`` in bulk.

An index is kept at each commit, and when many sessions stream, every event of a commit stands on another page
of it: of 500 sessions' 10 us of CPU and 2.1 kB of write-ahead log for each event, where the filling of some
thousand at once, sorted, takes 2 us and 0.15 kB. So:

1. What a commit appends is *behind*: in ``event``, not in ``log``. It is filled in when FILL_EVENTS are
   behind, and before each checkpoint: what is behind stands in the write-ahead log alone, and so does what
   lies behind the mark (3): no damaged page of the file is in the way at the start.
2. Who reads by session fills in first, when that session has events behind (``Store.settle``); nobody looks
   at two places. A commit fills in what it appends itself as long as FEW_SESSIONS have events behind: then
   it costs what an index would, and a reader that follows finds nothing to do.
3. The mark in ``meta`` is never ahead of the table: after a kill, what lies behind the mark is filled in
   again, and what is there already stays.
4. While the table cannot be filled (a full disk, a damaged page), or an older file's index is still being
   copied, a temporary view has its name and shows what is behind, too: slower, and nothing is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import apsw

#: So many take 15 ms, and about as much after a kill, before the partition serves.
FILL_EVENTS = 8_192
#: Pages that a commit may touch besides its own.
FEW_SESSIONS = 16
#: Entries that one step copies from an older file's index: 5 ms.
COPY_ROWS = 5_000
OLD_INDEX = "event_session"


class Appended(Protocol):
    """An event of a commit."""

    @property
    def session(self) -> int:
        """The row of its session."""

    @property
    def pos(self) -> int:
        """Its place in the log of the partition."""


class News(NamedTuple):
    """What a transaction appends; it counts once that is committed."""

    sessions: set[int]
    events: int
    pos: int
    filled: bool  #: whether it filled in all that was behind
    marked: bool


class BySession:
    """Of one open file: which sessions have events behind."""

    def __init__(self, db: apsw.Connection, note_damage: Callable[[str], None]) -> None:
        self._db = db
        self._note = note_damage
        self._pos = self._filled = self._marked = 0  #: of the newest event; of the table; of the mark
        self._count: int | None = None  #: how many are behind, None: nobody counted them
        self.behind: set[int] = set()  #: sessions (rows) that a reader fills in first
        self.viewed = False  #: whether the view has the table's name
        self.copying = False  #: from an older file's index

    def open(self) -> None:
        """Look at what a former life left behind."""
        self._filled = self._marked = marked(self._db)
        newest: Any = self._db.execute("SELECT max(pos) FROM event").fetchall()[0][0]
        self._pos = max(newest or 0, self._filled)
        self._count = None if self._pos > self._filled else 0
        self.copying = has_old_index(self._db)

    @property
    def due(self) -> bool:
        """Whether enough is behind."""
        return self._pos - self._filled >= FILL_EVENTS and not self.copying

    @property
    def complete(self) -> bool:
        """Whether nothing is behind the mark, and the table is read itself."""
        return self._pos == self._marked and not self.viewed

    # --- what is appended ---

    def take(self, events: Sequence[Appended]) -> News:
        """Look at what a transaction just wrote into ``event``; inside it. Fills in when few are behind."""
        sessions, pos = {event.session for event in events}, events[-1].pos
        few = (len(sessions) <= FEW_SESSIONS and len(self.behind | sessions) <= FEW_SESSIONS
               and not self.viewed)
        marking = few and pos - self._marked >= FILL_EVENTS
        if few:
            self._fill(None if self._count is None else self._count + len(events))
        if marking:
            self._mark(pos)
        return News(sessions, len(events), pos, few, marking)

    def took(self, news: News) -> None:
        """It is committed."""
        self._pos = news.pos
        if news.filled:
            self._filled, self._count = news.pos, 0
            self.behind.clear()
        elif not self.viewed:
            self.behind |= news.sessions
            self._count = None if self._count is None else self._count + news.events
        if news.marked:
            self._marked = news.pos

    # --- filling in ---

    def fill(self) -> None:
        """Fill in all that is behind, and set the mark; in a transaction of its own."""
        self._fill(self._count)
        self._mark(self._pos)

    def filled(self) -> None:
        """It is committed."""
        self._filled = self._marked = self._pos
        self._count = 0
        self.behind.clear()
        if self.viewed:
            self._db.execute(_NO_VIEW)
            self.viewed = False

    def _fill(self, expected: int | None) -> None:
        self._db.execute(_FILL, (self._filled,))
        if self._db.changes() == expected:
            return
        for (pos,) in self._db.execute(_TWICE, (self._filled,)).fetchall():
            self._note(f"event {pos} has the place of another one in the log of its session")

    def _mark(self, pos: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('filled', ?)", (pos,))

    # --- where the table cannot be read ---

    def view(self) -> None:
        """Give the table's name to a view that shows what is behind, too; also in place of one that reads by
        an older file's index, which may be gone."""
        view(self._db, self._filled)
        self.viewed = True
        self.behind.clear()
        self._count = None

    def copy(self) -> None:
        """Copy some entries of an older file's index, in a transaction; drop it when all are there.

        It goes on behind the last entry: those that were removed meanwhile are gone from ``event``, too.
        """
        last = self._db.execute(_LAST).fetchall() or [(-1, 0)]
        self._db.execute(_COPY, (*last[0], COPY_ROWS))
        if self._db.changes() < COPY_ROWS:
            self._db.execute(f"DROP INDEX {OLD_INDEX}")


def marked(db: apsw.Connection) -> int:
    """All events up to this position are in the table, unless the file has the old index."""
    rows: Any = db.execute("SELECT value FROM meta WHERE name = 'filled'").fetchall()
    return int(rows[0][0]) if rows else 0


def has_old_index(db: apsw.Connection) -> bool:
    """Whether the table is not whole yet, since an older file's index is not copied."""
    return bool(db.execute("SELECT 1 FROM main.sqlite_schema WHERE name = ?", (OLD_INDEX,)).fetchall())


def fill_all(db: apsw.Connection) -> None:
    """Fill in everything behind the mark of a file that nobody serves; inside a transaction."""
    db.execute(_FILL, (marked(db),))
    db.execute("INSERT OR REPLACE INTO meta SELECT 'filled', ifnull(max(pos), 0) FROM main.event")


def view(db: apsw.Connection, filled: int) -> None:
    """Give the name of the table to a view of this connection that is never behind."""
    rest = "" if has_old_index(db) else (
        f" WHERE pos > {filled} UNION ALL SELECT session, seq, pos FROM main.log WHERE pos <= {filled}")
    db.execute(f"{_NO_VIEW}; CREATE TEMP VIEW log AS SELECT session, seq, pos FROM main.event{rest}")


_NO_VIEW = "DROP VIEW IF EXISTS temp.log"
_FILL = ("INSERT OR IGNORE INTO main.log SELECT session, seq, pos FROM main.event WHERE pos > ?"
         " ORDER BY session, seq")
_TWICE = ("SELECT e.pos FROM main.event e CROSS JOIN main.log l ON l.session = e.session AND l.seq = e.seq"
          " WHERE e.pos > ? AND l.pos <> e.pos LIMIT 10")
_COPY = (f"INSERT INTO main.log SELECT session, seq, pos FROM main.event INDEXED BY {OLD_INDEX}"
         " WHERE (session, seq) > (?, ?) ORDER BY session, seq LIMIT ?")
_LAST = "SELECT session, seq FROM main.log ORDER BY session DESC, seq DESC LIMIT 1"

__all__ = [
    "COPY_ROWS", "FEW_SESSIONS", "FILL_EVENTS", "BySession", "News", "fill_all", "has_old_index", "marked",
    "view",
]
