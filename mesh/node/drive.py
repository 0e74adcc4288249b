"""One attempt of one run: from what its provider yields to numbered events, ending in exactly one settlement.

Rules of this file:

1. ``run_started`` first, one terminal event last, and it travels in the same batch as the settlement.
2. Whoever ends a run first decides how it ended: the provider, a cancel, a deadline, the node's shutdown.
   What the provider says later is dropped.
3. A cancelled provider gets ``CANCEL_S`` to clean up. Then the run is settled without it.
4. Nothing that an agent does or yields harms another run: whatever it raises, ``SystemExit`` included, is
   this run's failure.
"""

from __future__ import annotations

import asyncio
import time
from contextvars import ContextVar
from typing import Any, Protocol

from mesh.core.events import AGENT_EVENTS, RUN_TERMINAL_EVENT, TYPE_CODE, FragmentEncoder
from mesh.core.runner import Key, Outbox, RunLog, encode_event
from mesh.core.wire import DEPTH_MAX, check_depth, pack
from mesh.errors import InvalidArgument, MeshError, RunError
from mesh.node.ending import CANCELLED, Ending, error_map, failure, raised, terminal_data
from mesh.providers.base import OUTPUT, Output, Provider, RunContext, SessionInfo
from mesh.providers.registry import Registry

#: How long a cancelled provider may clean up; the callers of ``cancel`` are promised 5 s.
CANCEL_S = 4.0
#: A longer text is cut into several events.
TEXT_CHARS_MAX = 256 * 1024
#: After so many pieces in one go the other runs get their turn.
PIECES_PER_TURN = 32
#: ``session_id run_id`` of what executes now; what it prints is marked with it.
RUN_TAG: ContextVar[str] = ContextVar("mesh_run", default="")
_EVENT_KEYS = frozenset(("type", "data", "metadata", "correlation_id"))


class Host(Protocol):
    """What a drive needs of its runner."""

    outbox: Outbox
    registry: Registry
    states: dict[str, dict[str, Any]]
    output_bytes_max: int

    def changed(self, log: RunLog) -> None:
        """A log has something to send."""

    async def room(self) -> None:
        """Return when there is room for more unconfirmed events."""

    def ended(self, drive: Drive) -> None:
        """The provider of a drive is done; nothing of it executes any more."""


