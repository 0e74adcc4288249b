"""The operations on runs: one method per row of the catalogue, in the manner of ``session_ops``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core import wire
from mesh.core.agents import Agents, Part
from mesh.core.policy import check_tags
from mesh.core.queueing import Queue
from mesh.core.run import RunState
from mesh.core.session import SessionState
from mesh.core.settling import Settling
from mesh.core.slots import RUN_ID, session_slot
from mesh.errors import InvalidArgument, shown


class RunOps:
    """Writes on runs."""

    def __init__(self, queue: Queue, agents: Agents, settling: Settling, *, input_bytes_max: int) -> None:
        self.state = queue.state
        self.queue = queue
        self.agents = agents
        self.settling = settling
        self.input_bytes_max = min(
            input_bytes_max, wire.FRAME_BYTES_MAX // 4
        )  # a command carries two of them
        self.writes: dict[str, Callable[[list[Any], Part], bytes | None]] = {
            "run.create": self.create,
            "run.execute": self.execute,
            "run.submit": self.submit,
            "run.cancel": self.cancel,
        }

    def _run_id(self, run_id: Any, session_id: str) -> str:
        match = RUN_ID.match(run_id) if type(run_id) is str else None
        if match is None or int(match[1], 16) != session_slot(session_id):
            raise InvalidArgument(
                f"run id {shown(run_id)} does not carry the slot of {session_id}", code="invalid_id")
        known: str = run_id
        return known

    def at(self, run_id: Any, if_version: Any) -> RunState:
        """The run, when it is as the caller saw it."""
        run = self.state.run(run_id)
        sessions.check_version(run, if_version)
        return run

    def bounded(self, value: Any, what: str) -> None:
        """Refuse what is too large to be kept in memory and sent to a runner with every run."""
        if not value:
            return
        wire.check_depth(value)
        size = len(wire.pack(value))
        if size > self.input_bytes_max:
            raise InvalidArgument(f"{what} {size} bytes; at most {self.input_bytes_max} (limits.input_bytes)",
                                  code="limit_exceeded")

    def new(
        self, run_id: Any, session: SessionState, value: Any, options: Any, *, once: bool = False
    ) -> RunState:
        """Check the arguments of a new run: pending, not stored. ``queue_up`` looks at its agent."""
        if options or type(value) is not str or 4 * len(value) > self.input_bytes_max:
            self.bounded([value, options], "input and options have")
        return self.queue.new_run(self._run_id(run_id, session.id), session, value, options, once=once)

    def add(self, run_id: Any, session: SessionState, value: Any, options: Any) -> RunState:
        """Check the arguments of a new run and store it, pending."""
        if session.status in sessions.CLOSED or session.deleted_at is not None:
            sessions.require_active(session)
        run = self.new(run_id, session, value, options)
        agent = runs.agent_of(run, session.agent)
        self.agents.check(agent)
        if agent != session.agent:
            self.state.hosting.check_together(session.agent, agent)
        self.agents.check_capabilities(agent, run.options)
        return self.state.put_run(run)

    def queue_up(self, run: RunState, session: SessionState, *, first: bool = False) -> RunState:
        """Queue a pending run, stored or new; it starts at once when the session is free."""
        sessions.require_active(session)
        agent = runs.agent_of(run, session.agent)
        if agent != session.agent:
            self.state.hosting.check_together(session.agent, agent)
        self.agents.check(agent, ready=True)
        self.agents.check_capabilities(agent, run.options)
        if run.options:
            check_tags(run.options.get("policies"), session.tags)
        return self.queue.submit(run, session, first=first)

    def wire_of(self, run: RunState) -> bytes:
        """The answer that shows a run."""
        return wire.ok(runs.to_wire(self.state.runs[run.id], self.state.redactor))

    def create(self, args: list[Any], part: Part) -> bytes | None:
        run_id, session_id, value, options = take(args, 3, 4)
        return self.wire_of(self.add(run_id, self.state.session(session_id), value, options))

    def execute(self, args: list[Any], part: Part) -> bytes | None:
        run_id, options, if_version = take(args, 1, 3)
        run = self.at(run_id, if_version)
        session = self.state.session(run.session_id)
        merged = {**run.options, **runs.checked_options(options)}
        self.bounded([run.input, merged], "input and options have")
        run = self.state.put_run(msgspec.structs.replace(run, options=merged))
        return self.wire_of(self.queue_up(run, session))

    def submit(self, args: list[Any], part: Part) -> bytes | None:
        run_id, session_id, value, options = take(args, 3, 4)
        session = self.state.session(session_id)
        sessions.require_active(session)
        return self.wire_of(self.queue_up(self.new(run_id, session, value, options), session))

    def cancel(self, args: list[Any], part: Part) -> bytes | None:
        return self.settling.cancel(self.at(*take(args, 1, 2)), part)


def take(args: list[Any], least: int, most: int | None = None) -> list[Any]:
    """The arguments, missing optional ones as None.

    Raises:
        InvalidArgument: too few or too many.
    """
    most = least if most is None else most
    if not least <= len(args) <= most:
        expected = str(least) if least == most else f"{least} to {most}"
        raise InvalidArgument(f"expected {expected} arguments, not {len(args)}")
    return args + [None] * (most - len(args))


__all__ = ["RunOps", "take"]
