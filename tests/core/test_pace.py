"""When a flood rests: for those who ask for little, half of the time, and never for good."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import wire
from mesh.core.credit import LONG_COST, TOLD_COST, WINDOW_COST, Credit
from mesh.core.fair import cost
from mesh.core.inflight import InFlight
from mesh.core.pace import FLOODS_MAX, HEARD_S, NEVER, REST_MAX_S, TURN_COST, Pace

READ = int(wire.Kind.READ)
STEP_S = 0.000_02
COST_PER_S = 20_000_000
LITTLE, LARGE = 100, 3_000  #: bytes of a request


class Node:
    """A router with one partition that works, its clients, and the time."""

    def __init__(self, cost_per_s: float = COST_PER_S, at_once: int = 8) -> None:
        self.pace = Pace()
        self.counts = InFlight(payloads_max=10**6, bytes_max=10**9, waits_max=10**6)
        self.credit = Credit(self.pace, frames_max=10**6, bytes_max=10**9)
        self.pipe: deque[bytes] = deque()
        self.cost_per_s, self.at_once = cost_per_s, at_once
        self.serial = 0
        self.taken = self.told = 0
        self.done: list[bytes] = []
        self.lines: list[int] = []  #: the work in front of each little request

    def ask(self, client: bytes, size: int) -> bytes:
        self.serial += 1
        frame = (client * 16 + self.serial.to_bytes(8, "big") + b"MH\x01" + bytes((READ,))).ljust(size, b".")
        assert self.counts.admit(frame[:16], READ, size)
        if self.credit.send(frame, self.counts):
            self.pipe.append(frame)
        return frame

    def answer_one(self) -> bytes:
        frame = self.pipe.popleft()
        self.counts.release(frame[:16], READ, len(frame))
        self.taken += cost(frame)
        self.done.append(frame)
        return frame

    def tell(self) -> None:
        if self.taken - self.told >= TOLD_COST:
            self.told = self.taken
            self.credit.took(self.taken)
            self.fill()

    def fill(self) -> None:
        while (frame := self.credit.next()) is not None:
            self.pipe.append(frame)

    def pass_by(self, seconds: float) -> None:
        self.pace.now_s += seconds
        if self.pace.due():
            self.fill()

    def run(self, seconds: float, *, modest_s: float = 0.0) -> int:
        """Closed loops: who is answered asks again. Beside them, if ``modest_s``, a client that asks for
        little so often. The partition takes what waits, works, answers and tells. Returns the work that it
        did for the large requests."""
        before, until_s, due_s, free_s = len(self.done), self.pace.now_s + seconds, self.pace.now_s, 0.0
        at_work: list[bytes] = []
        while self.pace.now_s < until_s:
            self.pass_by(STEP_S)
            if modest_s and self.pace.now_s >= due_s:
                due_s += modest_s
                self.lines.append(sum(map(cost, self.pipe)) + sum(map(cost, at_work)))
                self.ask(b"m", LITTLE)
            if self.pace.now_s < free_s:
                continue
            for frame in at_work:
                if len(frame) != LITTLE:
                    self.ask(frame[:1], len(frame))
            self.tell()
            at_work = [self.answer_one() for _ in range(min(self.at_once, len(self.pipe)))]
            free_s = self.pace.now_s + sum(map(cost, at_work)) / self.cost_per_s
        return sum(cost(frame) for frame in self.done[before:] if len(frame) != LITTLE)


@pytest.fixture
def node() -> Node:
    return Node()


def flood(node: Node, client: bytes, size: int = LARGE, count: int = 200) -> list[bytes]:
    return [node.ask(client, size) for _ in range(count)]


@pytest.mark.parametrize("at_once", [1, 4, 100])
@pytest.mark.parametrize("size", [150, 3_000, 17_500, 60_000])
def test_half_is_half_however_the_partition_works(at_once: int, size: int) -> None:
    """If a partition takes few or many at once, small ones or large ones, then a flood has its half."""
    node = Node(at_once=at_once)
    flood(node, b"a", size, 600_000 // size)
    node.run(HEARD_S, modest_s=0.005)
    assert 0.3 < share(node.run(0.4, modest_s=0.005), 0.4) < 0.55


def share(work: int, seconds: float) -> float:
    return work / seconds / COST_PER_S


def test_a_flood_alone_never_rests(node: Node) -> None:
    """If nobody else asks, then a flood has all of the partition's time."""
    flood(node, b"a")
    assert share(node.run(1.0), 1.0) > 0.99
    assert node.pace.due_s == NEVER


