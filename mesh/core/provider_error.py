"""What a provider says about its failure: one stable, bounded payload, whoever the provider is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mesh.core.plain import plain
from mesh.core.record import Record, Text

#: How stderr is cut: so many lines first, then so many bytes, never half a character.
STDERR_LINES_MAX = 200
STDERR_BYTES_MAX = 16_384
MESSAGE_CHARS_MAX = 2_000
UNKNOWN = "unknown"
KINDS = frozenset((
    "transport_exit", "process_error", "parse_error", "protocol_error", "cli_not_found", "timeout", UNKNOWN,
))
NO_MESSAGE = "the provider failed without a message"
_WHOLE = re.compile(r"\s*[+-]?\d{1,9}\s*", re.ASCII)
#: Keys of an error's details that move into the payload.
_MOVED = frozenset(("stderr", "stderr_truncated", "stderr_truncated?", "exit_code", "exit_status"))


class ProviderError(Record, frozen=True):
    """A provider's failure: ``kind`` is of ``KINDS``, ``truncated`` True when stderr was cut, else None."""

    provider: Text
    kind: Text
    message: Text
    exit_code: int | None = None
    stderr: str | None = None
    truncated: bool | None = None

    @classmethod
    def of(
        cls,
        provider: Any = None,
        kind: Any = None,
        message: Any = None,
        *,
        exit_code: Any = None,
        stderr: Any = None,
        truncated: Any = None,
        details: Mapping[str, Any] | None = None,
    ) -> ProviderError:
        """Build from what is there, of any type; what is missing is looked for in ``details``.

        The exit code may be a numeric text, and stand in ``details`` as ``exit_code`` or ``exit_status``. The
        message is the first that says something of: ``message``, the details' one, stderr's first line.
        """
        details = details or {}
        whole = _text(stderr) if stderr is not None else _text(details.get("stderr"))
        cut = None if whole is None else cut_stderr(whole)
        codes = (exit_code, details.get("exit_code"), details.get("exit_status"))
        was_cut = truncated is True or details.get("stderr_truncated") is True or cut != whole
        said = (_text(message), _text(details.get("message")), _first_line(whole), NO_MESSAGE)
        return cls(
            provider=_said(_text(provider)) or UNKNOWN,
            kind=kind if isinstance(kind, str) and kind in KINDS else UNKNOWN,
            message=next(text for text in said if _said(text))[:MESSAGE_CHARS_MAX],  # type: ignore[index]
            exit_code=next((code for code in map(_whole, codes) if code is not None), None),
            stderr=cut,
            truncated=True if was_cut else None,
        )


def details_left(details: Mapping[str, Any]) -> dict[str, Any]:
    """An error's details without what its provider error says already."""
    return {key: value for key, value in details.items() if key not in _MOVED}


def cut_stderr(text: str) -> str:
    """The first 200 lines and 16 384 bytes, never half a character."""
    lines = text.split("\n", STDERR_LINES_MAX)
    if len(lines) > STDERR_LINES_MAX:
        text = "\n".join(lines[:STDERR_LINES_MAX]) + "\n"
    encoded = text.encode(errors="replace")
    return encoded[:STDERR_BYTES_MAX].decode(errors="ignore")


def _text(value: Any) -> str | None:
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode(errors="replace")
    return str(plain(value)) if isinstance(value, str) else None


def _said(text: str | None) -> str | None:
    return text if text is not None and text.strip() else None


def _first_line(text: str | None) -> str | None:
    return next((line.strip() for line in (text or "").split("\n") if line.strip()), None)


def _whole(value: Any) -> int | None:
    if type(value) is int:
        return value if abs(value) < 2**31 else None
    return int(value) if isinstance(value, str) and _WHOLE.fullmatch(value) else None


__all__ = [
    "KINDS", "MESSAGE_CHARS_MAX", "NO_MESSAGE", "STDERR_BYTES_MAX", "STDERR_LINES_MAX", "UNKNOWN",
    "ProviderError", "cut_stderr", "details_left",
]
