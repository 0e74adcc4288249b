"""``anthropic``: a model behind the Messages API, by the official library.

Keys of the agent's table, beside those of every API (``api.KEYS``): ``thinking`` (false, ``"adaptive"``, or
how many tokens it may think), ``cache`` (true: what stays the same between turns is cached by the API).

What a model thinks is streamed as ``message_streamed`` with ``thinking`` and an empty ``content``; within a
run it is given back to the model, as the API wants it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mesh.errors import ConfigError
from mesh.providers.api import ApiProvider, Asked, Request, Turn
from mesh.providers.api_errors import Refused
from mesh.providers.base import Piece, checked
from mesh.providers.conversation import Block, Call, Called, Conversation, Result, Said, image_of
from mesh.providers.tools import Tool

#: Tokens of thinking that the API accepts, at least.
THINKING_MIN = 1_024
#: Signatures and thinking of one block are joined; an answer has at most so many blocks.
BLOCKS_MAX = 1_000
_CACHED = {"type": "ephemeral"}
#: What the API calls its counts, and what mesh calls them.
_COUNTS = {
    "input_tokens": "input_tokens", "output_tokens": "output_tokens",
    "cache_read_input_tokens": "cache_read_tokens", "cache_creation_input_tokens": "cache_creation_tokens",
}


class AnthropicProvider(ApiProvider):
    """Runs one agent on a Claude model."""

    name = "anthropic"
    key_env = "ANTHROPIC_API_KEY"
    own_keys = ("thinking", "cache")
    tested = "the official library on scripted servers"

    def _connect(self, library: Any, **settings: Any) -> Any:
        return library.AsyncAnthropic(**settings)

    def _call_keys(self) -> tuple[str, ...]:
        return ("thinking",)

    def _more(self, table: Mapping[str, Any]) -> dict[str, Any]:
        more: dict[str, Any] = {"cache": checked(table, "cache", (bool,), True)}
        thinking = table.get("thinking", False)
        if thinking == "adaptive":
            more["thinking"] = {"type": "adaptive", "display": "summarized"}
        elif type(thinking) is int and thinking >= THINKING_MIN:
            most = self._max_tokens(table)
            if most is not None and thinking >= most:
                raise ConfigError(f"thinking = {thinking}: must be less than max_tokens = {most}")
            more["thinking"] = {"type": "enabled", "budget_tokens": thinking}
        elif thinking is not False:
            raise ConfigError(
                f"thinking = {thinking!r:.80}: expected false, \"adaptive\", or tokens from {THINKING_MIN}"
            )
        return more

    def _opening(self, conversation: Conversation) -> list[Any]:
        messages: list[Any] = []
        for item in conversation.items:
            if isinstance(item, Said):
                messages.append({"role": item.role, "content": [_block(block) for block in item.blocks]})
            else:
                messages += _called(item)
        return messages

    def _answers(self, results: list[Result], steering: list[str]) -> list[Any]:
        content = [*map(_result, results), *({"type": "text", "text": text} for text in steering)]
        return [{"role": "user", "content": content}] if content else []

    def _asking(self, asked: Asked, system: list[str], messages: list[Any], tools: list[Tool]) -> Request:
        return Request("/v1/messages", _request(asked, system, messages, tools))

    def _answer(self, turn: Turn) -> Answer:
        return Answer(turn)


def _request(asked: Asked, system: list[str], messages: list[Any], tools: list[Tool]) -> dict[str, Any]:
    """The request's settings. Three marks of the cache: after the tools, the system prompt, and all of it."""
    cached = {"cache_control": _CACHED} if asked.more["cache"] else {}
    request: dict[str, Any] = {
        "model": asked.model, "max_tokens": asked.max_tokens, "messages": _marked(messages, cached),
    }
    if system:
        request["system"] = [{"type": "text", "text": "\n\n".join(system), **cached}]
    if tools:
        request["tools"] = [
            {"name": tool.name, "description": tool.description, "input_schema": tool.schema}
            for tool in tools
        ]
        request["tools"][-1].update(cached)
    thinking = asked.more.get("thinking")
    if thinking and thinking.get("budget_tokens", 0) < asked.max_tokens:  # a budget may leave less than that
        request["thinking"] = thinking
    return request


