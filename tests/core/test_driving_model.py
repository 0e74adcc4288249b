"""Claims, renewals, expiries, takeovers, releases, failing transactions and restarts in any order, beside a
model of one line: who drives, and until when. There are never two drivers."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from bench import Bench, new_run_id
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.core.access import AS

KEYS = tuple(bytes([letter]) * 16 for letter in b"abc")
TTL_S = 10.0
WHO = st.sampled_from(range(len(KEYS)))


class DrivingMachine(RuleBasedStateMachine):
    """One session, three who want to drive it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="mesh-driving-"))
        self.bench = Bench(self.folder, queue_max=10_000)
        self.bench.call("session.start", "s", "echo", None)
        self.driver: int | None = None
        self.until = 0.0
        self.runs = 0

    @property
    def present(self) -> int | None:
        return self.driver if self.bench.mono < self.until else None

    def extend(self) -> None:
        self.until = self.bench.mono + TTL_S

    def make_run(self, who: int | None) -> str:
        self.runs += 1
        call = [new_run_id("s", self.runs), "s", "hi"]
        if who is None:
            return self.bench.code("run.create", *call)
        return self.bench.code(AS, {"driver": KEYS[who]}, "run.create", call)

    @rule(who=WHO, takeover=st.booleans(), fails=st.booleans())
    def claim(self, who: int, takeover: bool, fails: bool) -> None:
        self.bench.store.fail_next = fails
        code = self.bench.code("session.claim", "s", KEYS[who], {"ttl_s": TTL_S, "takeover": takeover})
        allowed = self.present in (None, who) or takeover
        assert code == ("store_unavailable" if fails else "ok" if allowed else "driver_taken")
        self.bench.store.fail_next = False
        if code == "ok":
            self.driver = who
            self.extend()

    @rule(who=WHO)
    def renew(self, who: int) -> None:
        assert self.bench.code("session.renew", "s", KEYS[who]) == (
            "ok" if self.present == who else "not_driver")
        if self.present == who:
            self.extend()

    @rule(who=WHO)
    def release(self, who: int) -> None:
        assert self.bench.call("session.release", "s", KEYS[who]) is (self.present == who)
        if self.present == who:
            self.driver = None

    @rule(who=st.none() | WHO)
    def act(self, who: int | None) -> None:
        assert self.make_run(who) == ("ok" if self.present == who else "not_driver")
        if who is not None and self.present == who:
            self.extend()

    @rule(seconds=st.sampled_from((0.5, 3.0, TTL_S - 0.5, TTL_S + 0.5)))
    def time_passes(self, seconds: float) -> None:
        self.bench.mono += seconds

    @rule(wall=st.sampled_from((-1e6, 1e6)))
    def clock_jumps(self, wall: float) -> None:
        self.bench.now += wall

    @rule(fails=st.booleans())
    def tick(self, fails: bool) -> None:
        self.bench.store.fail_next = fails
        self.bench.tick(1.0)
        self.bench.store.fail_next = False

    @rule()
    def partition_dies(self) -> None:
        stored = self.bench.state.session("s").access
        self.bench.kill()
        if stored is None or stored.lease is None:
            assert self.present is None
            self.driver = None
        else:
            self.extend()  # also of one whose time was over and whose vacancy no tick had announced

    @rule()
    def session_sleeps(self) -> None:
        if self.bench.state.session("s").live:
            self.bench.call("session.stop", "s")

    @invariant()
    def at_most_one_may_act_and_it_is_the_models(self) -> None:
        with self.bench.ops.driving.presenting(self.bench.state.presented):
            session = self.bench.state.session("s")
            self.bench._clock()
            lease = self.bench.ops.driving._present(session)
        held = [n for n, key in enumerate(KEYS) if lease is not None and lease.claim == claim_name(key)]
        assert held == ([] if self.present is None else [self.present])
        assert not self.bench.bugs

    def teardown(self) -> None:
        self.bench.store.connection.close()
        shutil.rmtree(self.folder)


def claim_name(key: bytes) -> str:
    """The public name that belongs to a key."""
    import hashlib

    return hashlib.sha256(b"mesh driver:" + key).hexdigest()[:32]


DrivingMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
TestDriving = DrivingMachine.TestCase
