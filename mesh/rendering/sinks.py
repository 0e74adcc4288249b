"""Where rendered events go: a terminal, a file, JSON lines, a function; ``feed.py`` has the feed.

A sink is opened before the first event, gets each event with its rendered text, then the last words, and is
flushed and closed. What it raises in between is its own end, never that of the others (``show.py``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from mesh.core.records import Event
from mesh.errors import InvalidArgument, InvalidState, shown
from mesh.rendering.base import cost, failure_text, is_stderr, number, short_model, short_reason
from mesh.rendering.text import Cleaner, as_text, fitted, json_line, preview

#: Forms of a JSON line: what happened, the same abbreviated, the whole record (as ``-o json`` prints it).
JSON_MODES = ("full", "compact", "event")
ERROR_CHARS = 120
#: A status line leaves this place empty: a cursor in the last column wraps.
_LAST_COLUMN = 1
_ERASE = "\r\x1b[2K"
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
#: For terminals of another encoding.
_PLAIN = str.maketrans("●◐✓✗◆│┊—›…␛", "*>+xo||-><^")
_SHORT = {
    "error_occurred": "er",
    "message_received": "mr",
    "message_streamed": "ms",
    "run_cancelled": "rx",
    "run_completed": "rc",
    "run_failed": "rf",
    "run_started": "rs",
    "token_usage_updated": "tu",
    "tool_call_completed": "tc",
    "tool_call_started": "ts",
}


class Sink:
    """Takes what was rendered; each method may be left as it is."""

    #: How reports call it.
    name = "sink"

    def open(self) -> None:
        """Get ready. What this raises, the caller gets, and nothing begins."""

    def write(self, event: Event, text: str) -> Any:
        """Take an event and its text, which may be empty. Under ``arender`` it may return an awaitable."""

    def remark(self, text: str) -> None:
        """Take text that belongs to no event: the last words, the end of a line."""

    def status(self, text: str) -> None:
        """Show what goes on right now ("" is nothing), until something is written."""

    def flush(self) -> None:
        """Have what was written where it belongs."""

    def close(self) -> None:
        """Give back what ``open`` took. Called once, also after a failure."""


class TerminalSink(Sink):
    """Text on a stream, at once. ``err``: where pieces go that a command wrote to its stderr (None: ``out``).

    ``color``: whether colours are left in the text; None asks ``wants_color``.
    ``width``: columns of a terminal on which the status is shown, or what says how many it has by now; None
    shows none.
    """

    name = "terminal"

    def __init__(
        self,
        out: IO[str],
        *,
        err: IO[str] | None = None,
        width: int | Callable[[], int] | None = None,
        color: bool | None = None,
    ) -> None:
        self._out = out
        self._err = err or out
        self._color = wants_color(out) if color is None else color
        self._width = width
        self._status = ""

    def write(self, event: Event, text: str) -> None:
        """Print it."""
        self._print(self._err if is_stderr(event) else self._out, text)

    def remark(self, text: str) -> None:
        """Print it."""
        self._print(self._out, text)

    def status(self, text: str) -> None:
        """Show it behind what was written last."""
        if self._width is None or text == self._status:
            return
        width = self._width() if callable(self._width) else self._width
        line = fitted(text, width - _LAST_COLUMN)
        _put(self._out, (_ERASE if self._status else "") + line)
        self._status = text

    def _print(self, stream: IO[str], text: str) -> None:
        if not text:
            return
        if self._status:
            _put(self._out, _ERASE)
            self._status = ""
        _put(stream, text if self._color else _COLOR.sub("", text))

    def close(self) -> None:
        """Take the status away; the stream stays open."""
        self.status("")


def wants_color(stream: IO[str]) -> bool:
    """Whether it is a terminal that shows colours, and whose owner did not say NO_COLOR."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _put(stream: IO[str], text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = getattr(stream, "encoding", None) or "ascii"
        stream.write(text.translate(_PLAIN).encode(encoding, "replace").decode(encoding))
    stream.flush()


