"""What each operation on sessions and runs answers, and what it leaves behind when something goes wrong."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from bench import AGENTS, CATALOGUE, Bench, new_run_id, started
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.core import wire
from mesh.errors import StoreError

RUN = new_run_id("s", 1)
RUN2 = new_run_id("s", 2)
RUN3 = new_run_id("s", 3)


def prompt(bench: Bench, run_id: str = RUN) -> Any:
    answer = bench.call("session.prompt", "s", run_id, "hi", "follow_up")
    bench.deliver()
    return answer


def code_of(reply: Any) -> str:
    if isinstance(reply, list):
        status, value = reply[0]
        return value["code"] if status else "ok"
    return str(reply.code)


# --- sessions ---


def test_create_then_activate_goes_live(bench: Bench) -> None:
    """If a session is created and activated, then it is pending first, active and live then."""
    assert bench.call("session.create", "s", "echo", {"tags": ["a"]})["status"] == "pending"
    assert bench.lifecycle("s") == []
    active = bench.call("session.activate", "s")
    assert active["status"] == "active" and active["handle"]["incarnation"] == 1
    assert bench.lifecycle("s") == ["started"]
    assert bench.events("s") == ["session_created", "session_started"]


def test_a_second_session_of_the_same_id_is_refused(bench: Bench) -> None:
    """If an id was ever used, then it is not used again; start_or_get gives the one that is there."""
    bench.call("session.create", "s", "echo", None)
    assert bench.code("session.create", "s", "echo", None) == "already_exists"
    assert bench.call("session.start_or_get", "s", "echo", None)["status"] == "active"
    assert bench.call("session.start_or_get", "s", "echo", None)["handle"]["incarnation"] == 1


def test_an_unknown_agent_is_refused_with_the_known_ones(bench: Bench) -> None:
    """If no agent has that name, then the refusal lists those that are there."""
    reply = bench.replies[bench.post(["session.create", ["s", "nope", None]])]
    assert reply[0][1]["code"] == "unknown_agent" and reply[0][1]["details"]["known"] == sorted(AGENTS)


def test_an_agent_that_was_removed_by_a_reload_is_unknown(bench: Bench) -> None:
    """If a runner's catalogue has an agent no more, then nobody starts it."""
    runner = bench.runners[0]
    assert runner is not None
    bench.say(runner, ["catalogue", None, CATALOGUE[:1]])
    assert bench.code("session.create", "s", "again", None) == "unknown_agent"


def test_an_agent_that_cannot_be_loaded_says_why(bench: Bench) -> None:
    """If an agent's import failed, then start says so, and nothing is created."""
    runner = bench.runners[0]
    assert runner is not None
    bench.say(runner, ["catalogue", None, [{**CATALOGUE[0], "problem": "SyntaxError in line 3"}]])
    reply = bench.replies[bench.post(["session.start", ["s", "echo", None]])]
    assert reply[0][1]["code"] == "provider_unavailable" and "line 3" in reply[0][1]["message"]
    assert not bench.state.has_session("s")


def test_stop_pauses_and_ends_the_actor_and_resume_brings_it_back(bench: Bench) -> None:
    """If a session is stopped and resumed, then it was paused, and is live in a new incarnation."""
    started(bench)
    bench.call("session.stop", "s", None)
    assert bench.state.session("s").status == "paused" and not bench.state.live
    assert bench.code("session.prompt", "s", RUN, "x", "follow_up") == "session_paused"
    assert bench.code("session.stop", "s", None) == "not_found"
    assert bench.call("session.resume", "s")["handle"]["incarnation"] == 2
    assert bench.lifecycle("s") == ["started", "stopped stopped", "started"]


def test_stop_by_a_handle_that_is_not_the_live_one_is_not_found(bench: Bench) -> None:
    """If the handle names another incarnation or is nonsense, then nothing is stopped."""
    started(bench)
    handle = list(bench.call("session.start_or_get", "s", "echo", None)["handle"].values())
    for wrong in ([*handle[:3], 9], "x", 5, [], {"a": 1}):
        assert bench.code("session.stop", "s", wrong) == "not_found"
    assert bench.code("session.stop", "s", handle) == "ok"


