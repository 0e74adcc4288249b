"""What an agent is shown of a conversation: messages in order, and up to which event they reach."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Any

from mesh.core.record import Record, Text


class Role(StrEnum):
    """Who says a message. A ``tool`` message holds a call (``tool_input``), its result (``tool_output``), or
    both."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Message(Record, frozen=True):
    """One message of a transcript. ``tool_input`` and ``tool_output``: whatever the tool takes and gives."""

    role: Role
    content: str | None = None
    tool_call_id: str | None = None
    tool_name: str | None = None
    tool_input: Any = None
    tool_output: Any = None
    metadata: dict[str, Any] = {}


class Transcript(Record, frozen=True):
    """The messages of a session, in order: iterate over it, or ask for its ``len``.

    ``last_sequence`` is the ``seq`` and ``last_timestamp`` the ``ts`` (seconds, UTC) of the newest event that
    is in it; None when there is none.
    """

    session_id: Text
    messages: tuple[Message, ...] = ()
    last_sequence: int | None = None
    last_timestamp: float | None = None
    metadata: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def __len__(self) -> int:
        return len(self.messages)


__all__ = ["Message", "Role", "Transcript"]
