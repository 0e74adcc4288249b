"""A message of the feed, as a listener gives it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import msgspec


class Place(Protocol):
    """Where a listener stood."""

    def cursor(self, number: int) -> str:
        """The cursor behind the message of that number."""


class Notification(msgspec.Struct, frozen=True):
    """A message of the feed."""

    topic: str
    data: dict[str, Any]
    place: str | Place  #: a cursor, or who makes one of the number
    number: int = 0

    @property
    def cursor(self) -> str:
        """Opaque: pass it to ``listen(after=...)`` to go on behind this message."""
        return self.place if isinstance(self.place, str) else self.place.cursor(self.number)

    def __iter__(self) -> Iterator[Any]:
        """``topic, data, cursor = notification``."""
        return iter((self.topic, self.data, self.cursor))


__all__ = ["Notification", "Place"]