def test_complete_with_a_run_is_refused(bench: Bench) -> None:
    """If a run executes or waits, then complete is invalid_transition; afterwards it is done."""
    runner = started(bench)
    prompt(bench)
    assert bench.code("session.complete", "s") == "invalid_transition"
    bench.progress(runner, RUN, "completed")
    assert bench.call("session.complete", "s")["status"] == "completed"
    assert bench.lifecycle("s") == ["started", "stopped normal"]
    assert bench.code("session.prompt", "s", RUN2, "x", "follow_up") == "session_closed"


@pytest.mark.parametrize("error", [5, None, [], {"message": "x"}, {"code": 5}, {"code": "a", 1: 2}])
def test_fail_with_what_is_no_error_is_refused(bench: Bench, error: Any) -> None:
    """If the error cannot be stored as one, then the session goes on."""
    started(bench)
    assert bench.code("session.fail", "s", error) == "validation_error"
    assert bench.state.session("s").status == "active"


def test_fail_keeps_the_error(bench: Bench) -> None:
    """If a session is failed, then its record holds the error, also after a restart."""
    started(bench)
    bench.call("session.fail", "s", {"code": "x", "message": "m", "details": {"a": 1}})
    bench.kill()
    assert bench.state.session("s").error == {"code": "x", "message": "m", "details": {"a": 1}}


def test_fields_that_are_too_large_are_refused(bench: Bench) -> None:
    """If a session's fields are over the limit, then limit_exceeded: every run would carry them."""
    assert bench.code("session.create", "s", "echo", {"context": {"x": "y" * (1 << 20)}}) == "limit_exceeded"


def test_a_session_of_another_partition_is_refused(bench: Bench) -> None:
    """If a client computed the slot wrongly, then nothing is stored where nobody would find it."""
    bench.partition.slot_map = bytes([1]) * 4096
    assert bench.code("session.create", "s", "echo", None) == "invalid_argument"


def test_at_most_max_live_sessions_are_live(tmp_path: Path) -> None:
    """If too many are live, then the one idle longest ends; if all are busy, then the next is refused."""
    bench = Bench(tmp_path, max_live=2)
    for sid in ("a", "b", "c"):
        bench.call("session.start", sid, "echo", None)
    assert bench.lifecycle("a") == ["started", "stopped idle"] and list(bench.state.live) == ["b", "c"]
    for n, sid in enumerate(("b", "c")):
        bench.call("session.prompt", sid, new_run_id(sid, n), "x", "follow_up")
    assert bench.code("session.start", "d", "echo", None) == "max_sessions_exceeded"
    assert not bench.state.has_session("d")
    bench.store.connection.close()


def test_an_idle_session_behind_any_number_of_busy_ones_makes_room(tmp_path: Path) -> None:
    """If max_live are live and all that were used before the idle one are busy, then the idle one ends."""
    busy = 1_001
    bench = Bench(tmp_path, max_live=busy + 1)
    names = [f"s{n}" for n in range(busy)]
    bench.post(*(["session.start", [sid, "echo", None]] for sid in [*names, "idle"]))
    bench.post(*(
        ["session.prompt", [sid, new_run_id(sid, n), "x", "follow_up"]] for n, sid in enumerate(names)
    ))
    assert len(bench.state.work) == busy and list(bench.state.idle) == ["idle"]
    bench.call("session.start", "new", "echo", None)
    assert bench.lifecycle("idle") == ["started", "stopped idle"] and list(bench.state.idle) == ["new"]
    bench.store.connection.close()


# --- runs ---


def test_a_prompt_runs_and_the_next_ones_wait_in_order(bench: Bench) -> None:
    """If prompts come while one executes, then they are queued and executed in order."""
    runner = started(bench)
    assert prompt(bench) == [RUN, False, None]
    assert [prompt(bench, r) for r in (RUN2, RUN3)] == [[RUN2, True, "follow_up"], [RUN3, True, "follow_up"]]
    for run_id in (RUN, RUN2, RUN3):
        assert list(runner.runs) == [run_id]
        bench.progress(runner, run_id, "completed")
        bench.deliver()
    assert [r for r, _ in runner.started] == [RUN, RUN2, RUN3]


def test_a_full_queue_is_refused_also_while_no_runner_is_there(bench: Bench) -> None:
    """If queue_max runs wait, then the next is max_runs_exceeded, whether or not one executes."""
    started(bench)
    bench.crash_runner(0)
    bench.roster()
    codes = [bench.code("session.prompt", "s", new_run_id("s", n), "x", "follow_up") for n in range(8)]
    assert codes == ["ok"] * 5 + ["max_runs_exceeded"] * 3


