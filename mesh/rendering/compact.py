"""``compact``: a token for each event, many on a line.

| token | event |
|---|---|
| ``r+ model`` ``r-:reason`` | run_started, run_completed |
| ``<< text`` ``>> text`` | message_sent (its beginning), the agent's text |
| ``msg`` | message_received |
| ``t+Name`` ``t-Name tr:output`` | tool_call_started, tool_call_completed |
| ``tk:in/out $cost`` | token_usage_updated |
| ``! text`` | what failed, was cancelled, ran out of time, broke a policy or waits for an approval |
| ``?type`` | any other event |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mesh.core.records import Event
from mesh.rendering.base import (
    PREVIEW_CHARS,
    RESULT_CHARS,
    Renderer,
    cost,
    failure_text,
    number,
    short_model,
    short_reason,
    tool_name,
)
from mesh.rendering.text import preview


class CompactRenderer(Renderer):
    """Many events on a line; a legend stands at the head of this file."""

    def tell(self, event: Event) -> str:
        """The event's token."""
        make = _TOKENS.get(event.type)
        if make is None:
            return self._token(self.ink("dim", "?" + preview(event.type, PREVIEW_CHARS)))
        return self._token(make(self, event.data))

    def finish(self) -> str:
        """How much there was."""
        text = self.ink("dim", f"{self.events} events, {self.tools} tools")
        return self.line(text) if self.events else ""

    def begin_text(self) -> str:
        """``>>``, behind the tokens of this line."""
        return (" " if self.line_open else "") + self.ink("magenta", ">>") + " "

    def _token(self, text: str) -> str:
        before = self.end_text()
        gap = " " if self.line_open else ""
        self.line_open = True
        return before + gap + text

    def _started(self, data: dict[str, Any]) -> str:
        model = short_model(data.get("model"))
        return self.ink("blue", "r+") + (" " + self.ink("magenta", model) if model else "")

    def _sent(self, data: dict[str, Any]) -> str:
        text = preview(data.get("content"), PREVIEW_CHARS)
        return self.ink("magenta", "<<") + " " + self.ink("dim", text)

    def _received(self, _data: dict[str, Any]) -> str:
        return self.ink("blue", "msg")

    def _tool_started(self, data: dict[str, Any]) -> str:
        return self.ink("green", "t+" + tool_name(data))

    def _tool_completed(self, data: dict[str, Any]) -> str:
        output = preview(data.get("tool_output"), RESULT_CHARS)
        name = self.ink("green", "t-" + tool_name(data))
        return name + (" " + self.ink("green", "tr:") + self.ink("dim", output) if output else "")

    def _tool_failed(self, data: dict[str, Any]) -> str:
        return self.ink("green", "t-" + tool_name(data)) + " " + self._failed(data)

    def _usage(self, data: dict[str, Any]) -> str:
        price = cost(data, 4)
        counts = f"tk:{number(data.get('input_tokens'))}/{number(data.get('output_tokens'))}"
        return self.ink("dim", counts + (" " + price if price else ""))

    def _completed(self, data: dict[str, Any]) -> str:
        reason, price = short_reason(data.get("stop_reason")), cost(data, 4)
        return self.ink("blue", "r-" + (":" + reason if reason else "") + (" " + price if price else ""))

    def _failed(self, data: dict[str, Any]) -> str:
        return self._bang(preview(failure_text(data), PREVIEW_CHARS))

    def _cancelled(self, _data: dict[str, Any]) -> str:
        return self._bang("cancelled")

    def _timeout(self, _data: dict[str, Any]) -> str:
        return self._bang("timeout")

    def _violation(self, data: dict[str, Any]) -> str:
        return self._bang(f"policy {preview(data.get('kind'), PREVIEW_CHARS)}")

    def _asked(self, data: dict[str, Any]) -> str:
        return self._bang(f"approval {tool_name(data)}")

    def _bang(self, text: str) -> str:
        return self.ink("red", "!") + " " + self.ink("dim", text)


_TOKENS: dict[str, Callable[[CompactRenderer, dict[str, Any]], str]] = {
    "error_occurred": CompactRenderer._failed,
    "message_received": CompactRenderer._received,
    "message_sent": CompactRenderer._sent,
    "policy_violation": CompactRenderer._violation,
    "run_cancelled": CompactRenderer._cancelled,
    "run_completed": CompactRenderer._completed,
    "run_failed": CompactRenderer._failed,
    "run_started": CompactRenderer._started,
    "run_timeout": CompactRenderer._timeout,
    "token_usage_updated": CompactRenderer._usage,
    "tool_approval_requested": CompactRenderer._asked,
    "tool_call_completed": CompactRenderer._tool_completed,
    "tool_call_failed": CompactRenderer._tool_failed,
    "tool_call_started": CompactRenderer._tool_started,
}

__all__ = ["CompactRenderer"]
