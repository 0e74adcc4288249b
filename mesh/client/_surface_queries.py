"""Plans of searches: each partition gives steps, merged here into pages.

An order that has an index is a merge: what a partition has not looked at yet lies behind the key that it
reached, so a row is taken when no other partition can have an earlier one. Other orders are a *best of*: all
that matches is looked at, and each step is told what it has to beat.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from mesh.client._answers import event_of
from mesh.client._protocol import READ, WRITE, Facts
from mesh.client._surface import (
    EVERY_S,
    FACTS,
    Ask,
    Plan,
    cursor_places,
    decode_cursor,
    encode_cursor,
    value_of,
)
from mesh.client._surface_routes import Linked, ask_every
from mesh.client._surface_sessions import session_call
from mesh.core import query as q
from mesh.core import reports
from mesh.core.records import Page, Run, Session
from mesh.core.slots import check_id, run_slot, session_slot
from mesh.errors import DeadlineExceeded, InvalidArgument, MeshError

#: How long a sweep by hand is waited for, unless the caller says otherwise.
SWEEP_S = 3_600.0
#: One step of a check may meet a slow disk.
CHECK_S = 10.0
PROBLEMS_MAX = 1_000
_FAR = (1 << 63) - 1
_OPS = {
    "sessions": "session.search", "runs": "run.search", "events": "event.search", "audit": "audit.search",
}
#: Kinds whose order is that of a log: a partition goes on behind a row, and time decides between partitions.
_LOGS = frozenset(("events", "audit"))
_PARSE: dict[str, Callable[[Any], Any]] = {
    "sessions": Session.from_map, "runs": Run.from_map, "events": event_of,
    "audit": reports.AuditEntry.from_map,
}


def search(
    link: Linked, kind: str, filters: Mapping[str, Any], order: Any, limit: Any, cursor: Any,
    timeout_s: float | None,
) -> Plan:
    """A page of sessions, runs or events that match; its cursor goes on behind it.

    Raises:
        InvalidArgument: a wrong filter, order, limit; ``invalid_cursor``.
        DeadlineExceeded: an order without an index, and not everything could be looked at in time.
    """
    given = q.check_filters(kind, filters)
    q.check_order(kind, order)
    q.check_limit(limit)
    facts: Facts = yield FACTS
    place = None if cursor is None else _place(kind, order, cursor, facts.partitions)
    until = monotonic() + (link.timeout_s if timeout_s is None else timeout_s)
    hunt = _Hunt(kind, given, order, limit, facts.partitions, until)
    if kind == "events" and ("session_ids" in given or "run_ids" in given):
        hunt.units = _units(given)
    if kind == "events" and order == "sequence_asc":
        return (yield from (_one_by_one(hunt, place) if hunt.units else _merged(hunt, place)))
    if kind == "audit" or (order in _SCANNED and "session_id" not in given):
        return (yield from _merged(hunt, place))
    return (yield from _best_of(hunt, place))


_SCANNED = frozenset((*q.SESSION_ORDERS, "started_at_desc", "started_at_asc"))


class _Hunt:
    """One search on its way."""

    def __init__(
        self, kind: str, filters: dict[str, Any], order: str, limit: int, partitions: int, until: float
    ) -> None:
        self.kind, self.filters, self.order, self.limit = kind, filters, order, limit
        self.partitions, self.until = partitions, until
        self.sign = -1 if q.Query(order, {}, 1).descending else 1
        self.units: list[tuple[int, dict[str, Any]]] = []  #: (slot, filters): where a named session or run is
        both = "run_ids" in filters and "session_ids" in filters
        self.sessions = set(filters["session_ids"]) if both else None

    def wanted(self, value: dict[str, Any]) -> bool:
        """Runs and sessions were both named: whether the run's session is one of them."""
        return self.sessions is None or value["session_id"] in self.sessions

    def ask(self, slot: int, filters: dict[str, Any], limit: int, *place: Any) -> Ask:
        """One step of one partition."""
        args = (filters, self.order, limit, *place)
        return Ask(READ, slot, (_OPS[self.kind], args), max(0.05, min(EVERY_S, self.until - monotonic())))

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return monotonic() >= self.until

    def page(self, items: list[Any], place: Any, missing: list[int]) -> Page[Any]:
        """The page, and the cursor behind it (None: there is nothing more)."""
        cursor = None
        if place is not None:
            cursor = encode_cursor([_name(self.kind), self.order, self.partitions, place])
        return Page([_PARSE[self.kind](item) for item in items], cursor, missing)