def _marked(messages: list[Any], cached: dict[str, Any]) -> list[Any]:
    """The messages with a mark of the cache at their end; they themselves stay without."""
    last = messages[-1]["content"][-1]
    if not cached or last["type"] in ("thinking", "redacted_thinking"):
        return messages
    content = [*messages[-1]["content"][:-1], {**last, **cached}]
    return [*messages[:-1], {**messages[-1], "content": content}]


def _called(item: Called) -> list[Any]:
    calls = [{"type": "tool_use", "id": call.id, "name": call.name, "input": call.input}
             for call in item.calls]
    return [{"role": "assistant", "content": calls},
            {"role": "user", "content": [_result(result) for result in item.results]}]


def _result(result: Result) -> dict[str, Any]:
    content = result.blocks or [{"type": "text", "text": result.text or "(empty)"}]
    return {"type": "tool_result", "tool_use_id": result.id, "content": [_block(block) for block in content],
            **({"is_error": True} if result.failed else {})}


def _block(block: Block) -> dict[str, Any]:
    return block if block["type"] == "text" else image_of(block)


class Answer:
    """One answer, block by block, from the events of its stream."""

    def __init__(self, turn: Turn) -> None:
        self.over = False
        self._turn = turn
        self._blocks: list[dict[str, Any]] = []
        self._open: dict[str, Any] = {}
        self._parts: list[str] = []

    def take(self, event: dict[str, Any]) -> Piece | None:
        """What an event shows, if it does.

        Raises:
            Refused: the API failed.
        """
        match event["type"]:
            case "content_block_delta":
                return self._delta(event["delta"])
            case "content_block_start":
                self._begin(event["content_block"])
            case "content_block_stop":
                self._end()
            case "message_start":
                self._count(event["message"].get("usage"))
            case "message_delta":
                self._turn.stop_reason = event["delta"].get("stop_reason") or self._turn.stop_reason
                self._count(event.get("usage"))
            case "message_stop":
                self.over = True
            case "error":
                raise Refused(event)
        return None

    def _delta(self, delta: dict[str, Any]) -> Piece | None:
        match delta["type"]:
            case "text_delta":
                text = str(delta["text"])
                self._turn.text.append(text)
                self._parts.append(text)
                return text
            case "input_json_delta":
                self._parts.append(delta["partial_json"])
            case "thinking_delta":
                self._parts.append(delta["thinking"])
                return {"type": "message_streamed", "data": {"content": "", "thinking": delta["thinking"]}}
            case "signature_delta":
                self._open["signature"] = self._open.get("signature", "") + delta["signature"]
        return None

    def _begin(self, block: dict[str, Any]) -> None:
        kind = block["type"]
        self._parts = []
        if len(self._blocks) >= BLOCKS_MAX:
            raise ValueError(f"more than {BLOCKS_MAX} blocks in one answer")
        match kind:
            case "text":
                self._open = {"type": kind}
            case "tool_use":
                self._open = {"type": kind, "id": block["id"], "name": block["name"],
                              "input": block.get("input") or {}}
            case "thinking":
                self._open = {"type": kind, "signature": block.get("signature") or ""}
            case _:  # redacted thinking, tools of the API's own: given back as they came
                self._open = dict(block)
        self._blocks.append(self._open)

    def _end(self) -> None:
        text, block = "".join(self._parts), self._open
        match block.get("type"):
            case "text":
                block["text"] = text
            case "thinking":
                block["thinking"] = text
            case "tool_use":
                given = _json(text) if text else block["input"]
                self._turn.calls.append(Call(block["id"], block["name"], given))
                block["input"] = given if isinstance(given, dict) else {}
        self._open, self._parts = {}, []

    def _count(self, usage: dict[str, Any] | None) -> None:
        if usage is None:
            return
        for theirs, ours in _COUNTS.items():
            count = usage.get(theirs)
            if type(count) is int and count >= 0:
                self._turn.usage[ours] = max(count, self._turn.usage.get(ours, 0))

    def finish(self) -> None:
        """The answer is whole: what of it goes back to the model."""
        turn = self._turn
        turn.again = turn.stop_reason == "pause_turn"
        if turn.stop_reason != "tool_use" and not turn.again:
            turn.calls.clear()  # cut off in the middle of a call
        kept = [block for block in self._blocks if block["type"] != "text" or block.get("text")]
        turn.message = [{"role": "assistant", "content": kept}] if kept else []


def _json(text: str) -> Any:
    """A call's input; what is no JSON stays text, and the tool's answer says so."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


__all__ = ["BLOCKS_MAX", "THINKING_MIN", "Answer", "AnthropicProvider"]
