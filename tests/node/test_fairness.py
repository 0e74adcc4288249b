"""One client's flood and the others: who asks for little does not stand behind who asks for much."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from conditions import wait_for
from harness import MiniNode, RawClient

from mesh.core import mailbox, wire
from mesh.core.credit import WINDOW_COST
from mesh.core.fair import cost
from mesh.net import sockets

KEY = "telegram:bot:room"
PAYLOADS, CALLS = 300, 40


def route(number: int) -> dict[str, str]:
    return {"external_room_id": str(number), "filler": "x" * 40}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[MiniNode]:
    with MiniNode(tmp_path) as node:
        yield node


def frozen(node: MiniNode) -> int:
    """Stop partition 0; its process id."""
    pid = node.children["partition-0"].pid
    os.kill(pid, signal.SIGSTOP)
    return pid


class Mailbox:
    """A partition's mailbox in the test, in place of partition 0: it is given requests and takes none."""

    def __init__(self, node: MiniNode) -> None:
        node.children["partition-0"].kill()
        node.tell_router()
        identity = mailbox.identity(mailbox.PARTITION, 0, 2_000_000)
        self.context = sockets.context()
        self.socket = sockets.dealer_socket(self.context, f"ipc://{node.runtime}/back", identity)
        self.tell(["ready", "P", 0, 2_000_000, os.getpid(), {}])
        while self.frame()[0]:
            pass  # its welcome; what came before it
        self.given: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.context.term()

    def tell(self, message: list[Any]) -> None:
        assert self.socket.poll(20_000, sockets.POLLOUT)
        self.socket.send(wire.ROUTER_ID + wire.pack(message))

    def frame(self) -> bytes:
        assert self.socket.poll(20_000), "nothing came"
        return self.socket.recv()

    def until(self, client: RawClient, request: int) -> int:
        """Receive until a request of a client comes; how many of others came before."""
        while True:
            frame = self.frame()
            if not frame[0]:
                continue
            header = wire.decode_header(frame[wire.ACTOR_PREFIX_BYTES :])
            if (frame[:16], header.request_id) == (client.id, request):
                return len(self.given)
            self.given.append(frame)


def wait_until_inflight(client: RawClient, count: int) -> None:
    """Until the router has forwarded so many payloads to partition 0 that are not answered."""

    def inflight() -> int:
        status = client.take(client.send(wire.Kind.STATUS, b""))
        return int(status.body["partitions"][0]["inflight"])

    wait_for(lambda: inflight() == count, f"{count} payloads in flight")


def post(flood: RawClient) -> list[int]:
    """Send 300 payloads that all write one key, each its own number."""
    return [
        flood.send(
            wire.Kind.WRITE, wire.pack([["route.set", [KEY, route(number)]]] * CALLS), number=number
        )
        for number in range(1, PAYLOADS + 1)
    ]


def test_a_request_is_not_served_behind_the_flood_of_another_client(node: MiniNode) -> None:
    """If hundreds of one client's payloads wait when another asks, then its answer comes before most of them
    were executed, and the flood's own keep their order."""
    with RawClient(node) as flood, RawClient(node) as modest:
        modest.write(["route.set", [KEY, route(0)]])
        pid = frozen(node)
        try:
            requests = post(flood)
            wait_until_inflight(modest, PAYLOADS)
            read = modest.send(wire.Kind.READ, wire.pack([["route.get", [KEY]]]))
            wait_until_inflight(modest, PAYLOADS + 1)
        finally:
            os.kill(pid, signal.SIGCONT)
        seen = int(modest.take(read).value[0]["external_room_id"])
        assert seen < PAYLOADS / 2
        assert all(set(flood.take(request).codes) == {"ok"} for request in requests)
        assert modest.read(["route.get", [KEY]]).value[0]["external_room_id"] == str(PAYLOADS)


