"""Plans of sessions and runs: ids are minted here, waiting reads are parked again here, nobody polls."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any

from mesh.client._answers import Logged, events_of, goes_on_after
from mesh.client._payload import Call
from mesh.client._protocol import READ, WAIT
from mesh.client._surface import (
    PAGE_MAX,
    Ask,
    Meanwhile,
    Pause,
    Plan,
    check_timeout,
    listed,
    park_limit,
    value_of,
)
from mesh.client._surface_routes import Linked, list_pages
from mesh.client._workspace import workspace_option
from mesh.core.access import checked_token
from mesh.core.continuation import checked_budget, checked_mode
from mesh.core.events import type_code
from mesh.core.plain import plain, plain_map, seconds
from mesh.core.policy import Policy
from mesh.core.records import Event, Handle, Run, Session, SessionStatus
from mesh.core.slots import check_id, run_id_for, run_slot, session_slot
from mesh.errors import InvalidArgument, MeshError, shown

#: Verbs that wait for a run to end may take this much longer than other calls.
SETTLE_S = 6.0
RETRY_S = 0.1
RETRY_MAX_S = 1.0
#: No log is longer.
_SEQ_MAX = 1 << 62
#: Events of one page of a stream.
STREAM_PAGE = 1_000
#: A stream outlives these; everything else ends it.
_PASSING = frozenset(
    (
        "timeout",
        "overloaded",
        "partition_unavailable",
        "node_unreachable",
        "store_unavailable",
        "session_unavailable",
    )
)


# --- arguments ---


def session_id_or_new(session_id: Any) -> str:
    """The caller's id, checked, or a new one."""
    return f"ses_{_hex()}" if session_id is None else check_id(session_id)


def _hex() -> str:
    """32 hex digits: the time in ms, then 80 random bits. Ids of one moment stand side by side in the store's
    index, so a thousand new ones touch a few of its pages and not a thousand."""
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"


def new_run_id(session_id: str) -> str:
    """A run id that carries the slot of its session."""
    return run_id_for(check_id(session_id), _hex())


def fields(
    agent_id: Any, context: Any, metadata: Any, tags: Any, parent_session_id: Any, slots: Any = None,
    token: Any = None,
) -> dict[str, Any]:
    """The optional fields of a new session; what was not given does not travel.

    Raises:
        InvalidArgument: ``validation_error``, names the field.
    """
    given: dict[str, Any] = {}
    for name, text in (("agent_id", agent_id), ("parent_session_id", parent_session_id)):
        if text is not None:
            if type(text) is not str or not text:
                raise InvalidArgument(f"{name} must be a non-empty str, not {shown(text, 60)}")
            given[name] = text
    for name, values in (("context", context), ("metadata", metadata)):
        if values is not None:
            given[name] = plain_map(values, name)
    if tags:
        given["tags"] = _tags(tags)
    if slots is not None:
        given["slots"] = slots
    if token is not None:
        given["token"] = checked_token(token)
    return given


def _tags(tags: Any) -> list[str]:
    listed: list[Any] = (
        [tags] if isinstance(tags, str) else list(tags) if isinstance(tags, Iterable) else [None]
    )
    if not all(isinstance(tag, str) and tag for tag in listed):
        raise InvalidArgument(f"tags must be non-empty strs, not {shown(tags, 60)}")
    return listed


def new_session_call(op: str, agent: Any, session_id: Any, given: dict[str, Any]) -> tuple[int, Call]:
    """(slot, call) of create, start and start_or_get."""
    if type(agent) is not str or not agent:
        raise InvalidArgument(f"agent must be the name of an agent, not {shown(agent, 60)}")
    sid = session_id_or_new(session_id)
    return session_slot(sid), (op, (sid, agent, given))


def session_call(op: str, session_id: Any, *more: Any) -> tuple[int, Call]:
    """(slot, call) of an op on one session."""
    sid = check_id(session_id)
    return session_slot(sid), (op, (sid, *more))


def run_call(op: str, run_id: Any, *more: Any) -> tuple[int, Call]:
    """(slot, call) of an op on one run."""
    return run_slot(run_id), (op, (run_id, *more))


def error_form(error: Any) -> Any:
    """How an error given to ``sessions.fail`` travels: a text or a map."""
    if isinstance(error, MeshError):
        return error.to_wire()
    if isinstance(error, BaseException):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, Mapping):
        return {"message": "", "details": {}, **plain_map(error, "error")}
    if isinstance(error, str):
        return str(error)
    raise InvalidArgument(f"error is a text, a mapping or an exception, not {type(error).__name__}")


