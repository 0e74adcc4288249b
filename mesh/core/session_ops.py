"""The operations on sessions: one method per row of the catalogue.

A write method takes the arguments and a ``Part`` (the place of its answer in the reply) and returns the
encoded answer, or None when it kept the part and answers later. It raises ``MeshError`` to refuse; whatever
it had changed is undone by the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from mesh.core import session as sessions
from mesh.core import wire
from mesh.core.access import with_original
from mesh.core.agents import Agents, Part
from mesh.core.approvals import Approvals
from mesh.core.control import ControlOps
from mesh.core.driving import Driving
from mesh.core.error_map import checked_error
from mesh.core.importing import Importing
from mesh.core.keeping import Keeping
from mesh.core.moved import elsewhere
from mesh.core.prompts import PromptOps
from mesh.core.records import SessionStatus
from mesh.core.run import RunState
from mesh.core.run_ops import RunOps, take
from mesh.core.runners import Runners
from mesh.core.session import SessionState
from mesh.core.settling import Settling
from mesh.core.slots import check_id
from mesh.core.transcript_ops import TranscriptOps
from mesh.errors import InvalidState, NotFound

LIST_MAX = 1_000


class SessionOps:
    """Writes on sessions. Runs, prompts and control have tables of their own; ``writes`` holds all."""

    def __init__(self, runners: Runners, *, agents: dict[str, dict[str, Any]], input_bytes_max: int) -> None:
        self.state = runners.state
        self.live = runners.live
        self.queue = runners.queue
        self.runners = runners
        self.agents = Agents(self.state, agents)
        self.settling = Settling(self.queue, self._wire)
        self.runs = RunOps(self.queue, self.agents, self.settling, input_bytes_max=input_bytes_max)
        self.prompts = PromptOps(self.runs, self.settling)
        self.approvals = Approvals(runners, self.runs, self.settling)
        self.driving = Driving(self.state)
        self.keeping = Keeping(self.state)
        self.importing = Importing(self.keeping)
        self.owns: Callable[[str], bool] = lambda _: True
        runners.idempotent = {name for name, table in agents.items() if table.get("idempotent") is True}
        self.writes: dict[str, Callable[[list[Any], Part], bytes | None]] = {
            "session.create": self.create,
            "session.start": self.start,
            "session.start_or_get": self.start_or_get,
            "session.activate": self.activate,
            "session.pause": self.pause,
            "session.resume": self.resume,
            "session.complete": self.complete,
            "session.cancel": self.cancel,
            "session.fail": self.fail,
            "session.stop": self.stop,
            "session.abort": self.abort,
            "run.once": self.run_once,
            "agent.reload": self.agent_reload,
            **self.runs.writes,
            **self.prompts.writes,
            **ControlOps(self.runs, self.settling).writes,
            **self.approvals.writes,
            **self.driving.writes,
            **self.keeping.writes,
            "session.import": self.importing.take,
            **TranscriptOps(self.queue, self.runs).writes,
        }

    def _wire(self, session: SessionState) -> bytes:
        session = self.state.sessions[session.id]
        return wire.ok(sessions.to_wire(session, self.state.pid_of(session)))

    def _at(self, session_id: Any, if_version: Any) -> SessionState:
        """The session, when it is as the caller saw it."""
        session = self.state.session(session_id)
        sessions.check_version(session, if_version)
        return session

    def _create(self, args: list[Any]) -> SessionState:
        session, created = self._new(*take(args, 2, 3))
        return self.state.put_logged(session, [self.state.own_event(session, "session_created", created)])

    def _enter(self, session_id: Any, agent: Any, fields: Any) -> SessionState:
        """Create, activate and bring up."""
        session, created = self._new(session_id, agent, fields, ready=True)
        return self.live.enter(session, created)

    def _new(
        self, session_id: Any, agent: Any, fields: Any, *, ready: bool = False
    ) -> tuple[SessionState, dict[str, Any]]:
        """A new session, checked and not stored yet, and what its ``session_created`` says."""
        session = sessions.new_session(self.state.next_session, session_id, agent, fields, self.state.now)
        if not self.owns(session.id):
            raise elsewhere()
        self.runs.bounded(fields, "the session's fields have")
        self.agents.check(agent, ready=ready)
        if self.state.has_session(session.id):
            raise InvalidState(f"session {session.id} exists", code="already_exists",
                               details={"session_id": session.id})
        self.state.next_session += 1
        self.state.session_count += 1
        created: dict[str, Any] = {"provider": self.agents.provider(agent)}
        metadata, access = {**session.metadata, **created}, session.access
        if session.fork_seq is not None and session.parent_session_id is not None:
            access = with_original(access, session.parent_session_id, self.state.presented.token)
            created |= {"parent_session_id": session.parent_session_id, "fork_seq": session.fork_seq}
        return msgspec.structs.replace(session, metadata=metadata, access=access), created

    def create(self, args: list[Any], part: Part) -> bytes | None:
        return self._wire(self._create(args))

    def start(self, args: list[Any], part: Part) -> bytes | None:
        return self._wire(self._enter(*take(args, 2, 3)))

    def _activate(self, session: SessionState) -> SessionState:
        self.agents.check(session.agent, ready=True)
        return self.live.bring_up(self.live.verb(session, "activate"))

    def start_or_get(self, args: list[Any], part: Part) -> bytes | None:
        take(args, 2, 3)
        if not self.state.has_session(check_id(args[0])):
            return self.start(args, part)
        session = self.state.session(args[0])
        sessions.refuse_deleted(session)
        if session.status == SessionStatus.PENDING:
            self._activate(session)
        elif session.status == SessionStatus.ACTIVE and not session.live:
            self.agents.check(session.agent, ready=True)
            self.live.bring_up(session)
        return self._wire(session)

    def activate(self, args: list[Any], part: Part) -> bytes | None:
        return self._wire(self._activate(self._at(*take(args, 1, 2))))

    def pause(self, args: list[Any], part: Part) -> bytes | None:
        return self._wire(self.live.verb(self._at(*take(args, 1, 2)), "pause"))

    def resume(self, args: list[Any], part: Part) -> bytes | None:
        session = self.live.verb(self._at(*take(args, 1, 2)), "resume")
        self.agents.check(session.agent, ready=True)
        session = self.live.bring_up(session)
        self.queue.start_next(session.id)
        return self._wire(session)

    def complete(self, args: list[Any], part: Part) -> bytes | None:
        session = self._at(*take(args, 1, 2))
        work = self.state.work_of(session.id)
        if work.running or work.waiting:
            raise InvalidState(
                f"session {session.id} still has a run: wait for it, or cancel it first",
                code="invalid_transition",
                details={"status": session.status.value, "run_id": (work.running + work.waiting)[0]},
            )
        return self._wire(self.live.close(session, "complete"))

    def cancel(self, args: list[Any], part: Part) -> bytes | None:
        return self.settling.settle_then("cancel", {}, self._at(*take(args, 1, 2)), part)

    def fail(self, args: list[Any], part: Part) -> bytes | None:
        session_id, error, if_version = take(args, 2, 3)
        error = self.state.redactor.data(checked_error(error))
        self.runs.bounded(error, "the error has")
        return self.settling.settle_then("fail", error, self._at(session_id, if_version), part)

    def stop(self, args: list[Any], part: Part) -> bytes | None:
        session_id, handle, if_version = take(args, 1, 3)
        session = self._at(session_id, if_version)
        if handle is not None:
            self._check_handle(session, handle)
        if session.status != SessionStatus.ACTIVE and not session.live:
            raise NotFound(f"session {session.id} is not live: it is {session.status}")
        return self.settling.settle_then("stop", {}, session, part)

    def abort(self, args: list[Any], part: Part) -> bytes | None:
        return self.settling.abort(self._at(*take(args, 1, 2)), part)

    def _check_handle(self, session: SessionState, handle: Any) -> None:
        present = sessions.handle_map(session, self.state.pid_of(session))
        if present is None or list(present.values()) != handle:
            raise NotFound(f"that handle of session {session.id} is not the live one")

    def run_once(self, args: list[Any], part: Part) -> bytes | None:
        run_id, session_id, agent, value, fields, options = take(args, 4, 6)
        session = self._enter(session_id, agent, fields)
        run = self.runs.new(run_id, session, value, options, once=True)
        self.runs.queue_up(run, session)
        return wire.ok(run.id)

    def recover(self, run: RunState) -> None:
        """A run that was not over when the partition ended: what it waits for has a time limit again."""
        self.settling.recover(run)
        self.approvals.recover(run)

    def tick(self) -> None:
        """Give up what did not happen in time."""
        self.settling.tick()
        self.approvals.tick()
        self.driving.tick()
        self.agents.expire()

    def agent_reload(self, args: list[Any], part: Part) -> bytes | None:
        take(args, 0)
        self.agents.reload(part)
        return None

    def on_catalogue(self, runner: int, token: str | None, entries: list[dict[str, Any]]) -> bool:
        """A runner says what it can run; whether that is news."""
        news = self.agents.on_catalogue(runner, token, entries)
        known = self.agents.catalogue.values()
        self.runners.idempotent = {entry["name"] for entry in known if entry.get("idempotent")}
        self.live.native = {entry["name"] for entry in known if entry.get("native_process")}
        return news


__all__ = ["LIST_MAX", "Part", "SessionOps"]
