"""Batches of many runs in one frame: one answer for all, and what may wait for a partition."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, new_run_id, opened
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import runner, wire
from mesh.core.frames import LEAST_BYTES, WINDOW_S, Frames
from mesh.core.runner import Outbox, encode_event

KEYS = (("run_a", 1), ("run_b", 1), ("run_c", 2))


def event(i: int, size: int = 1) -> bytes:
    return encode_event(13, float(i), b"x" * size)


def test_one_answer_confirms_the_batches_of_all_runs_but_those_it_names() -> None:
    """If a frame is answered, then what it held is forgotten, except the places that the answer names."""
    outbox = Outbox(10**9)
    logs = {key: outbox.begin(key, 0) for key in KEYS}
    for i, log in enumerate(logs.values()):
        outbox.add(log, event(i))
    [frame] = outbox.frame(0, logs.values(), 0.0)
    kind, number, batches = wire.unpack(frame)
    assert (kind, [batch[:4] for batch in batches]) == ("frame", [["batch", *key, 1] for key in KEYS])
    assert outbox.framed(0, number, [1], 0.1) == []
    assert [len(log.batches) for log in logs.values()] == [0, 1, 0]
    assert outbox.framed(0, number, [], 0.1) == [] and outbox.framed(7, 1, [], 0.1) == []
    assert outbox.bytes == outbox.frames[0].bytes == len(event(1))


def test_frame_that_settles_runs_names_those_that_are_over() -> None:
    """If the settlements of runs are stored, then the answer says which attempts ended; a dropped one does
    not count."""
    outbox = Outbox(10**9)
    logs = {key: outbox.begin(key, 0) for key in KEYS}
    for log in logs.values():
        outbox.add(log, event(1))
    for key in KEYS[:2]:
        outbox.settle(logs[key], wire.pack({"status": "completed"}))
    [frame] = outbox.frame(0, logs.values(), 0.0)
    outbox.drop(KEYS[0])
    assert outbox.framed(0, wire.unpack(frame)[1], [], 0.1) == [KEYS[1]]
    assert list(outbox.logs) == [KEYS[2]] and outbox.bytes == outbox.frames[0].bytes == 0


def test_frames_stay_within_their_size() -> None:
    """If many large batches leave together, then they travel in several frames, each with its own number."""
    outbox = Outbox(10**9)
    log = outbox.begin(KEYS[0], 0)
    for i in range(20):
        outbox.add(log, event(i, runner.BATCH_BYTES_MAX))
    frames = outbox.frame(0, [log], 0.0)
    assert len(frames) > 1 and max(map(len, frames)) <= runner.FRAME_BYTES + 100
    for number in [wire.unpack(frame)[1] for frame in frames]:
        outbox.framed(0, number, [], 0.1)
    assert not log.batches and outbox.bytes == 0


def test_agents_of_a_partition_wait_when_more_is_said_than_it_stores_in_its_time() -> None:
    """If a partition stores fast, then more may wait for it; if it becomes slow, then less; others go on."""
    outbox = Outbox(10**9)
    log, other = outbox.begin(KEYS[0], 0), outbox.begin(KEYS[1], 1)
    now_s = 0.0

    def round_trip(size: int, taken_s: float) -> None:
        nonlocal now_s
        outbox.add(log, event(1, size))
        [frame] = outbox.frame(0, [log], now_s)
        assert outbox.has_room(log) == (size <= log.frames.most - 10)
        now_s += taken_s
        outbox.framed(0, wire.unpack(frame)[1], [], now_s)

    round_trip(2 * LEAST_BYTES, 0.001)
    fast = log.frames.most
    assert fast > 10 * LEAST_BYTES and outbox.has_room(log)
    round_trip(100, 1.0)
    assert log.frames.most == fast  # a small frame says nothing
    for _ in range(40):
        round_trip(fast, 10.0)
    assert log.frames.most < fast / 2
    outbox.add(log, event(1, fast))
    assert not outbox.has_room(log) and outbox.has_room(other)
    assert log.frames.most <= max(LEAST_BYTES, int(fast / 10.0 * WINDOW_S) + 1)


def test_what_is_sent_again_holds_up_nobody_else() -> None:
    """If a partition refuses one run's batch for ever, then others of its runs go on after a while."""
    outbox = Outbox(10**9)
    stuck, other = outbox.begin(KEYS[0], 0), outbox.begin(KEYS[1], 0)
    outbox.add(stuck, event(1, 2 * LEAST_BYTES))
    outbox.frame(0, [stuck], 0.0)
    assert not outbox.has_room(other)
    assert outbox.overdue(runner.RESEND_AFTER_S) and outbox.has_room(other)
    outbox.add(stuck, event(2, 10))
    assert outbox.frames[0].bytes == len(event(2, 10)) and outbox.bytes == stuck.kept_bytes
    outbox.drop(KEYS[0])
    assert outbox.frames[0].bytes == outbox.bytes == 0
    outbox.add(other, event(1))
    outbox.frame(0, [other], 5.0)
    outbox.overdue(5.0 + runner.RESEND_AFTER_S)
    outbox.stored(KEYS[1], 1)
    assert outbox.frames[0].bytes == outbox.bytes == 0


