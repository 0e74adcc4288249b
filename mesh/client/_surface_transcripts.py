"""Plans of transcripts: read one, fork a session, compact it, pin a message."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Any

from mesh.client._answers import events_of, plain_of
from mesh.client._protocol import READ, WRITE
from mesh.client._surface import Ask, Plan, value_of
from mesh.client._surface_runs import finished, wait_run
from mesh.client._surface_sessions import (
    check_input,
    fields,
    new_run_id,
    new_session_call,
    run_call,
    session_call,
)
from mesh.core.approval import APPROVED_TOOLS
from mesh.core.continuation import checked_budget, transcript_of
from mesh.core.history import Reading, ancestors, begin, fork_of, read_on
from mesh.core.records import Event, Session
from mesh.core.slots import check_id, session_slot
from mesh.errors import InvalidArgument, MeshError, RunError, shown

#: What a fork does not take over: the provider's own session, which goes on with the original, and what was
#: approved for good there.
_OWN = frozenset(("provider_sessions", APPROVED_TOOLS))
_KEEP_MAX = 1 << 62


def transcript(session_id: Any, budget: Mapping[str, Any], timeout_s: float | None) -> Plan:
    """``sessions.transcript``; ``timeout_s`` holds for each page."""
    wanted = checked_budget(budget)
    session = yield from _get(session_id, timeout_s)
    fold = yield from _whole(session, timeout_s)
    return transcript_of(fold, wanted)


def _get(session_id: Any, timeout_s: float | None) -> Plan:
    slot, call = session_call("session.get", session_id)
    [answer] = yield [Ask(READ, slot, call, timeout_s)]
    return value_of(answer)


def _whole(session: dict[str, Any], timeout_s: float | None) -> Plan:
    fold = yield from _driven(begin(session["id"], fork_of(session)), timeout_s)
    yield from _driven(read_on(fold, session["seq"]), timeout_s)
    return fold


def _driven(reading: Reading, timeout_s: float | None) -> Plan:
    """Have each read of a reading answered by the node."""
    try:
        op, args = next(reading)
        while True:
            [answer] = yield [Ask(READ, session_slot(args[0]), (op, tuple(args)), timeout_s)]
            try:
                value = plain_of(value_of(answer))
            except MeshError as exc:
                op, args = reading.throw(exc)
            else:
                op, args = reading.send(value)
    except StopIteration as done:
        return done.value


def fork(
    session_id: Any, at_seq: Any, *, new_id: Any, agent: Any, agent_id: Any, context: Any, metadata: Any,
    tags: Any, timeout_s: float | None,
) -> Plan:
    """``sessions.fork``: one write, in the partition of the new session; nothing of the original changes."""
    given = fields(agent_id, context, metadata, tags or (), None)
    session = yield from _get(session_id, timeout_s)
    if at_seq is None:
        at_seq = session["seq"]
    if type(at_seq) is not int or not 0 <= at_seq <= session["seq"]:
        raise InvalidArgument(
            f"at_seq must be a seq of session {session['id']}, from 0 to {session['seq']}, "
            f"not {shown(at_seq, 40)}", code="invalid_cursor",
        )
    yield from _driven(ancestors("", [session["id"], at_seq]), timeout_s)
    inherited = {
        "agent_id": session["agent_id"] if agent is None else None, "context": session["context"],
        "metadata": {key: value for key, value in session["metadata"].items() if key not in _OWN},
        "tags": session["tags"],
    }
    wanted = {**inherited, **given, "parent_session_id": session["id"], "fork_seq": at_seq}
    slot, call = new_session_call("session.start", agent or session["agent"], new_id, wanted)
    [answer] = yield [Ask(WRITE, slot, call, timeout_s)]
    return Session.from_map(value_of(answer))


def compact(
    session_id: Any, summary: Any, *, up_to: Any, keep_last: Any, agent: Any, instructions: Any,
    timeout_s: float | None,
) -> Plan:
    """``sessions.compact``: by the caller's summary, or by one that an agent makes."""
    sid = check_id(session_id)
    if summary is not None and (agent is not None or instructions is not None):
        raise InvalidArgument("either give a summary, or have an agent make it")
    if type(keep_last) is not int or not 0 <= keep_last <= _KEEP_MAX or (keep_last and up_to is not None):
        raise InvalidArgument(f"keep_last is a count, given without up_to, not {shown(keep_last, 40)}")
    if keep_last:
        up_to = yield from _before_last(sid, keep_last, timeout_s)
    if summary is not None:
        slot, call = session_call("session.compact", sid, summary, up_to)
        [answer] = yield [Ask(WRITE, slot, call, timeout_s)]
        return (yield from _event(sid, {"after": value_of(answer) - 1, "limit": 1}, None, timeout_s))
    deadline_s = None if timeout_s is None else monotonic() + timeout_s
    run_id, options = new_run_id(sid), {} if agent is None else {"agent": agent}
    if instructions is not None:
        check_input(instructions)
    slot, call = run_call("run.summarise", run_id, sid, up_to, instructions, options)
    [answer] = yield [Ask(WRITE, slot, call, timeout_s)]
    value_of(answer)
    finished((yield from wait_run(run_id, deadline_s)), ())
    return (yield from _event(sid, {"type": ["transcript_compacted"]}, run_id, timeout_s))


def _before_last(session_id: str, keep_last: int, timeout_s: float | None) -> Plan:
    """The seq behind which the last messages stand."""
    session = yield from _get(session_id, timeout_s)
    fold = yield from _whole(session, timeout_s)
    messages = transcript_of(fold).messages
    own = [m.metadata["sequence_number"] for m in messages[-keep_last:] if "session_id" not in m.metadata]
    if len(messages) <= keep_last or len(own) < keep_last:
        raise InvalidArgument(
            f"keep_last = {keep_last}: of {len(messages)} messages nothing that is older could be replaced"
        )
    return min(own) - 1


def _event(session_id: str, filters: dict[str, Any], run_id: str | None, timeout_s: float | None) -> Plan:
    """The compaction that was just written."""
    slot = session_slot(session_id)
    found: Event | None = None
    while True:
        [answer] = yield [Ask(READ, slot, ("session.events", (session_id, dict(filters))), timeout_s)]
        page = events_of(value_of(answer))
        for event in page.events:
            if run_id is None or event.data.get("run_id") == run_id:
                found = event
        if page.complete or not page.events:
            break
        filters["after"] = page.events[-1].seq
    if found is None:
        raise RunError("the agent gave no summary; nothing was replaced", code="provider_error",
                       details={"run_id": run_id, "session_id": session_id})
    return found


def pin_call(session_id: Any, seq: Any, pinned: Any) -> tuple[int, Any]:
    """(slot, call) of ``sessions.pin``."""
    return session_call("session.pin", session_id, seq, pinned)


def budget_of(**given: Any) -> dict[str, Any]:
    """The limits and filters that were given."""
    return {name: value for name, value in given.items() if value is not None}


__all__ = ["budget_of", "compact", "fork", "pin_call", "transcript"]
