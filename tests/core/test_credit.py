"""What a partition is given at a time: a window, turns beyond it, nothing lost, nobody stuck."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import wire
from mesh.core.credit import LITTLE_BYTES, LITTLE_WAITS, TOLD_COST, WINDOW_COST, Credit
from mesh.core.fair import cost
from mesh.core.inflight import InFlight
from mesh.core.pace import TURN_COST, Pace

READ, WAIT = int(wire.Kind.READ), int(wire.Kind.WAIT)
LARGE = 3_000  #: bytes of a request of a client that floods


class Way:
    """A router's side and a partition's side of the way between them."""

    def __init__(self) -> None:
        self.counts = InFlight(payloads_max=10**6, bytes_max=10**9, waits_max=10**6)
        self.pace = Pace()
        self.credit = Credit(self.pace, frames_max=10**6, bytes_max=10**9)
        self.pipe: deque[bytes] = deque()
        self.serial = 0
        self.taken = 0
        self.told = 0

    def ask(self, client: bytes, size: int = LARGE, kind: int = READ) -> bytes:
        self.serial += 1
        frame = (client * 16 + self.serial.to_bytes(8, "big") + b"MH\x01" + bytes((kind,))).ljust(size, b".")
        assert self.counts.admit(frame[:16], kind, len(frame))
        if self.credit.send(frame, self.counts):
            self.pipe.append(frame)
        return frame

    def take(self, steps: int = 1) -> list[bytes]:
        """The partition takes and answers so many, and tells."""
        took = [self.pipe.popleft() for _ in range(min(steps, len(self.pipe)))]
        for frame in took:
            self.counts.release(frame[:16], frame[27], len(frame))
            self.taken += cost(frame)
        if self.taken - self.told >= TOLD_COST:
            self.told = self.taken
            self.credit.took(self.taken)
            self.fill()
        return took

    def fill(self) -> None:
        """The router sends what there is room for."""
        while (frame := self.credit.next()) is not None:
            self.pipe.append(frame)

    def ready(self) -> None:
        """The partition says READY."""
        self.credit.ready(self.taken)
        self.fill()

    @property
    def on_its_way(self) -> int:
        return sum(map(cost, self.pipe))


@pytest.fixture
def way() -> Way:
    return Way()


def flood(way: Way, client: bytes, count: int = 100) -> list[bytes]:
    return [way.ask(client) for _ in range(count)]


def test_of_a_flood_one_window_is_on_its_way(way: Way) -> None:
    """If a client asks for much, then the partition is given a window of it, and more when it took some."""
    asked = flood(way, b"a")
    assert WINDOW_COST <= way.on_its_way < WINDOW_COST + cost(asked[0])
    seen = []
    while took := way.take():
        seen += took
        assert way.on_its_way < WINDOW_COST + cost(asked[0])
    assert seen == asked


def test_who_has_little_in_flight_does_not_wait_for_room(way: Way) -> None:
    """If the window is full of another's requests, then a small one goes at once; a large one takes its turn,
    before what the flood has waiting."""
    flood(way, b"a")
    little = way.ask(b"b", 100)
    assert way.pipe[-1] == little
    large = way.ask(b"c")
    assert large not in way.pipe
    while large not in way.pipe:
        way.take()
    assert len(way.credit) > 50


def test_little_is_what_a_client_has_in_flight_in_all(way: Way) -> None:
    """If a client asks for little again while the window is full, then it goes past it no longer."""
    flood(way, b"a")
    before = len(way.pipe)
    for _ in range(200):
        way.ask(b"b", 100)
    assert (len(way.pipe) - before) * 100 <= LITTLE_BYTES


def test_of_many_waiting_reads_one_window_is_on_its_way(way: Way) -> None:
    """If a client sends a burst of small waiting reads, then of these, too, the partition is given a window,
    in turns with others; what else that client asks for, and others' few waiting reads, go at once."""
    asked = [way.ask(b"a", 100, WAIT) for _ in range(1_000)]
    most = WINDOW_COST + (LITTLE_WAITS + 1) * cost(asked[0])
    assert way.on_its_way <= most and len(way.credit) > 500
    few = way.ask(b"b", 100, WAIT)
    assert way.pipe[-1] == few
    seen: list[bytes] = []
    while took := way.take():
        seen += took
        assert way.on_its_way <= most + cost(few)
    assert [frame for frame in seen if frame != few] == asked


def test_whoever_has_many_reads_parked_still_asks_for_little_at_once(way: Way) -> None:
    """If a client's waiting reads are parked, then its small request goes past another's flood."""
    for _ in range(100):
        assert way.counts.admit(b"b" * 16, WAIT, 100)
    flood(way, b"a")
    little = way.ask(b"b", 100)
    assert way.pipe[-1] == little
    assert way.ask(b"b", 100, WAIT) not in way.pipe


