"""Text that is fit for a terminal: cleaned of control, cut to a length, measured in columns, coloured.

What an agent says is anybody's text. A terminal obeys some of it: it moves the cursor, renames the window,
answers questions into the keyboard, writes over what stood there. So nothing of it reaches a terminal raw.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from mesh.core.plain import to_json
from mesh.errors import MeshError, shown

#: An escape sequence that is not over after so many characters is none.
HELD_CHARS_MAX = 4096
#: A preview is made of so many times its length: the rest may be escape sequences and blanks.
_PREVIEW_FACTOR = 4

# No text makes a search slow: what one part may repeat, the next cannot begin with, and no sequence reaches
# over the beginning of another one.
_CSI = r"(?:\x1b\[|\x9b)[0-?]*[ -/]*"
_STRING = r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*"
_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069"
_SUSPECT = re.compile(f"[{_CONTROL}]")
_FOUND = re.compile(
    rf"{_CSI}[@-~]|{_STRING}(?:\x07|\x1b\\|\x9c)|\x1b[ -/]*[0-~]|\r+\n?|[{_CONTROL}]"
)
#: An end that may still become one of them.
_BEGUN = re.compile(rf"(?:{_CSI}|{_STRING}\x1b?|\x1b[ -/]*|(?<!\r)\r+)\Z")
_COLORS = {"red": "31", "green": "32", "blue": "34", "magenta": "35", "cyan": "36", "dim": "2"}


class Cleaner:
    """Takes control out of a text that comes in pieces, cut anywhere.

    Escape sequences are removed, however they are cut; a carriage return begins a new line; what else is
    control becomes visible (``␛``), so that nothing is hidden. Tabs and newlines stay.
    """

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> str:
        """What of it can be shown by now; an end that may be half an escape sequence waits."""
        text = self._held + piece
        self._held = ""
        if not _SUSPECT.search(text):
            return text
        begun = _BEGUN.search(text)
        if begun is not None and len(text) - begun.start() <= HELD_CHARS_MAX:
            self._held = text[begun.start() :]
            text = text[: begun.start()]
        return _FOUND.sub(_replaced, text)

    def flush(self) -> str:
        """What waited: there will be no more."""
        text, self._held = self._held, ""
        return _FOUND.sub(_replaced, text)


def _replaced(found: re.Match[str]) -> str:
    text = found[0]
    if text[0] == "\r" or text in "\u2028\u2029":
        return "\n"
    if len(text) > 1:
        return ""
    code = ord(text)
    if code == 0x7F:
        return "␡"
    return chr(0x2400 + code) if code < 0x20 else "\ufffd"


def clean(text: str) -> str:
    """A whole text without control."""
    cleaner = Cleaner()
    return cleaner.feed(text) + cleaner.flush()


def as_text(value: Any) -> str:
    """A text as it is, nothing for None, anything else as one line of JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    try:
        return to_json(value)
    except MeshError:
        return shown(value)


def json_line(value: Any) -> str:
    """One line of JSON without control, which JSON itself forbids only below U+0020."""
    return _SUSPECT.sub(lambda found: f"\\u{ord(found[0]):04x}", to_json(value))


def preview(value: Any, limit: int) -> str:
    """The beginning of a value on one line: clean, blanks collapsed, ``...`` where it was cut."""
    text = as_text(value)
    line = " ".join(clean(text[: _PREVIEW_FACTOR * limit]).split())
    if len(line) > limit:
        return line[:limit] + "..."
    return line + "..." if len(text) > _PREVIEW_FACTOR * limit else line


def columns(text: str) -> int:
    """How many places a line takes on a terminal."""
    return sum(map(_places, text))


def _places(char: str) -> int:
    if " " <= char <= "~":
        return 1
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def fitted(line: str, width: int) -> str:
    """The line, cut where it would not fit into so many places."""
    if columns(line) <= width:
        return line
    taken = 0
    for place, char in enumerate(line):
        taken += _places(char)
        if taken > width - 1:
            return line[:place] + "…"
    return line


class Ink:
    """Colours, or none: ``ink("red", text)``."""

    def __init__(self, color: bool) -> None:
        self.color = color

    def __call__(self, name: str, text: str) -> str:
        return f"\x1b[{_COLORS[name]}m{text}\x1b[0m" if self.color and text else text


__all__ = [
    "HELD_CHARS_MAX",
    "Cleaner",
    "Ink",
    "as_text",
    "clean",
    "columns",
    "fitted",
    "json_line",
    "preview",
]
