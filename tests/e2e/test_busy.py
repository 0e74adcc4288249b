"""Prompts to a session that is busy, control of runs, and limits, through the SDK and over kills."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_for

import mesh

AGENTS = """
import asyncio

async def listener(run):
    yield "begun"
    while True:
        for text in await run.steering():
            yield f"heard {text}"
            if text == "enough":
                return
        await asyncio.sleep(0.01)

async def each(run):
    yield "begun"
    async for text in run.steering:
        yield f"heard {text}"
        if text == "enough":
            return

async def steps(run):
    for i in range(1000):
        await run.paused.over()
        yield f"{i} "
        if run.steering.hinted:
            return
        await asyncio.sleep(0.01)
"""


@pytest.fixture
def node_config(node_config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The agents of this file beside the usual ones, and a limit that is easy to reach."""
    path = tmp_path / "busy.py"
    path.write_text(AGENTS)
    for name in ("listener", "each", "steps"):
        node_config["agents"][name] = {"provider": "python", "target": f"{path}:{name}"}
    node_config["agents"]["steps"]["capabilities"] = ["pause", "resume"]
    node_config["limits"] = {"running": 2}
    return node_config


@pytest.fixture
def busy(client: mesh.Client) -> Iterator[str]:
    """A session whose run waits to be steered."""
    client.sessions.start("listener", id="busy")
    yield client.sessions.prompt("busy", "go").run_id


def until_begun(client: mesh.Client, run_id: str) -> None:
    wait_for(lambda: client.runs.get(run_id).started_at, "the run begins")


def texts(client: mesh.Client, session: str, kind: str) -> list[str]:
    return [event.data["content"] for event in client.sessions.events(session, type=kind)]


@pytest.mark.parametrize("agent", ["listener", "each"])
def test_an_agent_hears_what_is_said_while_it_works(client: mesh.Client, agent: str) -> None:
    """If prompts steer, then the running agent has them in order, and they are messages of its run."""
    client.sessions.start(agent, id="s")
    first = client.sessions.prompt("s", "go")
    said = [client.sessions.prompt("s", text, queue="steering") for text in ("one", "two", "enough")]
    assert {given.queue for given in said} == {"steering"}
    result = client.runs.wait(first.run_id)
    assert result.output["content"] == "begunheard oneheard twoheard enough"
    assert texts(client, "s", "message_sent") == ["go", "one", "two", "enough"]
    assert client.runs.wait(said[0].run_id).output == {"steered_into": first.run_id}


@pytest.mark.parametrize("victim", ["partition", "runner"])
def test_a_steering_prompt_survives_a_kill(client: mesh.Client, busy: str, victim: str) -> None:
    """If partition or runner is killed behind the prompt's answer, then it is said exactly once."""
    until_begun(client, busy)
    handle = client.sessions.handle("busy")
    pid = handle.pid if victim == "runner" else client.partitions.pid("busy")
    os.kill(handle.pid, signal.SIGSTOP)
    given = client.sessions.prompt("busy", "enough", queue="steering")
    os.kill(pid, signal.SIGKILL)
    if victim == "partition":
        os.kill(handle.pid, signal.SIGCONT)
        assert client.runs.wait(given.run_id).output == {"steered_into": busy}
        client.runs.wait(busy)
    else:  # the run is lost, and what steered it is the next turn
        with pytest.raises(mesh.MeshError) as lost:
            client.runs.wait(busy)
        assert lost.value.code == "outcome_unknown"
        until_begun(client, given.run_id)
        client.sessions.prompt("busy", "enough", queue="steering")
        client.runs.wait(given.run_id)
    assert texts(client, "busy", "message_sent").count("enough") == (1 if victim == "partition" else 2)


def test_what_waits_is_seen_recalled_and_cleared(client: mesh.Client, busy: str) -> None:
    """If prompts wait, then queued shows them, recall takes them back, clear cancels; nobody is told."""
    client.sessions.prompt("busy", "a")
    client.sessions.prompt("busy", "b")
    shown = client.sessions.queued("busy")
    assert [(item.queue, item.text) for item in shown] == [("follow_up", "a"), ("follow_up", "b")]
    assert client.sessions.recall("busy") == shown
    assert client.sessions.queued("busy") == ()
    client.sessions.prompt("busy", "c")
    assert client.sessions.clear("busy") == 1
    assert client.sessions.interrupt("busy") == [busy]
    client.sessions.drain("busy", timeout_s=10.0)
    assert texts(client, "busy", "message_sent") == ["go"]