class Drive:
    """Drives one attempt. Everything happens on the runner's loop."""

    def __init__(
        self, host: Host, key: Key, *, partition: int, session: dict[str, Any], run_input: Any,
        options: dict[str, Any],
    ) -> None:
        self.key = key
        self.log = host.outbox.begin(key, partition)
        self.info = _info(session)
        self.context = RunContext(
            key[0], self.info, run_input, attempt=key[1], options=options.get("provider_opts"),
            states=host.states,
        )
        self.settled = False
        self.ending: Ending | None = None
        self.task: asyncio.Task[None] | None = None
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._deadline_s: float | None = options.get("deadline_s")
        self._timers: list[asyncio.TimerHandle] = []
        self._encoder = self._encoder_for(host.registry.provider_name(self.info.agent))
        self._begun = False
        self._text: list[str] = []
        self._text_left = host.output_bytes_max
        self._truncated = False
        self._streamed = False
        self._unreceived = True  # text, or nothing at all, that no message_received stands for yet
        self._output: Output | None = None
        self._usage: dict[str, Any] = {}

    def start(self) -> None:
        """Begin to execute."""
        self.task = self._loop.create_task(self._main())
        self.task.add_done_callback(self._done)
        if self._deadline_s is not None:
            message = f"the run took longer than its {self._deadline_s:g} s"
            error = {"code": "timeout", "message": message, "details": {"deadline_s": self._deadline_s}}
            ending = Ending("timeout", error, data={"deadline_s": self._deadline_s})
            self._timers.append(self._loop.call_later(self._deadline_s, self.stop, ending))

    def stop(self, ending: Ending) -> None:
        """End the run from outside; settled when the provider is done, after ``CANCEL_S`` in any case."""
        if self.settled or self.ending is not None:
            return
        self._give_up(ending)
        if self.task is not None:
            self.task.cancel()

    def drop(self) -> None:
        """The attempt is over elsewhere: stop the provider and say nothing more."""
        self.stop(CANCELLED)
        self.settled = True
        self._host.outbox.drop(self.key)

    def report(self, event_type: str, data: dict[str, Any]) -> None:
        """Write an event about the run, from outside of it."""
        if self._begun and not self.settled:
            self._emit(event_type, data)

    # --- from the provider to the log ---

    async def _main(self) -> None:
        RUN_TAG.set(f"{self.info.id} {self.key[0]}")
        try:
            ending = await self._execute()
        except asyncio.CancelledError:
            ending = Ending("failed", error_map("provider_error", "the agent cancelled its own task"))
        except MeshError as exc:
            ending = failure(exc)
        self._settle(ending)

    async def _execute(self) -> Ending:
        host = self._host
        agent = self.info.agent
        provider = host.registry.ready(agent) or await host.registry.provider(agent)
        if not isinstance(self.context.options, dict):
            raise InvalidArgument("provider_opts must be a map", code="validation_error")
        try:
            self._begin(provider, provider.started(self.context))
            await self._pull(provider)
        except (GeneratorExit, asyncio.CancelledError):  # the loop is gone; the run is over
            raise
        except BaseException as exc:  # noqa: BLE001  rule 4
            return failure(exc) if isinstance(exc, RunError) else raised(exc)
        return self._completed()

    def _begin(self, provider: Provider | None, data: dict[str, Any]) -> None:
        """Write ``run_started``."""
        name = self._encoder.provider
        if provider is not None and provider.name != name:
            name = provider.name
            self._encoder = self._encoder_for(name)
        self._begun = True
        self._emit("run_started", {
            "agent": self.info.agent, "provider": name, "attempt": self.key[1], **data,
        })

    def _encoder_for(self, provider: str) -> FragmentEncoder:
        correlation_id = self.info.metadata.get("correlation_id")
        return FragmentEncoder(
            self.info.id, self.key[0], provider, correlation_id if type(correlation_id) is str else None
        )

    async def _pull(self, provider: Provider) -> None:
        """Take every piece the provider yields, as fast as they are stored elsewhere."""
        stream = provider.run(self.context)
        outbox = self._host.outbox
        count = 0
        try:
            async for piece in stream:
                if self.ending is not None:
                    return
                try:
                    self._take(piece)
                except MeshError as exc:
                    self._give_up(failure(exc))
                    return
                count += 1
                if count % PIECES_PER_TURN == 0:
                    await asyncio.sleep(0)
                if outbox.full:
                    await self._host.room()
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()

    def _take(self, piece: Any) -> None:
        if isinstance(piece, str):
            if piece:
                self._say(piece)
        elif isinstance(piece, Output):
            self._output = piece
        elif not isinstance(piece, dict):
            raise InvalidArgument(
                f'an agent yields str or {{"type", "data"}}, not {type(piece).__name__}',
                code="invalid_event_type",
            )
        elif piece.get("type") == OUTPUT:
            self._output = Output(data=_map(piece, "data"))
        else:
            self._event(piece)

    def _say(self, text: str) -> None:
        """One ``message_streamed`` per piece of text; one that is very long becomes several."""
        for i in range(0, len(text), TEXT_CHARS_MAX):
            part = self._keep(text[i:i + TEXT_CHARS_MAX] if len(text) > TEXT_CHARS_MAX else text)
            self._emit("message_streamed", {"content": part})

    def _keep(self, text: str) -> str:
        """Add a piece to the joined text, as far as it may grow; returns the piece as it can be encoded."""
        size = len(text)
        if not text.isascii():
            encoded = text.encode(errors="replace")
            size = len(encoded)
            text = encoded.decode()
        self._streamed = self._unreceived = True
        if size > self._text_left:
            self._truncated = True
            kept = text.encode()[:self._text_left].decode(errors="ignore")
            self._text.append(kept)
            self._text_left = 0
        else:
            self._text.append(text)
            self._text_left -= size
        return text

    def _event(self, piece: dict[str, Any]) -> None:
        event_type = piece.get("type")
        if event_type not in AGENT_EVENTS:
            why = "is written by the node" if event_type in TYPE_CODE else "is no event type"
            raise InvalidArgument(f"{event_type!r:.60} {why}", code="invalid_event_type")
        strange = piece.keys() - _EVENT_KEYS
        if strange:
            raise InvalidArgument(f"an event has no key {min(map(str, strange))!r:.60}")
        data, metadata = _map(piece, "data"), _map(piece, "metadata")
        check_depth(data)
        check_depth(metadata)
        if event_type == "message_streamed":
            text = data.get("content")
            if isinstance(text, str) and text and data.get("stream") != "stderr":
                self._keep(text)
        elif event_type == "message_received":
            self._unreceived = False
        correlation_id = piece.get("correlation_id")
        check_depth(correlation_id)
        self._emit(event_type, data, metadata, correlation_id)
        if event_type == "token_usage_updated":
            self._usage = {key: value for key, value in data.items() if type(value) in (int, float)}

    def _emit(
        self, event_type: str, data: dict[str, Any], metadata: dict[str, Any] | None = None,
        correlation_id: str | None = None,
    ) -> None:
        """Encode an event, once and for all its readers. Every event of a run passes here."""
        if self.settled:
            return
        ts = time.time()
        event = encode_event(
            TYPE_CODE[event_type], ts, self._encoder.encode(event_type, data, ts, metadata, correlation_id)
        )
        if len(event) > 2 * self._host.output_bytes_max + TEXT_CHARS_MAX:
            raise InvalidArgument(f"an event of {len(event)} bytes is too large", code="limit_exceeded")
        self._host.outbox.add(self.log, event)
        self._host.changed(self.log)

    # --- the end ---

    def _completed(self) -> Ending:
        """The ending of a run whose provider had its say, with the last words about its text."""
        output = self._output or Output(data={"content": "".join(self._text)})
        data = dict(output.data)
        content = data.get("content")
        text = content if isinstance(content, str) else "".join(self._text)
        if not self._streamed and text:
            self._text_left = self._host.output_bytes_max
            self._say(text)
            text = "".join(self._text)
            if isinstance(content, str):
                data["content"] = text
        if self._truncated:
            data["truncated"] = True
        if self._unreceived:
            self._emit("message_received", {"role": "assistant", "content": text})
        check_depth(data)
        output.data = data
        return Ending("completed", output=output, data={"stop_reason": "end_turn", **output.completion})

    def _give_up(self, ending: Ending) -> None:
        """The run is over; its provider has ``CANCEL_S`` to notice."""
        self.ending = ending
        self.context.cancelled.set()
        self._timers.append(self._loop.call_later(CANCEL_S, self._settle, ending))

    def _settle(self, ending: Ending) -> None:
        """Write the terminal event and the settlement, once."""
        if self.settled:
            return
        for timer in self._timers:
            timer.cancel()
        ending = self.ending or ending
        if not self._begun:
            self._begin(None, {})
        try:
            settlement = self._settlement(ending)
            data = terminal_data(ending)
            check_depth(data, DEPTH_MAX + 2)  # what an error or an output holds lies deeper here
            self._emit(RUN_TERMINAL_EVENT[ending.status], data)
        except MeshError as exc:
            code = (failure(exc).error or {})["code"]
            ending = Ending("failed", error_map(code, f"the run's result cannot be kept: {exc.message}"))
            settlement = self._settlement(ending)
            self._emit("run_failed", terminal_data(ending))
        self._host.outbox.settle(self.log, settlement)
        self.settled = True

    def _settlement(self, ending: Ending) -> bytes:
        output = ending.output or Output(data={})
        result = {
            "status": ending.status, "output": output.data or None, "error": ending.error,
            "token_usage": output.token_usage or self._usage, "cost_usd": output.cost_usd,
            "provider_metadata": {"provider": self._encoder.provider, **output.provider_metadata},
        }
        check_depth(result, DEPTH_MAX + 2)
        settlement = pack(result)
        if len(settlement) > 2 * self._host.output_bytes_max + TEXT_CHARS_MAX:
            raise InvalidArgument(f"an output of {len(settlement)} bytes is too large", code="limit_exceeded")
        return settlement

    def _done(self, task: asyncio.Task[None]) -> None:
        """The task is over. One that was cancelled before its first step settles here."""
        if not task.cancelled() and task.exception() is not None:
            self._settle(raised(task.exception()))
        self._settle(CANCELLED)
        self._host.ended(self)


def _info(session: dict[str, Any]) -> SessionInfo:
    return SessionInfo(
        id=session["id"], agent=session["agent"], agent_id=session.get("agent_id") or "",
        incarnation=session.get("incarnation") or 0, context=session.get("context") or {},
        metadata=session.get("metadata") or {}, tags=tuple(session.get("tags") or ()),
    )


def _map(piece: dict[str, Any], key: str) -> dict[str, Any]:
    value = piece.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidArgument(f"{key} of an event is a map, not {type(value).__name__}")
    return value


__all__ = ["CANCEL_S", "RUN_TAG", "Drive", "Host"]
