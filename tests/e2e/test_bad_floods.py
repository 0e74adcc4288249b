"""Agents that say too much, nothing, or die between two words: the specified code, and the log intact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mesh
from mesh.core.events import RUN_TERMINAL_EVENT

FLOOD = 30_000
AGENTS = """
import asyncio, os

async def flood(run):
    for number in range(int(run.prompt)):
        yield str(number) + " "

async def silent(run):
    yield "one"
    await asyncio.sleep(3600)

async def dies(run):
    yield "one"
    await asyncio.sleep(0.3)
    os._exit(3)

async def stubborn(run):
    yield "one"
    try:
        await asyncio.sleep(3600)
    finally:
        yield "after the end"
"""


@pytest.fixture
def node_config(agents_file: Path) -> dict[str, Any]:
    agents_file.write_text(AGENTS)
    names = ("flood", "silent", "dies", "stubborn")
    agents = {name: {"provider": "python", "target": f"{agents_file}:{name}"} for name in names}
    return {"agents": {**agents, "echo": {"provider": "echo"}}}


def whole(client: mesh.Client, session_id: str, run_id: str) -> list[mesh.Event]:
    """The session's log: without a hole, with one end of the run, behind all else of it."""
    events = list(client.sessions.events(session_id))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    of_run = [event for event in events if event.run_id == run_id]
    ends = [event for event in of_run if event.type in RUN_TERMINAL_EVENT.values()]
    assert len(ends) == 1 and of_run[-1] is ends[0]
    return events


def test_a_flood_of_events_is_kept_whole_and_read_by_cursor(client: mesh.Client) -> None:
    """If an agent yields as fast as it can, then every piece is in the log, in order, and pages of it add
    up; a neighbour's run ends meanwhile."""
    client.sessions.start("flood", id="f")
    run = client.runs.submit("f", str(FLOOD))
    assert client.run_once("echo", "hi", timeout_s=60).output["content"] == "hi"
    result = client.runs.wait(run.id, timeout_s=120)
    text = "".join(f"{number} " for number in range(FLOOD))
    assert result.output["content"] == text
    events = whole(client, "f", run.id)
    assert "".join(e.data["content"] for e in events if e.type == "message_streamed") == text
    page = client.sessions.events("f", after=FLOOD - 5, limit=7)
    assert list(page) == events[FLOOD - 5 : FLOOD + 2]


def test_a_million_events_are_taken_as_fast_as_they_can_be_stored(client: mesh.Client) -> None:
    """If an agent has a million events to say at once, then it waits for the log: what is unstored stays
    below its bound, neighbours go on, and at its deadline all that it said is there."""
    client.sessions.start("flood", id="f")
    run = client.runs.submit("f", "1000000", deadline_s=2.0)
    unstored = []
    while client.runs.get(run.id).status in ("queued", "running"):
        unstored += [runner["unacked_bytes"] for runner in client.status()["runners"]]
        assert client.run_once("echo", "hi", timeout_s=60).output["content"] == "hi"
    with pytest.raises(mesh.DeadlineExceeded):
        client.runs.wait(run.id, timeout_s=60)
    assert max(unstored) <= 17 * 1024 * 1024
    events = whole(client, "f", run.id)
    said = "".join(e.data["content"] for e in events if e.type == "message_streamed")
    numbers = [int(number) for number in said.split()]
    assert len(numbers) > 1_000 and numbers == list(range(len(numbers)))


def test_a_million_lines_of_a_command_are_its_output(client: mesh.Client) -> None:
    """If a command prints a million lines as fast as it can, then all of them are the run's output."""
    result = client.run_once("shell", "yes '' | head -n 1000000", timeout_s=60)
    assert result.output["content"] == "\n" * 1_000_000


@pytest.mark.parametrize(
    ("agent", "options", "code"),
    [
        ("silent", {"deadline_s": 0.5}, "timeout"),
        ("stubborn", {"deadline_s": 0.5}, "timeout"),
        ("dies", {}, "outcome_unknown"),
    ],
)
def test_an_agent_that_says_nothing_more_ends_once(
    client: mesh.Client, agent: str, options: dict[str, Any], code: str
) -> None:
    """If an agent is silent for ever, speaks after its end, or dies between two events, then its run has the
    code, its log what was said before, and the session executes the next run."""
    client.sessions.start(agent, id="s")
    run = client.runs.submit("s", "go", **options)
    with pytest.raises(mesh.MeshError) as failed:
        client.runs.wait(run.id, timeout_s=60)
    assert failed.value.code == code
    said = [e.data["content"] for e in whole(client, "s", run.id) if e.type == "message_streamed"]
    assert said == ["one"]
    assert client.sessions.get("s").status == "active"
