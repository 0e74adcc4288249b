"""The partition's searches: one step each, bounded in rows, bytes and milliseconds (``store/query.py``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mesh.core import events as ev
from mesh.core import query as q
from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core import wire
from mesh.core.access import opens
from mesh.core.run import RunState
from mesh.core.session import SessionState
from mesh.core.state import State
from mesh.errors import InvalidArgument, StoreError
from mesh.node.artifacts import Artifacts
from mesh.node.reads import seen
from mesh.store import consistency
from mesh.store.file import DAMAGED
from mesh.store.query import Found, Search
from mesh.store.sqlite import Store


class Queries:
    """Search ops of one partition, by name in ``table``."""

    def __init__(self, state: State, store: Store, owns: Callable[[str], bool], *, page_bytes: int) -> None:
        self.state = state
        self.store = store
        self.search = Search(store, owns, bytes_max=page_bytes)
        self.table: dict[str, Callable[[list[Any], int], bytes]] = {
            "session.search": self.sessions,
            "session.stats": self.stats,
            "run.search": self.runs,
            "event.search": self.events,
            "event.count": self.count,
            "usage.summary": self.usage,
            "audit.search": self.audit,
            "maintenance.check": self.check,
            **Artifacts(state, store).table,
        }

    def sessions(self, args: list[Any], now: int) -> bytes:
        return _page(self.search.sessions(q.check_query("sessions", args)), self._session)

    def _session(self, stored: SessionState) -> bytes:
        session = self.state.sessions.get(stored.id) or self.store.session(stored.id) or stored
        return wire.pack(sessions.listed(session, self.state.pid_of(session), self.state.presented))

    def runs(self, args: list[Any], now: int) -> bytes:
        found = self.search.runs(q.check_query("runs", args))
        redactor, seen = self.state.redactor, self._seen()

        def encode(run: RunState) -> bytes:
            values = runs.to_wire(self.state.runs.get(run.id, run), redactor)
            return wire.pack(values if seen(run.session_id) else {**values, **_UNSEEN})

        return _page(found, encode)

    def _seen(self) -> Callable[[str], bool]:
        """Whether the caller may see what is said in a session; asked once for each."""
        known: dict[str, bool] = {}

        def seen(session_id: str) -> bool:
            if session_id not in known:
                session = self.state.sessions.get(session_id) or self.store.session(session_id)
                known[session_id] = session is None or opens(
                    session.access, session_id, self.state.presented)
            return known[session_id]

        return seen

    def events(self, args: list[Any], now: int) -> bytes:
        query = self._of_one_session(q.check_query("events", args))
        found = self.search.events(query)
        seen = self._seen()

        def encode(row: Any) -> bytes:
            session_id, event = row[0], row[1]
            fragment = event.fragment if seen(session_id) else ev.masked(event.fragment)
            return ev.encode_stored(fragment, session_id, event.seq)

        return _page(found, encode)

    def count(self, args: list[Any], now: int) -> bytes:
        filters, reached = _exactly(args, 2)
        query = q.Query("sequence_asc", q.check_filters("events", filters), 1, None, q.check_row(reached))
        return wire.ok(list(self.search.count(self._of_one_session(query))))

    def _of_one_session(self, query: q.Query) -> q.Query:
        """A search names one session at most: the SDK asks for several one after another.

        Runs are named by their row numbers; those of other sessions are an error.
        """
        ids, run_ids = query.filters.get("session_ids"), query.filters.get("run_ids")
        if ids is not None and len(ids) != 1:
            raise InvalidArgument("one session per call: ask for each of them")
        if ids is not None:
            seen(self.state, ids[0])
        if run_ids is None:
            return query
        found = [self.state.run(run_id) for run_id in run_ids]
        if len({run.session_id for run in found}) != 1 or (ids and found[0].session_id != ids[0]):
            raise InvalidArgument("runs of one session per call", code="session_mismatch")
        filters = {**query.filters, "session_ids": [found[0].session_id], "runs": [run.n for run in found]}
        return query._replace(filters=filters)

    def audit(self, args: list[Any], now: int) -> bytes:
        return _page(self.search.audit(q.check_query("audit", args)), self._entry)

    def _entry(self, row: Any) -> bytes:
        number, ts, client, op, target, outcome = row
        return wire.pack({
            "id": f"{self.state.partition}-{number}", "ts": ts, "client": client.hex() if client else None,
            "op": op, "target": target, "outcome": outcome,
        })

    def check(self, args: list[Any], now: int) -> bytes:
        place = _place(args[0] if args else None)
        try:
            found = self.store.guarded(lambda: consistency.look(self.store.connection, place), "check")
        except StoreError as error:
            if error.code != DAMAGED:
                raise
            phase = place[0] + 1  # the rest of it stands behind a page that cannot be read
            problem = consistency.Problem("damaged", consistency.PHASES[place[0]], error.message)
            following = consistency.begin(phase) if phase < len(consistency.PHASES) else None
            found = consistency.Window([problem], following, [])
        problems = found.problems + [
            consistency.Problem("lost_run", run.id, f"it is {run.status}, and nobody works on it")
            for run in found.active if not self._worked_on(run)
        ]
        return wire.ok([[[self.state.partition, *problem] for problem in problems], found.next])

    def _worked_on(self, run: RunState) -> bool:
        work = self.state.work_of(run.session_id)
        return run.id in work.running or run.id in work.waiting

    def usage(self, args: list[Any], now: int) -> bytes:
        filters, reached = _exactly(args, 2)
        query = q.Query("started_at_asc", q.check_filters("usage", filters), 1, None, q.check_row(reached))
        return wire.ok(list(self.search.usage(query)))

    def stats(self, args: list[Any], now: int) -> bytes:
        session = seen(self.state, *_exactly(args, 1))
        first, last = self.store.ends_of_log(session.n)
        return wire.ok({
            "session_id": session.id, "event_count": session.seq - session.pruned, "last_seq": session.seq,
            "first_seq": first[0] if first else None, "first_event_at": first[1] if first else None,
            "last_event_at": last[1] if last else None, "pruned": session.pruned,
            "pruned_to": session.pruned_to,
        })


#: What is left out of a run in a session that does not open to the caller.
_UNSEEN: dict[str, Any] = {
    "input": None, "output": None, "error": None, "metadata": {}, "provider_metadata": {},
}


def _page(found: Found, encode: Callable[[Any], bytes]) -> bytes:
    """``[[[sort value, row number, map], ...], what to go on behind]``."""
    parts = [wire.OK, b"\x92", wire.array_header(len(found.rows))]
    for sort, row, value in found.rows:
        parts.append(b"\x93" + wire.pack(sort) + wire.pack(row) + encode(value))
    return b"".join((*parts, wire.pack(found.next)))


def _place(value: Any) -> consistency.Place:
    if value is None:
        return consistency.START
    if type(value) is list and len(value) == 3 and value[0] in range(len(consistency.PHASES)):
        phase, at, seq = value
        by_key = consistency.PHASES[phase] == "route"
        fits = type(at) is str if by_key else type(at) is int and 0 <= at < 1 << 63
        if fits and type(seq) is int and 0 <= seq < 1 << 63:
            return phase, at, seq
    raise InvalidArgument("not a place of a check", code="invalid_cursor")


def _exactly(args: list[Any], count: int) -> list[Any]:
    if len(args) != count:
        raise InvalidArgument(f"expected {count} arguments, not {len(args)}")
    return args


__all__ = ["Queries"]
