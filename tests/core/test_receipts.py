"""Exactly once: a model of clients that resend, transactions that fail, and partitions that restart."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.core import receipts as module
from mesh.core.receipts import NUMBER_MAX, Receipt, Receipts
from mesh.errors import ClientExpired, InvalidArgument, InvalidState, MeshError, Overloaded

A, B = b"a" * 16, b"b" * 16


class Disk:
    """The stored receipts."""

    def __init__(self) -> None:
        self.rows: dict[tuple[bytes, int], Receipt] = {}

    def load(self, client: bytes) -> list[tuple[int, Receipt]]:
        return sorted((n, r) for (c, n), r in self.rows.items() if c == client)

    def write(self, dirty: dict[tuple[bytes, int], Receipt], settled: dict[bytes, int]) -> None:
        self.rows.update(dirty)
        for client, below in settled.items():
            self.rows = {k: r for k, r in self.rows.items() if k[0] != client or k[1] >= below}


def fresh(open_max: int = 16) -> tuple[Disk, Receipts]:
    disk = Disk()
    return disk, Receipts(disk.load, open_max=open_max)


def commit(disk: Disk, receipts: Receipts) -> None:
    disk.write(*receipts.drain())
    receipts.committed()


def done(receipts: Receipts, client: bytes, number: int, done_below: int = 1, part: bytes = b"ok") -> None:
    assert receipts.admit(client, number, done_below, 0.0) is None
    receipts.begin(client, number)
    receipts.record(client, number, (part,))


def test_number_below_its_own_done_below_is_refused_and_changes_nothing() -> None:
    """If a payload calls its own number settled, then it is refused: the store could not even keep it."""
    disk, receipts = fresh()
    done(receipts, A, 1)
    commit(disk, receipts)
    for done_below in (3, 2**63, 2**64 - 1):
        with pytest.raises(InvalidArgument):
            receipts.admit(A, 2, done_below, 0.0)
    done(receipts, A, 2, done_below=2)


class ExactlyOnce(RuleBasedStateMachine):
    """Two clients with payloads of one or two parts; the second part is answered in a later batch."""

    def __init__(self) -> None:
        super().__init__()
        self.disk, self.receipts = fresh(open_max=64)
        self.next = {A: 1, B: 1}
        self.settled = {A: 1, B: 1}
        self.effects: dict[tuple[bytes, int, int], int] = {}  # committed executions of each part
        self.answers: dict[tuple[bytes, int], tuple[bytes | None, ...]] = {}  # what a client was told
        self.batch: list[tuple[bytes, int, int]] = []
        self.waiting: dict[tuple[bytes, int], tuple[bytes | None, ...]] = {}
        self.serial = 0

    def send(self, client: bytes, number: int, parts: int) -> None:
        key = (client, number)
        try:
            found = self.receipts.admit(client, number, min(number, self.settled[client]), 0.0)
        except ClientExpired:
            assert not any(k[0] == client for k in self.disk.rows)
            return
        except InvalidState:
            assert number < self.settled[client]
            return
        if found is True:
            return
        if isinstance(found, Receipt) and found.complete:
            if key in self.answers:
                assert found.parts == self.answers[key]
            return
        known = found.parts if isinstance(found, Receipt) else (None,) * parts
        self.receipts.begin(client, number)
        self.serial += 1
        first = known[0] if known[0] is not None else b"%d" % self.serial
        if known[0] is None:
            self.batch.append((client, number, 0))
        now = (first, *known[1:])
        self.receipts.record(client, number, now)
        if None in now:
            self.waiting[key] = now

    @rule(client=st.sampled_from([A, B]), parts=st.integers(1, 2))
    def new_payload(self, client: bytes, parts: int) -> None:
        self.send(client, self.next[client], 2 - self.next[client] % 2)
        self.next[client] += 1

    @rule(client=st.sampled_from([A, B]), back=st.integers(1, 5))
    def resend(self, client: bytes, back: int) -> None:
        number = self.next[client] - back
        if number >= 1:
            self.send(client, number, 2 - number % 2)

    @rule(client=st.sampled_from([A, B]), back=st.integers(0, 3))
    def settle(self, client: bytes, back: int) -> None:
        self.settled[client] = max(self.settled[client], self.next[client] - back)

    @rule()
    def answer_what_waits(self) -> None:
        for (client, number), parts in self.waiting.items():
            self.batch.append((client, number, 1))
            self.receipts.record(client, number, (parts[0], b"late"))
        self.waiting.clear()

    @rule()
    def commit(self) -> None:
        dirty, settled = self.receipts.drain()
        self.disk.write(dirty, settled)
        self.receipts.committed()
        for part in self.batch:
            self.effects[part] = self.effects.get(part, 0) + 1
        self.answers.update({key: r.parts for key, r in dirty.items() if r.complete})
        self.batch = []

    @rule()
    def transaction_fails(self) -> None:
        dirty, _ = self.receipts.drain()
        for key in dirty:
            self.receipts.undo(*key)
            self.waiting.pop(key, None)
        self.batch = []

    @rule()
    def killed(self) -> None:
        self.receipts = Receipts(self.disk.load, open_max=64)
        self.batch, self.waiting = [], {}

    @invariant()
    def nothing_happened_twice(self) -> None:
        assert all(count == 1 for count in self.effects.values()), self.effects


TestExactlyOnce = ExactlyOnce.TestCase
TestExactlyOnce.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)


def test_a_repeated_number_is_answered_from_its_receipt() -> None:
    """If a number comes again, then its receipt is the answer and nothing is executed."""
    disk, receipts = fresh()
    done(receipts, A, 1, part=b"first")
    commit(disk, receipts)
    assert receipts.admit(A, 1, 1, 0.0) == Receipt((b"first",), 1)


def test_a_repeated_number_is_known_after_a_restart() -> None:
    """If the partition restarts, then the stored receipt answers."""
    disk, receipts = fresh()
    done(receipts, A, 1, part=b"first")
    commit(disk, receipts)
    found = Receipts(disk.load, open_max=16).admit(A, 1, 1, 0.0)
    assert isinstance(found, Receipt) and found.parts == (b"first",)


def test_a_number_that_is_worked_on_is_not_begun_again() -> None:
    """If a payload waits for something, then its repetition only waits with it."""
    _, receipts = fresh()
    assert receipts.admit(A, 1, 1, 0.0) is None
    receipts.begin(A, 1)
    receipts.record(A, 1, (b"x", None))
    assert receipts.admit(A, 1, 1, 0.0) is True


def test_a_number_that_was_given_up_is_refused_also_after_a_restart() -> None:
    """If a caller gave 2 up and 3 landed, then a late 2 is refused by this and by the next incarnation."""
    disk, receipts = fresh()
    done(receipts, A, 1)
    done(receipts, A, 3, done_below=3)
    commit(disk, receipts)
    for one in (receipts, Receipts(disk.load, open_max=16)):
        with pytest.raises(InvalidState) as refused:
            one.admit(A, 2, 1, 0.0)
        assert refused.value.code == "invalid_operation"


def test_a_number_that_was_only_late_is_executed_after_a_restart() -> None:
    """If 2 overtook 1's resend and the partition restarts, then 1, never given up, is still executed."""
    disk, receipts = fresh()
    done(receipts, A, 1)
    done(receipts, A, 3, done_below=2)
    commit(disk, receipts)
    assert Receipts(disk.load, open_max=16).admit(A, 2, 2, 0.0) is None


