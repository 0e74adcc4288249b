"""Prompts: what becomes of a text that is said to a session, busy or not.

Rules of this file:

1. Every prompt is a run, so it has an id, an end, and survives whatever runs survive.
2. A session is busy when a run would have to wait. Then ``on_busy`` decides: ``enqueue`` (the default),
   ``reject`` (``session_busy``), or ``interrupt`` and ``rollback``, which cancel what executes and put the
   prompt before everything that waits.
3. ``steering`` goes beside the queue, into a run that executes, when its agent takes it; ``follow_up`` is a
   turn of its own. Where nothing executes, both are.
4. A prompt that has to wait is a ``prompt_queued`` in the log, in the commit that takes it: a display that
   follows the session shows it. What becomes of it its run says: ``message_sent``, or ``run_cancelled``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from mesh.core import session as sessions
from mesh.core import wire
from mesh.core.agents import Part
from mesh.core.records import RunStatus
from mesh.core.run import RunState
from mesh.core.run_ops import RunOps, take
from mesh.core.session import SessionState
from mesh.core.settling import Settling
from mesh.errors import InvalidArgument, InvalidState, shown

FOLLOW_UP, STEERING = QUEUES = ("follow_up", "steering")
#: How much of a prompt that waits its event shows; ``sessions.queued`` has all of it.
SHOWN_CHARS_MAX = 1_000
ENQUEUE, REJECT, INTERRUPT, ROLLBACK = ON_BUSY = ("enqueue", "reject", "interrupt", "rollback")


class PromptOps:
    """The operations on prompts."""

    def __init__(self, runs: RunOps, settling: Settling) -> None:
        self.state = runs.state
        self.queue = runs.queue
        self.runs = runs
        self.settling = settling
        self.writes: dict[str, Callable[[list[Any], Part], bytes | None]] = {
            "session.prompt": self.prompt,
            "session.recall": self.recall,
            "session.clear": self.clear,
            "session.interrupt": self.interrupt,
        }

    def prompt(self, args: list[Any], part: Part) -> bytes | None:
        session_id, run_id, text, queue, on_busy = take(args, 4, 5)
        on_busy = ENQUEUE if on_busy is None else on_busy
        session = self.state.session(session_id)
        sessions.require_active(session)
        if type(text) is not str or not text:
            raise InvalidArgument(f"a prompt must be a non-empty str, not {shown(text, 60)}")
        for name, value, known in (("queue", queue, QUEUES), ("on_busy", on_busy, ON_BUSY)):
            if value not in known:
                raise InvalidArgument(f"{name} must be one of {', '.join(known)}, not {shown(value, 60)}")
        busy = not self.queue.has_room(session)
        if busy and on_busy == REJECT:
            raise InvalidState(
                f"session {session.id} is busy", code="session_busy", details={"session_id": session.id}
            )
        instead = busy and on_busy in (INTERRUPT, ROLLBACK)
        steers = queue == STEERING and not instead and bool(self.state.work_of(session.id).running)
        run = self._put(run_id, session, text, STEERING if steers else FOLLOW_UP)
        if instead:
            run = self._instead(run, session, on_busy)
        else:
            run = self.queue.steer(run) if steers else self.runs.queue_up(run, session)
        waits = run.status == RunStatus.QUEUED
        if waits:
            self._show_waiting(run, text)
        return wire.ok([run.id, waits, run.queue if waits else None])

    def _show_waiting(self, run: RunState, text: str) -> None:
        shown = self.state.redactor.text(text)  # before it is cut: half of a secret looks like none
        cut = {"truncated": True} if len(shown) > SHOWN_CHARS_MAX else {}
        data = {"queue": run.queue, "content": shown[:SHOWN_CHARS_MAX], **cut}
        self.state.append(run.session_id, "prompt_queued", data, run=run)

    def _put(self, run_id: Any, session: SessionState, text: str, queue: str) -> RunState:
        run = self.runs.add(run_id, session, {"prompt": text}, None)
        return self.state.put_run(msgspec.structs.replace(run, queue=queue))

    def _instead(self, run: RunState, session: SessionState, reason: str) -> RunState:
        """Run it next, and cancel what executes. What steered that is a run behind this one."""
        if self.state.work_of(session.id).steering:
            self.queue.join_steering(session.id)
        run = self.runs.queue_up(msgspec.structs.replace(run, ahead=True), session, first=True)
        self.settling.cancel_running(session.id, reason)
        return run

    def recall(self, args: list[Any], part: Part) -> bytes | None:
        session = self.state.session(*take(args, 1))
        rows = self.rows(session.id)
        self.queue.cancel_waiting(session.id, "recall", prompts_only=True)
        return wire.ok(rows)

    def clear(self, args: list[Any], part: Part) -> bytes | None:
        session = self.state.session(*take(args, 1))
        return wire.ok(self.queue.cancel_waiting(session.id, "clear", prompts_only=True))

    def interrupt(self, args: list[Any], part: Part) -> bytes | None:
        session_id, if_version = take(args, 1, 2)
        session = self.state.session(session_id)
        sessions.check_version(session, if_version)
        return wire.ok(self.settling.cancel_running(session.id, INTERRUPT))

    def rows(self, session_id: str) -> list[list[Any]]:
        """The prompts that wait, the steering ones first: ``[run_id, queue, text, queued_at]``."""
        waiting = [self.state.run(run_id) for run_id in self.state.work_of(session_id).waiting]
        return [[run.id, run.queue, run.input["prompt"], run.queued_at] for run in waiting if run.queue]


__all__ = ["ENQUEUE", "FOLLOW_UP", "INTERRUPT", "ON_BUSY", "QUEUES", "REJECT", "ROLLBACK", "SHOWN_CHARS_MAX",
           "STEERING", "PromptOps"]
