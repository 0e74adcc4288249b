"""Agents with a runner of their own on a real node: whoever dies there takes nobody else along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_for

import mesh
from mesh import launch
from mesh.config import load
from mesh.proc import start_time

CODE = """
import asyncio, os

async def works(run):
    yield str(os.getpid())
    if run.prompt == "die":
        os._exit(9)
    if run.prompt == "wait" and run.attempt == 1:
        await asyncio.sleep(60)
"""
SETTINGS = """
[supervision]
heartbeat_s = 0.2
[agents.alone]
provider = "python"
target = "agents.py:works"
isolation = "process"
[agents.safe]
provider = "python"
target = "agents.py:works"
isolation = "process"
idempotent = true
[agents.common]
provider = "python"
target = "agents.py:works"
isolation = "shared"
[agents.routed]
provider = "router"
agents = ["common"]
isolation = "process"
[agents.wrong]
provider = "router"
agents = ["alone"]
"""


class Node:
    """A node of a config file, as ``mesh up --config`` starts it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "mesh.toml"
        self.write(SETTINGS)
        (folder / "agents.py").write_text(CODE)

    address = ""

    def write(self, text: str) -> None:
        self.file.write_text(text)

    @contextmanager
    def running(self) -> Iterator[str]:
        """Its address, while it runs."""
        config = load(self.file, overrides={"node": {"port": 0, "name": "isolation"}})
        spawned = launch.spawn_node(config, self.folder / "data", by_name=False)
        try:
            yield launch.wait_ready(spawned)["address"]
        finally:
            launch.abandon(spawned)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    made = Node(tmp_path_factory.mktemp("isolation"))
    with made.running() as made.address:
        yield made


@pytest.fixture
def client(node: Node) -> Iterator[mesh.Client]:
    with mesh.Client(node.address, timeout_s=20.0) as made:
        yield made


def busy(client: mesh.Client, agent: str, sid: str) -> tuple[str, int]:
    """A session of the agent that executes; its run, and the process where it does."""
    client.sessions.start(agent, id=sid)
    run = client.runs.submit(sid, "wait")
    [said] = wait_for(lambda: client.sessions.events(sid, type="message_streamed"), "the first piece")
    return run.id, int(said.data["content"])


def runner_rows(client: mesh.Client) -> dict[Any, Any]:
    """By agent, when all of them serve."""
    def ready() -> dict[Any, Any] | None:
        rows = client.status()["runners"]
        return {row["agent"]: row for row in rows} if all(row["pid"] for row in rows) else None

    found: dict[Any, Any] = wait_for(ready, "all runners")
    return found


def code_of(client: mesh.Client, run_id: str) -> str:
    with pytest.raises(mesh.MeshError) as caught:
        client.runs.wait(run_id)
    return str(caught.value.code)


def test_each_isolated_agent_has_a_runner_and_the_others_share(client: mesh.Client) -> None:
    """If agents are isolated, then status, handles and ps show each one's process; the others share one."""
    rows = runner_rows(client)
    assert {agent: row["index"] for agent, row in rows.items()} == {
        None: 0, "alone": 1, "routed": 2, "safe": 3}
    for agent, host in {"alone": "alone", "common": None, "routed": "routed", "echo": None}.items():
        session = client.sessions.start(agent)
        assert session.handle.pid == rows[host]["pid"]
        said = client.runs.execute(client.runs.create(session.id, "x").id).output["content"]
        assert said == (str(rows[host]["pid"]) if agent != "echo" else "x")
        client.sessions.stop(session.id)
    title = Path(f"/proc/{rows['alone']['pid']}/cmdline").read_bytes().rstrip(b"\0")
    assert title == b"mesh runner-1 (agent alone)"[:len(title)] and b"runner-1" in title


def test_killing_an_isolated_runner_touches_nobody_else(client: mesh.Client) -> None:
    """If an isolated agent's runner is killed, then its run is outcome_unknown, its session restarted; runs
    of others go on in their processes."""
    (mine, pid), (theirs, other) = busy(client, "alone", "a"), busy(client, "common", "b")
    again, third = busy(client, "safe", "c")
    assert len({pid, other, third}) == 3
    with client.listen("lifecycle.", "node.") as feed:
        os.kill(pid, signal.SIGKILL)
        assert code_of(client, mine) == "outcome_unknown"
        told = []
        while len(told) < 2:
            note = next(iter(feed))
            if note.topic in ("lifecycle.restarted.a", "node.runner_restarted"):
                told.append((note.topic, note.data.get("agent")))
        assert sorted(told) == [("lifecycle.restarted.a", "alone"), ("node.runner_restarted", "alone")]
    handles = {sid: client.sessions.handle(sid) for sid in ("a", "b", "c")}
    assert handles["a"].pid != pid and (handles["b"].pid, handles["c"].pid) == (other, third)
    assert [client.runs.get(run).status for run in (theirs, again)] == ["running", "running"]
    os.kill(third, signal.SIGKILL)
    assert client.runs.wait(again).output["content"] != str(third) and client.runs.get(again).attempt == 2
    assert client.runs.get(theirs).status == "running" and client.sessions.handle("b").pid == other
    client.runs.cancel(theirs)


def test_killing_the_shared_runner_touches_no_isolated_agent(client: mesh.Client) -> None:
    """If the shared runner is killed, then its runs end as they do, and an isolated agent's run goes on."""
    (mine, pid), (theirs, other) = busy(client, "alone", "d"), busy(client, "common", "e")
    os.kill(other, signal.SIGKILL)
    assert code_of(client, theirs) == "outcome_unknown"
    assert client.runs.get(mine).status == "running" and client.sessions.handle("d").pid == pid
    client.runs.cancel(mine)


