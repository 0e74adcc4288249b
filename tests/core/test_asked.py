"""Questions to humans in a partition: asked, answered, timed out, closed, over a real store, with kills."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Runner, new_run_id
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.core import approval as ap
from mesh.core import events as ev
from mesh.core import run as runs
from mesh.core import wire
from mesh.core.records import TERMINAL
from mesh.core.slots import run_key

RUN = new_run_id("s", 0)
REQUEST = {
    "tool_name": "write", "tool_input": {"path": "x"}, "policy_name": "p",
    "violation_kind": "approval_required", "limit_s": 60.0, "default": "deny",
}


def started(bench: Bench, agent: str = "echo", run_id: str = RUN) -> Runner:
    """A run that has begun."""
    bench.call("session.start", "s", agent)
    bench.call("run.submit", run_id, "s", "hello")
    bench.deliver()
    runner = bench.runners[0]
    assert runner is not None
    bench.progress(runner, run_id)
    return runner


def ask(bench: Bench, runner: Runner, name: str, run_id: str = RUN, after: int = 1, **changes: Any) -> Any:
    """A run asks; what its runner is answered, or None."""
    heard: list[Any] = []
    answered, bench._answered = bench._answered, lambda index, incarnation, message: heard.append(message)
    attempt = runner.runs[run_id][0]
    request = None if "gone" in changes else {**REQUEST, **changes}
    bench.say(runner, ["ask", run_id, attempt, after, name, request])
    bench._answered = answered  # type: ignore[method-assign]
    return heard[0] if heard else None


def said(bench: Bench, *types: str) -> list[dict[str, Any]]:
    """The data of the session's events of these types, in order."""
    header = wire.map_header(ev.FRAGMENT_PAIRS)
    codes = {ev.TYPE_CODE[t] for t in types}
    rows = bench.rows("SELECT type, fragment FROM event ORDER BY pos")
    return [wire.unpack(header + fragment)["data"] for code, fragment in rows if code in codes]


def answers(bench: Bench) -> list[tuple[str, Any]]:
    found = said(bench, "tool_approval_granted", "tool_approval_denied")
    return [(data["tool_call_id"], data["by"]) for data in found]


def test_a_question_is_stored_said_and_waited_for_at_once(bench: Bench) -> None:
    """If a run asks, then its status, record and log say so together, and a repetition adds nothing."""
    runner = started(bench)
    assert ask(bench, runner, "t1") == ["asked", RUN, 1, "t1"]
    assert ask(bench, runner, "t1") == ["asked", RUN, 1, "t1"]
    bench.kill()
    assert bench.status(RUN) == "waiting_approval"
    [data] = said(bench, "tool_approval_requested")
    assert (data["tool_call_id"], data["tool_input"]) == ("t1", {"path": "x"})
    [page, after] = bench.ops.approvals.rows(None, 10, None, 1 << 20)
    assert ([row["tool_call_id"] for row in page], after) == (["t1"], None)


def test_a_question_ahead_of_its_run_s_words_waits_for_them(bench: Bench) -> None:
    """If what the run said before was lost, then the question is not taken, and is asked again."""
    runner = started(bench)
    assert ask(bench, runner, "t1", after=2) is None
    assert bench.status(RUN) == "running"
    bench.progress(runner, RUN)
    assert ask(bench, runner, "t1", after=2) is not None


def test_an_answer_is_told_and_the_run_runs_again(bench: Bench) -> None:
    """If somebody approves, then the runner is told, also by another epoch when it asks again."""
    runner = started(bench)
    ask(bench, runner, "t1")
    shown = bench.call("run.decide", RUN, "t1", True, "once", None, "ann")
    assert (shown["approved"], shown["by"], shown["tool_call_id"]) == (True, "ann", "t1")
    assert bench.status(RUN) == "running"
    decision = {"approved": True, "scope": "once", "by": "ann", "reason": None, "name": "t1"}
    commands = [command for message in bench.sent[0] for command in message[3]]
    assert ["decided", RUN, 1, "t1", decision] in commands
    bench.kill()
    assert ask(bench, runner, "t1") == ["decided", RUN, 1, "t1", decision]
    assert answers(bench) == [("t1", "ann")]


