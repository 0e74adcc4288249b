"""Live sessions, runs and runners over a real store: crashes anywhere, and what must always hold."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, new_run_id
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.core import events as ev
from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core import wire
from mesh.core.records import TERMINAL, RunStatus, SessionStatus
from mesh.core.slots import run_key

SESSIONS = [f"s{i}" for i in range(4)]
LEGAL = {(a.value, target.value) for allowed, target, _ in sessions.VERBS.values() for a in allowed}
TERMINAL_CODES = {ev.TYPE_CODE[name] for name in ev.RUN_TERMINAL_EVENT.values()}


class Steps:
    """The steps of a random life, and what must hold after each."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mesh-live-"))
        self.bench = Bench(self.folder, runners=2, queue_max=3, max_live=3)
        self.run_ids: list[str] = []
        self.requests: dict[int, tuple[bytes, int, list[Any]]] = {}  # request -> client, number, calls
        for sid in SESSIONS[:2]:
            self.make(sid, "echo", "session.start")

    def end(self) -> None:
        try:
            self.come_to_rest()
        finally:
            self.bench.store.connection.close()
            shutil.rmtree(self.folder)

    def post(self, *calls: list[Any]) -> None:
        client = self.bench.client
        request = self.bench.post(*calls)
        if client == self.bench.client:
            self.requests[request] = (client, self.bench.number, list(calls))

    def run_id(self, session_id: str) -> str:
        self.run_ids.append(new_run_id(session_id, len(self.run_ids)))
        return self.run_ids[-1]

    # --- verbs ---

    def make(self, sid: str, agent: str, op: str) -> None:
        self.post([op, [sid, agent, {"slots": 2} if sid == SESSIONS[1] else None]])

    def verb(self, sid: str, op: str) -> None:
        self.post([f"session.{op}", [sid]])

    def fail_session(self, sid: str) -> None:
        self.post(["session.fail", [sid, "why"]])

    def prompt(self, sid: str, times: int) -> None:
        self.post(*(
            ["session.prompt", [sid, self.run_id(sid), self.text(), "follow_up"]] for _ in range(times)
        ))

    def say_while_busy(self, sid: str, queue: str, on_busy: str) -> None:
        self.post(["session.prompt", [sid, self.run_id(sid), self.text(), queue, on_busy]])

    def text(self) -> str:
        return f"text {len(self.run_ids)};"

    def take_back(self, sid: str, op: str) -> None:
        self.post([f"session.{op}", [sid]])

    def control(self, which: int, op: str) -> None:
        if self.run_ids:
            self.post([f"run.{op}", [self.run_ids[which % len(self.run_ids)]]])

    def take(self, i: int, which: int) -> None:
        runner = self.bench.runners[i]
        if runner is not None and runner.runs:
            self.bench.take(runner, sorted(runner.runs)[which % len(runner.runs)])

    def create_and_execute(self, sid: str) -> None:
        run_id = self.run_id(sid)
        self.post(["run.create", [run_id, sid, "x"]], ["run.execute", [run_id]])

    def once(self, agent: str) -> None:
        sid = f"o{len(self.run_ids)}"
        self.post(["run.once", [self.run_id(sid), sid, agent, "x"]])

    def cancel_run(self, which: int) -> None:
        if self.run_ids:
            self.post(["run.cancel", [self.run_ids[which % len(self.run_ids)]]])

    def send_again(self, which: int) -> None:
        if not self.requests:
            return
        request = list(self.requests)[which % len(self.requests)]
        client, number, calls = self.requests[request]
        if client != self.bench.client:
            return
        before = self.bench.replies.get(request)
        again = self.bench.post(*calls, number=number)
        answer = self.bench.replies.get(again)
        if isinstance(before, list) and answer is not None and "store_unavailable" not in str(before):
            assert answer == before
        self.requests[again] = (client, number, calls)

    # --- runners ---

    def deliver(self) -> None:
        self.bench.deliver()

    def say(self, i: int, which: int, status: str | None) -> None:
        runner = self.bench.runners[i]
        if runner is not None and runner.runs:
            run_id = sorted(runner.runs)[which % len(runner.runs)]
            self.bench.progress(
                runner, run_id, "cancelled" if run_id in runner.cancelled and status else status
            )

    def runner_dies(self, i: int, told: bool, state: str) -> None:
        self.bench.crash_runner(i, state)
        if told:
            self.bench.roster()

    def runner_comes(self, i: int) -> None:
        if self.bench.runners[i] is None:
            self.bench.spawn(i)
            self.bench.roster()
            self.bench.catalogue()

    # --- faults and time ---

    def next_transaction_fails(self) -> None:
        self.bench.store.fail_next = True

    def partition_killed(self) -> None:
        self.bench.kill()

    def node_killed(self) -> None:
        self.bench.kill_node()

    def time_passes(self, seconds: float) -> None:
        self.bench.tick(seconds)

    # --- what always holds ---

    def log_has_no_holes(self) -> None:
        bench = self.bench
        assert not bench.bugs, bench.bugs
        pos = [row[0] for row in bench.rows("SELECT pos FROM event ORDER BY pos")]
        assert pos == list(range(1, len(pos) + 1)) and bench.state.pos == len(pos)
        lseq = [wire.unpack(payload)["lseq"] for _, payload in bench.store.feed_lifecycle(0, 10**6)]
        assert lseq == list(range(1, len(lseq) + 1)) and bench.state.lseq == len(lseq)
        seqs: dict[int, int] = {}
        for n, seq in bench.rows("SELECT session, seq FROM event ORDER BY pos"):
            assert seq == seqs.get(n, 0) + 1
            seqs[n] = seq

    def each_run_ends_once(self) -> None:
        bench = self.bench
        ended: dict[int, int] = {}
        for run, kind in bench.rows("SELECT run, type FROM event WHERE run > 0"):
            ended[run] = ended.get(run, 0) + (kind in TERMINAL_CODES)
        executing: dict[int, int] = {}
        for n, session, status in bench.rows("SELECT n, session, status FROM run"):
            over = status >= runs.TERMINAL_CODE
            assert ended.get(n, 0) == over, (n, status)
            if status in (runs.STATUS_CODE[RunStatus.RUNNING], runs.STATUS_CODE[RunStatus.PAUSED]):
                executing[session] = executing.get(session, 0) + 1
        names = dict(bench.rows("SELECT n, id FROM session"))
        assert all(count <= 1 + (names[n] == SESSIONS[1]) for n, count in executing.items())

    def each_text_is_said_once(self) -> None:
        """Every prompt that ended otherwise than cancelled was said, in its own run or in another, and none
        was said twice; nor did any attempt of a run hear one twice."""
        header = wire.map_header(ev.FRAGMENT_PAIRS)
        sent = self.bench.rows("SELECT fragment FROM event WHERE type = ?", ev.TYPE_CODE["message_sent"])
        said: dict[str, int] = {}
        for (fragment,) in sent:
            content = wire.unpack(header + fragment)["data"]["content"]
            for text in content.split("\n\n"):
                said[text] = said.get(text, 0) + text.startswith("text ")
        assert all(count <= 1 for count in said.values()), said
        for runner in self.bench.runners.values():
            for texts in runner.heard.values() if runner is not None else ():
                assert len(set(texts)) == len(texts) and set(texts) <= set(said)
        for prompt in (self.bench.state.run(r) for r in self.run_ids if self.bench.state.has_run(r)):
            if prompt.queue and prompt.status == RunStatus.COMPLETED and prompt.started_at is not None:
                assert all(text in said for text in prompt.input["prompt"].split("\n\n"))
            if prompt.queue and prompt.output and "steered_into" in prompt.output:
                into = self.bench.state.run(prompt.output["steered_into"])
                assert prompt.input["prompt"] in (said if into.said else into.input["prompt"])

    def lifecycle_alternates(self) -> None:
        live: dict[str, bool] = {}
        status: dict[str, str] = {}
        for topic, payload in self.bench.store.feed_lifecycle(0, 10**6):
            _, what, sid = topic.split(".", 2)
            if what == "status":
                said = wire.unpack(payload)
                assert said["previous"] == status.get(sid, "pending")
                assert (said["previous"], said["status"]) in LEGAL
                status[sid] = said["status"]
                continue
            assert live.get(sid, False) == (what != "started"), (sid, what)
            live[sid] = what != "stopped"
        for sid, is_live in self.bench.rows("SELECT id, live FROM session"):
            assert live.get(sid, False) == bool(is_live)
            assert status.get(sid, "pending") == self.bench.state.session(sid).status

    def memory_is_what_the_disk_says(self) -> None:
        state, store = self.bench.state, self.bench.store
        assert not state.changed and not state.undo and not state.commands
        for sid, session in state.sessions.items():
            assert store.session(sid) == session
        for run_id, run in state.runs.items():
            assert store.run(run_id) == run
        assert set(state.live) == {row[0] for row in self.bench.rows("SELECT id FROM session WHERE live = 1")}
        assert set(state.idle) == set(state.live) - set(state.work)
        for sid, work in state.work.items():
            for run_id in work.waiting:
                assert state.run(run_id).status == RunStatus.QUEUED and state.run(run_id).session_id == sid
            assert all(
                state.run(r).status in (RunStatus.RUNNING, RunStatus.PAUSED) for r in work.running
            )
        waiting = {row[0] for row in self.bench.rows("SELECT id FROM run WHERE status BETWEEN 1 AND 3")}
        assert waiting == {
            run_key(r) for w in state.work.values() for r in w.running + w.waiting
        }

    def bounds_hold(self) -> None:
        assert len(self.bench.state.live) <= 3
        for work in self.bench.state.work.values():  # those to be executed again, a joined one
            assert len(work.queue) <= 3 + 2 + 1 and len(work.steering) <= 3

    def come_to_rest(self) -> None:
        """When all runners are there and obey, nothing waits for ever and everybody is answered."""
        bench = self.bench
        bench.store.fail_next = False
        for i in (0, 1):
            if bench.runners[i] is None:
                bench.spawn(i)
        for _ in range(60):
            bench.roster()
            bench.catalogue()
            bench.tick(2.0)
            bench.deliver()
            for runner in list(bench.runners.values()):
                for run_id in list(runner.runs):
                    cancelled = run_id in runner.cancelled
                    bench.progress(runner, run_id, "cancelled" if cancelled else "completed")
        assert not bench.partition.open and not bench.partition.parked
        assert not bench.ops.settling.closers and not bench.ops.settling.cancels
        assert not bench.ops.settling.deadlines
        for sid, work in bench.state.work.items():
            assert bench.state.session(sid).status == SessionStatus.PAUSED and not work.running
        for run_id in self.run_ids:
            if bench.state.has_run(run_id):
                run = bench.state.run(run_id)
                assert (
                    run.status in TERMINAL
                    or run.status == RunStatus.PENDING
                    or run.session_id in bench.state.work
                )
        for check in (self.log_has_no_holes, self.each_run_ends_once, self.lifecycle_alternates,
                      self.memory_is_what_the_disk_says, self.each_text_is_said_once):
            check()


    def check(self) -> None:
        self.log_has_no_holes()
        self.each_run_ends_once()
        self.lifecycle_alternates()
        self.memory_is_what_the_disk_says()
        self.each_text_is_said_once()
        self.bounds_hold()


