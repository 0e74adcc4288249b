"""Peers that misbehave: they speak something else, never read, subscribe to everything, vanish, or pretend.

Each costs a bounded amount of memory, is counted, and disturbs nobody.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from bad_cases import head, read
from helpers import wait_for
from test_bad_frames import Bystander, Raw, children

import mesh
from mesh.core import mailbox, wire
from mesh.net.window import ROOM_BYTES

MB = 2**20
UNREAD, UNREAD_PER_CLIENT, TOPICS = 16 * MB, 4 * MB, 1_000
KEYS = [f"big:replies:room{n}" for n in range(32)]
BIG_READ = [["route.get_many", [KEYS]]]
BIG_REPLY = 32 * 30_000
#: What an allocator and a Python process may add to what is counted.
SLACK = 48 * MB


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mesh.LocalNode]:
    """One partition, and bounds that a test can reach."""
    limits = {"unread_bytes": UNREAD, "unread_bytes_per_client": UNREAD_PER_CLIENT, "feed_topics": TOPICS}
    folder = tmp_path_factory.mktemp("peers") / "data"
    with mesh.LocalNode(folder, partitions=1, config={"limits": limits}) as started:
        with started.client(timeout_s=20.0) as client:
            client.routes.set_many([(key, {"external_room_id": "1", "x": "y" * 30_000}) for key in KEYS])
        yield started


@pytest.fixture(scope="module")
def watcher(node: mesh.LocalNode) -> Iterator[mesh.Client]:
    """Who looks at the node."""
    with node.client(timeout_s=20.0) as client:
        yield client


@pytest.fixture(autouse=True)
def undisturbed(node: mesh.LocalNode, watcher: mesh.Client) -> Iterator[None]:
    """During and after each test: nobody was restarted, and somebody else's calls succeeded throughout."""
    before, bystander = children(watcher), Bystander(node)
    bystander.start()
    wait_for(lambda: bystander.calls or bystander.trouble, "the bystander's first calls")
    yield
    done = bystander.calls
    wait_for(lambda: bystander.calls > done or bystander.trouble, "the bystander's next calls")
    bystander.over.set()
    bystander.join()
    assert not bystander.trouble and children(watcher) == before