def check_input(value: Any) -> Any:
    """A run's input: a text or a map.

    Raises:
        InvalidArgument: ``invalid_input``.
    """
    if isinstance(value, str):
        return value
    found = plain(value, "input", code="invalid_input")
    if type(found) not in (dict, str):
        raise InvalidArgument(
            f"the input of a run is a str or a mapping, not {type(value).__name__}", code="invalid_input"
        )
    return found


def create_options(required: Sequence[str], optional: Sequence[str]) -> dict[str, Any]:
    """Options of ``runs.create``."""
    given = {
        "required_capabilities": _tags(required) if required else None,
        "optional_capabilities": _tags(optional) if optional else None,
    }
    return {name: value for name, value in given.items() if value}


def execute_options(
    *,
    agent: Any = None,
    continuation: Any = None,
    continuation_opts: Any = None,
    provider_opts: Any = None,
    policy: Any = None,
    policies: Any = None,
    workspace: Any = None,
    deadline_s: Any = None,
    idle_s: Any = None,
) -> dict[str, Any]:
    """Options of ``runs.execute``.

    Raises:
        InvalidArgument: names the option.
    """
    options: dict[str, Any] = {}
    layers = listed(policies, "policies") if policies else [] if policy is None else [policy]
    if layers:
        options["policies"] = [
            (layer if isinstance(layer, Policy) else Policy.from_map(layer)).to_map() for layer in layers
        ]
    if agent is not None:
        if type(agent) is not str or not agent:
            raise InvalidArgument(f"agent must be the name of an agent, not {shown(agent, 60)}")
        options["agent"] = agent
    if continuation is not None:
        options["continuation"] = checked_mode(continuation) or False
    if continuation_opts is not None:
        checked_budget(continuation_opts)
        options["continuation_opts"] = dict(continuation_opts)
    if provider_opts is not None:
        options["provider_opts"] = plain_map(provider_opts, "provider_opts")
    if workspace is not None and workspace is not False:
        options["workspace"] = workspace_option(workspace)
    for name, limit_s in (("deadline_s", deadline_s), ("idle_s", idle_s)):
        if limit_s is not None:
            if not isinstance(limit_s, int | float) or isinstance(limit_s, bool) or not limit_s > 0:
                raise InvalidArgument(f"{name} must be a number of seconds above 0, not {shown(limit_s)}")
            options[name] = limit_s
    return options


def event_filters(
    *,
    run_id: Any = None,
    type: Any = None,
    since: Any = None,
    until: Any = None,
    after: Any = None,
    before: Any = None,
    limit: Any = None,
) -> dict[str, Any]:
    """Filters of a read of events; what was not given does not travel.

    Raises:
        InvalidArgument: names the filter.
    """
    given: dict[str, Any] = {}
    if run_id is not None:
        run_slot(run_id)
        given["run_id"] = run_id
    if type is not None:
        names = [type] if isinstance(type, str) else listed(type, "type")
        for name in names:
            type_code(name)
        given["type"] = [str(name) for name in names]
    for name, at in (("since", since), ("until", until)):
        if at is not None:
            given[name] = seconds(at, name)
    for name, number in (("after", after), ("before", before)):
        if number is not None:
            if not _whole(number, 0):
                raise InvalidArgument(f"{name} is a seq, not {shown(number, 40)}", code="invalid_cursor")
            given[name] = number
    if limit is not None:
        if not _whole(limit, 1):
            raise InvalidArgument(f"limit must be a whole number above 0, not {shown(limit, 40)}")
        given["limit"] = limit
    return given


