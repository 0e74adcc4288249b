"""Deleting sessions, taking that back, and forgetting them: what is kept, decided for one session at a time.

Rules of this file:

1. A session that is live or has a run is never deleted: stop it first.
2. *Soft*: ``deleted_at`` is set. Lists and searches leave it out, nothing can be done with it, all of it is
   still there; ``undelete`` takes it back.
3. *Hard*: in one commit the row gives up its id, its record and its place in memory, so that from then on
   nobody finds the session, and its id is free. Its runs and events are removed behind that, in small steps
   (``store/removing.py``). ``pos`` and row numbers are never used again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from mesh.core import session as sessions
from mesh.core import wire
from mesh.core.agents import Part
from mesh.core.session import ERASED, SessionState
from mesh.core.slots import check_id, run_key
from mesh.core.state import State
from mesh.errors import InvalidArgument, InvalidState

#: How the row of a session that is being removed is named: no id of a user looks like it.
_GONE = "~{}"


class Keeping:
    """Writes that decide what stays."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.writes: dict[str, Callable[[list[Any], Part], bytes | None]] = {
            "session.delete": self.delete,
            "session.undelete": self.undelete,
        }

    def delete(self, args: list[Any], part: Part) -> bytes | None:
        if not 1 <= len(args) <= 2 or (len(args) == 2 and type(args[1]) not in (bool, type(None))):
            raise InvalidArgument("expected a session id, and whether to delete hard")
        if not self.state.has_session(check_id(args[0])):
            return wire.OK_FALSE
        session = self.state.session(args[0])
        if session.deleted_at == sessions.IMPORTING:
            return wire.OK_FALSE
        if len(args) == 2 and args[1]:
            self.erase(session)
        else:
            self.hide(session)
        return wire.OK_TRUE

    def undelete(self, args: list[Any], part: Part) -> bytes | None:
        if len(args) != 1:
            raise InvalidArgument("expected a session id")
        session = self.state.session(args[0])
        if session.deleted_at is not None and session.deleted_at > 0:
            session = self._put(session, None)
            self.state.announce("undeleted", session)
        return wire.ok(sessions.to_wire(session, None))

    def check_idle(self, session: SessionState) -> None:
        """Refuse to delete a session that is in use.

        Raises:
            InvalidState: ``session_busy``.
        """
        if self.in_use(session):
            raise InvalidState(
                f"session {session.id} is live or has a run: stop it first", code="session_busy",
                details={"session_id": session.id, "status": session.status.value},
            )

    def in_use(self, session: SessionState) -> bool:
        """Whether an actor hosts it or a run of it waits or executes."""
        return session.live or session.id in self.state.work

    def hide(self, session: SessionState) -> None:
        """Delete softly; a session that is deleted already keeps its time."""
        self.check_idle(session)
        if session.deleted_at is None:
            session = self._put(session, max(self.state.now, 1.0))
            self.state.announce("deleted", session, hard=False)

    def _put(self, session: SessionState, deleted_at: float | None) -> SessionState:
        return self.state.put_session(
            msgspec.structs.replace(session, deleted_at=deleted_at, version=session.version + 1))

    def erase(self, session: SessionState) -> None:
        """Delete hard."""
        self.check_idle(session)
        state = self.state
        if session.deleted_at != sessions.IMPORTING:
            state.announce("deleted", session, hard=True)
        for run_id in [run_id for run_id, run in state.runs.items() if run.session_id == session.id]:
            _drop(state, state.runs, run_id)
            state.newest_run.left(run_key(run_id))  # its row stays until it is removed
            _drop(state, state.dirty_runs, run_id)
        _drop(state, state.sessions, session.id)
        _drop(state, state.dirty_sessions, session.id)
        state.put_session(SessionState(
            n=session.n, id=_GONE.format(session.n), agent="", agent_id="", status=session.status,
            created_at=session.created_at, updated_at=session.updated_at, seq=session.seq, deleted_at=ERASED,
        ))
        state.session_count -= 1


def _drop(state: State, table: dict[Any, Any], key: Any) -> None:
    if key in table:
        state.undo.append((table, key, table.pop(key)))


__all__ = ["Keeping"]