def _name(kind: str) -> str:
    return f"search of {kind}"


def _place(kind: str, order: str, cursor: Any, partitions: int) -> Any:
    values = decode_cursor(cursor, _name(kind))
    if len(values) != 4 or values[1:3] != [order, partitions]:
        raise InvalidArgument(
            f"this cursor is of another order than {order}, or of another number of partitions",
            code="invalid_cursor",
        )
    return values[3]


def _units(given: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """One question per run, else per session, in the order of their ids."""
    others = {name: value for name, value in given.items() if name not in ("session_ids", "run_ids")}
    if "run_ids" in given:
        return [(run_slot(run), {**others, "run_ids": [run]}) for run in sorted(set(given["run_ids"]))]
    named = sorted(set(given["session_ids"]))
    return [(session_slot(one), {**others, "session_ids": [one]}) for one in named]


# --- orders with an index ---


class _Stream:
    """The rows of one partition, as far as they came."""

    def __init__(self, hunt: _Hunt, partition: int, place: Any) -> None:
        self.hunt, self.partition, self.place = hunt, partition, place
        self.reached = place  #: where the next step goes on
        self.rows: deque[tuple[Any, Any, Any]] = deque()  #: (merging key, place, value)
        self.ended = self.failed = False
        self.floor: Any = None  #: nothing that comes later has a key before this one
        self._latest = float("-inf")

    def ask(self) -> Ask:
        hunt = self.hunt
        if hunt.kind in _LOGS:
            return hunt.ask(~self.partition, hunt.filters, hunt.limit, None, self.reached or 0)
        return hunt.ask(~self.partition, hunt.filters, hunt.limit, self.reached)

    def take(self, answer: Any) -> None:
        """A step came."""
        rows, following = answer
        for sort, row, value in rows:
            place = row if self.hunt.kind in _LOGS else [sort, row]
            self.rows.append((self._key(sort, row, value), place, value))
        self.reached = following
        self.ended = following is None
        if self.rows:
            self.floor = self.rows[-1][0]
        elif not self.ended and self.hunt.kind not in _LOGS:
            self.floor = self._key(following[0], following[1], None)

    def _key(self, sort: Any, row: int, value: Any) -> Any:
        if self.hunt.kind in _LOGS:  # time as it never goes back
            self._latest = max(self._latest, self.hunt.sign * value["ts"])
            return self._latest, self.partition, self.hunt.sign * row
        return self.hunt.sign * sort, self.partition, self.hunt.sign * row

    def pop(self) -> Any:
        _, self.place, value = self.rows.popleft()
        return value

    @property
    def hungry(self) -> bool:
        """Whether only the partition knows what comes next."""
        return not (self.rows or self.ended or self.failed)


def _merged(hunt: _Hunt, place: Any) -> Plan:
    """Rows of all partitions in one order."""
    everywhere = dict.fromkeys(range(hunt.partitions))
    places = everywhere if place is None else cursor_places(place, hunt.partitions, place)
    streams = [_Stream(hunt, partition, places[partition]) for partition in sorted(places)]
    taken: list[Any] = []
    while len(taken) < hunt.limit:
        heads = [stream for stream in streams if stream.rows]
        first = min(heads, key=lambda stream: stream.rows[0][0], default=None)
        unsure = [s for s in streams if s.hungry and (
            first is None or s.floor is None or s.floor <= first.rows[0][0])]
        if unsure and hunt.over:
            break
        if unsure:
            answers = yield [stream.ask() for stream in unsure]
            for stream, answer in zip(unsure, answers, strict=True):
                _take(stream, answer)
        elif first is None:
            break
        else:
            taken.append(first.pop())
    rest = {}
    for stream in streams:
        if stream.rows:
            rest[stream.partition] = stream.place
        elif not stream.ended:
            rest[stream.partition] = stream.reached
    missing = [stream.partition for stream in streams if stream.failed]
    return hunt.page(taken, rest if set(rest) - set(missing) else None, missing)


def _take(stream: _Stream, answer: Any) -> None:
    if isinstance(answer, InvalidArgument):
        raise answer
    if isinstance(answer, MeshError):
        stream.failed = True
        return
    stream.take(answer)


def _one_by_one(hunt: _Hunt, place: Any) -> Plan:
    """Events of named sessions or runs, one after another, each by seq."""
    if place is not None and not (
        type(place) is list and len(place) == 2 and type(place[0]) is int and place[0] >= 0
    ):
        raise InvalidArgument("this cursor is of another kind of search", code="invalid_cursor")
    at, reached = place or [0, 0]
    taken: list[Any] = []
    while at < len(hunt.units) and len(taken) < hunt.limit and not hunt.over:
        slot, filters = hunt.units[at]
        [answer] = yield [hunt.ask(slot, filters, hunt.limit - len(taken), None, reached)]
        rows, following = value_of(answer)
        taken += [value for _, _, value in rows if hunt.wanted(value)]
        at, reached = (at + 1, 0) if following is None else (at, following)
    return hunt.page(taken, [at, reached] if at < len(hunt.units) else None, [])


# --- the best of everything ---


def _best_of(hunt: _Hunt, place: Any) -> Plan:
    """The first rows of an order without an index, behind a key: (sort value, partition, row)."""
    if place is not None and (
        type(place) is not list or len(place) != 3 or any(type(one) not in (int, float) for one in place)
    ):
        raise InvalidArgument("this cursor is of another kind of search", code="invalid_cursor")
    slots = hunt.units or [(~partition, hunt.filters) for partition in range(hunt.partitions)]
    if "session_id" in hunt.filters:
        slots = [(session_slot(hunt.filters["session_id"]), hunt.filters)]
    reached: dict[int, int] = dict.fromkeys(range(len(slots)), 0)
    best: list[tuple[Any, Any]] = []
    sign = hunt.sign
    while reached:
        if hunt.over:
            raise DeadlineExceeded(
                f"not everything could be looked at in time for the order {hunt.order}: name sessions or a"
                " time, or give more timeout_s"
            )
        worst = None
        if len(best) == hunt.limit:
            worst = [sign * best[-1][0][0], _FAR if sign > 0 else -1]
        asked = list(reached)
        answers = yield [
            hunt.ask(*slots[unit], hunt.limit, _behind(place, unit, sign), reached[unit], worst)
            for unit in asked
        ]
        for unit, answer in zip(asked, answers, strict=True):
            rows, following = value_of(answer)
            best += [
                ((sign * sort, unit, sign * row), value) for sort, row, value in rows
                if hunt.wanted(value)
            ]
            if following is None:
                del reached[unit]
            else:
                reached[unit] = following
        best = sorted(best, key=lambda entry: entry[0])[: hunt.limit]
    last = None
    if len(best) == hunt.limit:
        (sort, unit, row), _ = best[-1]
        last = [sign * sort, unit, sign * row]
    return hunt.page([value for _, value in best], last, [])


def _behind(place: Any, unit: int, sign: int) -> Any:
    """The key behind which the rows of one unit are wanted; over units the order is (sort, unit, row)."""
    if place is None:
        return None
    sort, last_unit, row = place
    if unit == last_unit:
        return [sort, row]
    first = (unit > last_unit) == (sign > 0)
    return [sort, -1 if first else _FAR]


# --- sums ---


def _summed(
    filters: dict[str, Any], op: str, slots: list[int], until: float, add: Callable[[Any], None]
) -> Plan:
    """Ask until every partition has looked at everything."""
    reached: dict[int, Any] = dict.fromkeys(slots, 0)
    while reached:
        left_s = until - monotonic()
        if left_s <= 0:
            raise DeadlineExceeded("not everything could be added up in time: give more timeout_s")
        asked = list(reached)
        answers = yield [
            Ask(READ, slot, (op, (filters, reached[slot])), max(0.05, min(EVERY_S, left_s)))
            for slot in asked
        ]
        for slot, answer in zip(asked, answers, strict=True):
            found, following = value_of(answer)
            add(found)
            if following is None:
                del reached[slot]
            else:
                reached[slot] = following
    return None


def count_events(link: Linked, filters: Mapping[str, Any], timeout_s: float | None) -> Plan:
    """How many events match."""
    given = q.check_filters("events", filters)
    if "session_ids" in given and "run_ids" in given:
        raise InvalidArgument("count events of session_ids or of run_ids, not of both")
    until = monotonic() + (link.timeout_s if timeout_s is None else timeout_s)
    counts: list[int] = []
    if "session_ids" in given or "run_ids" in given:
        for slot, unit in _units(given):
            yield from _summed(unit, "event.count", [slot], until, counts.append)
    else:
        facts: Facts = yield FACTS
        yield from _summed(given, "event.count", [~p for p in range(facts.partitions)], until, counts.append)
    return sum(counts)


def usage_summary(link: Linked, filters: Mapping[str, Any], timeout_s: float | None) -> Plan:
    """Usage and cost of the runs that match."""
    given = q.check_filters("usage", filters)
    until = monotonic() + (link.timeout_s if timeout_s is None else timeout_s)
    rows: list[list[Any]] = []
    facts: Facts = yield FACTS
    slots = [~p for p in range(facts.partitions)]
    if "session_id" in given:
        slots = [session_slot(given["session_id"])]
        yield from _known(given["session_id"])
    yield from _summed(given, "usage.summary", slots, until, rows.extend)
    return reports.summed(rows)


def spent(session_id: Any, tag: Any, timeout_s: float | None) -> Plan:
    """``usage.spent``: of one session, or of a tag everywhere."""
    if (session_id is None) == (tag is None):
        raise InvalidArgument("a session_id or a tag, one of them")
    call = ("budget.used", (session_id, [] if tag is None else [tag], None))
    if session_id is not None:
        [answer] = yield [Ask(READ, session_slot(check_id(session_id)), call, timeout_s)]
        answers = [answer]
    else:
        answers = list((yield from ask_every(READ, call, timeout_s)).values())
    sums: dict[str, float] = {}
    for found in map(value_of, answers):
        for more in found.values():
            sums = {metric: sums.get(metric, 0) + more.get(metric, 0) for metric in sums | more}
    return sums


def _known(session_id: str) -> Plan:
    slot, call = session_call("session.stats", session_id)
    [answer] = yield [Ask(READ, slot, call)]
    return value_of(answer)


def maintenance_run(timeout_s: float | None) -> Plan:
    """Have every partition sweep once, and wait for all of them."""
    limit_s = SWEEP_S if timeout_s is None else timeout_s
    answers = yield from ask_every(WRITE, ("maintenance.run", ()), limit_s)
    found = {p: answer for p, answer in answers.items() if not isinstance(answer, MeshError)}
    return reports.swept(found, [p for p in answers if p not in found])


def maintenance_check(timeout_s: float | None) -> Plan:
    """Have every partition look at all it has stored, window by window."""
    facts: Facts = yield FACTS
    places: dict[int, Any] = dict.fromkeys(range(facts.partitions))
    found: list[reports.Problem] = []
    missing: list[int] = []
    until = monotonic() + (SWEEP_S if timeout_s is None else timeout_s)
    while places and len(found) < PROBLEMS_MAX:
        if monotonic() > until:
            raise DeadlineExceeded("not everything could be looked at in time: give more timeout_s")
        asked = list(places)
        answers = yield [Ask(READ, ~p, ("maintenance.check", (places[p],)), CHECK_S) for p in asked]
        for partition, answer in zip(asked, answers, strict=True):
            if isinstance(answer, MeshError):
                missing.append(partition)
                del places[partition]
                continue
            rows, places[partition] = answer
            found += [reports.Problem(*row) for row in rows]
            if places[partition] is None:
                del places[partition]
    return reports.CheckReport(tuple(found), not places, tuple(missing))


def session_stats(link: Linked, session_id: Any, timeout_s: float | None) -> Plan:
    """What a session's log and runs add up to."""
    until = monotonic() + (link.timeout_s if timeout_s is None else timeout_s)
    log = yield from _known(session_id)
    rows: list[list[Any]] = []
    slots = [session_slot(session_id)]
    yield from _summed({"session_id": session_id}, "usage.summary", slots, until, rows.extend)
    usage = reports.summed(rows)
    return reports.SessionStats(
        run_count=usage.totals.run_count, token_totals=usage.totals.token_totals,
        providers_used=tuple(name for name in usage.by_provider if name != "unknown"),
        status_counts=usage.by_status, **log,
    )


__all__ = [
    "SWEEP_S", "count_events", "maintenance_check", "maintenance_run", "search", "session_stats",
    "spent", "usage_summary",
]
