"""``studio``: a run as a person likes to watch it: text in blocks, a line for each call of a tool.

On a terminal (``live``) what a tool does is shown while it does it, and replaced by what became of it;
elsewhere both are lines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from mesh.core.records import Event
from mesh.errors import InvalidArgument, shown
from mesh.rendering import tools
from mesh.rendering.base import (
    PREVIEW_CHARS,
    Renderer,
    cost,
    failure_text,
    number,
    remember,
    tool_name,
)
from mesh.rendering.text import preview
from mesh.rendering.tools import Call

#: How much of a tool's output is shown: none, its last lines, all.
TOOL_OUTPUTS = ("summary", "preview", "full")
PREVIEW_LINES = 3
INDENT_MAX = 40
INFO, RUNNING, DONE, FAILED, ASKED = "●", "◐", "✓", "✗", "◆"


class _Begun(NamedTuple):
    name: str
    input: Any
    ts: float


class StudioRenderer(Renderer):
    """Human summaries, symbols and blocks.

    Raises:
        InvalidArgument: no such ``tool_output`` or ``indent``.
    """

    def __init__(
        self, *, color: bool = True, tool_output: str = "summary", indent: int = 2, live: bool = False
    ) -> None:
        super().__init__(color=color)
        if tool_output not in TOOL_OUTPUTS:
            known = ", ".join(TOOL_OUTPUTS)
            raise InvalidArgument(f"tool_output is one of {known}, not {shown(tool_output)}")
        if type(indent) is not int or not 0 <= indent <= INDENT_MAX:
            raise InvalidArgument(f"indent is a number from 0 to {INDENT_MAX}, not {shown(indent)}")
        self._margin = " " * indent
        self._mode = tool_output
        self._live = live
        self._open: dict[Any, _Begun] = {}
        self._usage: dict[str, Any] = {}
        self._tools_before = 0  #: of earlier runs
        self._block = ""  #: what stands above: "text", "line" or "message"; a blank line parts them

    def tell(self, event: Event) -> str:
        """The event's line, if it has one."""
        make = _LINES.get(event.type)
        if make is not None:
            return make(self, event)
        return self._row(self.ink("dim", f"? {preview(event.type, PREVIEW_CHARS)}"))

    def finish(self) -> str:
        """Nothing is left in the middle of a line."""
        self.status = ""
        return super().finish()

    def begin_text(self) -> str:
        """A block of text is parted from the lines above it."""
        return self.end_line() + self._parted("text")

    def shape_text(self, text: str) -> str:
        """Each line of it is indented."""
        first = "" if self.line_open else self._margin
        last = "\n" if text.endswith("\n") else ""
        lines = text.removesuffix("\n").split("\n")
        rest = [self._margin + line if line else line for line in lines[1:]]
        return "\n".join([(first if lines[0] else "") + lines[0], *rest]) + last

    def _parted(self, block: str) -> str:
        gap = "\n" if self._block not in ("", block) else ""
        self._block = block
        return gap

    def _row(self, text: str) -> str:
        return self.interrupt() + self._parted("line") + self._margin + text + "\n"

    def _marked(self, color: str, symbol: str, text: str) -> str:
        return self._row(f"{self.ink(color, symbol)} {text}")

    # --- tools ---

    def _tool_started(self, event: Event) -> str:
        data = event.data
        begun = _Begun(tool_name(data), data.get("tool_input"), event.ts)
        remember(self._open, _key(event), begun)
        text = tools.running(Call(begun.name, begun.input))
        if not self._live:
            return self._marked("cyan", RUNNING, text)
        self._show_status()
        return self.interrupt()

    def _tool_ended(self, event: Event) -> str:
        begun = self._open.pop(_key(event), None)
        call = _call(event, begun)
        self._show_status()
        symbol = ("red", FAILED) if call.failed else ("green", DONE)
        return self._marked(*symbol, tools.summary(call)) + self._output(call)

    def _output(self, call: Call) -> str:
        if self._mode == "summary":
            return ""
        lines, bar = tools.output_lines(call), "┊"
        if self._mode == "preview":
            lines, bar = lines[-PREVIEW_LINES:], "│"
        head = f"{self._margin}  {self.ink('dim', bar)} "
        return "".join(f"{head}{self.ink('dim', line)}\n" for line in lines)

    def _show_status(self) -> None:
        latest = next(reversed(self._open.values()), None)
        self.status = ""
        if latest is not None and self._live:
            self.status = f"{self._margin}{RUNNING} {tools.running(Call(latest.name, latest.input))}"

    # --- runs ---

    def _started(self, event: Event) -> str:
        self._usage, self._tools_before = {}, self.tools
        named = event.data.get("model") or event.data.get("agent") or event.provider
        return self._marked("blue", INFO, f"{preview(named, PREVIEW_CHARS) or 'agent'} run started")

    def _ended(self) -> None:
        self._open.clear()
        self.status = ""

    def _completed(self, event: Event) -> str:
        self._ended()
        told = event.data.get("token_usage")
        counts = told if isinstance(told, dict) and told else self._usage  # which may be of one answer alone
        reason = preview(event.data.get("stop_reason"), PREVIEW_CHARS)
        tokens = f"{number(counts.get('input_tokens'))}/{number(counts.get('output_tokens'))} tokens"
        count = self.tools - self._tools_before
        made = f"{count} tool{'s' if count != 1 else ''}" if count else ""
        price = cost(event.data, 4) or cost(self._usage, 4)
        rest = ", ".join(part for part in (tokens if counts else "", made, price) if part)
        text = "Run complete" + (f" ({reason})" if reason else "") + (f" — {rest}" if rest else "")
        return self._marked("blue", INFO, text)

    def _failed(self, event: Event) -> str:
        if event.type == "run_failed":
            self._ended()
        return self._marked("red", FAILED, preview(failure_text(event.data), PREVIEW_CHARS))

    def _cancelled(self, event: Event) -> str:
        self._ended()
        reason = preview(event.data.get("reason"), PREVIEW_CHARS)
        text = "out of time" if event.type == "run_timeout" else "cancelled"
        return self._marked("red", FAILED, text + (f" ({reason})" if reason not in ("", "cancel") else ""))

    def _counted(self, event: Event) -> str:
        self._usage = event.data
        return ""

    def _sent(self, event: Event) -> str:
        return self._row(self.ink("dim", f"› {preview(event.data.get('content'), PREVIEW_CHARS)}"))

    # --- what people decide ---

    def _asked(self, event: Event) -> str:
        call = Call(tool_name(event.data), event.data.get("tool_input"))
        return self._marked("magenta", ASKED, f"Waiting for an approval: {tools.wanted(call)}")

    def _answered(self, event: Event) -> str:
        granted = event.type == "tool_approval_granted"
        by = preview(event.data.get("by"), PREVIEW_CHARS)
        why = preview(event.data.get("reason"), PREVIEW_CHARS)
        text = f"{'Approved' if granted else 'Denied'}: {tool_name(event.data)}"
        text += (f" by {by}" if by else "") + (f" ({why})" if why else "")
        return self._marked("green", DONE, text) if granted else self._marked("red", FAILED, text)

    def _violated(self, event: Event) -> str:
        named = (preview(event.data.get(name), PREVIEW_CHARS) for name in ("policy", "kind", "tool_name"))
        return self._marked("red", FAILED, "Against the policy: " + " ".join(filter(None, named)))

    def _changed(self, event: Event) -> str:
        data = event.data
        count = number(data.get("files_changed"))
        lines = f"+{number(data.get('insertions'))} -{number(data.get('deletions'))}"
        return self._marked("blue", INFO, f"{count} file{'s' if count != 1 else ''} changed ({lines})")

    def _driven(self, event: Event) -> str:
        driver = preview(event.data.get("driver"), PREVIEW_CHARS)
        reason = preview(event.data.get("reason"), PREVIEW_CHARS)
        text = f"{driver} drives the session" if driver else "nobody drives the session"
        return self._marked("blue", INFO, text + (f" ({reason})" if reason else ""))

    def _recovered(self, event: Event) -> str:
        return self._row(self.ink("dim", f"Recovered: {preview(failure_text(event.data), PREVIEW_CHARS)}"))

    def _session(self, event: Event) -> str:
        return self._marked("blue", INFO, event.type.replace("_", " "))

    def _received(self, event: Event) -> str:  # noqa: ARG002 - one signature for all
        self._block = self._block and "message"  # what follows is parted from it
        return ""

    def _silent(self, event: Event) -> str:  # noqa: ARG002 - one signature for all
        return ""


