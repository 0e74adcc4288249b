"""A child that dies again and again is ``down``: seen, refused at once, and mended by hand, as an operator
does it: with the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import pids, wait_for

import mesh

ROUTE = {"external_room_id": "ext"}
PATIENCE_S = 30.0


@pytest.fixture
def fragile(tmp_path: Path, node_config: dict[str, Any]) -> Iterator[mesh.LocalNode]:
    """A node whose children may be restarted twice a minute."""
    config = {**node_config, "supervision": {"intensity": 2, "period_s": 60.0, "heartbeat_s": 0.2}}
    with mesh.LocalNode(tmp_path / "data", config=config) as node:
        yield node


def cli(node: mesh.LocalNode, *arguments: str) -> tuple[int, Any]:
    """A command with ``-o json``: its exit status, and what it said, on stderr when it failed."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MESH_") or k == "MESH_RUNTIME_DIR"}
    ended = subprocess.run(
        [sys.executable, "-m", "mesh", "-o", "json", *arguments],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        env={**clean, "MESH_ADDRESS": node.address},
    )
    if ended.returncode:
        return ended.returncode, json.loads(ended.stderr)["error"]
    return 0, json.loads(ended.stdout)


def wear_out(client: mesh.Client, kind: str, index: int) -> None:
    """Kill a child whenever it is ready, until it is down."""
    struck: set[int] = set()

    def is_down() -> bool:
        pid = pids(client, kind).get(index)
        if pid is not None and pid not in struck:
            struck.add(pid)
            os.kill(pid, signal.SIGKILL)
        states = {(c["kind"], c["index"]): c["state"] for c in client.status()["children"]}
        return states[kind, index] == "down"

    wait_for(is_down, f"{kind} {index} down", PATIENCE_S)


def test_partition_that_is_down_is_seen_and_restarted_on_the_command_line(fragile: mesh.LocalNode) -> None:
    """If a partition is down, then status and list say so, its calls fail by name, the others serve on, and
    ``mesh partition restart`` brings it back with all that it had."""
    with fragile.client(timeout_s=20.0) as client:
        mine, other = ("t:b:r0", "t:b:r1") if client.partitions.of("t:b:r0") == 0 else ("t:b:r1", "t:b:r0")
        assert (client.partitions.of(mine), client.partitions.of(other)) == (0, 1)
        sid = next(f"s{n}" for n in range(100) if client.partitions.of(f"s{n}") == 0)
        client.routes.set_many([(mine, ROUTE), (other, ROUTE)])
        client.runs.wait(client.sessions.prompt(client.sessions.start("echo", id=sid).id, "hello").run_id)
        log = client.sessions.events(sid)
        with client.listen("node.partition_down") as feed:
            wear_out(client, "partition", 0)
            assert next(iter(feed)).data["index"] == 0
        _, status = cli(fragile, "status")
        entry = next(child for child in status["children"] if child["name"] == "partition-0")
        assert (entry["state"], entry["cause"]["signal"], entry["pid"]) == ("down", "SIGKILL", None)
        _, listed = cli(fragile, "partition", "list")
        assert [row["state"] for row in listed["items"]] == ["down", "ready"]
        for command in (("route", "get", mine), ("session", "show", sid)):
            code, error = cli(fragile, *command)
            assert (code, error["code"]) == (1, "partition_unavailable")
            assert error["details"]["down"] is True
        assert cli(fragile, "route", "get", other)[0] == 0
        assert cli(fragile, "partition", "restart", "0")[0] == 0
        assert cli(fragile, "route", "get", mine)[1]["route"] == ROUTE
        assert client.sessions.events(sid) == log
        assert client.runs.wait(client.sessions.prompt(sid, "again").run_id).output["content"] == "again"


def test_listener_hears_of_both_lives_of_a_partition_that_was_down(fragile: mesh.LocalNode) -> None:
    """If a partition was down and is restarted by hand, then who listened all the time missed nothing."""
    with fragile.client(timeout_s=20.0) as client:
        sid = next(f"s{n}" for n in range(100) if client.partitions.of(f"s{n}") == 0)
        client.sessions.start("echo", id=sid)
        with client.listen(f"session.{sid}.") as feed:
            runs = [client.sessions.prompt(sid, "before").run_id]
            client.runs.wait(runs[0])
            wear_out(client, "partition", 0)
            client.partitions.restart(0)
            runs.append(client.sessions.prompt(sid, "behind").run_id)
            seqs = []
            for notification in feed:
                seqs.append(notification.data["seq"])
                if (notification.data["run_id"], notification.data["type"]) == (runs[1], "run_completed"):
                    break
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
        assert seqs[-1] == client.sessions.get(sid).seq