def test_the_first_answer_holds(bench: Bench) -> None:
    """If a second answer is the same it gets the first one, and if it is another it is refused."""
    runner = started(bench)
    ask(bench, runner, "t1")
    first = bench.call("run.decide", RUN, "t1", False, None, "no", "ann")
    assert bench.call("run.decide", RUN, "t1", False, None, "never", "bob") == first
    assert bench.code("run.decide", RUN, "t1", True) == "invalid_transition"
    assert bench.code("run.decide", RUN, "t2", True) == "approval_not_found"
    assert bench.code("run.decide", new_run_id("s", 9), "t2", True) == "run_not_found"


@pytest.mark.parametrize("args", [
    (), ("yes",), (1,), (True, "always"), (True, 3), (True, "once", 5), (True, "once", "x" * 3000),
    (True, "once", None, 7), (True, "once", None, "x" * 3000),
])
def test_an_answer_that_makes_no_sense_changes_nothing(bench: Bench, args: tuple[Any, ...]) -> None:
    """If an argument of an answer is wrong, then validation_error, and the question is open."""
    runner = started(bench)
    ask(bench, runner, "t1")
    assert bench.code("run.decide", RUN, "t1", *args) == "validation_error"
    assert bench.status(RUN) == "waiting_approval" and answers(bench) == []


def test_the_time_of_a_question_goes_on_while_its_partition_is_dead(bench: Bench) -> None:
    """If the partition dies, then the question has the time left that it had, and no more than its limit."""
    runner = started(bench)
    ask(bench, runner, "t1")
    ask(bench, runner, "t2", default="approve")
    bench.now += 30
    bench.kill()
    bench.tick(29.0)
    assert bench.status(RUN) == "waiting_approval"
    bench.tick(2.0)
    assert bench.status(RUN) == "running"
    assert answers(bench) == [("t1", "node"), ("t2", "node")]
    assert [d["tool_call_id"] for d in said(bench, "tool_approval_granted")] == ["t2"]


def test_a_clock_that_jumps_gives_a_question_at_most_its_limit(bench: Bench) -> None:
    """If wall time is set back a year while the partition is dead, then the question does not wait a year."""
    runner = started(bench)
    ask(bench, runner, "t1")
    bench.now -= 365 * 86_400
    bench.kill()
    bench.tick(61.0)
    assert answers(bench) == [("t1", "node")]


@pytest.mark.parametrize("how", ["completes", "cancel", "obeys", "runner", "node", "poison"])
def test_the_end_of_a_run_closes_what_is_open_before_it(bench: Bench, how: str) -> None:
    """If a run ends in any way, then what it asked is denied by the node, and its end is its last event."""
    runner = started(bench)
    ask(bench, runner, "t1")
    ask(bench, runner, "t2")
    bench.call("run.decide", RUN, "t2", True)
    if how == "completes":
        bench.progress(runner, RUN, "completed")
    elif how in ("cancel", "obeys"):
        bench.post(["run.cancel", [RUN]])
        bench.deliver()
        assert bench.code("run.decide", RUN, "t1", True) == "invalid_transition"
        if how == "obeys":
            bench.progress(runner, RUN, "cancelled")
        bench.tick(5.0)
    elif how == "node":
        bench.kill_node()
    else:
        bench.crash_runner(0, "down" if how == "poison" else "restarting")
        bench.roster()
    assert bench.state.run(RUN).status in TERMINAL
    assert sorted(answers(bench)) == [("t1", "node"), ("t2", None)]
    assert bench.events("s")[-1] in {*ev.RUN_TERMINAL_EVENT.values()}
    assert bench.code("run.decide", RUN, "t1", True) == "invalid_transition"
    assert bench.ops.approvals.rows("s", 10, None, 1 << 20) == [[], None]


def again(bench: Bench, how: str = "runner") -> Runner:
    """What an idempotent run executed is lost, and it has begun again."""
    if how == "node":
        bench.kill_node()
    else:
        bench.crash_runner(0)
        bench.roster()
        bench.spawn(0)
        bench.roster()
    bench.deliver()
    runner = bench.runners[0]
    assert runner is not None
    bench.progress(runner, RUN)
    return runner


