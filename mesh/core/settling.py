"""What waits until runs are settled: a cancel, and the end of a session that still had runs.

A run that does not obey is settled here after ``CANCEL_S``. Everything in these tables is undone with the
batch, and made anew from the stored runs by a partition's next incarnation (the callers send again).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from mesh.core import session as sessions
from mesh.core import wire
from mesh.core.agents import Part
from mesh.core.error_map import failure_data
from mesh.core.queueing import Queue
from mesh.core.records import TERMINAL, RunStatus, SessionStatus, StopReason
from mesh.core.run import RunState
from mesh.core.session import SessionState
from mesh.errors import MeshError

#: A run that does not obey a cancel is settled here after this time (design 5: "at most 5 s").
CANCEL_S = 4.5


class Closer(NamedTuple):
    """A caller who waits for the end of some runs of a session, and what is done then."""

    verb: str
    data: dict[str, Any]
    part: Part
    runs: frozenset[str]


class Settling:
    """Callers that wait for the end of runs, and the time each run still has."""

    def __init__(self, queue: Queue, wire_of: Callable[[SessionState], bytes]) -> None:
        self.state = queue.state
        self.live = queue.live
        self.queue = queue
        self.closers: dict[str, list[Closer]] = {}
        self.cancels: dict[str, list[Part]] = {}
        self.deadlines: dict[str, float] = {}
        self._wire_of = wire_of
        queue.on_settled = self._on_settled

    def cancel(self, run: RunState, part: Part, reason: str = "cancel") -> bytes | None:
        """Cancel a run; the answer comes when it is settled, at once when it is over."""
        if self.queue.cancel(run, reason):
            return wire.ok(run.id)
        self._set_deadline(run.id)
        self._push(self.cancels, run.id, part)
        return None

    def abort(self, session: SessionState, part: Part) -> bytes | None:
        """Cancel what the session has to do; the answer comes when all of it is settled."""
        count, told = self._cancel_all(session.id, "abort")
        return self._close_when(told, session.id, "abort", {"count": count}, part)

    def settle_then(
        self, verb: str, data: dict[str, Any], session: SessionState, part: Part
    ) -> bytes | None:
        """Cancel what the session has to do, then end it; the answer comes when all of it is settled."""
        if verb != "stop":
            sessions.step(session, verb, self.state.now)
            self.queue.keep_open(session.id)
        _, told = self._cancel_all(session.id, verb)
        return self._close_when(told, session.id, verb, data, part)

    def _close_when(
        self, told: list[str], session_id: str, verb: str, data: dict[str, Any], part: Part
    ) -> bytes | None:
        if not told:
            return self._finish(session_id, verb, data)
        self._push(self.closers, session_id, Closer(verb, data, part, frozenset(told)))
        return None

    def _cancel_all(self, session_id: str, reason: str) -> tuple[int, list[str]]:
        """(how many runs there were, those whose runner was told)"""
        count = self.queue.cancel_waiting(session_id, reason)
        told = self.cancel_running(session_id, reason)
        return count + len(told), told

    def cancel_running(self, session_id: str, reason: str) -> list[str]:
        """Cancel what a session executes, each run with its time limit; their ids."""
        told = self.queue.cancel_running(session_id, reason)
        for run_id in told:
            self._set_deadline(run_id)
        return told

    def _set_deadline(self, run_id: str) -> None:
        if run_id not in self.deadlines:
            self.deadlines[run_id] = self.state.mono + CANCEL_S
            self.state.undo.append(lambda: self.deadlines.pop(run_id, None))

    def recover(self, run: RunState) -> None:
        """A run that was being cancelled when the partition ended: it has the same time again."""
        if run.cancelling:
            self._set_deadline(run.id)

    def _finish(self, session_id: str, verb: str, data: dict[str, Any]) -> bytes:
        session = self.state.session(session_id)
        if verb == "abort":
            return wire.ok(data["count"])
        if verb == "stop":
            if session.status == SessionStatus.ACTIVE:
                session = self.live.verb(session, "pause")
            self.live.take_down(session, StopReason.STOPPED)
            return wire.OK_NIL
        if verb == "fail":
            return self._wire_of(self.live.close(session, "fail", failure_data(data), error=data))
        return self._wire_of(self.live.close(session, verb))

    def _on_settled(self, run: RunState) -> None:
        if not (self.deadlines or self.cancels or self.closers):
            return
        self._pop(self.deadlines, run.id, None)
        for part in self._pop(self.cancels, run.id, ()):
            part.resolve(wire.ok(run.id))
        if run.session_id in self.closers:
            running = self.state.work_of(run.session_id).running
            for closer in self._pop(self.closers, run.session_id, ()):
                if closer.runs.isdisjoint(running):
                    self._close_now(run.session_id, closer)
                else:
                    self._push(self.closers, run.session_id, closer)

    def _close_now(self, session_id: str, closer: Closer) -> None:
        """What executed is settled; what came meanwhile ends with the session, not with an abort."""
        answer: bytes | None
        try:
            if closer.verb == "abort":
                answer = self._finish(session_id, closer.verb, closer.data)
            else:
                _, told = self._cancel_all(session_id, closer.verb)
                answer = self._close_when(told, session_id, *closer[:3])
        except MeshError as error:
            answer = wire.failure(error)
        if answer is not None:
            closer.part.resolve(answer)

    def _push(self, table: dict[str, Any], key: str, value: Any) -> None:
        """Append to a list of a table; taken back when the batch is undone."""
        table.setdefault(key, []).append(value)

        def undo() -> None:
            table[key].remove(value)
            if not table[key]:
                del table[key]

        self.state.undo.append(undo)

    def _pop(self, table: dict[str, Any], key: str, default: Any) -> Any:
        """Take out of a table; put back when the batch is undone."""
        if key not in table:
            return default
        value = table.pop(key)
        self.state.undo.append(lambda: table.__setitem__(key, value))
        return value

    def tick(self) -> None:
        """Settle here what did not obey a cancel in time."""
        now = self.state.mono
        for run_id in [r for r, at in self.deadlines.items() if at <= now]:
            self._pop(self.deadlines, run_id, None)
            run = self.state.run(run_id)
            if run.status not in TERMINAL:
                self.queue.settle_here(
                    run,
                    RunStatus.CANCELLED,
                    {
                        "code": "cancelled",
                        "message": f"the agent did not stop within {CANCEL_S} s",
                        "details": {"reason": run.reason},
                    },
                )


__all__ = ["CANCEL_S", "Closer", "Settling"]
