"""Chat Completions: messages, tools and the stream of one answer."""

from __future__ import annotations

import json
from typing import Any

from mesh.providers.api import Asked, Turn
from mesh.providers.base import Piece
from mesh.providers.conversation import Block, Call, Called, Result, Said, data_url
from mesh.providers.tools import Tool

#: Calls of one answer.
CALLS_MAX = 1_000
#: What the API calls an end, and what mesh calls it.
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "function_call": "tool_use",
           "content_filter": "refusal"}


async def ask(client: Any, asked: Asked, system: list[str], messages: list[Any], tools: list[Tool]) -> Any:
    """Ask for one answer, as a stream."""
    request: dict[str, Any] = {"model": asked.model, "stream_options": {"include_usage": True}}
    told = [{"role": "system", "content": "\n\n".join(system)}] if system else []
    request["messages"] = told + messages
    if tools:
        request["tools"] = [{"type": "function", "function": {
            "name": tool.name, "description": tool.description, "parameters": tool.schema,
        }} for tool in tools]
    if asked.max_tokens is not None:  # servers of one's own know the older name
        request["max_tokens" if asked.more["own_server"] else "max_completion_tokens"] = asked.max_tokens
    if asked.more["temperature"] is not None:
        request["temperature"] = asked.more["temperature"]
    if asked.more["reasoning"]:
        request["reasoning_effort"] = asked.more["reasoning"]
    return await client.chat.completions.create(**request, stream=True)


def opening(items: list[Said | Called]) -> list[Any]:
    """A conversation as messages."""
    messages: list[Any] = []
    for item in items:
        if isinstance(item, Said):
            messages.append({"role": item.role, "content": _content(item.blocks)})
        else:
            messages.append(_calling("", item.calls))
            messages += map(_result, item.results)
    return messages


def answers(results: list[Result], steering: list[str]) -> list[Any]:
    """What the tools gave, and what was said meanwhile."""
    return [*map(_result, results), *({"role": "user", "content": text} for text in steering)]


def _calling(text: str, calls: list[Call]) -> dict[str, Any]:
    return {"role": "assistant", "content": text or None, "tool_calls": [
        {"id": call.id, "type": "function",
         "function": {"name": call.name, "arguments": json.dumps(call.input) if isinstance(call.input, dict)
                      else "{}"}}
        for call in calls
    ]}


def _result(result: Result) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": result.id, "content": result.text}


def _content(blocks: list[Block]) -> Any:
    if all(block["type"] == "text" for block in blocks):
        return "".join(block["text"] for block in blocks)
    return [block if block["type"] == "text" else {"type": "image_url", "image_url": {"url": data_url(block)}}
            for block in blocks]


class Answer:
    """One answer, from the chunks of its stream. Tool calls come in pieces, told apart by their index."""

    def __init__(self, turn: Turn) -> None:
        self.over = False
        self.pieces = 0  #: of text and of calls
        self._turn = turn
        self._calls: dict[int, _Call] = {}

    def take(self, chunk: Any) -> Piece | None:
        """What a chunk shows, if it does."""
        if chunk.usage is not None:
            self._turn.usage = counts(chunk.usage, "prompt", "completion")
        if not chunk.choices:
            return None
        choice = chunk.choices[0]
        if choice.finish_reason:
            self.over = True
            self._turn.stop_reason = REASONS.get(choice.finish_reason, choice.finish_reason)
        delta = choice.delta
        if delta is None:
            return None
        if self._turn.model is None:
            self._turn.model = chunk.model
        for part in delta.tool_calls or ():
            self._part(part)
        return self._text(delta)

    def _text(self, delta: Any) -> Piece | None:
        text = delta.content or delta.refusal
        if text:
            self.pieces += 1
            self._turn.text.append(text)
            return str(text)
        thought = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)
        if isinstance(thought, str) and thought:
            self.pieces += 1
            return {"type": "message_streamed", "data": {"content": "", "thinking": thought}}
        return None

    def _part(self, part: Any) -> None:
        index = part.index if type(part.index) is int else len(self._calls)
        call = self._calls.get(index)
        if call is None:
            if len(self._calls) >= CALLS_MAX:
                raise ValueError(f"more than {CALLS_MAX} tool calls in one answer")
            call = self._calls[index] = _Call()
        call.id = call.id or part.id or ""
        if part.function is not None:
            call.name = call.name or part.function.name or ""
            call.parts.append(part.function.arguments or "")
        self.pieces += 1

    def finish(self) -> None:
        """The answer is whole: its calls, and what of it goes back to the model."""
        turn = self._turn
        if self._calls and turn.stop_reason in ("tool_use", "end_turn"):
            turn.stop_reason = "tool_use"
            turn.calls = [call.whole(n) for n, (_, call) in enumerate(sorted(self._calls.items()))]
            turn.message = [_calling("".join(turn.text), turn.calls)]


class _Call:
    """A call that comes in pieces."""

    __slots__ = ("id", "name", "parts")

    def __init__(self) -> None:
        self.id, self.name = "", ""
        self.parts: list[str] = []

    def whole(self, number: int) -> Call:
        return Call(self.id or f"call_{number}", self.name, arguments("".join(self.parts)))


def arguments(text: str) -> Any:
    """A call's input; what is no JSON stays text, and the tool's answer says so."""
    try:
        return json.loads(text) if text.strip() else {}
    except ValueError:
        return text


def counts(usage: Any, asked: str, answered: str) -> dict[str, int]:
    """The tokens of a request: those read from the cache are counted apart."""
    found: dict[str, int] = {}
    given, said = (getattr(usage, f"{name}_tokens", None) for name in (asked, answered))
    cached = getattr(getattr(usage, f"{asked}_tokens_details", None), "cached_tokens", None) or 0
    thought = getattr(getattr(usage, f"{answered}_tokens_details", None), "reasoning_tokens", None) or 0
    if type(given) is int:
        found["input_tokens"] = max(0, given - cached)
    if type(said) is int:
        found["output_tokens"] = said
    if found and cached:
        found["cache_read_tokens"] = cached
    if found and thought:
        found["reasoning_tokens"] = thought
    return found


__all__ = ["CALLS_MAX", "REASONS", "Answer", "answers", "arguments", "ask", "counts", "opening"]
