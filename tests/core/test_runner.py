"""The bookkeeping between a runner and the partitions: commands once and in order, batches until stored."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import runner, wire
from mesh.core.runner import Inbox, Outbox, encode_event, groups, join_many

KEY = ("run_1", 1)


def event(i: int, size: int = 1) -> bytes:
    return encode_event(13, float(i), b"x" * size)


def settled(outbox: Outbox, log: runner.RunLog, last: bytes) -> None:
    outbox.add(log, last)
    outbox.settle(log, wire.pack({"status": "completed"}))


def test_repeated_commands_are_executed_once() -> None:
    """If the sender repeats commands because their acknowledgement was lost, then only the new ones count."""
    inbox = Inbox()
    assert inbox.take(1, 1, ["a", "b"]) == ["a", "b"]
    assert inbox.take(1, 1, ["a", "b", "c"]) == ["c"]
    assert inbox.done == 3


def test_commands_behind_a_gap_are_not_executed() -> None:
    """If a command in the middle was lost, then nothing behind it runs until it is repeated."""
    inbox = Inbox()
    inbox.take(1, 1, ["a"])
    assert inbox.take(1, 3, ["c"]) == []
    assert inbox.done == 1
    assert inbox.take(1, 2, ["b", "c"]) == ["b", "c"]


def test_new_epoch_counts_from_one_and_old_epoch_is_not_heard() -> None:
    """If the partition was replaced, then its numbers begin again, and its dead former self is ignored."""
    inbox = Inbox()
    inbox.take(1, 1, ["a", "b"])
    assert inbox.take(2, 1, ["c"]) == ["c"]
    assert inbox.take(1, 3, ["late"]) == []
    assert (inbox.epoch, inbox.done) == (2, 1)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 8), st.integers(0, 5)), max_size=40))
def test_whatever_arrives_each_epoch_executes_a_prefix_of_its_commands(
    messages: list[tuple[int, int, int]],
) -> None:
    """If messages are lost, repeated and mixed over epochs, then each epoch's commands run once, in order."""
    inbox = Inbox()
    executed: list[tuple[int, int]] = []
    for epoch, first, count in messages:
        executed += inbox.take(epoch, first, [(epoch, first + i) for i in range(count)])
    assert executed == sorted(set(executed))
    for epoch in (1, 2, 3):
        numbers = [n for e, n in executed if e == epoch]
        assert numbers == list(range(1, len(numbers) + 1))


def test_a_batch_is_kept_until_it_is_stored() -> None:
    """If nothing is confirmed, then the same bytes can be sent again; afterwards nothing is held."""
    outbox = Outbox(1000)
    log = outbox.begin(KEY, 0)
    outbox.add(log, event(1))
    [message] = outbox.close(log, 0.0)
    assert wire.unpack(message) == ["batch", "run_1", 1, 1, [[13, 1.0, b"x"]], None]
    assert log.since(1, 0.0) == [message]
    assert not outbox.stored(KEY, 1)
    assert (log.since(2, 0.0), outbox.bytes) == ([], 0)


def test_the_settlement_travels_with_the_last_event_and_ends_the_log() -> None:
    """If the settling batch is stored, then the attempt is over here; before that it is not."""
    outbox = Outbox(1000)
    log = outbox.begin(KEY, 0)
    outbox.add(log, event(1))
    outbox.close(log, 0.0)
    settled(outbox, log, event(2))
    [message] = outbox.close(log, 0.0)
    assert wire.unpack(message)[5] == {"status": "completed"}
    assert not outbox.stored(KEY, 1)
    assert outbox.stored(KEY, 2)
    assert (outbox.logs, outbox.bytes) == ({}, 0)


def test_many_events_are_cut_into_batches_and_only_the_last_settles() -> None:
    """If a turn produced more than a batch may hold, then several leave, in order, within the bounds."""
    outbox = Outbox(10**9)
    log = outbox.begin(KEY, 0)
    for i in range(runner.BATCH_EVENTS_MAX + 5):
        outbox.add(log, event(i))
    settled(outbox, log, event(-1, runner.BATCH_BYTES_MAX))
    batches = [wire.unpack(message) for message in outbox.close(log, 0.0)]
    assert [batch[3] for batch in batches] == [1, 2, 3]
    assert [len(batch[4]) for batch in batches] == [runner.BATCH_EVENTS_MAX, 5, 1]
    assert [batch[5] is None for batch in batches] == [True, True, False]


def test_bytes_are_counted_from_the_event_on_and_full_says_stop() -> None:
    """If more is unconfirmed than the bound, then the outbox is full until something is stored."""
    outbox = Outbox(100)
    log = outbox.begin(KEY, 0)
    outbox.add(log, event(1, 200))
    assert outbox.full
    outbox.close(log, 0.0)
    assert outbox.full
    outbox.stored(KEY, 1)
    assert not outbox.full


