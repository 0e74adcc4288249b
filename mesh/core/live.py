"""Live sessions: which runner hosts a session, from going live to its one ``stopped``.

Rules of this file:

1. ``lifecycle.started`` when a session goes live, and exactly one ``stopped`` for it whatever the way it
   ends.
2. At most ``max_live`` are live; the one that did nothing for longest makes room.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mesh.core import session as sessions
from mesh.core.mailbox import ChildState
from mesh.core.records import StopReason
from mesh.core.session import SessionState
from mesh.core.state import State
from mesh.errors import Overloaded, Unavailable, shown

DOWN = ChildState.DOWN.value


class NoRunner(Exception):
    """Nobody can host the session now; the call is tried again when the runners change.

    A signal inside the core, never an error that a user sees.
    """


def no_runner(state: State, agent: str | None = None) -> Exception:
    """What to raise when no runner is ready that hosts the agent (any agent: None): ``NoRunner``, to wait for
    one; where all of them are down, nobody knows for how long, and the caller learns what to do."""
    places = list(state.runners) if agent is None else state.hosting.among(state.runners, agent)
    if not places or any(state.runners[place].state != DOWN for place in places):
        return NoRunner()
    whose = f" of agent {shown(agent, 60)}" if agent in state.hosting.own else ""
    if len(places) == 1:
        which, back = f"runner {places[0]}{whose} is down, it", "it"
    else:
        which, back = f"runners {', '.join(map(str, places))}{whose} are down, they", "one"
    return Unavailable(
        f"{which} died too often; bring {back} back with: mesh runner restart {places[0]}",
        code="session_unavailable", details={"runners": places, "down": True},
    )


class Live:
    """The live side of a partition's sessions."""

    def __init__(self, state: State, *, max_live: int) -> None:
        self.state = state
        self.max_live = max_live
        self.native: set[str] = set()  #: agents whose sessions keep a native process between their runs

    def bring_up(self, session: SessionState) -> SessionState:
        """Make the session live if it is not: a new incarnation on a runner, announced.

        Raises:
            NoRunner: no runner that may host it is ready.
            Unavailable: ``session_unavailable``: all of them are down.
            Overloaded: ``max_sessions_exceeded``.
        """
        if session.runner is not None:
            return session
        session = self.state.put_session(self._hosted(session))
        self.state.announce("started", session)
        return session

    def enter(self, session: SessionState, created: dict[str, Any]) -> SessionState:
        """Store a new session that is active and live at once: one record for its creation, activation and
        first incarnation, with the events and messages of each of them.

        Raises as ``bring_up``.
        """
        state = self.state
        active = sessions.step(session, "activate", state.now)
        hosted = self._hosted(active)
        provider = created["provider"]
        hosted = state.put_logged(hosted, (
            state.own_event(session, "session_created", created, None, provider),
            state.own_event(session, "session_started", {}, None, provider),
        ))
        state.announce("status", active, previous=session.status)
        state.announce("started", hosted)
        return hosted

    def _hosted(self, session: SessionState) -> SessionState:
        """The session in its next incarnation, on a runner that is ready; there is room for it."""
        ready = self.state.ready_runners()
        if self.state.hosting.own:
            ready = self.state.hosting.among(ready, session.agent)
        if not ready:
            raise no_runner(self.state, session.agent)
        if len(self.state.live) >= self.max_live:
            self._evict()
        runner = ready[session.n % len(ready)]
        return msgspec.structs.replace(
            session, runner=runner, runner_incarnation=self.state.runners[runner].incarnation,
            incarnation=session.incarnation + 1,
        )

    def _evict(self) -> None:
        for session_id, _ in self.state.idlest():
            self.take_down(self.state.session(session_id), StopReason.IDLE)
            return
        raise Overloaded(
            f"{self.max_live} sessions are live and busy (sessions.max_live)", code="max_sessions_exceeded",
            details={"retry_after_ms": 100},
        )

    def take_down(self, session: SessionState, reason: StopReason) -> SessionState:
        """End the live incarnation, with its one ``stopped``; nothing happens when there is none."""
        if not session.live:
            return session
        down = self.state.put_session(msgspec.structs.replace(session, runner=None))
        self._stopped(session, reason)
        return down

    def _stopped(self, session: SessionState, reason: StopReason) -> None:
        """Announce the end of a live incarnation, and have its runner forget it."""
        self.state.announce("stopped", session, reason=reason.value)
        entry = self.state.runners.get(session.runner or 0)
        if entry is not None and entry.reachable and entry.incarnation == session.runner_incarnation:
            self.state.commands.append((session.runner or 0, ["close", session.id]))

    def verb(
        self, session: SessionState, verb: str, data: dict[str, Any] | None = None, **changes: Any
    ) -> SessionState:
        """A step of the status machine with its event and its ``lifecycle.status``."""
        state, former = self.state, session.status
        session = sessions.step(session, verb, state.now, **changes)
        session = state.put_logged(session, [state.own_event(session, sessions.VERBS[verb][2], data or {})])
        state.announce("status", session, previous=former)
        return session

    def close(
        self, session: SessionState, verb: str, data: dict[str, Any] | None = None, **changes: Any
    ) -> SessionState:
        """Complete, cancel or fail: the status, and the live incarnation ends for good; one record for both.
        """
        if session.runner is None:
            return self.verb(session, verb, data, **changes)
        state, former = self.state, session.status
        session = sessions.step(session, verb, state.now, **changes)
        event = state.own_event(session, sessions.VERBS[verb][2], data or {})
        down = state.put_logged(msgspec.structs.replace(session, runner=None), [event])
        state.announce("status", session, previous=former)
        self._stopped(session, StopReason.NORMAL)
        return down


__all__ = ["Live", "NoRunner", "no_runner"]
