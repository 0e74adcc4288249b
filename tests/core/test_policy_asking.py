"""Policies that ask: how layers merge, what the monitor still asks about, and what is doubtful."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.core.judging import judge
from mesh.core.policy import Action, Policy, checked_stack, merged
from mesh.core.policy_monitor import Monitor
from mesh.errors import InvalidArgument

ASK: dict[str, Any] = {"tool_rules": [["ask", ["bash"]]]}


def policy(**values: Any) -> Policy:
    return Policy.from_map(values)


@pytest.mark.parametrize(("layers", "limit_s", "default"), [
    ([{}, {}], None, None),
    ([ASK, {}], 3600.0, "deny"),
    ([{**ASK, "approval_default": "approve"}, {}], 3600.0, "approve"),
    ([ASK, {"approval_default": "approve", "approval_s": 9e4}], 3600.0, "deny"),
    ([{**ASK, "approval_s": 60, "approval_default": "approve"}, {"approval_s": 10}], 10, "approve"),
    ([{**ASK, "approval_default": "approve"}, {"approval_default": "deny"}], 3600.0, "deny"),
    ([{**ASK, "approval_default": "approve"}, {"on_violation": "pause"}], 3600.0, "deny"),
])
def test_layers_take_the_shorter_time_and_the_stricter_default(
    layers: list[dict[str, Any]], limit_s: float | None, default: str | None
) -> None:
    """If layers differ, then the shorter time holds, and approve only where each that asks says so."""
    for order in (layers, layers[::-1]):
        found = merged([Policy.from_map(layer) for layer in order])
        assert (found.approval_s, found.approval_default) == (limit_s, default)
        assert checked_stack([found.to_map()]) == found


@pytest.mark.parametrize("wrong", [
    {"approval_s": 0}, {"approval_s": -1}, {"approval_s": True}, {"approval_s": "1"},
    {"approval_s": float("nan")}, {"approval_s": float("inf")}, {"approval_default": "maybe"},
    {"approval_default": True}, {"approval": {}},
])
def test_wrong_words_about_approvals_are_refused(wrong: dict[str, Any]) -> None:
    """If a field about approvals is wrong, then validation_error."""
    with pytest.raises(InvalidArgument) as caught:
        Policy.from_map(wrong)
    assert caught.value.code == "validation_error"


@pytest.mark.parametrize("given", [
    None, [], "rm", {}, {"command": None}, {"command": ["rm"]}, {"command": 5}, {"command": b"rm"},
])
def test_arguments_that_are_malformed_are_asked_about(given: Any) -> None:
    """If a rule asks about some arguments, then a call whose arguments cannot be read is asked about, too."""
    rule = ["ask", [{"tool": "bash", "args": {"command": ["rm *"]}}]]
    assert judge(policy(tool_rules=[rule]), "bash", given).effect == "ask"
    assert judge(policy(tool_rules=[rule]), "bash", {"command": "ls"}).effect == "allow"


def started(call_id: str | None, name: str = "bash") -> tuple[str, dict[str, Any]]:
    return "tool_call_started", {"tool_name": name, "tool_call_id": call_id}


def test_a_reported_call_that_nobody_asked_about_is_a_violation_that_pauses() -> None:
    """If a call that a rule asks about is only reported, then it is approval_required in any case."""
    monitor = Monitor(policy(**ASK))
    [violation] = monitor.on_event(*started("t1"))
    assert (violation.kind, violation.action) == ("approval_required", Action.PAUSE)
    assert monitor.on_event("tool_call_completed", started("t1")[1]) == []


@pytest.mark.parametrize("call_id", ["t1", None])
def test_an_approved_call_is_not_asked_about_when_it_is_reported(call_id: str | None) -> None:
    """If a call was approved, by its id or without one, then its report breaks nothing, and the next does."""
    monitor = Monitor(policy(**ASK))
    assert monitor.on_request("Bash", {}, call_id).effect == "ask"
    monitor.permitted("Bash", call_id)
    assert monitor.on_event(*started("t1")) == []
    assert len(monitor.on_event(*started("t2"))) == 1


def test_a_call_that_was_asked_about_in_vain_is_judged_when_it_is_reported() -> None:
    """If an agent uses a tool although it was not approved, then that is a violation."""
    monitor = Monitor(policy(**ASK))
    monitor.on_request("bash", {}, "t1")
    assert [v.kind for v in monitor.on_event(*started("t1"))] == ["approval_required"]


def test_a_trusted_tool_is_not_asked_about_but_may_be_denied() -> None:
    """If a tool is trusted, then rules that ask allow it, and rules that deny do not."""
    rules = [["ask", ["bash"]], ["deny", [{"tool": "bash", "args": {"command": ["rm *"]}}]]]
    monitor = Monitor(policy(tool_rules=rules))
    monitor.trust("BASH")
    assert monitor.on_request("bash", {"command": "ls"}, None).effect == "allow"
    assert monitor.on_request("bash", {"command": "rm x"}, None).effect == "deny"
    assert monitor.on_request("bash", {}, None).effect == "deny"
