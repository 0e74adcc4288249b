"""Rows of the sessions' specification that have no id of their own, against a real node."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_for

import mesh

AGENTS = """
import asyncio, json

async def named(run):
    yield {"type": "run_started", "data": json.loads(run.prompt)}
    yield "x"

async def counting(run):
    for number in range(int(run.prompt)):
        yield {"type": "turn_completed", "data": {"number": number}}

async def waits(run):
    yield "begun"
    await asyncio.sleep(3600)

async def raises(run):
    yield "a word"
    raise ValueError("boom")
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mesh.LocalNode]:
    folder: Path = tmp_path_factory.mktemp("rows")
    (folder / "agents.py").write_text(AGENTS)
    agents: dict[str, Any] = {
        name: {"provider": "python", "target": f"{folder}/agents.py:{name}"}
        for name in ("named", "counting", "waits", "raises")
    }
    agents["waits"]["capabilities"] = ["resume"]
    with mesh.LocalNode(folder / "data", config={"agents": agents}) as started:
        yield started


@pytest.fixture(scope="module")
def client(node: mesh.LocalNode) -> Iterator[mesh.Client]:
    with node.client(timeout_s=20.0) as opened:
        yield opened


def refused(call: Callable[[], Any]) -> str:
    """The code of the refusal."""
    with pytest.raises(mesh.MeshError) as caught:
        call()
    return caught.value.code


def busy(client: mesh.Client, session_id: str) -> str:
    """The id of a run that executes."""
    run = client.runs.submit(session_id, "x")
    wait_for(lambda: client.runs.get(run.id).started_at, "the run has begun")
    return run.id


def test_times_and_provider_of_a_session_are_the_nodes(client: mesh.Client) -> None:
    """If a session changes, then updated_at moves and created_at stays; its provider is its agent's."""
    made = client.sessions.create("named", metadata={"provider": "mine", "kept": 1})
    assert made.metadata == {"provider": "python", "kept": 1}
    active = client.sessions.activate(made.id)
    client.runs.wait(client.runs.submit(made.id, '{"thread_id": "t"}').id)
    used = client.sessions.get(made.id)
    assert made.created_at == active.created_at == used.created_at <= made.updated_at
    assert made.updated_at < active.updated_at < used.updated_at


def test_a_run_that_is_only_created_says_nothing(client: mesh.Client) -> None:
    """If a run is created, then the log says nothing yet, also where nothing can execute."""
    session = client.sessions.create("echo")
    run = client.runs.create(session.id, "x")
    assert (run.status, [e.type for e in client.sessions.events(session.id)]) == (
        "pending", ["session_created"])
    assert refused(lambda: client.runs.execute(run.id)) == "session_not_active"
    client.sessions.cancel(session.id)
    assert refused(lambda: client.runs.create(session.id, "x")) == "session_closed"


@pytest.mark.parametrize(("said", "kept"), [
    ('{"session_id": "s"}', "s"),
    ('{"thread_id": "t"}', "t"),
    ('{"thread_id": "t", "session_id": "s"}', "s"),
    ('{"thread_id": "t", "session_id": "s", "provider_session_id": "p"}', "p"),
])
def test_a_provider_may_name_its_session_in_three_ways(client: mesh.Client, said: str, kept: str) -> None:
    """If run_started names the provider's session, then the first of three names counts."""
    result = client.run_once("named", said)
    assert result.metadata == {"provider": "python", "provider_session_id": kept}
    session = client.sessions.get(result.session_id)
    assert session.metadata["provider_sessions"] == {"python": {"provider_session_id": kept}}
    assert "provider_session_id" not in session.metadata


def test_failed_run_and_session_say_the_same(client: mesh.Client) -> None:
    """If run_once fails, then both terminal events have code, message, details and the provider's error."""
    assert refused(lambda: client.run_once("raises", "x", id="raised")) == "provider_error"
    *_, run, session = client.sessions.events("raised")
    assert (run.type, session.type) == ("run_failed", "session_failed")
    assert run.data == session.data
    assert set(run.data) == {"error_code", "error_message", "details", "provider_error"}


