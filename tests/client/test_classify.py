"""What a workflow engine should do about each error, and what it is told of a result."""

from __future__ import annotations

import pytest

from mesh.core.records import Event, RunResult
from mesh.errors import CODES, InvalidArgument, from_wire
from mesh.workflow import Action, classify_error, step_result


@pytest.mark.parametrize(
    ("code", "action"),
    [
        ("provider_timeout", "retry"),
        ("storage_connection_failed", "retry"),
        ("timeout", "retry"),
        ("provider_rate_limited", "wait_and_retry"),
        ("max_runs_exceeded", "wait_and_retry"),
        ("provider_unavailable", "failover"),
        ("cancelled", "cancel"),
        ("policy_violation", "cancel"),
        ("provider_error", "abort"),
        ("outcome_unknown", "abort"),
        ("a_code_of_tomorrow", "abort"),
    ],
)
def test_each_error_has_its_action(code: str, action: str) -> None:
    """If a step failed with this code, then this is what an engine should do."""
    found = classify_error(from_wire(code, "text"))
    assert (found.action, found.code, found.message) == (action, code, "text")


def test_what_can_be_retried_is_not_aborted() -> None:
    """If a code is retryable, then its action is one that tries again."""
    again = {Action.RETRY, Action.WAIT_AND_RETRY, Action.FAILOVER}
    for code in CODES:
        found = classify_error(from_wire(code, "x"))
        assert found.action in again if found.retryable else True, code
        assert found.category == CODES[code][1]


def test_only_errors_of_mesh_are_classified() -> None:
    """If it is another exception, then it is refused rather than guessed about."""
    with pytest.raises(InvalidArgument):
        classify_error(ValueError("x"))  # type: ignore[arg-type]


def test_a_result_says_why_it_ended_and_which_tools_were_called() -> None:
    """If the output has no stop reason and no tool calls, then those of the events are taken."""
    events = tuple(
        Event(f"e{seq}", kind, "s", "r", seq, 1.0, data)
        for seq, (kind, data) in enumerate(
            [("tool_call_started",
              {"tool_call_id": "1", "tool_name": "look", "tool_input": {"a": 1}, "other": 2}),
             ("run_completed", {"stop_reason": "end_turn"})], 1
        )
    )
    step = step_result(RunResult({"content": "hi"}, {"input_tokens": 1}, 0.5, events, "s", "r"))
    assert (step.content, step.stop_reason, step.has_tool_calls) == ("hi", "end_turn", True)
    assert step.tool_calls == ({"tool_call_id": "1", "tool_name": "look", "tool_input": {"a": 1}},)
    assert (step.persistence_failures, step.retryable, step.cost_usd) == (0, False, 0.5)
    own = {"content": 5, "stop_reason": "stop", "tool_calls": [{"name": "own"}, "no map"]}
    step = step_result(RunResult(own, {}, None, events, "s", "r"))
    assert (step.content, step.stop_reason, step.tool_calls) == (None, "stop", ({"name": "own"},))
