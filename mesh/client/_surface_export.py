"""Plans of export and import: a session as JSON lines, in pages, so that nobody holds a whole log."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mesh.client._answers import plain_of
from mesh.client._protocol import READ, WRITE
from mesh.client._surface import Ask, Pause, Plan, value_of
from mesh.client._surface_sessions import session_call, session_id_or_new
from mesh.core import export, wire
from mesh.core.records import TERMINAL, RunStatus, Session
from mesh.core.slots import check_id, run_id_for, session_slot
from mesh.errors import InvalidArgument, MeshError, Overloaded, from_wire, shown

RUNS_PER_PAGE = 100
EVENTS_PER_PAGE = 1_000
#: What an import sends at once.
PIECE_BYTES = 256 * 1024
#: How long an import waits for the rows of a deleted session of its id to be gone.
WAIT_S, WAITS_MAX = 0.2, 150


class Export:
    """The lines of one session, page by page: what is in its log now; what comes later is left out."""

    def __init__(self, session_id: Any, timeout_s: float | None) -> None:
        self.session_id = check_id(session_id)
        self.timeout_s = timeout_s
        self.done = False
        self._seq = self._after = self._runs = self._events = 0
        self._cursor: Any = None
        self._step = self._header
        self._lost: list[str] = []

    def page(self) -> Plan:
        """The next lines."""
        return (yield from self._step())

    def _ask(self, op: str, *args: Any) -> Plan:
        slot, call = session_call(op, self.session_id, *args)
        [answer] = yield [Ask(READ, slot, call, self.timeout_s)]
        return plain_of(value_of(answer))

    def _header(self) -> Plan:
        session = yield from self._ask("session.get")
        self._seq, self._kept = session["seq"], session["seq"] - session["pruned"]
        self._step = self._page_of_runs
        return [export.encode_line(export.HEADER, export.header(session))]

    def _page_of_runs(self) -> Plan:
        rows, self._cursor = yield from self._ask("session.runs", RUNS_PER_PAGE, self._cursor)
        if self._cursor is None:
            self._step = self._page_of_events
        self._runs += len(rows)
        for row in rows:
            if RunStatus(row["status"]) not in TERMINAL and row["status"] != RunStatus.PENDING:
                self._lost.append(row["id"])
        return [export.encode_line(export.RUN, export.row(row)) for row in rows]

    def _page_of_events(self) -> Plan:
        filters = {"after": self._after, "before": self._seq + 1, "limit": EVENTS_PER_PAGE}
        rows, *_ = yield from self._ask("session.events", filters)
        self._events += len(rows)
        lines = [export.encode_line(export.EVENT, row) for row in rows]
        if rows:
            self._after = rows[-1]["seq"]
            return lines
        end = {"runs": self._runs, "events": self._events, "seq": self._seq, "lost": self._lost}
        self.done = True
        return [export.encode_line(export.END, end)]


def lines_of(source: Any) -> Iterator[str]:
    """The lines of a file, of its path, or of any iterable of texts.

    Raises:
        InvalidArgument: none of them, or a file that cannot be read.
    """
    if isinstance(source, str | os.PathLike):
        try:
            with Path(source).open(encoding="utf-8") as file:
                yield from file
        except (OSError, ValueError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else exc
            raise InvalidArgument(f"cannot read {shown(source)}: {why}", code="invalid_argument") from exc
    elif isinstance(source, Iterable):
        yield from source
    else:
        raise InvalidArgument(f"lines or a path, not {type(source).__name__}", code="invalid_argument")


def import_session(source: Any, new_id: Any, timeout_s: float | None) -> Plan:
    """Send an export piece by piece; the session appears with the last one."""
    numbered = ((n, line) for n, line in enumerate(lines_of(source), 1) if line != "\n")
    number, line = next(numbered, (1, ""))
    kind, session = _decoded(line, number)
    if kind != export.HEADER:
        raise InvalidArgument("line 1: an export begins with its session")
    old = check_id(session.get("id"))
    sid = session_id_or_new(None) if new_id is True else old if new_id in (None, False) else check_id(new_id)
    place = _Place(old, sid)
    slot = session_slot(sid)

    def send(piece: dict[str, Any], numbers: Sequence[int]) -> Plan:
        for _ in range(WAITS_MAX):
            [answer] = yield [Ask(WRITE, slot, ("session.import", (sid, piece)), timeout_s)]
            if not isinstance(answer, Overloaded):
                break
            yield Pause(WAIT_S)  # what a deleted session of that id left is still being removed
        if isinstance(answer, MeshError):
            raise _at_line(answer, numbers)
        return answer

    yield from send({"session": session}, [number])
    pieces: dict[str, list[Any]] = {"runs": [], "events": []}
    numbers: list[int] = []
    size = runs = 0
    for number, line in numbered:
        kind, value = _decoded(line, number)
        if kind == export.END:
            for name, piece in pieces.items():
                if piece:
                    yield from send({name: piece}, numbers)
            return Session.from_map((yield from send({"end": _ended(value, number, runs, place)}, [number])))
        name = "runs" if kind == export.RUN else "events"
        if kind == export.HEADER or (name == "runs" and pieces["events"]):
            raise InvalidArgument(f"line {number}: runs stand before events, and one session in an export")
        if name == "events" and pieces["runs"]:
            yield from send({"runs": pieces["runs"]}, numbers)
            pieces["runs"], numbers = [], []
        pieces[name].append(place.moved(value))
        numbers.append(number)
        runs += kind == export.RUN
        size += len(wire.pack(value))
        if size > PIECE_BYTES:
            yield from send({name: pieces[name]}, numbers)
            pieces[name], numbers, size = [], [], 0
    raise InvalidArgument(f"the export ends behind line {number} without its end: it was cut off")


def _at_line(error: MeshError, numbers: Sequence[int]) -> MeshError:
    """A refusal of a piece, with the line of the file that it is about."""
    whole = 0 if isinstance(error, InvalidArgument) and len(numbers) == 1 else None
    item = error.details.get("item", whole)
    if type(item) is not int or not 0 <= item < len(numbers):
        return error
    details = {name: value for name, value in error.details.items() if name != "item"}
    line = numbers[item]
    return from_wire(error.code, f"line {line}: {error.message}", {**details, "line": line})


def _decoded(line: Any, number: int) -> tuple[str, dict[str, Any]]:
    if not isinstance(line, str):
        raise InvalidArgument(f"line {number} is a {type(line).__name__}, not a text")
    return export.decode_line(line, number)


def _ended(end: dict[str, Any], number: int, runs: int, place: _Place) -> dict[str, Any]:
    """The last piece, when the runs are those that it counts; the node counts the events."""
    lost = end.get("lost") or []
    if end.get("runs") != runs or type(lost) is not list:
        raise InvalidArgument(f"line {number}: the export is not whole, {runs} runs of {shown(end)}")
    return {**end, "lost": [place.run(run) for run in lost]}


class _Place:
    """The ids under which a session is imported: a run's id carries the slot of its session."""

    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new

    def run(self, run_id: Any) -> Any:
        """A run's id there; the same each time."""
        if self.old == self.new or not isinstance(run_id, str):
            return run_id
        return run_id_for(self.new, hashlib.sha256(f"{run_id}:{self.new}".encode()).hexdigest()[:32])

    def moved(self, value: dict[str, Any]) -> dict[str, Any]:
        """A run or an event of the session there."""
        if self.old == self.new:
            return value
        name = "run_id" if "seq" in value else "id"
        return {**value, name: self.run(value.get(name)), "session_id": self.new}


__all__ = ["Export", "import_session", "lines_of"]