def test_run_once_leaves_the_events_of_a_whole_session(bench: Bench) -> None:
    """If run.once ends, then the log holds the session's life in order and the session is completed."""
    sid = "o"
    run_id = new_run_id(sid, 1)
    assert bench.call("run.once", run_id, sid, "echo", "hi", None, None) == run_id
    assert bench.state.run(run_id).status == "running"
    bench.deliver()
    runner = bench.runners[0]
    assert runner is not None
    bench.progress(runner, run_id, "completed")
    assert bench.events(sid) == ["session_created", "session_started", "message_sent", "run_completed",
                                 "session_completed"]
    assert bench.lifecycle(sid) == ["started", "stopped normal"]


@pytest.mark.parametrize(("status", "expected"), [("completed", "completed"), ("failed", "failed"),
                                                  ("timeout", "failed"), ("cancelled", "cancelled")])
def test_the_end_of_run_once_ends_its_session(bench: Bench, status: str, expected: str) -> None:
    """If the run of run.once ends, then its session ends in the fitting status."""
    run_id = new_run_id("o", 1)
    bench.call("run.once", run_id, "o", "echo", "hi", None, None)
    bench.deliver()
    runner = bench.runners[0]
    assert runner is not None
    bench.progress(runner, run_id, status)
    assert bench.state.session("o").status == expected


@pytest.mark.parametrize("verb", ["cancel", "fail"])
@pytest.mark.parametrize("running", [True, False])
def test_a_verb_ends_the_session_of_run_once_in_its_own_status(
    bench: Bench, verb: str, running: bool
) -> None:
    """If somebody cancels or fails the session of a run.once, then that verb decides, not the cancelled
    run."""
    run_id = new_run_id("o", 1)
    bench.call("run.once", run_id, "o", "echo", "hi", None, None)
    if running:
        bench.deliver()
    else:
        bench.crash_runner(0)
        bench.call("session.start", "s", "again", None)
        bench.roster()
        bench.call("run.submit", RUN, "s", "x", None)
        run_id = RUN
    sid = "o" if running else "s"
    request = bench.post([f"session.{verb}", [sid, "why"] if verb == "fail" else [sid]])
    if running:
        runner = bench.runners[0]
        assert runner is not None
        bench.deliver()
        bench.progress(runner, run_id, "cancelled")
    assert code_of(bench.replies[request]) == "ok"
    assert bench.state.session(sid).status == {"cancel": "cancelled", "fail": "failed"}[verb]


@pytest.mark.parametrize(
    "run_id", [None, 5, "", "run_x", "run_" + "0" * 32, RUN + "a", RUN.upper(), b"x", []]
)
def test_a_run_id_must_carry_the_slot_of_its_session(bench: Bench, run_id: Any) -> None:
    """If a run id would not lead to its session's partition, then it is invalid_id."""
    started(bench)
    assert bench.code("run.create", run_id, "s", "x", None) == "invalid_id"


def test_a_run_that_requires_what_its_agent_has_not_is_refused(bench: Bench) -> None:
    """If a required type of capability is missing, then the run is refused, at create and at execute."""
    started(bench)
    options = {"required_capabilities": ["tool"]}
    assert bench.code("run.submit", RUN, "s", "x", options) == "missing_required_capability"
    bench.call("run.create", RUN, "s", "x", {"required_capabilities": ["sampling"]})
    assert bench.code("run.execute", RUN, options) == "missing_required_capability"
    assert bench.code("run.execute", RUN, None) == "ok"


def test_a_run_cannot_be_executed_twice(bench: Bench) -> None:
    """If a run was executed, then another execute is invalid_transition and changes nothing."""
    started(bench)
    bench.call("run.create", RUN, "s", "x", None)
    bench.call("run.execute", RUN, None)
    assert bench.code("run.execute", RUN, {"deadline_s": 5}) == "invalid_transition"
    assert bench.state.run(RUN).options == {}


# --- cancel, stop, abort: answers that come later ---


@pytest.mark.parametrize("verb", ["run.cancel", "session.stop", "session.abort", "session.cancel"])
def test_the_answer_comes_when_the_run_is_settled(bench: Bench, verb: str) -> None:
    """If a run executes, then the verb is answered after its terminal event, and once."""
    runner = started(bench)
    prompt(bench)
    request = bench.post([verb, [RUN if verb == "run.cancel" else "s"]])
    assert request not in bench.replies
    bench.deliver()
    assert runner.cancelled == {RUN}
    bench.progress(runner, RUN, "cancelled")
    assert code_of(bench.replies[request]) == "ok" and not bench.partition.open


