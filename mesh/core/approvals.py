"""Approvals in a partition: what runs ask, who answers, and that everything is answered once.

Rules of this file:

1. A question is stored, said in the log and puts its run to ``waiting_approval`` in one transaction; its
   answer does the same backwards. So neither survives without the other, whoever dies.
2. A question is answered once: by a client, by its deadline, or by the end of its run, before the run's
   terminal event. The same answer again finds the stored one; another one is refused and told who was first.
3. A runner asks until it is heard and is told until it has heard. What it asks twice is one question.
4. A question outlives its runner, and the node, where its run does: the next attempt of an idempotent run
   that asks the same (tag, tool and input) finds it, or its answer. Whatever else it asks is a new question.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from mesh.core import approval as ap
from mesh.core import wire
from mesh.core.access import opens
from mesh.core.agents import Part
from mesh.core.asked import answer, carried, free_name, in_step, name_of, open_of, put
from mesh.core.records import TERMINAL
from mesh.core.run import RunState
from mesh.core.run_ops import RunOps, take
from mesh.core.runners import Runners
from mesh.core.settling import Settling
from mesh.errors import InvalidArgument, InvalidState, NotFound, shown

_SHOWN = frozenset(ap.Approval.__struct_fields__)
_DATA = ("tool_name", "tool_call_id", "tool_input", "policy_name", "violation_kind")


class Approvals:
    """The open questions of a partition."""

    def __init__(self, runners: Runners, ops: RunOps, settling: Settling) -> None:
        self.state = runners.state
        self.runners = runners
        self.ops = ops
        self.settling = settling
        #: (run, question) -> when it is decided by default. A hint: what is not open any more is passed over.
        self.due: dict[tuple[str, str], float] = {}
        self.writes: dict[str, Callable[[list[Any], Part], bytes | None]] = {
            "run.decide": self.decide,
            "run.cancel_for_approval": self.cancel_for_approval,
        }

    # --- runners ask ---

    def on_ask(self, runner: int, incarnation: int, message: list[Any]) -> list[Any] | None:
        """A run asks, behind its batch ``after``; returns the answer for the runner, to be sent after the
        commit. None: what it said before is not here yet, so it asks again."""
        _, run_id, attempt, after, tag, request = message
        run = self.runners.claimed(runner, incarnation, run_id, attempt)
        if run is None:
            return ["fenced", run_id, attempt]
        name = name_of(run, tag)
        if request is None:
            return self._take_back(run, name, tag)
        if name is None:
            if run.batch < after:
                return None
            run, name = self._adopt(run, tag, request) or self._open(run, tag, request)
        known = run.approvals[name]
        if ap.is_open(known):
            return ["asked", run_id, attempt, tag]
        return ["decided", run_id, attempt, tag, _told(known, name)]

    def _take_back(self, run: RunState, name: str | None, tag: str) -> list[Any]:
        """Who asked does not wait any more."""
        if name is not None and ap.is_open(run.approvals[name]):
            run = answer(self.state, run, name, approved=False, by="agent", reason="taken back")
        return ["decided", run.id, run.attempt, tag, None]

    def _adopt(self, run: RunState, tag: str, request: dict[str, Any]) -> tuple[RunState, str] | None:
        """The same question of a former attempt, which this one waits for now."""
        name = carried(run, tag, request.get("digest"))
        if name is None:
            return None
        asked = {key: value for key, value in run.approvals[name].items() if key != "carried"}
        return in_step(self.state, put(run, name, {**asked, "attempt": run.attempt})), name

    def _open(self, run: RunState, tag: str, request: dict[str, Any]) -> tuple[RunState, str]:
        name = free_name(run, tag)
        room = len(open_of(run)) < ap.OPEN_MAX and not run.cancelling
        asked = {**request, "asked_at": self.state.now, "tag": tag, "attempt": run.attempt}
        said = {key: value for key, value in request.items() if key not in ("tool_call_id", "digest")}
        self.state.append(
            run.session_id, "tool_approval_requested", {**said, "tool_call_id": name}, run=run)
        run = put(run, name, asked)
        if not room:
            why = "the run is being cancelled" if run.cancelling else f"{ap.OPEN_MAX} questions are open"
            return answer(self.state, run, name, approved=False, by=ap.NODE, reason=why), name
        self.due[run.id, name] = self.state.mono + request["limit_s"]
        return in_step(self.state, run), name

    # --- clients answer ---

    def decide(self, args: list[Any], part: Part) -> bytes | None:
        run_id, name, approved, scope, reason, by = take(args, 3, 6)
        scope = ap.ONCE if scope is None else scope
        _check(approved, scope, reason, by)
        run = self.state.run(run_id)
        asked = run.approvals.get(name) if type(name) is str else None
        if asked is None:
            raise NotFound(f"run {run.id} asked nothing under {shown(name)}", code="approval_not_found",
                           details={"run_id": run.id, "status": run.status.value})
        if ap.is_open(asked):
            if approved and run.cancelling:
                raise _too_late(run, name, "the run is being cancelled", {})
            if scope != ap.ONCE and asked["tool_name"] is None:
                raise InvalidArgument("a budget is approved once: the question names no tool")
            reason = None if reason is None else self.state.redactor.text(reason)
            run = self._answer(run, name, approved=approved, scope=scope, by=by, reason=reason)
        elif asked["approved"] != approved:
            first = _decision(asked)
            word = "approved" if first["approved"] else "denied"
            raise _too_late(run, name, f"it was {word} by {first['by'] or 'a client'}", first)
        return wire.ok(to_wire(run, name))

    def _answer(self, run: RunState, name: str, **decision: Any) -> RunState:
        tool = run.approvals[name]["tool_name"]
        if decision["approved"] and decision["scope"] == ap.SESSION:
            self._trust(run.session_id, tool.casefold())
        run = answer(self.state, run, name, **decision)
        asked = run.approvals[name]
        told = ["decided", run.id, run.attempt, asked.get("tag", name), _told(asked, name)]
        self.state.commands.append((run.runner or 0, told))
        return run

    def _trust(self, session_id: str, tool: str) -> None:
        """Have the session's later runs not ask about a tool any more."""
        session = self.state.session(session_id)
        trusted = session.metadata.get(ap.APPROVED_TOOLS)
        trusted = list(trusted) if type(trusted) is list else []
        if tool in trusted:
            return
        if len(trusted) >= ap.APPROVED_TOOLS_MAX:
            raise InvalidArgument(f"session {session.id} approved {len(trusted)} tools for good already",
                                  code="limit_exceeded")
        metadata = {**session.metadata, ap.APPROVED_TOOLS: [*trusted, tool]}
        self.state.put_session(msgspec.structs.replace(session, metadata=metadata))

    def cancel_for_approval(self, args: list[Any], part: Part) -> bytes | None:
        run_id, given, if_version = take(args, 2, 3)
        run = self.ops.at(run_id, if_version)
        if run.status in TERMINAL:
            raise InvalidState(f"run {run.id} is over: it is {run.status}", code="invalid_transition",
                               details={"status": run.status.value, "run_id": run.id})
        if type(given) is not dict or set(given) - set(_DATA):
            raise InvalidArgument(f"an approval is a map of {', '.join(_DATA)}; not {shown(given)}")
        self.ops.bounded(given, "the approval has")
        if not run.cancelling:
            self.state.append(run.session_id, "tool_approval_requested", given, run=run)
        return self.settling.cancel(run, part, "approval_requested")

    # --- time ---

    def recover(self, run: RunState) -> None:
        """What was open when the partition ended has the time left that it had, by wall time."""
        for name in open_of(run):
            asked = run.approvals[name]
            left_s = asked["asked_at"] + asked["limit_s"] - self.state.now
            self.due[run.id, name] = self.state.mono + min(max(left_s, 0.0), asked["limit_s"])

    def tick(self) -> None:
        """Decide by default what nobody decided in time."""
        for (run_id, name), due_s in list(self.due.items()):
            asked = self._asked(run_id, name)
            if asked is None:
                del self.due[run_id, name]
            elif due_s <= self.state.mono:
                self._answer(
                    self.state.run(run_id), name, approved=asked["default"] == ap.APPROVE, scope=ap.ONCE,
                    by=ap.NODE, reason=f"nobody decided within {asked['limit_s']:g} s",
                )

    def _asked(self, run_id: str, name: str) -> dict[str, Any] | None:
        """The question, when it is open."""
        run = self.state.runs.get(run_id)  # one that executes is never dropped from memory
        asked = None if run is None else run.approvals.get(name)
        return asked if asked is not None and ap.is_open(asked) else None

    # --- reading ---

    def rows(self, session_id: Any, limit: int, after: Any, bytes_max: int) -> list[Any]:
        """``[[approval map, ...], next after or nil]``: what is open, oldest first, one page."""
        if session_id is not None:
            self.state.session(session_id)
        found = []
        for run_id, name in self.due:
            asked = self._asked(run_id, name)
            if asked is not None and self._visible(run_id):
                place = [asked["asked_at"], run_id, name]
                if session_id in (None, self.state.runs[run_id].session_id) and (not after or place > after):
                    found.append(place)
        page: list[Any] = []
        for place in sorted(found):
            if bytes_max <= 0 or len(page) == limit:
                return [page, [page[-1]["asked_at"], page[-1]["run_id"], page[-1]["tool_call_id"]]]
            page.append(to_wire(self.state.runs[place[1]], place[2]))
            bytes_max -= len(wire.repack(page[-1]))
        return [page, None]

    def _visible(self, run_id: str) -> bool:
        """Whether the caller may see what is asked in this run's session."""
        session = self.state.session(self.state.runs[run_id].session_id)
        return opens(session.access, session.id, self.state.presented)


