"""Versions, slots, and what a run says when: the rules of a session's queue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Runner, new_run_id, started

RUNS = [new_run_id("s", n) for n in range(9)]


def submit(bench: Bench, n: int) -> str:
    status: str = bench.call("run.submit", RUNS[n], "s", f"text {n}", None)["status"]
    bench.deliver()
    return status


def finish(bench: Bench, runner: Runner, n: int, status: str = "completed") -> None:
    bench.progress(runner, RUNS[n], status)
    bench.deliver()


def executing(bench: Bench) -> list[int]:
    return [RUNS.index(run_id) for run_id in bench.state.work_of("s").running]


# --- versions ---


def test_each_step_of_a_session_raises_its_version_and_going_idle_does_not(bench: Bench) -> None:
    """If the status changes, then the version grows by one; losing the actor is no change."""
    assert bench.call("session.create", "s", "echo", None)["version"] == 1
    assert bench.call("session.activate", "s")["version"] == 2
    assert bench.call("session.pause", "s")["version"] == 3
    bench.kill_node()
    assert bench.state.session("s").version == 3 and not bench.state.session("s").live
    assert bench.call("session.resume", "s", 3)["version"] == 4


@pytest.mark.parametrize("op", ["activate", "pause", "resume", "complete", "cancel", "stop", "abort", "fail"])
def test_a_verb_on_another_version_is_refused_and_changes_nothing(bench: Bench, op: str) -> None:
    """If the record changed since the caller saw it, then version_conflict, whatever the verb."""
    bench.call("session.start", "s", "echo", None)
    args = {"stop": ["s", None, 1], "fail": ["s", "why", 1]}.get(op, ["s", 1])
    before = bench.state.session("s")
    reply = bench.replies[bench.post([f"session.{op}", args])]
    assert reply[0][1]["code"] == "version_conflict" and reply[0][1]["details"] == {"id": "s", "version": 2}
    assert bench.state.session("s") == before
    assert bench.code(f"session.{op}", *args[:-1], "2") == "validation_error"


def test_a_run_is_executed_and_cancelled_at_the_version_that_was_seen(bench: Bench) -> None:
    """If a run changed meanwhile, then execute and cancel by version are refused."""
    started(bench)
    assert bench.call("run.create", RUNS[0], "s", "x", None)["version"] == 1
    assert bench.code("run.execute", RUNS[0], None, 2) == "version_conflict"
    version = bench.call("run.execute", RUNS[0], None, 1)["version"]
    assert bench.code("run.cancel", RUNS[0], version - 1) == "version_conflict"
    assert not bench.state.run(RUNS[0]).cancelling


def test_a_version_survives_a_restart(bench: Bench) -> None:
    """If the partition is killed, then records have the versions that were acknowledged."""
    runner = started(bench)
    submit(bench, 0)
    finish(bench, runner, 0)
    version = bench.state.run(RUNS[0]).version
    bench.kill()
    assert bench.state.run(RUNS[0]).version == version > 1


# --- slots ---


def test_one_slot_executes_strictly_in_order(bench: Bench) -> None:
    """If a session has one slot, then its runs execute one after the other, first in, first out."""
    runner = started(bench)
    assert [submit(bench, n) for n in range(3)] == ["running", "queued", "queued"]
    for n in range(3):
        assert executing(bench) == [n]
        finish(bench, runner, n)
    assert [r for r, _ in runner.started] == RUNS[:3]


def test_a_session_with_slots_executes_so_many_at_a_time(bench: Bench) -> None:
    """If a session has 2 slots, then two runs execute, and the end of either starts the next."""
    runner = started(bench, slots=2)
    assert [submit(bench, n) for n in range(4)] == ["running", "running", "queued", "queued"]
    finish(bench, runner, 1)
    assert executing(bench) == [0, 2]
    finish(bench, runner, 0)
    assert executing(bench) == [2, 3]


@pytest.mark.parametrize("slots", [0, -1, 1.5, "2", True, 10**6])
def test_slots_that_make_no_sense_are_refused(bench: Bench, slots: Any) -> None:
    """If slots is no number of runs, then nothing is created."""
    assert bench.code("session.create", "s", "echo", {"slots": slots}) == "validation_error"
    assert not bench.state.has_session("s")


def test_the_slots_of_a_session_survive_its_partition_and_its_runner(bench: Bench) -> None:
    """If partition and runner die with two runs executing, then both are settled, once each."""
    started(bench, slots=2)
    for n in range(3):
        submit(bench, n)
    bench.kill()
    assert executing(bench) == [0, 1]
    bench.crash_runner(0)
    bench.roster()
    assert [bench.status(run_id) for run_id in RUNS[:3]] == ["failed", "failed", "queued"]
    assert len(bench.state.session("s").crashes) == 1
    bench.spawn(0)
    bench.roster()
    assert executing(bench) == [2]


def test_runs_of_an_idempotent_agent_are_queued_again_in_their_order(bench: Bench) -> None:
    """If a runner dies with two idempotent runs, then both execute again, before what waited."""
    bench.call("session.start", "s", "again", {"slots": 2})
    for n in range(3):
        submit(bench, n)
    bench.crash_runner(0)
    bench.roster()
    assert bench.state.work_of("s").queue == tuple(RUNS[:3])
    bench.spawn(0)
    bench.roster()
    assert executing(bench) == [0, 1]


def test_a_full_queue_refuses_and_stores_nothing(tmp_path: Path) -> None:
    """If all slots are busy and the queue is full, then max_runs_exceeded, and there is no such run."""
    bench = Bench(tmp_path, queue_max=1)
    runner = started(bench)
    assert [submit(bench, n) for n in range(2)] == ["running", "queued"]
    assert bench.code("run.submit", RUNS[2], "s", "x", None) == "max_runs_exceeded"
    assert not bench.state.has_run(RUNS[2])
    finish(bench, runner, 0)
    assert submit(bench, 3) == "queued"
    bench.store.connection.close()


def test_a_queue_of_zero_still_executes_when_a_slot_is_free(tmp_path: Path) -> None:
    """If queue_max is 0, then a run executes when it can, and is refused when it would wait."""
    bench = Bench(tmp_path, queue_max=0)
    runner = started(bench)
    assert submit(bench, 0) == "running"
    assert bench.code("run.submit", RUNS[1], "s", "x", None) == "max_runs_exceeded"
    finish(bench, runner, 0)
    assert submit(bench, 2) == "running"
    bench.store.connection.close()


# --- what is said when ---


def test_a_run_says_its_messages_when_it_is_dispatched(bench: Bench) -> None:
    """If a run waits, then its message is not in the log; cancelled there, it never is."""
    runner = started(bench)
    for n in range(3):
        submit(bench, n)
    assert bench.events("s").count("message_sent") == 1
    bench.call("run.cancel", RUNS[1])
    finish(bench, runner, 0)
    assert bench.events("s") == [
        "session_created", "session_started", "message_sent", "run_cancelled", "run_completed",
        "message_sent",
    ]


def test_a_run_that_is_dispatched_twice_says_its_messages_once(bench: Bench) -> None:
    """If an idempotent run executes again, then the log has its message once."""
    bench.call("session.start", "s", "again", None)
    submit(bench, 0)
    bench.crash_runner(0)
    bench.roster()
    bench.spawn(0)
    bench.roster()
    assert bench.state.run(RUNS[0]).attempt == 2
    assert bench.events("s").count("message_sent") == 1


def test_a_claimed_run_has_begun_when_its_runner_says_so(bench: Bench) -> None:
    """If a runner lets a run wait, then started_at is None until its first batch, and is kept."""
    runner = started(bench)
    submit(bench, 0)
    assert bench.status(RUNS[0]) == "running" and bench.state.run(RUNS[0]).started_at is None
    bench.progress(runner, RUNS[0])
    assert bench.state.run(RUNS[0]).started_at == 1.0
    bench.kill()
    assert bench.state.run(RUNS[0]).started_at == 1.0 and bench.state.run(RUNS[0]).batch == 1


def test_an_abort_does_not_wait_for_what_began_after_it(bench: Bench) -> None:
    """If a session with slots is aborted and gets new work, then the abort ends with the former runs."""
    runner = started(bench, slots=2)
    submit(bench, 0)
    submit(bench, 1)
    request = bench.post(["session.abort", ["s"]])
    submit(bench, 2)
    bench.deliver()
    finish(bench, runner, 0, "cancelled")
    assert executing(bench) == [1, 2] and request not in bench.replies
    finish(bench, runner, 1, "cancelled")
    assert bench.replies[request] == [[0, 2]] and executing(bench) == [2]


def test_a_stop_takes_along_what_began_after_it(bench: Bench) -> None:
    """If a session with slots is stopped and gets new work meanwhile, then that is cancelled too."""
    runner = started(bench, slots=2)
    submit(bench, 0)
    submit(bench, 1)
    request = bench.post(["session.stop", ["s"]])
    submit(bench, 2)
    for n in (0, 1):
        finish(bench, runner, n, "cancelled")
    assert request not in bench.replies and bench.state.run(RUNS[2]).cancelling
    finish(bench, runner, 2, "cancelled")
    assert bench.replies[request] == [[0, None]]
    assert bench.state.session("s").status == "paused"


def test_cancelling_what_is_over_changes_nothing(bench: Bench) -> None:
    """If a finished run is cancelled, then the answer is its id and it stays as it ended."""
    runner = started(bench)
    submit(bench, 0)
    finish(bench, runner, 0)
    before = bench.state.run(RUNS[0])
    assert bench.call("run.cancel", RUNS[0]) == RUNS[0]
    assert bench.state.run(RUNS[0]) == before
    assert bench.code("run.cancel", RUNS[1]) == "run_not_found"


def test_a_run_that_completes_before_the_cancel_answers_the_cancel(bench: Bench) -> None:
    """If the cancel comes too late, then its caller gets the id; the run is completed, once."""
    runner = started(bench)
    submit(bench, 0)
    request = bench.post(["run.cancel", [RUNS[0]]])
    bench.progress(runner, RUNS[0], "completed")
    assert bench.replies[request] == [[0, RUNS[0]]] and bench.status(RUNS[0]) == "completed"
