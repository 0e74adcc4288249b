"""What the tests of the route table share: a table, short calls, the specification's keys and routes."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.config import RoutesSection
from mesh.core import wire
from mesh.core.route_record import (
    decode_record,
)
from mesh.core.routes import RouteTable
from mesh.errors import InvalidArgument, NotFound

K = "telegram:bot_1:room_1"
KT = "telegram:bot_1:room_1:t1"
R = {"external_room_id": "ext-r"}
F = {"external_room_id": "ext-f"}
G = {"external_room_id": "ext-g"}
TTL = 1_000
GUESS = 300


def table(capacity: int = 100, *, memory: int = 100, ttl: int = TTL, guess: int = GUESS) -> RouteTable:
    settings = RoutesSection(
        ttl_ms=ttl, guess_ttl_ms=guess, max_entries_per_partition=capacity, expired_memory_max=memory
    )
    return RouteTable(settings, route_bytes_max=4096, partition=3)


def value(reply: bytes) -> Any:
    status, result = wire.unpack(reply)
    assert status == 0
    return result


def put(t: RouteTable, key: str, route: dict[str, Any], now: int, ttl: int | None = None) -> None:
    assert t.set([key, route, ttl], now, []) == wire.OK_NIL


def get(t: RouteTable, key: str, now: int) -> Any:
    return value(t.get([key], now))


def resolve(t: RouteTable, key: str, now: int, *fallbacks: Any) -> Any:
    return value(t.resolve([key, list(fallbacks)], now))


def code(call: Any, *args: Any) -> str:
    with pytest.raises((NotFound, InvalidArgument)) as caught:
        call(*args)
    return caught.value.code


#: The states of an entry in the resolution table (2.5); "gone" is expired and removed.
GONE, EXPIRED, LIVE, MISSING = "gone", "expired", "live", "missing"


def arrange(e: str, r: str, key: str) -> tuple[RouteTable, int]:
    """A table at time 100 with the exact entry and the room entry in the wanted states."""
    t = table()
    for name, state, route in ((K, r, R), (key, e, {"external_room_id": "ext-e"})):
        if state != MISSING:
            put(t, name, route, 0, TTL if state == LIVE else 50)
            if state == GONE:
                t.prune([], 100, [])
    return t, 100


def run(undo: list[Any]) -> None:
    for step in reversed(undo):
        step()


def content(t: RouteTable) -> dict[str, Any]:
    return {key: decode_record(record) for key, record in t.entries.items()}


def notes_of(t: RouteTable) -> list[tuple[str, dict[str, Any]]]:
    t.notes, notes = [], t.notes
    return [
        (what, {k: v for k, v in fields.items() if k not in ("component", "partition", "count")})
        for what, fields in notes
    ]
