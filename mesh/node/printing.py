"""What agents print, marked with the session and run that printed it.

``sys.stdout`` and ``sys.stderr`` of a runner are its log file. Each line printed inside a run begins with
``[session_id run_id] ``, from the loop and from the threads of plain functions alike, so that
``mesh logs --session ID`` can find it. What an agent's own subprocess writes is not marked.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from contextlib import suppress
from typing import Any, BinaryIO

from mesh.node.drive import RUN_TAG

#: An unfinished line is held back until so much of it is there.
LINE_CHARS_MAX = 16 * 1024


class Marked(io.TextIOBase):
    """A text stream that marks lines and writes each in one go."""

    encoding = "utf-8"

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._partial: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def buffer(self) -> BinaryIO:
        """The unmarked bytes, for those who write bytes."""
        return open(self._fd, "wb", buffering=0, closefd=False)

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The descriptor below."""
        return self._fd

    def write(self, text: str) -> int:
        """Write the finished lines; the rest waits for its end."""
        tag = RUN_TAG.get()
        with self._lock:
            held = self._partial.pop(tag, "") + text
            lines, newline, rest = held.rpartition("\n")
            if len(rest) > LINE_CHARS_MAX:
                lines, newline, rest = held, "\n", ""
            if rest:
                self._partial[tag] = rest
        if newline:
            self._out(tag, lines)
        return len(text)

    def finish(self, tag: str) -> None:
        """A run is over: write its unfinished line."""
        if self._partial:
            with self._lock:
                rest = self._partial.pop(tag, "")
            if rest:
                self._out(tag, rest)

    def _out(self, tag: str, lines: str) -> None:
        mark = f"[{tag}] " if tag else ""
        text = "".join(f"{mark}{line}\n" for line in lines.split("\n"))
        with suppress(OSError):  # a full disk stops nobody
            os.write(self._fd, text.encode(errors="replace"))


def install() -> tuple[Marked, Marked]:
    """Replace ``sys.stdout`` and ``sys.stderr`` of this process; returns both, to be told of ended runs."""
    streams: tuple[Any, Any] = (Marked(1), Marked(2))
    sys.stdout.flush()
    sys.stderr.flush()
    sys.stdout, sys.stderr = streams
    return streams


__all__ = ["LINE_CHARS_MAX", "Marked", "install"]
