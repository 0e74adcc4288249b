"""Budgets, options, and whose own session may be resumed."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transcript_cases import event, log, told

from mesh.core.continuation import Budget, checked_budget, checked_mode, resumable, transcript_of, within
from mesh.core.transcript import Fold
from mesh.core.unit import Unit
from mesh.errors import InvalidArgument


def fold(events: list[dict[str, Any]]) -> Fold:
    made = Fold("s")
    made.add(events)
    return made


def ten() -> Fold:
    return fold(log(*[("message_sent", None, {"content": f"{n}" * 100}) for n in range(10)]))


def contents(made: Fold, **budget: Any) -> list[str]:
    return [(m.content or "")[0] for m in transcript_of(made, checked_budget(budget)).messages]


# --- budgets ---


def test_budgets_keep_the_newest() -> None:
    """If ten messages of 100 characters meet a limit, then the newest that fit are kept, or none."""
    assert contents(ten(), max_chars=350) == ["7", "8", "9"]
    assert contents(ten(), max_messages=2) == ["8", "9"]
    assert contents(ten(), max_chars=99) == []
    assert contents(ten(), max_tokens_approx=50) == ["8", "9"]
    assert contents(ten(), max_tokens_approx=50, chars_per_token=2) == ["9"]
    assert contents(ten(), max_tokens_approx=50, max_chars=100) == ["9"]
    assert transcript_of(ten(), Budget(max_messages=2)).metadata == {"omitted": 8}


def test_tool_payloads_count() -> None:
    """If a tool's output is large, then it uses up the budget."""
    about = {"tool_name": "t", "tool_call_id": "1"}
    steps = [("message_sent", None, {"content": "x"}),
             ("tool_call_started", None, about | {"tool_input": {"a": "b" * 40}}),
             ("tool_call_completed", None, about | {"tool_output": "y" * 40})]
    made = fold(log(*steps))
    assert len(transcript_of(made, Budget(max_chars=80)).messages) == 0
    assert len(transcript_of(made, Budget(max_chars=100)).messages) == 3


def test_a_limit_never_splits_a_call_from_its_result() -> None:
    """If one of the two would fit, then none is there."""
    steps = [("tool_call_started", None, {"tool_name": "t", "tool_call_id": "1"}),
             ("tool_call_completed", None, {"tool_name": "t", "tool_call_id": "1"}),
             ("message_sent", None, {"content": "x"})]
    assert len(transcript_of(fold(log(*steps)), Budget(max_messages=2)).messages) == 1


def test_what_is_pinned_survives_a_budget_and_counts_in_it() -> None:
    """If an old message is pinned, then it stays, and less of the newest fits."""
    made = ten()
    made.add([event(11, "message_pinned", None, {"seq": 1})])
    assert contents(made, max_messages=3) == ["0", "8", "9"]
    assert contents(made, max_chars=50) == ["0"]


@given(told(), st.integers(0, 12) | st.none(), st.integers(0, 40) | st.none(), st.sets(st.integers(0, 30)))
def test_a_budget_keeps_the_longest_end_that_fits(
    case: Any, max_messages: int | None, max_chars: int | None, pinned: set[int]
) -> None:
    """If units have sizes and pins, then what is kept is the longest end within the limits, and the pins."""
    units = list(fold(case[0]).units())
    for unit in units:
        unit.pinned = unit.seq in pinned
    budget = Budget(max_messages=max_messages, max_chars=max_chars)
    most, chars = (math.inf if limit is None else limit for limit in (max_messages, max_chars))

    def fits(end: list[Unit]) -> bool:
        kept = [u for u in units if u.pinned or u in end]
        return not end or (sum(u.count for u in kept) <= most and sum(u.size for u in kept) <= chars)

    # An end that begins with pinned units is no longer than the one without them.
    ends = [units[first:] for first in range(len(units) + 1)]
    best = next(end for end in ends if fits([u for u in end if not u.pinned]))
    assert within(units, budget) == [u for u in units if u.pinned or u in best]


def test_filters_by_seq_time_and_run() -> None:
    """If filters are given, then only what they let pass is there."""
    assert contents(ten(), after=8) == ["8", "9"] and contents(ten(), before=3) == ["0", "1"]
    assert contents(ten(), since=9.0) == ["8", "9"] and contents(ten(), run_id="r") == []


