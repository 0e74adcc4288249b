"""The blocking shell against a scripted node: threads, forks, interrupts."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import Any

import pytest
from fake_node import SILENCE, FakeNode

import mesh
from mesh.core.wire import Header, Kind

KEY = ("t", "b", "r", None)
ROUTE = {"external_room_id": "1"}
DEAD = "tcp://127.0.0.1:9"


def test_calls_of_one_thread_one_after_another(fake: FakeNode) -> None:
    """If a single thread calls, then each call is answered and writes are numbered in order."""
    with mesh.Client(fake.address) as client:
        for n in range(20):
            client.routes.set(KEY, {"external_room_id": str(n)})
            assert client.routes.get(KEY).route == {"external_room_id": str(n)}
        assert client.partitions.count() == 2
        assert client.ping() > 0
    numbers = [h.number for _, h, _ in fake.received if h.kind == Kind.WRITE]
    assert numbers == list(range(1, 21))


def test_many_threads_share_one_client(fake: FakeNode) -> None:
    """If sixteen threads share a client, then each gets its own answers over one connection."""
    wrong: list[Any] = []

    def work(name: int) -> None:
        for n in range(50):
            key, route = f"t:b:{name}-{n}", {"external_room_id": f"{name}-{n}"}
            client.routes.set(key, route)
            if client.routes.get(key).route != route:
                wrong.append(key)

    with mesh.Client(fake.address, timeout_s=30.0) as client:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert len(fake.routes) == 800
    assert len({peer for peer, _, _ in fake.received}) == 1


def test_thread_with_a_long_wait_does_not_hold_up_others(fake: FakeNode) -> None:
    """If the driving thread waits for minutes, then other threads' calls still leave and return."""
    fake.script = lambda header, calls: SILENCE if header.kind == Kind.WAIT else None
    with mesh.Client(fake.address) as client:
        ended = threading.Event()

        def wait() -> None:
            with pytest.raises(mesh.ClientClosed):
                client.runs.wait("run_" + "0" * 32)
            ended.set()

        threading.Thread(target=wait).start()
        while Kind.WAIT not in fake.kinds():
            client.ping()
        client.routes.set(KEY, ROUTE)
        assert client.routes.get(KEY).route == ROUTE
        assert not ended.is_set()
        client.close()
        assert ended.wait(20)


def test_driver_hands_over_when_its_own_call_is_done(fake: FakeNode) -> None:
    """If the driver's call is answered first, then a waiting thread takes over and gets its answer."""
    held: list[tuple[bytes, Header]] = []

    def script(header: Header, calls: list[Any]) -> Any:
        if calls and calls[0][1] == ["t:b:held"]:
            held.append((fake.received[-1][0], header))
            return SILENCE
        return None

    fake.script = script
    results: list[Any] = []
    with mesh.Client(fake.address, timeout_s=30.0) as client:
        client.routes.set(KEY, ROUTE)
        waiting = threading.Thread(target=lambda: results.append(client.routes.delete("t:b:held")))
        waiting.start()
        while not held:
            client.routes.get(KEY)
        for _ in range(50):
            client.routes.get(KEY)
        peer, header = held[0]
        fake.push(peer, fake.reply(header, b"\x91\x92\x00\xc3"))
        waiting.join(20)
    assert results == [True]


def test_no_node_is_a_clear_error_within_the_limit() -> None:
    """If nothing listens, then node_unreachable names the address and `mesh up`; retryable is true."""
    with (
        mesh.Client(DEAD, timeout_s=0.2) as client,
        pytest.raises(mesh.NodeUnreachable, match="mesh up") as raised,
    ):
        client.routes.get(KEY)
    assert DEAD in raised.value.message and raised.value.retryable


def test_no_address_and_no_local_node_says_how_to_start_one(clean_environ: pytest.MonkeyPatch) -> None:
    """If no address is given and no node runs here, then the first call says so; the constructor does not."""
    clean_environ.setenv("MESH_NODE_NAME", "nobody-of-this-name")
    with mesh.Client() as client, pytest.raises(mesh.NodeUnreachable, match=r"nobody-of-this-name.*mesh up"):
        client.routes.get(KEY)


def test_address_comes_from_the_environment(fake: FakeNode, clean_environ: pytest.MonkeyPatch) -> None:
    """If MESH_ADDRESS is set, then Client() connects there; a scheme is not needed."""
    clean_environ.setenv("MESH_ADDRESS", fake.address.removeprefix("tcp://"))
    with mesh.Client() as client:
        assert client.partitions.count() == 2


@pytest.mark.parametrize("address", ["nonsense", "http://x:1", "tcp://:1", "tcp://host:port", "ipc://"])
def test_text_that_is_no_address_is_a_config_error(address: str) -> None:
    """If the address cannot be one, then the error says what is expected."""
    with mesh.Client(address) as client, pytest.raises(mesh.ConfigError, match="expected"):
        client.routes.get(KEY)


