"""Searches over one partition's file, in steps of a few milliseconds whatever the filter.

A step looks at windows of STEP_ROWS neighbouring rows of an index until its page is full or STEP_S is over,
and says where it stopped; the SDK asks for the next step. So a filter that nothing matches, on a million
sessions, costs many short questions and never one long one.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from mesh.core import events as ev
from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core import wire
from mesh.core.query import Key, Query
from mesh.core.run import RunState
from mesh.core.session import SessionState
from mesh.store.reading import StoredEvent, checked_record
from mesh.store.sqlite import Store

STEP_ROWS = 400
STEP_S = 0.003
#: The latest runs of a session that the filter ``provider`` of a search for sessions looks at.
PROVIDER_RUNS = 200
_INFINITE = float("inf")
_KNOWN = "s.deleted IS NULL"
#: Named explicitly, also a deleted session is shown; one that is being removed or imported never is.
_NAMED = "ifnull(s.deleted, 1) > 0"


class Found(NamedTuple):
    """One step: rows as (sort value, row number, value), and what to go on behind, None at the end."""

    rows: list[tuple[float, int, Any]]
    next: Any


class _Author(msgspec.Struct):
    """What a fragment says of its author."""

    provider: str | None = None
    correlation_id: str | None = None


_author = msgspec.msgpack.Decoder(_Author).decode
_AUTHOR_HEADER = wire.map_header(ev.FRAGMENT_PAIRS)


class _Where:
    """Conditions of a statement with their values."""

    def __init__(self, *conditions: str) -> None:
        self.conditions = list(conditions)
        self.values: list[Any] = []

    def add(self, condition: str, *values: Any) -> None:
        """One more, when its (first) value was given."""
        if values and values[0] is not None:
            self.conditions.append(condition)
            self.values += values

    def one_of(self, column: str, values: list[Any] | None) -> None:
        """The column has one of these values."""
        if values is not None:
            self.conditions.append(f"{column} IN ({', '.join('?' * len(values))})")
            self.values += values

    def __str__(self) -> str:
        return " AND ".join(self.conditions)


class Search:
    """The searches of one partition. Every method raises ``StoreError`` as ``Store`` does."""

    def __init__(
        self, store: Store, owns: Callable[[str], bool], *, bytes_max: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._db = store.connection
        self._owns = owns
        self._bytes_max = bytes_max
        self._clock = clock

    # --- sessions ---

    def sessions(self, query: Query) -> Found:
        """Sessions in the order of ``updated`` or ``created``."""
        return self._store.guarded(lambda: self._sessions(query), "search sessions")

    def _sessions(self, query: Query) -> Found:
        given = query.filters
        where = _Where(_NAMED if given.get("include_deleted") else _KNOWN)
        codes = given.get("status") and [sessions.STATUS_CODE[name] for name in given["status"]]
        where.one_of("s.status", codes)
        where.add("s.agent_id = ?", given.get("agent_id"))
        where.add("s.created >= ?", given.get("created_after"))
        where.add("s.created <= ?", given.get("created_before"))
        column = query.order.partition("_")[0]
        tags, provider = set(given.get("tags") or ()), given.get("provider")

        def match(row: Any) -> SessionState | None:
            state = sessions.decode(checked_record(row[2:], "a session"))
            if not (tags <= set(state.tags) and self._owns(state.id)):
                return None
            if provider is not None and not self._used(row[1], provider):
                return None
            return state

        blob = "s.record, s.sum"
        return self._indexed(query, "session s", f"s.{column}", f"session_{column}", blob, where, match)

    def _used(self, session: int, provider: str) -> bool:
        latest = "SELECT provider FROM run WHERE session = ? ORDER BY n DESC LIMIT ?"
        sql = f"SELECT 1 FROM ({latest}) WHERE provider = ? LIMIT 1"
        return self._db.execute(sql, (session, PROVIDER_RUNS, provider)).fetchone() is not None

    # --- runs ---

    def runs(self, query: Query) -> Found:
        """Runs by their start; by tokens, or of one session, the best of what was looked at."""
        return self._store.guarded(lambda: self._runs(query), "search runs")

    def _runs(self, query: Query) -> Found:
        where = self._run_where(query.filters, "started_after", "started_before")
        codes = query.filters.get("status") and [runs.STATUS_CODE[name] for name in query.filters["status"]]
        where.one_of("r.status", codes)
        where.add("ifnull(r.tokens, 0) >= ?", query.filters.get("min_tokens"))

        def match(row: Any) -> RunState | None:
            state = runs.decode(checked_record(row[2:], "a run"))
            return state if self._owns(state.session_id) else None

        source = "run r {index} JOIN session s ON s.n = r.session"
        if query.order != "token_usage_desc" and "session_id" not in query.filters:
            return self._indexed(
                query, source, "r.started", "run_started", "r.record, r.sum", where, match, row="r.n")
        value = "r.started" if query.order.startswith("started") else "ifnull(r.tokens, 0)"
        best, reached = self._best(query, self._run_windows(query), source, value, "r.n", where)
        rows = []
        for sort, n in best:
            row = self._db.execute("SELECT ?, n, record, sum FROM run WHERE n = ?", (sort, n)).fetchone()
            state = match(row)
            if state is not None:
                rows.append((sort, n, state))
        return Found(rows, reached)

    def _run_where(self, given: dict[str, Any], since: str, until: str) -> _Where:
        where = _Where(_NAMED if "session_id" in given else _KNOWN)
        where.add("s.id = ?", given.get("session_id"))
        where.add("s.agent_id = ?", given.get("agent_id"))
        where.add("r.provider = ?", given.get("provider"))
        where.add("r.started >= ?", given.get(since))
        where.add("r.started <= ?", given.get(until))
        return where

    def _run_windows(self, query: Query) -> Iterator[tuple[str, int, int | None]]:
        """(condition, behind, up to) of windows of runs by row number, until this step is over."""
        session = query.filters.get("session_id")
        condition = "r.n > ?"
        if session is not None:
            n = self._session_row(session)
            condition = f"r.session = {n} AND r.n > ?"
        yield from self._windows("run r", "r.n", condition, query.reached)

    def _session_row(self, session_id: str) -> int:
        row = self._db.execute("SELECT n FROM session WHERE id = ?", (session_id,)).fetchone()
        return int(row[0]) if row else -1

    def usage(self, query: Query) -> tuple[list[list[Any]], int | None]:
        """Sums per (provider, model, status) over the runs of a step: runs, runs with a cost, cost, and the
        numbers of their usage; and the row that was reached."""
        return self._store.guarded(lambda: self._usage(query), "sum up usage")

    def _usage(self, query: Query) -> tuple[list[list[Any]], int | None]:
        where = self._run_where(query.filters, "since", "until")
        sums: dict[tuple[Any, ...], list[Any]] = {}
        reached: int | None = query.reached
        for condition, behind, up_to in self._run_windows(query):
            bound, values = _between(condition, "r.n", behind, up_to)
            sql = ("SELECT r.provider, r.model, r.status, r.cost, r.usage, s.id FROM run r"
                   f" JOIN session s ON s.n = r.session WHERE {bound} AND {where}")
            for provider, model, status, cost, usage, session_id in self._db.execute(
                sql, (*values, *where.values)
            ):
                if self._owns(session_id):
                    group = provider, model, status, usage is not None and cost is None
                    _add(sums.setdefault(group, [0, 0, 0.0, {}]), cost, usage)
            reached = up_to
        statuses = {code: status for status, code in runs.STATUS_CODE.items()}
        return [[p, m, statuses[status].value, *total] for (p, m, status, _), total in sums.items()], reached

    # --- events ---

    def events(self, query: Query) -> Found:
        """Events in the order of the log, or the best of those looked at by their time."""
        return self._store.guarded(lambda: self._events(query), "search events")

    def _events(self, query: Query) -> Found:
        best: list[Any] = []
        found: list[tuple[float, int, Any]] = []
        size = 0
        reached: int | None = query.reached
        by_time = query.order != "sequence_asc"
        for rows, up_to in self._event_rows(query):
            for row in rows:
                place = row[2] if query.filters.get("session_ids") else row[1]
                if by_time:
                    _keep(best, query, row)
                    continue
                found.append((place, row[1], self._event_of(row)))
                size += len(row[4])
                if len(found) == query.limit or size > self._bytes_max:
                    return Found(found, place)
            reached = up_to
        if by_time:
            found = [(row[0], row[1], self._event_of(row)) for row in _sorted(best)]
        return Found(found, reached)

    def count(self, query: Query) -> tuple[int, int | None]:
        """How many events of a step match, and the row that was reached."""

        def work() -> tuple[int, int | None]:
            count = 0
            reached: int | None = query.reached
            for rows, up_to in self._event_rows(query):
                count += sum(1 for _ in rows)
                reached = up_to
            return count, reached

        return self._store.guarded(work, "count events")

    def _event_rows(self, query: Query) -> Iterator[tuple[Iterator[Any], int | None]]:
        """Windows of matching rows (ts, pos, seq, type, fragment, sum, session id, provider...)."""
        given = query.filters
        named = given.get("session_ids")
        where = _Where(_NAMED if named else _KNOWN)
        where.one_of("e.type", given.get("types") and [ev.TYPE_CODE[name] for name in given["types"]])
        where.add("e.ts >= ?", given.get("since"))
        where.add("e.ts <= ?", given.get("until"))
        where.one_of("e.run", given.get("runs"))
        column, condition, table, source = "e.pos", "e.pos > ?", "event e", "event e"
        if named:
            row = self._session_row(named[0])
            self._store.settle(row)
            column, condition, table = "l.seq", f"l.session = {row} AND l.seq > ?", "log l"
            source = "log l CROSS JOIN event e ON e.pos = l.pos AND e.session = l.session"
        providers, correlation = given.get("providers"), given.get("correlation_id")

        def matching(rows: Any) -> Iterator[Any]:
            for row in rows:
                if not self._owns(row[6]):
                    continue
                if providers is not None or correlation is not None:
                    author = _author(_AUTHOR_HEADER + row[4])
                    if providers is not None and author.provider not in providers:
                        continue
                    if correlation is not None and author.correlation_id != correlation:
                        continue
                yield row

        for bound, behind, up_to in self._windows(table, column, condition, query.reached):
            bounds, values = _between(bound, column, behind, up_to)
            sql = ("SELECT e.ts, e.pos, e.seq, e.type, e.fragment, e.sum, s.id"
                   f" FROM {source} CROSS JOIN session s ON s.n = e.session"
                   f" WHERE {bounds} AND {where} ORDER BY {column}")
            yield matching(self._db.execute(sql, (*values, *where.values))), up_to

    def _event_of(self, row: Any) -> tuple[str, StoredEvent]:
        fragment = checked_record((row[4], row[5]), f"event {row[1]}")
        return row[6], StoredEvent(row[1], row[2], row[3], fragment)

    # --- the audit log ---

    def audit(self, query: Query) -> Found:
        """Entries, newest first, below the one that was reached (0: from the end)."""
        return self._store.guarded(lambda: self._audit(query), "search the audit log")

    def _audit(self, query: Query) -> Found:
        given = query.filters
        where = _Where("id > 0")
        for name in ("op", "target", "outcome"):
            where.add(f"{name} = ?", given.get(name))
        where.add("client = unhex(?)", given.get("client"))
        where.add("ts >= ?", given.get("since"))
        where.add("ts <= ?", given.get("until"))
        until, below = self._clock() + STEP_S, query.reached or 1 << 62
        found: list[tuple[float, int, Any]] = []
        while True:
            window = f"SELECT id FROM audit WHERE id < ? ORDER BY id DESC LIMIT 1 OFFSET {STEP_ROWS - 1}"
            end = self._db.execute(window, (below,)).fetchone()
            sql = ("SELECT id, ts, client, op, target, outcome FROM audit"
                   f" WHERE id < ? AND id >= ? AND {where} ORDER BY id DESC")
            for row in self._db.execute(sql, (below, end[0] if end else 0, *where.values)):
                found.append((row[1], row[0], row))
                if len(found) == query.limit:
                    return Found(found, row[0])
            if end is None:
                return Found(found, None)
            below = end[0]
            if self._clock() > until:
                return Found(found, below)

    # --- how rows are looked at ---

    def _indexed(
        self, query: Query, source: str, column: str, index: str, blob: str, where: _Where,
        match: Callable[[Any], Any], *, row: str = "s.n",
    ) -> Found:
        """Rows in the order of an index. ``match`` gives the value of a row that is wanted, else None."""
        turn, direction = ("<", " DESC") if query.descending else (">", "")
        order = f"ORDER BY {column}{direction}, {row}{direction}"
        hint = f"INDEXED BY {index}"
        source = source.format(index=hint) if "{index}" in source else f"{source} {hint}"
        after: Key = query.after or ((_INFINITE if query.descending else -_INFINITE), 0)
        found: list[tuple[float, int, Any]] = []
        size, until = 0, self._clock() + STEP_S
        place = f"({column}, {row}) {turn} (?, ?)"
        table = source.split(" JOIN ")[0]
        while True:
            keys = f"SELECT {column}, {row} FROM {table} WHERE {place} {order}"
            end = self._db.execute(f"{keys} LIMIT 1 OFFSET {STEP_ROWS - 1}", after).fetchone()
            upto = f"AND ({column}, {row}) {'>=' if turn == '<' else '<='} (?, ?)" if end else ""
            sql = f"SELECT {column}, {row}, {blob} FROM {source} WHERE {place} {upto} AND {where} {order}"
            for line in self._db.execute(sql, (*after, *(end or ()), *where.values)):
                value = match(line)
                if value is not None:
                    found.append((line[0], line[1], value))
                    size += len(line[2])
                if len(found) == query.limit or size > self._bytes_max or self._clock() > until:
                    return Found(found, (line[0], line[1]))
            if end is None:
                return Found(found, None)
            after = end
            if self._clock() > until:
                return Found(found, after)

    def _windows(
        self, table: str, column: str, condition: str, reached: int
    ) -> Iterator[tuple[str, int, int | None]]:
        """(condition, behind, up to) of windows in ascending order until STEP_S is over; the last window of
        all has no end."""
        until = self._clock() + STEP_S
        rows = f"SELECT {column} FROM {table} WHERE {condition} ORDER BY {column}"
        sql = f"{rows} LIMIT 1 OFFSET {STEP_ROWS - 1}"
        while True:
            row = self._db.execute(sql, (reached,)).fetchone()
            end = None if row is None else int(row[0])
            yield condition, reached, end
            if end is None or self._clock() > until:
                return
            reached = end

    def _best(
        self, query: Query, windows: Iterator[tuple[str, int, int | None]], source: str, value: str,
        row: str, where: _Where,
    ) -> tuple[list[Key], int | None]:
        """The best keys of a step, in order, and the row that was reached."""
        turn, direction = ("<", " DESC") if query.descending else (">", "")
        best: list[Key] = []
        reached: int | None = query.reached
        beyond = _Where()
        for place, sign in ((query.after, turn), (query.worst, ">" if turn == "<" else "<")):
            if place is not None:
                beyond.add(f"({value}, {row}) {sign} (?, ?)", *place)
        more = "".join(f" AND {condition}" for condition in beyond.conditions)
        for condition, behind, up_to in windows:
            bound, values = _between(condition, row, behind, up_to)
            sql = (f"SELECT {value}, {row} FROM {source.format(index='')} WHERE {bound} AND {where}{more}"
                   f" ORDER BY 1{direction}, 2{direction} LIMIT ?")
            rows = self._db.execute(sql, (*values, *where.values, *beyond.values, query.limit))
            best += [(one[0], one[1]) for one in rows]
            best = sorted(best, reverse=query.descending)[: query.limit]
            reached = up_to
        return best, reached


def _between(condition: str, column: str, behind: int, up_to: int | None) -> tuple[str, list[Any]]:
    if up_to is None:
        return condition, [behind]
    return f"{condition} AND {column} <= ?", [behind, up_to]


def _add(total: list[Any], cost: float | None, usage: bytes | None) -> None:
    total[0] += 1
    if cost is not None:
        total[1] += 1
        total[2] += cost
    if usage is not None:
        counts = total[3]
        for name, number in wire.unpack(usage).items():
            counts[name] = counts.get(name, 0) + number


def _keep(best: list[Any], query: Query, row: Any) -> None:
    """Keep a row when it is among the ``limit`` best; ``best`` is a heap whose top is the worst."""
    key = (row[0], row[1])
    if query.after is not None and not query.precedes(query.after, key):
        return
    if query.worst is not None and not query.precedes(key, query.worst):
        return
    sign = 1 if query.descending else -1
    entry = ((sign * key[0], sign * key[1]), row)
    if len(best) < query.limit:
        heapq.heappush(best, entry)
    elif entry[0] > best[0][0]:
        heapq.heapreplace(best, entry)


def _sorted(best: list[Any]) -> list[Any]:
    return [row for _, row in sorted(best, key=lambda entry: entry[0], reverse=True)]


__all__ = ["PROVIDER_RUNS", "STEP_ROWS", "STEP_S", "Found", "Search"]
