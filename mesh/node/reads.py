"""The partition's reads of sessions, runs, the log and the feed: committed rows, spliced, never decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mesh.core import events as ev
from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core import wire
from mesh.core.access import NOBODY, opens
from mesh.core.announced import topic_id
from mesh.core.attached import snapshot_of
from mesh.core.partition import Partition
from mesh.core.records import SessionStatus
from mesh.core.session import SessionState
from mesh.core.session_ops import LIST_MAX
from mesh.core.state import EventRow, State
from mesh.errors import InvalidArgument, NotFound, shown
from mesh.store.sqlite import Store, StoredEvent

EVENTS_PER_PAGE = 5_000
_FILTERS = frozenset(("run_id", "type", "since", "until", "after", "before", "limit"))
STAMP_PAIRS = 3
#: Stored sessions looked at for a page of those with certain tags.
SCAN_BYTES_MAX = 16 * 1024 * 1024


class Reads:
    """Read ops of one partition, by name in ``table``."""

    def __init__(
        self, state: State, store: Store, *, page_bytes: int, routes_config: dict[str, Any], map_version: int
    ) -> None:
        self.state = state
        self.map_version = map_version
        self.store = store
        self.page_bytes = page_bytes
        self.routes_config = routes_config
        self.partition: Partition
        self.echo: Callable[[str], None]
        self.info: Callable[[], dict[str, Any]]
        self.table: dict[str, Callable[[list[Any], int], bytes]] = {
            "route.config": lambda args, now: wire.ok(self.routes_config),
            "session.get": self.session_get,
            "session.snapshot": self.session_snapshot,
            "session.list": self.session_list,
            "session.handle": self.handle,
            "session.id_of": self.id_of,
            "session.runs": self.session_runs,
            "session.events": self.session_events,
            "session.queued": self.session_queued,
            "run.get": self.run_get,
            "approval.list": self.approval_list,
            "feed.echo": self.feed_echo,
            "feed.head": lambda args, now: wire.ok(self.head()),
            "feed.lifecycle": self.feed_lifecycle,
            "feed.session": self.feed_session,
            "agent.list": lambda args, now: wire.ok(self.partition.ops.agents.rows()),
            "partition.info": lambda args, now: wire.ok(self.info()),
        }

    def session_get(self, args: list[Any], now: int) -> bytes:
        session = seen(self.state, *_exactly(args, 1))
        return wire.ok(sessions.to_wire(session, self.state.pid_of(session)))

    def session_snapshot(self, args: list[Any], now: int) -> bytes:
        session = seen(self.state, *_exactly(args, 1))
        ops = self.partition.ops
        return wire.ok(snapshot_of(
            self.state, session, ops.approvals.rows(session.id, LIST_MAX, None, self.page_bytes)[0],
            ops.prompts.rows(session.id), self.page_bytes,
        ))

    def session_list(self, args: list[Any], now: int) -> bytes:
        status, agent_id, tags, limit, after = _exactly(args + [None] * (5 - len(args)), 5)
        code = None
        if status is not None:
            if status not in list(SessionStatus):
                raise InvalidArgument(f"unknown session status {shown(status, 40)}", code="invalid_status",
                                      details={"known": [s.value for s in SessionStatus]})
            code = sessions.STATUS_CODE[SessionStatus(status)]
        if agent_id is not None and type(agent_id) is not str:
            raise InvalidArgument(f"agent_id must be a str, not {shown(agent_id, 40)}")
        if tags is not None and (type(tags) is not list or not all(type(t) is str for t in tags)):
            raise InvalidArgument(f"tags must be a list of strs, not {shown(tags, 40)}")
        wanted = set(tags or ())
        limit = _number(limit, "limit", 1, LIST_MAX, 100)
        after = _number(after, "after", 0, 1 << 62, 0, code="invalid_cursor")
        page = _Page(limit, self.page_bytes)
        # A bounded number of rows is looked at per call, so that a rare tag never holds up the loop.
        found, following = self.store.list_sessions(
            status=code, agent_id=agent_id, after=after, limit=LIST_MAX if wanted else limit,
            bytes_max=SCAN_BYTES_MAX if wanted else self.page_bytes,
        )
        for stored in found:
            session = self.state.sessions.get(stored.id, stored)
            if self.partition.owns_session(session.id) and wanted <= set(session.tags) and not page.add(
                sessions.listed(session, self.state.pid_of(session), self.state.presented)
            ):
                return page.encode()
        return page.encode(following)

    def handle(self, args: list[Any], now: int) -> bytes:
        session = seen(self.state, *_exactly(args, 1))
        handle = sessions.handle_map(session, self.state.pid_of(session))
        if handle is None:
            raise NotFound(f"session {session.id} is not live: it is {session.status}")
        return wire.ok(list(handle.values()))

    def id_of(self, args: list[Any], now: int) -> bytes:
        session_id, *_ = _exactly(args, 4)
        session = seen(self.state, session_id)
        handle = sessions.handle_map(session, self.state.pid_of(session))
        if handle is None or list(handle.values()) != args:
            raise NotFound(f"that handle of session {session.id} is not the live one")
        return wire.ok(session.id)

    def session_runs(self, args: list[Any], now: int) -> bytes:
        session_id, limit, after = _exactly(args + [None] * (3 - len(args)), 3)
        session = seen(self.state, session_id)
        limit = _number(limit, "limit", 1, LIST_MAX, 100)
        after = _number(after, "after", 0, 1 << 62, 0, code="invalid_cursor")
        page = _Page(limit, self.page_bytes)
        found, more = self.store.list_runs(session.n, after=after, limit=limit, bytes_max=self.page_bytes)
        for run in found:
            if not page.add(runs.to_wire(self.state.runs.get(run.id, run), self.state.redactor)):
                return page.encode()
        return page.encode(found[-1].n if more else None)

    def session_queued(self, args: list[Any], now: int) -> bytes:
        session = seen(self.state, *_exactly(args, 1))
        return wire.ok(self.partition.ops.prompts.rows(session.id))

    def run_get(self, args: list[Any], now: int) -> bytes:
        return wire.ok(runs.to_wire(self.state.run(*_exactly(args, 1)), self.state.redactor))

    def approval_list(self, args: list[Any], now: int) -> bytes:
        session_id, limit, after = _exactly(args + [None] * (3 - len(args)), 3)
        limit = _number(limit, "limit", 1, LIST_MAX, 100)
        fits = type(after) is list and [type(item) for item in after] == [float, str, str]
        if after is not None and not fits:
            raise InvalidArgument("after must be what the page before ended with", code="invalid_cursor")
        return wire.ok(self.partition.ops.approvals.rows(session_id, limit, after, self.page_bytes))

    # --- the log ---

    def session_events(self, args: list[Any], now: int) -> bytes:
        session_id, filters = _exactly(args + [None] * (2 - len(args)), 2)
        session = seen(self.state, session_id)
        found, complete = self.find(session_id, session.n, checked_filters(filters))
        return wire.OK + encode_events(session_id, found, complete, session.pruned_to)

    def find(self, session_id: str, n: int, filters: dict[str, Any]) -> tuple[list[StoredEvent], bool]:
        """The events of a session that match."""
        run = None
        if filters.get("run_id") is not None:
            run_state = self.state.run(filters["run_id"])
            if run_state.session_id != session_id:
                raise InvalidArgument("that run belongs to another session", code="session_mismatch")
            run = run_state.n
        limit = filters.get("limit") or EVENTS_PER_PAGE
        found, complete = self.store.events(
            n,
            after=filters.get("after") or 0,
            before=filters.get("before"),
            run=run,
            since=filters.get("since"),
            until=filters.get("until"),
            types=filters["codes"],
            limit=min(limit, EVENTS_PER_PAGE),
            bytes_max=self.page_bytes,
        )
        return found, complete or len(found) == filters.get("limit")

    def matching(
        self, rows: list[EventRow], filters: dict[str, Any], seen: int
    ) -> tuple[list[StoredEvent], bool]:
        """Those of just appended events behind ``seen`` that match: one page, and whether these are all."""
        after, before = max(filters.get("after") or 0, seen), filters.get("before")
        codes, run_id = filters["codes"], filters.get("run_id")
        since, until = filters.get("since"), filters.get("until")
        limit = min(filters.get("limit") or EVENTS_PER_PAGE, EVENTS_PER_PAGE)
        found: list[StoredEvent] = []
        size = 0
        for row in rows:
            if (
                row.seq <= after
                or (codes and row.type not in codes)
                or (run_id is not None and row.run_id != run_id)
                or (before is not None and row.seq >= before)
                or ((since is not None and row.ts < since) or (until is not None and row.ts > until))
            ):
                continue
            if len(found) == limit or size > self.page_bytes:
                return found, len(found) == filters.get("limit")
            size += len(row.fragment)
            found.append(StoredEvent(row.pos, row.seq, row.type, row.fragment))
        return found, True

    # --- the feed ---

    def head(self) -> dict[str, Any]:
        """The counters as the last commit left them."""
        return {"partition": self.state.partition, "epoch": self.state.epoch, "node": self.state.node,
                "lseq": self.state.lseq, "pos": self.state.pos, "lseq_kept": self.store.lowest_lifecycle(),
                "map_version": self.map_version}

    def feed_echo(self, args: list[Any], now: int) -> bytes:
        token = _exactly(args, 1)[0]
        if type(token) is not str or not token.isalnum() or len(token) > 64:
            raise InvalidArgument("an echo token has 1 to 64 letters and digits")
        self.echo(token)
        return wire.ok(self.head())

    def feed_lifecycle(self, args: list[Any], now: int) -> bytes:
        after, limit = _exactly(args, 2)
        rows = self.store.feed_lifecycle(
            _number(after, "after", 0, 1 << 62, 0), _number(limit, "limit", 1, LIST_MAX, 1)
        )
        return b"".join((wire.OK, wire.array_header(len(rows)),
                         *(b"\x92" + wire.pack(topic) + payload for topic, payload in rows)))

    def feed_session(self, args: list[Any], now: int) -> bytes:
        after, limit = _exactly(args, 2)
        rows = self.store.feed_events(
            _number(after, "after", 0, 1 << 62, 0), _number(limit, "limit", 1, LIST_MAX, 1), self.page_bytes
        )
        parts = []
        hidden = 0
        for session_id, event in rows:
            session = self.state.session(session_id)
            hidden = event.pos if event.seq <= session.past else 0
            if hidden:
                continue
            if not opens(session.access, session_id, NOBODY):
                event = event._replace(fragment=ev.masked(event.fragment))
            parts.append(b"\x92" + wire.pack(event_topic(session_id, event.type)) + ev.encode_published(
                event.fragment, session_id, event.seq, event.pos, self.state.stamp, STAMP_PAIRS))
        if hidden:  # a page that ends with them, or is nothing else: the reader goes on behind it
            parts.append(b"\x92\xa0" + wire.pack({"pos": hidden}))
        return b"".join((wire.OK, wire.array_header(len(parts)), *parts))


def seen(state: State, session_id: Any) -> SessionState:
    """The session that a caller names: half an import is none.

    Raises:
        NotFound: ``session_not_found``.
    """
    session = state.session(session_id)
    if session.deleted_at == sessions.IMPORTING:
        raise NotFound(f"no session {shown(session_id, 140)}", code="session_not_found")
    return session


class _Page:
    """Encoded rows, bounded in number and in bytes; its cursor is the last row's number."""

    def __init__(self, limit: int, bytes_max: int) -> None:
        self._limit = limit
        self._left = bytes_max
        self._rows: list[bytes] = []
        self._last = 0
        self._full = False

    def add(self, row: dict[str, Any]) -> bool:
        """Take a row; False when the page is full and the row belongs to the next one."""
        if len(self._rows) == self._limit or self._left <= 0:
            self._full = True
            return False
        encoded = wire.pack(row)
        self._left -= len(encoded)
        self._rows.append(encoded)
        self._last = row["row"]
        return True

    def encode(self, cursor: int | None = None) -> bytes:
        """``[[row, ...], cursor]``; a full page has its own cursor."""
        cursor = self._last if self._full else cursor
        return b"".join(
            (wire.OK, b"\x92", wire.array_header(len(self._rows)), *self._rows, wire.pack(cursor))
        )


