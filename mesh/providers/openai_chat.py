"""Chat Completions: messages, tools and the stream of one answer."""

from __future__ import annotations

import json
import os
from typing import Any

from mesh.providers.api import Asked, Turn
from mesh.providers.api_errors import Refused
from mesh.providers.base import Piece
from mesh.providers.conversation import Block, Call, Called, Result, Said, data_url
from mesh.providers.tools import Tool

PATH = "/chat/completions"
#: Calls of one answer.
CALLS_MAX = 1_000
#: What the API calls an end, and what mesh calls it.
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "function_call": "tool_use",
           "content_filter": "refusal"}


def request(
    asked: Asked, system: list[str], messages: list[Any], tools: list[Tool]
) -> dict[str, Any]:
    """The body of the request of one answer."""
    body: dict[str, Any] = {"model": asked.model, "stream_options": {"include_usage": True}}
    told = [{"role": "system", "content": "\n\n".join(system)}] if system else []
    body["messages"] = told + messages
    if tools:
        body["tools"] = [{"type": "function", "function": {
            "name": tool.name, "description": tool.description, "parameters": tool.schema,
        }} for tool in tools]
    if asked.max_tokens is not None:  # servers of one's own know the older name
        body["max_tokens" if asked.more["own_server"] else "max_completion_tokens"] = asked.max_tokens
    if asked.more["temperature"] is not None:
        body["temperature"] = asked.more["temperature"]
    if asked.more["reasoning"]:
        body["reasoning_effort"] = asked.more["reasoning"]
    return body


def opening(items: list[Said | Called]) -> list[Any]:
    """A conversation as messages."""
    messages: list[Any] = []
    for item in items:
        if isinstance(item, Said):
            messages.append({"role": item.role, "content": _content(item.blocks)})
        else:
            messages.append(_calling("", item.calls))
            messages += _results(item.results)
    return messages


def answers(results: list[Result], steering: list[str]) -> list[Any]:
    """What the tools gave, and what was said meanwhile."""
    return [*_results(results), *({"role": "user", "content": text} for text in steering)]


def _calling(text: str, calls: list[Call]) -> dict[str, Any]:
    return {"role": "assistant", "content": text or None, "tool_calls": [
        {"id": call.id, "type": "function",
         "function": {"name": call.name, "arguments": json.dumps(call.input) if isinstance(call.input, dict)
                      else "{}"}}
        for call in calls
    ]}


def _results(results: list[Result]) -> list[dict[str, Any]]:
    """A tool's message is text in this API: images follow behind all of them, as a user's."""
    told: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": result.id, "content": result.text} for result in results]
    shown: list[Block] = []
    for result in results:
        images = [block for block in result.blocks if block["type"] == "image"]
        if images:
            shown += [{"type": "text", "text": f"Images that the tool call {result.id} gave:"}, *images]
    return [*told, {"role": "user", "content": _content(shown)}] if shown else told


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

    def take(self, chunk: dict[str, Any]) -> Piece | None:
        """What a chunk shows, if it does.

        Raises:
            Refused: the API failed.
        """
        if chunk.get("error"):
            raise Refused(chunk["error"])
        if chunk.get("usage") is not None:
            self._turn.usage = counts(chunk["usage"], "prompt", "completion")
        if not chunk.get("choices"):
            return None
        choice = chunk["choices"][0]
        reason = choice.get("finish_reason")
        if reason:
            self.over = True
            self._turn.stop_reason = REASONS.get(reason, reason)
        delta = choice.get("delta")
        if not delta:
            return None
        for part in delta.get("tool_calls") or ():
            self._part(part)
        return self._text(delta)

    def _text(self, delta: dict[str, Any]) -> Piece | None:
        text = delta.get("content") or delta.get("refusal")
        if text:
            self.pieces += 1
            text = str(text)
            self._turn.text.append(text)
            return text
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(thought, str) and thought:
            self.pieces += 1
            return {"type": "message_streamed", "data": {"content": "", "thinking": thought}}
        return None

    def _part(self, part: dict[str, Any]) -> None:
        index = part["index"] if type(part.get("index")) is int else len(self._calls)
        call = self._calls.get(index)
        if call is None:
            if len(self._calls) >= CALLS_MAX:
                raise ValueError(f"more than {CALLS_MAX} tool calls in one answer")
            call = self._calls[index] = _Call()
        call.id = call.id or part.get("id") or ""
        function = part.get("function") or {}
        call.name = call.name or function.get("name") or ""
        call.parts.append(function.get("arguments") or "")
        self.pieces += 1

    def finish(self) -> None:
        """The answer is whole: its calls, and what of it goes back to the model."""
        turn = self._turn
        if self._calls and turn.stop_reason in ("tool_use", "end_turn"):
            turn.stop_reason = "tool_use"
            turn.calls = [call.whole() for _, call in sorted(self._calls.items())]
            turn.message = [_calling("".join(turn.text), turn.calls)]


class _Call:
    """A call that comes in pieces."""

    __slots__ = ("id", "name", "parts")

    def __init__(self) -> None:
        self.id, self.name = "", ""
        self.parts: list[str] = []

    def whole(self) -> Call:
        # A server of one's own may give none; those of a session have to differ.
        return Call(self.id or f"call_{os.urandom(12).hex()}", self.name, arguments("".join(self.parts)))


def arguments(text: str) -> Any:
    """A call's input; what is no JSON stays text, and the tool's answer says so."""
    try:
        return json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        return text


def counts(usage: dict[str, Any], asked: str, answered: str) -> dict[str, int]:
    """The tokens of a request: those read from the cache are counted apart."""
    found: dict[str, int] = {}
    given, said = usage.get(f"{asked}_tokens"), usage.get(f"{answered}_tokens")
    cached = (usage.get(f"{asked}_tokens_details") or {}).get("cached_tokens") or 0
    thought = (usage.get(f"{answered}_tokens_details") or {}).get("reasoning_tokens") or 0
    if type(given) is int:
        found["input_tokens"] = max(0, given - cached)
    if type(said) is int:
        found["output_tokens"] = said
    if found and cached:
        found["cache_read_tokens"] = cached
    if found and thought:
        found["reasoning_tokens"] = thought
    return found


__all__ = ["CALLS_MAX", "PATH", "REASONS", "Answer", "answers", "arguments", "counts", "opening", "request"]
