"""Live sessions and their runs: going live, dispatching, settling, and what a runner's death means.

Rules of this file:

1. A session executes one run at a time; the others wait in order. The commit that dispatches is the claim.
2. Each run gets exactly one terminal event: from its runner with the settling batch, or from here when the
   runner is gone (``outcome_unknown``: the side effects are unknown, so it is never run again in silence,
   unless the agent is declared idempotent), did not obey a cancel, or never had the run.
3. ``lifecycle.started`` when a session goes live, exactly one ``stopped`` for it whatever the way it ends,
   ``restarted`` when its runner was replaced.
4. A session that executed when its runner died is charged; CRASHES_MAX in CRASH_PERIOD_S and it is failed
   with ``restart_exhausted``, so that a poison session cannot take everybody down again and again.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import msgspec

from mesh.core import events as ev
from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core.mailbox import STOPPING
from mesh.core.records import TERMINAL, RunStatus, SessionStatus, StopReason
from mesh.core.run import RunState
from mesh.core.session import SessionState
from mesh.core.state import RunnerEntry, State, Work
from mesh.errors import InvalidState, NotFound, Overloaded, StoreError

CRASHES_MAX = 3
CRASH_PERIOD_S = 60.0
#: Between two places in a queue; a float of today's wall time tells them apart.
QUEUE_STEP_S = 1e-3
#: Sessions looked at to find one that is idle, when max_live are live.
EVICT_STEP = 1_000
#: Roster states in which the process of that incarnation is dead, by the supervisor's word.
DEAD = frozenset(("restarting", "down", "stopped"))
EXECUTING = frozenset((RunStatus.RUNNING, RunStatus.WAITING_APPROVAL))


class NoRunner(Exception):
    """Nobody can host the session now; the call is tried again when the runners change.

    A signal inside the core, never an error that a user sees.
    """


class Live:
    """The live side of a partition's sessions."""

    def __init__(self, state: State, *, max_live: int, queue_max: int) -> None:
        self.state = state
        self.max_live = max_live
        self.queue_max = queue_max
        self.idempotent: set[str] = set()
        self.on_settled: Callable[[RunState], None] = lambda run: None

    # --- going live and ending ---

    def bring_up(self, session: SessionState) -> SessionState:
        """Make the session live if it is not: a new incarnation on a runner, announced.

        Raises:
            NoRunner: no runner is ready.
            Overloaded: ``max_sessions_exceeded``.
        """
        if session.live:
            return session
        runner = self._choose(session)
        if len(self.state.live) >= self.max_live:
            self._evict()
        session = self.state.put_session(msgspec.structs.replace(
            session, runner=runner, runner_incarnation=self.state.runners[runner].incarnation,
            incarnation=session.incarnation + 1,
        ))
        self.state.announce("started", session)
        return session

    def _choose(self, session: SessionState) -> int:
        ready = self.state.ready_runners()
        if not ready:
            raise NoRunner
        return ready[session.n % len(ready)]

    def _evict(self) -> None:
        for session_id in list(islice(self.state.live, EVICT_STEP)):
            if session_id not in self.state.work:
                self.take_down(self.state.session(session_id), StopReason.IDLE)
                return
            self.state.touch(session_id)  # busy: the next look begins behind it
        raise Overloaded(
            f"{self.max_live} sessions are live and busy (sessions.max_live)", code="max_sessions_exceeded",
            details={"retry_after_ms": 100},
        )

    def take_down(self, session: SessionState, reason: StopReason, **detail: Any) -> SessionState:
        """End the live incarnation, with its one ``stopped``; nothing happens when there is none."""
        if not session.live:
            return session
        down = msgspec.structs.replace(session, runner=None)
        self.state.announce("stopped", session, reason=reason.value, **detail)
        self.state.put_session(down)
        entry = self.state.runners.get(session.runner or 0)
        if entry is not None and entry.reachable and entry.incarnation == session.runner_incarnation:
            self.state.commands.append((session.runner or 0, ["close", session.id]))
        return down

    def verb(
        self, session: SessionState, verb: str, data: dict[str, Any] | None = None, **changes: Any
    ) -> SessionState:
        """A step of the status machine with its event and its ``lifecycle.status``."""
        former = session.status
        session = self.state.put_session(sessions.step(session, verb, self.state.now, **changes))
        self.state.append(session.id, sessions.VERBS[verb][2], data or {})
        session = self.state.sessions[session.id]
        self.state.announce("status", session, previous=former.value)
        return session

    def close(
        self, session: SessionState, verb: str, data: dict[str, Any] | None = None, **changes: Any
    ) -> SessionState:
        """Complete, cancel or fail: the status, and the live incarnation ends for good."""
        session = self.verb(session, verb, data, **changes)
        return self.take_down(session, StopReason.NORMAL)

    # --- runs ---

    def add_run(
        self, run_id: str, session: SessionState, run_input: Any, options: Any, *, once: bool = False
    ) -> RunState:
        """Store a pending run.

        Raises:
            InvalidState: the id is taken.
        """
        if self.state.has_run(run_id):
            raise InvalidState(f"run {run_id} exists", code="already_exists")
        run = RunState(
            n=self.state.next_run,
            id=run_id,
            session_id=session.id,
            status=RunStatus.PENDING,
            input=run_input,
            options=runs.checked_options(options),
            created_at=self.state.now,
            once=once,
        )
        self.state.next_run += 1
        return self.state.put_run(run)

    def submit(self, run: RunState, session: SessionState) -> RunState:
        """Queue a pending run; it starts at once when the session has nothing else to do.

        Raises:
            InvalidState: the session or the run cannot.
            Overloaded: ``queue_full``.
        """
        sessions.require_active(session)
        if run.status != RunStatus.PENDING:
            raise InvalidState(
                f"run {run.id} was executed before: it is {run.status}", code="invalid_transition",
                details={"status": run.status.value, "run_id": run.id},
            )
        work = self.state.work_of(session.id)
        if len(work.queue) >= self.queue_max and (work.running is not None or work.queue):
            raise Overloaded(
                f"session {session.id} has {len(work.queue)} runs waiting (sessions.queue_max)",
                code="queue_full",
                details={"retry_after_ms": 100},
            )
        session = self.bring_up(session)
        last = self.state.run(work.queue[-1]).queued_at if work.queue else 0.0
        # Wall time may be set back; the order of the queue is not.
        place = max(self.state.now, last + QUEUE_STEP_S)
        run = self.state.put_run(runs.step(run, RunStatus.QUEUED, queued_at=place))
        for message in runs.messages(run.input):
            self.state.append(session.id, "message_sent", message, run=run)
        self.state.put_work(session.id, work._replace(queue=(*work.queue, run.id)))
        self.state.touch(session.id)
        self.start_next(session.id)
        return self.state.runs[run.id]

    def start_next(self, session_id: str) -> None:
        """Dispatch the next queued run when the session is free and somebody can host it."""
        work = self.state.work_of(session_id)
        if work.running is not None or not work.queue:
            return
        session = self.state.session(session_id)
        if session.status != SessionStatus.ACTIVE:
            return
        try:
            session = self.bring_up(session)
        except (NoRunner, Overloaded):
            return  # tried again when the runners change, and at each tick
        entry = self.state.runners.get(session.runner or 0)
        if entry is None or not entry.reachable or entry.incarnation != session.runner_incarnation:
            return
        if entry.state == STOPPING:
            return  # the next one takes it
        run = self.state.run(work.queue[0])
        run = self.state.put_run(runs.step(
            run, RunStatus.RUNNING, attempt=run.attempt + 1, runner=session.runner, batch=0,
            runner_incarnation=session.runner_incarnation, started_at=run.started_at or self.state.now,
        ))
        self.state.put_work(session_id, Work(run.id, work.queue[1:]))
        self.state.commands.append((session.runner or 0, self.run_command(run, session)))

    def run_command(self, run: RunState, session: SessionState) -> list[Any]:
        """The command that makes a runner execute."""
        return ["run", run.id, run.attempt, {
            "id": session.id, "agent": session.agent, "agent_id": session.agent_id,
            "incarnation": session.incarnation, "context": session.context, "metadata": session.metadata,
            "tags": session.tags,
        }, run.input, run.options]

    def settle(self, run: RunState, status: RunStatus, **result: Any) -> None:
        """End a run for good; its terminal event is in the log already. The session goes on."""
        run = self.state.put_run(runs.step(run, status, ended_at=self.state.now, **result))
        self.state.settled.append(run.id)
        work = self.state.work_of(run.session_id)
        self.state.put_work(run.session_id, Work(
            None if work.running == run.id else work.running, tuple(q for q in work.queue if q != run.id)))
        self.state.touch(run.session_id)
        session = self.state.session(run.session_id)
        if run.once and session.status == SessionStatus.ACTIVE and run.session_id not in self.state.work:
            if status == RunStatus.COMPLETED:
                self.close(session, "complete")
            elif status == RunStatus.CANCELLED:
                self.close(session, "cancel")
            else:
                self.close(session, "fail", _failure_data(run.error), error=run.error)
        self.on_settled(run)
        self.start_next(run.session_id)

    def keep_open(self, session_id: str) -> None:
        """Somebody ends the session by a verb of his own: settling its ``run_once`` must not do it first."""
        work = self.state.work_of(session_id)
        for run_id in (*((work.running,) if work.running else ()), *work.queue):
            run = self.state.run(run_id)
            if run.once:
                self.state.put_run(msgspec.structs.replace(run, once=False))

    def settle_here(self, run: RunState, status: RunStatus, error: dict[str, Any]) -> None:
        """End a run whose runner will not: the terminal event is written here, a later word is fenced."""
        data = {} if status == RunStatus.CANCELLED else _failure_data(error)
        self.state.append(run.session_id, ev.RUN_TERMINAL_EVENT[status], data, run=run)
        self.settle(run, status, error=error, attempt=run.attempt + (run.status in EXECUTING))

    def cancel(self, run: RunState) -> bool:
        """Begin to cancel a run; True when it is settled already, False when its runner was told.

        Raises:
            InvalidState: it ended otherwise.
        """
        if run.status == RunStatus.CANCELLED:
            return True
        if run.status in (RunStatus.PENDING, RunStatus.QUEUED):
            self.settle_here(
                run,
                RunStatus.CANCELLED,
                {"code": "cancelled", "message": "cancelled before it started", "details": {}},
            )
            return True
        if run.status not in EXECUTING:
            runs.step(run, RunStatus.CANCELLED)
        if not run.cancelling:
            run = self.state.put_run(msgspec.structs.replace(run, cancelling=True))
        self.state.commands.append((run.runner or 0, ["cancel", run.id, run.attempt]))
        return False

    def cancel_all(self, session_id: str) -> tuple[int, bool]:
        """Cancel what the session executes and what waits; (runs, whether all are settled)."""
        work = self.state.work_of(session_id)
        self.state.put_work(session_id, Work(work.running))  # so that settling one does not start the next
        for run_id in work.queue:
            self.cancel(self.state.run(run_id))
        if work.running is None:
            return len(work.queue), True
        return len(work.queue) + 1, self.cancel(self.state.run(work.running))

    # --- what a runner says ---

    def on_batch(self, runner: int, incarnation: int, message: list[Any]) -> list[Any]:
        """Take a batch of events; returns the answer for the runner, to be sent after the commit."""
        _, run_id, attempt, number, rows, settle = message
        try:
            run = self.state.run(run_id)
        except NotFound:
            return ["fenced", run_id, attempt]
        if run.attempt == attempt and run.status in TERMINAL:
            return ["stored", run_id, attempt, number]
        if run.attempt != attempt or (run.runner, run.runner_incarnation) != (runner, incarnation) or (
            run.status not in EXECUTING
        ):
            return ["fenced", run_id, attempt]
        if number <= run.batch:
            return ["stored", run_id, attempt, number]
        if number > run.batch + 1:
            return ["expected", run_id, attempt, run.batch + 1]
        session = self.state.session(run.session_id)
        for code, ts, fragment in rows:
            self.state.append_fragment(session.id, code, ts, fragment, run)
        if settle is None:
            self.state.put_progress(run, number)
            self.state.touch(session.id)
        else:
            self.settle(run, RunStatus(settle["status"]), batch=number, **runs.checked_result(settle))
        return ["stored", run_id, attempt, number]

    # --- runners come and go ---

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
        self.start_waiting()

    def start_waiting(self) -> None:
        """Dispatch wherever a session is free and has runs waiting."""
        for session_id in [s for s, work in self.state.work.items() if work.running is None]:
            try:
                self.start_next(session_id)
            except StoreError:
                continue  # its row is damaged: whoever reads it is told; the others go on

    def _runner_died(self, session: SessionState, entry: RunnerEntry, *, replaced: bool) -> None:
        work = self.state.work_of(session.id)
        running = self.state.run(work.running) if work.running else None
        if running is not None and running.runner_incarnation == session.runner_incarnation:
            if entry.state != "stopped":
                session = self._charge(session)
            self._lost_run(running, session)
            session = self.state.session(session.id)
            if not session.live:
                return
        if entry.state == "down":
            self.take_down(session, StopReason.CRASH)
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
            queue = self.state.work_of(session.id).queue
            self.state.put_work(session.id, Work(run.id))
            for queued in queue:
                self.cancel(self.state.run(queued))
            self.settle_here(msgspec.structs.replace(run, once=False), RunStatus.FAILED, error)
            session = self.state.session(session.id)
            if session.status not in sessions.CLOSED:
                session = self.verb(session, "fail", _failure_data(error), error=error)
            self.take_down(session, StopReason.RESTART_EXHAUSTED)
        elif run.cancelling:
            self.settle_here(run, RunStatus.CANCELLED, {**error, "code": "cancelled"})
        elif session.agent in self.idempotent and run.status == RunStatus.RUNNING:
            self.requeue(run)
        else:
            self.settle_here(run, RunStatus.FAILED, error)

    def settle_lost(self, run: RunState) -> None:
        """The node died while the run executed: settle it, or queue it again where that is declared safe."""
        self._lost_run(run, self.state.session(run.session_id))

    def requeue(self, run: RunState) -> None:
        """Put a run that may be executed again back to the head of its session's queue."""
        work = self.state.work_of(run.session_id)
        self.state.put_run(runs.step(run, RunStatus.QUEUED))
        self.state.put_work(run.session_id, Work(None, (run.id, *work.queue)))

    def on_lost(self, runner: int, incarnation: int, pairs: list[Any]) -> None:
        """A runner says that it does not have these runs. One that said nothing yet never reached it (it was
        lost with our former epoch): it is sent again. Of one that began, the outcome is unknown."""
        for run_id, attempt in pairs:
            work = (
                self.state.work_of(self.state.run(run_id).session_id)
                if self.state.has_run(run_id)
                else Work()
            )
            run = self.state.run(run_id) if work.running == run_id else None
            if run is None or (run.attempt, run.runner, run.runner_incarnation) != (
                attempt,
                runner,
                incarnation,
            ):
                continue
            session = self.state.session(run.session_id)
            if run.batch == 0 and not run.cancelling:
                self.state.commands.append((runner, self.run_command(run, session)))
            else:
                self._lost_run(run, session)
                self.start_next(session.id)


    def on_left(self, runner: int, incarnation: int, kept: list[Any]) -> None:
        """A runner that was told to stop is about to exit. A run that was sent to it, and that it did not
        keep, never began there: it waits for the next one, as if it had not been sent."""
        entry = self.state.runners.get(runner)
        if entry is not None and entry.incarnation == incarnation:
            self.state.runners[runner] = entry._replace(state="stopped", reachable=False)
        for work in list(self.state.work.values()):
            run = self.state.run(work.running) if work.running else None
            if run is None or (run.runner, run.runner_incarnation) != (runner, incarnation):
                continue
            if run.batch == 0 and not run.cancelling and [run.id, run.attempt] not in kept:
                self.requeue(msgspec.structs.replace(run, attempt=run.attempt - 1))


def _failure_data(error: dict[str, Any] | None) -> dict[str, Any]:
    error = error or {}
    data = {"error_code": error.get("code", "unknown_error"), "error_message": error.get("message", "")}
    if error.get("details"):
        data["details"] = error["details"]
    return data


__all__ = ["CRASHES_MAX", "CRASH_PERIOD_S", "DEAD", "EVICT_STEP", "EXECUTING", "Live", "NoRunner"]