@pytest.mark.parametrize("how", ["runner", "node"])
@pytest.mark.parametrize("early", [True, False])
def test_a_question_of_an_idempotent_run_outlives_its_runner(bench: Bench, how: str, early: bool) -> None:
    """If whoever asked dies, then the question stays in the inbox, and its answer, given before the next
    attempt asks the same or behind that, is the answer to it."""
    former = started(bench, "again")
    ask(bench, former, "t1", digest=7)
    if early:
        bench.crash_runner(0)
        bench.roster()
        assert bench.status(RUN) == "queued"
        bench.call("run.decide", RUN, "t1", True, None, None, "ann")
        bench.spawn(0)
        bench.roster()
        bench.deliver()
    else:
        again(bench, how)
    runner = bench.runners[0]
    assert runner is not None and bench.status(RUN) == "running"
    assert ask(bench, former, "t1", digest=7) in (None, ["fenced", RUN, 1])
    assert [row["tool_call_id"] for row in bench.ops.approvals.rows("s", 10, None, 1 << 20)[0]] == (
        [] if early else ["t1"])
    heard = ask(bench, runner, "t1", after=0, digest=7)
    if not early:
        assert heard == ["asked", RUN, 2, "t1"] and bench.status(RUN) == "waiting_approval"
        bench.call("run.decide", RUN, "t1", True, None, None, "ann")
        heard = ask(bench, runner, "t1", after=0, digest=7)
    assert heard[-1]["approved"] is True and heard[-1]["by"] == "ann"
    assert bench.status(RUN) == "running" and answers(bench) == [("t1", "ann")]
    assert len(said(bench, "tool_approval_requested")) == 1


@pytest.mark.parametrize("change", [{"digest": 8}, {"digest": None}, {"name": "t2"}])
def test_another_question_of_the_next_attempt_is_a_new_one(bench: Bench, change: dict[str, Any]) -> None:
    """If the next attempt asks anything else, then an answer to the former question does not pass it."""
    ask(bench, started(bench, "again"), "t1", digest=7)
    runner = again(bench)
    tag = change.pop("name", "t1")
    assert ask(bench, runner, tag, **{"digest": 7, **change}) == ["asked", RUN, 2, tag]
    bench.call("run.decide", RUN, "t1", True)
    assert bench.status(RUN) == "waiting_approval"
    name = "t2" if tag == "t2" else "t1~2"
    assert bench.call("run.decide", RUN, name, False)["tool_call_id"] == name
    heard = ask(bench, runner, tag, **{"digest": 7, **change})
    assert heard[3] == tag and (heard[-1]["approved"], heard[-1]["name"]) == (False, name)


def test_an_answer_that_was_given_is_not_given_again_to_the_next_attempt(bench: Bench) -> None:
    """If a call was approved and its run is executed again, then the next attempt's call is asked anew."""
    former = started(bench, "again")
    ask(bench, former, "t1", digest=7)
    bench.call("run.decide", RUN, "t1", True)
    assert ask(bench, again(bench), "t1", digest=7) == ["asked", RUN, 2, "t1"]
    assert len(said(bench, "tool_approval_requested")) == 2


def test_whether_a_budget_may_be_exceeded_is_not_carried_over(bench: Bench) -> None:
    """If a run that asked about its budget is executed again, then that question is closed."""
    ask(bench, started(bench, "again"), "apr_1", tool_name=None)
    again(bench)
    assert answers(bench) == [("apr_1", "node")] and bench.status(RUN) == "running"


def test_a_question_that_no_attempt_asks_again_is_closed_with_its_run(bench: Bench) -> None:
    """If the next attempt goes another way, then the former question is denied before the run's end."""
    ask(bench, started(bench, "again"), "t1", digest=7)
    bench.progress(again(bench), RUN, "completed")
    assert answers(bench) == [("t1", "node")] and bench.events("s")[-1] == "run_completed"


def test_a_paused_run_that_asks_waits_when_it_is_resumed(bench: Bench) -> None:
    """If a paused run asks, then it stays paused, and is waiting_approval after its resume."""
    runner = started(bench, "again")
    bench.call("run.pause", RUN)
    ask(bench, runner, "t1")
    assert bench.status(RUN) == "paused"
    bench.call("run.resume", RUN)
    assert bench.status(RUN) == "waiting_approval"
    bench.call("run.decide", RUN, "t1", True)
    assert bench.status(RUN) == "running"


def test_a_tool_approved_for_the_session_is_in_its_metadata_once(bench: Bench) -> None:
    """If a tool is approved for the session, then later runs are dispatched with its name, without case."""
    runner = started(bench)
    for name in ("t1", "t2"):
        ask(bench, runner, name, tool_name="Write")
        bench.call("run.decide", RUN, name, True, "session")
    assert bench.state.session("s").metadata[ap.APPROVED_TOOLS] == ["write"]
    ask(bench, runner, "t3", tool_name=None)
    assert bench.code("run.decide", RUN, "t3", True, "session") == "validation_error"