@pytest.mark.parametrize("verb", ["run.cancel", "session.stop", "session.abort", "session.cancel"])
@pytest.mark.parametrize("obeys", ["before", "after", "never"])
def test_the_same_number_after_a_restart_is_answered(bench: Bench, verb: str, obeys: str) -> None:
    """If the partition dies while somebody waits, then the resent payload is answered and the run ends
    once."""
    runner = started(bench)
    prompt(bench)
    calls = [verb, [RUN if verb == "run.cancel" else "s"]]
    first = bench.post(calls)
    number = bench.number
    again = bench.post(calls, number=number)  # resent before the restart: one of the two is answered
    bench.deliver()
    assert first not in bench.replies and again not in bench.replies
    bench.kill()
    if obeys == "before":
        bench.progress(runner, RUN, "cancelled")
    third = bench.post(calls, number=number)
    bench.deliver()
    if obeys == "after":
        bench.progress(runner, RUN, "cancelled")
    if obeys == "never":
        bench.tick(5.0)
    assert code_of(bench.replies[third]) == "ok"
    assert bench.status(RUN) == "cancelled" and bench.events("s").count("run_cancelled") == 1


def test_a_cancelled_run_is_settled_after_a_restart_though_nobody_asks_again(bench: Bench) -> None:
    """If the partition and the client die after a cancel, then the run is cancelled all the same."""
    runner = started(bench)
    prompt(bench)
    bench.post(["run.cancel", [RUN]])
    bench.sent[0].clear()  # the command died with the partition
    bench.kill()
    bench.deliver()
    assert runner.cancelled == {RUN}
    bench.tick(5.0)
    assert bench.status(RUN) == "cancelled"


def test_a_run_that_does_not_obey_is_settled_here_and_fenced(bench: Bench) -> None:
    """If the agent ignores a cancel for too long, then the run is settled and its late word is refused."""
    runner = started(bench)
    prompt(bench)
    request = bench.post(["run.cancel", [RUN]])
    bench.deliver()
    bench.tick(5.0)
    assert code_of(bench.replies[request]) == "ok"
    late = runner.batch(RUN, "completed")
    bench.progress(runner, RUN)
    assert not runner.runs  # fenced: it does not even go on talking
    bench.say(runner, late)
    assert bench.status(RUN) == "cancelled" and bench.events("s")[-1] == "run_cancelled"


def test_stop_ends_though_prompts_keep_coming(bench: Bench) -> None:
    """If prompts are queued while a stop waits, then they are cancelled with it: stop takes no longer."""
    runner = started(bench)
    prompt(bench)
    request = bench.post(["session.stop", ["s", None]])
    prompt(bench, RUN2)
    bench.progress(runner, RUN, "cancelled")
    assert code_of(bench.replies[request]) == "ok"
    assert bench.status(RUN2) == "cancelled" and bench.state.session("s").status == "paused"


def test_abort_cancels_what_was_there_and_lets_later_prompts_run(bench: Bench) -> None:
    """If a prompt comes after an abort, then it is executed."""
    runner = started(bench)
    prompt(bench)
    prompt(bench, RUN2)
    request = bench.post(["session.abort", ["s"]])
    prompt(bench, RUN3)
    bench.progress(runner, RUN, "cancelled")
    bench.deliver()
    assert bench.replies[request] == [[0, 2]]
    assert [bench.status(r) for r in (RUN, RUN2, RUN3)] == ["cancelled", "cancelled", "running"]


@pytest.mark.parametrize("verb", ["session.stop", "session.cancel", "session.fail"])
def test_a_verb_whose_transaction_failed_is_not_done_later(bench: Bench, verb: str) -> None:
    """If the store refused a stop, then the run's normal end does not stop the session after all."""
    runner = started(bench)
    prompt(bench)
    bench.store.fail_next = True
    request = bench.post([verb, ["s", "why"] if verb == "session.fail" else ["s"]])
    assert isinstance(bench.replies[request], StoreError)
    bench.progress(runner, RUN, "completed")
    assert bench.status(RUN) == "completed" and bench.state.session("s").status == "active"
    assert not bench.ops.settling.closers and not bench.ops.settling.deadlines


