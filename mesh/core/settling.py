"""What waits until runs are settled: a cancel, and the end of a session that still had runs.

A run that does not obey is settled here after ``CANCEL_S``. Everything in these tables is undone with the
batch, and made anew from the stored runs by a partition's next incarnation (the callers send again).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mesh.core import session as sessions
from mesh.core import wire
from mesh.core.agents import Part
from mesh.core.queueing import Queue
from mesh.core.records import TERMINAL, RunStatus, SessionStatus, StopReason
from mesh.core.run import RunState
from mesh.core.session import SessionState
from mesh.errors import InvalidState, MeshError

#: A run that does not obey a cancel is settled here after this time (design 5: "at most 5 s").
CANCEL_S = 4.5


class Settling:
    """Callers that wait for the end of runs, and the time each run still has."""

    def __init__(self, queue: Queue, wire_of: Callable[[SessionState], bytes]) -> None:
        self.state = queue.state
        self.live = queue.live
        self.queue = queue
        self.closers: dict[str, list[tuple[str, dict[str, Any], Part]]] = {}
        self.cancels: dict[str, list[Part]] = {}
        self.deadlines: dict[str, float] = {}
        self._wire_of = wire_of
        queue.on_settled = self._on_settled

    def cancel(self, run: RunState, part: Part) -> bytes | None:
        """Cancel a run; the answer comes when it is settled."""
        if self.queue.cancel(run):
            return wire.ok(run.id)
        self._set_deadline(run.id)
        self._push(self.cancels, run.id, part)
        return None

    def abort(self, session: SessionState, part: Part) -> bytes | None:
        """Cancel what the session has to do; the answer comes when all of it is settled."""
        count, settled = self.cancel_all(session.id)
        if settled:
            return wire.ok(count)
        self._push(self.closers, session.id, ("abort", {"count": count}, part))
        return None

    def settle_then(
        self, verb: str, data: dict[str, Any], session: SessionState, part: Part
    ) -> bytes | None:
        """Cancel what the session has to do, then end it; the answer comes when all of it is settled."""
        if verb != "stop":
            sessions.step(session, verb, self.state.now)
            self.queue.keep_open(session.id)
        _, settled = self.cancel_all(session.id)
        if settled:
            return self._finish(session.id, verb, data)
        self._push(self.closers, session.id, (verb, data, part))
        return None

    def cancel_all(self, session_id: str) -> tuple[int, bool]:
        """Cancel all runs of a session, each with its deadline; (runs, whether all are settled)."""
        count, settled = self.queue.cancel_all(session_id)
        if not settled:
            self._set_deadline(self.state.work_of(session_id).running)
        return count, settled

    def _set_deadline(self, run_id: str | None) -> None:
        if run_id is not None and run_id not in self.deadlines:
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
            return self._wire_of(self.live.close(session, "fail", {
                "error_code": data["code"], "error_message": str(data.get("message", "")),
                **({"details": data["details"]} if data.get("details") else {})}, error=data))
        return self._wire_of(self.live.close(session, verb))

    def _on_settled(self, run: RunState) -> None:
        self._pop(self.deadlines, run.id, None)
        for part in self._pop(self.cancels, run.id, ()):
            part.resolve(wire.ok(run.id) if run.status == RunStatus.CANCELLED else wire.failure(InvalidState(
                f"run {run.id} was {run.status} before the cancel reached it", code="invalid_transition",
                details={"status": run.status.value})))
        if self.state.work_of(run.session_id).running is None:
            for verb, data, part in self._pop(self.closers, run.session_id, ()):
                part.resolve(self._close_now(run.session_id, verb, data))

    def _close_now(self, session_id: str, verb: str, data: dict[str, Any]) -> bytes:
        """What executed is settled; what was queued meanwhile ends with the session, not with an abort."""
        try:
            if verb != "abort":
                self.queue.cancel_all(session_id)
            return self._finish(session_id, verb, data)
        except MeshError as error:
            return wire.failure(error)

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
                        "details": {},
                    },
                )


__all__ = ["CANCEL_S", "Settling"]
