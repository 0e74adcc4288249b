"""Plans of sessions and runs: ids are minted here, waiting reads are parked again here, nobody polls."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from time import monotonic
from typing import Any

from mesh.client._payload import Call
from mesh.client._protocol import READ, WAIT, WRITE
from mesh.client._surface import PAGE_MAX, Ask, Emit, Pause, Plan, failure, value_of
from mesh.client._surface_routes import Linked, list_pages
from mesh.core.events import RUN_TERMINAL_EVENT, type_code
from mesh.core.records import Event, Handle, Run, RunResult, RunStatus, Session, SessionStatus
from mesh.core.slots import check_id, run_id_for, run_slot, session_slot
from mesh.errors import DeadlineExceeded, InvalidArgument, MeshError, NotFound, RunError, from_wire

#: A parked read is given up by the SDK after this time and parked again; the node answers after 25 s.
PARK_S = 30.0
#: Verbs that wait for a run to end may take this much longer than other calls.
SETTLE_S = 6.0
RETRY_S = 0.1
RETRY_MAX_S = 1.0
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
_TERMINAL_TYPES = frozenset(RUN_TERMINAL_EVENT.values())


# --- arguments ---


def session_id_or_new(session_id: Any) -> str:
    """The caller's id, checked, or a new one."""
    return f"ses_{secrets.token_hex(16)}" if session_id is None else check_id(session_id)


def new_run_id(session_id: str) -> str:
    """A run id that carries the slot of its session."""
    return run_id_for(session_id, secrets.token_hex(16))


def fields(agent_id: Any, context: Any, metadata: Any, tags: Any, parent_session_id: Any) -> dict[str, Any]:
    """The optional fields of a new session; what was not given does not travel.

    Raises:
        InvalidArgument: ``validation_error``, names the field.
    """
    given: dict[str, Any] = {}
    for name, text in (("agent_id", agent_id), ("parent_session_id", parent_session_id)):
        if text is not None:
            if type(text) is not str or not text:
                raise InvalidArgument(f"{name} must be a non-empty str, not {text!r:.60}")
            given[name] = text
    for name, values in (("context", context), ("metadata", metadata)):
        if values is not None:
            if not isinstance(values, Mapping):
                raise InvalidArgument(f"{name} must be a mapping, not {type(values).__name__}")
            given[name] = dict(values)
    if tags:
        given["tags"] = _tags(tags)
    return given


def _tags(tags: Any) -> list[str]:
    listed: list[Any] = (
        [tags] if isinstance(tags, str) else list(tags) if isinstance(tags, Iterable) else [None]
    )
    if not all(isinstance(tag, str) and tag for tag in listed):
        raise InvalidArgument(f"tags must be non-empty strs, not {tags!r:.60}")
    return listed


def new_session_call(op: str, agent: Any, session_id: Any, given: dict[str, Any]) -> tuple[int, Call]:
    """(slot, call) of create, start and start_or_get."""
    if type(agent) is not str or not agent:
        raise InvalidArgument(f"agent must be the name of an agent, not {agent!r:.60}")
    sid = session_id_or_new(session_id)
    return session_slot(sid), (op, (sid, agent, given))


def session_call(op: str, session_id: Any, *more: Any) -> tuple[int, Call]:
    """(slot, call) of an op on one session."""
    sid = check_id(session_id)
    return session_slot(sid), (op, (sid, *more))


def run_call(op: str, run_id: Any, *more: Any) -> tuple[int, Call]:
    """(slot, call) of an op on one run."""
    return run_slot(run_id), (op, (run_id, *more))


def prompt_call(session_id: Any, text: Any, queue: Any) -> tuple[int, Call]:
    """(slot, call) of ``sessions.prompt``."""
    sid = check_id(session_id)
    if type(text) is not str or not text:
        raise InvalidArgument(f"a prompt is a non-empty str, not {text!r:.60}", code="invalid_input")
    return session_slot(sid), ("session.prompt", (sid, new_run_id(sid), text, queue))


def error_form(error: Any) -> Any:
    """How an error given to ``sessions.fail`` travels: a text or a map."""
    if isinstance(error, MeshError):
        return error.to_map()
    if isinstance(error, BaseException):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, Mapping):
        return {"message": "", "details": {}, **error}
    return str(error)