def test_a_poison_agent_takes_down_its_own_process_alone(client: mesh.Client) -> None:
    """If an isolated agent ends its process with each run, then its session ends, and nobody else notices."""
    before = runner_rows(client)
    run, pid = busy(client, "common", "calm")
    client.sessions.start("alone", id="poison")
    for _ in range(3):
        client.sessions.prompt("poison", "die")
    wait_for(lambda: client.sessions.get("poison").status == "failed", "the end of the session")
    assert client.sessions.get("poison").error["code"] == "restart_exhausted"
    after = runner_rows(client)
    changed = {agent for agent in before if before[agent]["pid"] != after[agent]["pid"]}
    assert changed == {"alone"} and client.sessions.handle("calm").pid == pid
    assert client.run_once("common", "x").output["content"] == str(pid)
    client.runs.cancel(run)


def test_a_run_of_another_agent_is_refused_where_one_is_isolated(client: mesh.Client) -> None:
    """If a session of one agent is to have a run of another, and one is isolated, then nothing is stored."""
    for agent, other in (("common", "alone"), ("alone", "common")):
        session = client.sessions.start(agent)
        with pytest.raises(mesh.InvalidArgument, match='has isolation = "process"'):
            client.runs.submit(session.id, "x", agent=other)
        assert not list(client.sessions.runs(session.id))


def test_a_router_cannot_execute_an_isolated_agent(client: mesh.Client) -> None:
    """If a router names an isolated agent, then it is listed with what to do, and refused at start."""
    listed = {agent["name"]: agent["problem"] for agent in client.agents.list()}
    assert listed["wrong"].endswith("write isolation in [agents.wrong] instead")
    assert [name for name, problem in listed.items() if problem not in (None, "loading")] == ["wrong"]
    with pytest.raises(mesh.MeshError) as refused:
        client.sessions.start("wrong")
    assert refused.value.code == "provider_unavailable"


def test_reload_loads_each_agent_where_it_lives(node: Node, client: mesh.Client) -> None:
    """If code changes, then a reload reaches isolated agents too. One that is added, or whose isolation
    changed, says that a restart is needed; one that is gone is unknown; the others have the new code."""
    common, alone = (client.sessions.handle(client.sessions.start(a).id).pid for a in ("common", "alone"))
    (node.folder / "agents.py").write_text(CODE.replace("str(os.getpid())", 'f"new {os.getpid()}"'))
    added = '[agents.added]\nprovider = "echo"\nisolation = "process"\n[agents.more]\nprovider = "echo"\n'
    kept, _, rest = SETTINGS.partition("[agents.safe]")
    rest = rest.partition("[agents.common]")[2].partition("[agents.routed]")[0]
    node.write(kept + "[agents.common]" + rest.replace('"shared"', '"process"') + added)
    problems = {agent["name"]: agent["problem"] for agent in client.agents.reload()}
    assert sorted(problems) == ["added", "alone", "common", "echo", "more", "shell"]
    assert [name for name, problem in problems.items() if problem] == ["added", "common"]
    for name in ("added", "common"):
        assert problems[name].startswith('isolation = "process" holds after a restart of the node')
        with pytest.raises(mesh.MeshError, match="restart of the node"):
            client.sessions.start(name)
    assert client.run_once("alone", "x").output["content"] == f"new {alone}"
    node.write(SETTINGS)
    assert [agent["name"] for agent in client.agents.reload() if agent["problem"]] == ["wrong"]
    assert client.run_once("common", "x").output["content"] == f"new {common}"
    (node.folder / "agents.py").write_text(CODE)
    client.agents.reload()


def test_a_restart_places_by_the_new_settings_and_leaves_no_process(tmp_path: Path) -> None:
    """If isolation changes between two lives of a node, then the same session lives where it belongs now."""
    node = Node(tmp_path)
    lives: list[dict[int, int | None]] = []
    for settings, host in (SETTINGS, "alone"), (SETTINGS.replace('"process"', '"shared"', 1), None):
        node.write(settings)
        with node.running() as address, mesh.Client(address, timeout_s=20.0) as client:
            client.sessions.start_or_get("stays", "alone")
            said = client.runs.wait(client.sessions.prompt("stays", "x").run_id).output["content"]
            assert int(said) == runner_rows(client)[host]["pid"]
            lives.append({row["pid"]: start_time(row["pid"]) for row in client.status()["children"]})
    assert [len(life) for life in lives] == [7, 6]
    assert not [pid for life in lives for pid, began in life.items() if start_time(pid) == began]


def test_mesh_run_works_without_a_node(tmp_path: Path) -> None:
    """If nothing runs, then ``mesh run`` of an isolated agent starts a node of its own, and it ends."""
    node = Node(tmp_path)
    command = [sys.executable, "-m", "mesh", "run", "--config", str(node.file), "alone", "hi"]
    env = {**os.environ, "MESH_RUNTIME_DIR": str(tmp_path / "run"), "MESH_NODE_NAME": "nobody"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and int(done.stdout) and start_time(int(done.stdout)) is None


def test_config_check_names_the_isolated_and_refuses_what_cannot_be(tmp_path: Path) -> None:
    """If isolation is a wrong word, or a router would break it, then check says whose; else it lists them."""

    def check(text: str) -> Any:
        node.write(text)
        command = [sys.executable, "-m", "mesh", "config", "check", str(node.file)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    node = Node(tmp_path)
    right = SETTINGS.partition("[agents.wrong]")[0]
    assert "with a runner of their own: alone, routed, safe" in check(right).stdout
    assert 'agents.wrong: agent \'alone\' has isolation = "process"' in check(SETTINGS).stderr
    refused = check(right.replace('"shared"', '"own"'))
    assert refused.returncode == 2
    assert "agents.common: isolation = 'own': expected \"shared\"" in refused.stderr
