"""Values of the user's own types, through a real node and back, and the records that hold them."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import mesh

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
TEXT = "2026-11-21T12:00:00+00:00"


@dataclasses.dataclass
class Order:
    id: UUID
    total: Decimal
    at: datetime
    tags: frozenset[str]


ORDER = Order(UUID(int=1), Decimal("1.50"), NOON, frozenset(("b", "a")))
STORED = {"id": str(UUID(int=1)), "total": "1.50", "at": TEXT, "tags": ["a", "b"]}


@pytest.fixture
def node_config(agents_file: Path) -> dict[str, Any]:
    """One agent that gives back what it was given."""
    source = "async def mirror(run):\n    return {'input': run.input, 'context': run.context}\n"
    agents_file.write_text(source)
    return {"agents": {"mirror": {"provider": "python", "target": f"{agents_file}:mirror"}}}


def test_values_of_the_caller_arrive_as_the_table_says(client: mesh.Client) -> None:
    """If context, metadata, input and routes hold values of the table, then all of them are stored."""
    session = client.sessions.start(
        "mirror", id="s", context={"order": ORDER}, metadata={"raw": b"\xff", "correlation_id": "c"}
    )
    run = client.runs.submit(session.id, {"order": ORDER, "raw": b"\xff"})
    output = client.runs.wait(run.id).output
    assert output == {"input": {"order": STORED, "raw": b"\xff"}, "context": {"order": STORED}}
    assert client.sessions.get("s").metadata["raw"] == b"\xff"
    assert {event.correlation_id for event in client.sessions.events("s")} == {"c"}
    client.routes.set("a:b:c", {"external_room_id": "x", "order": ORDER})
    assert client.routes.get("a:b:c").route == {"external_room_id": "x", "order": STORED}
    assert json.loads(client.sessions.get("s").to_json())["metadata"]["raw"] == "/w=="


def test_an_object_of_the_caller_is_refused_with_its_place(client: mesh.Client) -> None:
    """If an argument holds what cannot travel, then the error names the place and nothing was changed."""
    with pytest.raises(mesh.InvalidArgument) as caught:
        client.sessions.create("mirror", id="s", context={"items": [1, {"x": object()}]})
    assert caught.value.details == {"path": "context.items[1].x", "type": "object"}
    with pytest.raises(mesh.NotFound):
        client.sessions.get("s")