def test_done_below_that_is_sent_lower_again_changes_nothing() -> None:
    """If an old payload carries an old ``done_below``, then what was settled stays settled."""
    disk, receipts = fresh()
    done(receipts, A, 1)
    done(receipts, A, 5, done_below=5)
    commit(disk, receipts)
    with pytest.raises(InvalidState):
        receipts.admit(A, 4, 1, 0.0)


def test_the_newest_receipt_outlives_done_below() -> None:
    """If a client settled everything, then its newest receipt stays: it is how it is known."""
    disk, receipts = fresh()
    for number in range(1, 6):
        done(receipts, A, number, done_below=number)
        commit(disk, receipts)
    assert [n for _, n in disk.rows] == [5]
    assert Receipts(disk.load, open_max=16).admit(A, 6, 6, 0.0) is None


def test_a_number_above_one_of_an_unknown_client_is_client_expired() -> None:
    """If nobody remembers a client, then only number 1 begins."""
    _, receipts = fresh()
    with pytest.raises(ClientExpired):
        receipts.admit(A, 2, 1, 0.0)
    assert receipts.admit(A, 1, 1, 0.0) is None


@pytest.mark.parametrize("number", [0, NUMBER_MAX + 1, 2**64 - 1])
def test_a_number_out_of_range_is_refused(number: int) -> None:
    """If a number does not fit into the store, then it is refused before it is written."""
    _, receipts = fresh()
    with pytest.raises(InvalidArgument):
        receipts.admit(A, number, 1, 0.0)


