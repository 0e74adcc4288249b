"""One line per fact on stderr: time, who, what, ``key=value`` fields.

A child's stderr is its file in ``data_dir/logs``. One line is one write, so that processes which share a
file or a terminal do not mix within a line. What looks like a secret is replaced, always.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from mesh.core.redact import Redactor

STDERR = 2
_REDACTOR = Redactor()
LINE_BYTES_MAX = 16 * 1024


class Log:
    """A logger for one process. ``prefix`` goes before each line: a terminal clears its status line so."""

    def __init__(self, name: str, *, fd: int = STDERR, prefix: bytes = b"") -> None:
        self.name = name
        self._fd = fd
        self._prefix = prefix

    def write(self, message: str, **fields: Any) -> None:
        """Write one line; a field that is None is left out. A full disk or closed stderr stops nobody."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        pairs = "".join(f" {key}={_text(value)}" for key, value in fields.items() if value is not None)
        line = redacted(" ".join(f"{now} {self.name} {message}{pairs}".split("\n")))
        with suppress(OSError):
            os.write(self._fd, self._prefix + line.encode(errors="replace")[:LINE_BYTES_MAX] + b"\n")


def redacted(text: str) -> str:
    """A text for a log, or about a death: a marker in the place of every secret, whatever the settings."""
    return _REDACTOR.text(text)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if text and text.isprintable() and " " not in text else json.dumps(text)


__all__ = ["Log", "redacted"]
