"""What the runners say, and what the death of one means for its sessions and runs.

Rules of this file:

1. A batch is taken when it is the next one of the attempt that was claimed; everything else is answered with
   what the runner should do about it, and changes nothing.
2. A run whose runner is gone is ``outcome_unknown``: its side effects are unknown, so it is never run again
   in silence, unless the agent is declared idempotent.
3. ``restarted`` when the runner of a live session was replaced.
4. A session that executed when its runner died is charged; CRASHES_MAX in CRASH_PERIOD_S and it is failed
   with ``restart_exhausted``, so that a poison session cannot take everybody down again and again.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mesh.core import account
from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core.asked import close
from mesh.core.error_map import failure_data
from mesh.core.prices import Prices
from mesh.core.queueing import EXECUTING, Queue
from mesh.core.records import TERMINAL, RunStatus, StopReason
from mesh.core.run import RunState, agent_of
from mesh.core.session import SessionState
from mesh.core.spent import Spent
from mesh.core.state import RunnerEntry
from mesh.errors import NotFound

CRASHES_MAX = 3
CRASH_PERIOD_S = 60.0
#: A report before the end is stored at most so often: the run's row holds its input. Memory has the rest.
REPORT_S = 1.0
#: Steering prompts that an idempotent run remembers, to be given to its next attempt.
TAKEN_MAX = 1_000
_RUNNING = RunStatus.RUNNING
#: Where an idempotent run may be executed again.
_AGAIN = frozenset((RunStatus.RUNNING, RunStatus.WAITING_APPROVAL))
#: Roster states in which the process of that incarnation is dead, by the supervisor's word.
DEAD = frozenset(("restarting", "down", "stopped"))


class Runners:
    """The partition's side of its talk with the runners."""

    def __init__(self, queue: Queue, prices: Prices | None = None) -> None:
        self.state = queue.state
        self.live = queue.live
        self.queue = queue
        self.prices = prices or Prices()
        self.idempotent: set[str] = set()
        self.spent = Spent(self.state)
        queue.on_spent = self.spent.ended
        self.fenced = 0  #: batches of attempts that were over

    def on_batch(self, runner: int, incarnation: int, message: list[Any]) -> list[Any]:
        """Take a batch of events; returns the answer for the runner, to be sent after the commit."""
        _, run_id, attempt, number, rows, report = message
        try:
            run = self.state.run(run_id)
        except NotFound:
            self.fenced += 1
            return ["fenced", run_id, attempt]
        if run.attempt == attempt and run.status in TERMINAL:
            return ["stored", run_id, attempt, number]
        if run.attempt != attempt or (run.runner, run.runner_incarnation) != (runner, incarnation) or (
            run.status not in EXECUTING
        ):
            self.fenced += 1
            return ["fenced", run_id, attempt]
        if number <= run.batch:
            return ["stored", run_id, attempt, number]
        if number > run.batch + 1:
            return ["expected", run_id, attempt, run.batch + 1]
        session = self.state.session(run.session_id)
        if run.approvals and report is not None and "status" in report:
            run = close(self.state, run, f"the run ended: {report['status']}")
        self.state.append_rows(session.id, rows, run)
        if run.started_at is None:
            run = msgspec.structs.replace(run, started_at=rows[0][1])
            if report is None:
                self.state.put_run(run)
        self._take(run, number, report)
        return ["stored", run_id, attempt, number]

    def on_frame(
        self, runner: int, incarnation: int, batches: list[list[Any]]
    ) -> list[tuple[int, list[Any] | None]]:
        """Take batches of many runs; the places and answers of those that are not stored.

        What most of them are, the next piece of a run that goes on as it did, is told here in one look.
        """
        known, stream = self.state.runs, self.state.stream
        others: list[tuple[int, list[Any] | None]] = []
        for place, batch in enumerate(batches):
            _, run_id, attempt, number, rows, report = batch
            run = known.get(run_id)
            if (report is None and run is not None and number == run.batch + 1 and attempt == run.attempt
                    and run.status is _RUNNING and run.started_at is not None and run.runner == runner
                    and run.runner_incarnation == incarnation):
                stream(run, rows, number)
                continue
            answer = self.on_batch(runner, incarnation, batch)
            if answer[0] != "stored":
                others.append((place, answer))
        return others

    def _take(self, run: RunState, number: int, report: dict[str, Any] | None) -> None:
        """What a batch says beside its events: nothing, what the run used so far, or how it ended."""
        if report is None:
            self.state.put_progress(run, number)
            return
        session = account.remembered(self.state.session(run.session_id), report)
        if session is not None:
            self.state.put_session(msgspec.structs.replace(session, updated_at=self.state.now))
        if "status" in report:
            changes = account.settled(run, report, self.prices)
            self.queue.settle(run, RunStatus(report["status"]), batch=number, **changes)
        else:
            run = msgspec.structs.replace(run, **account.so_far(run, report, self.prices))
            if abs(self.state.now - run.reported_at) >= REPORT_S:
                self.state.put_run(msgspec.structs.replace(run, reported_at=self.state.now))
            else:
                self.state.keep_run(run)
            self.state.put_progress(run, number)

    def on_take(self, runner: int, incarnation: int, message: list[Any]) -> list[Any]:
        """A run takes the steering prompts of its session, all at once; returns the answer, to be sent after
        the commit. The same number again gets the same texts, so nothing is lost or given twice."""
        _, run_id, attempt, number = message
        run = self.claimed(runner, incarnation, run_id, attempt)
        if run is None:
            return ["fenced", run_id, attempt]
        if number == run.takes + 1 and not run.cancelling:
            run = self._take_all(run)
        taken = run.taken[run.given:] if number == run.takes else ()
        texts = [self.state.run(prompt_id).input["prompt"] for prompt_id in taken]
        return ["taken", run_id, attempt, number, texts]

    def on_hold(self, runner: int, incarnation: int, message: list[Any]) -> list[Any] | None:
        """A run reserves for its next calls, behind its batch ``after``; returns the answer, to be sent after
        the commit. None: what it used before is not here yet, so it asks again."""
        _, run_id, attempt, number, amounts, after = message
        run = self.claimed(runner, incarnation, run_id, attempt)
        if run is None:
            return ["fenced", run_id, attempt]
        if run.batch < after:
            return None
        self.spent.hold(run, number, amounts)
        return ["held", run_id, attempt, -number, None]

    def _take_all(self, run: RunState) -> RunState:
        """What waits, and in a new attempt, first of all, what the former ones took."""
        steering = self.state.work_of(run.session_id).steering
        former = run.taken[-TAKEN_MAX:] if self.state.session(run.session_id).agent in self.idempotent else ()
        given = len(former) if run.takes else 0
        if not (steering or former[given:]):
            return run
        for prompt in map(self.state.run, steering):
            for said in runs.messages(prompt.input):
                self.state.append(run.session_id, "message_sent", said, run=run)
            self.queue.settle_steered(prompt, run.id)
        return self.state.put_run(msgspec.structs.replace(
            run, takes=run.takes + 1, taken=former + steering, given=given
        ))

    def on_roster(self, entries: dict[int, RunnerEntry]) -> None:
        """Take the runners' present state: settle what died with one, restart its sessions, dispatch."""
        self.state.runners = entries
        for session_id in list(self.state.live):
            session = self.state.session(session_id)
            entry = entries.get(session.runner or 0)
            if entry is None:
                continue
            replaced = entry.incarnation > session.runner_incarnation
            dead = entry.incarnation == session.runner_incarnation and entry.state in DEAD
            if replaced or dead:
                self._runner_died(session, entry, replaced=replaced)
        self.queue.start_waiting()

    def _runner_died(self, session: SessionState, entry: RunnerEntry, *, replaced: bool) -> None:
        running = [self.state.run(run_id) for run_id in self.state.work_of(session.id).running]
        lost = [run for run in running if run.runner_incarnation == session.runner_incarnation]
        if lost:
            if entry.state != "stopped":
                session = self._charge(session)
            for run in reversed(lost):  # those that are queued again stand in their former order
                self._lost_run(run, session)
            session = self.state.session(session.id)
            if not session.live:
                return
        if entry.state == "down":
            self.live.take_down(session, StopReason.CRASH)
            return
        if not replaced or not entry.reachable:
            return  # announced when the new process is there, so that the handle in it is true
        former = sessions.handle_map(session, None)
        session = self.state.put_session(msgspec.structs.replace(
            session, incarnation=session.incarnation + 1, runner_incarnation=entry.incarnation))
        self.state.announce("restarted", session, former=former, reason="runner_died")

    def _charge(self, session: SessionState) -> SessionState:
        now_s = self.state.mono  # what an earlier boot left lies ahead of it, and is dropped
        recent = tuple(t for t in session.crashes if 0 <= now_s - t <= CRASH_PERIOD_S)
        return self.state.put_session(msgspec.structs.replace(session, crashes=(*recent, now_s)))

    def _lost_run(self, run: RunState, session: SessionState) -> None:
        if run.id not in self.state.work_of(session.id).running:
            return  # it ended with its session
        error = {
            "code": "outcome_unknown", "details": {"run_id": run.id, "attempt": run.attempt},
            "message": "the runner died while the run executed; what it did outside is unknown",
        }
        if len(session.crashes) >= CRASHES_MAX:
            error = {
                **error,
                "code": "restart_exhausted",
                "message": f"executing when its runner died, {CRASHES_MAX} times in {CRASH_PERIOD_S:g} s",
            }
            self.queue.cancel_waiting(session.id, "session failed")
            for run_id in self.state.work_of(session.id).running:
                poison = msgspec.structs.replace(self.state.run(run_id), once=False)
                self.queue.settle_here(poison, RunStatus.FAILED, error)
            session = self.state.session(session.id)
            if session.status not in sessions.CLOSED:
                session = self.live.verb(session, "fail", failure_data(error), error=error)
            self.live.take_down(session, StopReason.RESTART_EXHAUSTED)
        elif run.cancelling:
            self.queue.settle_here(run, RunStatus.CANCELLED, {**error, "code": "cancelled"})
        elif agent_of(run, session.agent) in self.idempotent and run.status in _AGAIN:
            self.queue.requeue(run)
        else:
            self.queue.settle_here(run, RunStatus.FAILED, error)

    def settle_lost(self, run: RunState) -> None:
        """The node died while the run executed: settle it, or queue it again where that is declared safe."""
        self._lost_run(run, self.state.session(run.session_id))

    def on_lost(self, runner: int, incarnation: int, pairs: list[Any]) -> None:
        """A runner says that it does not have these runs. One that said nothing yet never reached it (it was
        lost with our former epoch): it is sent again. Of one that began, the outcome is unknown."""
        for run_id, attempt in pairs:
            run = self.claimed(runner, incarnation, run_id, attempt)
            if run is None:
                continue
            session = self.state.session(run.session_id)
            if run.batch == 0 and not run.cancelling:
                self.state.commands.append((runner, self.queue.run_command(run, session)))
                if run.status == RunStatus.PAUSED:
                    self.state.commands.append((runner, ["pause", run.id, run.attempt]))
            else:
                self._lost_run(run, session)
                self.queue.start_next(session.id)

    def claimed(self, runner: int, incarnation: int, run_id: str, attempt: int) -> RunState | None:
        """The run, when this attempt of it executes on this runner."""
        try:
            run = self.state.run(run_id)
        except NotFound:
            return None
        if run.id not in self.state.work_of(run.session_id).running:
            return None
        claim = run.attempt, run.runner, run.runner_incarnation
        return run if claim == (attempt, runner, incarnation) else None

    def on_left(self, runner: int, incarnation: int, kept: list[Any]) -> None:
        """A runner that was told to stop is about to exit. A run that was sent to it, and that it did not
        keep, never began there: it waits for the next one, as if it had not been sent."""
        entry = self.state.runners.get(runner)
        if entry is not None and entry.incarnation == incarnation:
            self.state.runners[runner] = entry._replace(state="stopped", reachable=False)
        for run_id in [r for work in self.state.work.values() for r in reversed(work.running)]:
            run = self.state.run(run_id)
            if (run.runner, run.runner_incarnation) != (runner, incarnation):
                continue
            if run.batch == 0 and not run.cancelling and [run.id, run.attempt] not in kept:
                self.queue.requeue(msgspec.structs.replace(run, attempt=run.attempt - 1))


__all__ = ["CRASHES_MAX", "CRASH_PERIOD_S", "DEAD", "REPORT_S", "TAKEN_MAX", "Runners"]