def test_floods_do_not_rest_for_each_other(node: Node) -> None:
    """If two clients have much in flight, then both go on as fast as they can, each with half."""
    flood(node, b"a")
    flood(node, b"b", 500, 1_000)
    node.run(HEARD_S)  # its first request was a small one
    node.done.clear()
    assert share(node.run(1.0), 1.0) > 0.95 and node.pace.due_s == NEVER
    work = [sum(cost(frame) for frame in node.done if frame[:1] == client) for client in (b"a", b"b")]
    assert 0.9 < work[0] / work[1] < 1.1


def test_a_flood_beside_a_modest_client_has_half_of_the_time_and_a_turn_in_front(node: Node) -> None:
    """If somebody asks for little beside a flood, then one turn is in front of it at most, the flood has
    about half of the time, and all of it again when the other is silent."""
    flood(node, b"a")
    node.run(2 * HEARD_S, modest_s=0.002_5)
    node.lines.clear()
    assert 0.35 < share(node.run(1.0, modest_s=0.002_5), 1.0) < 0.55
    assert max(node.lines) < TURN_COST + cost(bytes(LARGE))
    assert sum(line < cost(bytes(LARGE)) for line in node.lines) > len(node.lines) / 3
    node.run(2 * HEARD_S)
    assert share(node.run(1.0), 1.0) > 0.99


def test_of_a_slow_machine_a_flood_has_half_as_well() -> None:
    """If the work takes twenty times as long, then the rests are longer, too."""
    node = Node(COST_PER_S / 20)
    flood(node, b"a")
    assert 0.35 < share(node.run(4.0, modest_s=0.01), 4.0) * 20 < 0.6


def test_who_was_a_flood_a_moment_ago_is_no_modest_client(node: Node) -> None:
    """If a flood's last requests are small, then another flood does not rest for them."""
    flood(node, b"a")
    flood(node, b"b")
    node.counts.release(b"b" * 16, READ, 200 * LARGE)  # answered, by another way than in life
    node.pace.little(b"b" * 16)
    assert not node.pace.slow
    node.pass_by(HEARD_S)
    node.pace.little(b"b" * 16)
    assert node.pace.slow


def test_who_waited_long_is_a_flood_when_it_is_answered(node: Node) -> None:
    """If a flood's requests waited for longer than a flood is remembered, and it goes on with small ones,
    then the others do not rest for it."""
    flood(node, b"a", count=400)
    last = flood(node, b"b", count=20)[-1]
    node.pass_by(2 * HEARD_S)
    while last not in node.done:
        take_all(node)
    assert len(node.credit)
    node.ask(b"b", LITTLE)
    assert not node.pace.slow
    node.pass_by(HEARD_S)
    node.ask(b"b", LITTLE)
    assert node.pace.slow


