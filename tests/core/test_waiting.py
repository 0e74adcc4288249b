"""Parked reads: bounds, wake-ups by key, deadlines, and nothing left behind."""

from __future__ import annotations

import random

import pytest

from mesh.core.waiting import Group, Waiter, Waiters
from mesh.errors import Overloaded

A, B = b"a" * 16, b"b" * 16


def waiter(client: bytes = A, key: tuple[str, str] = ("session", "s"), deadline_s: float = 10.0) -> Waiter:
    made = Waiter(Group(client, 1, 1), 0, deadline_s)
    made.key = key
    return made


def test_waiters_are_found_by_what_they_wait_for() -> None:
    """If a session and a run have the same id, then their waiters are not mixed up."""
    waiters = Waiters(partition_max=10, client_max=10)
    of_session, of_run = waiter(), waiter(key=("run", "s"))
    waiters.park(of_session)
    waiters.park(of_run)
    assert waiters.of(("session", "s")) == [of_session] and waiters.of(("run", "s")) == [of_run]
    assert waiters.of(("run", "other")) == []


@pytest.mark.parametrize(
    ("partition_max", "client_max", "name"), [(2, 9, "per_partition"), (9, 2, "per_client")]
)
def test_each_bound_is_refused_by_its_name(partition_max: int, client_max: int, name: str) -> None:
    """If a bound is reached, then the refusal names the setting and when to come again."""
    waiters = Waiters(partition_max=partition_max, client_max=client_max)
    for _ in range(2):
        waiters.park(waiter())
    with pytest.raises(Overloaded) as refused:
        waiters.park(waiter())
    assert name in refused.value.message and refused.value.details["retry_after_ms"] > 0
    waiters.finish(waiters.of(("session", "s"))[0])
    waiters.park(waiter())


def test_expired_waiters_come_once_in_order() -> None:
    """If time passes, then those whose deadline came are handed out in order, the others stay."""
    waiters = Waiters(partition_max=10, client_max=10)
    late, soon = waiter(deadline_s=5.0), waiter(deadline_s=3.0)
    waiters.park(late)
    waiters.park(soon)
    assert waiters.next_deadline_s() == 3.0 and waiters.expired(2.9) == []
    assert waiters.expired(5.0) == [soon, late]
    for each in (soon, late):
        waiters.finish(each)
    assert waiters.expired(99.0) == [] and len(waiters) == 0 and waiters.next_deadline_s() is None


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_left_behind(seed: int) -> None:
    """If thousands park, are answered and expire in any order, then counts agree and memory is given back."""
    chance = random.Random(seed)
    waiters = Waiters(partition_max=500, client_max=300)
    present: list[Waiter] = []
    now = 0.0
    for _ in range(3_000):
        now += chance.random() * 0.1
        if chance.random() < 0.6:
            one = waiter(
                chance.choice([A, B]), ("run", str(chance.randrange(9))), now + chance.choice([1, 25])
            )
            try:
                waiters.park(one)
                present.append(one)
            except Overloaded:
                assert len(present) == 500 or sum(w.client == one.client for w in present) == 300
        elif present:
            done = present.pop(chance.randrange(len(present)))
            waiters.finish(done)
            waiters.finish(done)  # harmless
        for one in waiters.expired(now):
            waiters.finish(one)
            present.remove(one)
        assert len(waiters) == len(present)
        assert len(waiters._heap) <= 130 + 2 * len(present)
    for one in present:
        waiters.finish(one)
    assert len(waiters) == 0 and not waiters._by_key and not waiters._per_client
