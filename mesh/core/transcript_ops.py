"""The operations on a session's transcript: compact and pin. The log is never rewritten: both are events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from mesh.core import session as sessions
from mesh.core import wire
from mesh.core.agents import Part
from mesh.core.events import TYPE_CODE
from mesh.core.queueing import Queue
from mesh.core.run import COMPACT, RunState
from mesh.core.run_ops import RunOps, take
from mesh.core.session import SessionState
from mesh.errors import InvalidArgument, NotFound, shown

#: What an agent is asked when a summary is wanted and nobody says how.
INSTRUCTIONS = (
    "Summarise the conversation so far for somebody who has to go on with it: what was asked, decided, done "
    "and found, what is still open, and every name, number and path that matters. Give the summary only."
)
#: What a pin may name.
_MESSAGES = frozenset(TYPE_CODE[name] for name in (
    "message_sent", "message_received", "message_streamed", "tool_call_started", "tool_call_completed",
    "tool_call_failed", "transcript_compacted",
))


class TranscriptOps:
    """Writes on the transcript of a session."""

    def __init__(self, queue: Queue, runs: RunOps) -> None:
        self.state = queue.state
        self.runs = runs
        queue.on_completed = self._on_completed
        self.writes: dict[str, Callable[[list[Any], Part], bytes | None]] = {
            "session.compact": self.compact,
            "run.summarise": self.summarise,
            "session.pin": self.pin,
        }

    def compact(self, args: list[Any], part: Part) -> bytes | None:
        """A summary of the caller's takes the place of what is old."""
        session_id, summary, up_to = take(args, 2, 3)
        session = self._open(session_id)
        if type(summary) is not str or not summary.strip():
            raise InvalidArgument(f"a summary must be a non-empty str, not {shown(summary, 60)}")
        self.runs.bounded(summary, "the summary has")
        self._write(session, summary, self._seq(session, "up_to", up_to), None)
        return wire.ok(self.state.sessions[session.id].seq)

    def summarise(self, args: list[Any], part: Part) -> bytes | None:
        """A run makes the summary; when it completes, that is written in the same transaction."""
        run_id, session_id, up_to, instructions, options = take(args, 2, 5)
        session = self._open(session_id)
        up_to = self._seq(session, "up_to", up_to)
        given = {"prompt": INSTRUCTIONS if instructions is None else instructions}
        if type(given["prompt"]) is not str or not given["prompt"]:
            raise InvalidArgument(f"instructions must be a non-empty str, not {shown(instructions, 60)}")
        options = {"continuation": "replay", **_map(options)}
        budget = {**_map(options.get("continuation_opts")), "before": up_to + 1}
        run = self.runs.add(run_id, session, given, {**options, "continuation_opts": budget})
        run = self.state.put_run(msgspec.structs.replace(run, options={**run.options, COMPACT: up_to}))
        return self.runs.wire_of(self.runs.queue_up(run, session))

    def pin(self, args: list[Any], part: Part) -> bytes | None:
        """A message stays whatever the budgets and compactions say; or does so no more."""
        session_id, seq, pinned = take(args, 2, 3)
        session = self._open(session_id)
        pinned = True if pinned is None else pinned
        if type(seq) is not int or type(pinned) is not bool:
            raise InvalidArgument("pin takes a seq and true or false", code="invalid_cursor")
        if self.state.event_type(session, seq) not in _MESSAGES:
            raise NotFound(f"event {seq} of session {session.id} is no message")
        self.state.append(session.id, "message_pinned", {"seq": seq, "pinned": pinned})
        return wire.ok(self.state.sessions[session.id].seq)

    def _open(self, session_id: Any) -> SessionState:
        session = self.state.session(session_id)
        if session.status in sessions.CLOSED:
            sessions.require_active(session)
        return session

    def _seq(self, session: SessionState, name: str, value: Any) -> int:
        if value is None:
            return session.seq
        if type(value) is not int or not 0 <= value <= session.seq:
            raise InvalidArgument(
                f"{name} must be a seq of the session, from 0 to {session.seq}, not {shown(value, 40)}",
                code="invalid_cursor",
            )
        return value

    def _write(self, session: SessionState, summary: str, up_to: int, run_id: str | None) -> None:
        self.state.append(
            session.id, "transcript_compacted",
            {"summary": summary, "up_to": up_to, **({} if run_id is None else {"run_id": run_id})},
        )

    def _on_completed(self, run: RunState) -> None:
        """What a completed run said is a summary, when it was asked for one; an empty one changes nothing."""
        up_to = run.options.get(COMPACT) if run.options else None
        if up_to is None:
            return
        summary = (run.output or {}).get("content")
        if type(summary) is str and summary.strip():
            self._write(self.state.session(run.session_id), summary, up_to, run.id)


def _map(options: Any) -> dict[str, Any]:
    if options is None:
        return {}
    if type(options) is not dict:
        raise InvalidArgument(f"options must be a map, not {type(options).__name__}")
    return options


__all__ = ["INSTRUCTIONS", "TranscriptOps"]
