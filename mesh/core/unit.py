"""What a transcript is made of: units, which are never torn apart, and how events become messages of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from mesh.core.message import Message, Role

#: What stands for a result that is not there.
ORPHANED = "no result: the run ended before the tool call did"
UNFINISHED = "no result yet: the tool call is still running"
AWAITING_APPROVAL = "execution paused, awaiting human approval"
DENIED = "the tool call was denied"


class Unit:
    """One text message, or the calls that were made together, each with its result."""

    __slots__ = (
        "calls", "gone", "message", "pinned", "run_id", "sealed", "seq", "seqs", "size", "summary", "ts",
    )

    def __init__(
        self, run_id: str | None, seq: int, ts: float, message: Message | None = None, *,
        summary: bool = False,
    ) -> None:
        self.run_id = run_id
        self.seq = seq  #: of its last event; 0 when it was inherited
        self.ts = ts
        self.seqs = [seq]
        self.message = message
        self.calls: dict[int, list[Message | None]] = {}  #: seq of the call -> [call, result]
        self.sealed = False  #: a result is there: the next call begins another unit
        self.size = 0 if message is None else chars_of(message)
        self.summary = summary
        self.pinned = self.gone = False

    @property
    def kept(self) -> bool:
        """Whether budgets leave it alone."""
        return self.pinned or self.summary

    @property
    def count(self) -> int:
        """How many messages it is."""
        return 1 if self.message is not None else 2 * len(self.calls)

    def messages(self, *, over: bool = True) -> Iterator[Message]:
        """All calls, then all results. ``over``: its run ended, so what has no result gets none."""
        if self.message is not None:
            yield self.message
            return
        for call, _ in self.calls.values():
            assert call is not None
            yield call
        for call, result in self.calls.values():
            assert call is not None
            yield result if result is not None else _marker(call, ORPHANED if over else UNFINISHED)


def _marker(call: Message, why: str) -> Message:
    about = {**call.metadata, "marker": True}
    return Message(Role.TOOL, None, call.tool_call_id, call.tool_name, None, why, about)


def about(event: Mapping[str, Any]) -> dict[str, Any]:
    """Where a message comes from."""
    return {
        **(event.get("metadata") or {}), "event_id": event.get("id"), "run_id": event["run_id"],
        "timestamp": event["ts"], "sequence_number": event["seq"],
    }


_ROLES = {role.value: role for role in Role}


def role_of(data: Mapping[str, Any], default: Role) -> Role:
    """The role that an event names, or the usual one."""
    role = data.get("role")
    return _ROLES.get(role, default) if type(role) is str else default


def text_of(content: Any) -> str:
    """A content as text: of anything but a text, its JSON."""
    if content is None or type(content) is str:
        return content or ""
    return _json(content).decode(errors="replace")


def name_of(data: Mapping[str, Any], key: str) -> str | None:
    """``tool_name`` or ``tool_call_id`` of an event."""
    found = data.get(key)
    return found if type(found) is str and found else None


def output_of(data: Mapping[str, Any]) -> Any:
    """What a tool gave; of a failure that does not say, its error."""
    if "tool_output" in data:
        return data["tool_output"]
    for key in ("error", "error_message", "message"):
        if data.get(key):
            return {"error": data[key]}
    return None


def chars_of(message: Message) -> int:
    """What a message costs: the characters of its text, its tool's name, and of its payloads as JSON."""
    size = len(message.content or "") + len(message.tool_name or "")
    for payload in (message.tool_input, message.tool_output):
        if type(payload) is str:
            size += len(payload)
        elif payload is not None:
            size += len(_json(payload))
    return size


def _json(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError):
        return repr(value).encode(errors="replace")


__all__ = [
    "AWAITING_APPROVAL", "DENIED", "ORPHANED", "UNFINISHED", "Unit", "about", "chars_of", "name_of",
    "output_of", "role_of", "text_of",
]
