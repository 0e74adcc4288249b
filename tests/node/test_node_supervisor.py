"""The supervisor's shell: real processes with tiny children."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conditions import wait_for

from mesh import launch
from mesh.config import load
from mesh.errors import MeshError
from mesh.launch import Spawned, abandon, document, find_node, launch_env, runtime_dir, stop_node, wait_ready
from mesh.node.reaper import Proc, alive, children, proc_of
from mesh.store.node_db import NodeDb

pytestmark = pytest.mark.e2e
SCRIPT = Path(__file__).with_name("supervised.py")
WAIT_S = 20.0
SUPERVISION = {"hang_timeout_s": 0.6, "stop_timeout_s": 1.0, "backoff_max_ms": 20}
#: Wait for a condition, with this file's patience.
until = partial(wait_for, patience_s=WAIT_S)


class Node:
    """One supervised node of tiny children over one data folder; may live several times."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.spawned: list[Spawned] = []

    def spawn(self, *, by_name: bool = False, **supervision: Any) -> Spawned:
        partitions = supervision.pop("partitions", 2)
        config = load(environ={}, overrides={
            "node": {"partitions": partitions, "port": 0, "name": supervision.pop("name", "tiny")},
            "supervision": {**SUPERVISION, **supervision},
        })
        ready_in, ready_out = os.pipe()
        parent_in, parent_out = os.pipe()
        path = self.data_dir / "launch.json"
        path.write_text(json.dumps(
            document(config, self.data_dir, by_name=by_name, parent_fd=parent_in, ready_fd=ready_out)
        ))
        log = self.data_dir / "supervisor.log"
        with log.open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, str(SCRIPT), str(path)],
                stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
                env=launch_env(self.data_dir), pass_fds=(ready_out, parent_in), start_new_session=True,
            )
        os.close(ready_out)
        os.close(parent_in)
        self.spawned.append(Spawned(process, ready_in, parent_out, log))
        return self.spawned[-1]

    def start(self, **settings: Any) -> dict[str, Any]:
        return wait_ready(self.spawn(**settings))

    def child(self, name: str) -> dict[str, Any]:
        try:
            roster = json.loads((self.data_dir / "roster.json").read_text())
        except (OSError, ValueError):
            return {}
        return next((entry for entry in roster if entry["name"] == name), {})

    def wait_child(self, name: str, **wanted: Any) -> dict[str, Any]:
        """Wait until the router has heard that a child looks like this."""
        def look() -> dict[str, Any] | None:
            found = self.child(name)
            return found if all(found.get(key) == value for key, value in wanted.items()) else None

        return until(look, f"{name} {wanted}, last {self.child(name)}")

    def wait_replaced(self, name: str, old: dict[str, Any]) -> dict[str, Any]:
        return until(
            lambda: found if (found := self.child(name))["pid"] not in (None, old["pid"])
            and found["state"] == "ready" else None,
            f"{name} replaced",
        )

    def daemon(self) -> Proc:
        """The setsid grandchild of the runner."""
        path = self.data_dir / "daemon.pid"
        return until(lambda: proc_of(int(path.read_text())) if path.exists() else None, "daemon")

    @property
    def pid(self) -> int:
        return self.spawned[-1].process.pid


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    tiny = Node(tmp_path)
    yield tiny
    for spawned in tiny.spawned:
        abandon(spawned)


def test_start_reports_the_address_and_stop_leaves_no_trace(node: Node) -> None:
    """If a node starts and is told to stop, then it said where it was, ends with 0 and leaves nothing."""
    info = node.start(by_name=True, name="tiny-a")
    assert (info["address"], info["pid"]) == ("tcp://a:1", node.pid)
    found = find_node("tiny-a")
    assert found == info
    assert find_node(runtime_dir(node.data_dir)) == info
    procs = [proc_of(pid) for pid in children(node.pid)]
    assert len(procs) == 4
    assert stop_node(info) is True
    assert node.spawned[0].process.wait() == 0
    assert not [proc for proc in procs if proc and alive(proc)]
    assert find_node("tiny-a") is None
    assert not runtime_dir(node.data_dir).exists()


def test_killed_child_is_replaced_and_its_cause_published(node: Node) -> None:
    """If a partition is killed, then another one serves in its place and the roster says why."""
    node.start()
    old = node.wait_child("partition-1", state="ready")
    os.kill(old["pid"], signal.SIGKILL)
    new = node.wait_replaced("partition-1", old)
    assert new["cause"]["signal"] == "SIGKILL"
    assert new["restarts"] == 1
    assert new["incarnation"] > old["incarnation"]
    assert node.child("partition-0")["restarts"] == 0


def test_crash_publishes_exit_status_and_last_stderr_lines(node: Node) -> None:
    """If a child raises, then its exit status and the end of its traceback are published."""
    node.start()
    old = node.wait_child("partition-0", state="ready")
    crash = node.data_dir / "partition-0.crash"
    crash.touch()
    os.kill(old["pid"], signal.SIGKILL)
    cause = until(lambda: (c := node.child("partition-0")["cause"]) and c["exit_status"] == 1 and c, "crash")
    assert cause["stderr"].endswith("RuntimeError: told to crash")
    crash.unlink()
    node.wait_child("partition-0", state="ready")


