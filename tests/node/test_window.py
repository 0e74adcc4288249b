"""How many bytes wait in ZeroMQ for a peer, counted without asking libzmq."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from conditions import wait_for

from mesh.net import sockets
from mesh.net.feed import bind
from mesh.net.window import MARK_BYTES, ROOM_BYTES, Window

ID = b"\x01" * 16


@pytest.fixture
def pair() -> Iterator[tuple[Any, Any]]:
    """(router, dealer that has said hello)."""
    context = sockets.context()
    router = sockets.router_socket(context)
    dealer = sockets.dealer_socket(context, bind(router, "tcp://127.0.0.1:0"), ID, hwm=1)
    assert dealer.poll(20_000, sockets.POLLOUT)
    dealer.send(b"hello")
    assert router.recv_multipart()[0] == ID
    yield router, dealer
    router.close(0)
    dealer.close(0)
    context.term()


def send(router: Any, window: Window, size: int) -> None:
    router.send(ID, sockets.MORE)
    window.send(router, bytes(size))


def test_what_is_not_read_stays_counted_and_leaves_when_it_is_read(pair: tuple[Any, Any]) -> None:
    """If a peer does not read, then what it was sent is counted; when it reads, all of it is forgotten."""
    router, dealer = pair
    window = Window()
    for _ in range(200):
        send(router, window, 512 * 1024)
    window.settle()
    assert window.waiting and ROOM_BYTES < window.bytes <= 200 * 512 * 1024
    assert not window.has_room()
    for _ in range(200):
        assert len(dealer.recv()) == 512 * 1024
    wait_for(lambda: window.settle() or not window.waiting, "everything has left")
    wait_for(lambda: window.settle() + window.bytes == 0, "all is forgotten")
    assert window.has_room()


def test_small_frames_are_confirmed_together(pair: tuple[Any, Any]) -> None:
    """If frames are small, then one in each MARK_BYTES is watched, and the rest of them is what stays."""
    router, dealer = pair
    window = Window()
    for _ in range(100):
        send(router, window, 2000)
        dealer.recv()
    wait_for(lambda: window.settle() >= 0 and not window.waiting, "the marks have left")
    assert window.bytes == 200_000 % (MARK_BYTES // 2000 * 2000 + 2000)


def test_frame_to_nobody_is_not_counted(pair: tuple[Any, Any]) -> None:
    """If the send fails, then nothing was counted."""
    router, _ = pair
    window = Window()
    with pytest.raises(sockets.ZMQError):
        router.send(b"nobody", sockets.MORE)
    assert window.bytes == 0 and not window.waiting