@pytest.mark.parametrize("how", ["interrupt", "rollback"])
def test_a_prompt_can_take_the_place_of_what_executes(client: mesh.Client, busy: str, how: str) -> None:
    """If a prompt interrupts, then the running run is cancelled for that reason and the prompt is next."""
    until_begun(client, busy)
    waiting = client.sessions.prompt("busy", "later")
    given = client.sessions.prompt("busy", "now", on_busy=how)
    with pytest.raises(mesh.MeshError) as ended:
        client.runs.wait(busy)
    assert ended.value.code == "cancelled"
    [event] = client.sessions.events("busy", run_id=busy, type="run_cancelled")
    assert event.data["reason"] == how
    wait_for(lambda: texts(client, "busy", "message_sent") == ["go", "now"], "the prompt is next")
    assert client.runs.get(waiting.run_id).status == "queued"
    assert client.runs.get(given.run_id).status == "running"


def test_a_busy_session_can_refuse(client: mesh.Client, busy: str) -> None:
    """If a prompt must not wait, then session_busy."""
    with pytest.raises(mesh.InvalidState) as refused:
        client.sessions.prompt("busy", "now", on_busy="reject")
    assert refused.value.code == "session_busy"
    with pytest.raises(mesh.MeshError):
        client.sessions.prompt("busy", "now", on_busy="maybe")


def test_a_run_is_paused_and_goes_on(client: mesh.Client) -> None:
    """If a run is paused, then it says nothing until it is resumed, also over the death of its partition."""
    client.sessions.start("steps", id="p")
    run_id = client.sessions.prompt("p", "go").run_id
    until_begun(client, run_id)
    assert client.runs.pause(run_id).status == "paused" == client.runs.pause(run_id).status
    os.kill(client.partitions.pid("p"), signal.SIGKILL)
    assert client.runs.get(run_id).status == "paused"
    assert client.runs.resume(run_id).status == "running"
    client.sessions.prompt("p", "stop", queue="steering")
    assert client.runs.wait(run_id).output["content"].startswith("0 1 ")
    with pytest.raises(mesh.MeshError) as over:
        client.runs.resume(run_id)
    assert over.value.code == "invalid_operation"
    client.sessions.start("listener", id="q")
    with pytest.raises(mesh.MeshError) as unable:
        client.runs.pause(client.sessions.prompt("q", "go").run_id)
    assert unable.value.code in ("capability_not_supported", "invalid_operation")


def test_no_more_runs_execute_than_the_node_allows(client: mesh.Client) -> None:
    """If more runs are claimed than may execute, then the others wait, can be cancelled, and follow."""
    runs = [client.runs.submit(client.sessions.start("listener", id=f"s{n}").id, "go") for n in range(4)]
    wait_for(lambda: sum(1 for r in runs if client.runs.get(r.id).started_at) == 2, "two begin")

    def runner() -> dict[str, Any]:
        [stats] = client.status()["runners"]
        return {key: stats[key] for key in ("executing", "waiting", "running_max")}

    wait_for(lambda: runner() == {"executing": 2, "waiting": 2, "running_max": 2}, "the others wait")
    begun = [r.id for r in runs if client.runs.get(r.id).started_at]
    line = [r.id for r in runs if r.id not in begun]
    assert client.runs.cancel(line[0]) == line[0]
    assert client.runs.cancel_many([begun[0], "run_no"])[begun[0]] is None
    until_begun(client, line[1])
    handle = client.sessions.handle(client.runs.get(line[1]).session_id)
    os.kill(handle.pid, signal.SIGKILL)
    client.drain(timeout_s=15.0)
    wait_for(lambda: runner()["executing"] == 0, "whoever died takes his places along")


def test_a_drain_ends_with_the_callers_time_and_counts_what_is_left(client: mesh.Client, busy: str) -> None:
    """If work does not end in time, then timeout with the numbers, and the work goes on."""
    client.sessions.prompt("busy", "later")
    for drain in (lambda: client.sessions.drain("busy", timeout_s=0.3), lambda: client.drain(timeout_s=0.3)):
        with pytest.raises(mesh.DeadlineExceeded):
            drain()
    assert client.runs.get(busy).status == "running"
    client.sessions.drain(client.sessions.start("echo").id)


def test_a_step_on_a_record_that_changed_is_refused(client: mesh.Client) -> None:
    """If two people act on one session, then the one who saw the older version is told."""
    seen = client.sessions.start("echo", id="v")
    assert client.sessions.pause("v", if_version=seen.version).version == seen.version + 1
    with pytest.raises(mesh.InvalidState) as refused:
        client.sessions.complete("v", if_version=seen.version)
    assert refused.value.code == "version_conflict"
    assert refused.value.details["version"] == seen.version + 1