def test_nobody_overtakes_himself(way: Way) -> None:
    """If a small request waits, since its client had much in flight, and that is answered, then the client's
    next one does not go past it."""
    way.ask(b"b")
    flood(way, b"a")
    asked, seen = [way.ask(b"b", 100)], []
    way.take()
    asked.append(way.ask(b"b", 100))
    while took := way.take():
        seen += [frame for frame in took if frame[:1] == b"b"]
    assert seen == asked


def test_two_floods_take_turns(way: Way) -> None:
    """If a second client floods after the first, then of what comes next each gets half."""
    flood(way, b"a")
    flood(way, b"b")
    way.take(len(way.pipe))
    turns = [frame[:1] for frame in way.pipe]
    assert len(turns) > 10 and abs(turns.count(b"a") - turns.count(b"b")) <= 1


def test_a_request_larger_than_the_window_is_sent(way: Way) -> None:
    """If a request alone is more than a window, then it goes when there is any room, and alone."""
    way.ask(b"a", 10 * WINDOW_COST)
    way.ask(b"a", 10 * WINDOW_COST)
    assert len(way.pipe) == 1
    way.take()
    assert len(way.pipe) == 1


def test_a_new_incarnation_has_room(way: Way) -> None:
    """If a partition is replaced, then what waited comes back, and the next begins with a whole window."""
    asked = flood(way, b"a")
    assert way.credit.clear() == asked[len(way.pipe) :]
    way.pipe.clear()
    flood(way, b"a")
    assert WINDOW_COST <= way.on_its_way < WINDOW_COST + cost(asked[0])


def test_a_new_router_has_room_whatever_its_predecessor_sent(way: Way) -> None:
    """If a router meets a partition that worked before, then it gives it a window, then what it takes."""
    way.taken = way.told = 7 * WINDOW_COST
    way.ready()
    asked, seen = flood(way, b"a"), []
    while took := way.take():
        seen += took
        assert way.on_its_way < WINDOW_COST + cost(asked[0])
    assert seen == asked


def test_words_that_were_lost_are_made_good(way: Way) -> None:
    """If no word about what was taken arrives, then the next READY brings the room."""
    asked = flood(way, b"a")
    way.taken = way.told = sum(map(cost, way.pipe))
    first = len(way.pipe)
    way.pipe.clear()
    way.ready()
    assert list(way.pipe) == asked[first : first + len(way.pipe)] and way.on_its_way >= WINDOW_COST


def test_requests_that_were_lost_take_no_room_for_ever(way: Way) -> None:
    """If a window of requests is lost on its way, then the second READY brings the room, not the first."""
    flood(way, b"a")
    way.pipe.clear()
    way.ready()
    assert not way.pipe
    way.ready()
    assert WINDOW_COST <= way.on_its_way < WINDOW_COST + 2 * LARGE
    way.ready()
    assert way.on_its_way < WINDOW_COST + 2 * LARGE


def test_what_was_sent_since_a_ready_is_not_taken_for_lost(way: Way) -> None:
    """If a partition takes nothing between two READYs and was sent something since, then that counts."""
    way.ready()
    flood(way, b"a")
    before = len(way.pipe)
    way.ready()
    assert len(way.pipe) == before


Steps = st.lists(
    st.one_of(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.integers(40, 40_000)), st.integers(1, 5)),
    max_size=120,
)


@given(Steps)
def test_all_arrive_in_each_ones_order_and_little_is_on_its_way(steps: list[tuple[bytes, int] | int]) -> None:
    """If requests come and are taken in any pattern, then all arrive, each client's in its order, and no more
    is on the way than a window, one request, and the little of those who need not wait."""
    way = Way()
    asked: dict[bytes, list[bytes]] = {b"a": [], b"b": [], b"c": []}
    seen: dict[bytes, list[bytes]] = {b"a": [], b"b": [], b"c": []}
    most = WINDOW_COST + 40_400 + 3 * (LITTLE_BYTES // 40) * 440
    for step in steps:
        if isinstance(step, tuple):
            asked[step[0]].append(way.ask(*step))
        else:
            for frame in way.take(step):
                seen[frame[:1]].append(frame)
        assert way.on_its_way <= most
        window = TURN_COST if way.pace.slow else WINDOW_COST
        assert not len(way.credit) or way.on_its_way + way.taken - way.told >= window
    while took := way.take():
        for frame in took:
            seen[frame[:1]].append(frame)
    assert seen == asked and not len(way.credit)
