"""What the providers of API models share: settings, the loop of turns and tools, retries, failures.

A provider says how one turn is asked for and heard (``_turn``) and how what was said becomes messages. The
rest is here.

Rules of this file:

1. One client per agent, with its connections; closed when the agent is replaced and its last run is over.
2. A request that failed is sent again while nothing of its answer was shown: after what ``retry-after`` says,
   else after a time that doubles; never when that would pass the run's deadline.
3. A key is read from the environment when the agent is built, and stands in no error.
"""

from __future__ import annotations

import asyncio
import os
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from mesh.errors import ConfigError
from mesh.providers import kinds, lazy_sdk
from mesh.providers.api_errors import Failures
from mesh.providers.base import (
    STREAMING,
    Output,
    Piece,
    ProviderFailure,
    RunContext,
    as_failure,
    capabilities_of,
    check_keys,
    check_options,
    checked,
    usage_mode_of,
)
from mesh.providers.certificates import Certificates
from mesh.providers.conversation import Call, Conversation, Result, conversation_of
from mesh.providers.images import VISION
from mesh.providers.sse import Events
from mesh.providers.tools import TOOL_KEYS, Tool, Toolbox, ToolResult, check_tools

#: Answers of one run, between which tools are called.
TURNS_MAX = 50
#: Tokens of one answer, when nobody says otherwise.
MAX_TOKENS = 8_192
#: How often one request is sent again.
RETRIES = 4
#: The first pause before that, which doubles, and the longest, also of those that a server asks for.
BACKOFF_S = 0.5
BACKOFF_MAX_S = 30.0
RETRY_AFTER_MAX_S = 300.0
#: Silence of a server in the middle of an answer, and the time to reach it.
TIMEOUT_S = 600.0
CONNECT_S = 10.0
TOOL_USE = {"name": "tool_use", "type": "tool"}
SYSTEM_PROMPTS = {"name": "system_prompts", "type": "prompt"}
#: What a call may say too, by ``provider_opts``.
CALL_KEYS = ("model", "system_prompt", "max_tokens", "max_turns")
KEYS = (*CALL_KEYS, "base_url", "api_key_env", "retries", "timeout_s", *TOOL_KEYS)


class Asked(NamedTuple):
    """What one run asks for: the agent's settings, and what the call said."""

    model: str
    max_tokens: int | None
    max_turns: int
    more: dict[str, Any]  #: the provider's own settings


@dataclass(slots=True)
class Turn:
    """One answer of a model, as it comes in."""

    text: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    stop_reason: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    message: list[Any] = field(default_factory=list)  #: what is added to the messages, the API's own way
    again: bool = False  #: the API asks to be asked again, without tools
    estimated: bool = False  #: the API told no usage

    def anew(self) -> None:
        """It is asked for again; what it used was used."""
        self.text, self.calls, self.message = [], [], []


class Request(NamedTuple):
    """What the API is asked, below its address."""

    path: str
    body: dict[str, Any]


class Answer(Protocol):
    """One answer's events, taken as they come."""

    over: bool  #: its last event was taken

    def take(self, event: dict[str, Any]) -> Piece | None:
        """What an event shows, if it does."""

    def finish(self) -> None:
        """Fill the turn with what became of it."""


