"""What a model is told: a session's past and a run's input, as items that each API writes its own way.

Pure. An item is ``Said`` (a text, or blocks with images) or ``Called`` (tools that were called together, with
their results). System texts are gathered apart, in order: the agent's own, then what the conversation holds
(a summary, say).

Blocks of an input's message: ``{"type": "text", "text"}`` and ``{"type": "image", "data": base64,
"media_type"}`` or ``{"type": "image", "url"}``; the forms of the APIs themselves are understood too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from mesh.core.message import Message, Role
from mesh.errors import ConfigError, shown
from mesh.providers.tools import model_name

Block = dict[str, Any]
_STRANGE = re.compile(r"[^A-Za-z0-9_-]")
_NAME_CHARS_MAX = 64
_ROLES = frozenset(("system", "developer", "user", "assistant"))


class Said(NamedTuple):
    """One message."""

    role: str  #: user or assistant
    blocks: list[Block]


class Call(NamedTuple):
    """One call of a tool. ``input`` is a map, or the text of what should have been one."""

    id: str
    name: str
    input: Any


class Result(NamedTuple):
    """What a call gave."""

    id: str
    text: str
    failed: bool = False
    blocks: list[Block] = []


class Called(NamedTuple):
    """Calls that were made together."""

    calls: list[Call]
    results: list[Result]


class Conversation(NamedTuple):
    """All that a model is told before it speaks."""

    system: list[str]
    items: list[Said | Called]


def conversation_of(
    transcript: Iterable[Message], given: Any, messages: list[dict[str, Any]], *, system: str | None,
    tools: bool,
) -> Conversation:
    """The past, then the run's input. Without ``tools`` of its own a model is told old calls as text.

    Raises:
        ConfigError: nothing is said, or a block that no model is shown.
    """
    found = Conversation([system] if system else [], [])
    for item in _past(transcript, found.system):
        found.items.extend([item] if tools or isinstance(item, Said) else _told(item))
    count = len(found.items)
    listed = given.get("messages") if isinstance(given, Mapping) else None
    for message in listed if isinstance(listed, list) else messages:
        if isinstance(message, Mapping) and message.get("content"):
            _add(found, str(message.get("role") or "user").lower(), message["content"])
    if len(found.items) == count:
        raise ConfigError('nothing is said: an input needs a prompt, or "messages"')
    return found


def _add(found: Conversation, role: str, content: Any) -> None:
    blocks = blocks_of(content)
    if role in ("system", "developer"):
        found.system.append("".join(block.get("text", "") for block in blocks))
    else:
        found.items.append(Said(role if role in _ROLES else "user", blocks))


def _past(transcript: Iterable[Message], system: list[str]) -> Iterator[Said | Called]:
    together: Called | None = None
    seen: set[str] = set()
    for message in transcript:
        is_call = message.role is Role.ASSISTANT and message.tool_name is not None
        goes_on = message.role is Role.TOOL or (is_call and together is not None and not together.results)
        if together is not None and not goes_on:
            yield _renamed(_closed(together), seen)
            together = None
        if is_call or message.role is Role.TOOL:
            together = together or Called([], [])
            _collect(together, message, is_call)
        elif message.role is Role.SYSTEM:
            system.append(message.content or "")
        elif message.content:
            role = "assistant" if message.role is Role.ASSISTANT else "user"
            yield Said(role, [{"type": "text", "text": message.content}])
    if together is not None:
        yield _renamed(_closed(together), seen)


def _collect(together: Called, message: Message, is_call: bool) -> None:
    """A call, a result, or both in one message."""
    name = plain_name(message.tool_name or "tool")
    own = plain_id(message.tool_call_id)
    if is_call or message.tool_input is not None:
        given = message.tool_input
        call = Call(own or f"call_{len(together.calls)}", name, given if isinstance(given, dict) else
                    {} if given is None else {"input": given})
        together.calls.append(call)
    if message.role is Role.TOOL:
        place = len(together.results)
        whose = own or (together.calls[place].id if place < len(together.calls) else f"call_{place}")
        failed = bool(message.metadata.get("failed"))
        together.results.append(Result(whose, text_of(message.tool_output), failed))


def _closed(together: Called) -> Called:
    """Every call has one result, every result its call: APIs refuse anything else."""
    told = {result.id: result for result in together.results}
    called = {call.id for call in together.calls}
    calls = [*together.calls, *(Call(own, "tool", {}) for own in told if own not in called)]
    unique = {call.id: call for call in calls}
    results = [told.get(own) or Result(own, "no result", failed=True) for own in unique]
    return Called(list(unique.values()), results)


def _renamed(item: Called, seen: set[str]) -> Called:
    """With ids that no call before has: providers and servers repeat theirs, APIs refuse one twice."""
    names: dict[str, str] = {}
    for call in item.calls:
        own, number = call.id, len(seen)
        while own in seen:
            own, number = f"{call.id[:48]}_{number}", number + 1
        seen.add(own)
        names[call.id] = own
    return Called([call._replace(id=names[call.id]) for call in item.calls],
                  [result._replace(id=names[result.id]) for result in item.results])


def _told(item: Called) -> Iterator[Said]:
    """Calls as text, for a model that has no tools now."""
    for call, result in zip(item.calls, item.results, strict=True):
        asked = f"[called {call.name} with {text_of(call.input)}]"
        yield Said("assistant", [{"type": "text", "text": asked}])
        yield Said("user", [{"type": "text", "text": f"[{call.name} gave: {result.text}]"}])


def plain_name(name: str) -> str:
    """A tool's name as every API takes it."""
    return _STRANGE.sub("_", model_name(name))[:_NAME_CHARS_MAX] or "tool"