def test_of_a_flood_little_is_on_its_way_to_the_partition_when_another_asks(node: MiniNode) -> None:
    """If one client has hundreds of large requests open and another asks for little, then that is given to
    the partition behind one window of the flood; a third one's large request is given as soon as there is
    room, and the flood goes on in its order."""
    body = wire.pack([["route.get", [KEY]]] * 150)
    with Mailbox(node) as partition, RawClient(node) as flood, RawClient(node) as modest:
        for _ in range(PAYLOADS):
            flood.send(wire.Kind.READ, body)
        wait_until_inflight(modest, PAYLOADS)
        third = modest.send(wire.Kind.READ, wire.pack([["route.get", [KEY]]]))
        before = partition.until(modest, third)
        assert before <= WINDOW_COST // len(body) + 1
        large = modest.send(wire.Kind.READ, body)
        wait_until_inflight(modest, PAYLOADS + 2)
        partition.tell(["took", WINDOW_COST])
        assert partition.until(modest, large) <= before + 1
        partition.tell(["took", _cost(partition)])
        wait_for(lambda: _given(partition) == PAYLOADS, "the whole flood")
        assert [wire.decode_header(frame[wire.ACTOR_PREFIX_BYTES :]).request_id for frame in partition.given
                ] == list(range(1, PAYLOADS + 1))


def test_a_flood_that_rests_for_another_client_goes_on_by_itself(node: MiniNode) -> None:
    """If a flood rests after each turn, since another client asks for little all the time, then it gets its
    next turn without another word of the partition, in its order."""
    body = wire.pack([["route.get", [KEY]]] * 150)
    with Mailbox(node) as partition, RawClient(node) as flood, RawClient(node) as modest:
        for _ in range(PAYLOADS):
            flood.send(wire.Kind.READ, body)
        wait_until_inflight(modest, PAYLOADS)
        while sum(frame[:16] == flood.id for frame in partition.given) < PAYLOADS:
            if not len(partition.given) % 15:
                modest.send(wire.Kind.READ, wire.pack([["route.get", [KEY]]]))
            _given(partition)
        given = [frame[wire.ACTOR_PREFIX_BYTES :] for frame in partition.given if frame[:16] == flood.id]
        assert [wire.decode_header(frame).request_id for frame in given] == list(range(1, PAYLOADS + 1))


def _given(partition: Mailbox) -> int:
    partition.given.append(partition.frame())
    partition.tell(["took", _cost(partition)])
    return len(partition.given)


def _cost(partition: Mailbox) -> int:
    return sum(map(cost, partition.given))


def test_what_waits_in_the_router_is_refused_when_its_partition_dies(node: MiniNode) -> None:
    """If a partition dies while a flood waits in the router, then all but the window that it was given is
    told to ask again, and the flood's client is told of the death."""
    body = wire.pack([["route.get", [KEY]]] * 150)
    with RawClient(node) as flood, RawClient(node) as modest:
        frozen(node)
        requests = [flood.send(wire.Kind.READ, body) for _ in range(PAYLOADS)]
        wait_until_inflight(modest, PAYLOADS)
        node.kill_partition()
        given = WINDOW_COST // len(body) + 1
        for request in requests[given:]:
            answer = flood.take(request)
            assert answer.codes == ["partition_unavailable"] and answer.header.flags & wire.Flag.AGAIN
        assert flood.gone
        wait_until_inflight(modest, 0)


def test_a_client_that_never_reads_its_answers_leaves_room_for_others(tmp_path: Path) -> None:
    """If a client asks on and on and reads nothing, then it holds its own share at most and others are
    served."""
    with (
        MiniNode(tmp_path, config={"limits": {"inflight_per_partition": 100}}) as node,
        RawClient(node) as deaf, RawClient(node) as modest,
    ):
        modest.write(["route.set", [KEY, route(0)]])
        pid = frozen(node)
        try:
            for _ in range(500):
                deaf.send(wire.Kind.READ, wire.pack([["route.get", [KEY]]]))
            wait_until_inflight(modest, 50)
            read = modest.send(wire.Kind.READ, wire.pack([["route.get", [KEY]]]))
            wait_until_inflight(modest, 51)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert modest.take(read).value[0]["external_room_id"] == "0"


def test_a_frozen_partition_does_not_delay_the_other(tmp_path: Path) -> None:
    """If one partition stands still with all that it may have in flight, then the other answers, to the same
    client too; what is over the share is refused at once."""
    config = {"limits": {"inflight_per_partition": 40}}
    with MiniNode(tmp_path, partitions=2, config=config) as node, RawClient(node) as client:
        pid = frozen(node)
        try:
            ask = wire.pack([["feed.head", []]])
            stuck = [client.send(wire.Kind.READ, ask, address=0) for _ in range(30)]
            assert client.take(stuck[-1]).codes == ["overloaded"]
            for _ in range(100):
                assert client.take(client.send(wire.Kind.READ, ask, address=1)).codes == ["ok"]
        finally:
            os.kill(pid, signal.SIGCONT)
        assert client.take(stuck[0]).codes == ["ok"]
