"""Responses: input items, tools and the stream of one answer. Nothing is stored at the server."""

from __future__ import annotations

import json
from typing import Any

from mesh.providers.api import Asked, Turn
from mesh.providers.api_errors import Refused
from mesh.providers.base import Piece
from mesh.providers.conversation import Block, Call, Called, Result, Said, data_url
from mesh.providers.openai_chat import CALLS_MAX, arguments, counts
from mesh.providers.tools import Tool

PATH = "/responses"
_REASONS = {"max_output_tokens": "max_tokens", "content_filter": "refusal"}
_THINKING = frozenset(("response.reasoning_summary_text.delta", "response.reasoning_text.delta"))
_TEXT = frozenset(("response.output_text.delta", "response.refusal.delta"))
_ENDS = frozenset(("response.completed", "response.incomplete"))


def request(
    asked: Asked, system: list[str], messages: list[Any], tools: list[Tool]
) -> dict[str, Any]:
    """The body of the request of one answer."""
    body: dict[str, Any] = {"model": asked.model, "input": messages, "store": False}
    if system:
        body["instructions"] = "\n\n".join(system)
    if tools:
        body["tools"] = [{
            "type": "function", "name": tool.name, "description": tool.description,
            "parameters": tool.schema, "strict": False,
        } for tool in tools]
    if asked.max_tokens is not None:
        body["max_output_tokens"] = asked.max_tokens
    if asked.more["temperature"] is not None:
        body["temperature"] = asked.more["temperature"]
    if asked.more["reasoning"]:
        body["reasoning"] = {"effort": asked.more["reasoning"]}
    if not asked.more["own_server"]:  # so that what it thought can be given back
        body["include"] = ["reasoning.encrypted_content"]
    return body


def opening(items: list[Said | Called]) -> list[Any]:
    """A conversation as input items."""
    found: list[Any] = []
    for item in items:
        if isinstance(item, Said):
            found.append({"type": "message", "role": item.role, "content": _content(item)})
            continue
        found += ({"type": "function_call", "call_id": call.id, "name": call.name,
                   "arguments": json.dumps(call.input)} for call in item.calls)
        found += map(_result, item.results)
    return found


def answers(results: list[Result], steering: list[str]) -> list[Any]:
    """What the tools gave, and what was said meanwhile."""
    return [*map(_result, results), *({"type": "message", "role": "user", "content": text}
                                       for text in steering)]


def _result(result: Result) -> dict[str, Any]:
    output = list(map(_block, result.blocks)) or result.text
    return {"type": "function_call_output", "call_id": result.id, "output": output}


def _content(said: Said) -> Any:
    if all(block["type"] == "text" for block in said.blocks):
        return "".join(block["text"] for block in said.blocks)
    return list(map(_block, said.blocks))


def _block(block: Block) -> dict[str, Any]:
    if block["type"] == "text":
        return {"type": "input_text", "text": block["text"]}
    return {"type": "input_image", "image_url": data_url(block), "detail": "auto"}


class Answer:
    """One answer, from the events of its stream."""

    def __init__(self, turn: Turn) -> None:
        self.over = False
        self.pieces = 0  #: of text and of calls
        self._turn = turn
        self._items: list[dict[str, Any]] = []
        self._parts: dict[str, list[str]] = {}  #: arguments by the item they belong to

    def take(self, event: dict[str, Any]) -> Piece | None:
        """What an event shows, if it does.

        Raises:
            Refused: the API failed.
        """
        kind = event.get("type")
        if kind in _TEXT:
            self.pieces += 1
            text = str(event["delta"])
            self._turn.text.append(text)
            return text
        if kind in _THINKING:
            self.pieces += 1
            return {"type": "message_streamed", "data": {"content": "", "thinking": event["delta"]}}
        if kind == "response.function_call_arguments.delta":
            self.pieces += 1
            self._parts.setdefault(event["item_id"], []).append(event["delta"])
        elif kind == "response.output_item.done":
            self._item(event["item"])
        elif kind in _ENDS:
            self._end(event["response"])
        elif kind == "response.failed":
            raise Refused(event["response"].get("error"))
        elif kind == "error" or event.get("error"):
            raise Refused(event)
        return None

    def _item(self, item: dict[str, Any]) -> None:
        if len(self._items) >= CALLS_MAX:
            raise ValueError(f"more than {CALLS_MAX} items in one answer")
        self._items.append(item)
        if item["type"] == "function_call":
            text = item.get("arguments") or "".join(self._parts.get(item.get("id") or "", ()))
            self._turn.calls.append(Call(item["call_id"], item["name"], arguments(text)))

    def _end(self, response: dict[str, Any]) -> None:
        turn = self._turn
        self.over = True
        if response.get("usage") is not None:
            turn.usage = counts(response["usage"], "input", "output")
        why = (response.get("incomplete_details") or {}).get("reason")
        if response.get("status") == "incomplete" or why:
            turn.stop_reason = _REASONS.get(why or "", why or "incomplete")
            turn.calls.clear()
        else:
            turn.stop_reason = "tool_use" if turn.calls else "end_turn"

    def finish(self) -> None:
        """The answer is whole: what of it goes back to the model."""
        self._turn.message = [
            {key: value for key, value in item.items() if value is not None} for item in self._items
            if item["type"] != "reasoning" or item.get("encrypted_content")
        ]


__all__ = ["PATH", "Answer", "answers", "opening", "request"]