def _whole(number: Any, least: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and least <= number <= _SEQ_MAX


def handle_of(value: Any) -> Handle:
    """A handle, from a record, its map, or its four fields.

    Raises:
        InvalidArgument: ``invalid_argument``.
    """
    if isinstance(value, Handle):
        return value
    try:
        values = (
            dict(value)
            if isinstance(value, Mapping)
            else dict(zip(Handle.__struct_fields__, value, strict=True))
        )
        handle = Handle.from_map(values)
    except (TypeError, ValueError, MeshError) as exc:
        raise InvalidArgument(f"not a handle: {shown(value, 80)}", code="invalid_argument") from exc
    check_id(handle.session_id)
    return handle


def handle_fields(handle: Handle) -> tuple[str, int, int, int]:
    """The four fields as they travel."""
    return handle.session_id, handle.runner, handle.pid, handle.incarnation


def settle_limit(link: Linked, timeout_s: float | None) -> float:
    """The limit of a verb that returns when a run is settled."""
    return link.timeout_s + SETTLE_S if timeout_s is None else timeout_s


# --- sessions ---


def list_sessions(
    status: Any, agent_id: Any, tags: Any, *, limit: Any, cursor: str | None, timeout_s: float | None
) -> Plan:
    """``sessions.list``: by creation, over all partitions."""
    if status is not None and status not in list(SessionStatus):
        raise InvalidArgument(
            f"unknown session status {shown(status, 40)}",
            code="invalid_status",
            details={"known": [s.value for s in SessionStatus]},
        )
    filters = (None if status is None else str(status), agent_id, _tags(tags) if tags else None)
    return (
        yield from list_pages(
            "sessions",
            "session.list",
            filters,
            limit=limit,
            cursor=cursor,
            timeout_s=timeout_s,
            order=lambda row: row["created_at"],
            after_of=lambda row: row["row"],
            parse=Session.from_map,
        )
    )


def session_runs(session_id: Any, timeout_s: float | None) -> Plan:
    """All runs of a session, oldest first."""
    runs: list[Run] = []
    after = None
    while True:
        slot, call = session_call("session.runs", session_id, PAGE_MAX, after)
        [answer] = yield [Ask(READ, slot, call, timeout_s)]
        rows, after = value_of(answer)
        runs += [Run.from_map(row) for row in rows]
        if after is None:
            return runs


def session_events(session_id: Any, filters: dict[str, Any], timeout_s: float | None) -> Plan:
    """Events that match, fetched in pages, the next one while one is read; the limit holds for each page."""
    sid = check_id(session_id)
    slot = session_slot(sid)
    found: list[Event] = []
    limit = filters.get("limit")

    def asks(**more: Any) -> list[Ask]:
        return [Ask(READ, slot, ("session.events", (sid, filters | more)), timeout_s)]

    [answer] = yield asks()
    while True:
        value = value_of(answer)
        after = goes_on_after(value) if limit is None else None
        if after is not None:
            [answer] = yield Meanwhile(asks(after=after), partial(_add_page, found, value))
            continue
        page = _add_page(found, value)
        if page.complete or not page.events or (limit is not None and len(found) >= limit):
            return found
        more = {} if limit is None else {"limit": limit - len(found)}
        [answer] = yield asks(after=found[-1].seq, **more)


def _add_page(found: list[Event], value: Any) -> Logged:
    page = events_of(value)
    found += page.events
    return page


#: The type of the marker that tells a follower of removed events; it is in no log.
LOG_PRUNED = "log_pruned"


class EventStream:
    """Follow one session: each page is a read parked in the partition; the next append answers it."""

    def __init__(self, session_id: Any, after: Any, run_id: Any, type: Any, timeout_s: float | None) -> None:
        self.session_id = check_id(session_id)
        self.filters = event_filters(after=after, run_id=run_id, type=type, limit=STREAM_PAGE)
        check_timeout(timeout_s)
        self.timeout_s = timeout_s
        self._told = 0  #: up to where the caller knows that events were removed

    def _marker(self, first_seq: int, pruned_to: int = 0) -> list[Event]:
        """Tell the caller, once, that retention removed events where he is reading: that is no loss."""
        after = self.filters.get("after") or 0
        if max(after, self._told) >= pruned_to:
            return []
        self._told = pruned_to
        data = {"first_seq": first_seq, "pruned_to": pruned_to}
        return [Event("", LOG_PRUNED, self.session_id, None, max(after, first_seq - 1), 0.0, data)]

    def page(self) -> Plan:
        """Wait for events: at least one. Restarts and silence are outlived.

        Raises:
            DeadlineExceeded: nothing came within ``timeout_s``.
        """
        slot, delay_s = session_slot(self.session_id), RETRY_S
        deadline_s = None if self.timeout_s is None else monotonic() + self.timeout_s
        while True:
            park_s = park_limit(
                deadline_s, f"no event of session {self.session_id}", {"session_id": self.session_id}
            )
            [answer] = yield [
                Ask(WAIT, slot, ("session.wait", (self.session_id, dict(self.filters))), park_s)
            ]
            if not isinstance(answer, MeshError):
                page = events_of(answer)
                if page.events:
                    marker = self._marker(page.events[0].seq, page.pruned_to)
                    self.filters["after"] = page.events[-1].seq
                    return marker + page.events
                delay_s = RETRY_S
            elif answer.code not in _PASSING:
                raise answer
            elif answer.code != "timeout":
                yield Pause(delay_s)
                delay_s = min(2 * delay_s, RETRY_MAX_S)


__all__ = [
    "LOG_PRUNED",
    "STREAM_PAGE",
    "EventStream",
    "check_input",
    "create_options",
    "error_form",
    "event_filters",
    "execute_options",
    "fields",
    "handle_fields",
    "handle_of",
    "list_sessions",
    "new_run_id",
    "new_session_call",
    "run_call",
    "session_call",
    "session_events",
    "session_runs",
    "settle_limit",
]
