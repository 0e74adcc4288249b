"""A session's transcript: its events folded into messages, one after the other.

Rules of this file:

1. The log is the truth and is never rewritten. A fold is what was read of it so far; it goes on from its
   ``seq``, and adding an event costs the same whether it is the first or the millionth.
2. A run's messages stand where the run began: a prompt that waited is placed at its ``run_started``, and one
   that never began is in no transcript. A run that was rolled back, a former attempt of a run, and a run that
   only made a summary leave nothing.
3. No text twice: what was streamed and is received again is one message, also when tool calls stood between.
4. A *unit* is what must not be torn apart: one text, or calls made together with their results. A call
   without a result is closed by a marker, a result without a call gets its call.
5. A compaction replaces the units up to its seq by a summary; pinned ones stay.
6. Memory is bounded: over ``chars_max`` the oldest units are left out and counted, pinned ones last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from mesh.core.message import Message, Role
from mesh.core.unit import (
    AWAITING_APPROVAL,
    DENIED,
    Unit,
    about,
    chars_of,
    name_of,
    output_of,
    role_of,
    text_of,
)

Event = Mapping[str, Any]
_Place = tuple[Unit, int]  # a unit of calls, and which of them

#: Of one fold, in characters of text and tool payloads.
CHARS_MAX = 16 * 1024 * 1024
#: So many units that are no more may stay in the list before it is swept.
SWEEP = 64
#: Where the data of ``run_started`` names the provider's own session (the first that is there).
PROVIDER_SESSION_KEYS = ("provider_session_id", "session_id", "thread_id")


class _Run:
    """What is known of a run that is not over."""

    __slots__ = (
        "began", "block", "calls", "hidden", "loose", "nameless", "pending", "said", "said_chars", "sent",
        "streamed", "units", "waiting",
    )

    def __init__(self) -> None:
        self.began = self.hidden = False
        self.waiting: list[Event] = []  #: message_sent before its start
        self.sent: list[Unit] = []  #: what the user said
        self.units: list[Unit] = []  #: what the attempt said
        self.calls: dict[str, _Place] = {}  #: the last call of each id
        self.nameless: dict[str | None, deque[_Place]] = {}  #: calls without an id, by their tool
        self.anew()

    def anew(self) -> None:
        """Forget what an attempt said."""
        self.pending: list[str] = []
        self.streamed: Event | None = None  #: the last event of ``pending``
        self.loose: list[str] = []  #: streamed texts that are messages, since the last message_received
        self.said: list[str] = []  #: all its texts that are messages
        self.said_chars = 0
        self.block: Unit | None = None
        self.calls.clear()
        self.nameless.clear()
        self.units.clear()

    def fresh_part(self, text: str) -> str:
        """What of a received text no message holds yet: providers repeat what they streamed, and the node
        all that the run said."""
        pending = "".join(self.pending)
        if not text or text == pending or not (pending or self.loose):
            return text or pending
        if len(text) == self.said_chars + len(pending) and text == "".join((*self.said, pending)):
            return pending
        loose = "".join(self.loose)
        if loose and text.startswith(loose + pending):
            return text[len(loose):]
        return "" if loose and not pending and loose.startswith(text) else text

    def call_of(self, data: Mapping[str, Any]) -> _Place | None:
        """The call that a result belongs to: by its id, else the oldest open one of that tool without any."""
        call_id = name_of(data, "tool_call_id")
        if call_id is not None:
            return self.calls.get(call_id)
        waiting = self.nameless.get(name_of(data, "tool_name"))
        while waiting:
            unit, key = waiting[0]
            result = unit.calls[key][1]
            if result is None or result.metadata.get("marker"):
                return waiting[0]
            waiting.popleft()
        return None


class Fold:
    """The transcript of one session up to ``seq``."""

    def __init__(self, session_id: str, *, chars_max: int = CHARS_MAX) -> None:
        self.session_id = session_id
        self.seq = 0
        self.ts: float | None = None
        self.chars = 0
        self.omitted = 0  #: messages left out because of ``chars_max``
        self.pruned_to = 0  #: up to this seq, retention removed events of the log
        #: (provider, agent, the provider's own session id) that knows all of this, when one does
        self.known_to: tuple[str, str, str] | None = None
        self._chars_max = chars_max
        self._front: list[Unit] = []  #: the summary and pinned units, before the others
        self._units: deque[Unit] = deque()
        self._gone = 0  #: units of the two lists that are no more
        self._by_seq: dict[int, Unit] = {}
        self._runs: dict[str | None, _Run] = {}

    # --- reading on ---

    def add(self, events: Iterable[Event]) -> None:
        """Read on. Events come in the order of ``seq``; what was read before is passed over."""
        for event in events:
            if event["seq"] <= self.seq:
                continue
            self.seq, self.ts = event["seq"], event["ts"]
            take = _TAKE.get(event["type"])
            if take is None:
                continue
            run_id = event["run_id"]
            run = self._runs.get(run_id)
            if run is None:
                run = self._runs[run_id] = _Run()
                run.began = run_id is None
            if not run.hidden or event["type"] in _ENDS:
                take(self, run, event, event["data"])

    def reached(self, seq: int) -> None:
        """There is nothing more for a transcript up to this seq."""
        self.seq = max(self.seq, seq)

    def fork(self, session_id: str) -> None:
        """Become the beginning of another session's transcript.

        What was under way stays as far as it came, a prompt that waited does not. The messages say whose
        they were.
        """
        for run_id in list(self._runs):
            self._flush(self._runs[run_id], partial=True)
        self._runs.clear()
        self._by_seq.clear()
        for unit in self.units():
            unit.seq, unit.seqs = 0, []
            for message in unit.messages():
                message.metadata.setdefault("session_id", self.session_id)
        self.session_id, self.seq, self.ts, self.known_to = session_id, 0, None, None
        self.pruned_to = 0

    # --- what events do ---

    def _sent(self, run: _Run, event: Event, data: Mapping[str, Any]) -> None:
        if not run.began:
            run.waiting.append(event)
            return
        self._flush(run)
        text = text_of(data.get("content"))
        if text:
            run.sent.append(self._say(run, event, role_of(data, Role.USER), text))

    def _started(self, run: _Run, event: Event, data: Mapping[str, Any]) -> None:
        for unit in run.units:  # another attempt: what the former one said is not what happened
            self._drop(unit)
        run.anew()
        run.began, run.hidden = True, data.get("purpose") == "compaction"
        self.known_to = None if run.hidden else self._knows(event, data)
        waiting, run.waiting = run.waiting, []
        for sent in () if run.hidden else waiting:
            self._sent(run, sent, sent["data"])

    def _knows(self, event: Event, data: Mapping[str, Any]) -> tuple[str, str, str] | None:
        own = next((data[key] for key in PROVIDER_SESSION_KEYS if data.get(key)), None)
        provider, agent = event.get("provider"), data.get("routed_to") or data.get("agent")
        if not (type(own) is str and type(provider) is str and type(agent) is str):
            return None
        return (provider, agent, own) if data.get("continuation") or self.empty else None

    def _streamed(self, run: _Run, event: Event, data: Mapping[str, Any]) -> None:
        text = data.get("delta") or data.get("content")
        if type(text) is str and text and data.get("stream") != "stderr":
            run.pending.append(text)
            run.streamed = event

    def _received(self, run: _Run, event: Event, data: Mapping[str, Any]) -> None:
        role, text = role_of(data, Role.ASSISTANT), text_of(data.get("content"))
        if role is not Role.ASSISTANT:
            self._flush(run)
        else:
            text = run.fresh_part(text)
            run.pending, run.streamed, run.loose = [], None, []
            run.said_chars += len(text)
        if text:
            run.said.append(text)
            run.units.append(self._say(run, event, role, text))
        elif run.units:  # a message holds it already: whoever pins this event means that one
            self._grow(run.units[-1], event["seq"], 0)

    def _called(self, run: _Run, event: Event, data: Mapping[str, Any]) -> _Place:
        self._flush(run)
        unit = run.block
        if unit is None or unit.sealed or unit.gone:
            unit = run.block = Unit(event["run_id"], event["seq"], event["ts"])
            run.units.append(unit)
            self._units.append(unit)
        call_id, name = name_of(data, "tool_call_id"), name_of(data, "tool_name")
        call = Message(Role.ASSISTANT, None, call_id, name, data.get("tool_input"), None, about(event))
        place = unit, event["seq"]
        unit.calls[event["seq"]] = [call, None]
        if call_id is None:
            run.nameless.setdefault(name, deque()).append(place)
        else:
            run.calls[call_id] = place
        self._grow(unit, event["seq"], chars_of(call))
        return place

    def _finished(self, run: _Run, event: Event, data: Mapping[str, Any]) -> None:
        self._answer(run, event, data, output_of(data)).sealed = True

    def _asked(self, run: _Run, event: Event, data: Mapping[str, Any]) -> None:
        if name_of(data, "tool_name") is not None:  # else it is about the run's budget, and no call
            self._answer(run, event, data, AWAITING_APPROVAL, marker=True)

    def _granted(self, run: _Run, event: Event, data: Mapping[str, Any]) -> None:
        """The call goes on. One that only the question told of is told of by its agent, or by nobody."""
        place = run.call_of(data)
        if place is None:
            return
        unit, key = place
        call, former = unit.calls[key]
        if call is None or former is None or not former.metadata.get("marker"):
            return
        invented = former.metadata["sequence_number"] == key and call.tool_call_id is not None
        self._grow(unit, event["seq"], -chars_of(former) - (chars_of(call) if invented else 0))
        unit.calls[key] = [call, None]
        if invented and call.tool_call_id is not None:
            del unit.calls[key], run.calls[call.tool_call_id]
            if not unit.calls:
                self._drop(unit)

    def _denied(self, run: _Run, event: Event, data: Mapping[str, Any]) -> None:
        if run.call_of(data) is not None:
            self._answer(run, event, data, DENIED, marker=True)

    def _answer(
        self, run: _Run, event: Event, data: Mapping[str, Any], output: Any, *, marker: bool = False
    ) -> Unit:
        self._flush(run)
        unit, key = run.call_of(data) or self._called(run, event, data)
        call, former = unit.calls[key]
        assert call is not None
        if marker and former is not None and not former.metadata.get("marker"):
            return unit  # the result is there
        where = about(event) | ({"marker": True} if marker else {})
        if event["type"] == "tool_call_failed":
            where["failed"] = True
        result = Message(Role.TOOL, None, call.tool_call_id, call.tool_name, None, output, where)
        unit.calls[key] = [call, result]
        self._grow(unit, event["seq"], chars_of(result) - (0 if former is None else chars_of(former)))
        return unit

    def _ended(self, run: _Run, event: Event, data: Mapping[str, Any]) -> None:
        if event["type"] == "run_cancelled" and data.get("reason") == "rollback":
            for unit in (*run.sent, *run.units):
                self._drop(unit)
            self.known_to = None
        elif not run.hidden:
            self._flush(run, partial=event["type"] != "run_completed")
        del self._runs[event["run_id"]]

    def _compacted(self, run: _Run, event: Event, data: Mapping[str, Any]) -> None:  # noqa: ARG002
        up_to = data["up_to"]
        for unit in self.units():
            if unit.seq <= up_to and not unit.pinned:
                self._forget(unit)
        kept = list(self.units())
        where = about(event) | {"summary": True, "up_to": up_to}
        text = Message(Role.SYSTEM, text_of(data["summary"]), metadata=where)
        summary = Unit(None, up_to, event["ts"], text, summary=True)
        self._front = [summary, *(unit for unit in kept if unit.seq <= up_to)]
        self._units = deque(unit for unit in kept if unit.seq > up_to)
        self._gone, self.known_to = 0, None
        summary.seqs = [event["seq"]]
        self._by_seq[event["seq"]] = summary
        self.chars += summary.size

    def _pinned(self, run: _Run, event: Event, data: Mapping[str, Any]) -> None:  # noqa: ARG002
        unit = self._by_seq.get(data["seq"])
        if unit is not None:
            unit.pinned = data.get("pinned") is not False

    # --- units ---

    def _flush(self, run: _Run, *, partial: bool = False) -> None:
        """Streamed text that something else follows becomes a message of its own."""
        if run.streamed is None:
            return
        text, event = "".join(run.pending), run.streamed
        run.pending, run.streamed = [], None
        run.loose.append(text)
        run.said.append(text)
        run.said_chars += len(text)
        unit = self._say(run, event, Role.ASSISTANT, text)
        run.units.append(unit)
        if partial and unit.message is not None:
            unit.message.metadata["partial"] = True

    def _say(self, run: _Run, event: Event, role: Role, text: str) -> Unit:
        run.block = None
        message = Message(role, text, metadata=about(event))
        unit = Unit(event["run_id"], event["seq"], event["ts"], message)
        self._units.append(unit)
        size, unit.size = unit.size, 0
        self._grow(unit, event["seq"], size)
        return unit

    def _grow(self, unit: Unit, seq: int, chars: int) -> None:
        """A unit got another event."""
        if unit.gone:
            return
        unit.seq = seq
        unit.size += chars
        if not unit.seqs or unit.seqs[-1] != seq:
            unit.seqs.append(seq)
        self._by_seq[seq] = unit
        self.chars += chars
        while self.chars > self._chars_max and (self._units or self._front):
            self._leave_out()

    def _leave_out(self) -> None:
        oldest = self._units.popleft() if self._units else self._front.pop(0)
        if oldest.gone:
            self._gone -= 1
        elif oldest.pinned and self._units:
            self._front.append(oldest)
        else:
            self.omitted += oldest.count
            self._forget(oldest)

    def _drop(self, unit: Unit) -> None:
        """Take a unit out of the transcript; the lists are swept now and then."""
        if unit.gone:
            return
        self._forget(unit)
        self._gone += 1
        if self._gone > SWEEP and 2 * self._gone > len(self._units):
            self._units = deque(unit for unit in self._units if not unit.gone)
            self._front = [unit for unit in self._front if not unit.gone]
            self._gone = 0

    def _forget(self, unit: Unit) -> None:
        unit.gone = True
        self.chars -= unit.size
        for seq in unit.seqs:
            self._by_seq.pop(seq, None)

    # --- what there is ---

    @property
    def empty(self) -> bool:
        """Whether nothing was said yet."""
        return next(self.units(), None) is None

    def units(self) -> Iterator[Unit]:
        """All units in their order."""
        for unit in chain(self._front, self._units):
            if not unit.gone:
                yield unit

    def under_way(self) -> Iterator[Unit]:
        """The texts that are being streamed now."""
        for run_id, run in self._runs.items():
            if run.streamed is not None:
                event, where = run.streamed, about(run.streamed) | {"partial": True}
                text = Message(Role.ASSISTANT, "".join(run.pending), metadata=where)
                yield Unit(run_id, event["seq"], event["ts"], text)

    def over(self, run_id: str | None) -> bool:
        """Whether a run of this transcript is over."""
        return run_id not in self._runs


_Take = Callable[[Fold, _Run, Event, Mapping[str, Any]], object]
_TAKE: dict[str, _Take] = {
    "message_sent": Fold._sent,
    "message_streamed": Fold._streamed,
    "message_received": Fold._received,
    "run_started": Fold._started,
    "run_completed": Fold._ended,
    "run_failed": Fold._ended,
    "run_cancelled": Fold._ended,
    "run_timeout": Fold._ended,
    "tool_call_started": Fold._called,
    "tool_call_completed": Fold._finished,
    "tool_call_failed": Fold._finished,
    "tool_approval_requested": Fold._asked,
    "tool_approval_granted": Fold._granted,
    "tool_approval_denied": Fold._denied,
    "transcript_compacted": Fold._compacted,
    "message_pinned": Fold._pinned,
}
_ENDS = frozenset(("run_completed", "run_failed", "run_cancelled", "run_timeout"))
#: The event types that matter to a transcript; a reader of the log may leave out the others.
TYPES: tuple[str, ...] = tuple(_TAKE)

__all__ = ["CHARS_MAX", "PROVIDER_SESSION_KEYS", "TYPES", "Fold"]
