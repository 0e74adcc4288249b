"""Cursors come from callers, so from anywhere: changed anywhere, they are refused or name another place."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mesh
from mesh.client._surface import encode_cursor
from mesh.core import wire
from mesh.errors import MeshError

WRONG: tuple[Any, ...] = (
    None, True, -1, 7, 2**63, 0.5, float("nan"), "x", b"x", [], [[1]], {}, {"a": 1}, {9: 1},
)
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def client() -> Iterator[mesh.Client]:
    """A node with more than a page of everything."""
    with mesh.LocalNode() as node, node.client(timeout_s=20.0) as opened:
        for sid in ("s", "t"):
            opened.sessions.start("echo", id=sid)
        for number in range(4):
            opened.run_once("echo", "x")
            opened.runs.wait(opened.runs.submit("s", "x").id)
            opened.routes.set(f"a:b:r{number}", {"external_room_id": "1"})
        yield opened


def changed(value: Any) -> Iterator[Any]:
    """A value with something else at each of its places."""
    yield from WRONG
    if isinstance(value, list):
        yield from (value[:-1], [*value, 1])
        for place, one in enumerate(value):
            yield from ([*value[:place], other, *value[place + 1 :]] for other in changed(one))
    if isinstance(value, dict):
        for key, one in value.items():
            yield from ({**value, key: other} for other in changed(one))
            rest = {name: other for name, other in value.items() if name != key}
            yield from ({**rest, wrong: one} for wrong in (-1, 99, "0", 2**63))


ASKS: dict[str, Ask] = {
    "sessions": lambda c, **at: c.sessions.list(limit=1, **at),
    "routes": lambda c, **at: c.routes.list(limit=1, **at),
    "found sessions": lambda c, **at: c.sessions.search(limit=1, **at),
    "used runs": lambda c, **at: c.runs.search(limit=1, order="token_usage_desc", **at),
    "events": lambda c, **at: c.events.search(limit=1, **at),
    "events of one": lambda c, **at: c.events.search(session_ids=["s"], limit=1, **at),
    "entries": lambda c, **at: c.audit.list(limit=1, **at),
}


@pytest.mark.parametrize("what", ASKS)
def test_a_cursor_changed_anywhere_is_refused_or_another_place(client: mesh.Client, what: str) -> None:
    """If any part of a cursor is changed, then it is invalid_cursor or a page, and the client goes on."""
    ask = ASKS[what]
    true = ask(client).cursor
    codes = set()
    for forged in changed(decoded(true)):
        try:
            ask(client, cursor=encode_cursor(forged))
        except MeshError as error:
            codes.add(error.code)
    assert codes == {"invalid_cursor"}
    assert ask(client, cursor=true).missing == ()


def decoded(cursor: str) -> Any:
    """What a cursor holds."""
    return wire.unpack(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
