"""Control of a run that executes: pause, resume, interrupt. The stored status is the only truth.

A step is stored first and told to the runner then, and told again to whoever did not hear it; asking for
what is so already changes nothing and succeeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mesh.core import run as runs
from mesh.core.agents import Part
from mesh.core.asked import in_step
from mesh.core.prompts import INTERRUPT
from mesh.core.queueing import EXECUTING
from mesh.core.records import RunStatus
from mesh.core.run import RunState
from mesh.core.run_ops import RunOps, take
from mesh.core.settling import Settling
from mesh.errors import InvalidState, NotFound


class ControlOps:
    """The operations that steer a run from outside."""

    def __init__(self, runs: RunOps, settling: Settling) -> None:
        self.state = runs.state
        self.runs = runs
        self.settling = settling
        self.writes: dict[str, Callable[[list[Any], Part], bytes | None]] = {
            "run.pause": self.pause,
            "run.resume": self.resume,
            "run.interrupt": self.interrupt,
        }

    def pause(self, args: list[Any], part: Part) -> bytes | None:
        return self._turn("pause", RunStatus.RUNNING, RunStatus.PAUSED, args)

    def resume(self, args: list[Any], part: Part) -> bytes | None:
        return self._turn("resume", RunStatus.PAUSED, RunStatus.RUNNING, args)

    def _turn(self, what: str, present: RunStatus, wanted: RunStatus, args: list[Any]) -> bytes:
        run = self.runs.at(*take(args, 1, 2))
        if run.status not in (present, wanted) or run.cancelling:
            state = "being cancelled" if run.status in EXECUTING else run.status.value
            raise InvalidState(
                f"cannot {what} run {run.id}: it is {state}", code="invalid_operation",
                details={"status": run.status.value, "run_id": run.id},
            )
        self.runs.agents.check_named(runs.executor_of(run, self.state.session(run.session_id).agent), what)
        if run.status != wanted:
            run = in_step(self.state, runs.step(run, wanted))
            self.state.commands.append((run.runner or 0, [what, run.id, run.attempt]))
        return self.runs.wire_of(run)

    def interrupt(self, args: list[Any], part: Part) -> bytes | None:
        run: RunState = self.runs.at(*take(args, 1, 2))
        if run.status not in EXECUTING and run.status != RunStatus.CANCELLED:
            raise NotFound(f"run {run.id} does not execute: it is {run.status}", code="run_not_found",
                           details={"status": run.status.value})
        return self.settling.cancel(run, part, INTERRUPT)


__all__ = ["ControlOps"]
