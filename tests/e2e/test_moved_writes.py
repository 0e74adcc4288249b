"""Writes in flight while the node starts anew with another number of partitions: each happens once."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import msgpack
import pytest
from helpers import free_ports, pids, wait_for
from test_foreign_client import AGAIN, HEADER, HELLO, WRITE, Foreign, slot_of

import mesh

PARTITION_MOVED = 1 | 32


def node_of(folder: Path, port: int, partitions: int) -> mesh.LocalNode:
    return mesh.LocalNode(folder / "data", partitions=partitions, config={"node": {"port": port}})


def ask_again(foreign: Foreign, partition: int, calls: Any, number: int) -> Any:
    """Send a write to the partition that had it before the map changed, as the README says."""
    version = foreign.ask(HELLO)[1]["map_version"]
    while True:
        foreign.request_id += 1
        header = HEADER.pack(b"MH", 1, WRITE, PARTITION_MOVED, 0, partition, version, 10_000,
                             foreign.request_id, number, number)
        foreign.socket.send(header + msgpack.packb(calls))
        assert foreign.socket.poll(15_000), "no answer"
        frame = foreign.socket.recv()
        if not HEADER.unpack_from(frame)[3] & AGAIN:
            return msgpack.unpackb(frame[HEADER.size :])


def kill(node: mesh.LocalNode) -> None:
    """kill -9 of the supervisor: everything dies with it."""
    os.kill(node.pid, signal.SIGKILL)
    node.close()


def test_open_writes_happen_once_whatever_the_number_of_partitions(tmp_path: Path) -> None:
    """If a partition is gone for good with writes in it, then what was not done is done by those that have
    the slots now, and what was done is answered as it was."""
    port, answers = free_ports(), dict[str, Any]()
    keys = [f"tg:bot:room{n}" for n in range(8)]
    client = mesh.Client(f"127.0.0.1:{port}", timeout_s=60.0)

    def ask() -> None:
        answers["many"] = client.routes.set_many([(key, {"external_room_id": key}) for key in keys])
        answers["start"] = client.sessions.start("echo", id=f"{gone}.more")

    asking = threading.Thread(target=ask)
    with node_of(tmp_path, port, 2) as node, node.client() as other:
        foreign = Foreign(node.tcp_address)
        gone = next(f"s{n}" for n in range(99) if client.partitions.of(f"s{n}") == 1)
        calls = [["session.create", [gone, "echo", None]]]
        first = foreign.ask(WRITE, slot_of(f"s:{gone}"), calls, 1)[1]
        os.kill(pids(other, "partition")[1], signal.SIGSTOP)
        asking.start()
        mine = [key for key in keys if other.partitions.of(key) == 0]
        wait_for(lambda: isinstance(other.routes.get_many(mine)[0], mesh.RouteRecord),
                 "the half of partition 0: both left together")
        kill(node)
    with node_of(tmp_path, port, 1) as node, node.client() as other:
        asking.join(60.0)
        assert answers["many"] == [None] * 8 and answers["start"].status == "active"
        assert [found.route["external_room_id"] for found in other.routes.get_many(keys)] == keys
        assert ask_again(foreign, 1, calls, number=1) == first
        assert len(list(other.sessions.events(gone))) == 1
    foreign.close()
    client.close()


def test_listener_of_another_number_of_partitions_is_told(tmp_path: Path) -> None:
    """If slots moved behind a cursor, or under a listener, then both get a typed error and no silent gap."""
    port = free_ports()
    client = mesh.Client(f"127.0.0.1:{port}", timeout_s=20.0)
    with node_of(tmp_path, port, 2):
        feed = client.listen("lifecycle.", "session.")
        client.run_once("echo", "x", id="s")
        seen = next(feed)
    with node_of(tmp_path, port, 1):
        client.run_once("echo", "x", id="t")
        with pytest.raises(mesh.InvalidArgument, match="number of partitions") as told:
            for note in feed:
                assert "t" not in (note.data.get("session_id"), note.topic)
        assert told.value.code == "invalid_cursor"
    with node_of(tmp_path, port, 2), pytest.raises(mesh.InvalidArgument) as told:
        client.listen("lifecycle.", "session.", after=seen.cursor)
    assert told.value.code == "invalid_cursor"
    feed.close()
    client.close()
