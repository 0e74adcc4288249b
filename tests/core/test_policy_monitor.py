"""A run held against its policy."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import policy as policies
from mesh.core.policy import LimitKind, Policy
from mesh.core.policy_monitor import Monitor


def monitor(before: Any = None, **fields: Any) -> Monitor:
    watch = Monitor(Policy.from_map(fields))
    watch.know(before or {})
    return watch


def call(call_id: str | None, tool: str = "bash") -> dict[str, Any]:
    return {"tool_name": tool, **({"tool_call_id": call_id} if call_id else {})}


def test_budget_that_is_exceeded_is_one_violation_however_long_the_run_goes_on() -> None:
    """If usage grows beyond a limit again and again, then that is told once."""
    watch = monitor(limits={"max_total_tokens": 100})
    told = [watch.on_usage(tokens, None) for tokens in (100, 101, 150, 400)]
    assert [len(violations) for violations in told] == [0, 1, 0, 0]
    assert told[1][0].details == {"metric": "total_tokens", "actual": 101, "limit": 100, "scope": "run"}


def test_what_is_left_is_the_least_that_any_limit_leaves() -> None:
    """If a run and its session are limited, then what is left fits into both, holds included."""
    limits = [
        {"kind": "max_total_tokens", "most": 100},
        {"kind": "max_total_tokens", "most": 500, "scope": "session"},
    ]
    watch = monitor({"session": {"total_tokens": 430}}, limits=limits)
    assert (watch.left("total_tokens"), watch.left("tool_calls")) == (70, None)
    watch.on_usage(20, None)
    watch.held = {"total_tokens": 15}
    assert watch.left("total_tokens") == 35
    watch.know({"session": {"total_tokens": 490}})
    assert watch.left("total_tokens") == 65, "the broken limit was told; the other one goes on"
    assert monitor(limits=limits, on_violation="warn").left("total_tokens") is None


def test_cost_that_uses_up_a_budget_exactly_is_no_violation() -> None:
    """If three cents of a session's three are used, as a sum of floats, then nothing is broken."""
    limit = {"kind": "max_cost_usd", "most": 0.3, "scope": "session"}
    watch = monitor({"session": {"cost_usd": 0.2}}, limits=[limit])
    assert 0.1 + 0.2 > 0.3 and watch.on_usage(5, 0.1) == []
    assert len(watch.on_usage(6, 0.1001)) == 1


def test_result_says_what_was_asked_and_what_only_seen() -> None:
    """If some calls were asked for and one was not, then the result tells them apart."""
    watch = monitor(
        limits=[{"kind": "max_total_tokens", "most": 9}, {"kind": "max_duration_ms", "most": 9},
                {"kind": "max_tool_calls", "most": 9}],
        tool_rules=[["deny", ["rm"]]],
    )
    assert watch.result()["enforcement"]["tool_rules"] == {"asked": 0, "observed": 0}
    watch.on_request("bash", {}, "c1")
    watch.on_request("bash", {}, None)
    for call_id in ("c1", None, "c3"):
        watch.on_event("tool_call_started", call(call_id))
    watch.on_event("tool_call_completed", call("c3"))
    watch.reserved.add("total_tokens")
    assert watch.result()["enforcement"] == {
        "tool_rules": {"asked": 2, "observed": 1}, "total_tokens": "reserved", "duration_ms": "timer",
        "tool_calls": "counted",
    }
    assert monitor().result()["enforcement"] == {}


def test_tool_call_is_judged_once_by_its_id() -> None:
    """If a denied call is seen as started and completed, then that is one violation and one call."""
    watch = monitor(tool_rules=[["deny", ["bash"]]])
    told = [watch.on_event(name, call("t1")) for name in ("tool_call_started", "tool_call_completed")]
    assert [len(violations) for violations in told] == [1, 0]
    assert watch.totals["tool_calls"] == 1


def test_second_start_under_one_id_is_another_call() -> None:
    """If an agent reports two calls under one id, then both count and are judged; what ends them does not,
    and what was asked about one says nothing of the other."""
    monitor = Monitor(Policy.from_map({"limits": {"max_tool_calls": 1}, "tool_rules": [["deny", ["rm"]]]}))
    call = {"tool_name": "rm", "tool_call_id": "c1"}
    monitor.on_request("rm", None, "c1")
    assert monitor.on_event("tool_call_started", call) == []
    assert monitor.on_event("tool_call_completed", call) == []
    kinds = [violation.kind for violation in monitor.on_event("tool_call_started", call)]
    assert kinds == ["budget_exceeded", "tool_denied"] and monitor.totals["tool_calls"] == 2