_QUEUE = ["follow_up", "steering", "steering"]
_ON_BUSY = ["enqueue", "enqueue", "enqueue", "reject", "interrupt", "rollback"]
_MAKE = ["session.create", "session.start", "session.start_or_get", "session.start_or_get"]
_VERB = ["activate", "pause", "resume", "resume", "complete", "cancel", "stop", "abort"]
_SAY = [None, None, "completed", "completed", "failed", "timeout"]
_STATE = ["restarting", "restarting", "down"]
#: step -> (its arguments, how often it comes up)
STEPS: dict[str, tuple[dict[str, list[Any]], int]] = {
    "make": ({"sid": SESSIONS, "agent": ["echo", "again"], "op": _MAKE}, 6),
    "verb": ({"sid": SESSIONS, "op": _VERB}, 6),
    "fail_session": ({"sid": SESSIONS}, 1),
    "prompt": ({"sid": SESSIONS, "times": [1, 1, 2, 3]}, 10),
    "say_while_busy": ({"sid": SESSIONS[:2], "queue": _QUEUE, "on_busy": _ON_BUSY}, 12),
    "take_back": ({"sid": SESSIONS, "op": ["recall", "clear", "interrupt"]}, 1),
    "control": ({"which": list(range(40)), "op": ["pause", "resume", "interrupt"]}, 4),
    "take": ({"i": [0, 1], "which": [0, 1, 2]}, 6),
    "create_and_execute": ({"sid": SESSIONS}, 3),
    "once": ({"agent": ["echo", "again"]}, 5),
    "cancel_run": ({"which": list(range(40))}, 5),
    "send_again": ({"which": list(range(40))}, 5),
    "deliver": ({}, 12),
    "say": ({"i": [0, 1], "which": [0, 1, 2], "status": _SAY}, 14),
    "runner_dies": ({"i": [0, 1], "told": [True, False], "state": _STATE}, 2),
    "runner_comes": ({"i": [0, 1]}, 6),
    "next_transaction_fails": ({}, 2),
    "partition_killed": ({}, 2),
    "node_killed": ({}, 1),
    "time_passes": ({"seconds": [0.1, 1.0, 5.0, 40.0]}, 4),
}


@pytest.mark.parametrize("seed", range(60))
def test_a_random_life_keeps_every_promise(seed: int) -> None:
    """If verbs, deaths, kills and full disks come in any order, then the log, the runs and the feed stay
    true."""
    chance = random.Random(seed)
    life = Steps()
    names = [name for name, (_, weight) in STEPS.items() for _ in range(weight)]
    for _ in range(120):
        name = chance.choice(names)
        getattr(life, name)(**{key: chance.choice(values) for key, values in STEPS[name][0].items()})
        life.check()
    life.end()


class LiveMachine(RuleBasedStateMachine):
    """The same steps, chosen and made small by hypothesis."""

    def __init__(self) -> None:
        super().__init__()
        self.life = Steps()

    @rule(step=st.sampled_from(list(STEPS)), data=st.data())
    def step(self, step: str, data: st.DataObject) -> None:
        getattr(self.life, step)(
            **{key: data.draw(st.sampled_from(values), label=key) for key, values in STEPS[step][0].items()})

    @invariant()
    def holds(self) -> None:
        self.life.check()

    def teardown(self) -> None:
        self.life.end()


TestLive = LiveMachine.TestCase
TestLive.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
