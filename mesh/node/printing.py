"""What agents print, marked with the session and run that printed it.

``sys.stdout`` and ``sys.stderr`` of a runner are its log file. Each line printed inside a run begins with
``[session_id run_id] ``, from the loop and from the threads of plain functions alike, so that
``mesh logs --session ID`` can find it. What an agent's own subprocess writes is not marked.

Secrets are replaced on the way, also when a line holds only a part of one; what a subprocess or a C library
writes to the descriptors themselves does not pass here.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from contextlib import suppress
from typing import Any, BinaryIO, cast

from mesh.core.redact import Redactor
from mesh.core.redact_stream import Stream
from mesh.node.drive import RUN_TAG

#: An unfinished line is held back until so much of it is there.
LINE_CHARS_MAX = 16 * 1024
#: Runs whose prints are remembered, so that a secret over two lines is found; the oldest is forgotten.
TEXTS_MAX = 10_000


class Marked(io.TextIOBase):
    """A text stream that marks lines and writes each in one go."""

    encoding = "utf-8"

    def __init__(self, fd: int, redactor: Redactor) -> None:
        self._fd = fd
        self._redactor = redactor
        self._texts: dict[str, Stream] = {}
        self._partial: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def buffer(self) -> BinaryIO:
        """For those who write bytes: they are taken as text."""
        return cast(BinaryIO, _Bytes(self))

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
            held = self._partial.pop(tag, "") + self._without_secrets(tag, text)
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
        if self._partial or self._texts:
            with self._lock:
                rest = self._partial.pop(tag, "")
                kept = self._texts.pop(tag, None)
                if kept is not None:
                    rest += kept.end()
            if rest:
                self._out(tag, rest)

    def _without_secrets(self, tag: str, text: str) -> str:
        """A line waits for its end alone, not for what may follow: only half a secret is held back."""
        kept = self._texts.get(tag)
        if kept is None:
            fresh = self._redactor.stream()
            if fresh is None:
                return text
            if len(self._texts) >= TEXTS_MAX:
                del self._texts[next(iter(self._texts))]
            kept = self._texts[tag] = fresh
        shown = kept.feed(text)
        return shown + kept.release()

    def _out(self, tag: str, lines: str) -> None:
        mark = f"[{tag}] " if tag else ""
        text = "".join(f"{mark}{line}\n" for line in lines.split("\n"))
        with suppress(OSError):  # a full disk stops nobody
            os.write(self._fd, text.encode(errors="replace"))


class _Bytes(io.RawIOBase):
    """Bytes that are written to a text stream."""

    def __init__(self, text: Marked) -> None:
        self._text = text

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """Write the bytes as UTF-8; what is none is replaced."""
        taken = bytes(data)
        self._text.write(taken.decode(errors="replace"))
        return len(taken)


def install(redactor: Redactor) -> tuple[Marked, Marked]:
    """Replace ``sys.stdout`` and ``sys.stderr`` of this process; returns both, to be told of ended runs."""
    streams: tuple[Any, Any] = (Marked(1, redactor), Marked(2, redactor))
    sys.stdout.flush()
    sys.stderr.flush()
    sys.stdout, sys.stderr = streams
    return streams


__all__ = ["LINE_CHARS_MAX", "TEXTS_MAX", "Marked", "install"]
