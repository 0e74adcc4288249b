"""Our end of ZMTP against libzmq's ROUTER, and against peers that misbehave."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.net import sockets
from mesh.net.dealer import UNSENT_BYTES, Dealer, PollWatch
from tests.conditions import wait_for

ID = b"\1dealer-of-tests"
LIMIT_MS = 20_000
POLLER = select.poll()


class Peer:
    """A ROUTER of libzmq at a path."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.context = sockets.context()
        self.socket = sockets.router_socket(self.context, **options)
        self.socket.bind(f"ipc://{path}")

    def recv(self) -> list[bytes]:
        """The next message, identity first."""
        assert self.socket.poll(LIMIT_MS)
        return self.socket.recv_multipart()

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def close(self) -> None:
        self.socket.close(0)
        self.context.term()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "p"


@pytest.fixture
def peer(path: Path) -> Iterator[Peer]:
    found = Peer(path)
    yield found
    found.close()


@pytest.fixture
def dealer(path: Path) -> Iterator[Dealer]:
    found = Dealer(str(path), ID, PollWatch(POLLER))
    yield found
    found.close()


def wakes() -> bool:
    """Whether the one who sleeps would be woken now, or within the limit."""
    return bool(POLLER.poll(LIMIT_MS))


def take(dealer: Dealer) -> bytes:
    """The next frame, as a shell takes it: wait for the descriptor, then ask."""
    while (frame := dealer.take()) is None:
        assert wakes()
    return frame


def is_up(dealer: Dealer) -> bool:
    assert dealer.take() is None
    return dealer.open


def test_frames_of_every_length_arrive_whole_and_in_order(peer: Peer, dealer: Dealer) -> None:
    """If frames are as short and as long as they may be, then each arrives as it was, both ways, in order."""
    lengths = [0, 1, 255, 256, 257, 16 * 1024, 16 * 1024 + 1, 300_000, 5_000_000, 2]
    wait_for(lambda: is_up(dealer), "the connection")
    frames = [os.urandom(length) for length in lengths]
    for frame in frames:
        dealer.send(frame)
        while dealer.unsent:
            dealer.wait(0.01)
        assert peer.recv() == [ID, frame]
        peer.send(ID, frame)
        assert take(dealer) == frame


def test_posted_frames_leave_with_the_flush(peer: Peer, dealer: Dealer) -> None:
    """If frames were posted, then they leave together, and not before they are told to."""
    wait_for(lambda: is_up(dealer), "the connection")
    frames = [b"%d" % n for n in range(300)]
    for frame in frames:
        assert dealer.post(frame)
    assert dealer.unsent == sum(len(frame) + 2 for frame in frames)
    dealer.flush()
    assert [peer.recv()[1] for _ in frames] == frames
    assert dealer.unsent == 0


def test_nobody_there_takes_nothing(path: Path, dealer: Dealer) -> None:
    """If nobody listens, then nothing is taken or found, and a peer that comes later is connected to."""
    for _ in range(3):
        assert not dealer.send(b"x")
        assert dealer.take() is None
    assert not dealer.open
    peer = Peer(path)
    try:
        wait_for(lambda: is_up(dealer), "the connection")
        dealer.send(b"hello")
        assert peer.recv() == [ID, b"hello"]
    finally:
        peer.close()


def test_peer_that_comes_back_is_found_again(path: Path, dealer: Dealer) -> None:
    """If the peer goes and another one comes, then nothing is taken in between."""
    for round_ in range(2):
        peer = Peer(path)
        wait_for(lambda: is_up(dealer), "the connection")
        dealer.send(b"%d" % round_)
        assert peer.recv() == [ID, b"%d" % round_]
        peer.close()
        assert wakes()
        wait_for(lambda: not is_up(dealer), "the end of the connection")
        assert not POLLER.poll(0)
        assert not dealer.send(b"to nobody")


