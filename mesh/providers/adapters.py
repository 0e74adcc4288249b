"""Agents that were built with another framework, as agents of mesh: a LangGraph graph, a pydantic-ai agent,
an openai-agents agent, named as the ``target`` of a python agent like a function.

They are known by their class's name, so nothing of a framework is imported before somebody's own module did.
Each adapter says the text as it streams, every tool call with its id (after ``run.permit``), the usage, and
gives the framework ``run.transcript`` as its history.

Rules of this file:

1. The framework runs in a task of its own and is at most ``AHEAD_MAX`` pieces ahead; when the run ends, so
   does the task.
2. A tool is asked for before it is called. The model is told when it may not; where a framework does not let
   us tell it (a LangGraph node that calls tools by itself, a tool of an MCP server of openai-agents), the run
   fails with ``tool_permission_denied``.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from importlib import import_module
from typing import Any, NamedTuple

from mesh.core.message import Role
from mesh.core.plain import plain
from mesh.errors import InvalidArgument, RunError
from mesh.providers.base import (
    STREAMING,
    Output,
    Piece,
    ProviderFailure,
    RunContext,
    as_failure,
    check_options,
)

#: What such an agent can do.
CAPABILITIES = (STREAMING, {"name": "tool_use", "type": "tool"})
#: Pieces that a framework may be ahead of the run.
AHEAD_MAX = 64
#: How long a framework that was told to stop may take.
STOP_S = 3.0
#: Of a tool's result in an event.
SHOWN_CHARS_MAX = 100_000

#: What a framework's module has as ``play``: it plays one run of somebody's object on a stage.
Play = Callable[[Any, "Stage"], Awaitable[Output]]


def adapted(target: Any) -> Callable[[RunContext], AsyncIterator[Piece]] | None:
    """The agent function for an object of a known framework; None: it is of none."""
    names = {(cls.__module__.partition(".")[0], cls.__name__) for cls in type(target).__mro__}
    for known, module in _FRAMEWORKS.items():
        if known in names:
            return _agent(target, import_module(module).play)
    return None


def _agent(target: Any, play: Play) -> Callable[[RunContext], AsyncIterator[Piece]]:
    async def agent(run: RunContext) -> AsyncIterator[Piece]:
        async for piece in _played(run, lambda stage: play(target, stage)):
            yield piece

    agent.capabilities = CAPABILITIES  # type: ignore[attr-defined]  # as PythonProvider looks for them
    return agent


class Stage:
    """What one run of a framework says. Everything on the run's loop, but ``from_thread``."""

    def __init__(self, run: RunContext) -> None:
        self.run = run
        self.loop = asyncio.get_running_loop()
        self.said: asyncio.Queue[Piece | None] = asyncio.Queue(AHEAD_MAX)
        self.refusal: RunError | None = None  #: a framework may wrap it in an error of its own
        self._inputs: dict[str, Any] = {}  #: of the calls that were asked for
        self._permitted: set[tuple[str, str]] = set()  #: asked for, and not begun yet
        self._over: set[str] = set()
        self._thread = threading.get_ident()
        self._waiting: set[Future[None]] = set()

    async def say(self, piece: Piece) -> None:
        """One more piece."""
        if piece != "":
            await self.said.put(piece)

    async def ask(self, call_id: str, name: str, tool_input: Any) -> None:
        """Ask whether a tool may be called, and say that it is. An id that was asked for before is asked for
        again: it is the model's, and models repeat theirs.

        Raises:
            RunError: it may not: let it through, or ``tell``.
        """
        self.refusal = None  # the framework goes on: whatever fails now is not that
        self._permitted.discard((call_id, name))
        self._over.discard(call_id)
        self._inputs[call_id] = given = shown(tool_input)
        try:
            await self.run.permit(name, given, tool_call_id=call_id)
        except RunError as exc:
            self.refusal = exc
            raise
        except InvalidArgument as exc:  # a name or an id that no tool has: of the model's making
            self.refusal = RunError(exc.message, code="tool_permission_denied")
            raise self.refusal from exc
        self._permitted.add((call_id, name))
        await self.tool("started", call_id, name)

    async def begin(self, call_id: str, name: str, tool_input: Any) -> None:
        """A tool begins: ``ask``, unless this call was asked for just now.

        Raises:
            RunError: it may not.
        """
        if (call_id, name) not in self._permitted:
            await self.ask(call_id, name, tool_input)
        self._permitted.discard((call_id, name))

    async def tell(self, call_id: str, name: str, refusal: RunError) -> str:
        """The model is told that it may not: with this text."""
        self.refusal = None
        await self.tool("failed", call_id, name, error=refusal.message)
        self._over.add(call_id)
        return refusal.message

    async def tool(self, step: str, call_id: str, name: str, **data: Any) -> None:
        """One step of a tool call: ``started``, ``completed`` or ``failed``."""
        if call_id in self._over:
            return
        kept = {key: shown(value) for key, value in data.items()}
        await self.say({"type": f"tool_call_{step}", "data": {
            "tool_call_id": call_id, "tool_name": name, "tool_input": self._inputs.get(call_id), **kept,
        }})

    def from_thread(self, step: Coroutine[Any, Any, None]) -> None:
        """Do a step from another thread, and wait for it.

        Raises:
            RunError: this is the loop's own thread, which cannot wait; or what the step raises.
        """
        if threading.get_ident() == self._thread:
            step.close()
            raise RunError("a tool was called synchronously on the event loop: await its ainvoke",
                           code="tool_permission_denied")
        future = asyncio.run_coroutine_threadsafe(step, self.loop)
        self._waiting.add(future)
        try:
            future.result()
        finally:
            self._waiting.discard(future)

    def end(self) -> None:
        """Whoever still waits for an answer waits no more."""
        for future in list(self._waiting):
            future.cancel()

    async def usage(self, counts: Any, mode: str) -> None:
        """What was used, of whatever names the framework has."""
        names = ("input_tokens", "output_tokens", "total_tokens", "cache_read_tokens")
        found = {name: _field(counts, name) for name in names}
        used = {name: value for name, value in found.items() if isinstance(value, int) and value}
        if used:
            await self.say({"type": "token_usage_updated", "data": {**used, "mode": mode}})