class _Writer(Sink):
    """A sink on a file: of its own, when it was given by its path."""

    def __init__(self, target: str | os.PathLike[str] | IO[str]) -> None:
        self._path = Path(target) if isinstance(target, str | os.PathLike) else None
        self._file: IO[str] | None = None if isinstance(target, str | os.PathLike) else target
        self.name = f"{type(self).__name__}({self._path or 'a stream'})"

    def open(self) -> None:
        """Begin the file anew. A pipe that nobody reads is refused instead of waited for."""
        if self._path is None:
            return
        descriptor = os.open(
            self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK, 0o666
        )
        os.set_blocking(descriptor, True)
        self._file = os.fdopen(descriptor, "w", encoding="utf-8", errors="replace", newline="")

    def _save(self, text: str) -> None:
        if text:
            if self._file is None:
                raise InvalidState(f"{self.name} is closed", code="stream_closed")
            self._file.write(text)
            self._file.flush()

    def flush(self) -> None:
        """Onto the disk, when it is a file of our own."""
        if self._file is not None and self._path is not None and self._path.is_file():
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, when it is our own."""
        if self._path is not None and self._file is not None:
            file, self._file = self._file, None
            file.close()


class FileSink(_Writer):
    """The text in a file, without colours and whatever else only a terminal understands.

    A path is begun anew and closed at the end; a stream is left open.
    """

    def __init__(self, target: str | os.PathLike[str] | IO[str]) -> None:
        super().__init__(target)
        self._cleaner = Cleaner()

    def write(self, event: Event, text: str) -> None:  # noqa: ARG002 - the text is what counts
        """Append the text."""
        self._save(self._cleaner.feed(text))

    def remark(self, text: str) -> None:
        """Append the text."""
        self._save(self._cleaner.feed(text))

    def flush(self) -> None:
        """All of it, also the half of an escape sequence."""
        self._save(self._cleaner.flush())
        super().flush()


class JsonLinesSink(_Writer):
    """Each event as one line of JSON, whatever the renderer made of it.

    ``mode``: ``full`` has ts (ISO-8601), type, data, session_id, run_id; ``compact`` is ``{"t": ms, "e":
    {...}}`` with abbreviated names and lengths in place of texts; ``event`` is the whole record.

    Raises:
        InvalidArgument: no such mode.
    """

    def __init__(self, target: str | os.PathLike[str] | IO[str], *, mode: str = "full") -> None:
        if mode not in JSON_MODES:
            raise InvalidArgument(f"mode is one of {', '.join(JSON_MODES)}, not {shown(mode)}")
        super().__init__(target)
        self._form = {"full": full_form, "compact": compact_form, "event": Event.to_map}[mode]

    def write(self, event: Event, text: str) -> None:  # noqa: ARG002 - the event is what counts
        """Append the event."""
        self._save(json_line(self._form(event)) + "\n")


def full_form(event: Event) -> dict[str, Any]:
    """What happened, without what is None."""
    form = {
        "ts": event.time,
        "type": event.type,
        "data": event.data,
        "session_id": event.session_id,
        "run_id": event.run_id,
    }
    return {name: value for name, value in form.items() if value is not None}


def compact_form(event: Event) -> dict[str, Any]:
    """The same in few bytes: for statistics, not for reading back."""
    short = {"t": _SHORT.get(event.type, event.type), **_few(event.type, event.data)}
    return {"t": int(event.ts * 1000), "e": {k: v for k, v in short.items() if v not in (None, "")}}


def _few(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    if kind == "run_started":
        return {"m": short_model(data.get("model"))}
    if kind == "message_streamed":
        return {"l": len(as_text(data.get("content") or data.get("delta")).encode("utf-8", "replace"))}
    if kind in ("tool_call_started", "tool_call_completed"):
        output = as_text(data.get("tool_output"))
        return {"n": as_text(data.get("tool_name")), "l": len(output.encode("utf-8", "replace")) or None}
    if kind == "token_usage_updated":
        price = cost(data, 9).removeprefix("$")
        counts = {"i": number(data.get("input_tokens")), "o": number(data.get("output_tokens"))}
        return {**counts, "$": float(price) if price else None}
    if kind == "run_completed":
        return {"sr": short_reason(data.get("stop_reason"))}
    if kind in ("run_failed", "error_occurred"):
        return {"x": preview(failure_text(data), ERROR_CHARS)}
    return {}


class CallbackSink(Sink):
    """A function of the event and its text. Under ``arender`` it may be a coroutine function.

    Raises:
        InvalidArgument: it cannot be called.
    """

    name = "callback"

    def __init__(self, function: Callable[[Event, str], Any]) -> None:
        if not callable(function):
            raise InvalidArgument(f"a callback is a function of event and text, not {shown(function)}")
        self._function = function

    def write(self, event: Event, text: str) -> Any:
        """Call it."""
        return self._function(event, text)


__all__ = [
    "JSON_MODES",
    "CallbackSink",
    "FileSink",
    "JsonLinesSink",
    "Sink",
    "TerminalSink",
    "compact_form",
    "full_form",
    "wants_color",
]
