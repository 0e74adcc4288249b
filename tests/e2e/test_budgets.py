"""Budgets over a session and over a tag, on real runs: what they sum, what a reservation refuses, and what a
kill of any process leaves."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_for

import mesh

AGENTS = '''
import asyncio, time
from pathlib import Path

def usage(total):
    return {"type": "token_usage_updated", "data": {"input_tokens": total, "total_tokens": total}}

async def spender(run):
    yield usage(int(run.prompt))
    yield "spent"

async def caller(run):
    """Reserves, and waits inside the block until it may go on."""
    amount, place = run.prompt.split(" ")
    async with run.reserve(total_tokens=int(amount)):
        Path(place + ".in").touch()
        while not Path(place + ".go").exists():
            await asyncio.sleep(0.01)
        yield usage(10)
    yield "called"

def plain(run):
    """The same from a thread, and a question to a human before."""
    run.permit_blocking("write", {"path": "x"}, tool_call_id="t1")
    with run.reserve(total_tokens=int(run.prompt)):
        yield usage(10)
    yield "called"

async def toucher(run):
    for n in range(int(run.prompt)):
        yield {"type": "tool_call_started", "data": {"tool_call_id": str(n), "tool_name": "x"}}
        yield {"type": "tool_call_completed", "data": {"tool_call_id": str(n), "tool_name": "x"}}
    yield "touched"
'''
NAMES = ("spender", "caller", "plain", "toucher")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mesh.LocalNode]:
    folder: Path = tmp_path_factory.mktemp("budgets")
    (folder / "agents.py").write_text(AGENTS)
    agents = {name: {"provider": "python", "target": f"{folder}/agents.py:{name}"} for name in NAMES}
    with mesh.LocalNode(folder / "data", partitions=2, config={"agents": agents}) as made:
        yield made


@pytest.fixture
def client(node: mesh.LocalNode) -> Iterator[mesh.Client]:
    with node.client(timeout_s=20.0) as made:
        yield made


def limit(most: float, scope: str, kind: str = "max_total_tokens", **fields: Any) -> dict[str, Any]:
    return {"limits": [{"kind": kind, "most": most, "scope": scope}], **fields}


def apart(client: mesh.Client, agent: str, tag: str) -> list[str]:
    """Two sessions of one tag in different partitions."""
    found: dict[int, str] = {}
    for n in range(64):
        index = client.partitions.of(f"{tag}-{n}")
        if index not in found:
            found[index] = client.sessions.start(agent, id=f"{tag}-{n}", tags=[tag]).id
    assert len(found) == 2
    return list(found.values())


def failure(client: mesh.Client, run: mesh.Run) -> mesh.MeshError:
    with pytest.raises(mesh.MeshError) as caught:
        client.runs.wait(run.id, timeout_s=20)
    return caught.value


def test_session_budget_sums_over_its_runs_also_those_without_a_policy(client: mesh.Client) -> None:
    """If a session's runs used most of a budget, then the next one is stopped by what is left."""
    session = client.sessions.start("spender").id
    client.runs.wait(client.runs.submit(session, "60").id)
    policy = limit(100, "session")
    client.runs.wait(client.runs.submit(session, "40", policy=policy).id)
    assert client.usage.spent(session_id=session)["total_tokens"] == 100
    error = failure(client, client.runs.submit(session, "1", policy=policy))
    assert error.code == "policy_violation"
    [violation] = error.details["violations"]
    assert violation["details"] == {
        "metric": "total_tokens", "actual": 101, "limit": 100, "scope": "session"}


def test_run_of_a_used_up_budget_never_reaches_its_agent(client: mesh.Client, tmp_path: Path) -> None:
    """If a tag is over its budget already, then a run under it fails before its agent begins."""
    spent = client.sessions.start("spender", tags=["used-up"]).id
    client.runs.wait(client.runs.submit(spent, "101").id)
    late = client.sessions.start("caller", tags=["used-up"]).id
    run = client.runs.submit(late, f"1 {tmp_path}/a", policy=limit(100, "tag:used-up"))
    assert failure(client, run).code == "policy_violation"
    assert not (tmp_path / "a.in").exists()
    types = [event.type for event in client.sessions.events(late, run_id=run.id)]
    assert types[-2:] == ["run_started", "run_failed"]


def test_tag_budget_sums_over_sessions_of_all_partitions(client: mesh.Client) -> None:
    """If sessions of a tag live in two partitions, then one budget holds for all of them."""
    one, other = apart(client, "spender", "acme")
    policy = limit(100, "tag:acme")
    client.runs.wait(client.runs.submit(one, "70", policy=policy).id)
    assert failure(client, client.runs.submit(other, "31", policy=policy)).code == "policy_violation"
    assert client.usage.spent(tag="acme")["total_tokens"] == 101
    stranger = client.sessions.start("spender").id
    with pytest.raises(mesh.InvalidArgument, match="the tag 'acme'"):
        client.runs.submit(stranger, "1", policy=policy)


@pytest.mark.parametrize(
    ("kind", "prompt", "most"), [("max_tool_calls", "3", 5), ("max_duration_ms", "1", 0)])
def test_tool_calls_and_time_are_summed_like_tokens(
    client: mesh.Client, kind: str, prompt: str, most: int
) -> None:
    """If a limit counts calls or milliseconds, then earlier runs of the session count, too."""
    session = client.sessions.start("toucher").id
    client.runs.wait(client.runs.submit(session, prompt).id)
    error = failure(client, client.runs.submit(session, prompt, policy=limit(most, "session", kind)))
    assert error.code == "policy_violation"