class ApiProvider(ABC):
    """Runs one agent on an API model."""

    name = ""
    key_env = ""  #: where the key stands, unless the table says
    own_keys: tuple[str, ...] = ()  #: settings of one provider alone
    CAPABILITIES: tuple[dict[str, Any], ...] = (STREAMING, TOOL_USE, VISION, SYSTEM_PROMPTS)
    enforces = frozenset(("tools_before", "tools_observed", "budget", "approvals"))

    def __init__(self, table: Mapping[str, Any], place: kinds.Place) -> None:
        """Prove the table, load the library and the tools. Off the loop.

        Raises:
            ConfigError: a wrong setting, no model, no key, a library that is not installed.
        """
        check_keys(table, (*KEYS, *self.own_keys))
        self._table = dict(table)
        self._tools = check_tools(table, place)
        default = [c for c in self.CAPABILITIES if c is not TOOL_USE or self._tools]
        self.capabilities = capabilities_of(table, default)
        self.idempotent: bool = checked(table, "idempotent", (bool,), False)
        self.usage_mode = usage_mode_of(table)
        self._asked({})
        self._retries = _number(table, "retries", RETRIES, 0, 100)
        self._base_url = checked(table, "base_url", (str,), None) or None
        self._certificates = Certificates()
        self._library = library = kinds.library(self.name, self.name, lazy_sdk.client_module)
        self._response = lazy_sdk.response_class(library)
        key = self._key(table)
        self._failures = Failures(self.name, self._base_url, key)
        timeout_s = float(_number(table, "timeout_s", TIMEOUT_S, 0.001, 86_400))
        self._settings = {"api_key": key, "base_url": self._base_url, "max_retries": 0,
                          "timeout": library.Timeout(timeout_s, connect=CONNECT_S)}
        self._client = self._open()
        self._running = 0
        self._retired = False

    def _open(self) -> Any:
        http_client = self._certificates.client(self._library)
        return self._connect(self._library, http_client=http_client, **self._settings)

    # --- settings ---

    def _key(self, table: Mapping[str, Any]) -> str:
        name = checked(table, "api_key_env", (str,), self.key_env)
        key = os.environ.get(name, "").strip()
        if not key and (self._base_url is None or "api_key_env" in table):
            raise ConfigError(
                f"no API key: set {name} in the environment of the node, or name another variable by "
                "api_key_env", code="provider_authentication_failed",
            )
        return key or "none"  # a server of one's own may want none

    def _asked(self, options: Mapping[str, Any]) -> Asked:
        """The settings of one run, proven."""
        check_options(options, (*CALL_KEYS, *self._call_keys()))
        table = {**self._table, **options}
        model = checked(table, "model", (str,), "")
        if not model:
            raise ConfigError(f'model: an agent of {self.name!r} needs model = "..."')
        checked(table, "system_prompt", (str,), None)
        turns = int(_number(table, "max_turns", TURNS_MAX, 1, 10_000))
        return Asked(model, self._max_tokens(table), turns, self._more(table))

    def _max_tokens(self, table: Mapping[str, Any]) -> int | None:
        return int(_number(table, "max_tokens", MAX_TOKENS, 1, 10_000_000))

    def _call_keys(self) -> tuple[str, ...]:
        return ()

    def _more(self, table: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        return {}

    # --- what each API does its own way ---

    @abstractmethod
    def _connect(self, library: Any, **settings: Any) -> Any:
        """A client of the library."""

    @abstractmethod
    def _opening(self, conversation: Conversation) -> list[Any]:
        """The messages of the first turn."""

    @abstractmethod
    def _answers(self, results: list[Result], steering: list[str]) -> list[Any]:
        """The messages that tell what the tools gave, and what was said meanwhile."""

    @abstractmethod
    def _asking(self, asked: Asked, system: list[str], messages: list[Any], tools: list[Tool]) -> Request:
        """The request of one answer."""

    @abstractmethod
    def _answer(self, turn: Turn) -> Answer:
        """What fills ``turn`` from the events of an answer."""

    def _told(self, answer: Any, turn: Turn, system: list[str], messages: list[Any]) -> None:  # noqa: B027
        """An answer is whole."""

    async def _turn(
        self, asked: Asked, system: list[str], messages: list[Any], tools: list[Tool], turn: Turn
    ) -> AsyncGenerator[Piece, None]:
        """Ask for one answer; yield what is shown of it, and fill ``turn``."""
        answer = self._answer(turn)
        async with aclosing(self._heard(self._asking(asked, system, messages, tools))) as stream:
            async for events in stream:
                for event in events:
                    piece = answer.take(event)
                    if piece is not None:
                        yield piece
        if not answer.over:
            raise self._failures.broken_off()
        answer.finish()
        self._told(answer, turn, system, messages)

    async def _heard(self, asked: Request) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The events of an answer, as many as come together.

        The library's ``post``, not its method of the path: that one would import the types of all its
        requests, and check against them what is a plain map already.
        """
        response = await self._client.post(
            asked.path, body={**asked.body, "stream": True}, cast_to=self._response, stream=True
        )
        async with aclosing(response):
            events = Events()
            async for chunk in response.aiter_bytes():
                yield events.feed(chunk)

    # --- a run ---

    def started(self, run: RunContext) -> dict[str, Any]:
        """The model; refuses wrong ``provider_opts``."""
        with as_failure():
            return {"model": self._asked(run.options).model}

    async def run(self, run: RunContext) -> AsyncIterator[Piece]:
        """Ask, call tools, ask again, until the model is done."""
        self._running += 1
        if self._client.is_closed():  # the agent was replaced just before
            self._client = self._open()
        try:
            async with AsyncExitStack() as stack:
                box = Toolbox((), run)
                with as_failure():
                    if self._tools:
                        box = await stack.enter_async_context(Toolbox.of(self._tools, run))
                    asked = self._asked(run.options)
                    conversation = self._conversation(run)
                turns = self._turns(run, asked, conversation, box)
                async with aclosing(turns):  # at once, not when somebody collects it
                    async for piece in turns:
                        yield piece
        finally:
            self._running -= 1
            if self._retired and not self._running:
                await self._client.close()

    async def close(self) -> None:
        """The agent was replaced: its connections close with its last run."""
        self._retired = True
        if not self._running:
            await self._client.close()

    def _conversation(self, run: RunContext) -> Conversation:
        system = run.options.get("system_prompt") or run.context.get("system_prompt")
        system = system if isinstance(system, str) else self._table.get("system_prompt")
        return conversation_of(
            run.transcript, run.input, run.messages, system=system, tools=bool(self._tools)
        )

    async def _turns(
        self, run: RunContext, asked: Asked, conversation: Conversation, box: Toolbox
    ) -> AsyncGenerator[Piece, None]:
        messages, calls = self._opening(conversation), 0
        told: set[str] = set()  #: ids of calls; servers of one's own repeat theirs
        used: dict[str, int] = {}
        for _ in range(asked.max_turns):
            turn, (within, held) = Turn(), _affordable(run, asked)
            about: dict[str, Any] = {}
            async with held:
                asking = self._patiently(run, within, conversation.system, messages, box.specs(), turn)
                async with aclosing(asking):
                    async for piece in asking:
                        yield piece
                for name, count in turn.usage.items():
                    used[name] = used.get(name, 0) + count
                about = {"estimated": True} if turn.estimated else {}
                if used:
                    yield {"type": "token_usage_updated", "data": {**used, **about, "mode": "total"}}
            yield {"type": "turn_completed", "data": {"stop_reason": turn.stop_reason, **turn.usage, **about}}
            text = "".join(turn.text)
            if not turn.calls and not turn.again:
                said = {"content": text, "tool_calls": calls, "stop_reason": turn.stop_reason}
                yield Output(data=said | ({"usage_estimated": True} if turn.estimated else {}),
                             completion={"stop_reason": turn.stop_reason})
                return
            if text:
                yield {"type": "message_received", "data": {"role": "assistant", "content": text}}
            messages += turn.message
            results: list[Result] = []
            for call in turn.calls:
                calls += 1
                own = f"{call.id[:100]}.{calls}" if call.id in told else call.id
                told.add(own)
                async for item in box.call(own, call.name, call.input):
                    if isinstance(item, ToolResult):
                        results.append(Result(call.id, item.text, item.is_error, item.blocks))
                    else:
                        yield item
            messages += self._answers(results, await run.steering())
        raise ProviderFailure(f"the model wants more than max_turns = {asked.max_turns} turns",
                              code="limit_exceeded", details={"max_turns": asked.max_turns})

    async def _patiently(
        self, run: RunContext, asked: Asked, system: list[str], messages: list[Any], tools: list[Tool],
        turn: Turn,
    ) -> AsyncGenerator[Piece, None]:
        """One turn, asked for again while nothing of it was shown."""
        failed, shown = 0, False
        while True:
            turn.anew()
            try:
                async with aclosing(self._turn(asked, system, messages, tools, turn)) as pieces:
                    async for piece in pieces:
                        shown = True
                        yield piece
                break
            except Exception as exc:
                failure = self._failures.of(exc, begun=shown)
                pause_s = pause(failed, failure.details.get("retry_after_s"), random.random())
                left_s = run.left_s
                if (
                    shown or not failure.retryable or failed >= self._retries or pause_s is None
                    or (left_s is not None and pause_s >= left_s)
                ):
                    raise failure from exc
            failed += 1
            yield {"type": "error_occurred", "data": {
                "error_code": failure.code, "error_message": failure.message, "attempt": failed,
                "retry_in_s": round(pause_s, 3),
            }}
            await asyncio.sleep(pause_s)
        if failed:
            yield {"type": "error_recovered", "data": {"recovered_by": "retry", "attempts": failed + 1}}


def _affordable(run: RunContext, asked: Asked) -> tuple[Asked, AbstractAsyncContextManager[None]]:
    """What the budgets of the run leave for an answer, held while it is asked for. An answer is cut there
    rather than its run; where nothing is left the policy decides."""
    left = run.left("total_tokens")
    if left is None:
        return asked, nullcontext()
    most = int(left if asked.max_tokens is None else min(asked.max_tokens, left))
    if most < 1:
        return asked, run.reserve(total_tokens=1)
    return asked._replace(max_tokens=most), run.reserve(total_tokens=most)


def pause(failed: int, retry_after_s: float | None, chance: float) -> float | None:
    """How long to wait before the next attempt: what the server says, else twice as long each time, less up
    to a quarter by ``chance`` (0 to 1); None when the server asks for too much."""
    if retry_after_s is not None and retry_after_s > 0:
        return retry_after_s if retry_after_s <= RETRY_AFTER_MAX_S else None
    return min(BACKOFF_S * 2.0 ** min(failed, 30), BACKOFF_MAX_S) * (1 - chance / 4)


def _number(table: Mapping[str, Any], key: str, default: float, lowest: float, highest: float) -> float:
    found = checked(table, key, (int, float) if isinstance(default, float) else (int,), default)
    if not lowest <= found <= highest:
        raise ConfigError(f"{key} = {found!r:.80}: expected a number from {lowest:g} to {highest:g}")
    number: float = found
    return number


__all__ = [
    "BACKOFF_MAX_S", "BACKOFF_S", "CALL_KEYS", "CONNECT_S", "KEYS", "MAX_TOKENS", "RETRIES",
    "RETRY_AFTER_MAX_S", "SYSTEM_PROMPTS", "TIMEOUT_S", "TOOL_USE", "TURNS_MAX", "ApiProvider",
    "Asked", "Request", "Turn", "pause",
]
