"""The runs of a session: waiting in order, dispatched, settled or cancelled.

Rules of this file:

1. A session executes one run at a time; the others wait in order. The commit that dispatches is the claim.
2. Each run gets exactly one terminal event: from its runner with the settling batch, or from here when the
   runner is gone, did not obey a cancel, or never had the run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from mesh.core import events as ev
from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core.live import Live, NoRunner
from mesh.core.mailbox import STOPPING
from mesh.core.records import RunStatus, SessionStatus
from mesh.core.run import RunState
from mesh.core.session import SessionState
from mesh.core.state import Work
from mesh.errors import InvalidState, Overloaded, StoreError

#: Between two places in a queue; a float of today's wall time tells them apart.
QUEUE_STEP_S = 1e-3
EXECUTING = frozenset((RunStatus.RUNNING, RunStatus.WAITING_APPROVAL))


class Queue:
    """What the sessions of a partition have to do."""

    def __init__(self, live: Live, *, queue_max: int) -> None:
        self.state = live.state
        self.live = live
        self.queue_max = queue_max
        self.on_settled: Callable[[RunState], None] = lambda _: None

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
        session = self.live.bring_up(session)
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
            session = self.live.bring_up(session)
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

    def start_waiting(self) -> None:
        """Dispatch wherever a session is free and has runs waiting."""
        for session_id in [s for s, work in self.state.work.items() if work.running is None]:
            try:
                self.start_next(session_id)
            except StoreError:
                continue  # its row is damaged: whoever reads it is told; the others go on

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
                self.live.close(session, "complete")
            elif status == RunStatus.CANCELLED:
                self.live.close(session, "cancel")
            else:
                self.live.close(session, "fail", failure_data(run.error), error=run.error)
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
        data = {} if status == RunStatus.CANCELLED else failure_data(error)
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

    def requeue(self, run: RunState) -> None:
        """Put a run that may be executed again back to the head of its session's queue."""
        work = self.state.work_of(run.session_id)
        self.state.put_run(runs.step(run, RunStatus.QUEUED))
        self.state.put_work(run.session_id, Work(None, (run.id, *work.queue)))


def failure_data(error: dict[str, Any] | None) -> dict[str, Any]:
    """What ``run_failed`` and ``session_failed`` say about an error."""
    error = error or {}
    data = {"error_code": error.get("code", "unknown_error"), "error_message": error.get("message", "")}
    if error.get("details"):
        data["details"] = error["details"]
    return data


__all__ = ["EXECUTING", "QUEUE_STEP_S", "Queue", "failure_data"]
