"""``verbose``: ``[type] key=value`` on a line for each event, and the agent's text between them.

A value that holds blanks, quotes or ``=`` is quoted as in JSON, so a line is a line and can be searched. Each
has its ``seq``, behind which ``mesh session attach --after`` goes on.
"""

from __future__ import annotations

import json
import re
from typing import Any

from mesh.core.records import Event
from mesh.rendering.base import PREVIEW_CHARS, RESULT_CHARS, Renderer, cost, spoken
from mesh.rendering.text import preview

_PLAIN = re.compile(r"[^\s=\"\\]+\Z")
#: type -> (shown name, key of the data), in this order; of other types all keys are shown.
_SHOWN: dict[str, tuple[tuple[str, str], ...]] = {
    "error_occurred": (("error_code", "error_code"), ("error_message", "error_message")),
    "message_received": (("role", "role"),),
    "run_completed": (("stop_reason", "stop_reason"),),
    "run_failed": (("error_code", "error_code"), ("error_message", "error_message")),
    "token_usage_updated": (("input", "input_tokens"), ("output", "output_tokens")),
    "tool_call_completed": (("name", "tool_name"), ("id", "tool_call_id"), ("output", "tool_output")),
    "tool_call_failed": (
        ("name", "tool_name"), ("id", "tool_call_id"), ("error", "error"), ("output", "tool_output"),
    ),
    "tool_call_started": (("name", "tool_name"), ("id", "tool_call_id"), ("input", "tool_input")),
}
_RED = frozenset(
    ("error_occurred", "policy_violation", "run_cancelled", "run_failed", "run_timeout", "session_failed")
)
#: Whose beginning is longer.
_LONG = frozenset(("content", "error", "error_message", "output"))


class VerboseRenderer(Renderer):
    """A line for each event."""

    def tell(self, event: Event) -> str:
        """The event's line."""
        tag = self.ink(_color(event.type), f"[{preview(event.type, PREVIEW_CHARS)}]")
        return self.line(" ".join([tag, *(f"{name}={value}" for name, value in _pairs(event))]))

    def finish(self) -> str:
        """How much there was."""
        text = self.ink("dim", f"--- {self.events} events, {self.tools} tools ---")
        return self.line(text) if self.events else ""


def _pairs(event: Event) -> list[tuple[str, str]]:
    data = event.data
    wanted = _SHOWN.get(event.type)
    named = [(preview(key, PREVIEW_CHARS), key) for key in data] if wanted is None else wanted
    given = [(name, data.get(key)) for name, key in named]
    pairs = [(name, _value(name, value)) for name, value in given if value not in (None, "", {})]
    if event.type == "run_started":
        pairs.append(("session_id", event.session_id))
    if event.type == "message_received":
        pairs.append(("chars", str(len(spoken(event)))))
    price = cost(data, 6) if wanted is not None else ""
    if price:
        pairs.append(("cost", price))
    return [*pairs, ("seq", str(event.seq))]


def _value(name: str, value: Any) -> str:
    text = preview(value, RESULT_CHARS if name in _LONG else PREVIEW_CHARS)
    return text if _PLAIN.match(text) or not isinstance(value, str) else json.dumps(text, ensure_ascii=False)


def _color(kind: str) -> str:
    if kind in _RED:
        return "red"
    if kind.startswith("tool_call"):
        return "green"
    return "blue" if kind.startswith(("run_", "message_")) else "dim"


__all__ = ["VerboseRenderer"]
