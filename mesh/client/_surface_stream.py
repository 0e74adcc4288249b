"""Plans of a ``StreamSession``: one run and the events of its agent, with a typed last word when it fails.

Rules of this file:

1. The stream has what the agent does: neither the session's own events, nor those of policies and workspaces,
   nor the prompt. Questions to a human are in it, since somebody has to answer them.
2. An error is the last item, ``error_occurred``, which is in no log: with ``error_code``, ``details`` and
   ``provider_error`` when the run failed or was refused; with ``error_message`` alone when nothing was heard
   for too long, or the node was lost.
3. Nobody's run is left behind: a stream that ends for another reason than its run's end cancels it.
"""

from __future__ import annotations

from time import time
from typing import Any

from mesh.client import _surface_sessions as sessions
from mesh.client._payload import Call
from mesh.client._protocol import READ, WRITE
from mesh.client._surface import Ask, Plan, check_timeout, value_of
from mesh.client._surface_routes import Linked
from mesh.client._surface_runs import finished
from mesh.core.events import EVENTS, RUN_TERMINAL_EVENT
from mesh.core.records import Event, Run, RunStatus
from mesh.core.slots import check_id, run_slot, session_slot
from mesh.errors import DeadlineExceeded, InvalidArgument, MeshError, shown

#: Silence that is nobody's fault: the run waits for its turn, or for a human.
_PATIENT = frozenset(
    (RunStatus.PENDING, RunStatus.QUEUED, RunStatus.PAUSED, RunStatus.WAITING_APPROVAL)
)
_LEFT_OUT = frozenset(row.name for row in EVENTS if row.group in ("session", "policy", "workspace")) | {
    "message_sent"
}
_TERMINAL = frozenset(RUN_TERMINAL_EVENT.values())
_SESSION_OPTIONS = ("agent_id", "context", "metadata", "tags", "parent_session_id")
_CREATE_OPTIONS = ("required_capabilities", "optional_capabilities")
_EXECUTE_OPTIONS = (
    "continuation", "continuation_opts", "provider_opts", "policy", "policies", "workspace", "deadline_s",
    "idle_s",
)


