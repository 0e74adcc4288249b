"""The operations on sessions and runs: one method per row of the catalogue.

A write method takes the arguments and a ``Part`` (the place of its answer in the reply) and returns the
encoded answer, or None when it kept the part and answers later. It raises ``MeshError`` to refuse; whatever
it had changed is undone by the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core import wire
from mesh.core.agents import Agents, Part
from mesh.core.live import Live
from mesh.core.records import TERMINAL, RunStatus, SessionStatus, StopReason
from mesh.core.run import RunState
from mesh.core.session import SessionState
from mesh.core.slots import RUN_ID, check_id, run_slot, session_slot
from mesh.core.state import State
from mesh.errors import InvalidArgument, InvalidState, MeshError, NotFound, shown

#: A run that does not obey a cancel is settled here after this time (design 5: "at most 5 s").
CANCEL_S = 4.5
LIST_MAX = 1_000


class SessionOps:
    """Writes on sessions and runs."""

    def __init__(
        self, state: State, live: Live, *, agents: dict[str, dict[str, Any]], input_bytes_max: int
    ) -> None:
        self.state = state
        self.live = live
        self.agents = Agents(state, agents)
        self.input_bytes_max = min(
            input_bytes_max, wire.FRAME_BYTES_MAX // 4
        )  # a command carries two of them
        self.owns: Callable[[str], bool] = lambda _: True
        self.closers: dict[str, list[tuple[str, dict[str, Any], Part]]] = {}
        self.cancels: dict[str, list[Part]] = {}
        self.deadlines: dict[str, float] = {}
        live.on_settled = self._on_settled
        live.idempotent = {name for name, table in agents.items() if table.get("idempotent") is True}
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
            "session.prompt": self.prompt,
            "run.create": self.run_create,
            "run.execute": self.run_execute,
            "run.submit": self.run_submit,
            "run.once": self.run_once,
            "run.cancel": self.run_cancel,
            "agent.reload": self.agent_reload,
        }

    # --- sessions ---

    def _wire(self, session: SessionState) -> bytes:
        session = self.state.sessions[session.id]
        return wire.ok(sessions.to_wire(session, self.state.pid_of(session)))

    def _create(self, args: list[Any]) -> SessionState:
        session_id, agent, fields = _take(args, 2, 3)
        session = sessions.new_session(self.state.next_session, session_id, agent, fields, self.state.now)
        if not self.owns(session.id):
            raise InvalidArgument(
                f"session {session.id} belongs to another partition", code="invalid_argument"
            )
        self._bounded(fields, "the session's fields have")
        self.agents.check(agent)
        if self.state.has_session(session.id):
            raise InvalidState(f"session {session.id} exists", code="already_exists",
                               details={"session_id": session.id})
        self.state.next_session += 1
        self.state.session_count += 1
        self.state.put_session(session)
        self.state.append(session.id, "session_created", {"provider": self.agents.provider(agent)})
        return self.state.sessions[session.id]

    def create(self, args: list[Any], part: Part) -> bytes | None:
        return self._wire(self._create(args))

    def start(self, args: list[Any], part: Part) -> bytes | None:
        session = self._create(args)
        return self._wire(self._activate(session))

    def _activate(self, session: SessionState) -> SessionState:
        self.agents.check(session.agent, ready=True)
        return self.live.bring_up(self.live.verb(session, "activate"))

    def start_or_get(self, args: list[Any], part: Part) -> bytes | None:
        _take(args, 2, 3)
        if not self.state.has_session(check_id(args[0])):
            return self.start(args, part)
        session = self.state.session(args[0])
        if session.status == SessionStatus.PENDING:
            self._activate(session)
        elif session.status == SessionStatus.ACTIVE and not session.live:
            self.agents.check(session.agent, ready=True)
            self.live.bring_up(session)
        return self._wire(session)

    def activate(self, args: list[Any], part: Part) -> bytes | None:
        return self._wire(self._activate(self.state.session(*_take(args, 1))))

    def pause(self, args: list[Any], part: Part) -> bytes | None:
        return self._wire(self.live.verb(self.state.session(*_take(args, 1)), "pause"))

    def resume(self, args: list[Any], part: Part) -> bytes | None:
        session = self.live.verb(self.state.session(*_take(args, 1)), "resume")
        self.agents.check(session.agent, ready=True)
        session = self.live.bring_up(session)
        self.live.start_next(session.id)
        return self._wire(session)

    def complete(self, args: list[Any], part: Part) -> bytes | None:
        session = self.state.session(*_take(args, 1))
        work = self.state.work_of(session.id)
        if work.running or work.queue:
            raise InvalidState(
                f"session {session.id} still has a run: wait for it, or cancel it first",
                code="invalid_transition",
                details={"status": session.status.value, "run_id": work.running or work.queue[0]},
            )
        return self._wire(self.live.close(session, "complete"))

    def cancel(self, args: list[Any], part: Part) -> bytes | None:
        return self._settle_then("cancel", {}, self.state.session(*_take(args, 1)), part)

    def fail(self, args: list[Any], part: Part) -> bytes | None:
        session_id, error = _take(args, 2)
        if type(error) is str:
            error = {"code": "run_failed", "message": error, "details": {}}
        if type(error) is not dict or type(error.get("code")) is not str:
            raise InvalidArgument("error must be a text or a map with code and message")
        self._bounded(sessions.checked_map(error, "error"), "the error has")
        return self._settle_then("fail", error, self.state.session(session_id), part)

    def stop(self, args: list[Any], part: Part) -> bytes | None:
        session_id, handle = _take(args, 1, 2)
        session = self.state.session(session_id)
        if handle is not None:
            self._check_handle(session, handle)
        if session.status != SessionStatus.ACTIVE and not session.live:
            raise NotFound(f"session {session.id} is not live: it is {session.status}")
        return self._settle_then("stop", {}, session, part)

    def abort(self, args: list[Any], part: Part) -> bytes | None:
        session = self.state.session(*_take(args, 1))
        count, settled = self._cancel_all(session.id)
        if settled:
            return wire.ok(count)
        self._push(self.closers, session.id, ("abort", {"count": count}, part))
        return None

    def _settle_then(
        self, verb: str, data: dict[str, Any], session: SessionState, part: Part
    ) -> bytes | None:
        """Cancel what the session has to do, then end it; the answer comes when all of it is settled."""
        if verb != "stop":
            sessions.step(session, verb, self.state.now)
            self.live.keep_open(session.id)
        _, settled = self._cancel_all(session.id)
        if settled:
            return self._finish(session.id, verb, data)
        self._push(self.closers, session.id, (verb, data, part))
        return None

    def _cancel_all(self, session_id: str) -> tuple[int, bool]:
        count, settled = self.live.cancel_all(session_id)
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
            return self._wire(self.live.close(session, "fail", {
                "error_code": data["code"], "error_message": str(data.get("message", "")),
                **({"details": data["details"]} if data.get("details") else {})}, error=data))
        return self._wire(self.live.close(session, verb))

    def _check_handle(self, session: SessionState, handle: Any) -> None:
        present = sessions.handle_map(session, self.state.pid_of(session))
        if present is None or list(present.values()) != handle:
            raise NotFound(f"that handle of session {session.id} is not the live one")

    # --- runs ---

    def _run_id(self, run_id: Any, session_id: str) -> str:
        if (
            type(run_id) is not str
            or not RUN_ID.match(run_id)
            or run_slot(run_id) != session_slot(session_id)
        ):
            raise InvalidArgument(
                f"run id {shown(run_id)} does not carry the slot of {session_id}", code="invalid_id")
        return run_id

    def _bounded(self, value: Any, what: str) -> None:
        """Refuse what is too large to be kept in memory and sent to a runner with every run."""
        wire.check_depth(value)
        size = len(wire.pack(value))
        if size > self.input_bytes_max:
            raise InvalidArgument(f"{what} {size} bytes; at most {self.input_bytes_max} (limits.input_bytes)",
                                  code="limit_exceeded")

    def _add(
        self, run_id: Any, session: SessionState, value: Any, options: Any, *, once: bool = False
    ) -> RunState:
        if session.status in sessions.CLOSED:
            sessions.require_active(session)
        self._bounded([value, options], "input and options have")
        run = self.live.add_run(self._run_id(run_id, session.id), session, value, options, once=once)
        self.agents.check(session.agent)
        self.agents.check_capabilities(session.agent, run.options)
        return run

    def _submit(self, run: RunState, session: SessionState) -> RunState:
        sessions.require_active(session)
        self.agents.check(session.agent, ready=True)
        self.agents.check_capabilities(session.agent, run.options)
        return self.live.submit(run, session)

    def _run_wire(self, run: RunState) -> bytes:
        return wire.ok(runs.to_wire(self.state.runs[run.id]))

    def run_create(self, args: list[Any], part: Part) -> bytes | None:
        run_id, session_id, value, options = _take(args, 3, 4)
        return self._run_wire(self._add(run_id, self.state.session(session_id), value, options))

    def run_execute(self, args: list[Any], part: Part) -> bytes | None:
        run_id, options = _take(args, 1, 2)
        run = self.state.run(run_id)
        session = self.state.session(run.session_id)
        merged = {**run.options, **runs.checked_options(options)}
        self._bounded([run.input, merged], "input and options have")
        run = self.state.put_run(msgspec.structs.replace(run, options=merged))
        return self._run_wire(self._submit(run, session))

    def run_submit(self, args: list[Any], part: Part) -> bytes | None:
        run_id, session_id, value, options = _take(args, 3, 4)
        session = self.state.session(session_id)
        sessions.require_active(session)
        return self._run_wire(self._submit(self._add(run_id, session, value, options), session))

    def prompt(self, args: list[Any], part: Part) -> bytes | None:
        session_id, run_id, text, queue = _take(args, 4)
        session = self.state.session(session_id)
        sessions.require_active(session)
        if type(text) is not str or not text:
            raise InvalidArgument(f"a prompt must be a non-empty str, not {shown(text, 60)}")
        if queue != "follow_up":
            raise InvalidArgument(
                f"queue must be 'follow_up', not {shown(queue, 60)}", code="capability_not_supported"
            )
        run = self._submit(self._add(run_id, session, {"prompt": text}, None), session)
        return wire.ok([run.id, run.status == RunStatus.QUEUED])

    def run_once(self, args: list[Any], part: Part) -> bytes | None:
        run_id, session_id, agent, value, fields, options = _take(args, 4, 6)
        session = self._activate(self._create([session_id, agent, fields]))
        run = self._add(run_id, session, value, options, once=True)
        return self._run_wire(self._submit(run, self.state.sessions[session.id]))

    def run_cancel(self, args: list[Any], part: Part) -> bytes | None:
        run = self.state.run(*_take(args, 1))
        if self.live.cancel(run):
            return wire.ok(run.id)
        self._set_deadline(run.id)
        self._push(self.cancels, run.id, part)
        return None

    # --- what comes later ---

    def _on_settled(self, run: RunState) -> None:
        self._pop(self.deadlines, run.id, None)
        answer = wire.ok(run.id) if run.status == RunStatus.CANCELLED else wire.failure(InvalidState(
            f"run {run.id} was {run.status} before the cancel reached it", code="invalid_transition",
            details={"status": run.status.value}))
        for part in self._pop(self.cancels, run.id, ()):
            part.resolve(answer)
        if self.state.work_of(run.session_id).running is None:
            for verb, data, part in self._pop(self.closers, run.session_id, ()):
                part.resolve(self._close_now(run.session_id, verb, data))

    def _close_now(self, session_id: str, verb: str, data: dict[str, Any]) -> bytes:
        """What executed is settled; what was queued meanwhile ends with the session, not with an abort."""
        try:
            if verb != "abort":
                self.live.cancel_all(session_id)
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
                self.live.settle_here(
                    run,
                    RunStatus.CANCELLED,
                    {
                        "code": "cancelled",
                        "message": f"the agent did not stop within {CANCEL_S} s",
                        "details": {},
                    },
                )
        self.agents.expire()

    def agent_reload(self, args: list[Any], part: Part) -> bytes | None:
        _take(args, 0)
        self.agents.reload(part)
        return None

    def on_catalogue(self, runner: int, token: str | None, entries: list[dict[str, Any]]) -> bool:
        """A runner says what it can run; whether that is news."""
        news = self.agents.on_catalogue(runner, token, entries)
        self.live.idempotent = {entry["name"] for entry in entries if entry.get("idempotent")}
        return news


def _take(args: list[Any], least: int, most: int | None = None) -> list[Any]:
    """The arguments, missing optional ones as None.

    Raises:
        InvalidArgument: too few or too many.
    """
    most = least if most is None else most
    if not least <= len(args) <= most:
        expected = str(least) if least == most else f"{least} to {most}"
        raise InvalidArgument(f"expected {expected} arguments, not {len(args)}")
    return args + [None] * (most - len(args))


__all__ = ["CANCEL_S", "LIST_MAX", "Part", "SessionOps"]