def _key(event: Event) -> Any:
    """What names a call: its id, else its tool."""
    given = event.data.get("tool_call_id")
    named = given if isinstance(given, str) and given else tool_name(event.data)
    return event.run_id, named


def _call(event: Event, begun: _Begun | None) -> Call:
    data = event.data
    code, ms = data.get("exit_code"), data.get("duration_ms")
    lasted_s = number(ms) / 1000 if ms is not None else event.ts - begun.ts if begun is not None else 0.0
    exit_code = code if type(code) is int else None
    failed = event.type == "tool_call_failed" or data.get("status") == "failed" or bool(exit_code)
    named = data.get("tool_name") is not None or begun is None
    return Call(
        tool_name(data) if named or begun is None else begun.name,
        data.get("tool_input") or (begun.input if begun is not None else None),
        data.get("tool_output"),
        data.get("error_message") or data.get("error"),
        failed,
        exit_code,
        lasted_s,
    )


_LINES: dict[str, Callable[[StudioRenderer, Event], str]] = {
    "access_changed": StudioRenderer._session,
    "driver_changed": StudioRenderer._driven,
    "error_occurred": StudioRenderer._failed,
    "error_recovered": StudioRenderer._recovered,
    "log_pruned": StudioRenderer._session,
    "message_pinned": StudioRenderer._session,
    "message_received": StudioRenderer._received,
    "message_sent": StudioRenderer._sent,
    "policy_violation": StudioRenderer._violated,
    "run_cancelled": StudioRenderer._cancelled,
    "run_completed": StudioRenderer._completed,
    "run_failed": StudioRenderer._failed,
    "run_started": StudioRenderer._started,
    "run_timeout": StudioRenderer._cancelled,
    "session_cancelled": StudioRenderer._session,
    "session_completed": StudioRenderer._session,
    "session_created": StudioRenderer._silent,
    "session_failed": StudioRenderer._session,
    "session_paused": StudioRenderer._session,
    "session_resumed": StudioRenderer._session,
    "session_started": StudioRenderer._silent,
    "token_usage_updated": StudioRenderer._counted,
    "tool_approval_denied": StudioRenderer._answered,
    "tool_approval_granted": StudioRenderer._answered,
    "tool_approval_requested": StudioRenderer._asked,
    "tool_call_completed": StudioRenderer._tool_ended,
    "tool_call_failed": StudioRenderer._tool_ended,
    "tool_call_started": StudioRenderer._tool_started,
    "transcript_compacted": StudioRenderer._session,
    "turn_completed": StudioRenderer._silent,
    "workspace_diff_computed": StudioRenderer._changed,
    "workspace_snapshot_taken": StudioRenderer._silent,
}

__all__ = ["PREVIEW_LINES", "TOOL_OUTPUTS", "StudioRenderer"]
