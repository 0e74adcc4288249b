"""What a run's record says of usage, cost and provider, whoever dies meanwhile."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from bench import Bench, Runner, new_run_id
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import account, wire
from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core.prices import Prices
from mesh.core.records import CostState, RunStatus
from mesh.core.redact import Redactor
from mesh.core.session import SessionState

RUN = new_run_id("s", 1)
USED = {"input_tokens": 1_000_000, "output_tokens": 0}


def begun(bench: Bench, agent: str = "echo") -> Runner:
    bench.call("session.start", "s", agent, {"metadata": {"mine": 1, "model": "old"}})
    bench.call("session.prompt", "s", RUN, "hi", "follow_up")
    bench.deliver()
    runner = bench.runners[0]
    assert runner is not None
    return runner


def say(bench: Bench, status: str | None = None, **report: Any) -> None:
    """The run says something, and what it used so far; with a status it ends."""
    runner = bench.runners[0]
    assert runner is not None
    batch = runner.batch(RUN, status)
    about = {"provider": "claude", **report.pop("about", {})}
    batch[5] = {**(batch[5] or {}), **report, "provider_metadata": about}
    bench.say(runner, batch)


def stored(bench: Bench) -> runs.RunState:
    run = bench.store.run(RUN)
    assert run is not None
    return run


def provider_sessions(bench: Bench) -> Any:
    session = bench.store.session("s")
    assert session is not None
    return session.metadata.get("provider_sessions")


def test_settlement_sets_usage_turns_and_cost(bench: Bench) -> None:
    """If a run ends, then its record has its usage, its turns, and a cost from the list of prices."""
    begun(bench)
    say(bench, "completed", token_usage=USED, turn_count=2, about={"model": "claude-opus-4-6"})
    run = stored(bench)
    assert (run.token_usage, run.turn_count, run.cost_usd) == (USED, 2, pytest.approx(15.0))
    assert (run.cost_state, run.provider) == (CostState.COMPUTED, "claude")
    assert run.metadata == {"provider": "claude", "model": "claude-opus-4-6"}


def test_provider_session_is_kept_beside_what_changed_meanwhile(bench: Bench) -> None:
    """If the session changed while the run executed, then its provider's id is added to what it is now; the
    top level keeps no copy, and another run's provider stays."""
    begun(bench)
    session = bench.state.session("s")
    changed = {**session.metadata, "new": 2, "provider_sessions": {"codex": {"model": "o3"}}}
    bench.state.put_session(msgspec.structs.replace(session, metadata=changed))
    say(bench, "completed", about={"provider_session_id": "p1", "model": "m"})
    kept = bench.store.session("s")
    assert kept is not None
    assert kept.metadata == {
        "mine": 1, "new": 2, "provider": "echo",
        "provider_sessions": {
            "codex": {"model": "o3"}, "claude": {"provider_session_id": "p1", "model": "m"},
        },
    }
    assert stored(bench).metadata["provider_session_id"] == "p1"


def test_what_a_providers_session_used_is_kept_with_it(bench: Bench) -> None:
    """If a provider counts from the beginning of its session, then what it said last is there for the next
    run."""
    begun(bench)
    about = {"provider_session_id": "s1", "used_before": {"input_tokens": 9, "x": "y"}}
    say(bench, "completed", about=about)
    kept = bench.store.session("s")
    assert kept is not None
    assert kept.metadata["provider_sessions"]["claude"] == {
        "provider_session_id": "s1", "used_before": {"input_tokens": 9},
    }


def test_report_before_the_end_outlives_the_partition(bench: Bench) -> None:
    """If the partition dies after a report, then what was reported is there, and the run goes on."""
    bench.progress(begun(bench), RUN)
    say(bench, token_usage=USED, turn_count=1, about={"provider_session_id": "p1"})
    bench.kill()
    bench.deliver()
    run = stored(bench)
    assert (run.status, run.token_usage, run.turn_count) == (RunStatus.RUNNING, USED, 1)
    assert provider_sessions(bench) == {"claude": {"provider_session_id": "p1"}}
    assert run.batch == 2
    runner = bench.runners[0]
    assert runner is not None
    runner.runs[RUN] = (1, 2)
    say(bench, "completed", token_usage=USED)
    assert stored(bench).status == RunStatus.COMPLETED