def test_completed_call_whose_start_was_never_seen_is_judged() -> None:
    """If a provider tells of a call only when it is over, then it counts and is judged all the same."""
    watch = monitor(tool_rules=[["deny", ["bash"]]])
    assert [v.kind for v in watch.on_event("tool_call_completed", call("t1"))] == ["tool_denied"]


def test_silent_provider_breaks_its_time_limit_by_the_timer() -> None:
    """If nothing is heard, then the timer finds the limit on time broken right after its due time, once."""
    watch = monitor(limits={"max_duration_ms": 500})
    assert watch.due_ms == 500
    assert watch.on_time(500) == []
    assert [v.details["metric"] for v in watch.on_time(501)] == ["duration_ms"]
    assert watch.due_ms is None
    assert watch.on_time(900) == []


def test_time_over_a_shared_limit_is_told_as_the_sum() -> None:
    """If earlier runs and this one together take too long, then the violation says how long all of them."""
    watch = monitor({"session": {"duration_ms": 400}},
                    limits=[{"kind": "max_duration_ms", "most": 500, "scope": "session"}])
    [violation] = watch.on_time(101)
    assert (violation.details["actual"], violation.details["limit"]) == (501, 500)


def test_limit_of_a_session_counts_what_was_used_before() -> None:
    """If a session used most of its budget before, then this run gets the rest."""
    limits = [{"kind": "max_tool_calls", "most": 3, "scope": "session"}]
    watch = monitor({"session": {"tool_calls": 2}}, limits=limits)
    told = [watch.on_event("tool_call_started", call(None)) for _ in range(3)]
    assert [len(violations) for violations in told] == [0, 1, 0]


def test_unknown_cost_is_said_once_and_breaks_nothing() -> None:
    """If nobody knows the price, then a limit on cost is not broken and the result says so."""
    watch = monitor(limits={"max_cost_usd": 0.01})
    assert watch.on_usage(10**9, None) == watch.on_usage(10**10, None) == []
    assert watch.result()["metadata"] == {"warnings": ["missing_cost_rates"]}


def test_reservation_beyond_the_budget_is_told_once() -> None:
    """If what is held does not fit into what is left, then that is a violation, and told once."""
    watch = monitor(limits={"max_total_tokens": 100})
    watch.on_usage(50, None)
    watch.held = {"total_tokens": 50}
    assert watch.excess() == []
    watch.held = {"total_tokens": 51}
    assert [violation.details["actual"] for violation in watch.excess()] == [101]
    assert watch.excess() == []  # one violation per budget


def test_held_amount_counts_beside_what_others_use_and_hold() -> None:
    """If others take more of a shared budget, then less of it can be reserved here."""
    limits = [{"kind": "max_total_tokens", "most": 100, "scope": "tag:acme"}]
    watch = monitor({"tag:acme": {"total_tokens": 60}}, limits=limits)
    watch.held = {"total_tokens": 40}
    assert watch.excess() == []
    assert watch.know({"tag:acme": {"total_tokens": 70}}) == []
    assert [violation.details["actual"] for violation in watch.excess()] == [110]


def test_budget_that_others_used_up_is_broken_without_a_word_of_this_run() -> None:
    """If others use more than the limit, then this run has broken it, once."""
    watch = monitor({}, limits=[{"kind": "max_cost_usd", "most": 1, "scope": "session"}])
    told = [watch.know({"session": {"cost_usd": cost}}) for cost in (1.0, 1.5, 2.0)]
    assert [len(violations) for violations in told] == [0, 1, 0]


@given(st.lists(st.integers(0, 50), max_size=20), st.integers(0, 60))
def test_limit_is_broken_exactly_when_the_highest_total_is_over_it(totals: list[int], most: int) -> None:
    """If totals come in any order, then that is one violation if one of them is over, else none."""
    watch = monitor(limits={"max_total_tokens": most})
    told = [v for total in totals for v in watch.on_usage(total, 0.0)]
    assert len(told) == (max(totals, default=0) > most)


def test_new_kind_of_limit_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a row is added to the limits, then policies may name it and the monitor counts it."""
    monkeypatch.setitem(policies.LIMITS, "max_turns", LimitKind("turns", event="turn_completed"))
    watch = monitor(limits={"max_turns": 1})
    told = [watch.on_event("turn_completed", {}) for _ in range(3)]
    assert [len(violations) for violations in told] == [0, 1, 0]