def test_d02_lists_are_filtered(client: mesh.Client) -> None:
    """If sessions are listed by status, agent and tags, then only those come, no more than the limit."""
    for status in ("create", "start", "start"):
        getattr(client.sessions, status)("echo", agent_id="d02", tags=["d02"])
    found = client.sessions.list(status="active", agent_id="d02", tags=["d02"])
    assert [(s.status, s.agent_id) for s in found] == [("active", "d02")] * 2
    assert len(client.sessions.list(agent_id="d02", limit=1)) == 1
    assert len(client.sessions.list(agent_id="nobody")) == 0
    for limit in (0, -1, 1001, True, "1"):
        assert refused(lambda wrong=limit: client.sessions.list(limit=wrong)) == "validation_error"
    for limit in (0, -1, True, "1", 2**70):
        assert refused(lambda wrong=limit: client.sessions.events("x", limit=wrong)) == "validation_error"


def test_d04_each_session_counts_for_itself(client: mesh.Client) -> None:
    """If two sessions get events, then each has seqs from 1, and its record the highest."""
    for sid in ("d04-a", "d04-b"):
        client.sessions.start("echo", id=sid)
    client.runs.wait(client.runs.submit("d04-a", "x").id)
    for sid, count in (("d04-a", 7), ("d04-b", 2)):
        assert [e.seq for e in client.sessions.events(sid)] == list(range(1, count + 1))
        assert client.sessions.get(sid).seq == count


def test_d14_g02_h08_control_of_a_run_that_executes(client: mesh.Client) -> None:
    """If a run executes, then it is found and counted; control of it is idempotent, and over when it is."""

    def active() -> list[str]:
        return [run.id for run in client.runs.search(session_id="control", status="running")]

    def executing() -> int:
        count: int = client.status()["runners"][0]["executing"]
        return count

    client.sessions.start("waits", id="control")
    run = busy(client, "control")
    assert active() == [run]
    wait_for(lambda: executing() == 1, "the runner says that it executes")
    assert refused(lambda: client.runs.pause(run)) == "capability_not_supported"
    assert client.runs.interrupt(run) == client.runs.interrupt(run) == run
    with pytest.raises(mesh.InvalidState, match="it is cancelled") as over:
        client.runs.resume(run)
    assert over.value.code == "invalid_operation"
    log = [e.data.get("reason") for e in client.sessions.events("control", type="run_cancelled")]
    assert (log, active()) == (["interrupt"], [])
    wait_for(lambda: executing() == 0, "its place is free")
    three = [busy(client, "control"), *(client.runs.submit("control", "x").id for _ in range(2))]
    assert client.runs.cancel_many(three) == dict.fromkeys(three)
    assert refused(lambda: client.runs.interrupt("run_" + "0" * 32)) == "run_not_found"


def test_a_result_is_told_as_often_as_it_is_asked_for(client: mesh.Client) -> None:
    """If a run is over, then every wait for it gives its result, or how it ended."""
    client.sessions.start("echo", id="waited")
    run = client.runs.submit("waited", "x").id
    assert client.runs.wait(run) == client.runs.wait(run)
    client.sessions.start("waits", id="waiting")
    first, second = busy(client, "waiting"), client.runs.submit("waiting", "x").id
    with ThreadPoolExecutor(2) as pool:
        told = [pool.submit(refused, lambda: client.runs.wait(second)) for _ in range(2)]
        assert client.runs.cancel(second) == second
        assert [one.result(20) for one in told] == ["cancelled", "cancelled"]
    assert [e.type for e in client.sessions.events("waiting", run_id=second)] == ["run_cancelled"]
    assert client.runs.get(first).status == "running"
    assert (client.sessions.abort("waiting"), client.sessions.abort("waiting")) == (1, 0)
    assert client.sessions.get("waiting").status == "active"