def test_a_settlement_whose_transaction_failed_is_answered_and_comes_again(bench: Bench) -> None:
    """If the commit that settles a cancelled run fails, then who waits is told, and the runner's repetition
    settles the run."""
    runner = started(bench)
    prompt(bench)
    request = bench.post(["run.cancel", [RUN]])
    bench.deliver()
    bench.store.fail_next = True
    bench.say(runner, runner.batch(RUN, "cancelled"))
    assert code_of(bench.replies[request]) == "store_unavailable" and bench.status(RUN) == "running"
    bench.progress(runner, RUN, "cancelled")
    assert bench.status(RUN) == "cancelled" and not bench.partition.open


def test_a_failed_transaction_after_the_time_limit_of_a_cancel_is_tried_again(bench: Bench) -> None:
    """If the commit that settles a disobedient run fails, then the next tick settles it."""
    started(bench)
    prompt(bench)
    bench.post(["run.cancel", [RUN]])
    bench.deliver()
    bench.store.fail_next = True
    bench.tick(5.0)
    assert bench.status(RUN) == "running"
    bench.tick(1.0)
    assert bench.status(RUN) == "cancelled"


# --- runners ---


def test_a_call_that_needs_a_runner_waits_for_one(bench: Bench) -> None:
    """If no runner is ready, then run.once is parked, its run does not exist yet, and it starts when one
    comes."""
    bench.crash_runner(0)
    bench.roster()
    run_id = new_run_id("o", 1)
    request = bench.post(["run.once", [run_id, "o", "echo", "hi"]])
    assert request not in bench.replies and not bench.state.has_run(run_id)
    bench.tick(1.0)
    bench.spawn(0)
    bench.roster()
    bench.catalogue()
    assert code_of(bench.replies[request]) == "ok" and bench.status(run_id) == "running"


def test_calls_behind_a_parked_one_wait_for_it(bench: Bench) -> None:
    """If a call of a list is parked, then the calls on the same session behind it stay behind it."""
    bench.crash_runner(0)
    bench.roster()
    request = bench.post(
        ["session.start", ["s", "echo", None]],
        ["run.create", [RUN, "s", "x"]],
        ["session.create", ["t", "echo", None]],
        ["run.execute", [RUN]],
        ["session.abort", ["s"]],
    )
    assert bench.state.has_session("t") and not bench.state.has_session("s")
    bench.spawn(0)
    bench.roster()
    bench.catalogue()
    bench.deliver()
    runner = bench.runners[0]
    assert runner is not None and runner.cancelled == {RUN}
    bench.progress(runner, RUN, "cancelled")
    assert [status for status, _ in bench.replies[request]] == [0] * 5


@pytest.mark.parametrize(("limit_s", "after_s"), [(3.0, 3.0), (1e6, 30.0)])
def test_a_parked_call_is_given_up_in_time(bench: Bench, limit_s: float, after_s: float) -> None:
    """If no runner comes, then a parked call is answered at its limit, after 30 s at the latest, retried or
    not."""
    bench.crash_runner(0)
    bench.roster()
    request = bench.post(["session.start", ["s", "echo", None]], limit_s=limit_s)
    for _ in range(int(after_s) - 1):
        bench.tick(1.0)
        bench.roster()
    assert request not in bench.replies
    bench.tick(2.0)
    assert code_of(bench.replies[request]) == "session_unavailable" and not bench.partition.parked


def test_a_parked_call_survives_a_failed_transaction_of_others(bench: Bench) -> None:
    """If another batch fails while a call is parked, then the call still starts."""
    bench.call("session.create", "t", "echo", None)
    bench.crash_runner(0)
    bench.roster()
    request = bench.post(["session.start", ["s", "echo", None]])
    bench.store.fail_next = True
    assert isinstance(bench.replies[bench.post(["session.create", ["u", "echo", None]])], StoreError)
    bench.spawn(0)
    bench.roster()
    bench.catalogue()
    assert code_of(bench.replies[request]) == "ok"


def test_a_parked_call_whose_commit_fails_keeps_its_neighbours_answer(bench: Bench) -> None:
    """If one call of a payload was committed and the parked one fails to commit, each has its own answer,
    and a resend executes the second only."""
    bench.crash_runner(0)
    bench.roster()
    calls = [["session.create", ["t", "echo", None]], ["session.start", ["s", "echo", None]]]
    request = bench.post(*calls)
    number = bench.number
    bench.spawn(0)
    bench.store.fail_next = True
    bench.roster()
    first, second = bench.replies[request]
    assert first[0] == 0 and second[1]["code"] == "store_unavailable"
    again = bench.replies[bench.post(*calls, number=number)]
    assert again[0] == first and again[1][0] == 0


