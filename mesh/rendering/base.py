"""What all renderers share: which event is text, which text was shown already, where lines begin and end.

A renderer is a fold over events: ``event`` gives the text to write for one, ``finish`` the last words. It
knows neither terminals nor files; those are sinks. One renderer follows one stream of events.

Rules of this file:

1. Every piece of an agent's text is shown once: what was streamed is not shown again when the whole message
   comes, and what was not streamed is shown then, in full.
2. No control character of anybody's text gets out (``text.Cleaner``), however it was cut into pieces.
3. Any event gives text, never an exception: types of tomorrow, and data of any shape.
"""

from __future__ import annotations

from typing import Any

from mesh.core.records import Event
from mesh.rendering.text import Cleaner, Ink, as_text, clean, preview

#: Previews of prompts, inputs and errors; of results.
PREVIEW_CHARS, RESULT_CHARS = 120, 2000
#: So many runs are remembered as having streamed, so many tools as open; beyond that the oldest is forgotten.
OPEN_MAX = 1000
_MODEL_PREFIXES = ("claude-", "anthropic.")
_REASONS = {"tool_use": "tool", "end_turn": "end"}
_Speaker = tuple[str | None, str]


class Renderer:
    """Turns events into text. A subclass says how an event looks (``tell``) and what stands before text."""

    #: What goes on right now: a terminal shows it on a line of its own until something is written.
    status = ""

    def __init__(self, *, color: bool = True) -> None:
        self.ink = Ink(color)
        self.events = 0
        self.tools = 0
        self.line_open = False  #: the cursor does not stand at the beginning of a line
        self._speaker: _Speaker | None = None
        self._begun = False  #: something of this speaker was shown
        self._cleaner = Cleaner()
        self._streamed: dict[str | None, None] = {}

    def event(self, event: Event) -> str:
        """The text of one event; "" when it has none."""
        self.events += 1
        self.tools += event.type == "tool_call_started"
        if event.type == "message_streamed":
            remember(self._streamed, event.run_id, None)
            return self.speak(event)
        if event.type == "message_received":
            text = "" if event.run_id in self._streamed else self.speak(event)
            self._streamed.pop(event.run_id, None)
            return text + self.end_text() + self.tell(event)
        return self.tell(event)

    def finish(self) -> str:
        """The last words."""
        return self.interrupt()

    def interrupt(self) -> str:
        """What has to stand before words of somebody else: nothing is left in the middle of a line."""
        return self.end_text() + self.end_line()

    def tell(self, event: Event) -> str:  # noqa: ARG002 - the default says nothing of any event
        """The text of an event beside the agent's words: made with ``line``."""
        return ""

    def begin_text(self) -> str:
        """What stands before a block of text."""
        return self.end_line()

    def shape_text(self, text: str) -> str:
        """How clean text looks; ``line_open`` says where it begins."""
        return text

    def line(self, text: str) -> str:
        """A line of its own."""
        return self.interrupt() + text + "\n"

    def speak(self, event: Event) -> str:
        """Show a piece of text; another speaker than before begins a new block."""
        speaker = (event.run_id, as_text(event.data.get("stream")))
        before = self.end_text() if speaker != self._speaker else ""
        self._speaker = speaker
        return before + self._show(self._cleaner.feed(spoken(event)))

    def end_text(self) -> str:
        """Close the block of text that is open, if any."""
        if self._speaker is None:
            return ""
        rest = self._show(self._cleaner.flush())
        closing = self.end_line() if self._begun else ""
        self._speaker, self._begun = None, False
        return rest + closing

    def end_line(self) -> str:
        """Go to the beginning of a line."""
        text = "\n" if self.line_open else ""
        self.line_open = False
        return text

    def _show(self, text: str) -> str:
        if not text:
            return ""
        before = "" if self._begun else self.begin_text()
        self._begun = True
        shaped = self.shape_text(text)
        self.line_open = not text.endswith("\n")
        return before + shaped


class PassthroughRenderer(Renderer):
    """No text at all: for sinks that want the events."""

    def event(self, event: Event) -> str:  # noqa: ARG002 - it is counted
        """Nothing."""
        self.events += 1
        return ""


class TextRenderer(Renderer):
    """The agent's words and nothing else.

    ``exact``: as they are, byte for byte, for a pipe; ``exact_stderr`` the same for what the agent said to
    stderr (None: as ``exact``). Otherwise clean, and the last line is ended, for a terminal.
    """

    def __init__(
        self, *, color: bool = True, exact: bool = False, exact_stderr: bool | None = None
    ) -> None:
        super().__init__(color=color)
        self._exact = exact
        self._exact_stderr = exact if exact_stderr is None else exact_stderr

    def speak(self, event: Event) -> str:
        """The words, clean or exact."""
        if self._exact_stderr if is_stderr(event) else self._exact:
            return spoken(event)
        return super().speak(event)

    def begin_text(self) -> str:
        """Words follow words: another stream begins no new line."""
        return ""

    def end_line(self) -> str:
        """Only at the end of a message, and for a person."""
        return "" if self._exact else super().end_line()


def remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    """Keep it; beyond ``OPEN_MAX`` the oldest is forgotten."""
    known[key] = value
    if len(known) > OPEN_MAX:
        del known[next(iter(known))]


def is_stderr(event: Event) -> bool:
    """Whether it is a piece of text that a command wrote to stderr."""
    return event.type == "message_streamed" and event.data.get("stream") == "stderr"


def spoken(event: Event) -> str:
    """The words of a ``message_streamed`` or ``message_received``."""
    return as_text(event.data.get("content") or event.data.get("delta"))


def number(value: Any) -> int | float:
    """A count that somebody reported; 0 when it is none."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0


def short_model(value: Any) -> str:
    """The name of a model without its maker, three parts at most."""
    name = preview(value, PREVIEW_CHARS)
    for prefix in _MODEL_PREFIXES:
        name = name.removeprefix(prefix)
    return "-".join([part for part in name.split("-") if part][:3])


def short_reason(value: Any) -> str:
    """Why a run ended, in one word where there is one."""
    reason = preview(value, PREVIEW_CHARS).lower()
    return _REASONS.get(reason, reason)


def cost(data: dict[str, Any], places: int) -> str:
    """``$0.0123`` of an event that tells it; "" when none does."""
    for name in ("cost_usd", "total_cost_usd"):
        value = data.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return f"${round(float(value), places):g}"
    return ""


def tool_name(data: dict[str, Any]) -> str:
    """The tool's name, clean."""
    return preview(data.get("tool_name"), PREVIEW_CHARS) or "unknown"


def failure_text(data: dict[str, Any]) -> Any:
    """What an event of failure says about itself."""
    for name in ("error_message", "error", "message", "reason", "tool_output"):
        if data.get(name):
            return data[name]
    return "unknown error"


__all__ = [
    "OPEN_MAX",
    "PREVIEW_CHARS",
    "RESULT_CHARS",
    "PassthroughRenderer",
    "Renderer",
    "TextRenderer",
    "clean",
    "cost",
    "failure_text",
    "is_stderr",
    "number",
    "remember",
    "short_model",
    "short_reason",
    "spoken",
    "tool_name",
]
