"""Choices out of bytes: what a fuzzer mutates becomes numbers, picks and values, the same way each time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from mesh.core import wire
from mesh.errors import MeshError

T = TypeVar("T")

#: Edges of what msgpack carries, and words that mean something to some op.
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    100,
    4096,
    2**31,
    2**32 - 1,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -(2**63),
    0.0,
    -0.0,
    1.5,
    float("nan"),
    float("inf"),
    float("-inf"),
    1e308,
    "",
    "a",
    "x" * 200,
    "\x00\x1f\x7f",
    "é",
    "../x",
    ".",
    "..",
    "s1",
    "s2",
    "s.3",
    "a:b:c",
    "a:b:c:d",
    "a:b:%3A",
    "a:b:%ZZ",
    ":::",
    "echo",
    "nobody",
    "follow_up",
    "active",
    "pending",
    "run_started",
    "run_id",
    "limit",
    "after",
    b"",
    b"\x00",
    b"\xff" * 40,
    [],
    [[]],
    {},
    {"": None},
    {1: 2},
    {"external_room_id": "r"},
    {"external_room_id": None},
    {"prompt": "hi"},
    {"messages": [{"role": "user", "content": "hi"}]},
    {"messages": [{"content": {1: [2]}}]},
    {"code": "x", "message": "m"},
    {"code": 1},
    {"tags": ["t"], "context": {}},
    {"tags": "t"},
    {"metadata": {"correlation_id": 7}},
    {"required_capabilities": ["sampling"]},
    {"deadline_s": 0.5},
    {"provider_opts": {}},
    {"after": 0, "limit": 1},
    {"type": [[]]},
    {"type": {}},
    {"since": float("nan")},
)


class Dice:
    """Reads choices from bytes; when they are used up every choice is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def empty(self) -> bool:
        """Whether there is nothing left to choose with."""
        return self._at >= len(self._data)

    def take(self, count: int) -> bytes:
        """The next bytes; fewer at the end."""
        self._at += count
        return self._data[self._at - count : self._at]

    def below(self, count: int) -> int:
        """A number from 0 to count - 1 (at most 65 535)."""
        return int.from_bytes(self.take(1 if count <= 256 else 2)) % count

    def pick(self, choices: Sequence[T]) -> T:
        """One of them."""
        return choices[self.below(len(choices))]

    def number(self, bits: int) -> int:
        """A number of that many bits, of its edges more often than not."""
        edges = (0, 1, 2, (1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1)
        return self.pick(edges) if self.below(4) else int.from_bytes(self.take(bits // 8))

    def value(self, depth: int = 3) -> Any:
        """Something that msgpack carries, as it arrives: tuples are lists."""
        how = self.below(8)
        if how < 4 or depth == 0:
            return self.pick(VALUES)
        if how == 4:
            return [self.value(depth - 1) for _ in range(self.below(4))]
        if how == 5:
            keys = [
                self.pick(("external_room_id", "after", "limit", "x", "", "code"))
                for _ in range(self.below(4))
            ]
            return {key: self.value(depth - 1) for key in keys}
        if how == 6:
            return nested(self.below(600), self.below(2) == 1)
        try:
            return wire.unpack(self.take(self.below(24)))
        except MeshError:
            return None


def nested(depth: int, maps: bool) -> Any:
    """Arrays or maps in each other."""
    value: Any = 1
    for _ in range(depth):
        value = {"d": value} if maps else [value]
    return value


__all__ = ["VALUES", "Dice", "nested"]
