"""The questions inside a run's state: answered, closed with the run; its status keeps step with them.

Beside what a client is shown, a question has ``tag``, what its runner calls it; ``attempt``, the one that
waits for it; ``digest``, of the tool and the whole input; and ``carried``, when that attempt ended and it was
open: it waits for the next one to ask the same.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mesh.core import approval as ap
from mesh.core import run as runs
from mesh.core.records import RunStatus
from mesh.core.run import RunState
from mesh.core.state import State


def open_of(run: RunState) -> list[str]:
    """The questions that nobody answered yet, in order."""
    return [name for name, asked in run.approvals.items() if ap.is_open(asked)] if run.approvals else []


def waits(run: RunState) -> bool:
    """Whether this attempt waits for an answer; what is carried is asked by nobody now."""
    return any(not run.approvals[name].get("carried") for name in open_of(run))


def name_of(run: RunState, tag: str) -> str | None:
    """The name of what this attempt asks under a tag; None when it did not yet."""
    for name, asked in run.approvals.items():
        if asked.get("tag", name) == tag and asked.get("attempt", run.attempt) == run.attempt:
            return name
    return None


def carried(run: RunState, tag: str, digest: int | None) -> str | None:
    """The name of the same question of a former attempt, when that ended before anybody answered it."""
    for name, asked in run.approvals.items():
        if asked.get("carried") and digest is not None and (asked["tag"], asked["digest"]) == (tag, digest):
            return name
    return None


def free_name(run: RunState, tag: str) -> str:
    """A name for a new question: an answer to one must never let another one pass."""
    name = tag if tag not in run.approvals else f"{tag}~{run.attempt}"
    while name in run.approvals:
        name += "."
    return name


def put(run: RunState, name: str, asked: dict[str, Any]) -> RunState:
    """The run with this question."""
    return msgspec.structs.replace(run, approvals={**run.approvals, name: asked})


def in_step(state: State, run: RunState) -> RunState:
    """Store the run: waiting while it waits for an answer, else running. A paused one stays so meanwhile."""
    if waits(run):
        if run.status == RunStatus.RUNNING:
            run = runs.step(run, RunStatus.WAITING_APPROVAL)
    elif run.status == RunStatus.WAITING_APPROVAL:
        run = runs.step(run, RunStatus.RUNNING)
    return state.put_run(run)


def answer(
    state: State, run: RunState, name: str, *, approved: bool, by: str | None, reason: str | None,
    scope: str = ap.ONCE,
) -> RunState:
    """Answer an open question: in the run, and in the log."""
    asked = run.approvals[name]
    assert ap.is_open(asked), "a question is answered once"
    decision = {"approved": approved, "scope": scope, "by": by, "reason": reason}
    kept = {key: value for key, value in asked.items() if key != "tool_input"}
    approvals = {**run.approvals, name: {**kept, **decision, "decided_at": state.now}}
    if len(approvals) > ap.KEPT_MAX:
        oldest = next(key for key, value in approvals.items() if not ap.is_open(value))
        del approvals[oldest]
    run = msgspec.structs.replace(run, approvals=approvals)
    said: dict[str, Any] = {
        "tool_name": asked["tool_name"], "tool_call_id": name, "scope": scope, "by": by, "reason": reason,
    }
    state.append(
        run.session_id, "tool_approval_granted" if approved else "tool_approval_denied", said, run=run)
    return in_step(state, run)


def close(state: State, run: RunState, reason: str) -> RunState:
    """The run, or this attempt of it, is over: what is open is denied, before the log says so."""
    for name in open_of(run):
        run = answer(state, run, name, approved=False, by=ap.NODE, reason=reason)
    return run


def carry(state: State, run: RunState) -> RunState:
    """The attempt is over and there will be another: what is open stays so for it. Whether the run may exceed
    a budget is asked anew, since it counts anew."""
    for name in open_of(run):
        if run.approvals[name].get("digest") is None:
            run = answer(state, run, name, approved=False, by=ap.NODE,
                         reason="its runner is gone; it is executed again")
        else:
            run = put(run, name, {**run.approvals[name], "carried": True})
    return in_step(state, run)


__all__ = [
    "answer", "carried", "carry", "close", "free_name", "in_step", "name_of", "open_of", "put", "waits",
]
