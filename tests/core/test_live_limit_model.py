"""The limit of live sessions against a model: a list, longest idle first, and a set of those that execute."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from bench import Bench, new_run_id
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

MAX_LIVE = 3
WHICH = st.integers(0, 7)


class LimitMachine(RuleBasedStateMachine):
    """Sessions are started, prompted, finished, stopped and resumed; the partition is killed in between."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="mesh-limit-"))
        self.bench = Bench(self.folder, max_live=MAX_LIVE)
        self.active: dict[str, bool] = {}
        self.live: list[str] = []
        self.busy: dict[str, str] = {}
        self.runs = 0

    def makes_room(self, sid: str) -> bool:
        """Whether the session may be live; then it is, used last."""
        if sid in self.live:
            self.live.remove(sid)
        elif len(self.live) == MAX_LIVE:
            idle = next((other for other in self.live if other not in self.busy), None)
            if idle is None:
                return False
            self.live.remove(idle)
        self.live.append(sid)
        return True

    @rule(which=WHICH)
    def start_or_resume(self, which: int) -> None:
        sid = f"s{which}"
        known = sid in self.active
        code = self.bench.code("session.resume", sid) if known else self.bench.code(
            "session.start", sid, "echo", None)
        if known and self.active[sid]:
            assert code == "invalid_transition"
        else:
            assert code == ("ok" if self.makes_room(sid) else "max_sessions_exceeded")
            if code == "ok":
                self.active[sid] = True

    @rule(which=WHICH)
    def prompt(self, which: int) -> None:
        sid = f"s{which}"
        if self.active.get(sid) and sid not in self.busy:
            run = new_run_id(sid, self.runs)
            code = self.bench.code("session.prompt", sid, run, "x", "follow_up")
            assert code == ("ok" if self.makes_room(sid) else "max_sessions_exceeded")
            if code == "ok":
                self.runs += 1
                self.busy[sid] = run

    @rule(which=WHICH)
    def ends(self, which: int) -> None:
        run = self.busy.pop(f"s{which}", None)
        if run is not None:
            self.bench.deliver()
            runner = self.bench.runners[0]
            assert runner is not None
            self.bench.progress(runner, run, "completed")
            self.makes_room(f"s{which}")

    @rule(which=WHICH)
    def stop(self, which: int) -> None:
        sid = f"s{which}"
        if self.active.get(sid) and sid not in self.busy:
            self.bench.call("session.stop", sid)
            self.active[sid] = False
            if sid in self.live:
                self.live.remove(sid)

    @rule()
    def killed(self) -> None:
        self.bench.deliver()
        self.bench.kill()
        self.bench.deliver()
        self.live = list(self.bench.state.live)  # who did nothing for longest is not stored

    @invariant()
    def agrees(self) -> None:
        assert not self.bench.bugs, self.bench.bugs
        assert sorted(self.bench.state.live) == sorted(self.live)
        assert {sid for sid, work in self.bench.state.work.items() if work.running} == set(self.busy)
        for sid, active in self.active.items():
            session = self.bench.state.session(sid)
            assert (session.status == "active", session.live) == (active, sid in self.live)

    def teardown(self) -> None:
        self.bench.store.connection.close()
        shutil.rmtree(self.folder)


LimitMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
TestLimit = LimitMachine.TestCase
