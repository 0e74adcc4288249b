"""The history of a storm: what every client asked for, and what it was told."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from math import inf
from time import monotonic
from typing import Any

from storm_register import Read, Register, Write

import mesh

#: After these a caller does not know whether it was done, or knows that it was not; either may be true.
PASSING = frozenset(
    ("timeout", "partition_unavailable", "overloaded", "session_unavailable", "node_unreachable")
)
ROUTE_ERRORS = PASSING | {"not_found", "no_route"}
#: verb -> the status it leads to
TARGETS = {
    "activate": "active", "pause": "paused", "stop": "paused", "resume": "active", "complete": "completed",
    "cancel": "cancelled", "fail": "failed",
}


class Story:
    """One session as its clients know it. Each verb of it comes from one client, unless all share it."""

    def __init__(self, sid: str, agent: str, *, shared: bool = False) -> None:
        self.id = sid
        self.agent = agent
        self.shared = shared
        self.created = False  #: somebody was told so
        self.status: set[str] = set()  #: those it may have
        self.done: Counter[str] = Counter()  #: verbs that were acknowledged
        self.maybe: Counter[str] = Counter()  #: verbs of which nobody knows
        self.runs: set[str] = set()  #: acknowledged ones
        self.maybe_runs: list[str] = []  #: the codes instead of those that were not
        self._mutex = threading.Lock()

    def begun(self, outcome: Any, *, active: bool = True) -> None:
        """It was created, and with ``active`` started too; or perhaps."""
        status = "active" if active else "pending"
        if not isinstance(outcome, mesh.MeshError):
            self.created, self.status = True, {outcome.status}
        elif outcome.code in PASSING:
            self.status.add(status)

    def told(self, verb: str, outcome: Any) -> None:
        """The answer to a verb. What was given up never lands after a later acknowledged one."""
        target = {TARGETS[verb]} if verb in TARGETS else None
        with self._mutex:
            if not isinstance(outcome, mesh.MeshError):
                self.created = True
                self.done[verb] += 1
                self.status = target or self.status
            elif outcome.code in PASSING:
                self.maybe[verb] += 1
                self.status |= target or set()

    def submitted(self, outcome: Any) -> str | None:
        """The id of a run that was acknowledged."""
        if isinstance(outcome, mesh.MeshError):
            self.maybe_runs.append(outcome.code)
            return None
        run_id: str = outcome.run_id if isinstance(outcome, mesh.Prompted) else outcome.id
        self.runs.add(run_id)
        return run_id


class History:
    """Everything that was tried and what came of it; any thread adds to it."""

    def __init__(self, outputs: dict[str, str]) -> None:
        self.outputs = outputs  #: agent -> what each completed run of it gives
        self.registers: defaultdict[str, Register] = defaultdict(Register)
        self.stories: dict[str, Story] = {}
        self.fates: dict[str, str] = {}  #: run -> the status that somebody was told
        self.over: set[str] = set()  #: runs that somebody was told are over
        self.done: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.strikes: list[str] = []
        self.problems: list[str] = []
        self.trace: list[str] = []  #: every call, for those who look for a cause
        self._mutex = threading.Lock()

    def story(self, sid: str, agent: str, *, shared: bool = False) -> Story:
        """Begin the story of a session."""
        story = self.stories[sid] = Story(sid, agent, shared=shared)
        return story

    def called(self, name: str, begin: float, request: Any, outcome: Any, fine: bool) -> None:
        """A call of a method is over."""
        failed = isinstance(outcome, mesh.MeshError)
        said = outcome.code if failed else "ok"
        with self._mutex:
            counts = self.errors if failed else self.done
            counts[f"{request[0]}: {said}" if failed else request[0]] += 1
            self.trace.append(f"{begin:.3f} {monotonic():.3f} {name} {request} -> {said}")
            if failed and not fine:
                self.problems.append(f"{request[0]}{request[1]} of {name} at {begin:.3f} raised {said}: "
                                     f"{outcome.message} {outcome.details}")

    # --- routes ---

    def wrote(self, key: str, begin: float, value: str | None, writer: str, outcome: Any) -> None:
        """A key was set, or deleted; or perhaps."""
        end = inf if isinstance(outcome, mesh.MeshError) else monotonic()
        with self._mutex:
            self.registers[key].writes.append(Write(begin, end, value, writer))

    def read(self, key: str, begin: float, found: Any, how: str) -> None:
        """A key was read. A route that ``resolve`` guessed is none."""
        if isinstance(found, mesh.MeshError):
            if found.code not in ("not_found", "no_route"):
                return
            value = None
        elif isinstance(found, mesh.Resolution) and found.source != "state_hit":
            if found.fallback_reason == "session_unavailable":
                return
            value = None
        else:
            value = found.route.get("n")
        with self._mutex:
            self.registers[key].reads.append(Read(begin, monotonic(), value, how))

    # --- sessions and runs ---

    def looked(self, story: Story, found: Any) -> None:
        """A session was read by the only one who changes it."""
        if not isinstance(found, mesh.MeshError):
            self.problems += status_problems(story, found)

    def ended(self, story: Story, run_id: str, outcome: Any) -> None:
        """Somebody waited for a run."""
        if isinstance(outcome, mesh.RunResult):
            self.fates[run_id] = "completed"
            if outcome.output["content"] != self.outputs[story.agent]:
                self.problems.append(f"run {run_id} of {story.id} ({story.agent}) gave {outcome.output}")
        elif isinstance(outcome, mesh.RunError):
            self.fates[run_id] = "cancelled" if outcome.code == "cancelled" else "failed"

    def cancelled(self, run_id: str, outcome: Any) -> None:
        """Somebody cancelled a run: afterwards it is over, this way or another."""
        if not isinstance(outcome, mesh.MeshError):
            self.over.add(run_id)

    def ended_once(self, story: Story, outcome: Any) -> None:
        """A ``run_once`` is over."""
        if isinstance(outcome, mesh.RunResult):
            story.created, story.status = True, {"completed"}
            story.runs.add(outcome.run_id)
            self.ended(story, outcome.run_id, outcome)
            seqs = [event.seq for event in outcome.events]
            if seqs != list(range(1, len(seqs) + 1)):
                self.problems.append(f"run_once of {story.id} gave the events {seqs}")
        else:
            story.maybe_runs.append(outcome.code)
            story.created = isinstance(outcome, mesh.RunError)
            story.status = {"completed", "failed", "cancelled", "active"}


def status_problems(story: Story, session: mesh.Session) -> list[str]:
    """Whether a session has a status that what its clients were told explains."""
    exhausted = session.status == "failed" and (session.error or {}).get("code") == "restart_exhausted"
    if session.status in story.status or exhausted or story.shared:
        return []
    return [f"session {story.id} is {session.status}, not {' or '.join(sorted(story.status))}: "
            f"done {dict(story.done)}, perhaps {dict(story.maybe)}"]


__all__ = ["PASSING", "ROUTE_ERRORS", "History", "Story", "status_problems"]