def test_stopped_child_is_killed_waited_for_and_replaced(node: Node) -> None:
    """If a child is stopped by SIGSTOP, then it is killed, and only after its death replaced."""
    node.start()
    old = node.wait_child("partition-0", state="ready")
    frozen = proc_of(old["pid"])
    assert frozen is not None
    os.kill(old["pid"], signal.SIGSTOP)
    new = node.wait_replaced("partition-0", old)
    assert not alive(frozen)
    assert new["cause"]["reason"] == "silent for more than 0.6 s"


def test_router_that_dies_gets_its_old_endpoints_and_the_roster(node: Node) -> None:
    """If the router is killed, then its successor serves and hears the whole roster again."""
    node.start()
    old = node.wait_child("router", state="ready")
    os.kill(old["pid"], signal.SIGKILL)
    assert node.wait_replaced("router", old)["cause"]["signal"] == "SIGKILL"


def test_dead_runner_takes_its_setsid_grandchildren_along(node: Node) -> None:
    """If a runner is killed, then what its commands left behind comes back to the supervisor and dies."""
    node.start()
    old = node.wait_child("runner-0", state="ready")
    daemon = node.daemon()
    os.kill(old["pid"], signal.SIGKILL)
    until(lambda: not alive(daemon), "the daemon dies")
    node.wait_replaced("runner-0", old)


def test_killed_supervisor_takes_everybody_with_it(node: Node) -> None:
    """If the supervisor is killed, then children and setsid grandchildren end, even a stopped runner's."""
    node.start()
    runner = node.wait_child("runner-0", state="ready")
    procs = [node.daemon(), *(proc for pid in children(node.pid) if (proc := proc_of(pid)))]
    assert len(procs) == 5
    os.kill(runner["pid"], signal.SIGSTOP)
    os.kill(node.pid, signal.SIGKILL)
    until(lambda: not any(alive(proc) for proc in procs), "everybody dies")


def test_next_start_kills_what_an_earlier_life_left(node: Node) -> None:
    """If a runner and its commands survive their supervisor, then the next start kills them by their mark."""
    node.start()
    stubborn = node.data_dir / "runner-0.stubborn"
    stubborn.touch()
    left = [proc_of(node.wait_child("runner-0", state="ready")["pid"]), node.daemon()]
    os.kill(node.pid, signal.SIGKILL)
    node.spawned[-1].process.wait()
    assert all(proc is not None and alive(proc) for proc in left)
    node.start()
    assert not any(proc is not None and alive(proc) for proc in left)
    stubborn.unlink()


def test_second_node_on_one_folder_is_refused_with_the_pid(node: Node) -> None:
    """If a node runs, then a second one on its folder is refused in one line, and the first serves on."""
    node.start()
    first = node.pid
    with pytest.raises(Exception, match=f"in use by the node with pid {first}") as refused:
        node.start()
    assert refused.value.code == "config_error"  # type: ignore[attr-defined]
    assert node.spawned[-1].process.wait() == 1
    assert node.spawned[0].process.poll() is None


def test_second_node_of_one_name_is_refused(node: Node, tmp_path: Path) -> None:
    """If a node of that name runs on another folder, then its address file is not taken over."""
    node.start(by_name=True, name="tiny-b")
    other = Node(tmp_path / "other")
    other.data_dir.mkdir()
    with pytest.raises(Exception, match="a node named 'tiny-b' is running already"):
        other.start(by_name=True, name="tiny-b")
    assert find_node("tiny-b") is not None
    abandon(other.spawned[0])


def test_exhausted_child_is_down_until_restarted_by_hand(node: Node) -> None:
    """If a child dies too often, then it is down while the rest serves, and comes back by hand."""
    crash = node.data_dir / "partition-1.crash"
    crash.touch()
    node.start(intensity=3)
    down = node.wait_child("partition-1", state="down")
    assert (down["pid"], down["restarts"]) == (None, 3)
    assert node.child("partition-0")["state"] == "ready"
    crash.unlink()
    (node.data_dir / "restart").write_text("partition-1")
    node.wait_child("partition-1", state="ready")


def test_restart_by_hand_replaces_a_living_child(node: Node) -> None:
    """If a client asks for it, then a living partition is stopped in order and replaced."""
    node.start()
    old = node.wait_child("partition-0", state="ready")
    (node.data_dir / "restart").write_text("partition-0")
    new = node.wait_replaced("partition-0", old)
    assert (new["cause"]["exit_status"], new["cause"]["reason"]) == (0, "stopped by hand")


def test_fatal_child_ends_the_first_start_with_its_message(node: Node) -> None:
    """If the router cannot listen, then the node ends with status 1 and that one message."""
    (node.data_dir / "router.fatal").write_text("port 7400 is in use")
    with pytest.raises(Exception, match="port 7400 is in use"):
        node.start()
    assert node.spawned[0].process.wait() == 1