def test_too_many_open_numbers_are_overloaded() -> None:
    """If a client runs ahead of what it settled, then it has to wait."""
    disk, receipts = fresh(open_max=4)
    done(receipts, A, 1)
    commit(disk, receipts)
    with pytest.raises(Overloaded):
        receipts.admit(A, 6, 1, 0.0)
    assert receipts.admit(A, 6, 2, 0.0) is None


def test_a_large_jump_of_done_below_is_cheap() -> None:
    """If a client settles 2**61 numbers at once, then only what is kept is looked at."""
    disk, receipts = fresh()
    done(receipts, A, 1)
    commit(disk, receipts)
    done(receipts, A, 2**61, done_below=2**61)
    commit(disk, receipts)
    assert [n for _, n in disk.rows] == [2**61]


def test_undo_gives_back_the_parts_that_an_earlier_batch_committed() -> None:
    """If the second part's transaction fails, then the first part is not executed again."""
    disk, receipts = fresh()
    receipts.admit(A, 1, 1, 0.0)
    receipts.begin(A, 1)
    receipts.record(A, 1, (b"x", None))
    commit(disk, receipts)
    receipts.record(A, 1, (b"x", b"y"))
    receipts.drain()
    assert receipts.undo(A, 1) == Receipt((b"x", None), 1)
    assert receipts.admit(A, 1, 1, 0.0) == Receipt((b"x", None), 1)


def test_undo_of_a_new_payload_leaves_nothing() -> None:
    """If the first transaction of a payload fails, then its number is new again."""
    _, receipts = fresh()
    done(receipts, A, 1)
    receipts.drain()
    assert receipts.undo(A, 1) is None
    assert receipts.admit(A, 1, 1, 0.0) is None


def test_silent_clients_are_forgotten_unless_something_is_open() -> None:
    """If a client is silent for long, then memory lets it go; one that waits for an answer is kept."""
    disk, receipts = fresh()
    done(receipts, A, 1)
    receipts.admit(B, 1, 1, 0.0)
    receipts.begin(B, 1)
    receipts.record(B, 1, (None,))
    commit(disk, receipts)
    assert receipts.silent(1_000.0, 900.0) == [A] and list(receipts.clients) == [B]


def test_memory_of_clients_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """If there are too many clients, then the longest silent leave memory and are read again when they
    come."""
    monkeypatch.setattr(module, "CLIENTS_MAX", 3)
    disk, receipts = fresh()
    clients = [bytes([i]) * 16 for i in range(1, 9)]
    for at, client in enumerate(clients):
        receipts.admit(client, 1, 1, float(at))
        receipts.begin(client, 1)
        receipts.record(client, 1, (b"%d" % at,))
    commit(disk, receipts)
    receipts.silent(8.0, 900.0)
    assert sorted(receipts.clients) == clients[-3:]
    found = receipts.admit(clients[0], 1, 1, 9.0)
    assert isinstance(found, Receipt) and found.parts == (b"0",)


def test_a_refused_admission_is_a_mesh_error() -> None:
    """If admission refuses, then it is by a typed error."""
    _, receipts = fresh()
    for number, below in [(0, 0), (7, 1), (2**63, 2**63)]:
        with pytest.raises(MeshError):
            receipts.admit(B, number, below, 0.0)
