"""How many runs a runner executes at a time: the others, claimed for it already, wait in its line.

The limit is the node's, divided between its runners, and kept where runs execute: so it is exact whatever
partitions send, and whoever dies takes the places he held along.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


def share(total: int, index: int, count: int) -> int:
    """What one of ``count`` gets of a number; all shares together are the number."""
    return total // count + (index < total % count)


class Admission(Generic[T]):
    """Places for ``limit``, and a line in the order of arrival."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.inside: set[T] = set()
        self.line: dict[T, None] = {}

    def enter(self, one: T) -> bool:
        """Whether it may begin now; else it waits in the line."""
        if len(self.inside) < self.limit and not self.line:
            self.inside.add(one)
            return True
        self.line[one] = None
        return False

    def leave(self, one: T) -> T | None:
        """It is over, inside or in the line; whoever may begin now in its place."""
        self.line.pop(one, None)
        self.inside.discard(one)
        if len(self.inside) >= self.limit or not self.line:
            return None
        first = next(iter(self.line))
        del self.line[first]
        self.inside.add(first)
        return first


__all__ = ["Admission", "share"]