def test_reservation_that_does_not_fit_is_refused_before_the_call(
    client: mesh.Client, tmp_path: Path
) -> None:
    """If a run holds most of a tag's budget, then another partition's run cannot reserve the same."""
    one, other = apart(client, "caller", "held")
    policy = limit(100, "tag:held")
    first = client.runs.submit(one, f"80 {tmp_path}/a", policy=policy)
    wait_for(lambda: (tmp_path / "a.in").exists(), "the first reservation")
    assert client.usage.spent(tag="held")["total_tokens"] == 80
    second = client.runs.submit(other, f"21 {tmp_path}/b", policy=policy)
    assert failure(client, second).code == "policy_violation"
    assert not (tmp_path / "b.in").exists()
    third = client.runs.submit(other, f"20 {tmp_path}/a", policy=policy)
    (tmp_path / "a.go").touch()
    assert client.runs.wait(first.id).output == client.runs.wait(third.id).output == {"content": "called"}
    assert client.usage.spent(tag="held")["total_tokens"] == 20


@pytest.mark.parametrize("victim", ["runner", "partition"])
def test_kill_leaves_no_reservation_behind_and_loses_none(
    client: mesh.Client, tmp_path: Path, victim: str
) -> None:
    """If the runner of a run that holds something dies, then nothing is held; if its partition does, then it
    still is."""
    one, other = apart(client, "caller", f"kill-{victim}")
    policy = limit(100, f"tag:kill-{victim}")
    run = client.runs.submit(one, f"90 {tmp_path}/a", policy=policy)
    wait_for(lambda: (tmp_path / "a.in").exists(), "the reservation")
    pid = client.sessions.handle(one).pid if victim == "runner" else client.partitions.pid(one)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    if victim == "partition":
        assert client.usage.spent(tag="kill-partition")["total_tokens"] == 90
        refused = client.runs.submit(other, f"20 {tmp_path}/b", policy=policy)
        assert failure(client, refused).code == "policy_violation"
        (tmp_path / "a.go").touch()
        assert client.runs.wait(run.id, timeout_s=20).output == {"content": "called"}
        assert client.usage.spent(tag="kill-partition")["total_tokens"] == 10
        return
    assert failure(client, run).code == "outcome_unknown"
    assert client.usage.spent(tag="kill-runner")["total_tokens"] == 0
    (tmp_path / "a.go").touch()
    again = client.runs.submit(other, f"90 {tmp_path}/a", policy=policy)
    assert client.runs.wait(again.id, timeout_s=20).output == {"content": "called"}


def test_pause_asks_whether_a_reservation_may_exceed_its_budget(client: mesh.Client, tmp_path: Path) -> None:
    """If a call does not fit under pause, then a human says whether it is made."""
    session = client.sessions.start("caller").id
    (tmp_path / "a.go").touch()
    policy = limit(10, "run", on_violation="pause")
    for yes in (True, False):
        (tmp_path / "a.in").unlink(missing_ok=True)
        run = client.runs.submit(session, f"11 {tmp_path}/a", policy=policy)
        [question] = wait_for(lambda: list(client.approvals.list(session)), "a question")
        assert question.violation_kind == "budget_exceeded" and not (tmp_path / "a.in").exists()
        if yes:
            client.approvals.approve(run.id, question.tool_call_id)
            assert client.runs.wait(run.id).output == {"content": "called"}
        else:
            client.approvals.deny(run.id, question.tool_call_id)
            assert failure(client, run).code == "policy_violation"
        assert (tmp_path / "a.in").exists() == yes


def test_plain_function_asks_from_its_thread(client: mesh.Client) -> None:
    """If an agent is a plain function, then its thread waits for the human, and goes on or is refused."""
    session = client.sessions.start("plain").id
    policy = {"tool_rules": [["ask", ["write"]]], **limit(100, "session")}
    run = client.runs.submit(session, "50", policy=policy)
    wait_for(lambda: client.runs.get(run.id).status == "waiting_approval", "the question")
    client.approvals.approve(run.id, "t1")
    assert client.runs.wait(run.id).output == {"content": "called"}
    denied = client.runs.submit(session, "50", policy={"tool_rules": [["deny", ["write"]]]})
    assert failure(client, denied).code == "policy_violation"
    waiting = client.runs.submit(session, "50", policy=policy)
    wait_for(lambda: client.runs.get(waiting.id).status == "waiting_approval", "the question")
    client.runs.cancel(waiting.id)
    too_much = client.runs.submit(session, "200", policy=limit(100, "session"))
    assert failure(client, too_much).code == "policy_violation"


def test_sums_of_a_tag_survive_another_number_of_partitions(tmp_path: Path) -> None:
    """If a node is started with other partitions, then a tag's sum is what it was."""
    agents = tmp_path / "agents.py"
    agents.write_text(AGENTS)
    config = {"agents": {"spender": {"provider": "python", "target": f"{agents}:spender"}}}
    for partitions in (3, 1):
        with (
            mesh.LocalNode(tmp_path / "data", partitions=partitions, config=config) as node,
            node.client(timeout_s=20.0) as client,
        ):
            for n in range(6 if partitions == 3 else 0):
                client.run_once("spender", "5", id=f"s{n}", tags=["moved"])
            assert client.usage.spent(tag="moved")["total_tokens"] == 30