STEPS = ("say", "send", "lose", "store", "store badly", "overdue", "restart")


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from(KEYS)), max_size=60))
def test_over_any_channel_framed_batches_are_stored_once_and_in_order(steps: list[tuple[str, Any]]) -> None:
    """If frames and answers are lost and batches of them refused, then resending mends all of it."""
    outbox = Outbox(10**9)
    logs = {key: outbox.begin(key, 0) for key in KEYS}
    said: dict[Any, list[float]] = {key: [] for key in KEYS}
    stored: dict[Any, list[float]] = {key: [] for key in KEYS}
    next_n = dict.fromkeys(KEYS, 1)
    channel: list[bytes] = []
    now_s = 0.0

    def take(batch: list[Any], *, badly: bool = False) -> bool:
        key, n = (batch[1], batch[2]), batch[3]
        if n == next_n[key] and not badly:
            stored[key] += [row[1] for row in batch[4]]
            next_n[key] += 1
        if n >= next_n[key]:
            channel.extend(logs[key].since(next_n[key], now_s) or ())
            return False
        return True

    def arrive(message: bytes, *, badly: bool = False) -> None:
        one = wire.unpack(message)
        if one[0] == "frame":
            taken = [take(batch, badly=badly and i == 0) for i, batch in enumerate(one[2])]
            outbox.framed(0, one[1], [i for i, well in enumerate(taken) if not well], now_s)
        elif take(one):
            outbox.stored((one[1], one[2]), one[3])

    for step, key in steps:
        now_s += runner.RESEND_AFTER_S
        if step == "say":
            said[key].append(float(len(said[key])))
            outbox.add(logs[key], event(len(said[key]) - 1))
        elif step == "send":
            channel += outbox.frame(0, logs.values(), now_s)
        elif step == "lose":
            del channel[:1]
        elif step.startswith("store") and channel:
            arrive(channel.pop(0), badly=step == "store badly")
        elif step == "overdue":
            channel += [m for _, messages in outbox.overdue(now_s) for m in messages]
        elif step == "restart":
            channel.clear()
            channel += [m for _, messages in outbox.of_partition(0, now_s) for m in messages]
    channel += outbox.frame(0, logs.values(), now_s)
    while any(log.batches for log in logs.values()):
        now_s += runner.RESEND_AFTER_S
        channel += [m for _, messages in outbox.overdue(now_s) for m in messages]
        while channel:
            arrive(channel.pop(0))
    assert stored == said
    assert outbox.bytes == outbox.frames[0].bytes == 0


def test_frame_whose_answer_is_lost_is_forgotten() -> None:
    """If answers never come, then what is known of their frames does not add up."""
    frames = Frames()
    for i in range(100):
        frames.encode([b"\xc0"], [], float(i))
        frames.forget(float(i) - 1.5)
    assert len(frames._open) == 2


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    yield from opened(tmp_path)


def test_partition_stores_a_frame_but_for_what_it_names_in_its_answer(bench: Bench) -> None:
    """If batches of a frame are stored, missing one before, broken or of another attempt, then the answer
    names those that are not stored, and each hears why; a broken one takes nobody along."""
    runner = bench.runners[0]
    assert runner is not None
    ids = [new_run_id(name, 1) for name in "stuv"]
    for name, run_id in zip("stuv", ids, strict=True):
        bench.call("session.start", name, "echo", None)
        bench.call("session.prompt", name, run_id, "hi", "follow_up")
    bench.deliver()
    well, gap, broken, fenced = (runner.batch(run_id, None) for run_id in ids)
    gap[3], broken[4], fenced[2] = 5, [[14]], 9
    answers: list[list[Any]] = []
    bench._answered = lambda _index, _incarnation, message: answers.append(message)  # type: ignore[method-assign]
    bench.say(runner, ["frame", 7, [well, gap, broken, fenced]])
    assert answers == [["expected", ids[1], 1, 1], ["fenced", ids[3], 9], ["frame", 7, [1, 2, 3]]]
    assert [bench.events(name).count("message_streamed") for name in "stuv"] == [1, 0, 0, 0]
    answers.clear()
    bench.say(runner, ["frame", 8, [well, runner.batch(ids[2], None)]])
    assert answers == [["frame", 8, []]]
    assert [bench.events(name).count("message_streamed") for name in "stuv"] == [1, 0, 1, 0]


def test_runs_that_go_on_lose_nothing_to_a_broken_batch_in_their_frame(bench: Bench) -> None:
    """If one of the next batches of running runs is broken, then the frame is taken anew without it, every
    event is stored once, and its run goes on where it stood."""
    runner = bench.runners[0]
    assert runner is not None
    ids = [new_run_id(name, 1) for name in "st"]
    for name, run_id in zip("st", ids, strict=True):
        bench.call("session.start", name, "echo", None)
        bench.call("session.prompt", name, run_id, "hi", "follow_up")
    bench.deliver()
    answers: list[list[Any]] = []
    bench._answered = lambda _index, _incarnation, message: answers.append(message)  # type: ignore[method-assign]

    def say(number: int, *batches: tuple[str, int, bool]) -> None:
        made = [runner.batch(run_id, None) for run_id, _, _ in batches]
        for batch, (_, n, broken) in zip(made, batches, strict=True):
            batch[3], batch[4] = n, [[14]] if broken else batch[4]
        bench.say(runner, ["frame", number, made])

    say(1, (ids[0], 1, False), (ids[1], 1, False))
    say(2, (ids[0], 2, False), (ids[0], 3, False), (ids[1], 2, True))
    say(3, (ids[0], 3, False), (ids[1], 2, False), (ids[1], 4, False))
    assert answers == [["frame", 1, []], ["frame", 2, [2]], ["expected", ids[1], 1, 3], ["frame", 3, [2]]]
    assert [bench.events(name).count("message_streamed") for name in "st"] == [3, 2]
    assert [bench.state.run(run_id).batch for run_id in ids] == [3, 2]
    assert [run.batch for run in map(bench.state.loader.run, ids) if run is not None] == [3, 2]