def test_a_restarted_router_kills_no_run(bench: Bench) -> None:
    """If a new router knows no runner yet, then its roster settles nothing and starts nothing anew."""
    runner = started(bench)
    prompt(bench)
    bench._actor(wire.ROUTER_ID, ["roster", [[0, 0, None, "starting", False]]])
    assert bench.status(RUN) == "running" and bench.lifecycle("s") == ["started"]
    bench.roster()
    bench.progress(runner, RUN, "completed")
    assert bench.status(RUN) == "completed"


def test_a_runners_death_settles_its_run_and_restarts_its_sessions(bench: Bench) -> None:
    """If a runner dies, then its run is outcome_unknown and the session is announced anew when one is
    there."""
    started(bench)
    prompt(bench)
    prompt(bench, RUN2)
    bench.crash_runner(0)
    bench.roster()
    run = bench.state.run(RUN)
    assert (run.status, run.error and run.error["code"]) == ("failed", "outcome_unknown")
    assert bench.lifecycle("s") == ["started"] and bench.status(RUN2) == "queued"
    bench.spawn(0)
    bench.roster()
    bench.catalogue()
    bench.deliver()
    assert bench.lifecycle("s") == ["started", "restarted"] and bench.status(RUN2) == "running"


def test_an_idempotent_agents_run_is_executed_again(bench: Bench) -> None:
    """If the agent is declared idempotent, then its run is queued again and keeps one terminal event."""
    bench.call("session.start", "s", "again", None)
    prompt(bench)
    bench.crash_runner(0)
    bench.roster()
    assert bench.status(RUN) == "queued"
    bench.spawn(0)
    bench.roster()
    bench.catalogue()
    bench.deliver()
    runner = bench.runners[0]
    assert runner is not None and runner.started == [(RUN, 2)]
    bench.progress(runner, RUN, "completed")
    assert bench.events("s").count("run_completed") == 1


def test_an_idempotent_agents_run_is_executed_again_after_its_node_died(bench: Bench) -> None:
    """If the whole node died, then the run of an idempotent agent is executed again: the config says so
    before any runner does."""
    bench.call("session.start", "s", "again", None)
    prompt(bench)
    bench.kill_node()
    bench.deliver()
    runner = bench.runners[0]
    assert runner is not None and runner.started == [(RUN, 2)]
    bench.progress(runner, RUN, "completed")
    assert bench.events("s").count("run_completed") == 1 and "run_failed" not in bench.events("s")


def test_sessions_of_a_runner_that_is_down_move_to_another(tmp_path: Path) -> None:
    """If a runner is down for good, also after failed restarts, then its sessions stop and what waits goes on
    elsewhere."""
    bench = Bench(tmp_path, runners=2)
    bench.call("session.start", "s", "echo", None)
    place = bench.state.session("s").runner
    assert place is not None
    prompt(bench)
    prompt(bench, RUN2)
    bench.crash_runner(place)
    bench.roster()
    incarnation, _ = bench.states[place]
    bench.states[place] = (incarnation + 7, "down")  # its successors died before they were ready
    bench.roster()
    assert bench.lifecycle("s") == ["started", "stopped crash", "started"]
    assert bench.state.session("s").runner == 1 - place and bench.status(RUN2) == "running"
    bench.store.connection.close()


def test_a_poison_session_ends_at_its_third_crash(bench: Bench) -> None:
    """If a session executes three times when its runner dies, then it fails as restart_exhausted."""
    started(bench)
    for n in range(3):
        prompt(bench, new_run_id("s", n))
        bench.crash_runner(0)
        bench.roster()
        bench.spawn(0)
        bench.roster()
        bench.catalogue()
    assert bench.state.session("s").status == "failed"
    assert bench.lifecycle("s")[-1] == "stopped restart_exhausted"
    assert bench.code("session.prompt", "s", RUN, "x", "follow_up") == "session_closed"


def test_a_command_that_was_lost_with_the_partition_is_sent_again(bench: Bench) -> None:
    """If the partition dies after the claim, before the runner heard, then the run starts once all the
    same."""
    runner = started(bench)
    bench.call("session.prompt", "s", RUN, "x", "follow_up")
    bench.sent[0].clear()
    bench.kill()
    for _ in range(3):
        bench.deliver()
    assert runner.started == [(RUN, 1)]


