"""A partition whose disk refuses writes: it says so, reads go on, and it recovers by itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import COMPLETED, FakeRunner, MiniNode, RawClient

from mesh.core.events import TYPE_CODE
from mesh.core.slots import run_id_for

pytestmark = pytest.mark.e2e
ROUTE = {"external_room_id": "x"}


def small_disk() -> None:
    """In the partition: SIGUSR1 makes the file full (SQLITE_FULL at the next page), SIGUSR2 gives room
    again."""
    from mesh.store.sqlite import Store

    stores: list[Store] = []
    opened = Store.acquire

    def acquire(self: Store, *, boot_id: str, offset_ms: int) -> int:
        stores.append(self)
        return opened(self, boot_id=boot_id, offset_ms=offset_ms)

    Store.acquire = acquire

    def set_pages(count: int) -> Callable[..., None]:
        return lambda *_: stores[-1].connection.execute(f"PRAGMA max_page_count = {count}")

    signal.signal(signal.SIGUSR1, set_pages(1))  # never less than the file has now
    signal.signal(signal.SIGUSR2, set_pages(1_000_000))


def fill(client: RawClient, pid: int) -> str:
    """Make the disk full and write until it is noticed; returns the error's code."""
    os.kill(pid, signal.SIGUSR1)
    for n in range(200):
        codes = client.write(["route.set", [f"tg:b:fill{n}", {**ROUTE, "x": "y" * 2_000}]]).codes
        if codes != ["ok"]:
            return codes[0]
    raise AssertionError("the disk is never full")


def recovered(client: RawClient) -> None:
    for _ in range(200):
        if client.read(["partition.info", []]).value["degraded"] is None:
            return
        client.socket.poll(50)
    raise AssertionError("still degraded")


def test_full_disk_refuses_writes_and_serves_reads(tmp_path: Path) -> None:
    """If the disk is full, then writes are store_unavailable and leave nothing, reads go on, old numbers are
    answered, and when there is room the partition recovers by itself."""
    with MiniNode(tmp_path, before=small_disk) as node, RawClient(node) as client, RawClient(node) as other:
        pid = node.children["partition-0"].pid
        first = other.write(["session.create", ["s", "echo", {}]], number=1)
        client.write(["route.set", ["tg:b:kept", ROUTE]])
        assert fill(client, pid) == "store_unavailable"
        assert client.write(["session.create", ["t", "echo", {}]]).codes == ["store_unavailable"]
        assert client.write(["route.set", ["tg:b:kept", {**ROUTE, "new": 1}]]).codes == ["store_unavailable"]
        answer = client.read(["route.get", ["tg:b:kept"]], ["session.get", ["s"]], ["session.get", ["t"]],
                             ["session.events", ["s", None]], ["partition.info", []])
        assert answer.codes == ["ok", "ok", "session_not_found", "ok", "ok"]
        assert answer.body[0][1][0] == ROUTE and answer.body[4][1]["degraded"]
        assert other.write(["session.create", ["s", "echo", {}]], number=1).body == first.body
        waiting = client.wait("session.wait", "s", {"after": 1})
        os.kill(pid, signal.SIGUSR2)
        recovered(client)
        assert client.write(["session.cancel", ["s"]], ["session.create", ["t", "echo", {}]]).codes == [
            "ok",
            "ok",
        ]
        assert client.take(waiting).value[0][0]["seq"] == 2
        assert client.read(["feed.head", []]).value["pos"] == 3
        assert node.children["partition-0"].pid == pid
        assert "can be written again" in node.log()


def test_a_run_that_ends_on_a_full_disk_is_settled_when_there_is_room(tmp_path: Path) -> None:
    """If a run ends while nothing can be written, then its last batch comes again and is stored once."""
    run_id = run_id_for("s", "0" * 29)
    with MiniNode(tmp_path, before=small_disk) as node, RawClient(node) as client, FakeRunner(node) as runner:
        pid = node.children["partition-0"].pid
        client.write(["session.start", ["s", "echo", {}]], ["run.submit", [run_id, "s", "hi"]])
        runner.wait_for("run")
        fill(client, pid)
        waiting = client.wait("run.wait", run_id)
        runner.batch(run_id, 1, 1, [TYPE_CODE["run_completed"]], COMPLETED)
        assert client.read(["run.get", [run_id]]).value["status"] == "running"
        os.kill(pid, signal.SIGUSR2)
        recovered(client)
        assert [run_id, 1] in runner.wait_for("known")[1]
        runner.batch(run_id, 1, 1, [TYPE_CODE["run_completed"]], COMPLETED)
        assert client.take(waiting).value["status"] == "completed"
        events, _ = client.read(["session.events", ["s", None]]).value
        assert [e["type"] for e in events].count("run_completed") == 1


def test_a_partition_that_starts_on_a_full_disk_serves_reads(tmp_path: Path) -> None:
    """If the disk is full already at the start, then what is there is read, and the rest follows later."""
    with MiniNode(tmp_path, before=small_disk) as node, RawClient(node) as client:
        client.write(["session.create", ["s", "echo", {}]])
        fill(client, node.children["partition-0"].pid)
        node.kill_partition()
        node.start_partition()
        os.kill(node.children["partition-0"].pid, signal.SIGUSR1)
        assert client.read(["session.get", ["s"]]).codes == ["ok"]