def to_wire(run: RunState, name: str) -> dict[str, Any]:
    """The map of an ``Approval``."""
    shown = {key: value for key, value in run.approvals[name].items() if key in _SHOWN}
    return {"run_id": run.id, "session_id": run.session_id, "tool_input": None, **shown, "tool_call_id": name}


def _decision(asked: dict[str, Any]) -> dict[str, Any]:
    return {key: asked[key] for key in ("approved", "scope", "by", "reason")}


def _told(asked: dict[str, Any], name: str) -> dict[str, Any]:
    """An answer for the runner: with the name under which people saw the question."""
    return {**_decision(asked), "name": name}


def _too_late(run: RunState, name: str, why: str, first: dict[str, Any]) -> InvalidState:
    details = {"run_id": run.id, "tool_call_id": name, "status": run.status.value, **first}
    return InvalidState(f"{shown(name)} of run {run.id} cannot be decided so: {why}",
                        code="invalid_transition", details=details)


def _check(approved: Any, scope: Any, reason: Any, by: Any) -> None:
    if type(approved) is not bool:
        raise InvalidArgument(f"approved must be true or false, not {shown(approved, 60)}")
    if scope not in ap.SCOPES:
        raise InvalidArgument(f"scope must be one of {', '.join(ap.SCOPES)}; not {shown(scope, 60)}")
    for name, value in (("reason", reason), ("by", by)):
        if value is not None and (type(value) is not str or len(value) > ap.TEXT_CHARS_MAX):
            raise InvalidArgument(
                f"{name} must be a str of at most {ap.TEXT_CHARS_MAX} characters, not {shown(value, 60)}")


__all__ = ["Approvals", "to_wire"]