def test_a_question_taken_back_is_closed_and_one_too_many_denied(bench: Bench) -> None:
    """If a run gives up waiting, then its question is denied; and so is one more than a run may have open."""
    runner = started(bench)
    for n in range(ap.OPEN_MAX):
        assert ask(bench, runner, f"t{n}")[0] == "asked"
    assert ask(bench, runner, "more")[-1]["approved"] is False
    assert ask(bench, runner, "t0", gone=True)[0] == "decided"
    assert answers(bench) == [("more", "node"), ("t0", "agent")]
    assert ask(bench, runner, "more2")[0] == "asked"


def test_answered_questions_are_kept_up_to_a_bound(bench: Bench) -> None:
    """If a run asks for ever, then its record remembers the last answers alone."""
    runner = started(bench)
    for n in range(ap.KEPT_MAX + 5):
        ask(bench, runner, f"t{n}")
        bench.call("run.decide", RUN, f"t{n}", True)
    assert len(bench.state.run(RUN).approvals) == ap.KEPT_MAX
    assert bench.code("run.decide", RUN, "t0", True) == "approval_not_found"
    assert runs.decode(runs.encode(bench.state.run(RUN))).approvals == bench.state.run(RUN).approvals


def test_a_failed_commit_leaves_neither_question_nor_answer(bench: Bench) -> None:
    """If the disk is full, then the question is asked again, and the answer given again, later."""
    runner = started(bench)
    bench.store.fail_next = True
    assert ask(bench, runner, "t1") is None
    assert bench.status(RUN) == "running" and said(bench, "tool_approval_requested") == []
    ask(bench, runner, "t1")
    bench.store.fail_next = True
    bench.post(["run.decide", [RUN, "t1", True]])
    assert bench.status(RUN) == "waiting_approval" and answers(bench) == []
    bench.tick(61.0)
    assert answers(bench) == [("t1", "node")]


def test_pages_of_the_inbox_hold_each_question_once(bench: Bench) -> None:
    """If the inbox is read in pages, by number or by bytes, then each question is on one, in order."""
    runner = started(bench)
    for n in range(7):
        bench.now += 1
        bench._clock()
        ask(bench, runner, f"t{n}")
    for limit, size in ((2, 1 << 20), (100, 300)):
        found: list[str] = []
        after = None
        while True:
            page, after = bench.ops.approvals.rows("s", limit, after, size)
            found += [row["tool_call_id"] for row in page]
            if after is None:
                break
        assert found == [f"t{n}" for n in range(7)]


def test_a_run_is_cancelled_for_an_approval_once(bench: Bench) -> None:
    """If a run is cancelled for an approval, then the request is in its log before its end."""
    runner = started(bench)
    bench.post(["run.cancel_for_approval", [RUN, {"tool_name": "write", "tool_call_id": "t9"}]])
    bench.deliver()
    assert runner.reasons == {RUN: "approval_requested"}
    bench.tick(5.0)
    assert [d["tool_call_id"] for d in said(bench, "tool_approval_requested")] == ["t9"]
    assert said(bench, "run_cancelled") == [{"reason": "approval_requested"}]
    assert bench.code("run.cancel_for_approval", RUN, {}) == "invalid_transition"
    for wrong in (None, [], {"what": 1}):
        assert bench.code("run.cancel_for_approval", RUN, wrong) in ("validation_error", "invalid_transition")


@pytest.mark.parametrize("given", [
    {"path": "x"}, {"text": "x" * 100_000}, ["y" * 500] * 1_000, {"k" * 5_000: {"a": ["z" * 90_000]}},
    {str(n): "v" * 2_000 for n in range(500)}, [[[[["w" * 70_000]]]]] * 60, None, "q" * 200_000,
])
def test_an_input_of_any_size_can_be_shown(given: Any) -> None:
    """If an input is large, then what is shown of it fits, and one that fits is shown as it is."""
    shown = ap.shown_input(given)
    assert len(wire.pack(shown)) <= ap.INPUT_BYTES_MAX
    assert (shown == given) == (len(wire.pack(given)) <= ap.INPUT_BYTES_MAX)


