"""What sessions and tags used, over a real store, with kills: a run counts once, no hold outlives it."""

from __future__ import annotations

from typing import Any

import pytest
from bench import Bench, Runner, new_run_id

from mesh.core import wire
from mesh.core.spent import TAGS_MAX

RUN = new_run_id("s", 0)


def started(bench: Bench, agent: str = "echo", run_id: str = RUN, session: str = "s") -> Runner:
    bench.call("session.start", session, agent, {"tags": ["acme", "acme"]})
    bench.call("run.submit", run_id, session, "hello")
    bench.deliver()
    runner = bench.runners[0]
    assert runner is not None
    bench.progress(runner, run_id)
    return runner


def hold(
    bench: Bench, runner: Runner, number: int, tokens: float, run_id: str = RUN, after: int | None = None
) -> list[Any]:
    """A run reserves; what its runner is answered."""
    heard: list[Any] = []
    answered, bench._answered = bench._answered, lambda index, incarnation, message: heard.append(message)
    amounts = {"total_tokens": tokens} if tokens else {}
    attempt, batches = runner.runs[run_id]
    bench.say(runner, ["hold", run_id, attempt, number, amounts, batches if after is None else after])
    bench._answered = answered  # type: ignore[method-assign]
    return heard[0] if heard else []


def used(bench: Bench, but: str | None = None, session: str | None = "s") -> tuple[float, float]:
    """Tokens of the session and of the tag."""
    status, found = wire.unpack(bench.ops.runners.spent.read([session, ["acme"], but], 0))
    assert status == 0
    return found.get("session", {}).get("total_tokens", 0), found["tag:acme"].get("total_tokens", 0)


def settled(bench: Bench, runner: Runner, tokens: int, run_id: str = RUN) -> None:
    message = runner.batch(run_id, "completed")
    message[5]["token_usage"] = {"total_tokens": tokens}
    bench.say(runner, message)


def test_hold_counts_until_it_is_given_back_and_survives_the_partition(bench: Bench) -> None:
    """If a run holds something, then all but itself see it, also after a kill; an older word is not heard."""
    runner = started(bench)
    assert hold(bench, runner, 1, 80) == ["held", RUN, 1, -1, None]
    assert used(bench) == (80, 80) and used(bench, but=RUN) == (0, 0)
    bench.kill()
    assert used(bench) == (80, 80)
    hold(bench, runner, 2, 0)
    hold(bench, runner, 1, 80)
    assert used(bench) == (0, 0)


@pytest.mark.parametrize("how", ["completed", "runner", "node", "cancel"])
def test_hold_ends_with_its_run_however_that_ends(bench: Bench, how: str) -> None:
    """If a run that holds something ends in any way, then nothing is held, and what it used counts once."""
    runner = started(bench)
    hold(bench, runner, 1, 80)
    if how == "completed":
        bench.progress(runner, RUN, "completed")
    elif how == "node":
        bench.kill_node()
    elif how == "runner":
        bench.crash_runner(0)
        bench.roster()
    else:
        bench.post(["run.cancel", [RUN]])
        bench.deliver()
        bench.tick(5.0)
    assert used(bench) == (0, 0)
    bench.kill()
    assert used(bench) == (0, 0)


def test_hold_whose_run_used_more_than_is_here_is_asked_again(bench: Bench) -> None:
    """If a batch before it was lost, then it is not stored: the sums would lack what the batch tells."""
    runner = started(bench)
    hold(bench, runner, 1, 80)
    assert hold(bench, runner, 2, 0, after=runner.runs[RUN][1] + 1) == [] and used(bench) == (80, 80)


def test_what_a_run_used_counts_while_it_waits_for_its_next_attempt(bench: Bench) -> None:
    """If its runner died, then what it used is in the sums of session and tag before it begins again."""
    runner = started(bench, "again")
    message = runner.batch(RUN, None)
    bench.say(runner, [*message[:5], {"token_usage": {"total_tokens": 30}}])
    assert used(bench) == (30, 30)
    bench.crash_runner(0)
    bench.roster()
    assert bench.state.run(RUN).status == "queued" and used(bench) == (30, 30)


def test_next_attempt_holds_nothing_and_its_first_word_is_heard(bench: Bench) -> None:
    """If an idempotent run is executed again, then what its former attempt held is free again."""
    runner = started(bench, "again")
    for number in (1, 2, 3):
        hold(bench, runner, number, 80)
    bench.crash_runner(0)
    bench.roster()
    bench.spawn(0)
    bench.roster()
    bench.deliver()
    assert used(bench) == (0, 0)
    again = bench.runners[0]
    assert again is not None and hold(bench, again, 1, 30) == ["held", RUN, 2, -1, None]
    assert used(bench) == (30, 30)
    assert hold(bench, runner, 4, 80)[0] == "fenced" and used(bench) == (30, 30)


def test_run_that_ends_is_in_the_sums_once_before_and_behind_a_kill(bench: Bench) -> None:
    """If runs end, with or without the sums in memory, then session and tag have what they used, once."""
    second = new_run_id("s", 1)
    settled(bench, started(bench), 10)
    assert used(bench) == (10, 10)
    bench.call("run.submit", second, "s", "hello")
    bench.deliver()
    runner = bench.runners[0]
    assert runner is not None
    bench.progress(runner, second)
    settled(bench, runner, 5, second)
    assert used(bench) == (15, 15)
    bench.kill()
    assert used(bench) == (15, 15)


def test_batch_that_is_not_stored_adds_nothing(bench: Bench) -> None:
    """If the disk refuses the end of a run, then it is in no sum until it is stored."""
    runner = started(bench)
    assert used(bench) == (0, 0)
    bench.store.fail_next = True
    settled(bench, runner, 10)
    bench.store.fail_next = False
    assert bench.state.spent == {}
    bench.kill()
    assert used(bench)[0] in (0, 10)


def test_session_under_the_id_of_one_that_was_deleted_for_good_begins_at_nothing(bench: Bench) -> None:
    """If an id is free again, then a new session of it owes nothing of what the former one used."""
    settled(bench, started(bench), 10)
    assert used(bench) == (10, 10)
    bench.call("session.stop", "s")
    bench.call("session.delete", "s", True)
    bench.call("session.start", "s", "echo", {"tags": ["acme"]})
    assert used(bench) == (0, 10)


@pytest.mark.parametrize("args", [
    [], [None, []], [None, "acme", None], [None, [1], None], [None, [""], None],
    [None, ["t"] * (TAGS_MAX + 1), None], [5, [], None], ["", [], None], [{}, [], None],
])
def test_nonsense_is_refused(bench: Bench, args: list[Any]) -> None:
    """If the arguments are of another shape, then that is a typed error."""
    status, value = wire.unpack(bench.partition.read_one("budget.used", args))
    assert status == 1 and value["code"] in ("validation_error", "invalid_id")
