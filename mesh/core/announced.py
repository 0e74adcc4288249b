"""Lifecycle messages: what one says, and how many of them stand in one row of the store.

A batch announces by the hundred. They are encoded together when it is written, and one by one only for who
listens or asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from mesh.core.records import SessionStatus
from mesh.core.wire import repack

#: Messages in one row at most: who asks for one of them reads so many.
PACK_MAX = 256


class Announced(msgspec.Struct, gc=False):
    """What a lifecycle message says, in the order of its encoding; the last fields only where they tell."""

    ts: float
    partition: int
    epoch: int
    node: str
    lseq: int
    session_id: str
    agent_id: str
    agent: str
    status: SessionStatus
    handle: dict[str, Any] | None
    previous: SessionStatus | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    former: dict[str, Any] | UnsetType | None = UNSET
    hard: bool | UnsetType = UNSET


#: (what, what it says)
Message = tuple[str, Announced]


class _Whose(msgspec.Struct):
    lseq: int
    session_id: str


_entries = msgspec.msgpack.Decoder(list[tuple[str, msgspec.Raw]]).decode
_whose = msgspec.msgpack.Decoder(_Whose).decode


def topic_id(identifier: str) -> str:
    """An id inside a topic: ``.`` separates, so it is written ``%2E`` there."""
    return identifier.replace(".", "%2E")


def topic(what: str, session_id: str) -> str:
    """Under which a lifecycle message is published."""
    return f"lifecycle.{what}.{topic_id(session_id)}"


def packed(messages: list[Message]) -> Iterator[tuple[int, bytes]]:
    """(the last ``lseq`` in it, the row) of messages in their order."""
    for first in range(0, len(messages), PACK_MAX):
        some = messages[first : first + PACK_MAX]
        yield some[-1][1].lseq, repack(some)


def unpacked(row: bytes) -> list[tuple[int, str, bytes]]:
    """(lseq, topic, payload) of each message in a row.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    found = []
    for what, raw in _entries(row):
        about = _whose(raw)
        found.append((about.lseq, topic(what, about.session_id), bytes(raw)))
    return found


__all__ = ["PACK_MAX", "Announced", "Message", "packed", "topic", "topic_id", "unpacked"]