@pytest.mark.parametrize("child", ["partition-1", "resize"])
def test_a_start_that_goes_on_is_not_silent(node: Node, child: str) -> None:
    """If a partition's start or the moving of slots takes long, then whoever waits hears that it goes on."""
    with NodeDb(node.data_dir / "node.db") as db:
        db.ensure_map(3 if child == "resize" else 2)
    slow = node.data_dir / f"{child}.slow"
    slow.touch()
    spawned = node.spawn()
    assert select.select([spawned.ready_fd], [], [], WAIT_S)[0] and os.read(spawned.ready_fd, 1) == b"\n"
    slow.unlink()
    assert wait_ready(spawned)["pid"] == spawned.process.pid


def test_ctrl_c_while_a_node_starts_ends_it(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """If who waits for a node is interrupted, then nothing of the node is left behind."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    (node.data_dir / "partition-1.slow").touch()
    spawned = node.spawn()
    monkeypatch.setattr(launch, "_read_line", interrupted)
    with pytest.raises(KeyboardInterrupt):
        wait_ready(spawned)
    assert spawned.process.poll() is not None


def test_who_waits_for_a_node_gives_up_when_it_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a node says that its start goes on, then it has its time again; in silence it has not."""
    told, tell = os.pipe()
    clock, words = [0.0], [b"\n", b"\n\n", b'\n{"pid"', b": 1}\n", b"\n"]

    def later(*_: object) -> tuple[list[int], list[int], list[int]]:
        clock[0] += 20
        os.write(tell, words.pop(0) if words else b"")
        return select.select([told], [], [], 0)

    monkeypatch.setattr(launch, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(launch, "select", SimpleNamespace(select=later))
    try:
        assert launch._read_line(told, 45.0) == {"pid": 1}
        with pytest.raises(MeshError, match="within 45 s"):
            launch._read_line(told, 45.0)
        assert clock[0] == 80 + 40
    finally:
        os.close(told)
        os.close(tell)


def test_node_without_any_partition_does_not_start(node: Node) -> None:
    """If no partition comes up, then the start fails with the last line of one's stderr."""
    for index in (0, 1):
        (node.data_dir / f"partition-{index}.crash").touch()
    with pytest.raises(Exception, match="no partition comes up: RuntimeError: told to crash"):
        node.start(intensity=1)


def test_router_that_does_not_stay_up_ends_the_node(node: Node) -> None:
    """If the router exhausts its restarts, then nobody could reach the node, and it ends with status 1."""
    node.start(intensity=2)
    (node.data_dir / "router.crash").touch()
    os.kill(node.wait_child("router", state="ready")["pid"], signal.SIGKILL)
    assert node.spawned[0].process.wait(WAIT_S) == 1


def test_end_of_the_parents_pipe_stops_the_node(node: Node) -> None:
    """If the program that owns the node lets go of its pipe, then the node stops in order."""
    node.start()
    fd = node.spawned[0].parent_fd
    assert fd is not None
    os.close(fd)
    node.spawned[0].parent_fd = None
    assert node.spawned[0].process.wait(WAIT_S) == 0


def test_supervisor_that_slept_blames_nobody(node: Node) -> None:
    """If the supervisor itself was stopped for long, then no child is killed for its silence."""
    node.start()
    before = {name: node.wait_child(name, state="ready")["pid"] for name in ("partition-0", "runner-0")}
    os.kill(node.pid, signal.SIGSTOP)
    time.sleep(1.5)  # longer than hang_timeout_s and the allowed lateness: the condition itself is time
    os.kill(node.pid, signal.SIGCONT)
    (node.data_dir / "restart").write_text("partition-1")
    old = node.wait_child("partition-1", state="ready")
    until(lambda: node.child("partition-1")["restarts"] == 1, f"restart of {old['pid']}")
    assert {name: node.child(name)["pid"] for name in before} == before


def test_other_number_of_partitions_moves_slots_before_the_start(node: Node) -> None:
    """If a node starts with another number of partitions, then slots are moved by a child first."""
    node.start()
    abandon(node.spawned[0])
    node.start(partitions=3)
    node.wait_child("partition-2", state="ready")
    abandon(node.spawned[1])
    with NodeDb(node.data_dir / "node.db") as db:
        assert db.slot_map()[1:] == (2, 3)
        assert db.boot() == 3


def test_cause_shows_only_the_last_life_of_the_log(node: Node) -> None:
    """If an earlier life of a child left its log, then the cause of a death does not quote it."""
    logs = node.data_dir / "logs"
    logs.mkdir()
    (logs / "partition-0.log").write_text("from an older life\n")
    node.start()
    old = node.wait_child("partition-0", state="ready")
    os.kill(old["pid"], signal.SIGKILL)
    assert node.wait_replaced("partition-0", old)["cause"]["stderr"] == ""