@pytest.mark.parametrize("size", [LARGE, TURN_COST])
def test_time_in_which_nothing_waited_earns_no_rest(node: Node, size: int) -> None:
    """If a flood's turn was its last for a while, used up or not, then the time until it comes again is no
    reason to rest for longer than for the turn."""
    flood(node, b"b", count=LONG_COST // cost(bytes(LARGE)) + 1)
    node.pace.little(b"m" * 16)
    flood(node, b"a", size, 1)
    assert len(node.credit) == 1
    while node.pipe:
        take_all(node)
    for _ in range(3):
        node.pass_by(0.02)
        node.pace.little(b"m" * 16)
    flood(node, b"b", count=LONG_COST // cost(bytes(LARGE)) + 1)
    flood(node, b"a", count=20)
    waiting = len(node.credit)
    assert waiting >= 20
    take_all(node)
    assert len(node.credit) < waiting and node.pace.due_s == NEVER


def take_all(node: Node) -> None:
    """The partition takes what is on its way, and tells."""
    while node.pipe:
        node.answer_one()
    node.tell()


def test_a_turn_of_long_ago_is_no_reason_to_rest(node: Node) -> None:
    """If nobody asked for little for a while, then the next who does finds a flood that had no turn yet."""
    flood(node, b"a")
    node.pace.little(b"m" * 16)
    take_all(node)
    assert sum(map(cost, node.pipe)) < TURN_COST + cost(bytes(LARGE))
    node.pass_by(HEARD_S)
    take_all(node)
    assert sum(map(cost, node.pipe)) >= WINDOW_COST
    node.pace.little(b"m" * 16)
    take_all(node)
    assert node.pipe and node.pace.due_s == NEVER


def test_a_large_request_waits_behind_less_while_others_ask_for_little(node: Node) -> None:
    """If a window is half full and somebody asked for little, then a large request waits; else it goes."""
    flood(node, b"a", count=LONG_COST // cost(bytes(LARGE)) + 1)
    assert not len(node.credit)
    node.ask(b"b", LARGE)
    assert not len(node.credit)
    node.pace.little(b"m" * 16)
    node.ask(b"b", LARGE)
    assert len(node.credit) == 1


def test_a_flood_rests_no_longer_than_the_longest_rest(node: Node) -> None:
    """If a turn took seconds, then the next one is due after the longest rest, and the shell is told when."""
    flood(node, b"a")
    node.pace.little(b"m" * 16)
    for steps in (1, 60):  # first the window that it had before, then its turn
        assert node.pace.due_s == NEVER
        while node.pipe:
            node.answer_one()
        for _ in range(steps):
            node.pass_by(0.05)
            node.pace.little(b"m" * 16)
        node.tell()
    assert not node.pipe and node.pace.due_s == pytest.approx(61 * 0.05 + REST_MAX_S)
    assert node.pace.timeout_ms(0.5) == pytest.approx(1000 * REST_MAX_S, abs=1)
    node.pass_by(REST_MAX_S / 2)
    assert not node.pipe
    node.pass_by(REST_MAX_S / 2 + STEP_S)
    assert node.pipe and node.pace.timeout_ms(0.5) == 500


def test_a_new_incarnation_does_not_rest_for_its_predecessor(node: Node) -> None:
    """If a partition is replaced while floods rest, then the next one is given a turn of what waits."""
    flood(node, b"a")
    node.pace.little(b"m" * 16)
    take_all(node)
    node.pass_by(0.02)
    take_all(node)
    assert not node.pipe and node.pace.due_s > node.pace.now_s
    node.credit.clear()
    node.taken = node.told = 0
    flood(node, b"a")
    take_all(node)
    assert sum(map(cost, node.pipe)) >= TURN_COST


def test_the_floods_known_by_name_are_bounded(node: Node) -> None:
    """If more clients flood than are known by name, then the rest are forgotten."""
    for number in range(2 * FLOODS_MAX):
        node.pace.much(number.to_bytes(16, "big"))
    assert len(node.pace._floods) <= FLOODS_MAX


Steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.sampled_from([40, 900, 3_000, 20_000, 90_000])),
        st.integers(1, 20),
        st.floats(0.000_1, 0.2),
    ),
    max_size=100,
)


@given(Steps)
def test_whatever_comes_all_arrive_in_each_ones_order(steps: list[tuple[bytes, int] | int | float]) -> None:
    """If requests come and are taken in any pattern, at any time, then what waits has no room or a moment
    when it is looked at again, and in the end all arrive, each client's in its order."""
    node = Node()
    asked: dict[bytes, list[bytes]] = {b"a": [], b"b": [], b"c": []}
    for step in steps:
        if isinstance(step, tuple):
            asked[step[0]].append(node.ask(*step))
        elif isinstance(step, int):
            for _ in range(min(step, len(node.pipe))):
                node.answer_one()
            node.tell()
        else:
            node.pass_by(step)
        on_its_way = sum(map(cost, node.pipe)) + node.taken - node.told
        assert on_its_way < WINDOW_COST + 90_400 + 3 * 50 * 440
        resting = node.pace.now_s <= node.pace.due_s <= node.pace.now_s + REST_MAX_S
        assert not len(node.credit) or on_its_way >= TURN_COST or resting
    for _ in range(2 * sum(map(len, asked.values()))):
        while node.pipe:
            node.answer_one()
        node.tell()
        node.pass_by(REST_MAX_S)
    assert not len(node.credit) and len(node.done) == sum(map(len, asked.values()))
    assert {client: [f for f in node.done if f[:1] == client] for client in asked} == asked
