"""Decisions while the wall clock is set forwards or back: order, crash counting and receipts hold."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from bench import Bench, new_run_id

from mesh.core.receipts import Receipt
from mesh.core.runners import CRASHES_MAX
from mesh.core.state import State
from mesh.store.sqlite import Store

DAY_S = 86_400.0
CLIENT = b"c" * 16


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_queue_keeps_its_order_when_the_clock_is_set_back(bench: Bench) -> None:
    """If the clock is set back between two prompts, then a new incarnation still has them in their order."""
    runs = [new_run_id("s", n) for n in range(4)]
    bench.call("session.start", "s", "echo", None)
    for n in (0, 3, 1, 2):  # not in the order of their ids
        bench.call("session.prompt", "s", runs[n], "hi", "follow_up")
        bench.now -= DAY_S
    queue = bench.state.work_of("s").queue
    assert queue == (runs[3], runs[1], runs[2])
    bench.kill()
    assert bench.state.work_of("s").queue == queue


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
def test_crashes_are_counted_by_a_clock_that_nobody_sets(bench: Bench, jump_s: float) -> None:
    """If the clock jumps between crashes, then those of the last minute count, and no older ones."""
    bench.call("session.start", "s", "echo", None)

    def crash(n: int, wait_s: float) -> str:
        bench.roster()
        run_id = new_run_id("s", n)
        bench.call("session.prompt", "s", run_id, "hi", "follow_up")
        bench.deliver()
        assert bench.status(run_id) == "running"
        bench.crash_runner(0)
        bench.spawn(0)
        bench.roster()
        bench.catalogue()
        bench.now += jump_s
        bench.tick(wait_s)
        return bench.state.session("s").status.value

    assert [crash(n, 100.0) for n in range(CRASHES_MAX + 1)] == ["active"] * (CRASHES_MAX + 1)
    bench.tick(100.0)
    assert [crash(10 + n, 1.0) for n in range(CRASHES_MAX)][-1] == "failed"


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
def test_receipts_age_by_service_not_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    """If the clock jumps, then receipts are as old as they were, also for the next incarnation."""
    store = Store(tmp_path / "p.db")
    store.acquire(boot_id="boot", offset_ms=0)
    state = State(store, partition=0, epoch=store.epoch, node="mesh")
    store.commit(state, {}, {(CLIENT, 1): Receipt((b"x",))}, {}, power=True)
    store.save_counters(state, 1)
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + jump_s)
    store.sweep(silent_before=store.served_s() - 900, lifecycle_below=0)
    store.close()
    again = Store(tmp_path / "p.db")
    again.acquire(boot_id="boot", offset_ms=0)
    again.sweep(silent_before=again.served_s() - 900, lifecycle_below=0)
    assert [number for number, _ in again.receipts(CLIENT)] == [1]
    again.sweep(silent_before=again.served_s() + 900, lifecycle_below=0)
    assert again.receipts(CLIENT) == []
    again.close()