def test_sessions_of_a_runner_that_is_down_stop_with_crash_and_go_on_elsewhere(
    tmp_path: Path, node_config: dict[str, Any]
) -> None:
    """If one of two runners is down, then its sessions stop (crash); their next prompt runs on the other."""
    config = {**node_config, "supervision": {"intensity": 2, "heartbeat_s": 0.2}}
    with (
        mesh.LocalNode(tmp_path / "data", runners=2, config=config) as node,
        node.client(timeout_s=20.0) as client,
    ):
        client.sessions.start("echo", id="s")
        runner = client.sessions.handle("s").runner
        with client.listen("lifecycle.stopped.s") as feed:
            wear_out(client, "runner", runner)
            assert next(iter(feed)).data["reason"] == "crash"
        assert client.runs.wait(client.sessions.prompt("s", "on").run_id).output["content"] == "on"
        assert client.sessions.handle("s").runner != runner


def test_runner_that_is_down_is_restarted_by_hand(fragile: mesh.LocalNode) -> None:
    """If the only runner is down, then runs wait; ``mesh runner restart`` has them executed, and one that
    serves is another process then."""
    with fragile.client(timeout_s=20.0) as client:
        client.sessions.start("echo", id="s")
        wear_out(client, "runner", 0)
        assert [row["state"] for row in cli(fragile, "runner", "list")[1]["items"]] == ["down"]
        assert cli(fragile, "runner", "restart", "7") == (2, {
            **cli(fragile, "runner", "restart", "7")[1], "code": "invalid_argument"})
        assert cli(fragile, "runner", "restart", "0")[0] == 0
        run = client.sessions.prompt("s", "on").run_id
        assert client.runs.wait(run).output["content"] == "on"
        former = pids(client, "runner")[0]
        client.sessions.start("sleeper", id="works")
        works = client.runs.submit("works", "60").id
        wait_for(lambda: client.sessions.events("works", type="message_streamed"), "the first piece")
        client.restart_runner(0)
        with pytest.raises(mesh.MeshError) as ended:
            client.runs.wait(works)
        assert ended.value.code == "cancelled" and client.sessions.get("works").status == "active"
        wait_for(lambda: pids(client, "runner").get(0, former) != former, "another process")
        assert client.runs.wait(client.sessions.prompt("s", "again").run_id).output["content"] == "again"


def test_isolated_runner_that_is_down_stops_nobody_else_and_is_restarted_by_hand(
    tmp_path: Path, node_config: dict[str, Any]
) -> None:
    """If an isolated agent's runner is down, then its sessions stop (crash) and its prompts are refused by
    name, the others run on; ``mesh runner restart`` brings it back, and its sessions with it."""
    config = {**node_config, "supervision": {"intensity": 2, "heartbeat_s": 0.2}}
    config["agents"]["counter"]["isolation"] = "process"
    with mesh.LocalNode(tmp_path / "data", config=config) as node, node.client(timeout_s=20.0) as client:
        client.sessions.start("counter", id="s")
        with client.listen("lifecycle.stopped.s", "node.runner_down") as feed:
            wear_out(client, "runner", client.sessions.handle("s").runner)
            told = {n.topic: n.data for n in (next(iter(feed)), next(iter(feed)))}
        assert told["lifecycle.stopped.s"]["reason"] == "crash"
        assert (told["node.runner_down"]["index"], told["node.runner_down"]["agent"]) == (1, "counter")
        with pytest.raises(mesh.Unavailable, match="mesh runner restart 1") as refused:
            client.sessions.prompt("s", "3")
        assert refused.value.code == "session_unavailable" and refused.value.details["runners"] == [1]
        assert client.run_once("echo", "on").output["content"] == "on"
        client.restart_runner(1)
        assert client.runs.wait(client.sessions.prompt("s", "2").run_id).output["content"] == "0 1 "
        assert [(row["agent"], row["state"]) for row in cli(node, "runner", "list")[1]["items"]] == [
            (None, "ready"), ("counter", "ready")]
