"""No process outlives its node, whatever dies first: children, grandchildren and setsid ones too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers import wait_for

import mesh

#: A command with a child in its group and a grandchild in a session of its own, all of which would stay.
TREE = "sleep 4711 & setsid sleep 4712 & echo ready; sleep 4713"


def marked(mark: str) -> list[int]:
    """Processes that were started under a node, by its environment mark, zombies left out."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"MESH_MARK={mark}".encode() in (entry / "environ").read_bytes():
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX":
                    found.append(int(entry.name))
        except OSError:
            continue
    return found


def mark_of(pid: int) -> str:
    """The mark of the node that a process belongs to."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(v for v in variables if v.startswith(b"MESH_MARK=")).decode().partition("=")[2]


def run_tree(client: mesh.Client) -> str:
    """Start the command tree and wait until it stands; returns the run's id."""
    client.sessions.start("shell", id="tree")
    run = client.runs.submit("tree", TREE)
    wait_for(lambda: client.sessions.events("tree", type="message_streamed"), "the tree's first output")
    return run.id


def sleepers() -> list[int]:
    """The tree's processes."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cmdline").read_bytes().startswith((b"sleep\x00471", b"setsid\x00sleep\x00471")):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_killed_supervisor_takes_everything_with_it(tmp_path: Path, node_config: dict[str, Any]) -> None:
    """If the supervisor is killed, then no process of the node is left, and the next start has all state."""
    node = mesh.LocalNode(tmp_path / "data", config=node_config).start()
    try:
        with node.client(timeout_s=20.0) as client:
            with client.listen("lifecycle.started.") as feed:
                run_tree(client)
                cursor = next(iter(feed)).cursor
            supervisor = client.status()["pid"]
            mark = mark_of(supervisor)
            wait_for(lambda: len(sleepers()) == 3, "all three commands")
            os.kill(supervisor, signal.SIGKILL)
            wait_for(lambda: not [p for p in marked(mark) if p != supervisor], "the end of every process")
            assert sleepers() == []
    finally:
        node.close()
    with (
        mesh.LocalNode(tmp_path / "data", config=node_config) as again,
        again.client(timeout_s=20.0) as client,
    ):
        runs = client.sessions.runs("tree")
        assert [run.status for run in runs] == ["failed"]
        assert runs[0].error["code"] == "outcome_unknown"
        assert client.sessions.get("tree").status == "active"
        assert client.sessions.get("tree").handle is None
        home = client.partitions.of("tree")  # order holds within one partition
        after = next(f"n{i}" for i in range(100) if client.partitions.of(f"n{i}") == home)
        client.sessions.start("echo", id=after)
        with client.listen("lifecycle.", after=cursor) as late:
            told = []
            for note in late:
                told.append((note.topic, note.data.get("reason")))
                if note.topic == f"lifecycle.started.{after}":
                    break
        stopped = [what for what in told if what[0].startswith("lifecycle.stopped.")]
        assert stopped == [("lifecycle.stopped.tree", "node_lost")]


def test_killed_runner_leaves_none_of_its_commands(client: mesh.Client) -> None:
    """If the runner is killed, then the processes of its commands are killed by the supervisor."""
    run_tree(client)
    os.kill(client.sessions.handle("tree").pid, signal.SIGKILL)
    wait_for(lambda: not sleepers(), "the end of the command's processes")


def test_killed_supervisor_and_runner_are_reaped_at_the_next_start(
    tmp_path: Path, node_config: dict[str, Any]
) -> None:
    """If supervisor and runner die together, then the next start kills what they left."""
    node = mesh.LocalNode(tmp_path / "data", config=node_config).start()
    try:
        with node.client(timeout_s=20.0) as client:
            run_tree(client)
            runner, supervisor = client.sessions.handle("tree").pid, client.status()["pid"]
            os.kill(runner, signal.SIGSTOP)
            os.kill(supervisor, signal.SIGSTOP)
            os.kill(runner, signal.SIGKILL)
            os.kill(supervisor, signal.SIGKILL)
    finally:
        node.close()
    with mesh.LocalNode(tmp_path / "data", config=node_config):
        wait_for(lambda: not sleepers(), "the end of the leftovers")


def test_cancelled_shell_run_leaves_none_of_its_processes(client: mesh.Client) -> None:
    """If a shell run is cancelled, then cancel returns when its group and its setsid children are gone."""
    run_id = run_tree(client)
    client.runs.cancel(run_id)
    assert sleepers() == []
    assert client.runs.get(run_id).status == "cancelled"


def test_completed_shell_run_leaves_no_background_process(client: mesh.Client) -> None:
    """If a command ends and leaves processes behind, then they end with the run."""
    client.run_once("shell", "sleep 4714 & setsid sleep 4715 & echo done")
    wait_for(lambda: not sleepers(), "the end of the background processes")


PARENT = """
import json, sys, mesh, time
node = mesh.LocalNode(sys.argv[1]).start()
client = node.client()
client.sessions.start("shell", id="tree")
run = client.runs.submit("tree", sys.argv[2])
while not client.sessions.events("tree", type="message_streamed"):
    time.sleep(0.01)
print(json.dumps({"supervisor": client.status()["pid"]}), flush=True)
time.sleep(600)
"""


def test_killed_parent_of_a_local_node_takes_the_node_with_it(tmp_path: Path) -> None:
    """If the program that owns a LocalNode is killed, then the node and its commands end."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "data"), TREE],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(mesh.__file__).resolve().parents[1])},
    ) as parent:
        assert parent.stdout is not None
        supervisor = json.loads(parent.stdout.readline())["supervisor"]
        mark = mark_of(supervisor)
        parent.kill()
    wait_for(lambda: not marked(mark), "the end of the node")
    assert sleepers() == []
