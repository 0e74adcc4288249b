"""Taking in an exported session, piece by piece: hidden until its end came, so that nobody sees half of one.

``session.import`` takes the session's id and one piece: ``{"session": map}`` begins (a half that an earlier
attempt left is forgotten), ``{"runs": [...]}`` and ``{"events": [...]}`` go on, ``{"end": map}`` shows it.
Seqs and times stay as they were. A run that executed when it was exported cannot go on here: it is failed
with ``outcome_unknown``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from mesh.core import events as ev
from mesh.core import session as sessions
from mesh.core import usage, wire
from mesh.core.agents import Part
from mesh.core.keeping import Keeping
from mesh.core.moved import elsewhere
from mesh.core.plain import SECONDS_MAX
from mesh.core.records import TERMINAL, Run, RunStatus, Session, SessionStatus
from mesh.core.run import RunState
from mesh.core.session import IMPORTING, SessionState
from mesh.core.slots import RUN_ID, check_id, run_slot, session_slot
from mesh.errors import InvalidArgument, InvalidState, MeshError, Overloaded, shown

_LOST = {
    "code": "outcome_unknown", "message": "it executed when its session was exported", "details": {},
}
#: From the year 1 to 1970: what a ``datetime`` can say.
SECONDS_BEFORE = 62_135_596_800
#: More than any run costs; sums of it stay exact to the cent.
USD_MAX = 1e12
_RUN_FIELDS = [name for name in Run.__struct_fields__ if name != "session_id"]
#: What agents said in a run; secrets go out of it on the way in.
_SAID = ("output", "error", "provider_metadata")


class Importing:
    """The op ``session.import``."""

    def __init__(self, keeping: Keeping) -> None:
        self.state = keeping.state
        self.keeping = keeping
        self.owns: Callable[[str], bool] = lambda _: True

    def take(self, args: list[Any], part: Part) -> bytes | None:
        """Take one piece; the last one gives the session map, the others nil."""
        if len(args) != 2 or type(args[1]) is not dict or len(args[1]) != 1:
            raise InvalidArgument("expected a session id and a map with one piece")
        session_id = check_id(args[0])
        [(kind, piece)] = args[1].items()
        if kind == "session":
            self._begin(session_id, piece)
            return wire.OK_NIL
        session = self.state.session(session_id)
        if session.deleted_at != IMPORTING:
            raise InvalidState(f"session {session_id} is not being imported", code="invalid_operation")
        if kind == "runs":
            return self._each(kind, piece, lambda values: self._run(session, values))
        if kind == "events":
            return self._each(kind, piece, lambda values: self._event(session_id, values))
        if kind != "end":
            raise InvalidArgument(f"unknown piece {shown(kind, 40)}")
        try:
            return self._end(session_id, piece)
        except (KeyError, TypeError, ValueError) as exc:
            raise _unlike(kind, exc) from exc

    def _each(self, kind: str, piece: Any, take_in: Callable[[Any], None]) -> bytes:
        """Take in the items of a piece; a refusal says in its details which it is about."""
        if type(piece) is not list:
            raise InvalidArgument(f"a {kind} piece is a list")
        for place, values in enumerate(piece):
            try:
                take_in(values)
            except (KeyError, TypeError, ValueError, msgspec.ValidationError) as exc:
                raise _unlike(kind, exc, item=place) from exc
            except MeshError as error:
                error.details["item"] = place
                raise
        return wire.OK_NIL

    def _begin(self, session_id: str, values: Any) -> None:
        if type(values) is not dict:
            raise InvalidArgument("a session is a map")
        if not self.owns(session_id):
            raise elsewhere()
        state = self.state
        if state.has_session(session_id):
            former = state.session(session_id)
            if former.deleted_at != IMPORTING:
                raise InvalidState(f"session {session_id} exists: import it under a new id",
                                   code="already_exists", details={"session_id": session_id})
            self.keeping.erase(former)
        names = ("agent_id", "context", "metadata", "tags", "parent_session_id", "slots")
        fields = {name: values[name] for name in names if values.get(name) is not None}
        Session.from_map({**values, "id": session_id, "handle": None, "driver": None})  # names a wrong field
        session = sessions.new_session(state.next_session, session_id, values.get("agent"), fields, state.now)
        try:
            session = msgspec.structs.replace(
                session, status=SessionStatus(values["status"]), created_at=_time(values["created_at"]),
                error=state.redactor.data(values.get("error")), deleted_at=IMPORTING,
                pruned=_whole(values.get("pruned")), pruned_to=_whole(values.get("pruned_to")),
                version=max(1, _whole(values.get("version"))),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise InvalidArgument(f"a session is not as an export has it: {shown(exc, 80)}") from exc
        state.next_session += 1
        state.session_count += 1
        state.put_session(session)

    def _run(self, session: SessionState, values: dict[str, Any]) -> None:
        run_id, state = values["id"], self.state
        if not RUN_ID.match(run_id) or run_slot(run_id) != session_slot(session.id):
            raise InvalidArgument(f"run id {shown(run_id)} does not carry the slot of {session.id}",
                                  code="invalid_id")
        if state.has_run(run_id):
            if state.loader.is_left_over(run_id):
                raise Overloaded("the rows of a deleted session of that id are still being removed",
                                 details={"retry_after_ms": 100})
            raise InvalidState(f"run {run_id} exists", code="already_exists", details={"run_id": run_id})
        run = Run.from_map({**values, "session_id": session.id})
        for at in (run.created_at, run.started_at, run.ended_at):
            if at is not None:
                _time(at)
        if run.cost_usd is not None and not 0 <= run.cost_usd < USD_MAX:
            raise ValueError(f"not a cost: {run.cost_usd}")
        for name, count in run.token_usage.items():
            if not usage.is_count(count):
                raise ValueError(f"not a count: {shown(name, 60)} {shown(count, 40)}")
        kept = {name: getattr(run, name) for name in _RUN_FIELDS}
        kept |= {name: state.redactor.data(kept[name]) for name in _SAID}
        found = RunState(n=state.next_run, session_id=session.id, options={}, **kept)
        if found.status not in TERMINAL and found.status != RunStatus.PENDING:
            found = msgspec.structs.replace(
                found, status=RunStatus.FAILED, error=_LOST, ended_at=state.now, version=found.version + 1)
        state.next_run += 1
        state.put_run(found)

    def _event(self, session_id: str, values: dict[str, Any]) -> None:
        state = self.state
        session = state.sessions[session_id]
        seq = values["seq"]
        if type(seq) is not int or not session.seq < seq < 1 << 62:
            raise InvalidArgument(f"event {shown(seq, 40)} does not follow {session.seq}")
        if seq > max(session.seq, session.pruned_to) + 1:
            raise InvalidArgument(f"events {session.seq + 1} to {seq - 1} are missing")
        code = ev.type_code(values["type"])
        run = None if values.get("run_id") is None else state.run(values["run_id"])
        if run is not None and run.session_id != session_id:
            raise InvalidArgument(f"run {run.id} belongs to another session", code="session_mismatch")
        data, metadata = sessions.checked_map(values["data"], "data"), values.get("metadata") or {}
        data, metadata = state.redactor.event(
            values["type"], data, sessions.checked_map(metadata, "metadata"))
        ts = _time(values["ts"])
        fragment = ev.encode_fragment(
            values["type"], session_id, run.id if run else None, data, ts=ts,
            provider=_text(values.get("provider")), metadata=metadata,
            correlation_id=_text(values.get("correlation_id")),
        )
        state.quiet.add(session_id)
        state.undo.append((state.sessions, session_id, session))
        state.sessions[session_id] = msgspec.structs.replace(session, seq=seq - 1)
        state.append_rows(session_id, ((code, ts, fragment),), run)

    def _end(self, session_id: str, piece: dict[str, Any]) -> bytes:
        state = self.state
        session = state.session(session_id)
        wanted = _whole(piece.get("seq"))
        if session.seq < wanted <= session.pruned_to:  # its newest events were pruned
            session = msgspec.structs.replace(session, seq=wanted)
        if session.seq != wanted or session.seq - session.pruned != _whole(piece.get("events")):
            raise InvalidArgument(f"session {session_id} is not whole: {session.seq} of {wanted} events came")
        session = state.put_session(msgspec.structs.replace(
            session, deleted_at=None, updated_at=state.now, past=session.seq))
        for run_id in piece.get("lost") or ():
            run = state.run(run_id)
            if run.session_id == session_id and run.error == _LOST:
                data = {"error_code": _LOST["code"], "error_message": _LOST["message"]}
                state.append(session_id, "run_failed", data, run=run)
        session = state.sessions[session_id]
        state.announce("imported", session)
        return wire.ok(sessions.to_wire(session, None))


def _unlike(kind: str, why: Exception, **details: Any) -> InvalidArgument:
    text = f"not as an export has it ({kind}): {shown(why, 80)}"
    return InvalidArgument(text, details=details)


def _time(value: Any) -> float:
    if type(value) not in (int, float) or not -SECONDS_BEFORE <= value < SECONDS_MAX:
        raise ValueError(f"not a time: {shown(value, 40)}")
    return float(value)


def _text(value: Any) -> str | None:
    if value is not None and type(value) is not str:
        raise ValueError(f"not a text: {shown(value, 40)}")
    return value


def _whole(value: Any) -> int:
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"not a count: {shown(value, 40)}")
    return value


__all__ = ["Importing"]