def event_topic(session_id: str, code: int) -> str:
    """The feed's topic of a session's event."""
    return f"session.{topic_id(session_id)}.{ev.EVENT_TYPES[code]}"


def encode_events(
    session_id: str, found: list[StoredEvent], complete: bool, pruned_to: int = 0
) -> bytes:
    """``[[event map, ...], complete]``, encoded; a third item says up to which seq events were removed.

    Where there is more, a fourth is the last seq: a reader asks for the next page before he reads this one.
    """
    rows = encode_rows(session_id, found)
    if not complete and found:
        return b"".join((b"\x94", rows, b"\xc2", wire.repack(pruned_to), wire.repack(found[-1].seq)))
    whole = b"\xc3" if complete else b"\xc2"
    if pruned_to:
        return b"".join((b"\x93", rows, whole, wire.repack(pruned_to)))
    return b"".join((b"\x92", rows, whole))


def encode_rows(session_id: str, rows: Sequence[EventRow | StoredEvent]) -> bytes:
    """``[event map, ...]``, encoded."""
    return wire.array_header(len(rows)) + ev.encode_log(session_id, rows)


def checked_filters(filters: Any) -> dict[str, Any]:
    """The filters of a read of events, checked; ``codes`` holds the wanted types.

    Raises:
        InvalidArgument: names the filter.
    """
    if filters is None:
        return {"codes": ()}
    if type(filters) is not dict:
        raise InvalidArgument(f"filters must be a map, not {type(filters).__name__}")
    for name in filters:
        if name not in _FILTERS:
            raise InvalidArgument(f"unknown filter {shown(name, 40)}; known: {', '.join(sorted(_FILTERS))}")
    for name in ("after", "before", "limit"):
        if filters.get(name) is not None:
            _number(filters[name], name, 1 if name == "limit" else 0, 1 << 62, 0,
                    code="invalid_cursor" if name != "limit" else "validation_error")
    for name in ("since", "until"):
        time = filters.get(name)
        if time is not None and not (type(time) in (int, float) and abs(time) < 10**12):
            raise InvalidArgument(f"{name} must be seconds since the epoch, not {shown(time, 40)}")
    if filters.get("run_id") is not None and type(filters["run_id"]) is not str:
        raise InvalidArgument("run_id must be a str", code="invalid_id")
    types = filters.get("type")
    names = [] if types is None else types if type(types) is list else [types]
    return {**filters, "codes": tuple({ev.type_code(name) for name in names})}


def _exactly(args: list[Any], count: int) -> list[Any]:
    if len(args) != count:
        raise InvalidArgument(f"expected {count} arguments, not {len(args)}")
    return args


def _number(
    value: Any, name: str, least: int, most: int, default: int, *, code: str = "validation_error"
) -> int:
    if value is None:
        return default
    if type(value) is not int or not least <= value <= most:
        raise InvalidArgument(
            f"{name} must be a whole number from {least} to {most}, not {shown(value, 40)}", code=code
        )
    return value


__all__ = ["EVENTS_PER_PAGE", "STAMP_PAIRS", "Reads", "checked_filters", "encode_events", "encode_rows",
           "event_topic", "seen"]
