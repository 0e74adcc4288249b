"""A partition's mailbox: what it takes next, with frames that come while it works."""

from __future__ import annotations

from collections import deque

import pytest

from mesh.config import LimitsSection
from mesh.core.credit import TOLD_COST
from mesh.core.fair import cost
from mesh.net import sockets
from mesh.node.inbox import FEW_COST, Inbox

LARGE = 3_000


class Pipe:
    """The socket: what has come."""

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque()

    def recv(self, _flags: int) -> bytes:
        if not self.frames:
            raise sockets.Again
        return self.frames.popleft()


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


@pytest.fixture
def inbox(pipe: Pipe) -> Inbox:
    return Inbox(pipe, LimitsSection())


def frames(peer: bytes, count: int, size: int = LARGE) -> list[bytes]:
    return [(peer * 16 + number.to_bytes(8, "big")).ljust(size, b".") for number in range(count)]


def test_a_little_is_taken_as_it_comes(pipe: Pipe, inbox: Inbox) -> None:
    """If no more waits than a moment's work, then it is taken in the order of its coming."""
    pipe.frames.extend(sent := [*frames(b"a", 3, 100), *frames(b"b", 3, 100), *frames(b"a", 3, 90)])
    assert list(inbox.turn()) == sent and not inbox.crowded


def test_who_comes_during_a_turn_is_answered_in_it(pipe: Pipe, inbox: Inbox) -> None:
    """If a small request comes while a long turn is at work, then it is taken after a moment's more work."""
    pipe.frames.extend(frames(b"a", 30))
    seen = []
    for number, frame in enumerate(inbox.turn()):
        seen.append(frame)
        if number == 10:
            pipe.frames.append(little := frames(b"b", 1, 100)[0])
    assert seen.index(little) - 10 <= FEW_COST // LARGE + 2
    assert [frame for frame in seen if frame != little] == frames(b"a", 30)


def test_nothing_is_left_behind_when_a_turn_is_broken_off(pipe: Pipe, inbox: Inbox) -> None:
    """If the batch ends while much has been taken in, then the next turn begins with it, in order."""
    pipe.frames.extend(sent := frames(b"a", 100))
    seen = []
    for frame in inbox.turn():
        seen.append(frame)
        if len(seen) == 20:
            break
    assert inbox.crowded
    while inbox.crowded:
        seen += inbox.turn()
    assert seen == sent and not pipe.frames


def test_a_turn_ends(pipe: Pipe, inbox: Inbox) -> None:
    """If more waits than a turn's work, then the rest is for the next turns, and nobody sleeps before it."""
    pipe.frames.extend(frames(b"a", 500))
    first = list(inbox.turn())
    assert sum(map(cost, first)) <= LimitsSection().batch_bytes + 2 * cost(first[0]) and inbox.crowded
    while inbox.crowded:
        first += inbox.turn()
    assert first == frames(b"a", 500)


def test_what_clients_sent_is_told_as_taken_and_nothing_else(pipe: Pipe, inbox: Inbox) -> None:
    """If requests and words of actors are taken, then the requests' work alone is told, when it is enough."""
    clients = frames(b"a", TOLD_COST // cost(frames(b"a", 1)[0]) + 1)
    for sent, told in ((clients[:1], 0), ([*clients[1:], *frames(b"\0", 5)], sum(map(cost, clients)))):
        pipe.frames.extend(sent)
        assert len(list(inbox.turn())) == len(sent)
        assert inbox.to_be_told() == told
    assert inbox.to_be_told() == 0
