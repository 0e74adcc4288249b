"""The runs of a session: waiting in order, dispatched, settled or cancelled.

Rules of this file:

1. A session executes as many runs at a time as it has slots; the others wait in order, at most ``queue_max``.
   The commit that dispatches is the claim, and what the run says to the agent is in the log with it: a run
   that never began has said nothing.
2. Each run gets exactly one terminal event: from its runner with the settling batch, or from here when the
   runner is gone, did not obey a cancel, or never had the run.
3. Steering prompts wait beside the queue, for the runs that execute; what nobody took when none executes any
   more is joined into one message and is the next run. Behind a prompt that interrupts they wait for its run.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Any

import msgspec

from mesh.core import events as ev
from mesh.core import run as runs
from mesh.core.account import begin_again
from mesh.core.asked import carry, close
from mesh.core.error_map import failure_data
from mesh.core.live import Live, NoRunner
from mesh.core.mailbox import STOPPING
from mesh.core.records import TERMINAL, RunStatus, SessionStatus
from mesh.core.run import RunState
from mesh.core.session import SessionState
from mesh.core.state import Work
from mesh.errors import InvalidState, Overloaded, StoreError, Unavailable

#: Between two places in a queue; a float of today's wall time tells them apart.
QUEUE_STEP_S = 1e-3
#: Steering prompts are joined up to this length; what is left steers the run that they become.
JOIN_CHARS_MAX = 256 * 1024
EXECUTING = frozenset((RunStatus.RUNNING, RunStatus.WAITING_APPROVAL, RunStatus.PAUSED))


class Queue:
    """What the sessions of a partition have to do."""

    def __init__(self, live: Live, *, queue_max: int, slots: int = 1) -> None:
        self.state = live.state
        self.live = live
        self.queue_max = queue_max
        self.slots = slots
        self.on_settled: Callable[[RunState], None] = lambda _: None
        self.on_completed: Callable[[RunState], None] = lambda _: None
        self.on_spent: Callable[[RunState], None] = lambda _: None

    def new_run(
        self, run_id: str, session: SessionState, run_input: Any, options: Any, *, once: bool = False
    ) -> RunState:
        """A pending run that is not stored yet.

        Raises:
            InvalidState: the id is taken.
        """
        state = self.state
        if state.has_run(run_id):
            raise InvalidState(f"run {run_id} exists", code="already_exists")
        run = RunState(
            n=state.next_run, id=run_id, session_id=session.id, status=RunStatus.PENDING, input=run_input,
            options=runs.checked_options(options), created_at=state.now, once=once,
        )
        state.next_run += 1
        return run

    def has_room(self, session: SessionState, work: Work | None = None) -> bool:
        """Whether a run of the session would begin at once."""
        work = self.state.work_of(session.id) if work is None else work
        return not work.queue and len(work.running) < (session.slots or self.slots)

    def submit(self, run: RunState, session: SessionState, *, first: bool = False) -> RunState:
        """Queue a pending run, stored or new, of an active session (``first``: before those that wait); it
        starts at once when a slot is free, and is then written as what executes.

        Raises:
            InvalidState: the run cannot.
            Overloaded: ``max_runs_exceeded``: the slots are busy and the queue is full.
        """
        if run.status != RunStatus.PENDING:
            raise InvalidState(
                f"run {run.id} was executed before: it is {run.status}", code="invalid_transition",
                details={"status": run.status.value, "run_id": run.id},
            )
        work = self.state.work_of(session.id)
        queue_max = max(self.queue_max, 1) if first else self.queue_max
        room = self.has_room(session, work)
        if not room and len(work.queue) >= queue_max:
            raise Overloaded(
                f"session {session.id} has {len(work.running)} runs executing and {len(work.queue)} waiting "
                "(sessions.queue_max)",
                code="max_runs_exceeded",
                details={"retry_after_ms": 100, "queue_max": self.queue_max},
            )
        session = self.live.bring_up(session)
        run = runs.step(run, RunStatus.QUEUED, queued_at=self._place(work, first))
        if room and not work.steering and self._is_hosted(session):
            return self._dispatch(run, session, work)
        self.state.put_run(run)
        queue = (run.id, *work.queue) if first else (*work.queue, run.id)
        self.state.put_work(session.id, work._replace(queue=queue))
        self.start_next(session.id)
        return self.state.runs[run.id]

    def _place(self, work: Work, first: bool) -> float:
        """Behind the last of the queue, or before the first. Wall time may be set back; the order is not."""
        if not work.queue:
            return self.state.now
        if first:
            return min(self.state.now, self.state.run(work.queue[0]).queued_at - QUEUE_STEP_S)
        return max(self.state.now, self.state.run(work.queue[-1]).queued_at + QUEUE_STEP_S)

    def _place_behind(self, work: Work, count: int) -> float:
        """Between the first so many of the queue and the others."""
        if count == 0 or count == len(work.queue):
            return self._place(work, count == 0)
        before, after = (self.state.run(run_id).queued_at for run_id in work.queue[count - 1 : count + 1])
        return (before + after) / 2

    def start_next(self, session_id: str) -> None:
        """Dispatch what waits while a slot is free and somebody can host the session."""
        work = self.state.work_of(session_id)
        if not (work.queue or work.steering):
            return
        session = self.state.session(session_id)
        if session.status != SessionStatus.ACTIVE:
            return
        slots = session.slots or self.slots
        if len(work.running) >= slots:
            return
        if work.steering and not (work.running or self._ahead(work)):
            work = self.join_steering(session_id)
        try:
            session = self.live.bring_up(session)
        except (NoRunner, Unavailable):
            return  # tried again when the runners change, and at each tick
        if not self._is_hosted(session):
            return
        for run_id in work.queue[: slots - len(work.running)]:
            self._dispatch(self.state.run(run_id), session, self.state.work_of(session_id).without(run_id))

    def _is_hosted(self, session: SessionState) -> bool:
        """Whether the runner of a live session takes work; one that stops leaves it to the next."""
        entry = self.state.runners.get(session.runner or 0)
        return (entry is not None and entry.reachable and entry.incarnation == session.runner_incarnation
                and entry.state != STOPPING)

    def _dispatch(self, run: RunState, session: SessionState, others: Work) -> RunState:
        state = self.state
        if not run.said:
            said = [state.own_event(session, "message_sent", said, run) for said in runs.messages(run.input)]
            state.append_rows(session.id, said, run)
        run = state.put_run(runs.step(
            run, RunStatus.RUNNING, attempt=run.attempt + 1, runner=session.runner, batch=0, said=True,
            runner_incarnation=session.runner_incarnation,
        ))
        state.put_work(session.id, Work((*others.running, run.id), others.queue, others.steering))
        state.commands.append((session.runner or 0, self.run_command(run, session)))
        if others.steering or run.taken:
            self._hint(run)
        return run

    def _hint(self, run: RunState) -> None:
        self.state.commands.append((run.runner or 0, ["steer", run.id, run.attempt]))

    def start_waiting(self) -> None:
        """Dispatch wherever a slot is free and something waits."""
        for session_id in [s for s, work in self.state.work.items() if work.queue or work.steering]:
            try:
                self.start_next(session_id)
            except StoreError:
                continue  # its row is damaged: whoever reads it is told; the others go on

    def steer(self, run: RunState) -> RunState:
        """Have a pending prompt wait for whichever run of its session takes it.

        Raises:
            Overloaded: ``queue_full``.
        """
        work = self.state.work_of(run.session_id)
        if len(work.steering) >= self.queue_max:
            raise Overloaded(
                f"session {run.session_id} has {len(work.steering)} steering prompts waiting "
                "(sessions.queue_max)",
                code="queue_full", details={"retry_after_ms": 100, "queue_max": self.queue_max},
            )
        last = self.state.run(work.steering[-1]).queued_at if work.steering else 0.0
        place = max(self.state.now, last + QUEUE_STEP_S)
        run = self.state.put_run(runs.step(run, RunStatus.QUEUED, queued_at=place))
        self.state.put_work(run.session_id, work._replace(steering=(*work.steering, run.id)))
        for running in map(self.state.run, work.running):
            if not running.cancelling:
                self._hint(running)
        return run

    def _ahead(self, work: Work) -> int:
        """How many at the head of a queue interrupted what executed: who steers now means them."""
        return sum(1 for _ in takewhile(lambda run_id: self.state.run(run_id).ahead, work.queue))

    def join_steering(self, session_id: str) -> Work:
        """Make one run of the steering prompts that nobody took; blank lines between them. It is the next,
        behind what interrupted."""
        work = self.state.work_of(session_id)
        ahead = self._ahead(work)
        first, *rest = [self.state.run(run_id) for run_id in work.steering]
        texts = [first.input["prompt"]]
        joined = []
        for prompt in rest:
            if sum(map(len, texts)) + len(prompt.input["prompt"]) > JOIN_CHARS_MAX:
                break
            texts.append(prompt.input["prompt"])
            joined.append(prompt)
        self.state.put_run(msgspec.structs.replace(
            first, input={"prompt": "\n\n".join(texts)}, queued_at=self._place_behind(work, ahead),
            version=first.version + 1, queue="follow_up", ahead=ahead > 0,
        ))
        left = work.steering[1 + len(joined):]
        queue = (*work.queue[:ahead], first.id, *work.queue[ahead:])
        self.state.put_work(session_id, work._replace(queue=queue, steering=left))
        for prompt in joined:
            self.settle_steered(prompt, first.id)
        return self.state.work_of(session_id)

    def settle_steered(self, prompt: RunState, into: str) -> None:
        """Complete a steering prompt whose text went into another run."""
        data = {"stop_reason": "steered", "steered_into": into}
        self.state.append(prompt.session_id, "run_completed", data, run=prompt)
        self._end(prompt, RunStatus.COMPLETED, output={"steered_into": into})

    def run_command(self, run: RunState, session: SessionState) -> list[Any]:
        """The command that makes a runner execute."""
        return ["run", run.id, run.attempt, {
            "id": session.id, "agent": runs.agent_of(run, session.agent), "agent_id": session.agent_id,
            "incarnation": session.incarnation, "context": session.context, "metadata": session.metadata,
            "tags": session.tags, "seq": self.state.sessions[session.id].seq,
            **({} if session.fork_seq is None else {
                "fork": [session.parent_session_id, session.fork_seq],
                "original": session.access.original if session.access else None}),
        }, run.input, run.options]

    def _end(self, run: RunState, status: RunStatus, **result: Any) -> RunState:
        """The run is over: its record, and its place in the session's work."""
        state = self.state
        run = state.put_run(runs.step(run, status, ended_at=state.now, **result))
        state.settled.append(run.id)
        self.on_spent(run)
        if status == RunStatus.COMPLETED:
            self.on_completed(run)
        state.put_work(run.session_id, state.work_of(run.session_id).without(run.id))
        self.on_settled(run)
        return run

    def settle(self, run: RunState, status: RunStatus, **result: Any) -> None:
        """End a run for good; its terminal event is in the log already. The session goes on."""
        run = self._end(run, status, **result)
        session = self.state.session(run.session_id)
        if run.once and session.status == SessionStatus.ACTIVE and run.session_id not in self.state.work:
            if status == RunStatus.COMPLETED:
                self.live.close(session, "complete")
            elif status == RunStatus.CANCELLED:
                self.live.close(session, "cancel")
            else:
                self.live.close(session, "fail", failure_data(run.error), error=run.error)
        self.start_next(run.session_id)

    def keep_open(self, session_id: str) -> None:
        """Somebody ends the session by a verb of his own: settling its ``run_once`` must not do it first."""
        work = self.state.work_of(session_id)
        for run_id in work.running + work.queue:
            run = self.state.run(run_id)
            if run.once:
                self.state.put_run(msgspec.structs.replace(run, once=False))

    def settle_here(self, run: RunState, status: RunStatus, error: dict[str, Any]) -> None:
        """End a run whose runner will not: the terminal event is written here, a later word is fenced."""
        run = close(self.state, run, f"the run ended: {status}")
        cancelled = status == RunStatus.CANCELLED
        data = {"reason": run.reason or "cancel"} if cancelled else failure_data(error)
        self.state.append(run.session_id, ev.RUN_TERMINAL_EVENT[status], data, run=run)
        self.settle(run, status, error=error, attempt=run.attempt + (run.status in EXECUTING))

    def cancel(self, run: RunState, reason: str = "cancel") -> bool:
        """Begin to cancel a run; True when it is over already, False when its runner was told."""
        if run.status in TERMINAL:
            return True
        if run.status not in EXECUTING:
            error = {
                "code": "cancelled", "message": "cancelled before it started", "details": {"reason": reason},
            }
            self.settle_here(msgspec.structs.replace(run, reason=reason), RunStatus.CANCELLED, error)
            return True
        if not run.cancelling:
            run = self.state.put_run(msgspec.structs.replace(run, cancelling=True, reason=reason))
        self.state.commands.append((run.runner or 0, ["cancel", run.id, run.attempt, run.reason]))
        return False

    def cancel_waiting(self, session_id: str, reason: str, *, prompts_only: bool = False) -> int:
        """Cancel what waits in a session; how many there were."""
        work = self.state.work_of(session_id)
        found = [run for run in map(self.state.run, work.waiting) if run.queue or not prompts_only]
        ids = {run.id for run in found}
        # Taken out first, so that settling one does not start the next.
        self.state.put_work(session_id, Work(work.running, tuple(r for r in work.queue if r not in ids)))
        for run in found:
            self.cancel(run, reason)
        return len(found)

    def cancel_running(self, session_id: str, reason: str) -> list[str]:
        """Cancel what a session executes; the ids of those whose runner was told."""
        running = self.state.work_of(session_id).running
        return [run_id for run_id in running if not self.cancel(self.state.run(run_id), reason)]

    def requeue(self, run: RunState) -> None:
        """Put a run that may be executed again back to the head of its session's queue."""
        work = self.state.work_of(run.session_id)
        run = carry(self.state, run)
        self.state.put_run(runs.step(begin_again(run), RunStatus.QUEUED, takes=0, given=0, held={}, holds=0))
        work = work.without(run.id)
        self.state.put_work(run.session_id, work._replace(queue=(run.id, *work.queue)))


__all__ = ["EXECUTING", "JOIN_CHARS_MAX", "QUEUE_STEP_S", "Queue"]