def test_peer_that_does_not_read_fills_a_bounded_queue(path: Path) -> None:
    """If the peer does not read, then a bounded number of bytes is taken; when it reads, all arrive."""
    peer = Peer(path, hwm=1)
    dealer = Dealer(str(path), ID, PollWatch(POLLER))
    try:
        wait_for(lambda: is_up(dealer), "the connection")
        taken = 0
        while dealer.send(bytes(100_000)):
            taken += 1
        assert UNSENT_BYTES < dealer.unsent <= UNSENT_BYTES + 100_009
        assert not is_up(dealer)
        for _ in range(taken):
            while not peer.socket.poll(0):
                dealer.wait(0.01)
            assert len(peer.socket.recv_multipart()[1]) == 100_000
        assert dealer.unsent == 0
        assert is_up(dealer)
    finally:
        dealer.close()
        peer.close()


def test_close_with_a_linger_lets_what_waits_leave(path: Path, peer: Peer, dealer: Dealer) -> None:
    """If more waits than the kernel holds, then a close that lingers ends when all of it has left."""
    wait_for(lambda: is_up(dealer), "the connection")
    dealer.send(bytes(3_000_000))
    assert dealer.unsent
    dealer.close(LIMIT_MS)
    assert not dealer.unsent
    assert len(peer.recv()[1]) == 3_000_000


def test_copy_in_a_forked_child_leaves_the_parents_connection_alone(peer: Peer, dealer: Dealer) -> None:
    """If a child lets go of its copy, then the parent still hears of what comes."""
    wait_for(lambda: is_up(dealer), "the connection")
    child = os.fork()
    if not child:
        dealer.abandon()
        os._exit(0)
    os.waitpid(child, 0)
    dealer.send(b"question")
    peer.recv()
    peer.send(ID, b"answer")
    assert take(dealer) == b"answer"


# --- peers that are not libzmq ---


def _frame(body: bytes, flags: int = 0) -> bytes:
    return bytes((flags, len(body))) + body


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = _frame(b"\5READY\x0bSocket-Type\0\0\0\6ROUTER", 4)


@pytest.fixture
def listener(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(str(path))
        found.listen()
        found.settimeout(LIMIT_MS / 1000)
        yield found


def test_bytes_that_come_one_at_a_time_are_read_as_well(listener: socket.socket, path: Path) -> None:
    """If a peer's bytes are cut anywhere, then the frames are the same."""
    dealer = Dealer(str(path), ID, PollWatch(POLLER))
    link, _ = listener.accept()
    long = b"\2" + struct.pack(">Q", 300) + bytes(300)
    found = []
    for byte in GREETING + READY + _frame(b"one") + long + _frame(b"") + _frame(b"two"):
        link.sendall(bytes((byte,)))
        assert wakes()
        while (frame := dealer.take()) is not None:
            found.append(frame)
    assert found == [b"one", bytes(300), b"", b"two"]
    dealer.close()
    link.close()


def test_heartbeat_is_answered_with_what_it_said(listener: socket.socket, path: Path) -> None:
    """If the peer sends PING, then its context comes back in a PONG and nothing reaches the caller."""
    dealer = Dealer(str(path), ID, PollWatch(POLLER))
    link, _ = listener.accept()
    greeted = link.recv(4096)
    link.sendall(GREETING + READY + _frame(b"\4PING\0\x14context", 4))
    assert wakes()
    wait_for(lambda: is_up(dealer), "the connection")
    dealer.flush()
    assert greeted.startswith(b"\xff")
    assert link.recv(4096) == _frame(b"\4PONGcontext", 4)
    assert dealer.take() is None
    dealer.close()
    link.close()


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n" + bytes(64),
        GREETING[:10] + b"\1" + GREETING[11:],
        GREETING + READY + b"\2" + struct.pack(">Q", 1 << 40),
        GREETING + _frame(b"\5ERROR\7refused", 4),
    ],
    ids=["another protocol", "an old version", "a frame over the limit", "a refusal"],
)
def test_peer_that_breaks_the_protocol_is_left(listener: socket.socket, path: Path, said: bytes) -> None:
    """If the peer speaks something else, then the connection ends and is tried again; nothing arrives."""
    dealer = Dealer(str(path), ID, PollWatch(POLLER))
    link, _ = listener.accept()
    link.sendall(said)
    assert wakes()
    wait_for(lambda: not is_up(dealer), "the end of the connection")
    listener.setblocking(False)

    def comes_again() -> Any:
        assert dealer.take() is None
        try:
            return listener.accept()[0]
        except BlockingIOError:
            return None

    again = wait_for(comes_again, "another try")
    assert dealer.take() is None
    for one in (dealer, link, again):
        one.close()


