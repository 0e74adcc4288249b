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


def test_a_new_session_names_its_provider(client: mesh.Client) -> None:
    """If a session is created, then metadata, its first event and that event's data name the provider."""
    session = client.sessions.create("mirror", agent_id="a", metadata={"mine": 1, "provider": "forged"})
    assert (session.agent_id, session.status, session.metadata) == (
        "a",
        "pending",
        {"mine": 1, "provider": "python"},
    )
    assert session.id.startswith("ses_") and len(session.id) == 36
    [event] = client.sessions.events(session.id)
    assert (event.type, event.seq, event.data, event.provider) == (
        "session_created",
        1,
        {"provider": "python"},
        "python",
    )
    assert mesh.Session.from_map(session.to_map()) == session
    assert mesh.Event.from_map(event.to_map()) == event


def test_a_session_failed_with_a_provider_s_error_says_it(client: mesh.Client) -> None:
    """If a session is failed with a provider's error, then the event has code, message and payload."""
    client.sessions.start("mirror", id="s")
    payload = mesh.ProviderError("amp", "transport_exit", "it died", exit_code=17)
    error = mesh.RunError("it died", code="provider_error", provider_error=payload.to_map())
    session = client.sessions.fail("s", error)
    event = client.sessions.events("s", type="session_failed")[0]
    assert (event.data["error_code"], event.data["error_message"]) == ("provider_error", "it died")
    assert mesh.ProviderError.from_map(event.data["provider_error"]) == payload
    assert session.error is not None
    assert mesh.MeshError.from_map(session.error).to_map() == error.to_map()


def test_the_error_of_a_run_has_its_provider_s_payload(client: mesh.Client) -> None:
    """If a run fails in its provider, then the error that is raised names provider, kind and message."""
    with pytest.raises(mesh.RunError) as caught:
        client.run_once("shell", "echo oops >&2; exit 3", id="s")
    about = mesh.ProviderError.from_map(caught.value.provider_error or {})
    assert (about.provider, about.kind, about.exit_code) == ("shell", "transport_exit", 3)
    assert about.stderr == "oops\n"
    log = [event.type for event in client.sessions.events("s")]
    assert log.count("run_failed") == 1
