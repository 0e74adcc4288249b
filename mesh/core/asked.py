"""The questions inside a run's state: answered, closed with the run; its status keeps step with them."""

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


def in_step(state: State, run: RunState) -> RunState:
    """Store the run: waiting while something is open, else running. A paused one stays so meanwhile."""
    if open_of(run):
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


__all__ = ["answer", "close", "in_step", "open_of"]
