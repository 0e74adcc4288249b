"""A disk that is full or read-only, for real: what is refused, what goes on, and how it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from disks import fill, read_only, small_disk
from helpers import pids, wait_for

import mesh

SIZE = "24m"
ROUTE = {"external_room_id": "x"}
BIG = {**ROUTE, "text": "y" * 20_000}
PIECES = 60
AGENTS = f"""
async def talker(run):
    for n in range({PIECES}):
        yield f"{{n:03}}" + "z" * 100_000
"""


def key(n: int) -> mesh.SessionKey:
    return mesh.SessionKey("telegram", "bot", f"room_{n}")


def degraded(client: mesh.Client, index: int = 0) -> str | None:
    """What the status says of a partition."""
    row: dict[str, Any] = next(p for p in client.status()["partitions"] if p["index"] == index)
    return row.get("degraded")


@pytest.fixture
def disk() -> Iterator[Path]:
    with small_disk(SIZE) as folder:
        yield folder


def node_on(disk: Path, **config: Any) -> mesh.LocalNode:
    return mesh.LocalNode(
        disk / "data", partitions=1,
        config={"supervision": {"hang_timeout_s": 5.0, "heartbeat_s": 0.2}, **config},
    )


def fill_until_refused(disk: Path, client: mesh.Client, acknowledged: dict[mesh.SessionKey, Any]) -> Path:
    """No byte is left and a write was refused; every write that was not is noted."""
    filler = fill(disk)
    for n in range(1000, 3000):
        try:
            client.routes.set(key(n), BIG)
        except mesh.StoreError as error:
            assert error.code == "store_unavailable" and error.details["reason"]
            return filler
        acknowledged[key(n)] = BIG
    raise AssertionError("the disk is never full")


def check(client: mesh.Client, acknowledged: dict[mesh.SessionKey, Any]) -> None:
    """Everything that was acknowledged is there."""
    found = client.routes.get_many(list(acknowledged))
    assert [record.route for record in found] == list(acknowledged.values())


def test_a_full_disk_loses_nothing_through_kills_and_restarts(disk: Path) -> None:
    """If the disk is full, then writes are refused with the reason and reads go on, also after kill -9 of the
    partition and of the whole node; when there is room it ends by itself, announced, with all that was
    acknowledged."""
    acknowledged: dict[mesh.SessionKey, Any] = {}
    with node_on(disk) as node, node.client(timeout_s=20.0) as client:
        for n in range(50):
            client.routes.set(key(n), {**ROUTE, "n": n})
            acknowledged[key(n)] = {**ROUTE, "n": n}
        sid = client.run_once("echo", "kept").session_id
        log = client.sessions.events(sid)
        news = client.listen("node.partition_")
        filler = fill_until_refused(disk, client, acknowledged)
        with pytest.raises(mesh.StoreError) as refused:
            client.sessions.create("echo", id="t")
        assert refused.value.code == "store_unavailable" and "full" in refused.value.message
        check(client, acknowledged)
        assert client.sessions.events(sid) == log
        assert "full" in wait_for(lambda: degraded(client), "the status says degraded")
        assert "full" in str(client.partitions.info(0).degraded)
        assert "full" in next(n for n in news if n.topic == "node.partition_degraded").data["reason"]

        former = client.partitions.pid(0)
        os.kill(former, signal.SIGKILL)
        wait_for(lambda: client.partitions.pid(0) not in (None, former), "the next incarnation")
        check(client, acknowledged)
        assert client.sessions.events(sid) == log
        assert "full" in wait_for(lambda: degraded(client), "it knows again")
        with pytest.raises(mesh.StoreError):
            client.routes.set(key(1), BIG)
        os.kill(node.pid, signal.SIGKILL)

    with node_on(disk) as node, node.client(timeout_s=20.0) as client:
        check(client, acknowledged)
        assert client.sessions.events(sid) == log
        assert "full" in wait_for(lambda: degraded(client), "and after a new start")
        news = client.listen("node.partition_")
        pid = client.partitions.pid(0)
        filler.unlink()
        wait_for(lambda: degraded(client) is None, "room ends it")
        assert next(n for n in news if n.topic == "node.partition_recovered").data["index"] == 0
        assert client.partitions.pid(0) == pid
        client.routes.set(key(1), BIG)
        acknowledged[key(1)] = BIG
        check(client, acknowledged)
        client.run_once("echo", "again")


def test_a_run_on_a_full_disk_waits_with_its_events_and_ends_properly(disk: Path, tmp_path: Path) -> None:
    """If the disk becomes full during a run, then its events wait in the runner within their bound, the agent
    is not asked for more, and when there is room all of them are stored once."""
    (tmp_path / "agents.py").write_text(AGENTS)
    agents = {"talker": {"provider": "python", "target": f"{tmp_path / 'agents.py'}:talker"}}
    limits = {"runner_unacked_bytes": 1024 * 1024}
    with node_on(disk, limits=limits, agents=agents) as node, node.client(timeout_s=60.0) as client:
        client.sessions.start("talker", id="s")
        disk_facts = os.statvfs(disk)
        filler = disk / "filler"
        filler.write_bytes(bytes(disk_facts.f_bfree * disk_facts.f_frsize - 3 * 1024 * 1024))
        run = client.runs.submit("s", "go")
        assert "full" in wait_for(lambda: degraded(client), "the run fills the disk")
        held = wait_for(lambda: client.status()["runners"][0]["unacked_bytes"], "events wait in the runner")
        assert held < 2 * 1024 * 1024
        assert client.runs.get(run.id).status == "running"
        filler.unlink()
        result = client.runs.wait(run.id)
        pieces = [e.data["content"][:3] for e in result.events if e.type == "message_streamed"]
        assert pieces == [f"{n:03}" for n in range(PIECES)]
        wait_for(lambda: degraded(client) is None, "the status says so")  # it is a second old at most


def test_a_node_goes_on_when_its_logs_and_lists_cannot_be_written(disk: Path) -> None:
    """If the disk is full, then restarts of children work: no file beside the databases is needed."""
    with node_on(disk) as node, node.client(timeout_s=20.0) as client:
        client.routes.set(key(1), ROUTE)
        fill(disk)
        for kind in ("runner", "partition"):
            former = pids(client, kind)[0]
            os.kill(former, signal.SIGKILL)
            wait_for(lambda kind=kind, former=former: pids(client, kind).get(0) not in (None, former), kind)
        assert client.routes.get(key(1)).route == ROUTE


def test_a_start_on_a_full_disk_is_one_clear_line(disk: Path) -> None:
    """If there is no room for a new node, then mesh up says so in one line and ends."""
    fill(disk)
    done = mesh_up(disk / "data")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
    assert str(disk) in done.stderr and "Traceback" not in done.stderr


def test_a_read_only_folder_is_one_clear_line(disk: Path) -> None:
    """If the data folder is read-only, then mesh up names it and ends."""
    data = disk / "data"
    with node_on(disk) as node, node.client() as client:
        client.routes.set(key(1), ROUTE)
    with read_only(data):
        done = mesh_up(data)
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
    assert str(data) in done.stderr and "Traceback" not in done.stderr


def test_a_read_only_database_is_named_and_the_rest_serves_on(tmp_path: Path) -> None:
    """If one partition's file is read-only, then that partition is down with the reason, the others serve;
    when it is writable again, a restart by hand brings it back."""
    with mesh.LocalNode(tmp_path / "data", partitions=2) as node, node.client() as client:
        mine, other = (next(key(n) for n in range(99) if client.partitions.of(key(n)) == p) for p in (0, 1))
        client.routes.set_many([(mine, ROUTE), (other, ROUTE)])
    file = tmp_path / "data" / "partition-0.db"
    with read_only(file):
        node = mesh.LocalNode(tmp_path / "data", partitions=2).start()
        client = node.client()
        info = wait_for(lambda: (i := client.partitions.info(0)).state == "down" and i, "it gave up at once")
        assert info.restarts == 0
        assert str(file) in info.cause["reason"] and "read-only" in info.cause["reason"]
        assert client.routes.get(other).route == ROUTE
        with pytest.raises(mesh.MeshError) as refused:
            client.routes.get(mine)
        assert refused.value.code == "partition_unavailable"
    try:
        client.partitions.restart(0)
        wait_for(lambda: client.partitions.info(0).state == "ready", "it is back")
        assert client.routes.get(mine).route == ROUTE
    finally:
        client.close()
        node.close()


def mesh_up(data: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mesh", "up", "--port", "0", "--name", "faults", "--data-dir", str(data)],
        capture_output=True, text=True, timeout=60, check=False,
        cwd=Path(mesh.__file__).parents[1],
        env={**os.environ, "TERM": "dumb"},
    )


def test_a_backup_onto_a_full_disk_is_a_typed_error(disk: Path, tmp_path: Path) -> None:
    """If the target of a backup is full, then the caller is told, nothing half is left, the node goes on."""
    with mesh.LocalNode(tmp_path / "data", partitions=1) as node, node.client(timeout_s=20.0) as client:
        client.routes.set_many([(key(n), BIG) for n in range(100)])
        filler = fill(disk)
        with pytest.raises(mesh.StoreError) as refused:
            client.backup(str(disk / "copy"))
        assert "full" in refused.value.message and str(disk) in refused.value.message
        assert degraded(client) is None and client.routes.get(key(1)).route == BIG
        filler.unlink()
        assert not list(disk.glob("copy/*"))
        assert [Path(f).name for f in client.backup(str(disk / "copy"))] == ["partition-0.db"]


def immutable(file: Path, on: bool) -> None:
    """Make a file refuse writes, also to those who have it open, as a failing disk does."""
    if shutil.which("chattr") is None:
        pytest.skip("there is no chattr here: a file that is open cannot be made read-only")
    command = ["chattr", "+i" if on else "-i", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this file system or user cannot do that: {done.stderr.strip()}")


def test_files_that_become_read_only_in_use_degrade_and_recover(tmp_path: Path) -> None:
    """If the files refuse writes while the node runs, then it says so, reads go on, and it ends by itself."""
    with mesh.LocalNode(tmp_path / "data", partitions=1) as node, node.client(timeout_s=20.0) as client:
        client.routes.set(key(1), ROUTE)
        wal = tmp_path / "data" / "partition-0.db-wal"
        immutable(wal, True)
        try:
            with pytest.raises(mesh.StoreError) as refused:
                client.routes.set(key(2), ROUTE)
            assert refused.value.code == "store_unavailable"
            wait_for(lambda: degraded(client), "the status says it")
            assert client.routes.get(key(1)).route == ROUTE
            with pytest.raises(mesh.NotFound):
                client.routes.get(key(2))
        finally:
            immutable(wal, False)
        wait_for(lambda: degraded(client) is None, "it ends by itself")
        client.routes.set(key(2), ROUTE)
