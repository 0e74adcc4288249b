"""What a provider yields, as the events it becomes: everything a run writes passes here.

Rules of this file:

1. ``run_started`` first, one terminal event last, and it travels in the same batch as the settlement.
2. A text that was streamed is also said as one ``message_received``: by the provider, else by the node at the
   end; of a run that does not complete with ``metadata.partial``, so that an abort loses no word.
3. A tool call that is open when a run does not complete is closed by ``tool_call_failed``, error "aborted".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from typing import Any, Protocol

from mesh.core import usage
from mesh.core.error_map import with_provider_error
from mesh.core.events import AGENT_EVENTS, RUN_TERMINAL_EVENT, TYPE_CODE, FragmentEncoder
from mesh.core.pending import REPLY_BYTES_MAX
from mesh.core.plain import plain, plain_map, seconds
from mesh.core.redact import Redactor
from mesh.core.runner import Key, Outbox, RunLog, encode_event
from mesh.core.spent import DURATION
from mesh.core.wire import DEPTH_MAX, pack, repack
from mesh.errors import InvalidArgument, MeshError, shown
from mesh.node.ending import Ending, error_map, failure, terminal_data
from mesh.node.guard import Guard
from mesh.node.report import COUNTED, Report
from mesh.node.speech import TEXT_KEYS, Shows, Speech
from mesh.providers.base import OUTPUT, Output, Provider, SessionInfo
from mesh.providers.registry import Registry

#: A longer text is cut into several events.
TEXT_CHARS_MAX = 256 * 1024
#: Tool calls of one run that may be open at a time.
OPEN_CALLS_MAX = 10_000
ABORTED = "aborted"
_EVENT_KEYS = frozenset(("type", "data", "metadata", "correlation_id", "ts"))
_NOTHING: tuple[dict[str, Any] | None, str | None, float | None] = (None, None, None)
#: Parts of ``routing`` that may hold the words of an agent.
_SAID = frozenset(("tried", "inner"))
_TOOL_ENDS = frozenset(("tool_call_completed", "tool_call_failed"))


class Sink(Protocol):
    """Where the events go."""

    outbox: Outbox
    registry: Registry
    redactor: Redactor
    output_bytes_max: int
    event_bytes_max: int

    def changed(self, log: RunLog) -> None:
        """A log has something to send."""

    def holds(self, run: Shows) -> None:
        """A run holds words back: call its ``release`` after ``HOLD_S``."""


class Pieces:
    """The log of one attempt, from its first event to its settlement."""

    def __init__(self, sink: Sink, key: Key, partition: int, info: SessionInfo) -> None:
        self.log = sink.outbox.begin(key, partition)
        self.begun = False
        self.settled = False
        self.workspace: dict[str, Any] | None = None  #: what the run's record says of its folder
        self._sink = sink
        self._key = key
        self._info = info
        self._encoder = self._encoder_for(sink.registry.provider_name(info.agent))
        self._text: list[str] = []
        self._text_left = sink.output_bytes_max
        self._received = 0  # of the pieces of text: how many a message_received stands for
        self._truncated = False
        self._unreceived = True  # text, or nothing at all, that no message_received stands for yet
        self._open_calls: dict[str, dict[str, str]] = {}
        self._output: Output | None = None
        self.closed = False  #: the provider said that the run is completed: only its output may follow
        self._completion: dict[str, Any] = {}
        self._about = _NOTHING  #: what a streamed event says beside its data
        self._report = Report(self.log.note)
        self.guard: Guard | None = None
        self.opening: Callable[[], None] | None = None  #: begins a run that something stands behind already
        self._redactor = sink.redactor
        self._speech = Speech(sink.redactor, self)

    def begin(
        self, provider: Provider | None, data: dict[str, Any], routing: dict[str, Any] | None = None,
        ts: float | None = None,
    ) -> None:
        """Write ``run_started``; ``routing`` says how a router came to this provider."""
        data = plain_map(data, "run_started")
        name = self._encoder.provider
        if provider is not None and provider.name != name:
            name = provider.name
            self._encoder = self._encoder_for(name)
        self._report.mode = getattr(provider, "usage_mode", self._report.mode)
        self._report.provider = name
        self.begun = True
        self._report.tell(data)
        if routing is not None:
            if routing.keys() & _SAID:
                routing = self._redactor.data(routing)  # what failed agents said travels in reports, too
            data = {**data, "routed_to": routing["routed_to"], "routing": routing}
            self._report.routed(routing)
        self.emit("run_started", {
            "agent": self._info.agent, "provider": name, "attempt": self._key[1],
            **data,
        }, ts=ts)

    def _encoder_for(self, provider: str) -> FragmentEncoder:
        correlation_id = self._info.metadata.get("correlation_id")
        return FragmentEncoder(
            self._info.id, self._key[0], provider, correlation_id if type(correlation_id) is str else None
        )

    def take(self, piece: Any) -> None:
        """Write what the provider yielded.

        Raises:
            MeshError: it can be no event; the run fails.
        """
        if type(piece) is str and len(piece) <= TEXT_CHARS_MAX and piece.isascii():
            if piece:
                self._speech.say(piece)
        elif isinstance(piece, str):
            self._say(piece)
        elif isinstance(piece, Output):
            self._output = _checked_output(piece)
        elif not isinstance(piece, dict):
            raise InvalidArgument(f'an agent yields str or {{"type", "data"}}, not {type(piece).__name__}')
        elif piece.get("type") == OUTPUT:
            self._output = Output(data=_map(piece, "data"), token_usage=_map(piece, "token_usage"))
        elif piece.get("type") == "run_started":
            self._report.tell(_map(piece, "data"))
        elif piece.get("type") == "run_completed":
            self._completion, self.closed = _map(piece, "data"), True
        else:
            self._event(piece)

    def _say(self, text: str) -> None:
        """One ``message_streamed`` per piece of text; one that is very long becomes several."""
        for i in range(0, len(text), TEXT_CHARS_MAX):
            part = text[i:i + TEXT_CHARS_MAX]  # a plain str, also of a text that is more than that
            self._speech.say(part if part.isascii() else part.encode(errors="replace").decode())

    def said(self, text: str, data: dict[str, Any]) -> None:
        """Write a piece that was said, as it may be shown."""
        if self.settled:
            return
        if text:
            self._keep(text)
        meta, correlation_id, ts = self._about
        self._write("message_streamed", data, meta, correlation_id, ts)

    def spoke(self, text: str) -> None:
        """Write a piece of the answer, as it may be shown."""
        if not self.settled:
            size = len(text)
            if size <= self._text_left and text.isascii():
                self._unreceived = True
                self._text.append(text)
                self._text_left -= size
            else:
                self._keep(text)
            self._add(self._encoder.piece(text, time.time()))

    def waits(self) -> None:
        """Words are held back that the runner should release soon."""
        self._sink.holds(self)

    def release(self) -> None:
        """Show the words that were held back only because of how they begin."""
        if not self.settled:
            self._speech.release()

    def _keep(self, text: str) -> None:
        """Add a piece to the joined text, as far as it may grow."""
        size = len(text) if text.isascii() else len(text.encode(errors="replace"))
        self._unreceived = True
        if size > self._text_left:
            self._truncated = True
            kept = text.encode(errors="replace")[:self._text_left].decode(errors="ignore")
            self._text.append(kept)
            self._text_left = 0
        else:
            self._text.append(text)
            self._text_left -= size

    def _event(self, piece: dict[str, Any]) -> None:
        event_type = _type_of(piece)
        strange = piece.keys() - _EVENT_KEYS
        if strange:
            raise InvalidArgument(f"an event has no key {min(map(str, strange))!r:.60}")
        data, metadata = _map(piece, "data"), _map(piece, "metadata")
        correlation_id, ts = piece.get("correlation_id"), piece.get("ts")
        if correlation_id is not None and type(correlation_id) is not str:
            raise InvalidArgument(f"correlation_id must be a str, not {type(correlation_id).__name__}")
        if ts is not None:
            ts = seconds(ts, "ts")
        if event_type == "message_streamed":
            self._streamed(data, metadata, correlation_id, ts)
        else:
            if event_type == "token_usage_updated":
                self._report.count(data)
            else:
                self._speech.end()
            self.emit(event_type, data, metadata, correlation_id, ts)
            self._note(event_type, data)
        if self.guard is not None:
            self.guard.on_event(event_type, data)
            if event_type == "token_usage_updated":
                self.guard.on_usage(self._report.used, self._encoder.provider, self._report.model)

    def _streamed(
        self, data: dict[str, Any], metadata: dict[str, Any], correlation_id: str | None, ts: float | None
    ) -> None:
        texts = {key: data[key] for key in TEXT_KEYS if isinstance(data.get(key), str)}
        rest = {key: value for key, value in data.items() if key not in texts}
        rest, meta = self._redactor.event("message_streamed", rest, metadata)
        self._about = (meta, correlation_id, ts)
        try:
            self._speech.event({**rest, **texts})
        finally:
            self._about = _NOTHING

    def _note(self, event_type: str, data: dict[str, Any]) -> None:
        """Remember what an event means for the end of the run."""
        if event_type in COUNTED:
            self._report.note(event_type)
        if event_type == "message_received":
            self._unreceived, self._received = False, len(self._text)
        elif event_type == "tool_call_started":
            names = {key: data[key] for key in ("tool_call_id", "tool_name") if type(data.get(key)) is str}
            self._open_calls[_call_of(data)] = names
            if len(self._open_calls) > OPEN_CALLS_MAX:
                raise InvalidArgument(f"{OPEN_CALLS_MAX} tool calls are open", code="limit_exceeded")
        elif event_type in _TOOL_ENDS:
            self._open_calls.pop(_call_of(data), None)
        elif event_type == "turn_completed":
            self._report.turn()

    def emit(
        self, event_type: str, data: dict[str, Any], metadata: dict[str, Any] | None = None,
        correlation_id: str | None = None, ts: float | None = None,
    ) -> None:
        """Write an event without its secrets. Every event of a run passes here, but what was streamed."""
        if self.settled:
            return
        data, metadata = self._redactor.event(event_type, data, metadata)
        if correlation_id is not None:
            correlation_id = self._redactor.text(correlation_id)
        self._write(event_type, data, metadata, correlation_id, ts)

    def _write(
        self, event_type: str, data: dict[str, Any], metadata: dict[str, Any] | None,
        correlation_id: str | None, ts: float | None,
    ) -> None:
        """Encode an event, once and for all its readers."""
        if ts is None:
            ts = time.time()
        self._add(encode_event(
            TYPE_CODE[event_type], ts, self._encoder.encode(event_type, data, ts, metadata, correlation_id)
        ))

    def _add(self, event: bytes) -> None:
        if len(event) > (most := self._sink.event_bytes_max):
            raise _too_large(f"an event of {len(event)} bytes", len(event), most, "limits.event_bytes")
        log = self.log
        self._sink.outbox.add(log, event)
        if len(log.open) == 1:
            self._sink.changed(log)

    # --- the end ---

    def completed(self) -> Ending:
        """The ending of a run whose provider had its say, with the last words about its text."""
        self._speech.end()
        output = self._output or Output(data={"content": "".join(self._text)})
        data = dict(plain_map(output.data, "output"))
        content = data.get("content")
        text = content if isinstance(content, str) else "".join(self._text)
        if self._unreceived and not self._text and text:
            self._text_left = self._sink.output_bytes_max
            self._say(text)
            self._speech.end()
            text = "".join(self._text)
            if isinstance(content, str):
                data["content"] = text
        if self._truncated:
            data["truncated"] = True
        if self._unreceived:
            rest = "".join(self._text[self._received:]) if self._received else ""
            self.emit("message_received", {"role": "assistant", "content": rest or text})
        output.data = data
        completion = {"stop_reason": "end_turn", **self._completion, **output.completion}
        completion = plain_map(completion, "completion")
        said = completion.get("token_usage")
        if isinstance(said, dict):
            output.token_usage = {**said, **output.token_usage}
        if output.cost_usd is None:
            output.cost_usd = completion.get(usage.COST)
        return Ending("completed", output=output, data=completion)

    def _break_off(self) -> None:
        """The last words of a run that did not complete: its partial text, the ends of its tool calls."""
        self._speech.end(cut=True)
        partial = "".join(self._text[self._received:])
        if partial:
            cut = {"truncated": True} if self._truncated else {}
            self.emit("message_received", {"role": "assistant", "content": partial}, {"partial": True, **cut})
        for names in self._open_calls.values():
            self.emit("tool_call_failed", {**names, "error": ABORTED})

    def paid(self, spent: Report) -> None:
        """Count what an agent used that another one takes over from."""
        if spent.used:
            self._report.before(spent)
            if self.guard is not None:
                self.guard.paid(spent.used, spent.provider, spent.model)

    def start_over(self) -> None:
        """Close what was said as partial: another provider begins the same run anew."""
        self._break_off()
        self.paid(self._report)
        self._report.anew()
        self._text, self._text_left, self._received = [], self._sink.output_bytes_max, 0
        self._truncated, self._unreceived = False, True
        self._open_calls, self._output, self._completion, self.closed = {}, None, {}, False

    def ensure_begun(self) -> None:
        """A run of which something is to be written begins now: all else stands behind ``run_started``."""
        if self.begun:
            return
        if self.opening is None:
            self.begin(None, {})
        else:
            self.opening()

    def follow(self, event_type: str, data: dict[str, Any]) -> None:
        """Write an event about the run."""
        self.ensure_begun()
        self.emit(event_type, data)

    def settle(self, ending: Ending) -> None:
        """Write the terminal event and the settlement, once."""
        if self.settled:
            return
        self.ensure_begun()
        if ending.status != "completed":
            self._break_off()
        if ending.error is not None:
            ending = ending._replace(error=with_provider_error(ending.error, self._encoder.provider))
        try:
            settlement = self._settlement(ending)
            data = terminal_data(ending)
            if self._report.used and ending.status == "completed":
                data = {"token_usage": usage.without_cost(self._report.used), **data}
            data = plain(data, depth_max=DEPTH_MAX + 2)  # what an error holds lies deeper here
            self.emit(RUN_TERMINAL_EVENT[ending.status], data)
        except MeshError as exc:
            code = (failure(exc).error or {})["code"]
            ending = Ending("failed", error_map(code, f"the run's result cannot be kept: {exc.message}"))
            settlement = self._settlement(ending)
            self.emit("run_failed", terminal_data(ending))
        self._sink.outbox.settle(self.log, settlement)
        self.settled = True
        self._speech.over()

    def _settlement(self, ending: Ending) -> bytes:
        output = ending.output or Output(data={})
        policy = {} if self.guard is None else {"policy": self.guard.end()}
        if self.guard is not None:
            self._report.counts[DURATION] = self.guard.age_ms
        self._report.end(output, plain_map(output.provider_metadata, "provider_metadata"))
        result = {
            "status": ending.status, "output": output.data or None, "error": ending.error,
            **self._report.to_map(), **policy,
        }
        # Part by part: each is flat mostly, and that is seen at once.
        result = {key: part if part is None or type(part) in (str, int) or (not part and type(part) is dict)
                  else plain(part, "the result", depth_max=DEPTH_MAX + 1) for key, part in result.items()}
        result = self._redactor.data(result)
        settlement = repack(result)
        most = min(2 * self._sink.output_bytes_max + TEXT_CHARS_MAX, REPLY_BYTES_MAX)
        if len(settlement) > most:
            what = f"an output of {len(settlement)} bytes"
            raise _too_large(what, len(settlement), most, "twice limits.output_bytes, or a frame")
        if self.workspace is None:
            return settlement
        return pack({**result, "workspace": self._redactor.data(dict(self.workspace))})

    def drop(self) -> None:
        """Say nothing more, not even an end."""
        self.settled = True
        self._speech.over()
        if self.guard is not None:
            self.guard.end()
        self._sink.outbox.drop(self._key)


def _too_large(what: str, size: int, most: int, limit: str) -> InvalidArgument:
    """It cannot be kept, and could not travel."""
    return InvalidArgument(f"{what} is too large: at most {most} ({limit})", code="limit_exceeded",
                           details={"bytes": size, "most": most})


def _call_of(data: dict[str, Any]) -> str:
    """What tells one tool call of a run from the others."""
    return str(data.get("tool_call_id") or data.get("tool_name"))[:200]


def _checked_output(given: Output) -> Output:
    """What a provider's code says of its result, of the types that the rest relies on."""
    cost = given.cost_usd
    if cost is not None and not (type(cost) in (int, float) and 0 <= cost < inf):
        raise InvalidArgument(f"cost_usd must be a number from 0, not {shown(cost)}")
    maps = {
        name: plain_map(getattr(given, name), name)
        for name in ("data", "token_usage", "provider_metadata", "completion")
    }
    return Output(cost_usd=cost, **maps)


def _type_of(piece: dict[str, Any]) -> str:
    if "type" not in piece:
        raise InvalidArgument("an event needs a type")
    event_type = piece["type"]
    if type(event_type) is str and event_type in AGENT_EVENTS:
        return event_type
    known = type(event_type) is str and event_type in TYPE_CODE
    why = "is written by the node" if known else "is no event type"
    raise InvalidArgument(f"{shown(event_type)} {why}", code="invalid_event_type")


def is_output(piece: Any) -> bool:
    """Whether a piece says what the run gives."""
    return isinstance(piece, Output) or (isinstance(piece, dict) and piece.get("type") == OUTPUT)


def _map(piece: dict[str, Any], key: str) -> dict[str, Any]:
    value = piece.get(key)
    return {} if value is None else plain_map(value, key)


__all__ = ["ABORTED", "OPEN_CALLS_MAX", "TEXT_CHARS_MAX", "Pieces", "Sink", "is_output"]