def test_h10_h12_a_stream_has_what_it_asks_for_from_its_cursor(client: mesh.Client) -> None:
    """If a stream is of one run and type, or begins behind the newest event, then nothing else comes."""
    client.sessions.start("echo", id="h10")
    client.runs.wait(client.runs.submit("h10", "before").id)
    newest = client.sessions.get("h10").seq
    run = client.runs.submit("h10", "now").id
    live = client.sessions.stream("h10", after=newest, stop_when=lambda e: e.type == "run_completed")
    assert [e.seq for e in live] == list(range(newest + 1, client.sessions.get("h10").seq + 1))
    only = client.sessions.stream("h10", run_id=run, type="message_received", stop_when=lambda e: True)
    assert [(e.type, e.run_id) for e in only] == [("message_received", run)]


def test_a_long_backlog_and_what_comes_meanwhile_is_streamed_once(client: mesh.Client) -> None:
    """If a reader comes late to more events than a page, while more are written, then each comes once."""
    client.sessions.start("counting", id="late")
    client.runs.wait(client.runs.submit("late", "1300").id)
    run = client.runs.submit("late", "1300").id
    seqs = [e.seq for e in client.sessions.stream(
        "late", stop_when=lambda e: e.type == "run_completed" and e.run_id == run)]
    assert seqs == list(range(1, client.sessions.get("late").seq + 1))
    assert len(seqs) > 2600


@pytest.mark.parametrize("cursor", [-1, 1.5, "7", True, 2**63, 2**70, float("nan")])
def test_what_is_no_cursor_of_a_log_is_invalid_cursor(client: mesh.Client, cursor: Any) -> None:
    """If a cursor cannot be a seq, then it is invalid_cursor wherever one is asked for."""
    client.sessions.start_or_get("cursors", "echo")
    assert refused(lambda: client.sessions.events("cursors", after=cursor)) == "invalid_cursor"
    assert refused(lambda: client.sessions.events("cursors", before=cursor)) == "invalid_cursor"
    assert refused(lambda: next(client.sessions.stream("cursors", after=cursor))) == "invalid_cursor"
    assert refused(lambda: client.sessions.attach("cursors", after=cursor)) == "invalid_cursor"
    assert refused(lambda: client.sessions.fork("cursors", cursor)) == "invalid_cursor"
    assert [e.seq for e in client.sessions.events("cursors")] == [1, 2]


def test_a_cursor_of_a_longer_log_finds_nothing_yet(client: mesh.Client) -> None:
    """If a cursor is of another session, or from the future, then nothing is behind it; attach says so."""
    client.run_once("counting", "50", id="longer")
    client.sessions.start("echo", id="shorter")
    cursor = client.sessions.get("longer").seq
    assert list(client.sessions.events("shorter", after=cursor)) == []
    assert [e.seq for e in client.sessions.events("shorter", before=cursor)] == [1, 2]
    assert refused(lambda: client.sessions.attach("shorter", after=cursor)) == "invalid_cursor"
    assert refused(lambda: client.sessions.fork("shorter", cursor)) == "invalid_cursor"
    page = client.sessions.list(limit=1)
    assert refused(lambda: client.sessions.search(cursor=page.cursor)) == "invalid_cursor"


def test_nobody_else_on_the_machine_reads_what_is_stored(
    node: mesh.LocalNode, client: mesh.Client, tmp_path: Path
) -> None:
    """If a node makes its data folder, its databases or a backup, then they are for their owner alone."""
    assert stat.S_IMODE(node.data_dir.stat().st_mode) == 0o700
    stored = [*node.data_dir.glob("*.db*"), *map(Path, client.backup(str(tmp_path / "copy")))]
    assert {stat.S_IMODE(path.stat().st_mode) for path in stored} == {0o600}
