"""Server-sent events: bytes in, events out. Pure.

The libraries' own streams build checked objects of every event, at 100 to 350 us each; what an answer needs
of one is a few fields of a map (``tests/bench/providers.py``).
"""

from __future__ import annotations

from typing import Any

import msgspec

#: One event; a larger one is no answer of a model.
EVENT_BYTES_MAX = 16 * 1024 * 1024
DONE = b"[DONE]"


class Events:
    """The events of one stream, each the map that its data is."""

    def __init__(self) -> None:
        self._left = b""
        self._more: list[bytes] = []  #: what came behind it without a line's end
        self._bytes = 0

    def feed(self, chunk: bytes) -> list[dict[str, Any]]:
        """What is whole after this chunk. ``[DONE]`` and events without data are no events.

        Raises:
            ValueError: data that is no JSON object, or more of it than ``EVENT_BYTES_MAX``.
        """
        if b"\n" not in chunk:  # a large event comes in many chunks: they are joined once
            self._more.append(chunk)
            self._count(self._bytes + len(chunk))
            return []
        left = b"".join((self._left, *self._more, chunk)) if self._bytes else chunk
        self._more.clear()
        if b"\r" in left:
            left = left.replace(b"\r\n", b"\n")
        *events, self._left = left.split(b"\n\n")
        self._count(len(self._left))
        return [decoded(data) for event in events if (data := _data(event)) and data != DONE]

    def _count(self, left: int) -> None:
        self._bytes = left
        if left > EVENT_BYTES_MAX:
            raise ValueError(f"an event of more than {EVENT_BYTES_MAX} bytes")


def _data(event: bytes) -> bytes:
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = (line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(lines)


def decoded(data: bytes) -> dict[str, Any]:
    """The map that an event's data is.

    Raises:
        ValueError: it is none.
    """
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ValueError(f"no JSON: {data[:60]!r}: {exc}") from exc
    if type(found) is not dict:
        raise ValueError(f"no JSON object: {data[:60]!r}")
    return found


__all__ = ["DONE", "EVENT_BYTES_MAX", "Events", "decoded"]
