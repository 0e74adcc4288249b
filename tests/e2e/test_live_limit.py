"""How many sessions of a node are live at a time."""

from __future__ import annotations

import pytest

import mesh


def test_the_limit_of_live_sessions_is_the_node_s(client: mesh.Client) -> None:
    """If more sessions are started than may be live, then no more are live over all partitions, and each of
    the others is live again with its next prompt."""
    for n in range(12):
        client.sessions.start("echo", id=f"s{n}")
    assert 2 <= len([s for s in client.sessions.list() if s.handle]) <= 4
    for n in range(12):
        run = client.sessions.prompt(f"s{n}", "hi").run_id
        assert client.runs.wait(run, timeout_s=30).output["content"] == "hi"
    assert len([s for s in client.sessions.list() if s.handle]) <= 4


@pytest.fixture
def node_config() -> dict[str, object]:
    """Two of each partition."""
    return {"sessions": {"max_live": 4}, "agents": {"echo": {"provider": "echo"}}}
