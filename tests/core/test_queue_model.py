"""The state machines of session, run and queue against a model of a page: what each call answers, and what
executes, waits and steers afterwards. Runners obey here; their deaths are in ``test_live``."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from bench import Bench, new_run_id
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

QUEUE_MAX = 2
VERBS = {
    "activate": ({"pending"}, "active"),
    "pause": ({"active"}, "paused"),
    "resume": ({"paused"}, "active"),
    "complete": ({"active", "paused"}, "completed"),
    "cancel": ({"pending", "active", "paused"}, "cancelled"),
    "fail": ({"pending", "active", "paused"}, "failed"),
}


@dataclass
class Model:
    """One session, as the README describes it."""

    slots: int
    status: str = "pending"
    version: int = 1
    running: list[int] = field(default_factory=list)
    queue: list[int] = field(default_factory=list)
    steering: list[int] = field(default_factory=list)
    runs: dict[int, str] = field(default_factory=dict)
    prompts: set[int] = field(default_factory=set)
    stopping: dict[int, str] = field(default_factory=dict)  # run -> why it was told to stop
    texts: dict[int, list[int]] = field(default_factory=dict)  # run -> whose texts are its message
    said: list[int] = field(default_factory=list)

    def step(self, status: str) -> None:
        self.status, self.version = status, self.version + 1

    def accepts(self) -> str:
        names = {"pending": "session_not_active", "paused": "session_paused"}
        return "ok" if self.status == "active" else names.get(self.status, "session_closed")

    @property
    def room(self) -> bool:
        return not self.queue and len(self.running) < self.slots

    def submit(self, n: int, first: bool = False) -> str:
        if not self.room and len(self.queue) >= (max(QUEUE_MAX, 1) if first else QUEUE_MAX):
            return "max_runs_exceeded"
        self.runs[n] = "queued"
        self.texts[n] = [n]
        self.queue.insert(0 if first else len(self.queue), n)
        self.go_on()
        return "ok"

    def go_on(self) -> None:
        while self.status == "active" and len(self.running) < self.slots:
            if self.steering and not self.running:
                self.join()
            if not self.queue:
                return
            n = self.queue.pop(0)
            self.running.append(n)
            self.runs[n] = "running"
            self.said += self.texts[n]

    def join(self) -> None:
        first, *rest = self.steering
        self.texts[first] = list(self.steering)
        self.runs |= dict.fromkeys(rest, "completed")
        self.steering = []
        self.queue.insert(0, first)

    def drop(self, found: list[int]) -> None:
        self.queue = [n for n in self.queue if n not in found]
        self.steering = [n for n in self.steering if n not in found]
        self.runs |= dict.fromkeys(found, "cancelled")

    def stop(self, reason: str) -> None:
        for n in self.running:
            self.stopping.setdefault(n, reason)

    def end(self, n: int, status: str) -> None:
        if n in self.running:
            self.running.remove(n)
            self.stopping.pop(n, None)
            self.runs[n] = status
            self.go_on()


class QueueMachine(RuleBasedStateMachine):
    """The partition's deciding core beside the model. A tool of the runner's side ends what was cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="mesh-queue-"))
        self.bench = Bench(self.folder, queue_max=QUEUE_MAX)
        self.model: Model | None = None
        self.count = 0

    @property
    def m(self) -> Model:
        assert self.model is not None
        return self.model

    def run_id(self, n: int) -> str:
        return new_run_id("s", n)

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.integers(0, max(self.count - 1, 0)), label="run")

    def deliver(self) -> None:
        """The runner hears all; what it says about that is answered, and heard too."""
        self.bench.deliver()
        self.bench.deliver()

    # --- rules ---

    @precondition(lambda self: self.model is None)
    @rule(slots=st.sampled_from([1, 1, 2]), active=st.booleans())
    def make(self, slots: int, active: bool) -> None:
        self.bench.call("session.start" if active else "session.create", "s", "again", {"slots": slots})
        self.model = Model(slots)
        if active:
            self.m.step("active")

    @precondition(lambda self: self.model is not None)
    @rule(verb=st.sampled_from(list(VERBS)), stale=st.sampled_from([0, 0, 0, 1]), named=st.booleans())
    def verb(self, verb: str, stale: int, named: bool) -> None:
        m = self.m
        version = m.version - stale if named or stale else None
        if verb in ("cancel", "fail") and m.running:
            verb, version = "pause", None  # those wait for the runs: ``end_session`` does them
        args = ["s", "why", version] if verb == "fail" else ["s", version]
        code = self.bench.code(f"session.{verb}", *args)
        allowed, target = VERBS[verb]
        if stale and version is not None:
            assert code == "version_conflict"
        elif m.status not in allowed or (verb == "complete" and (m.running or m.queue or m.steering)):
            assert code == "invalid_transition"
        else:
            assert code == "ok"
            if verb in ("cancel", "fail"):
                m.drop([*m.queue, *m.steering])
            m.step(target)
            m.go_on()

    @precondition(lambda self: self.model is not None and self.m.running)
    @rule(verb=st.sampled_from(["cancel", "fail", "stop"]))
    def end_session(self, verb: str) -> None:
        m = self.m
        if m.status not in ("active", "paused"):
            return
        request = self.bench.post([f"session.{verb}", ["s", "why"] if verb == "fail" else ["s"]])
        m.drop([*m.queue, *m.steering])
        m.stop(verb)
        self.deliver()
        m.status = "paused" if m.status == "paused" else "active"
        held, m.slots = m.slots, 0  # nothing begins while it ends
        for n in list(m.running):
            self.end_one(n, "cancelled")
        m.slots = held
        assert self.bench.replies[request][0][0] == 0
        if verb != "stop":
            m.step(VERBS[verb][1])
        elif m.status == "active":
            m.step("paused")

    @precondition(lambda self: self.model is not None)
    @rule()
    def create(self) -> None:
        n = self.count
        code = self.bench.code("run.create", self.run_id(n), "s", {"prompt": f"t{n}"}, None)
        assert code == ("session_closed" if self.m.accepts() == "session_closed" else "ok")
        if code == "ok":
            self.m.runs[n] = "pending"
            self.count += 1

    @precondition(lambda self: self.count)
    @rule(data=st.data())
    def execute(self, data: st.DataObject) -> None:
        n = self.pick(data)
        expected = self.m.accepts()
        if expected == "ok":
            expected = "invalid_transition" if self.m.runs[n] != "pending" else self.m.submit(n)
        assert self.bench.code("run.execute", self.run_id(n)) == expected

    @precondition(lambda self: self.model is not None)
    @rule()
    def interrupt(self) -> None:
        self.m.stop("interrupt")
        assert self.bench.call("session.interrupt", "s") == [self.run_id(n) for n in self.m.running]

    @precondition(lambda self: self.model is not None)
    @rule()
    def abort(self) -> None:
        m = self.m
        found = [*m.queue, *m.steering]
        m.drop(found)
        m.stop("abort")
        request, executing = self.bench.post(["session.abort", ["s"]]), list(m.running)
        for n in executing:
            assert request not in self.bench.replies
            self.end_one(n, "cancelled")
        assert self.bench.replies[request] == [[0, len(found) + len(executing)]]

    @precondition(lambda self: self.model is not None)
    @rule()
    def submit(self) -> None:
        n = self.count
        code = self.bench.code("run.submit", self.run_id(n), "s", {"prompt": f"t{n}"}, None)
        expected = self.m.accepts()
        if expected == "ok":
            expected = self.m.submit(n)
        assert code == expected
        self.count += code == "ok"

    @precondition(lambda self: self.model is not None)
    @rule(
        queue=st.sampled_from(["follow_up", "steering"]),
        on_busy=st.sampled_from(["enqueue", "enqueue", "reject", "interrupt", "rollback"]),
    )
    def prompt(self, queue: str, on_busy: str) -> None:
        m, n = self.m, self.count
        code = self.bench.code("session.prompt", "s", self.run_id(n), f"t{n}", queue, on_busy)
        expected = m.accepts()
        if expected == "ok":
            expected = self.prompt_model(n, queue, on_busy)
        assert code == expected
        if code == "ok":
            self.count += 1
            m.prompts.add(n)

    def prompt_model(self, n: int, queue: str, on_busy: str) -> str:
        m = self.m
        busy = not m.room
        if busy and on_busy == "reject":
            return "session_busy"
        if busy and on_busy in ("interrupt", "rollback"):
            if len(m.queue) + bool(m.steering) >= max(QUEUE_MAX, 1):
                return "max_runs_exceeded"
            if m.steering:
                m.join()
            m.submit(n, first=True)
            m.stop(on_busy)
            return "ok"
        if queue == "steering" and m.running:
            if len(m.steering) >= QUEUE_MAX:
                return "queue_full"
            m.runs[n] = "queued"
            m.steering.append(n)
            return "ok"
        return m.submit(n)

    @precondition(lambda self: self.model is not None)
    @rule(op=st.sampled_from(["recall", "clear"]))
    def take_back(self, op: str) -> None:
        m = self.m
        found = [n for n in (*m.steering, *m.queue) if n in m.prompts]
        answer = self.bench.call(f"session.{op}", "s")
        if op == "recall":
            assert [row[0] for row in answer] == [self.run_id(n) for n in found]
            texts = ["\n\n".join(f"t{i}" for i in m.texts.get(n, [n])) for n in found]
            assert [row[2] for row in answer] == texts
        else:
            assert answer == len(found)
        m.drop(found)
        m.go_on()

    @precondition(lambda self: self.count)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        m, n = self.m, self.pick(data)
        self.deliver()
        runner = self.bench.runners[0]
        if n not in m.running or runner is None:
            return
        before = list(runner.heard.get((self.run_id(n), 1), []))
        assert self.bench.take(runner, self.run_id(n)) == before + [f"t{i}" for i in m.steering]
        m.runs |= dict.fromkeys(m.steering, "completed")
        m.said += m.steering
        m.steering = []

    @precondition(lambda self: self.count)
    @rule(data=st.data(), op=st.sampled_from(["pause", "resume"]))
    def control(self, data: st.DataObject, op: str) -> None:
        m, n = self.m, self.pick(data)
        code = self.bench.code(f"run.{op}", self.run_id(n))
        if n in m.stopping or m.runs[n] not in ("running", "paused"):
            assert code == "invalid_operation"
        else:
            assert code == "ok"
            m.runs[n] = "paused" if op == "pause" else "running"

    @precondition(lambda self: self.count)
    @rule(data=st.data(), op=st.sampled_from(["cancel", "interrupt"]))
    def stop_run(self, data: st.DataObject, op: str) -> None:
        m, n = self.m, self.pick(data)
        request = self.bench.post([f"run.{op}", [self.run_id(n)]])
        if n in m.running:
            m.stopping.setdefault(n, op)
            assert request not in self.bench.replies
            return
        status, value = self.bench.replies[request][0]
        if op == "interrupt" and m.runs[n] != "cancelled":
            assert value["code"] == "run_not_found"
            return
        assert (status, value) == (0, self.run_id(n))
        if m.runs[n] in ("pending", "queued"):
            m.drop([n])
            m.go_on()

    @precondition(lambda self: self.count)
    @rule(data=st.data(), status=st.sampled_from(["completed", "completed", "failed", "timeout"]))
    def ends(self, data: st.DataObject, status: str) -> None:
        n = self.pick(data)
        if n in self.m.running:
            self.end_one(n, "cancelled" if n in self.m.stopping else status)

    def end_one(self, n: int, status: str) -> None:
        self.deliver()
        runner = self.bench.runners[0]
        assert runner is not None
        assert runner.reasons.get(self.run_id(n)) == self.m.stopping.get(n)
        self.bench.progress(runner, self.run_id(n), status)
        self.m.end(n, status)

    @precondition(lambda self: self.model is not None)
    @rule()
    def killed(self) -> None:
        self.deliver()  # what is lost on its way to a runner is the matter of ``test_live``
        self.bench.kill()
        self.deliver()

    # --- what must be the same ---

    @invariant()
    def agrees(self) -> None:
        assert not self.bench.bugs, self.bench.bugs
        if self.model is None:
            return
        m, state = self.m, self.bench.state
        session, work = state.session("s"), state.work_of("s")
        assert (session.status, session.version) == (m.status, m.version)
        for mine, theirs in ((m.running, work.running), (m.queue, work.queue), (m.steering, work.steering)):
            assert [self.run_id(n) for n in mine] == list(theirs)
        assert {n: state.run(self.run_id(n)).status.value for n in m.runs} == m.runs
        assert not state.has_run(self.run_id(self.count))
        assert self.texts() == [f"t{n}" for n in m.said]

    def texts(self) -> list[str]:
        from test_prompts import said

        return [text for content in said(self.bench) for text in content.split("\n\n")]

    def teardown(self) -> None:
        self.bench.store.connection.close()
        shutil.rmtree(self.folder)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