async def _played(run: RunContext, play: Callable[[Stage], Awaitable[Output]]) -> AsyncIterator[Piece]:
    """What a framework says, until it is done; whoever stops listening stops it."""
    stage = Stage(run)

    async def whole() -> Output:
        try:
            return await play(stage)
        except Exception as exc:
            if stage.refusal is None or stage.refusal is exc:
                raise
            raise stage.refusal from exc
        finally:
            with suppress(asyncio.QueueFull):  # a full queue wakes its reader anyway
                stage.said.put_nowait(None)

    task = asyncio.ensure_future(whole())
    try:
        while not (task.done() and stage.said.empty()):
            piece = await stage.said.get()
            if piece is not None:
                yield piece
        yield task.result()
    finally:
        stage.end()
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=STOP_S)
        if task.done() and not task.cancelled():
            task.exception()  # seen: it was raised above, or nobody wants it any more


def options_of(run: RunContext, *known: str) -> dict[str, Any]:
    """The agent's ``options`` with the call's ``provider_opts``; an unknown name fails the run."""
    with as_failure():
        check_options(run.options, known)
    return run.options


class Call(NamedTuple):
    """A tool call, or with ``output`` its result, of an earlier run."""

    id: str
    name: str
    input: dict[str, Any]
    output: str = ""


def history(run: RunContext) -> Iterator[tuple[str, str | list[Call]]]:
    """What was said, the run's own messages at the end: (role, text), or ("calls" | "results", the calls).

    Calls that were made together stand together, as models want them, and every one has an id.
    """
    open_calls: dict[str, deque[str]] = defaultdict(deque)
    kept: list[Call] = []
    before = ""
    for number, message in enumerate(run.transcript):
        name = message.tool_name or "tool"
        is_call = message.role == Role.ASSISTANT and message.tool_name is not None
        kind = "calls" if is_call else "results" if message.role == Role.TOOL else ""
        if kept and kind != before:
            yield before, kept
            kept = []
        before = kind
        if is_call:
            call_id = message.tool_call_id or f"call_{number}"
            open_calls[name].append(call_id)
            kept.append(Call(call_id, name, arguments_of(message.tool_input)))
        elif kind:
            waiting = open_calls[name]
            call_id = message.tool_call_id or (waiting.popleft() if waiting else f"call_{number}")
            kept.append(Call(call_id, name, {}, json_of(message.tool_output)))
        else:
            yield str(message.role), message.content or ""
    if kept:
        yield before, kept
    if not run.messages:
        raise ProviderFailure("a prompt or messages are needed", code="validation_error")
    for said in run.messages:
        yield said["role"], said["content"]


def shown(value: Any) -> Any:
    """A value as an event can hold it; an object of the framework as its text."""
    try:
        kept = plain(value)
    except InvalidArgument:
        kept = str(value)
    return kept[:SHOWN_CHARS_MAX] if isinstance(kept, str) else kept


def _field(thing: Any, name: str) -> Any:
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)


def text_of(content: Any) -> str:
    """The text of a message's content: a str, or a list of blocks."""
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    texts = (block if isinstance(block, str) else _field(block, "text") for block in blocks)
    return "".join(text for text in texts if isinstance(text, str))


def json_of(value: Any) -> str:
    """A tool's result as the text that models read."""
    return value if isinstance(value, str) else json.dumps(shown(value), ensure_ascii=False)

def arguments_of(tool_input: Any) -> dict[str, Any]:
    """A tool's input as the map that models give."""
    return dict(tool_input) if isinstance(tool_input, dict) else {"input": tool_input}


#: (top module, class name) -> the module that knows it
_FRAMEWORKS = {
    ("langgraph", "Pregel"): "mesh.providers.adapt_langgraph",
    ("pydantic_ai", "AbstractAgent"): "mesh.providers.adapt_pydantic_ai",
    ("agents", "AgentBase"): "mesh.providers.adapt_openai_agents",
}

__all__ = [
    "AHEAD_MAX", "CAPABILITIES", "SHOWN_CHARS_MAX", "STOP_S", "Call", "Play", "Stage", "adapted",
    "arguments_of", "history", "json_of", "options_of", "shown", "text_of",
]