class Course:
    """One run from its start to its end, as a stream of events."""

    def __init__(
        self,
        agent: Any,
        value: Any,
        session_id: Any,
        run_opts: dict[str, Any],
        idle_timeout_s: Any,
        shutdown_timeout_s: Any,
    ) -> None:
        if type(agent) is not str or not agent:
            raise InvalidArgument(f"agent must be a non-empty str, not {shown(agent)}")
        if value is None:
            raise InvalidArgument("a run needs an input", code="invalid_input")
        check_timeout(idle_timeout_s)
        check_timeout(shutdown_timeout_s)
        self.agent = agent
        self.session_id = None if session_id is None else check_id(session_id)
        self.run_id: str | None = None
        self.closed = False
        self._over = False  #: nothing more will be heard
        self._settled = False  #: the run is over, or there is none
        self._idle_s, self._shutdown_s = idle_timeout_s, shutdown_timeout_s
        self._call = self._made(value, dict(run_opts))
        self._follower: sessions.EventStream | None = None
        self._seq = 0
        self._words: list[Event] = []

    def _made(self, value: Any, given: dict[str, Any]) -> Call:
        """The one call that begins it; ids are minted here."""
        known = (*_CREATE_OPTIONS, *_EXECUTE_OPTIONS)
        sid = self.session_id
        for name in given:
            if name not in known and not (sid is None and name in _SESSION_OPTIONS):
                raise InvalidArgument(f"unknown option {name!r} of a stream's run", code="invalid_argument")
        options = sessions.create_options(*(given.get(name, ()) for name in _CREATE_OPTIONS))
        executing = {name: given[name] for name in _EXECUTE_OPTIONS if name in given}
        content = sessions.check_input(value)
        if sid is not None:
            self.run_id = sessions.new_run_id(sid)
            options |= sessions.execute_options(agent=self.agent, **executing)
            return "run.submit", (self.run_id, sid, content, options)
        fields = sessions.fields(*(given.get(name) for name in _SESSION_OPTIONS))
        _, (_, (sid, _, _)) = sessions.new_session_call("run.once", self.agent, None, fields)
        self.session_id, self.run_id = sid, sessions.new_run_id(sid)
        options |= sessions.execute_options(**executing)
        return "run.once", (self.run_id, sid, self.agent, content, fields, options)

    def begin(self, link: Linked) -> Plan:
        """Start the run, once. What the node says against it is the stream's last word."""
        if self._follower is not None or self.closed:
            return
        self._follower = sessions.EventStream(self.session_id, 0, self.run_id, None, self._idle_s)
        try:
            [answer] = yield [Ask(WRITE, session_slot(self.session_id), self._call, link.timeout_s)]
            value_of(answer)
        except MeshError as error:
            yield from self._cancel(link)  # it may have begun all the same
            self._over = True
            self._words.append(self._word(_described(error)))
        if self.closed:  # meanwhile, from another thread
            yield from self._cancel(link)

    def page(self, link: Linked) -> Plan:
        """The next events, at least one; none when it is over."""
        yield from self.begin(link)
        while not (self._words or self._over or self.closed):
            try:
                self._words = yield from self._heard(link)
            except MeshError as error:
                yield from self._cancel(link)
                self._over = True
                self._words = [self._word({"error_message": f"the stream was lost: {error.message}"})]
        words, self._words = self._words, []
        return [] if self.closed else words

    def stop(self, link: Linked) -> Plan:
        """End the stream; a run that goes on is cancelled, in ``shutdown_timeout_s`` at most."""
        self.closed = True
        if self._follower is not None:
            yield from self._cancel(link)

    def _heard(self, link: Linked) -> Plan:
        """The next page's events that belong into the stream, and the last word behind them."""
        assert self._follower is not None
        try:
            found: list[Event] = yield from self._follower.page()
        except DeadlineExceeded:
            run = yield from self._run(link)
            if run.status in _PATIENT:
                return []
            yield from self._cancel(link)
            self._over = True
            return [self._word({"error_message": f"no event within {self._idle_s:g} s"})]
        self._seq = found[-1].seq
        events = [event for event in found if event.type not in _LEFT_OUT]
        if any(event.type in _TERMINAL for event in found):
            self._over = self._settled = True
            if found[-1].type != "run_completed":
                events.append(self._word(_said((yield from self._run(link)))))
        return events

    def _run(self, link: Linked) -> Plan:
        assert self.run_id is not None
        [answer] = yield [Ask(READ, run_slot(self.run_id), ("run.get", (self.run_id,)), link.timeout_s)]
        return Run.from_map(value_of(answer))

    def _cancel(self, link: Linked) -> Plan:
        """Cancel the run. It may be over, unknown or out of reach: then there is nothing more to do."""
        assert self.run_id is not None
        if self._settled:
            return
        self._settled = True
        limit_s = link.timeout_s if self._shutdown_s is None else self._shutdown_s
        try:
            yield [Ask(WRITE, run_slot(self.run_id), ("run.cancel", (self.run_id, None)), limit_s)]
        except MeshError:
            return

    def _word(self, data: dict[str, Any]) -> Event:
        return Event("", "error_occurred", self.session_id or "", self.run_id, self._seq + 1, time(), data)


def _said(run: Run) -> dict[str, Any]:
    """What a run that did not complete says of it."""
    try:
        finished(run, ())
    except MeshError as error:
        return _described(error)
    return {"error_message": f"run {run.id} is {run.status.value}"}


def _described(error: MeshError) -> dict[str, Any]:
    data: dict[str, Any] = {"error_code": error.code, "error_message": error.message}
    if error.provider_error is not None:
        data["provider_error"] = error.provider_error
    if error.details:
        data["details"] = error.details
    return data


__all__ = ["Course"]
