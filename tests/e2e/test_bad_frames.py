"""Bad input on the wire: each case is refused by name, and disturbs nobody."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from bad_cases import CALLS, FRAMES, HEADER, Case, call_with, head, read
from helpers import wait_for

import mesh

ROUTE = {"external_room_id": "1"}
AGAIN = 8


class Bystander(threading.Thread):
    """A client that minds its own business; what goes wrong for it is kept."""

    def __init__(self, node: mesh.LocalNode) -> None:
        super().__init__(daemon=True)
        self.node = node
        self.over = threading.Event()
        self.calls = 0
        self.trouble: list[BaseException] = []

    def run(self) -> None:
        with self.node.client(timeout_s=20.0) as client:
            while not self.over.wait(0.005):
                try:
                    client.routes.set("by:stander:room", ROUTE)
                    assert client.routes.get("by:stander:room").route == ROUTE
                    self.calls += 2
                except (mesh.MeshError, AssertionError) as error:
                    self.trouble.append(error)


class Raw:
    """One DEALER that sends what it is told."""

    def __init__(self, address: str) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.ROUTING_ID, b"\x01" + os.urandom(15))
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(address)

    def ask(self, *frames: bytes) -> tuple[tuple[Any, ...], Any]:
        """Send one message; (header, body) of the answer, after it was sent again while told so."""
        while True:
            self.socket.send_multipart(frames)
            assert self.socket.poll(20_000), "no answer"
            answer = self.socket.recv()
            fields = HEADER.unpack_from(answer)
            body = (
                msgpack.unpackb(answer[HEADER.size :], strict_map_key=False)
                if answer[HEADER.size :]
                else None
            )
            if not (fields[3] & AGAIN and body["code"] == "partition_unavailable"):
                return fields, body

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mesh.LocalNode]:
    """One node for all cases: none of them may leave a trace."""
    with mesh.LocalNode(tmp_path_factory.mktemp("bad") / "data") as started:
        yield started


@pytest.fixture(scope="module")
def bystander(node: mesh.LocalNode) -> Iterator[Bystander]:
    """Somebody else's traffic."""
    thread = Bystander(node)
    thread.start()
    wait_for(lambda: thread.calls, "the bystander's first calls")
    yield thread
    thread.over.set()
    thread.join()


@pytest.fixture(scope="module")
def watcher(node: mesh.LocalNode) -> Iterator[mesh.Client]:
    """Who looks at the node between the cases."""
    with node.client(timeout_s=20.0) as client:
        yield client


@pytest.fixture
def raw(node: mesh.LocalNode, bystander: Bystander, watcher: mesh.Client) -> Iterator[Raw]:
    """A client for one case. Afterwards nobody was restarted and nobody else saw anything."""
    before = children(watcher)
    opened = Raw(node.address)
    yield opened
    assert opened.ask(read("feed.head"))[1][0][0] == 0, "the same client's next call"
    opened.close()
    assert children(watcher) == before
    done = bystander.calls
    wait_for(lambda: bystander.calls > done or bystander.trouble, "the bystander's next calls")
    assert not bystander.trouble


def children(client: mesh.Client) -> dict[str, tuple[int, int]]:
    """name -> (pid, restarts) of every process of the node."""
    return {child["name"]: (child["pid"], child["restarts"]) for child in client.status()["children"]}


@pytest.mark.parametrize("case", FRAMES, ids=lambda case: case.name)
def test_bad_payload_is_refused_whole(raw: Raw, case: Case) -> None:
    """If a payload breaks the protocol, then it is refused as a whole, with a code of the table."""
    fields, body = raw.ask(*case.frames)
    assert fields[3] & 2 and (body["code"], set(body)) == (case.code, {"code", "message", "details"})
    assert len(body["message"]) < 400


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.name)
def test_bad_call_is_refused_alone(raw: Raw, case: Case) -> None:
    """If a call makes no sense, then its own answer says so, and nothing was stored."""
    fields, body = raw.ask(*case.frames)
    [[status, error]] = body
    assert not fields[3] & 2 and (status, error["code"]) == (1, case.code)
    assert len(error["message"]) < 400


def test_a_bad_call_does_not_spoil_its_neighbours(raw: Raw) -> None:
    """If one call of a payload is wrong, then the others are answered."""
    body = msgpack.packb([["feed.head", []], ["route.get", [5]], ["nope", []], ["feed.head", []]])
    assert [status for status, _ in raw.ask(head() + body)[1]] == [0, 1, 1, 0]


@pytest.mark.parametrize(
    "unused",
    [
        {"flags": 0xFE},
        {"reserved": 255},
        {"remaining_ms": 2**32 - 1},
        {"request_id": 0},
        {"request_id": 2**64 - 1},
        {"map_version": 9},
        {"number": 2**64 - 1},
    ],
)
def test_fields_that_mean_nothing_here_are_ignored(raw: Raw, unused: dict[str, int]) -> None:
    """If a READ carries bits of a later version, or numbers only writes have, then it is answered."""
    fields, body = raw.ask(head(**unused) + call_with("feed.head"))
    assert body[0][0] == 0 and fields[8] == unused.get("request_id", 7)


@pytest.mark.parametrize("size", [16 * 1024 * 1024 + 65, 64 * 1024 * 1024])
def test_oversized_frame_costs_its_sender_the_connection(
    node: mesh.LocalNode, bystander: Bystander, watcher: mesh.Client, size: int
) -> None:
    """If a frame is over the limit, then ZeroMQ ends that connection; the client's next one is served."""
    before, sender = children(watcher), Raw(node.address)
    events = sender.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    sender.socket.send(bytes(size))
    assert events.poll(20_000), "still connected"
    assert sender.ask(read("feed.head"))[1][0][0] == 0
    sender.close()
    assert children(watcher) == before and not bystander.trouble


@pytest.mark.parametrize("routing_id", [b"\0" + b"x" * 15, b"short", b"x" * 17, None])
def test_wrong_routing_id_is_refused(
    node: mesh.LocalNode, bystander: Bystander, routing_id: bytes | None
) -> None:
    """If a client's id is not 16 bytes, or looks like an actor's, then every payload of it is refused."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        if routing_id and routing_id[0]:
            socket.setsockopt(zmq.ROUTING_ID, routing_id)
        socket.connect(node.address)
        for payload in (read("feed.head"), head(7)):
            socket.send(payload)
            assert socket.poll(20_000)
            answer = socket.recv()
            assert msgpack.unpackb(answer[HEADER.size :])["code"] == "protocol_error"
    assert not bystander.trouble


def test_each_refusal_is_counted_and_none_is_a_bug(
    node: mesh.LocalNode, raw: Raw, watcher: mesh.Client, tmp_path: Path
) -> None:
    """If payloads are refused, then ``mesh status`` counts them, and no log tells of a bug."""
    before = watcher.status()["router"]
    for _ in range(5):
        raw.ask(b"nonsense")
    after = watcher.status()["router"]
    assert after["malformed"] >= before["malformed"] + 5 and after["refused"] >= before["refused"] + 5
    for log in Path(watcher.status()["data_dir"]).rglob("*.log"):
        text = log.read_text()
        assert "a call failed" not in text and "Traceback" not in text, f"{log}: {text[-2000:]}"
