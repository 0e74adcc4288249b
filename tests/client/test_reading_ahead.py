"""A long log: the next page is asked for before the former is read, by both clients."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from conditions import wait_for
from fake_node import FakeNode

import mesh
from mesh.client import _surface_sessions as plans
from mesh.core.wire import Header, Kind

PAGE, PAGES = 3, 4


def log(filters: dict[str, Any] | None, *, says_where: bool = True) -> list[Any]:
    """A page of a log of PAGES pages."""
    after = (filters or {}).get("after") or 0
    rows = [
        {"id": f"evt_{seq}", "type": "message_streamed", "session_id": "s", "run_id": None, "seq": seq,
         "ts": 1.0, "data": {}, "metadata": {}, "provider": "echo", "correlation_id": None,
         "schema_version": 1}
        for seq in range(after + 1, after + PAGE + 1)
    ]
    complete = after + PAGE >= PAGE * PAGES
    return [rows, complete] if complete or not says_where else [rows, False, 0, after + PAGE]


def asked(fake: FakeNode) -> int:
    return fake.ops().count("session.events")


def read(fake: FakeNode, kind: str) -> Sequence[mesh.Event]:
    """The log, by the blocking or by the asyncio client."""
    if kind == "blocking":
        with mesh.Client(fake.address) as client:
            return client.sessions.events("s")

    async def main() -> Sequence[mesh.Event]:
        async with mesh.AsyncClient(fake.address) as client:
            return await client.sessions.events("s")

    return asyncio.run(main())


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_the_next_page_is_on_its_way_while_one_is_read(
    fake: FakeNode, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a page says where the log goes on, then the node has the next question before the page is read."""
    reads: list[int] = []

    def events_of(value: Any) -> Any:
        reads.append(1)
        wait_for(lambda: asked(fake) >= min(len(reads) + 1, PAGES), "the next question")
        return read_now(value)

    read_now = plans.events_of
    monkeypatch.setattr(plans, "events_of", events_of)
    fake.script = lambda header, calls: _answer(header, calls)
    assert [event.seq for event in read(fake, kind)] == list(range(1, PAGE * PAGES + 1))
    assert len(reads) == asked(fake) == PAGES


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_a_node_that_does_not_say_where_is_read_page_by_page(fake: FakeNode, kind: str) -> None:
    """If a page has no last seq (an older node), then its last event tells where to go on."""
    fake.script = lambda header, calls: _answer(header, calls, says_where=False)
    assert [event.seq for event in read(fake, kind)] == list(range(1, PAGE * PAGES + 1))
    assert asked(fake) == PAGES


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_a_page_that_makes_no_sense_is_an_error_and_the_client_goes_on(fake: FakeNode, kind: str) -> None:
    """If a page cannot be read while the next one is on its way, then it is said, and the client goes on."""
    fake.script = lambda header, calls: _answer(header, calls, [["no event"], False, 0, PAGE])
    with pytest.raises(mesh.MeshError, match="not a page of events"):
        read(fake, kind)
    with mesh.Client(fake.address) as client:
        with pytest.raises(mesh.MeshError, match="not a page of events"):
            client.sessions.events("s")
        assert client.ping() > 0


def _answer(header: Header, calls: list[Any], page: Any = None, *, says_where: bool = True) -> Any:
    if header.kind != Kind.READ or calls[0][0] != "session.events":
        return None
    return [[0, page or log(args[1], says_where=says_where)] for _, args in calls]
