"""What Claude Code says on its stdout (``--output-format stream-json``), as pieces. Amp speaks the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mesh.core import usage
from mesh.core.account import USED_BEFORE
from mesh.providers.base import Output, Piece

#: What an assistant's message calls its failure, as codes of ours.
_CODES = {
    "authentication_failed": "provider_authentication_failed", "billing_error": "provider_quota_exceeded",
    "rate_limit": "provider_rate_limited",
}
_LIMITS = {"error_max_turns": "max_turns", "error_max_budget_usd": "max_budget_usd"}
_COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_TURNS_MAX = 1_000


class Talk:
    """One query. Under a policy (``guarded``) a call begins when it was permitted, not when it is wanted.

    ``input_holds_cached``: what the program calls ``input_tokens`` counts those from the cache, too.
    """

    def __init__(
        self, *, guarded: bool = False, used_before: Mapping[str, Any] | None = None,
        input_holds_cached: bool = False,
    ) -> None:
        self._guarded = guarded
        self._input_holds_cached = input_holds_cached
        self.over = False
        self.failed: str | None = None
        self.code: str | None = None  #: of the failure, when its kind was named
        self._cost_before: float = (used_before or {}).get(usage.COST, 0.0)
        self._cost = 0.0
        self._streamed = False
        self._answer = ""
        self._unsaid: list[Piece] = []
        self._completion: dict[str, Any] = {}
        self._usage: dict[str, dict[str, int]] = {}  #: of each message of the model
        self._partial = False  #: messages are told in parts, and each part's usage
        self._wanted: dict[str, dict[str, Any]] = {}
        self._begun: dict[str, dict[str, Any]] = {}

    def pieces(self, message: Mapping[str, Any]) -> list[Piece]:
        """The pieces of one message. Of subagents only the tools are told."""
        match message.get("type"):
            case "system" if message.get("subtype") == "init":
                said = {key: message[key] for key in ("model", "tools", "cwd") if key in message}
                own = message.get("session_id")
                return [{"type": "run_started", "data": {"provider_session_id": own, **said}}]
            case "stream_event":
                return self._streaming(_map(message.get("event")), message.get("parent_tool_use_id") is None)
            case "assistant":
                return self._assistant(message)
            case "user":
                blocks = _blocks(message, "tool_result")
                return [piece for block in blocks for piece in self._ended(block)]
            case "result":
                return self._done(message)
        return []

    def _streaming(self, event: Mapping[str, Any], own: bool) -> list[Piece]:
        delta = _map(event.get("delta"))
        match event.get("type"):
            case "message_start":
                self._partial = True
                self._usage[str(len(self._usage))] = _counts(_map(event.get("message")).get("usage"))
            case "message_delta" if self._usage:
                self._usage[next(reversed(self._usage))].update(_counts(event.get("usage")))
                return [self._used()]
            case "content_block_delta" if own and delta.get("type") == "text_delta":
                text = delta.get("text")
                self._streamed = True
                return [*self._whole(), text] if isinstance(text, str) and text else []
        return []

    def _assistant(self, message: Mapping[str, Any]) -> list[Piece]:
        if message.get("error"):  # then its text is no answer of a model
            self.code = _CODES.get(str(message["error"]))
            return []
        pieces: list[Piece] = []
        if message.get("parent_tool_use_id") is None:
            for block in _blocks(message, "text"):
                text = str(block.get("text") or "")
                pieces += [] if self._streamed else [*self._whole(), text]
                data = {"role": "assistant", "content": text}
                self._unsaid = [{"type": "message_received", "data": data}]
                self._streamed, self._answer = False, text
        for block in _blocks(message, "tool_use"):
            call_id = str(block.get("id"))
            self._wanted[call_id] = {
                "tool_call_id": call_id, "tool_name": block.get("name"), "tool_input": block.get("input"),
            }
            pieces += [] if self._guarded else self.begins(call_id)
        told = _map(message.get("message"))
        if not self._partial and (counts := _counts(told.get("usage"))):
            self._usage[str(told.get("id") or len(self._usage))] = self._apart(counts)
            pieces.append(self._used())
        return pieces

    def _apart(self, counts: dict[str, int]) -> dict[str, int]:
        """The counts with what came from a cache, or went there, counted once."""
        cached = counts.get(_COUNTS[2], 0) + counts.get(_COUNTS[3], 0)
        if not self._input_holds_cached or counts.get("input_tokens", 0) < cached:
            return counts
        return counts | {"input_tokens": counts["input_tokens"] - cached}

    def begins(self, call_id: str | None) -> list[Piece]:
        """A call that may be made, or was made."""
        data = self._wanted.pop(call_id or "", None)
        if data is None:
            return []
        self._begun[data["tool_call_id"]] = data
        return [*self._whole(), {"type": "tool_call_started", "data": data}]

    def _whole(self) -> list[Piece]:
        """The message before this; the last one is said whole by the node, at the end."""
        unsaid, self._unsaid = self._unsaid, []
        return unsaid

    def denied(self, call_id: str | None, why: str) -> list[Piece]:
        """A call that was not permitted: it never began."""
        data = self._wanted.pop(call_id or "", None)
        return [] if data is None else [*self._whole(), _failed(data, why)]

    def _ended(self, block: Mapping[str, Any]) -> list[Piece]:
        call_id = str(block.get("tool_use_id"))
        pieces = self.begins(call_id)
        data = self._begun.pop(call_id, None)
        if data is None:
            return []  # it was denied, and said so then
        if block.get("is_error"):
            return [*pieces, _failed(data, block.get("content"))]
        output = {"tool_output": block.get("content")}
        return [*pieces, {"type": "tool_call_completed", "data": {**data, **output}}]

    def _used(self) -> Piece:
        total: dict[str, int] = {}
        for counts in self._usage.values():
            for name, count in counts.items():
                total[name] = total.get(name, 0) + count
        return {"type": "token_usage_updated", "data": total}

    def _done(self, message: Mapping[str, Any]) -> list[Piece]:
        self.over = True
        turns = message.get("num_turns")
        turns = min(turns, _TURNS_MAX) if type(turns) is int and turns > 0 else 1
        self._completion = {
            "stop_reason": message.get("stop_reason") or "end_turn", "num_turns": turns,
            "duration_ms": message.get("duration_ms"),
        }
        pieces: list[Piece] = [{"type": "turn_completed", "data": {}} for _ in range(turns)]
        cost = message.get("total_cost_usd")
        if isinstance(cost, int | float) and cost > 0:
            self._cost = cost  # of the whole session, runs before this one included
            self._completion[usage.COST] = max(0.0, cost - self._cost_before)
        counts = _counts(message.get("usage"))
        used: dict[str, Any] = dict(self._apart(counts)) if counts else {}
        if usage.COST in self._completion:  # for the budgets, however it ended
            used[usage.COST] = self._completion[usage.COST]
        if used:
            pieces.insert(0, {"type": "token_usage_updated", "data": used})
        subtype = str(message.get("subtype"))
        if message.get("is_error") or subtype != "success":
            self.failed = _reason(message) or subtype
            if subtype in _LIMITS:
                self.code, self.failed = "limit_exceeded", f"{_LIMITS[subtype]} reached"
        elif isinstance(message.get("result"), str):
            self._answer = message["result"]
        return pieces

    def output(self) -> Output:
        """What the run gives: the last answer."""
        told = {USED_BEFORE: {usage.COST: self._cost}} if self._cost else {}
        return Output(
            data={"content": self._answer}, completion=self._completion, provider_metadata=told
        )


def _failed(data: dict[str, Any], why: Any) -> Piece:
    return {"type": "tool_call_failed", "data": {**data, "tool_output": why, "error": str(why)[:2_000]}}


def _reason(message: Mapping[str, Any]) -> str:
    """What a failed result says of its reason; each program has its own field for it."""
    errors = message.get("errors")
    said = (message.get("result"), message.get("error"), "; ".join(map(str, errors or [])))
    return next((text for text in said if isinstance(text, str) and text), "")


def _blocks(message: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    content = _map(message.get("message")).get("content")
    blocks = content if isinstance(content, list) else []
    return [block for block in blocks if isinstance(block, dict) and block.get("type") == kind]


def _counts(said: Any) -> dict[str, int]:
    given = _map(said)
    return {name: given[name] for name in _COUNTS if type(given.get(name)) is int}


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


__all__ = ["Talk"]