def test_a_lost_answer_about_lost_runs_is_asked_for_again(bench: Bench) -> None:
    """If the runner's word that it has not a run is lost too, then the next comparison finds it."""
    runner = started(bench)
    bench.call("session.prompt", "s", RUN, "x", "follow_up")
    bench.sent[0].clear()
    bench.kill()
    while bench.sent[0]:
        runner.take(bench.sent[0].popleft())
    runner.said = [m for m in runner.said if m[0] == "acks"]  # "lost" is lost
    bench.deliver()
    assert not runner.runs
    bench.tick(11.0)
    bench.deliver()
    bench.deliver()
    assert runner.started == [(RUN, 1)]


def test_after_the_nodes_death_each_live_session_stopped_once(bench: Bench) -> None:
    """If the node dies, then live sessions get one stopped (node_lost), stay active, and their runs are
    settled."""
    started(bench)
    prompt(bench)
    bench.kill_node()
    bench.kill()
    assert bench.lifecycle("s") == ["started", "stopped node_lost"]
    assert bench.state.session("s").status == "active" and bench.status(RUN) == "failed"
    prompt(bench, RUN2)
    assert bench.lifecycle("s")[-1] == "started"


def test_run_that_never_began_in_a_stopping_runner_waits_for_the_next_one(bench: Bench) -> None:
    """If a runner leaves without having begun a run that was sent to it, then the run waits, unchanged, and
    is executed once by the successor."""
    runner = started(bench)
    prompt(bench)
    prompt(bench, RUN2)
    bench.progress(runner, RUN, "cancelled")
    assert bench.status(RUN2) == "running"
    bench.say(runner, ["left", []])
    bench.tick()
    assert bench.status(RUN2) == "queued"
    bench.crash_runner(0, "stopped")
    bench.roster()
    bench.kill_node()
    bench.deliver()
    assert bench.runners[0].started == [(RUN2, 1)]  # type: ignore[union-attr]
    assert not bench.state.session("s").crashes


def test_run_that_a_stopping_runner_kept_is_lost_with_it(bench: Bench) -> None:
    """If a runner leaves with a run that it could not end in time, then the outcome is unknown."""
    runner = started(bench)
    prompt(bench)
    bench.say(runner, ["left", [[RUN, 1]]])
    assert bench.status(RUN) == "running"
    bench.crash_runner(0, "stopped")
    bench.roster()
    assert bench.state.run(RUN).error["code"] == "outcome_unknown"  # type: ignore[index]


def test_stopping_runner_is_given_no_run(bench: Bench) -> None:
    """If a runner is stopping, then a run that is next waits for the next one."""
    runner = started(bench)
    prompt(bench)
    prompt(bench, RUN2)
    bench.states[0] = (runner.incarnation, "stopping")
    bench.roster()
    bench.progress(runner, RUN, "cancelled")
    assert bench.status(RUN2) == "queued"


def test_reload_answers_when_every_runner_has_loaded(tmp_path: Path) -> None:
    """If agents are reloaded, then the answer comes after the last runner's word, or names who is missing."""
    bench = Bench(tmp_path, runners=2)
    request = bench.post(["agent.reload", []])
    bench.deliver()
    assert [row["name"] for row in bench.replies[request][0][1]] == sorted(AGENTS)
    late = bench.post(["agent.reload", []])
    bench.tick(31.0)
    assert code_of(bench.replies[late]) == "provider_timeout"
    bench.store.connection.close()


def test_reload_is_told_to_the_successor_of_a_runner_that_died(tmp_path: Path) -> None:
    """If a runner dies before it reloaded, then its successor is told, and no time limit is waited for."""
    bench = Bench(tmp_path, runners=2)
    request = bench.post(["agent.reload", []])
    bench.crash_runner(1)
    bench.roster()
    bench.deliver()
    assert request not in bench.replies
    bench.spawn(1)
    bench.roster()
    bench.deliver()
    assert [row["name"] for row in bench.replies[request][0][1]] == sorted(AGENTS)
    bench.store.connection.close()


def test_reload_does_not_wait_for_a_runner_that_is_down(tmp_path: Path) -> None:
    """If a runner stays down, then the answer of the others is the answer."""
    bench = Bench(tmp_path, runners=2)
    request = bench.post(["agent.reload", []])
    bench.crash_runner(1, "down")
    bench.roster()
    bench.deliver()
    assert [row["name"] for row in bench.replies[request][0][1]] == sorted(AGENTS)
    bench.store.connection.close()


