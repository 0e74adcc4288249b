"""Prompts while busy, steering, and control of what executes: decided over a real store, with kills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench import CATALOGUE, Bench, Runner, new_run_id, started

from mesh.core import events as ev
from mesh.core import wire
from mesh.core.prompts import SHOWN_CHARS_MAX

RUNS = [new_run_id("s", n) for n in range(9)]


def prompt(bench: Bench, n: int, queue: str = "follow_up", on_busy: str | None = None) -> Any:
    answer = bench.call("session.prompt", "s", RUNS[n], f"text {n}", queue, on_busy)
    bench.deliver()
    assert answer[0] == RUNS[n]
    return answer[1:]


def finish(bench: Bench, runner: Runner, n: int, status: str = "completed") -> None:
    bench.progress(runner, RUNS[n], status)
    bench.deliver()


def executing(bench: Bench) -> list[int]:
    return [RUNS.index(run_id) for run_id in bench.state.work_of("s").running]


def waiting(bench: Bench) -> list[int]:
    return [RUNS.index(run_id) for run_id in bench.state.work_of("s").waiting]


def said(bench: Bench) -> list[str]:
    """The texts of all message_sent events."""
    rows = bench.rows("SELECT fragment FROM event WHERE type = ? ORDER BY pos", ev.TYPE_CODE["message_sent"])
    header = wire.map_header(ev.FRAGMENT_PAIRS)
    return [wire.unpack(header + fragment)["data"]["content"] for (fragment,) in rows]


def reasons(bench: Bench) -> list[str]:
    """The reasons of all run_cancelled events."""
    rows = bench.rows("SELECT fragment FROM event WHERE type = ? ORDER BY pos", ev.TYPE_CODE["run_cancelled"])
    header = wire.map_header(ev.FRAGMENT_PAIRS)
    return [wire.unpack(header + fragment)["data"].get("reason") for (fragment,) in rows]


def take(bench: Bench, runner: Runner, n: int, number: int) -> list[Any]:
    """A run asks for steering prompts; the answer it is sent."""
    heard: list[Any] = []
    answered = bench._answered
    bench._answered = lambda index, incarnation, message: heard.append(message)  # type: ignore[method-assign]
    attempt = runner.runs[RUNS[n]][0]
    bench.say(runner, ["take", RUNS[n], attempt, number])
    bench._answered = answered  # type: ignore[method-assign]
    [message] = heard
    return message


# --- what a busy session does ---


def test_a_prompt_to_an_idle_session_begins_at_once(bench: Bench) -> None:
    """If nothing executes, then any prompt is a run that begins, whatever queue and on_busy say."""
    runner = started(bench)
    ways = [("follow_up", None), ("steering", "reject"), ("steering", "rollback")]
    for n, (queue, on_busy) in enumerate(ways):
        assert prompt(bench, n, queue, on_busy) == [False, None]
        finish(bench, runner, n)
    assert said(bench) == ["text 0", "text 1", "text 2"]


def test_follow_ups_wait_in_order_each_a_run_of_its_own(bench: Bench) -> None:
    """If prompts are enqueued, then each is answered by its own run, first in, first out."""
    runner = started(bench)
    assert [prompt(bench, n) for n in range(3)] == [[False, None], [True, "follow_up"], [True, "follow_up"]]
    for n in range(3):
        assert executing(bench) == [n]
        finish(bench, runner, n)


def test_a_prompt_that_waits_is_an_event_and_one_that_begins_is_none(bench: Bench) -> None:
    """If a prompt has to wait, then the log says so, with its queue and its text as it may be shown."""
    started(bench)
    prompt(bench, 0)
    prompt(bench, 1)
    prompt(bench, 2, "steering")
    prompt(bench, 3, "follow_up", "interrupt")
    long = "x" * (SHOWN_CHARS_MAX - 11) + " AKIAIOSFODNN7EXAMPLE"
    bench.call("session.prompt", "s", RUNS[4], long, "follow_up", None)
    rows = bench.rows("SELECT fragment FROM event WHERE type = ? ORDER BY pos", ev.TYPE_CODE["prompt_queued"])
    header = wire.map_header(ev.FRAGMENT_PAIRS)
    events = [wire.unpack(header + fragment) for (fragment,) in rows]
    assert [(RUNS.index(e["run_id"]), e["data"]["queue"], e["data"]["content"]) for e in events[:3]] == [
        (1, "follow_up", "text 1"), (2, "steering", "text 2"), (3, "follow_up", "text 3")]
    assert events[3]["data"] == {
        "queue": "follow_up", "content": "x" * (SHOWN_CHARS_MAX - 11) + " [REDACTED]"}
    bench.call("session.prompt", "s", RUNS[5], "y" * 5_000, "follow_up", None)
    [last] = bench.rows("SELECT fragment FROM event ORDER BY pos DESC LIMIT 1")
    assert wire.unpack(header + last[0])["data"] == {
        "queue": "follow_up", "content": "y" * SHOWN_CHARS_MAX, "truncated": True}


def test_reject_says_busy_and_stores_nothing(bench: Bench) -> None:
    """If a busy session is prompted with reject, then session_busy, and there is no such run."""
    started(bench)
    prompt(bench, 0)
    assert bench.code("session.prompt", "s", RUNS[1], "x", "follow_up", "reject") == "session_busy"
    assert not bench.state.has_run(RUNS[1])


@pytest.mark.parametrize("how", ["interrupt", "rollback"])
def test_interrupting_runs_the_prompt_next_and_says_why_the_other_ended(bench: Bench, how: str) -> None:
    """If a prompt interrupts, then the running run is cancelled with that reason, and the prompt is next."""
    runner = started(bench)
    prompt(bench, 0)
    prompt(bench, 1)
    assert prompt(bench, 2, "follow_up", how) == [True, "follow_up"]
    assert runner.reasons == {RUNS[0]: how} and executing(bench) == [0] and waiting(bench) == [2, 1]
    finish(bench, runner, 0, "cancelled")
    assert executing(bench) == [2] and waiting(bench) == [1]
    finish(bench, runner, 2)
    assert executing(bench) == [1]


@pytest.mark.parametrize("killed", [False, True])
def test_a_steering_prompt_behind_an_interrupting_one_steers_its_run(bench: Bench, killed: bool) -> None:
    """If a steering prompt comes while the interrupted run ends, then the interrupting prompt is first, and
    its run may take the other; when it does not, that is the next turn, before what waited."""
    runner = started(bench)
    prompt(bench, 0)
    prompt(bench, 1)
    prompt(bench, 2, "follow_up", "interrupt")
    assert prompt(bench, 3, "steering") == [True, "steering"]
    if killed:
        bench.kill()
    finish(bench, runner, 0, "cancelled")
    assert executing(bench) == [2] and runner.steered == {RUNS[2]}
    finish(bench, runner, 2)
    assert executing(bench) == [3] and waiting(bench) == [1]


@pytest.mark.parametrize("killed", [False, True])
def test_who_interrupts_twice_finds_both_before_what_was_steered(bench: Bench, killed: bool) -> None:
    """If two prompts interrupt, and one steers between them, then the last is first, and no turn is lost."""
    runner = started(bench)
    prompt(bench, 0)
    prompt(bench, 1)
    prompt(bench, 2, "follow_up", "interrupt")
    prompt(bench, 3, "steering")
    prompt(bench, 4, "follow_up", "rollback")
    assert waiting(bench) == [4, 2, 3, 1]
    if killed:
        bench.kill()
        assert waiting(bench) == [4, 2, 3, 1]
    finish(bench, runner, 0, "cancelled")
    for n in (4, 2, 3, 1):
        assert executing(bench) == [n]
        finish(bench, runner, n)


def test_an_interrupt_is_repeated_to_a_runner_that_did_not_hear_it(bench: Bench) -> None:
    """If the partition dies after an interrupt was stored, then the next one tells the runner again."""
    runner = started(bench)
    prompt(bench, 0)
    bench.sent[0].clear()
    bench.call("session.prompt", "s", RUNS[1], "now", "follow_up", "interrupt")
    bench.sent[0].clear()
    bench.kill()
    bench.deliver()
    assert runner.reasons == {RUNS[0]: "interrupt"}
    bench.tick(5.0)
    assert reasons(bench) == ["interrupt"] and executing(bench) == [1]


def test_an_interrupt_of_a_full_queue_of_none_has_a_place(tmp_path: Path) -> None:
    """If queue_max is 0, then a prompt that interrupts may wait for the end it caused, a second may not."""
    bench = Bench(tmp_path, queue_max=0)
    started(bench)
    prompt(bench, 0)
    assert prompt(bench, 1, "follow_up", "interrupt") == [True, "follow_up"]
    assert bench.code("session.prompt", "s", RUNS[2], "x", "follow_up", "rollback") == "max_runs_exceeded"
    bench.store.connection.close()


@pytest.mark.parametrize("args", [
    ("", "follow_up", None), (5, "follow_up", None), ("x", "later", None), ("x", None, None),
    ("x", "follow_up", "whenever"), ("x", "follow_up", 1), ("x", [], None), ("x", "steering", {}),
])
def test_a_prompt_that_makes_no_sense_is_refused(bench: Bench, args: tuple[Any, ...]) -> None:
    """If an argument of a prompt is wrong, then validation_error, and nothing is stored."""
    started(bench)
    assert bench.code("session.prompt", "s", RUNS[0], *args) == "validation_error"
    assert not bench.state.has_run(RUNS[0])


# --- steering ---


def test_a_run_takes_what_steers_it_once_and_in_order(bench: Bench) -> None:
    """If a run takes its steering prompts, then they are messages of that run, and are completed."""
    runner = started(bench)
    prompt(bench, 0)
    assert prompt(bench, 1, "steering") == [True, "steering"] and prompt(bench, 2, "steering")[0]
    assert runner.steered == {RUNS[0]}
    assert take(bench, runner, 0, 1) == ["taken", RUNS[0], 1, 1, ["text 1", "text 2"]]
    assert said(bench) == ["text 0", "text 1", "text 2"] and waiting(bench) == []
    assert [bench.status(RUNS[n]) for n in (1, 2)] == ["completed", "completed"]
    assert bench.state.run(RUNS[1]).output == {"steered_into": RUNS[0]}
    assert take(bench, runner, 0, 2) == ["taken", RUNS[0], 1, 2, []]
    finish(bench, runner, 0)
    assert executing(bench) == [] and bench.events("s").count("run_completed") == 3


def test_taking_again_under_the_same_number_gives_the_same_texts(bench: Bench) -> None:
    """If the partition dies before the runner heard the answer, then asking again gives it, and no more."""
    runner = started(bench)
    prompt(bench, 0)
    prompt(bench, 1, "steering")
    first = take(bench, runner, 0, 1)
    bench.kill()
    bench.deliver()
    prompt(bench, 2, "steering")
    assert take(bench, runner, 0, 1) == first
    assert take(bench, runner, 0, 2)[-1] == ["text 2"]
    assert take(bench, runner, 0, 1)[-1] == []  # a late copy
    assert said(bench) == ["text 0", "text 1", "text 2"]


def test_what_nobody_took_is_one_message_and_the_next_run(bench: Bench) -> None:
    """If a run ends before it took its steering prompts, then they are one turn, before the follow-ups."""
    runner = started(bench)
    for n, queue in enumerate(["follow_up", "follow_up", "steering", "steering"]):
        prompt(bench, n, queue)
    finish(bench, runner, 0)
    assert executing(bench) == [2] and waiting(bench) == [1]
    assert said(bench) == ["text 0", "text 2\n\ntext 3"]
    assert bench.state.run(RUNS[3]).output == {"steered_into": RUNS[2]}
    finish(bench, runner, 2)
    assert executing(bench) == [1]


def test_steering_prompts_survive_the_partition_and_the_runner(bench: Bench) -> None:
    """If partition and runner die, then what was not taken is said, once, when the session runs again."""
    runner = started(bench)
    prompt(bench, 0)
    prompt(bench, 1, "steering")
    prompt(bench, 2, "steering")
    bench.kill()
    bench.deliver()
    assert runner.steered == {RUNS[0]} and waiting(bench) == [1, 2]
    bench.kill_node()
    bench.tick()
    assert bench.status(RUNS[0]) == "failed"
    assert said(bench) == ["text 0", "text 1\n\ntext 2"] and executing(bench) == [1]


def test_what_was_joined_is_a_turn_also_after_a_restart(bench: Bench) -> None:
    """If the partition dies behind the join, or the joined run is executed again, then it does not steer."""
    bench.call("session.start", "s", "again", None)
    prompt(bench, 0)
    prompt(bench, 1, "steering")
    bench.call("session.pause", "s")
    bench.call("session.resume", "s")
    runner = bench.runners[0]
    assert runner is not None
    finish(bench, runner, 0)
    assert executing(bench) == [1]
    bench.crash_runner(0)
    bench.roster()
    bench.kill()
    assert bench.state.work_of("s").queue == (RUNS[1],)


def test_steering_waits_for_a_session_that_is_paused(bench: Bench) -> None:
    """If the session is paused when the run ends, then its steering prompts are said after resume."""
    runner = started(bench)
    prompt(bench, 0)
    prompt(bench, 1, "steering")
    bench.call("session.pause", "s")
    finish(bench, runner, 0)
    assert executing(bench) == [] and waiting(bench) == [1]
    bench.call("session.resume", "s")
    assert executing(bench) == [1]


def test_a_session_with_slots_keeps_its_steering_for_what_executes(bench: Bench) -> None:
    """If a slot is free beside a run, then a steering prompt still steers, until nothing executes."""
    runner = started(bench, slots=2)
    prompt(bench, 0)
    assert prompt(bench, 1, "steering") == [True, "steering"]
    bench.tick()
    assert executing(bench) == [0] and waiting(bench) == [1]
    finish(bench, runner, 0)
    assert executing(bench) == [1]


def test_too_many_steering_prompts_are_refused(bench: Bench) -> None:
    """If queue_max prompts steer already, then queue_full, and nothing is stored."""
    started(bench)
    prompt(bench, 0)
    for n in range(1, 6):
        prompt(bench, n, "steering")
    assert bench.code("session.prompt", "s", RUNS[7], "x", "steering") == "queue_full"
    assert not bench.state.has_run(RUNS[7])


def test_what_is_joined_is_bounded_and_the_rest_steers_that_run(bench: Bench) -> None:
    """If the texts are too long for one message, then the rest waits for the run they became."""
    runner = started(bench)
    prompt(bench, 0)
    for n in (1, 2, 3):
        bench.call("session.prompt", "s", RUNS[n], str(n) * 100_000, "steering", None)
    finish(bench, runner, 0)
    assert executing(bench) == [1] and waiting(bench) == [3]
    assert [len(text) for text in said(bench)] == [6, 200_002]
    bench.deliver()
    assert runner.steered == {RUNS[0], RUNS[1]} and len(bench.take(runner, RUNS[1])[0]) == 100_000


def test_a_run_that_is_over_takes_nothing(bench: Bench) -> None:
    """If a run takes after its end, then it is fenced and the prompts stay."""
    runner = started(bench)
    prompt(bench, 0)
    bench.call("session.pause", "s")
    bench.call("session.resume", "s")
    prompt(bench, 1, "steering")
    attempt = runner.runs[RUNS[0]][0]
    runner.runs[RUNS[0]] = (attempt + 1, 0)
    assert take(bench, runner, 0, 1)[0] == "fenced" and waiting(bench) == [1]


def test_an_idempotent_run_hears_in_its_next_attempt_what_it_had_taken(bench: Bench) -> None:
    """If a run is executed again, then its new attempt is given what the former took, then what is new."""
    bench.call("session.start", "s", "again", None)
    prompt(bench, 0)
    for n in (1, 2):
        prompt(bench, n, "steering")
        bench.take(bench.runners[0], RUNS[0])
    bench.crash_runner(0)
    bench.roster()
    bench.spawn(0)
    bench.roster()
    bench.deliver()
    runner = bench.runners[0]
    assert runner is not None and runner.steered == {RUNS[0]}
    assert bench.take(runner, RUNS[0]) == ["text 1", "text 2"]
    prompt(bench, 3, "steering")
    bench.kill()
    assert bench.take(runner, RUNS[0]) == ["text 1", "text 2", "text 3"]
    assert said(bench) == ["text 0", "text 1", "text 2", "text 3"]


# --- peek, recall, clear ---


def test_recall_returns_the_prompts_that_wait_and_cancels_them(bench: Bench) -> None:
    """If prompts are recalled, then they come back with their texts, steering first, and never run."""
    runner = started(bench)
    for n, queue in enumerate(["follow_up", "follow_up", "steering", "follow_up"]):
        prompt(bench, n, queue)
    bench.call("run.submit", RUNS[4], "s", "a program's own", None)
    rows = bench.call("session.recall", "s")
    assert [row[:3] for row in rows] == [
        [RUNS[2], "steering", "text 2"], [RUNS[1], "follow_up", "text 1"], [RUNS[3], "follow_up", "text 3"]]
    assert reasons(bench) == ["recall"] * 3 and waiting(bench) == [4]
    assert bench.call("session.recall", "s") == [] and bench.call("session.clear", "s") == 0
    finish(bench, runner, 0)
    assert executing(bench) == [4] and said(bench) == ["text 0", "a program's own"]


def test_clear_counts_what_it_cancelled(bench: Bench) -> None:
    """If prompts are cleared, then their number comes back, and the run that executes goes on."""
    started(bench)
    for n, queue in enumerate(["follow_up", "follow_up", "steering"]):
        prompt(bench, n, queue)
    assert bench.call("session.clear", "s") == 2
    assert executing(bench) == [0] and waiting(bench) == []
    assert len(bench.ops.prompts.rows("s")) == 0


def test_one_waiting_prompt_can_be_cancelled_by_its_id(bench: Bench) -> None:
    """If a steering prompt is cancelled before it was taken, then nobody is told it."""
    runner = started(bench)
    prompt(bench, 0)
    prompt(bench, 1, "steering")
    bench.call("run.cancel", RUNS[1])
    assert take(bench, runner, 0, 1)[-1] == [] and waiting(bench) == []


# --- control ---


def able(bench: Bench, *names: str) -> Runner:
    runner = started(bench)
    abilities = [{"name": name, "type": "tool", "enabled": True} for name in names]
    bench.say(runner, ["catalogue", None, [{**entry, "capabilities": abilities} for entry in CATALOGUE]])
    prompt(bench, 0)
    return runner


def test_pause_and_resume_change_the_status_and_tell_the_runner_once(bench: Bench) -> None:
    """If a run is paused twice and resumed twice, then the runner hears each once, and the status says so."""
    runner = able(bench, "pause", "resume")
    for op, status in [("pause", "paused")] * 2 + [("resume", "running")] * 2:
        assert bench.call(f"run.{op}", RUNS[0])["status"] == status
        bench.deliver()
    assert runner.told == ["pause", "resume"]
    finish(bench, runner, 0)
    assert bench.status(RUNS[0]) == "completed"
    assert bench.code("run.resume", RUNS[0]) == bench.code("run.pause", RUNS[0]) == "invalid_operation"


def test_what_the_agent_cannot_do_is_refused(bench: Bench) -> None:
    """If the agent has no capability of that name, then capability_not_supported, and nothing changes."""
    able(bench, "pause")
    bench.call("run.pause", RUNS[0])
    assert bench.code("run.resume", RUNS[0]) == "capability_not_supported"
    assert bench.status(RUNS[0]) == "paused"


def test_a_pause_is_told_again_after_a_restart(bench: Bench) -> None:
    """If the partition dies after the pause was stored, then its next incarnation tells the runner."""
    runner = able(bench, "pause", "resume")
    bench.post(["run.pause", [RUNS[0]]])
    bench.sent[0].clear()
    bench.kill()
    bench.deliver()
    assert runner.told == ["pause"] and bench.status(RUNS[0]) == "paused"
    finish(bench, runner, 0)
    assert bench.status(RUNS[0]) == "completed"


def test_a_paused_run_whose_runner_dies_is_settled(bench: Bench) -> None:
    """If the runner of a paused run dies, then its outcome is unknown, as of any other."""
    able(bench, "pause")
    bench.call("run.pause", RUNS[0])
    bench.kill_node()
    assert bench.state.run(RUNS[0]).error["code"] == "outcome_unknown"


def test_interrupting_twice_tells_the_agent_once(bench: Bench) -> None:
    """If a run is interrupted twice, then the agent is cancelled once, and both callers get the id."""
    runner = able(bench)
    requests = [bench.post(["run.interrupt", [RUNS[0]]]) for _ in range(2)]
    bench.deliver()
    assert runner.reasons == {RUNS[0]: "interrupt"}
    finish(bench, runner, 0, "cancelled")
    assert [bench.replies[request] for request in requests] == [[[0, RUNS[0]]]] * 2
    assert bench.call("run.interrupt", RUNS[0]) == RUNS[0]
    assert bench.code("run.resume", RUNS[0]) == "invalid_operation"


def test_interrupting_what_does_not_execute_is_not_found(bench: Bench) -> None:
    """If a run waits or has completed, then there is nothing to interrupt."""
    runner = able(bench)
    prompt(bench, 1)
    assert bench.code("run.interrupt", RUNS[1]) == "run_not_found"
    finish(bench, runner, 0)
    assert bench.code("run.interrupt", RUNS[0]) == bench.code("run.interrupt", RUNS[8]) == "run_not_found"


def test_interrupting_a_session_stops_what_executes_and_starts_what_waits(bench: Bench) -> None:
    """If a session is interrupted, then its running runs end so and the queue goes on."""
    runner = started(bench, slots=2)
    for n in range(3):
        prompt(bench, n)
    assert bench.call("session.interrupt", "s") == RUNS[:2]
    bench.deliver()
    finish(bench, runner, 1, "cancelled")
    assert executing(bench) == [0, 2]
    finish(bench, runner, 0, "cancelled")
    finish(bench, runner, 2)
    assert bench.call("session.interrupt", "s") == []


def test_control_by_version_is_refused_when_the_run_changed(bench: Bench) -> None:
    """If the run is not as the caller saw it, then version_conflict."""
    able(bench, "pause", "resume")
    version = bench.state.run(RUNS[0]).version
    bench.call("run.pause", RUNS[0], version)
    for op in ("pause", "resume", "interrupt"):
        assert bench.code(f"run.{op}", RUNS[0], version) == "version_conflict"
