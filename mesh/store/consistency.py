"""Does what is stored fit together? Looked at in windows, so that a node can ask itself while it serves.

A *place* is (phase, a, b): where the next window begins. What is being removed or imported is no problem, nor
is what retention removed (``pruned_to``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import apsw
import msgspec

from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core.records import TERMINAL
from mesh.core.run import RunState
from mesh.core.session import SessionState
from mesh.store import route_log
from mesh.store.by_session import marked
from mesh.store.file import checksum

PHASES = ("session", "run", "log", "event", "route", "route_log")
ROWS, LOG_ROWS, BATCHES = 300, 2_000, 30
Place = tuple[int, Any, int]
START: Place = (0, 0, 0)


class Problem(NamedTuple):
    """``kind``: see ``core/reports.Problem``. ``subject`` is what to look at."""

    kind: str
    subject: str
    text: str


class Window(NamedTuple):
    """What one look gave. ``active`` are the runs that say they wait or execute."""

    problems: list[Problem]
    next: Place | None
    active: list[RunState]


def look(db: apsw.Connection, place: Place) -> Window:
    """Look at one window.

    Raises:
        apsw.Error: a page cannot be read.
    """
    phase, a, b = place
    problems: list[Problem] = []
    active: list[RunState] = []
    name = PHASES[phase]
    following: tuple[Any, int] | None
    if name == "log":
        following = _log(db, a, b, problems)
    elif name == "route":
        following = _routes(db, a or "", problems)
    elif name == "route_log":
        following = _batches(db, a, problems)
    else:
        following = _rows(db, name, a, problems, active)
    if following is not None:
        return Window(problems, (phase, *following), active)
    following_phase = begin(phase + 1) if phase + 1 < len(PHASES) else None
    return Window(problems, following_phase, active)


def begin(phase: int) -> Place:
    """The first place of a phase."""
    return phase, "" if PHASES[phase] == "route" else 0, 0


def of_phase(db: apsw.Connection, phase: int) -> Iterator[Problem]:
    """All problems of one phase, of a file that nobody writes."""
    place: Place | None = begin(phase)
    while place is not None and place[0] == phase:
        problems, place, _ = look(db, place)
        yield from problems


_KEYS = {"session": "n", "run": "n", "event": "pos"}


#: Where the log of its session says that an event is. What is behind (``by_session``) is not in there yet.
_ENTRY = "(SELECT l.pos FROM log l WHERE l.session = event.session AND l.seq = event.seq)"
_ENTRIES = ("SELECT l.session, l.seq, e.pos IS NOT NULL FROM log l"
            " LEFT JOIN event e ON e.pos = l.pos AND e.session = l.session AND e.seq = l.seq"
            " WHERE (l.session, l.seq) > (?, ?) ORDER BY l.session, l.seq LIMIT ?")


def _rows(
    db: apsw.Connection, table: str, after: int, problems: list[Problem], active: list[RunState]
) -> tuple[int, int] | None:
    """Rows with their own checksums."""
    key, blob = _KEYS[table], "fragment" if table == "event" else "record"
    also = {"run": "session", "event": _ENTRY}.get(table, "0")
    filled = marked(db) if table == "event" else 0
    sql = f"SELECT {key}, {blob}, sum, {also} FROM {table} WHERE {key} > ? ORDER BY {key} LIMIT ?"
    found: list[Any] = db.execute(sql, (after, ROWS)).fetchall()
    for number, data, total, session in found:
        if checksum(data) != total:
            problems.append(Problem("damaged", f"{table} {number}", "its checksum is wrong"))
        elif table == "event" and session != number and (session or number <= filled):
            problems.append(Problem("wrong_log", f"event {number}", "it is not in the log of its session"))
        elif table == "session":
            _decoded(sessions.decode, data, f"session {number}", problems)
        elif table == "run":
            run: RunState | None = _decoded(runs.decode, data, f"run {number}", problems)
            if run is not None and not db.execute("SELECT 1 FROM session WHERE n = ?", (session,)).fetchone():
                problems.append(Problem("orphan_run", run.id, f"its session {run.session_id} is not there"))
            elif run is not None and run.status not in TERMINAL and run.status != "pending":
                active.append(run)
    return (found[-1][0], 0) if len(found) == ROWS else None


def _decoded(decode: Any, data: bytes, what: str, problems: list[Problem]) -> Any:
    try:
        return decode(data)
    except msgspec.MsgspecError as exc:
        problems.append(Problem("damaged", what, f"its record is none: {exc}"[:200]))
        return None


def _log(db: apsw.Connection, session: int, seq: int, problems: list[Problem]) -> tuple[int, int] | None:
    """Each session's seqs, one after another."""
    found: list[Any] = db.execute(_ENTRIES, (session, seq, LOG_ROWS)).fetchall()
    known = _session(db, session) if session else None
    last = seq
    for number, at, there in found:
        if number != session:
            _missing(known, seq, last, problems)
            session, seq, known = number, 0, _session(db, number)
            if known is None:
                problems.append(Problem("orphan_event", f"session row {number}", "events without session"))
        if there:
            _missing(known, seq, at - 1, problems)
            seq = at
        last = at
    _missing(known, seq, last, problems)
    return (session, last) if len(found) == LOG_ROWS else None


def _missing(known: SessionState | bool | None, seq: int, last: int, problems: list[Problem]) -> None:
    """Nothing is there behind a seq up to another one."""
    if isinstance(known, SessionState) and last > max(seq, known.pruned_to):
        gone = f"events {max(seq, known.pruned_to) + 1} to {last} are missing"
        problems.append(Problem("hole", known.id, gone))


def _session(db: apsw.Connection, number: int) -> SessionState | bool | None:
    """The session of a row; None when there is none, True when its log is not to be looked at."""
    row: Any = db.execute("SELECT record, sum FROM session WHERE n = ?", (number,)).fetchone()
    if row is None:
        return None
    try:
        state = sessions.decode(row[0]) if checksum(row[0]) == row[1] else None
    except msgspec.MsgspecError:
        state = None
    if state is None or (state.deleted_at is not None and state.deleted_at <= 0):
        return True
    return state


def _routes(db: apsw.Connection, after: str, problems: list[Problem]) -> tuple[str, int] | None:
    sql = "SELECT key, record, sum FROM route WHERE key > ? ORDER BY key LIMIT ?"
    found: list[Any] = db.execute(sql, (after, ROWS)).fetchall()
    for key, record, total in found:
        if checksum(record) != total:
            problems.append(Problem("damaged", f"route {key}", "its checksum is wrong"))
    return (found[-1][0], 0) if len(found) == ROWS else None


def _batches(db: apsw.Connection, after: int, problems: list[Problem]) -> tuple[int, int] | None:
    """Batches of the log of routes."""
    sql = "SELECT n, boot, sum, head, records FROM route_log WHERE n > ? ORDER BY n LIMIT ?"
    found: list[Any] = db.execute(sql, (after, BATCHES)).fetchall()
    for row in found:
        _, _, keys, records = route_log.decode(row, lambda _: None)
        damaged = [f"route {key}" for key, record in zip(keys or (), records, strict=True) if record == b""]
        subjects = damaged if keys is not None else [f"route_log {row[0]}"]
        problems += [Problem("damaged", subject, "its checksum is wrong") for subject in subjects]
    return (found[-1][0], 0) if len(found) == BATCHES else None


__all__ = ["LOG_ROWS", "PHASES", "ROWS", "START", "Place", "Problem", "Window", "begin", "look", "of_phase"]