def test_other_version_is_a_clear_error(fake: FakeNode) -> None:
    """If the node speaks another version, then the error says which, at once."""
    fake.script = lambda header, calls: b"MH\x02" + bytes(60)
    with (
        mesh.Client(fake.address, timeout_s=30.0) as client,
        pytest.raises(mesh.RemoteProtocolError, match="version"),
    ):
        client.routes.get(KEY)


def test_silence_is_timeout_and_the_client_goes_on(fake: FakeNode) -> None:
    """If one call is not answered, then it is timeout, and the next call works."""
    fake.script = lambda header, calls: SILENCE if calls else None
    with mesh.Client(fake.address) as client:
        with pytest.raises(mesh.DeadlineExceeded):
            client.routes.get(KEY, timeout_s=0.1)
        fake.script = None
        client.routes.set(KEY, ROUTE)
        assert client.routes.get(KEY).route == ROUTE


def test_closed_client_refuses_and_close_may_be_repeated(fake: FakeNode) -> None:
    """If a client is closed, then calls are client_closed; closing again, or unused, is harmless."""
    mesh.Client(fake.address).close()
    client = mesh.Client(fake.address)
    client.ping()
    client.close()
    client.close()
    with pytest.raises(mesh.ClientClosed):
        client.routes.get(KEY)


def test_running_event_loop_does_not_matter(fake: FakeNode) -> None:
    """If a loop is running in this thread (Jupyter), then the blocking client works all the same."""

    async def cell() -> int:
        with mesh.Client(fake.address) as client:
            return client.partitions.count()

    assert asyncio.run(cell()) == 2


def test_client_works_in_a_forked_child_and_still_in_the_parent(fake: FakeNode) -> None:
    """If a process forks, then the child's calls use sockets and a client id of their own."""
    with mesh.Client(fake.address) as client:
        client.routes.set(KEY, ROUTE)
        pid = _fork(
            lambda: client.routes.get(KEY).route == ROUTE and client.routes.set("t:b:child", ROUTE) is None
        )
        _, status = os.waitpid(pid, 0)
        assert status == 0
        assert client.routes.get("t:b:child").route == ROUTE
    peers = {peer for peer, header, _ in fake.received}
    assert len(peers) == 2
    assert [h.number for _, h, _ in fake.received if h.kind == Kind.WRITE] == [1, 1]


def test_fork_while_another_thread_drives(fake: FakeNode) -> None:
    """If a thread waits in a call during a fork, then the child is not stuck in its locks."""
    fake.script = lambda header, calls: SILENCE if header.kind == Kind.WAIT else None
    with mesh.Client(fake.address, timeout_s=20.0) as client:

        def wait() -> None:
            with pytest.raises(mesh.ClientClosed):
                client.runs.wait("run_" + "0" * 32)

        waiting = threading.Thread(target=wait)
        waiting.start()
        while Kind.WAIT not in fake.kinds():
            client.ping()
        pid = _fork(lambda: client.partitions.count() == 2)
        _, status = os.waitpid(pid, 0)
        assert status == 0
        assert client.partitions.count() == 2
        client.close()
        waiting.join(20)


def _fork(check: Any) -> int:
    """Run a check in a child; its exit status says whether it held."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        code = 1
        try:
            code = 0 if check() else 2
        finally:
            os._exit(code)
    return pid


def test_interrupted_call_leaves_the_client_usable(fake: FakeNode) -> None:
    """If Ctrl-C ends a call of the driving thread, then the next call works."""
    fake.script = lambda header, calls: SILENCE if calls else None

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGALRM, interrupt)
    try:
        with mesh.Client(fake.address, timeout_s=30.0) as client:
            client.ping()
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                client.routes.get(KEY)
            fake.script = None
            client.routes.set(KEY, ROUTE)
            assert client.routes.get(KEY).route == ROUTE
    finally:
        signal.signal(signal.SIGALRM, former)


def test_many_clients_in_one_process(fake: FakeNode) -> None:
    """If a process has thirty clients, then each has its own id and all of them close cleanly."""
    clients = [mesh.Client(fake.address) for _ in range(30)]
    for client in clients:
        client.routes.set(KEY, ROUTE)
    for client in clients:
        client.close()
    assert len({peer for peer, _, _ in fake.received}) == 30


def test_dropped_client_leaves_no_descriptor_open(fake: FakeNode) -> None:
    """If clients are dropped without close, then their sockets go with them."""
    mesh.Client(fake.address).ping()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        mesh.Client(fake.address).ping()
    assert len(os.listdir("/proc/self/fd")) <= before + 2