def test_a_dropped_attempt_frees_its_bytes() -> None:
    """If an attempt is fenced, then what it held is forgotten and counted no more."""
    outbox = Outbox(100)
    log = outbox.begin(KEY, 0)
    outbox.add(log, event(1, 200))
    outbox.close(log, 0.0)
    outbox.drop(KEY)
    outbox.drop(KEY)
    assert (outbox.bytes, outbox.stored(KEY, 1)) == (0, False)


def test_batches_that_were_forgotten_cannot_be_sent_again() -> None:
    """If a partition asks for what it had confirmed, then the answer is None, and not a wrong batch."""
    outbox = Outbox(1000)
    log = outbox.begin(KEY, 0)
    for i in range(3):
        outbox.add(log, event(i))
        outbox.close(log, 0.0)
    outbox.stored(KEY, 2)
    assert log.since(1, 0.0) is None
    assert len(log.since(3, 0.0) or ()) == 1


def test_what_is_unconfirmed_for_long_is_sent_again_within_bounds() -> None:
    """If nothing was confirmed for a while, then the oldest batches go again, and not all at once."""
    outbox = Outbox(10**9)
    log = outbox.begin(KEY, 3)
    for i in range(10):
        outbox.add(log, event(i, runner.BATCH_BYTES_MAX))
        outbox.close(log, 0.0)
    assert list(outbox.overdue(runner.RESEND_AFTER_S / 2)) == []
    [(partition, messages)] = outbox.overdue(runner.RESEND_AFTER_S)
    assert partition == 3
    assert 1 <= len(messages) < 10
    assert list(outbox.overdue(runner.RESEND_AFTER_S)) == []


def test_of_partition_names_only_what_belongs_to_it() -> None:
    """If one partition was replaced, then only its own batches are repeated."""
    outbox = Outbox(1000)
    for partition in (0, 1):
        log = outbox.begin((f"run_{partition}", 1), partition)
        outbox.add(log, event(1))
        outbox.close(log, 0.0)
    assert [p for p, _ in outbox.of_partition(1, 0.0)] == [1]
    assert [p for p, _ in outbox.of_partition(None, 0.0)] == [0, 1]


def test_nothing_follows_a_settlement() -> None:
    """If somebody adds an event behind the settlement, then it is a bug and says so."""
    outbox = Outbox(1000)
    log = outbox.begin(KEY, 0)
    with pytest.raises(AssertionError):
        log.settle(b"\xc0")
    settled(outbox, log, event(1))
    with pytest.raises(AssertionError):
        outbox.add(log, event(2))


@given(st.lists(st.sampled_from(["add", "close", "lose", "take", "overdue", "restart"]), max_size=60))
def test_over_any_channel_the_log_gets_every_event_once_and_in_order(steps: list[str]) -> None:
    """If messages are lost and repeated and the partition is replaced, then resending mends all of it."""
    outbox = Outbox(10**9)
    log = outbox.begin(KEY, 0)
    wanted = 0
    stored: list[float] = []
    next_n = 1
    channel: list[bytes] = []
    now_s = 0.0

    def take(message: bytes) -> None:
        nonlocal next_n
        _, _, _, n, rows, _ = wire.unpack(message)
        if n == next_n:
            stored.extend(row[1] for row in rows)
            next_n += 1
        if n < next_n:
            outbox.stored(KEY, n)
        else:
            channel.extend(log.since(next_n, now_s) or ())

    for step in steps:
        now_s += runner.RESEND_AFTER_S
        if step == "add":
            wanted += 1
            outbox.add(log, event(wanted))
        elif step == "close":
            channel += outbox.close(log, now_s)
        elif step == "lose":
            del channel[:1]
        elif step == "take" and channel:
            take(channel.pop(0))
        elif step == "overdue":
            channel += [m for _, messages in outbox.overdue(now_s) for m in messages]
        elif step == "restart":
            channel.clear()
            channel += [m for _, messages in outbox.of_partition(0, now_s) for m in messages]
    settled(outbox, log, event(wanted + 1))
    outbox.close(log, now_s)
    while outbox.logs:
        now_s += runner.RESEND_AFTER_S
        for _, messages in outbox.overdue(now_s):
            for message in messages:
                take(message)
    assert stored == [float(i) for i in range(1, wanted + 2)]
    assert outbox.bytes == 0


def test_messages_are_joined_and_cut_by_size() -> None:
    """If several messages leave together, then they travel as one, and a frame stays within its bound."""
    one, two = wire.pack(["acks", 1, 2]), wire.pack(["lost", []])
    assert wire.unpack(join_many([one])) == ["acks", 1, 2]
    assert wire.unpack(join_many([one, two])) == ["many", [["acks", 1, 2], ["lost", []]]]
    sizes: list[list[Any]] = [
        [len(m) for m in group] for group in groups([b"x" * n for n in (3, 3, 9, 1)], 6)
    ]
    assert sizes == [[3, 3], [9], [1]]
