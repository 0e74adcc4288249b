"""What an orderly stop of the node does to the work that it interrupts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers import wait_for

import mesh


def test_runs_that_wait_at_a_stop_are_executed_by_the_next_life(
    tmp_path: Path, node_config: dict[str, Any]
) -> None:
    """If a node is stopped, then the run that executes is cancelled, and those behind it wait: none of them
    begins in the stop only to be lost in it. The session stopped (shutdown) once."""
    with mesh.LocalNode(tmp_path / "data", config=node_config) as node, node.client() as client:
        with client.listen("lifecycle.started.") as feed:
            client.sessions.start("sleeper", id="s")
            cursor = next(iter(feed)).cursor
        runs = [client.runs.submit("s", prompt).id for prompt in ("60", "0", "0")]
        wait_for(lambda: client.sessions.events("s", type="message_streamed"), "the first piece")
    with mesh.LocalNode(tmp_path / "data", config=node_config) as node, node.client() as client:
        wait_for(lambda: all(run.terminal for run in client.sessions.runs("s")), "the end of all runs")
        assert [run.id for run in client.sessions.runs("s")] == runs
        assert [run.status for run in client.sessions.runs("s")] == ["cancelled", "completed", "completed"]
        assert [run.attempt for run in client.sessions.runs("s")] == [1, 1, 1]
        with client.listen("lifecycle.started.", "lifecycle.stopped.", after=cursor) as feed:
            told = [(note.topic, note.data.get("reason")) for _, note in zip(range(2), feed, strict=False)]
        assert told == [("lifecycle.stopped.s", "shutdown"), ("lifecycle.started.s", None)]