class ApprovalMachine(RuleBasedStateMachine):
    """Questions, answers, time, ends and deaths in any order: one answer each, at the latest at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="mesh-approvals-"))
        self.bench = Bench(self.folder)
        self.runner: Runner | None = started(self.bench, "again")
        self.asked = 0
        self.given: dict[str, bool] = {}

    @property
    def alive(self) -> bool:
        return self.runner is not None and RUN in self.runner.runs and (
            self.bench.state.run(RUN).attempt == self.runner.runs[RUN][0])

    @precondition(lambda self: self.alive)
    @rule(limit_s=st.sampled_from([1.0, 5.0, 60.0]), default=st.sampled_from(ap.DEFAULTS))
    def ask(self, limit_s: float, default: str) -> None:
        assert self.runner is not None
        self.asked += 1
        digest = self.asked if self.asked % 3 else None
        ask(self.bench, self.runner, f"t{self.asked}", limit_s=limit_s, default=default, digest=digest)

    @precondition(lambda self: self.alive and self.asked)
    @rule(data=st.data(), back=st.booleans())
    def repeat(self, data: st.DataObject, back: bool) -> None:
        assert self.runner is not None
        name = f"t{data.draw(st.integers(1, self.asked))}"
        if name in self.bench.state.run(RUN).approvals:
            number = int(name[1:])
            ask(self.bench, self.runner, name, digest=number if number % 3 else None,
                **({"gone": True} if back else {}))

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), approved=st.booleans(), scope=st.sampled_from(ap.SCOPES))
    def decide(self, data: st.DataObject, approved: bool, scope: str) -> None:
        name = f"t{data.draw(st.integers(1, self.asked))}"
        asked = self.bench.state.run(RUN).approvals.get(name)
        cancelling = self.bench.state.run(RUN).cancelling
        code = self.bench.code("run.decide", RUN, name, approved, scope, None, "ann")
        if asked is None:
            assert code == "approval_not_found"
        elif ap.is_open(asked):
            assert code == ("invalid_transition" if approved and cancelling else "ok")
        else:
            assert code == ("ok" if asked["approved"] == approved else "invalid_transition")

    @rule(seconds=st.sampled_from([0.5, 2.0, 10.0]))
    def time(self, seconds: float) -> None:
        self.bench.tick(seconds)

    @rule()
    def partition_dies(self) -> None:
        self.bench.kill()

    @rule(what=st.sampled_from(["pause", "resume", "cancel"]))
    def control(self, what: str) -> None:
        self.bench.post([f"run.{what}", [RUN]])

    @precondition(lambda self: self.alive)
    @rule(status=st.sampled_from(["completed", "failed", None, None]))
    def progress(self, status: str | None) -> None:
        assert self.runner is not None
        self.bench.deliver()
        self.bench.progress(self.runner, RUN, status)

    @rule(whole=st.booleans())
    def runner_dies(self, whole: bool) -> None:
        if whole:
            self.bench.kill_node()
        else:
            self.bench.crash_runner(0)
            self.bench.roster()
            self.bench.spawn(0)
            self.bench.roster()
            self.bench.catalogue()
        self.bench.deliver()
        self.runner = self.bench.runners[0]

    @rule()
    def disk_is_full(self) -> None:
        self.bench.store.fail_next = True
        self.bench.tick(0.5)
        self.bench.store.fail_next = False

    @invariant()
    def is_in_step(self) -> None:
        assert not self.bench.bugs, self.bench.bugs
        run = self.bench.state.run(RUN)
        opened = [name for name, asked in run.approvals.items() if ap.is_open(asked)]
        waited = [name for name in opened if run.approvals[name]["attempt"] == run.attempt]
        assert (run.status == "waiting_approval") == bool(waited) or run.status == "paused"
        assert not opened or run.status not in TERMINAL
        stored = runs.decode(self.bench.rows("SELECT record FROM run WHERE id = ?", run_key(RUN))[0][0])
        assert (stored.status, stored.approvals) == (run.status, run.approvals)
        names = [data["tool_call_id"] for data in said(self.bench, "tool_approval_requested")]
        decided = [name for name, _ in answers(self.bench)]
        assert len(set(names)) == len(names) and len(set(decided)) == len(decided)
        assert set(names) - set(decided) == set(opened)
        page, _ = self.bench.ops.approvals.rows("s", 1000, None, 1 << 20)
        assert sorted(row["tool_call_id"] for row in page) == sorted(opened)
        ends = [t for t in self.bench.events("s") if t in ev.RUN_TERMINAL_EVENT.values()]
        assert len(ends) == (run.status in TERMINAL)
        if ends:
            runs_events = [t for t in self.bench.events("s") if not t.startswith("session_")]
            assert runs_events[-1] == ends[0]

    def teardown(self) -> None:
        self.bench.store.connection.close()
        shutil.rmtree(self.folder)


TestApprovals = ApprovalMachine.TestCase
TestApprovals.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck),
)