@pytest.mark.parametrize("given_", [
    {"max_messages": -1}, {"max_messages": True}, {"max_chars": 1.5}, {"max_chars": "9"}, {"after": -1},
    {"chars_per_token": 0}, {"chars_per_token": math.nan}, {"since": "x"}, {"run_id": 3}, {"limit": 3},
    {3: 4}, [], "x", 3])
def test_a_wrong_option_is_refused_by_name(given_: Any) -> None:
    """If an option is unknown or of a wrong type, then the refusal names it."""
    with pytest.raises(InvalidArgument) as refused:
        checked_budget(given_)
    name = str(next(iter(given_))) if isinstance(given_, dict) else "continuation_opts"
    assert name in refused.value.message


@pytest.mark.parametrize("mode", [True, "", "yes", 1, [], "Native"])
def test_another_mode_is_refused(mode: Any) -> None:
    """If continuation is anything else, True included, then it is a validation_error."""
    with pytest.raises(InvalidArgument) as refused:
        checked_mode(mode)
    assert refused.value.code == "validation_error"


def test_the_modes() -> None:
    """If continuation is off or one of the modes, then it is taken."""
    assert [checked_mode(m) for m in (None, False, "auto", "replay", "native")] == [
        None, None, "auto", "replay", "native"]


def test_what_an_agent_does_to_its_transcript_harms_nobody() -> None:
    """If an agent changes the messages it got, then the next transcript is as it was."""
    steps = [("tool_call_started", None, {"tool_name": "t", "tool_call_id": "1", "tool_input": {"a": [1]}})]
    made = fold(log(*steps))
    first = transcript_of(made).messages[0]
    first.tool_input["a"].append(2)
    first.metadata.clear()
    assert transcript_of(made).messages[0].tool_input == {"a": [1]}
    assert transcript_of(made).messages[0].metadata["sequence_number"] == 1


# --- resuming ---

SESSIONS = {"python": {"provider_session_id": "p1", "model": "m"}}


def turn(run: str, how: str | None, own: str | None, *, agent: str = "a") -> list[Any]:
    data = {"agent": agent, "continuation": how, "provider_session_id": own}
    return [("message_sent", run, {"content": "x"}), ("run_started", run, data),
            ("message_received", run, {"content": "y"}), ("run_completed", run, {})]


def resume(*steps: Any, sessions: Any = SESSIONS, agent: str = "a", able: bool = True) -> str | None:
    return resumable(fold(log(*steps)), sessions, "python", agent, able=able)[0]


def test_a_session_that_knows_everything_is_resumed() -> None:
    """If the provider's session saw each run, itself or by a replay, then it can go on."""
    assert resume(*turn("1", None, "p1")) == "p1"
    assert resume(*turn("1", None, "p1"), *turn("2", "native", "p1")) == "p1"
    assert resume(*turn("1", None, None, agent="b"), *turn("2", "replay", "p1")) == "p1"


@pytest.mark.parametrize(("steps", "why"), [
    ([], "nothing was said"),
    (turn("1", None, None), "it gave no session"),
    (turn("1", None, "p0"), "another session is stored"),
    ([*turn("1", None, "p0"), *turn("2", None, "p1")], "the second run began without the first"),
    ([*turn("1", None, "p1"), *turn("2", "replay", "q", agent="b")], "another agent went on"),
    ([*turn("1", None, "p1"), ("transcript_compacted", None, {"summary": "s", "up_to": 4})], "compacted"),
    ([*turn("1", None, "p1"), *turn("2", "native", "p1")[:3], ("run_cancelled", "2", {"reason": "rollback"})],
     "rolled back"),
])
def test_a_session_that_does_not_know_everything_is_not_resumed(steps: list[Any], why: str) -> None:
    """If the provider's session missed something, or knows too much, then it is a replay."""
    assert resume(*steps) is None, why


def test_who_cannot_resume_does_not() -> None:
    """If the agent declares nothing, or nothing sound is stored, then there is a reason."""
    steps = turn("1", None, "p1")
    assert resume(*steps, able=False) is None
    for stored in (None, {}, [], {"python": None}, {"python": {"provider_session_id": 3}}):
        assert resume(*steps, sessions=stored) is None
    assert "session_resume" in str(resumable(fold([]), SESSIONS, "python", "a", able=False)[1])