@pytest.mark.parametrize("output", [{1: 2}, [1], "text", {"a": {2: 3}}, b"x", 5])
def test_a_result_of_any_shape_can_be_read_back(bench: Bench, output: Any) -> None:
    """If an agent's output is odd, then the run is stored so that the partition can read it again."""
    runner = started(bench)
    prompt(bench)
    batch = runner.batch(RUN, "completed")
    batch[5].update(output=output, cost_usd="free", token_usage=[1], provider_metadata={"provider": 5})
    bench.say(runner, batch)
    bench.kill()
    assert bench.status(RUN) == "completed"


# --- nonsense ---

ARGS = st.lists(
    st.sampled_from(
        [
            "s",
            RUN,
            "echo",
            "follow_up",
            "hi",
            None,
            {},
            [],
            5,
            -1,
            2**64 - 1,
            float("nan"),
            b"x",
            True,
            {"tags": 5},
            {"code": "x"},
            {1: 2},
            [["a"]],
            "",
            "\0\x01",
            "run_",
            0.5,
            {"deadline_s": []},
        ]
    )
    | st.recursive(st.none() | st.text(max_size=5) | st.integers(-9, 9), lambda x: st.lists(x, max_size=3)),
    max_size=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_arguments_give_an_answer_and_change_nothing_when_refused(
    tmp_path_factory: Any, data: Any
) -> None:
    """If arguments are nonsense, then each op gives an error of ours, and what it began is undone."""
    bench = Bench(tmp_path_factory.mktemp("nonsense"))
    bench.call("session.start", "s", "echo", None)
    ops = sorted(bench.partition.writes | bench.partition.route_writes)
    for _ in range(12):
        args = data.draw(ARGS)
        op = data.draw(st.sampled_from(ops))
        before = (dict(bench.state.sessions), dict(bench.state.runs), bench.state.pos, bench.state.lseq)
        reply = bench.replies.get(bench.post([op, args]))
        if isinstance(reply, list) and reply[0][0] == 1:
            after = (dict(bench.state.sessions), dict(bench.state.runs), bench.state.pos, bench.state.lseq)
            assert reply[0][1]["code"] != "internal_error" and repr(after) == repr(before)
    assert not bench.bugs, bench.bugs[0]
    bench.store.connection.close()


def test_a_bug_in_one_call_undoes_that_call_alone(bench: Bench) -> None:
    """If a handler fails in the middle, then it alone is undone and answered internal_error."""

    def broken(args: list[Any], part: Any) -> bytes:
        bench.ops.create(args, part)
        raise ZeroDivisionError

    bench.partition.writes["session.broken"] = broken
    request = bench.post(["session.create", ["a", "echo", None]], ["session.broken", ["b", "echo", None]],
                         ["session.create", ["c", "echo", None]])
    first, second, third = bench.replies[request]
    assert (first[0], second[1]["code"], third[0]) == (0, "internal_error", 0)
    assert [bench.state.has_session(s) for s in "abc"] == [True, False, True]
    assert len(bench.bugs) == 1
    bench.bugs.clear()


def test_chance(bench: Bench) -> None:
    """If thousands of calls of all kinds are made, then none meets a bug and every reply is complete."""
    chance = random.Random(1)
    ops = [op for op in bench.partition.writes if op != "partition.backup"]
    values: list[Any] = ["s", "t", RUN, RUN2, "echo", "hi", "follow_up", None, {}, 5, ["s", 0, 1, 1]]
    for _ in range(2_000):
        op = chance.choice(ops)
        bench.post([op, [chance.choice(values) for _ in range(chance.randrange(6))]], done_below=bench.number)
        if chance.random() < 0.1:
            bench.deliver()
        if chance.random() < 0.02:
            bench.kill()
    assert not bench.bugs


def test_runs_wait_in_the_order_they_were_queued_in_also_after_a_restart(bench: Bench) -> None:
    """If runs are executed in another order than they were created in, then a restart keeps it."""
    started(bench)
    first, second = new_run_id("s", 101), new_run_id("s", 102)
    bench.call("run.create", first, "s", "1")
    bench.call("run.create", second, "s", "2")
    prompt(bench)
    bench.call("run.execute", second)
    bench.tick()
    bench.call("run.execute", first)
    bench.kill()
    assert bench.state.work_of("s").queue == (second, first)
