"""Turns between peers: everybody's share, everybody's order, nothing lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.core.fair import FRAME_COST, Fair

A, B = b"a" * 16, b"b" * 16


def fair(frames: int = 10_000, nbytes: int = 10**9) -> Fair:
    return Fair(frames_max=frames, bytes_max=nbytes)


def frame(peer: bytes, number: int, size: int = 0) -> bytes:
    return peer + number.to_bytes(4, "big") + bytes(size)


def drain(waiting: Fair) -> list[bytes]:
    taken = []
    while (found := waiting.take()) is not None:
        taken.append(found)
    return taken


def cost(taken: bytes) -> int:
    return FRAME_COST + len(taken)


def test_who_has_one_request_is_next_after_the_flood_of_another() -> None:
    """If a thousand requests of one peer wait, then the first of another is the next or the one after it."""
    waiting = fair()
    for number in range(1_000):
        waiting.add(frame(A, number))
    for _ in range(10):
        waiting.take()
    waiting.add(frame(B, 0))
    assert frame(B, 0) in (waiting.take(), waiting.take())


def test_peers_take_turns() -> None:
    """If two peers have as much to do, then between two of the one there is one of the other."""
    waiting = fair()
    for peer in (A, B):
        for number in range(5):
            waiting.add(frame(peer, number))
    assert [taken[:1] for taken in drain(waiting)] == [b"a", b"b"] * 5


def test_large_requests_get_fewer_turns() -> None:
    """If one peer's requests are larger, then the other gets as many more turns as that takes."""
    waiting = fair()
    for number in range(100):
        waiting.add(frame(A, number, size=10 * FRAME_COST))
        waiting.add(frame(B, number))
    first = [waiting.take() for _ in range(50)]
    assert 3 <= sum(taken is not None and taken[:1] == b"a" for taken in first) <= 6


def test_silence_saves_nothing_up() -> None:
    """If a peer was silent while another was served, then it is not ahead by what it did not use."""
    waiting = fair()
    waiting.add(frame(A, 0))
    for number in range(100):
        waiting.add(frame(B, number))
    for _ in range(60):
        waiting.take()
    for number in range(1, 40):
        waiting.add(frame(A, number))
    turns = [taken[:1] for taken in drain(waiting)[:20]]
    assert 9 <= turns.count(b"b") <= 11


def test_one_that_is_served_does_not_come_back_before_the_others() -> None:
    """If a peer sends its next large request as soon as the last one was taken, then the others go first."""
    waiting = fair()
    for number in range(30):
        waiting.add(frame(B, number))
    waiting.add(frame(A, 0, size=20 * FRAME_COST))
    while (taken := waiting.take()) is not None and taken[:1] != b"a":
        pass
    waiting.add(frame(A, 1, size=20 * FRAME_COST))
    turns = [found[:1] for found in drain(waiting)]
    assert turns.index(b"a") >= 19


def test_it_is_full_at_either_bound() -> None:
    """If the frames or their bytes reach the bound, then it says so until some were taken."""
    for waiting in (fair(frames=3), fair(nbytes=60)):
        for number in range(3):
            assert not waiting.full
            waiting.add(frame(A, number))
        assert waiting.full and len(waiting) == 3
        waiting.take()
        assert not waiting.full


Steps = st.lists(st.one_of(st.tuples(st.integers(0, 4), st.integers(0, 3_000)), st.none()), max_size=200)


@given(Steps)
def test_nothing_is_lost_and_each_peer_keeps_its_order(steps: list[tuple[int, int] | None]) -> None:
    """If frames come and are taken in any pattern, then each peer's come out as they went in."""
    waiting = fair()
    came: dict[bytes, list[bytes]] = {}
    went: dict[bytes, list[bytes]] = {}
    left = 0
    for number, step in enumerate(steps):
        if step is not None:
            made = frame(bytes([step[0]]) * 16, number, step[1])
            waiting.add(made)
            came.setdefault(made[:16], []).append(made)
            left += 1
        elif (taken := waiting.take()) is not None:
            went.setdefault(taken[:16], []).append(taken)
            left -= 1
        assert len(waiting) == left
    for taken in drain(waiting):
        went.setdefault(taken[:16], []).append(taken)
    assert went == came and not waiting.take()


@given(st.lists(st.integers(0, 3_000), min_size=1, max_size=60),
       st.lists(st.integers(0, 3_000), min_size=1, max_size=60), st.integers(0, 30))
def test_while_two_wait_their_work_differs_by_a_frame_at_most(
    ours: list[int], theirs: list[int], ahead: int
) -> None:
    """If two peers both wait, then what was taken of each differs by no more than one frame of each."""
    waiting = fair()
    for number, size in enumerate(ours):
        waiting.add(frame(A, number, size))
    for _ in range(min(ahead, len(ours))):
        waiting.take()
    for number, size in enumerate(theirs):
        waiting.add(frame(B, number, size))
    left = {A: len(ours) - min(ahead, len(ours)), B: len(theirs)}
    work = {A: 0, B: 0}
    largest = sum(max(cost(frame(A, 0, size)) for size in sizes) for sizes in (ours, theirs))
    while left[A] and left[B]:
        taken = waiting.take()
        assert taken is not None
        left[taken[:16]] -= 1
        work[taken[:16]] += cost(taken)
        assert abs(work[A] - work[B]) <= largest