def check_input(value: Any) -> Any:
    """A run's input: a text or a map.

    Raises:
        InvalidArgument: ``invalid_input``.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise InvalidArgument(
            f"the input of a run is a str or a mapping, not {type(value).__name__}", code="invalid_input"
        )
    return dict(value)


def create_options(required: Sequence[str], optional: Sequence[str]) -> dict[str, Any]:
    """Options of ``runs.create``."""
    given = {
        "required_capabilities": _tags(required) if required else None,
        "optional_capabilities": _tags(optional) if optional else None,
    }
    return {name: value for name, value in given.items() if value}


def execute_options(
    *,
    continuation: Any = False,
    continuation_opts: Any = None,
    provider_opts: Any = None,
    policy: Any = None,
    policies: Any = None,
    workspace: Any = None,
    deadline_s: Any = None,
) -> dict[str, Any]:
    """Options of ``runs.execute``.

    Raises:
        InvalidArgument: ``capability_not_supported`` names an option this version cannot honour.
    """
    later = {
        "continuation": continuation,
        "continuation_opts": continuation_opts,
        "policy": policy,
        "policies": policies,
        "workspace": workspace,
    }
    for name, value in later.items():
        if value is not None and value is not False:
            raise InvalidArgument(
                f"{name} is not supported by this version",
                code="capability_not_supported",
                details={"option": name},
            )
    options: dict[str, Any] = {}
    if provider_opts is not None:
        if not isinstance(provider_opts, Mapping):
            raise InvalidArgument(f"provider_opts must be a mapping, not {type(provider_opts).__name__}")
        options["provider_opts"] = dict(provider_opts)
    if deadline_s is not None:
        if not isinstance(deadline_s, int | float) or isinstance(deadline_s, bool) or not deadline_s > 0:
            raise InvalidArgument(f"deadline_s must be a number of seconds above 0, not {deadline_s!r:.40}")
        options["deadline_s"] = deadline_s
    return options


def event_filters(
    *,
    run_id: Any = None,
    type: Any = None,
    since: Any = None,
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
        names = [str(type)] if isinstance(type, str) else [str(name) for name in type]
        for name in names:
            type_code(name)
        given["type"] = names
    if since is not None:
        given["since"] = since.timestamp() if isinstance(since, datetime) else since
    for name, number in (("after", after), ("before", before)):
        if number is not None:
            if not _whole(number, 0):
                raise InvalidArgument(f"{name} is a seq, not {number!r:.40}", code="invalid_cursor")
            given[name] = number
    if limit is not None:
        if not _whole(limit, 1):
            raise InvalidArgument(f"limit must be a whole number above 0, not {limit!r:.40}")
        given["limit"] = limit
    return given


def _whole(number: Any, least: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= least


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
    except (TypeError, ValueError) as exc:
        raise InvalidArgument(f"not a handle: {value!r:.80}", code="invalid_argument") from exc
    check_id(handle.session_id)
    return handle


def handle_fields(handle: Handle) -> tuple[str, int, int, int]:
    """The four fields as they travel."""
    return handle.session_id, handle.runner, handle.pid, handle.incarnation


def event_of(values: dict[str, Any]) -> Event:
    """Read one event."""
    return Event(
        values["id"],
        values["type"],
        values["session_id"],
        values["run_id"],
        values["seq"],
        values["ts"],
        values["data"],
        values["metadata"],
        values["provider"],
        values["correlation_id"],
        values["schema_version"],
    )


def settle_limit(link: Linked, timeout_s: float | None) -> float:
    """The limit of a verb that returns when a run is settled."""
    return link.timeout_s + SETTLE_S if timeout_s is None else timeout_s


# --- sessions ---


def list_sessions(
    status: Any, agent_id: Any, tags: Any, limit: Any, cursor: str | None, timeout_s: float | None
) -> Plan:
    """``sessions.list``: by creation, over all partitions."""
    if status is not None and status not in list(SessionStatus):
        raise InvalidArgument(
            f"unknown session status {status!r:.40}",
            code="invalid_status",
            details={"known": [s.value for s in SessionStatus]},
        )
    filters = (None if status is None else str(status), agent_id, _tags(tags) if tags else None)
    return (
        yield from list_pages(
            "sessions",
            "session.list",
            filters,
            limit,
            cursor,
            timeout_s,
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
    """Events that match, fetched in pages; the limit holds for each page."""
    sid = check_id(session_id)
    slot = session_slot(sid)
    found: list[Event] = []
    limit = filters.get("limit")
    asked = dict(filters)
    while True:
        [answer] = yield [Ask(READ, slot, ("session.events", (sid, asked)), timeout_s)]
        rows, complete = value_of(answer)
        found += [event_of(row) for row in rows]
        if complete or not rows or (limit is not None and len(found) >= limit):
            return found
        asked["after"] = found[-1].seq
        if limit is not None:
            asked["limit"] = limit - len(found)


class EventStream:
    """Follow one session: each page is a read parked in the partition; the next append answers it."""

    def __init__(self, session_id: Any, after: Any, run_id: Any, type: Any, timeout_s: float | None) -> None:
        self.session_id = check_id(session_id)
        self.filters = event_filters(after=after, run_id=run_id, type=type, limit=STREAM_PAGE)
        self.timeout_s = timeout_s

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
                rows = answer[0]
                if rows:
                    self.filters["after"] = rows[-1]["seq"]
                    return [event_of(row) for row in rows]
                delay_s = RETRY_S
            elif answer.code not in _PASSING:
                raise answer
            elif answer.code != "timeout":
                yield Pause(delay_s)
                delay_s = min(2 * delay_s, RETRY_MAX_S)


def park_limit(deadline_s: float | None, what: str, details: dict[str, Any]) -> float:
    """How long the next waiting read may be parked.

    Raises:
        DeadlineExceeded: the caller's own limit has passed.
    """
    if deadline_s is None:
        return PARK_S
    left_s = deadline_s - monotonic()
    if left_s <= 0:
        raise DeadlineExceeded(
            f"{what} within the caller's time limit; nothing was cancelled", details=details
        )
    return min(PARK_S, left_s)


# --- runs ---


def wait_run(run_id: str, deadline_s: float | None, first: Any = None) -> Plan:
    """Park until the run is terminal. ``first`` is an answer that is already there (None: none)."""
    slot, answer = run_slot(run_id), first
    while True:
        if isinstance(answer, MeshError):
            if answer.code == "overloaded":
                yield Pause(RETRY_MAX_S / 4)
            elif answer.code != "timeout":
                raise answer
        elif answer is not None:
            return Run.from_map(answer)
        park_s = park_limit(deadline_s, f"run {run_id} did not end", {"run_id": run_id})
        [answer] = yield [Ask(WAIT, slot, ("run.wait", (run_id,)), park_s)]


def finished(run: Run, events: Sequence[Event]) -> RunResult:
    """The result of a run that completed.

    Raises:
        MeshError: the run's error, with ``run_id`` and ``session_id`` in its details.
    """
    if run.status == RunStatus.COMPLETED:
        return RunResult(
            run.output or {}, run.token_usage, run.cost_usd, tuple(events), run.session_id, run.id
        )
    code = {RunStatus.CANCELLED: "cancelled", RunStatus.TIMEOUT: "timeout"}.get(run.status)
    error = run.error or {}
    details = {**(error.get("details") or {}), "run_id": run.id, "session_id": run.session_id}
    message = str(error.get("message") or f"run {run.id} is {run.status.value}")
    if not error and code is None:
        raise RunError(message, code="run_failed", details=details)
    raise from_wire(code or str(error.get("code") or "run_failed"), message, details)


def result_of_run(run_id: Any, deadline_s: float | None, *, whole_session: bool = False) -> Plan:
    """Wait for a run and fetch its events (or its session's, for run_once)."""
    run_slot(run_id)
    run: Run = yield from wait_run(run_id, deadline_s)
    return (yield from _with_events(run, whole_session))


def _with_events(run: Run, whole_session: bool) -> Plan:
    if run.status != RunStatus.COMPLETED:
        return finished(run, ())
    filters = {} if whole_session else {"run_id": run.id}
    events = yield from session_events(run.session_id, filters, None)
    return finished(run, events)


def wait(run_id: Any, timeout_s: float | None) -> Plan:
    """``runs.wait``."""
    return (yield from result_of_run(run_id, _deadline(timeout_s)))


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else monotonic() + timeout_s


def execute(
    link: Linked,
    run_id: Any,
    options: dict[str, Any],
    on_event: Callable[[Event], Any] | None,
    timeout_s: float | None,
) -> Plan:
    """``runs.execute``: start the run, follow it, give its result."""
    deadline_s = _deadline(timeout_s)
    slot, call = run_call("run.execute", run_id, options)
    [answer] = yield [Ask(WRITE, slot, call, _write_limit(link, timeout_s))]
    run = Run.from_map(value_of(answer))
    if on_event is not None:
        yield from follow(run.session_id, run.id, {"run_id": run.id}, on_event, deadline_s)
    return (yield from result_of_run(run.id, deadline_s))


def run_once(
    link: Linked,
    agent: Any,
    value: Any,
    session_id: Any,
    given: dict[str, Any],
    options: dict[str, Any],
    on_event: Callable[[Event], Any] | None,
    timeout_s: float | None,
) -> Plan:
    """``client.run_once``: one op creates the session, starts it and dispatches the run."""
    deadline_s = _deadline(timeout_s)
    _, (_, (sid, _, _)) = new_session_call("run.once", agent, session_id, given)
    slot, run_id = session_slot(sid), new_run_id(sid)
    call: Call = ("run.once", (run_id, sid, agent, check_input(value), given, options))
    asks = [Ask(WRITE, slot, call, _write_limit(link, timeout_s), gate=True)]
    if on_event is None:
        park_s = park_limit(deadline_s, f"run {run_id} did not end", {"run_id": run_id})
        asks.append(Ask(WAIT, slot, ("run.wait", (run_id,)), park_s))
    answers = yield asks
    value_of(answers[0])
    first = None
    if on_event is not None:
        yield from follow(sid, run_id, {}, on_event, deadline_s)
    elif not (isinstance(answers[1], NotFound) and answers[1].code == "run_not_found"):
        first = answers[1]  # run_not_found: the question overtook a resent write; ask again
    run: Run = yield from wait_run(run_id, deadline_s, first)
    return (yield from _with_events(run, True))


def _write_limit(link: Linked, timeout_s: float | None) -> float:
    return link.timeout_s if timeout_s is None else min(timeout_s, link.timeout_s)


def follow(
    session_id: str,
    run_id: str,
    filters: dict[str, Any],
    on_event: Callable[[Event], Any],
    deadline_s: float | None,
) -> Plan:
    """Give the events to the caller's function, live and in order, up to the run's terminal one."""
    slot = session_slot(session_id)
    asked: dict[str, Any] = {**filters, "after": 0, "limit": STREAM_PAGE}
    while True:
        park_s = park_limit(
            deadline_s, f"run {run_id} did not end", {"run_id": run_id, "session_id": session_id}
        )
        [answer] = yield [Ask(WAIT, slot, ("session.wait", (session_id, dict(asked))), park_s)]
        if isinstance(answer, MeshError):
            if answer.code == "overloaded":
                yield Pause(RETRY_MAX_S / 4)
            elif answer.code != "timeout":
                raise answer
            continue
        for row in answer[0]:
            event = event_of(row)
            asked["after"] = event.seq
            yield Emit(on_event, event)
            if event.run_id == run_id and event.type in _TERMINAL_TYPES:
                return None


__all__ = [
    "PARK_S",
    "STREAM_PAGE",
    "EventStream",
    "check_input",
    "create_options",
    "error_form",
    "event_filters",
    "event_of",
    "execute",
    "execute_options",
    "failure",
    "fields",
    "finished",
    "handle_fields",
    "handle_of",
    "list_sessions",
    "new_run_id",
    "new_session_call",
    "prompt_call",
    "run_call",
    "run_once",
    "session_call",
    "session_events",
    "session_runs",
    "settle_limit",
    "wait",
    "wait_run",
]
