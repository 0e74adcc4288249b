"""Plans of runs: submit, follow, wait for the end. A waiting read is parked again until it has an answer."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any

from mesh.client._answers import Ended, events_of, run_of
from mesh.client._payload import Call
from mesh.client._protocol import WAIT, WRITE
from mesh.client._surface import Ask, Emit, Pause, Plan, check_function, park_limit, value_of
from mesh.client._surface_routes import Linked
from mesh.client._surface_sessions import (
    STREAM_PAGE,
    check_input,
    new_run_id,
    new_session_call,
    run_call,
    session_events,
)
from mesh.core.events import RUN_TERMINAL_EVENT
from mesh.core.records import Event, Run, RunResult, RunStatus
from mesh.core.slots import run_slot, session_slot
from mesh.core.workspace import result_of
from mesh.errors import MeshError, NotFound, RunError, from_wire

#: Pause before a waiting read that found no room is parked again.
ROOM_S = 0.25
_TERMINAL_TYPES = frozenset(RUN_TERMINAL_EVENT.values())


def wait_run(
    run_id: str, deadline_s: float | None, events: str | None = None, *, first: Any = None
) -> Plan:
    """Park until the run is terminal. ``first`` is an answer that is already there (None: none).

    With ``events`` ("run" or "session") those come along, unless they are many.
    """
    slot, answer = run_slot(run_id), first
    while True:
        if isinstance(answer, MeshError):
            if answer.code == "overloaded":
                yield Pause(ROOM_S)
            elif answer.code != "timeout":
                raise answer
        else:
            run = None if answer is None else run_of(answer)
            if run is not None:
                return run
        park_s = park_limit(deadline_s, f"run {run_id} did not end", {"run_id": run_id})
        [answer] = yield [Ask(WAIT, slot, ("run.wait", (run_id, events)), park_s)]


def finished(run: Run, events: Sequence[Event]) -> RunResult:
    """The result of a run that completed.

    Raises:
        MeshError: the run's error, with ``run_id`` and ``session_id`` in its details.
    """
    if run.status == RunStatus.COMPLETED:
        return RunResult(
            run.output or {}, run.token_usage, run.cost_usd, tuple(events), run.session_id, run.id,
            cost_state=run.cost_state, turn_count=run.turn_count, metadata=run.metadata,
            policy=run.metadata.get("policy"),
            workspace=result_of(run.metadata),
        )
    code = {RunStatus.CANCELLED: "cancelled", RunStatus.TIMEOUT: "timeout"}.get(run.status)
    error = run.error or {}
    details = {**(error.get("details") or {}), "run_id": run.id, "session_id": run.session_id}
    message = str(error.get("message") or f"run {run.id} is {run.status.value}")
    if not error and code is None:
        raise RunError(message, code="run_failed", details=details)
    about = error.get("provider_error")
    code = code or str(error.get("code") or "run_failed")
    raise from_wire(code, message, details, about if isinstance(about, dict) else None)


def result_of_run(run_id: Any, deadline_s: float | None) -> Plan:
    """Wait for a run, with its events."""
    run_slot(run_id)
    run: Ended = yield from wait_run(run_id, deadline_s, "run")
    return (yield from _with_events(run, whole_session=False))


def _with_events(run: Ended, *, whole_session: bool) -> Plan:
    if run.status != RunStatus.COMPLETED or run.events is not None:
        return finished(run, run.events or ())
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
    *,
    if_version: int | None = None,
) -> Plan:
    """``runs.execute``: start the run, follow it, give its result."""
    check_function(on_event, "on_event")
    deadline_s = _deadline(timeout_s)
    slot, call = run_call("run.execute", run_id, options, if_version)
    [answer] = yield [Ask(WRITE, slot, call, _write_limit(link, timeout_s))]
    run = Run.from_map(value_of(answer))
    if on_event is not None:
        yield from follow(run.session_id, run.id, {"run_id": run.id}, on_event, deadline_s)
    return (yield from result_of_run(run.id, deadline_s))


def run_once(
    link: Linked,
    agent: Any,
    value: Any,
    *,
    session_id: Any,
    given: dict[str, Any],
    options: dict[str, Any],
    on_event: Callable[[Event], Any] | None,
    timeout_s: float | None,
) -> Plan:
    """``client.run_once``: one op creates the session, starts it and dispatches the run."""
    check_function(on_event, "on_event")
    deadline_s = _deadline(timeout_s)
    _, (_, (sid, _, _)) = new_session_call("run.once", agent, session_id, given)
    slot, run_id = session_slot(sid), new_run_id(sid)
    call: Call = ("run.once", (run_id, sid, agent, check_input(value), given, options))
    asks = [Ask(WRITE, slot, call, _write_limit(link, timeout_s), gate=True)]
    if on_event is None:
        park_s = park_limit(deadline_s, f"run {run_id} did not end", {"run_id": run_id})
        asks.append(Ask(WAIT, slot, ("run.wait", (run_id, "session")), park_s))
    answers = yield asks
    value_of(answers[0])
    first = None
    if on_event is not None:
        yield from follow(sid, run_id, {}, on_event, deadline_s)
    elif not (isinstance(answers[1], NotFound) and answers[1].code == "run_not_found"):
        first = answers[1]  # run_not_found: the question overtook a resent write; ask again
    run: Ended = yield from wait_run(run_id, deadline_s, "session", first=first)
    return (yield from _with_events(run, whole_session=True))


def _write_limit(link: Linked, timeout_s: float | None) -> float:
    return link.timeout_s if timeout_s is None else min(timeout_s, link.timeout_s)


def follow(
    session_id: str,
    run_id: str,
    filters: dict[str, Any],
    on_event: Callable[[Event], Any],
    deadline_s: float | None,
) -> Plan:
    """Give the events to the caller's function, live and in order, up to the run's terminal one.

    Without filters also what the same transaction wrote behind it: the end of a ``run_once``'s session.
    What the function raises ends this, not the run; a note on the exception says how to go on.
    """
    told = _noted(on_event, f"raised by on_event; run {run_id} of session {session_id} goes on (runs.wait)")
    slot = session_slot(session_id)
    asked: dict[str, Any] = {**filters, "after": 0, "limit": STREAM_PAGE}
    while True:
        park_s = park_limit(
            deadline_s, f"run {run_id} did not end", {"run_id": run_id, "session_id": session_id}
        )
        [answer] = yield [Ask(WAIT, slot, ("session.wait", (session_id, dict(asked))), park_s)]
        if isinstance(answer, MeshError):
            if answer.code == "overloaded":
                yield Pause(ROOM_S)
            elif answer.code != "timeout":
                raise answer
            continue
        ended = False
        for event in events_of(answer).events:
            asked["after"] = event.seq
            yield Emit(told, event)
            ended = ended or (event.run_id == run_id and event.type in _TERMINAL_TYPES)
        if ended:
            if not filters and event.run_id == run_id:  # the page was cut just there
                for last in (yield from session_events(session_id, {"after": event.seq}, None)):
                    yield Emit(told, last)
            return None


def _noted(on_event: Callable[[Event], Any], note: str) -> Callable[[Event], Any]:
    """The caller's function, plain or a coroutine, whose exceptions carry a note."""

    async def awaited(answer: Awaitable[Any]) -> None:
        try:
            await answer
        except Exception as exc:
            exc.add_note(note)
            raise

    def call(event: Event) -> Any:
        try:
            answer = on_event(event)
        except Exception as exc:
            exc.add_note(note)
            raise
        return awaited(answer) if inspect.isawaitable(answer) else answer

    return call


__all__ = ["execute", "finished", "follow", "result_of_run", "run_once", "wait", "wait_run"]