def rss(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def router_of(client: mesh.Client) -> dict[str, Any]:
    """The router's counters."""
    counters: dict[str, Any] = client.status()["router"]
    return counters


def tcp(client: mesh.Client, name: str) -> tuple[str, int]:
    """Host and port of an endpoint."""
    host, _, port = client.status()["endpoints"][name].removeprefix("tcp://").rpartition(":")
    return host, int(port)


# --- they never read ---


@pytest.mark.parametrize("clients", [1, 8])
def test_replies_that_nobody_reads_are_bounded_and_refused(
    node: mesh.LocalNode, watcher: mesh.Client, clients: int
) -> None:
    """If clients ask for 200 MB and read nothing, then the router keeps its bounds and frees it later."""
    before = router_of(watcher)
    pids = {"router": (before["pid"], UNREAD), "partition": (watcher.partitions.pid(0) or 0, ROOM_BYTES)}
    held = {who: (pid, rss(pid), bound) for who, (pid, bound) in pids.items()}
    with ExitStack() as stack:
        lazy = [stack.enter_context(closing(Raw(node.address))) for _ in range(clients)]
        for raw in lazy:
            raw.socket.setsockopt(zmq.RCVHWM, 1)
        for n in range(200):
            ask = head(request_id=n + 1, remaining_ms=60_000) + msgpack.packb(BIG_READ)
            lazy[n % clients].socket.send(ask)
        wait_for(lambda: router_of(watcher)["replies"] >= before["replies"] + 200, "all were answered")
        after = router_of(watcher)
        assert after["slow_clients"] > before["slow_clients"]
        assert 0 < after["unread_bytes"] <= min(UNREAD, clients * UNREAD_PER_CLIENT) + clients * BIG_REPLY
        for who, (pid, former, bound) in held.items():
            grown = rss(pid) - former
            assert grown < bound + SLACK, f"the {who} grew by {grown / MB:.0f} MB"
    wait_for(lambda: router_of(watcher)["unread_bytes"] < MB, "what they left unread is forgotten")


def test_late_reader_is_told_to_ask_again(node: mesh.LocalNode, watcher: mesh.Client) -> None:
    """If a client asked for more than it may leave unread, then the rest of it is ``overloaded``."""
    with closing(Raw(node.address)) as raw:
        before = router_of(watcher)["replies"]
        for n in range(40):
            raw.socket.send(head(request_id=n + 1, remaining_ms=60_000) + msgpack.packb(BIG_READ))
        wait_for(lambda: router_of(watcher)["replies"] >= before + 40, "all were answered")
        codes = []
        for _ in range(40):
            assert raw.socket.poll(20_000), f"only {len(codes)} answers"
            body = msgpack.unpackb(raw.socket.recv()[wire.HEADER_BYTES :], strict_map_key=False)
            codes.append(body["code"] if isinstance(body, dict) else "ok")
        assert set(codes) <= {"ok", "overloaded"} and codes.count("ok") >= UNREAD_PER_CLIENT // BIG_REPLY
        assert raw.ask(head() + msgpack.packb(BIG_READ))[1][0][0] == 0


def test_listener_that_never_reads_costs_the_others_nothing(
    node: mesh.LocalNode, watcher: mesh.Client
) -> None:
    """If a subscriber never reads, then a listener beside it still gets every event, once and in order."""
    with zmq.Context() as context, context.socket(zmq.SUB) as lazy:
        lazy.setsockopt(zmq.RCVHWM, 1)
        lazy.setsockopt(zmq.LINGER, 0)
        lazy.subscribe(b"")
        lazy.connect(node.feed_address)
        session = watcher.sessions.start("echo")
        with watcher.listen(f"session.{session.id}.") as listener:
            for _ in range(20):
                watcher.runs.submit(session.id, "x" * 30_000)
                last = watcher.sessions.get(session.id).seq
                while next(listener).data["seq"] < last:
                    pass
        seqs = [event.seq for event in watcher.sessions.events(session.id)]
        assert seqs == list(range(1, len(seqs) + 1))


def test_event_too_large_for_the_feed_reaches_listeners_from_the_log(
    node: mesh.LocalNode, watcher: mesh.Client
) -> None:
    """If an event is over ``feed_message_bytes``, then it is not published, and a listener still gets it."""
    before = watcher.status()["partitions"][0]["unpublished"]
    session = watcher.sessions.start("echo")
    with watcher.listen(f"session.{session.id}.") as listener:
        run = watcher.runs.submit(session.id, "x" * 300_000)
        seen = [next(listener)]
        while seen[-1].topic.rpartition(".")[2] != "run_completed":
            seen.append(next(listener))
    first = seen[0].data["seq"]
    assert [n.data["seq"] for n in seen] == list(range(first, first + len(seen)))
    assert any(len(n.data["data"].get("content", "")) == 300_000 for n in seen) and run.id
    wait_for(lambda: watcher.status()["partitions"][0]["unpublished"] > before, "it is counted")


# --- they ask for everything ---


def test_flood_of_subscriptions_is_bounded_counted_and_taken_back(
    node: mesh.LocalNode, watcher: mesh.Client
) -> None:
    """If one listener subscribes to 30 000 topics, then they are counted; when it leaves, they are gone."""
    pid, count = watcher.partitions.pid(0), 30_000
    assert pid is not None
    before = rss(pid)

    def topics() -> int:
        known: int = watcher.status()["partitions"][0]["topics"]
        return known

    with zmq.Context() as context, context.socket(zmq.SUB) as greedy:
        greedy.setsockopt(zmq.LINGER, 0)
        greedy.setsockopt(zmq.SNDHWM, 0)
        greedy.connect(node.feed_address)
        for n in range(count):
            greedy.subscribe(b"session.flood%d." % n)
        wait_for(lambda: topics() >= count, "all of them were heard")
        session = watcher.sessions.start("echo")
        with watcher.listen(f"session.{session.id}.") as listener:
            watcher.runs.submit(session.id, "hi")
            assert next(listener).data["session_id"] == session.id
        assert rss(pid) < before + SLACK
    wait_for(lambda: topics() < 100, "none is left")


def test_topic_of_a_megabyte_costs_the_connection(node: mesh.LocalNode, watcher: mesh.Client) -> None:
    """If a subscription is longer than any topic, then the proxy ends that connection: to libzmq it is a tree
    of a million levels, whose end by recursion killed the router."""
    for length in (4_000, MB):
        with socket.create_connection(tcp(watcher, "feed"), timeout=20) as connection:
            connection.sendall(GREETING)
            assert connection.recv(64, socket.MSG_WAITALL)[:1] == b"\xff"
            connection.sendall(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB")
            frame = b"\x02" + (length + 1).to_bytes(8, "big") + b"\x01" + b"x" * length
            if length < MB:
                connection.sendall(frame)
                continue
            with pytest.raises(OSError, match=r"reset|closed|Broken"):
                connection.sendall(frame)
                while connection.recv(4096):
                    pass
                raise OSError("closed")
    watcher.ping()


def test_listener_refuses_a_topic_that_no_feed_has(watcher: mesh.Client) -> None:
    """If a caller asks for a topic of a megabyte, or one with control characters, then it is refused here."""
    for topic in ("node." + "x" * MB, "route.\0", "node.\ud800"):
        with pytest.raises(mesh.InvalidArgument):
            watcher.listen(topic)


# --- they speak something else ---

HALF_GREETING = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03"
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER"
STRANGERS = {
    "nothing": b"",
    "HTTP": b"GET / HTTP/1.1\r\nHost: mesh\r\n\r\n",
    "HTTP without end": b"GET / HTTP/1.1\r\n" + b"X-Y: z\r\n" * 10_000,
    "noise": os.urandom(100_000),
    "zeros": bytes(100_000),
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "a greeting that stops": HALF_GREETING,
    "a greeting for another mechanism": GREETING.replace(b"NULL", b"XYZW"),
    "READY cut short": GREETING + READY[:-3],
    "a command that lies about its length": GREETING + b"\x06" + b"\xff" * 8 + b"\x05READY",
    "a frame of 2^63 bytes": GREETING + READY + b"\x02\x7f" + b"\xff" * 7,
    "a frame of 16 MiB that never comes": GREETING + READY + b"\x02" + (16 * MB).to_bytes(8, "big") + b"MH",
    "half a multipart message": GREETING + READY + b"\x01\x03abc",
}


@pytest.mark.parametrize("port", ["address", "feed"])
@pytest.mark.parametrize("what", STRANGERS)
def test_stranger_on_the_tcp_port_is_ignored(
    node: mesh.LocalNode, watcher: mesh.Client, what: str, port: str
) -> None:
    """If something that is no ZeroMQ peer connects 20 times and stays, then nobody notices."""
    before = rss(router_of(watcher)["pid"])
    opened = [socket.create_connection(tcp(watcher, port), timeout=20) for _ in range(20)]
    try:
        for connection in opened:
            try:
                connection.sendall(STRANGERS[what])
            except OSError:
                pass  # it was thrown out while it was still talking
        for letter in (b"a", b"b"):  # a slow loris says one byte now and then
            for connection in opened:
                try:
                    connection.sendall(letter)
                except OSError:
                    pass
            watcher.ping()
        assert rss(router_of(watcher)["pid"]) < before + SLACK
    finally:
        for connection in opened:
            connection.close()


def test_tls_hello_is_not_answered(node: mesh.LocalNode, watcher: mesh.Client) -> None:
    """If a TLS client greets, then it gets no session, and mesh goes on."""
    context = ssl.create_default_context()
    plain = socket.create_connection(tcp(watcher, "address"), timeout=2)
    with closing(plain), pytest.raises((OSError, ssl.SSLError)):
        context.wrap_socket(plain, server_hostname="mesh")
    watcher.ping()


# --- they vanish ---


def test_clients_that_connect_ask_and_vanish_leave_nothing(
    node: mesh.LocalNode, watcher: mesh.Client
) -> None:
    """If 500 clients ask for something and disappear, then no memory is kept for them."""
    before, resident = router_of(watcher), rss(router_of(watcher)["pid"])
    context = zmq.Context()
    for n in range(500):
        gone = context.socket(zmq.DEALER)
        gone.setsockopt(zmq.LINGER, 0 if n % 2 else 50)
        gone.setsockopt(zmq.ROUTING_ID, b"\x02" + os.urandom(15))
        gone.connect(node.address)
        if n % 3 == 0:
            gone.send(b"half of a message", zmq.SNDMORE)
        else:
            gone.send(head(request_id=1) + msgpack.packb(BIG_READ))
        gone.close()
    context.destroy(linger=100)
    watcher.ping()
    wait_for(lambda: router_of(watcher)["unread_bytes"] < MB, "what they left unread is forgotten")
    after = router_of(watcher)
    assert after["requests"] > before["requests"] and after["clients"] <= 600
    assert rss(after["pid"]) < resident + UNREAD + SLACK


def test_client_that_vanishes_mid_write_leaves_the_write_whole(
    node: mesh.LocalNode, watcher: mesh.Client
) -> None:
    """If a client disappears behind its write, then the write happened once or not at all."""
    raw = Raw(node.address)
    calls = [["route.set", [f"gone:client:room{n}", {"external_room_id": str(n)}]] for n in range(50)]
    raw.ask(read("feed.head"))
    raw.socket.send(head(2, number=1, done_below=1) + msgpack.packb(calls))
    raw.context.destroy(linger=200)
    wait_for(lambda: len(watcher.routes.list("client", limit=100)) in (0, 50), "all or nothing")


# --- they pretend ---


def test_impostor_among_the_actors_is_counted_and_dropped(node: mesh.LocalNode, watcher: mesh.Client) -> None:
    """If something on the actors' socket is no actor, then what it says is counted and not believed."""
    status = watcher.status()
    before, info = status["router"], watcher.partitions.info(0)
    back = status["endpoints"]["ipc"].removesuffix("front") + "back"
    ready = ["ready", "P", 0, 2**40, os.getpid(), {}]
    lies = (
        b"",
        b"x",
        bytes(16),
        b"\x01" * 16,
        wire.ROUTER_ID,
        wire.ROUTER_ID + b"\xc1",
        wire.ROUTER_ID + msgpack.packb(ready),
        wire.ROUTER_ID + msgpack.packb(["ready"]),
        wire.ROUTER_ID + msgpack.packb(["bye"]),
        wire.ROUTER_ID + msgpack.packb({"a": 1}),
        wire.actor_id(b"P", 0) + msgpack.packb(["batch", "r", 1, 1, [], None]),
        wire.actor_id(b"P", 9) + msgpack.packb(["acks", 1, 1]),
        wire.actor_id(b"?", 0, 1) + b"\xc0",
        b"\x01" * 16 + head(16),
        b"\x01" * 16 + head(16)[:10],
        os.urandom(1000),
        b"\0" + os.urandom(1000),
    )
    with zmq.Context() as context, context.socket(zmq.DEALER) as impostor:
        impostor.setsockopt(zmq.LINGER, 0)
        impostor.setsockopt(zmq.ROUTING_ID, b"p0.e7x")
        impostor.connect(back)
        for lie in lies:
            impostor.send(lie)
            impostor.send_multipart([lie, b"more", b""])

        def counted() -> int:
            now = router_of(watcher)
            return sum(now[name] - before[name] for name in ("malformed", "unknown_actors", "late_replies"))

        wait_for(lambda: counted() >= 2 * len(lies) - 2, "each of them is counted")
    assert watcher.partitions.info(0).epoch == info.epoch
    assert mailbox.identity(b"P", 0, 2**40) != b"p0.e7x"


def test_garbage_published_into_the_feed_reaches_no_iterator(
    node: mesh.LocalNode, watcher: mesh.Client
) -> None:
    """If something publishes garbage into the feed, then a listener drops it and goes on in order."""
    status = watcher.status()
    inside = status["endpoints"]["ipc"].removesuffix("front") + "pub"
    session = watcher.sessions.start("echo")
    with (
        zmq.Context() as context,
        context.socket(zmq.PUB) as liar,
        watcher.listen("lifecycle.", f"session.{session.id}.") as listener,
    ):
        liar.setsockopt(zmq.LINGER, 0)
        liar.connect(inside)
        for frames in (
            [b"lifecycle.started.x", b"\xc1"],
            [b"lifecycle.started.x", msgpack.packb({"lseq": "x"})],
            [b"lifecycle.\xff", msgpack.packb({})],
            [f"session.{session.id}.x".encode(), msgpack.packb({})],
            [b"node.head", msgpack.packb({"partition": 0})],
            [b"node.head"],
            [b"node.head", b"", b""],
        ):
            liar.send_multipart(frames)
        watcher.runs.submit(session.id, "hi")
        seqs = []
        while not seqs or seqs[-1] < 5:
            message = next(listener)
            if message.topic.startswith("session."):
                seqs.append(message.data["seq"])
        assert seqs == sorted(set(seqs))