def test_many_reports_write_the_row_once_a_second(bench: Bench) -> None:
    """If reports come in quick succession, then the row of the run, with its input, is written once a second;
    what was said last is known all the same, and stored at the end, even if the agent's runner dies."""
    begun(bench)
    for tokens in (1, 2, 3):
        say(bench, token_usage={"input_tokens": tokens})
    assert stored(bench).token_usage == {"input_tokens": 1}
    assert bench.state.runs[RUN].token_usage == {"input_tokens": 3}
    bench.tick(1.0)
    say(bench, token_usage={"input_tokens": 4})
    assert stored(bench).token_usage == {"input_tokens": 4}
    say(bench, token_usage={"input_tokens": 5})
    bench.crash_runner(0)
    bench.roster()
    assert stored(bench).token_usage == {"input_tokens": 5}


def test_lost_run_keeps_what_it_used(bench: Bench) -> None:
    """If the runner dies, then the run is outcome_unknown, and what it used and cost is still known."""
    begun(bench)
    say(bench, token_usage={**USED, "total_cost_usd": 0.25})
    bench.crash_runner(0)
    bench.roster()
    run = stored(bench)
    assert run.error is not None and run.error["code"] == "outcome_unknown"
    assert (run.token_usage, run.cost_usd, run.cost_state) == (USED, 0.25, CostState.REPORTED)


def test_attempts_are_paid_for_together(bench: Bench) -> None:
    """If an idempotent agent's run is executed again, then what both attempts used and cost is added."""
    begun(bench, "again")
    say(bench, token_usage={**USED, "total_cost_usd": 0.25}, turn_count=1)
    bench.crash_runner(0)
    bench.roster()
    bench.spawn(0)
    bench.roster()
    bench.catalogue()
    bench.deliver()
    say(bench, "completed", token_usage=USED, turn_count=3)
    run = stored(bench)
    assert (run.attempt, run.status) == (2, RunStatus.COMPLETED)
    assert run.token_usage == {"input_tokens": 2_000_000, "output_tokens": 0}
    assert (run.turn_count, run.cost_usd) == (4, pytest.approx(3.25))
    assert run.cost_state == CostState.COMPUTED


def test_what_an_old_attempt_says_is_refused_and_counted(bench: Bench) -> None:
    """If a batch comes from an attempt that is over, then it changes nothing and is counted."""
    runner = begun(bench)
    late = runner.batch(RUN, None)
    late[2] = 7
    before = len(bench.events("s"))
    bench.say(runner, late)
    assert len(bench.events("s")) == before
    assert bench.partition.runners.fenced == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=6,
)
NAMES = ("token_usage", "turn_count", "provider_metadata", "output", "error")


@given(report=st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, JSON)), earlier=st.booleans())
def test_a_report_of_anything_gives_records_that_can_be_read_back(
    report: dict[str, Any], earlier: bool
) -> None:
    """If a report is anything that msgpack carries, then run and session can be stored and read back."""
    run = runs.RunState(
        n=1, id=RUN, session_id="s", status=RunStatus.RUNNING, input=None, options={}, created_at=0.0,
        token_usage={"input_tokens": 1}, cost_state=CostState.UNKNOWN_PRICE,
    )
    run = account.begin_again(run) if earlier else run
    changed = msgspec.structs.replace(run, **account.settled(run, report, Prices()))
    assert runs.decode(runs.encode(changed)) == changed
    wire.pack(runs.to_wire(changed, Redactor()))
    session = SessionState(
        n=1, id="s", agent="a", agent_id="a", status=sessions.SessionStatus.ACTIVE, created_at=0.0,
        updated_at=0.0, metadata={"provider_sessions": 7},
    )
    kept = account.remembered(session, report)
    if kept is not None:
        assert sessions.decode(sessions.encode(kept)) == kept
        assert account.remembered(kept, report) is None  # no news the second time