def plain_id(call_id: str | None) -> str:
    """A call's id as every API takes it."""
    return _STRANGE.sub("_", call_id or "")[:_NAME_CHARS_MAX]


def text_of(value: Any) -> str:
    """What a tool took or gave, as text."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def blocks_of(content: Any) -> list[Block]:
    """A message's content as neutral blocks.

    Raises:
        ConfigError: neither text nor a block that is known.
    """
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list):
        return [_block(item) for item in content]
    return [{"type": "text", "text": text_of(content)}]


def _block(item: Any) -> Block:
    if isinstance(item, str):
        return {"type": "text", "text": item}
    if isinstance(item, Mapping):
        match item.get("type"):
            case "text" | "input_text" | "output_text":
                return {"type": "text", "text": str(item.get("text") or "")}
            case "image" | "image_url" | "input_image":
                return _image(item)
    raise ConfigError(f"a block of a message is a text or an image, not {shown(item)}")


def _image(item: Mapping[str, Any]) -> Block:
    source: Mapping[str, Any] = item["source"] if isinstance(item.get("source"), Mapping) else item
    url = source.get("url") or source.get("image_url")
    if isinstance(url, Mapping):
        url = url.get("url")
    if isinstance(url, str) and url.startswith("data:"):
        head, _, data = url[5:].partition(";base64,")
        return {"type": "image", "media_type": head, "data": data}
    if isinstance(url, str) and url:
        return {"type": "image", "url": url}
    given, media = source.get("data"), source.get("media_type")
    if isinstance(given, str) and isinstance(media, str):
        return {"type": "image", "media_type": media, "data": given}
    raise ConfigError("an image needs data (base64) and media_type, or a url")


def data_url(block: Block) -> str:
    """An image as a URL."""
    return str(block["url"]) if "url" in block else f"data:{block['media_type']};base64,{block['data']}"


def image_of(block: Block) -> Block:
    """An image as Anthropic's API has it, and who speaks like it."""
    if "url" in block:
        return {"type": "image", "source": {"type": "url", "url": block["url"]}}
    return {"type": "image", "source": {"type": "base64", "media_type": block["media_type"],
                                        "data": block["data"]}}


__all__ = [
    "Block", "Call", "Called", "Conversation", "Result", "Said", "blocks_of", "conversation_of", "data_url",
    "image_of", "plain_id", "plain_name", "text_of",
]
