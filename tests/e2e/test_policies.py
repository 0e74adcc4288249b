"""Policies on real runs: what is stopped, what is only said, and what stands in result, run and log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mesh

AGENTS = '''
import asyncio
from pathlib import Path

CALL = {"tool_call_id": "t1", "tool_name": "bash", "tool_input": {"command": "ls"}}

async def tooling(run):
    yield {"type": "tool_call_started", "data": CALL}
    yield {"type": "tool_call_completed", "data": {**CALL, "tool_output": "x"}}
    yield "done"

async def spending(run):
    for total in (100, 200, 300, 400):
        yield {"type": "token_usage_updated",
               "data": {"input_tokens": total, "output_tokens": 0, "total_tokens": total}}
    yield "spent"

async def silent(run):
    await asyncio.sleep(30)
    yield "late"

async def asking(run):
    await run.permit("write", {"path": "x"})
    Path(run.prompt).write_text("written")
    yield "wrote"
'''


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mesh.Client]:
    folder: Path = tmp_path_factory.mktemp("policies")
    (folder / "agents.py").write_text(AGENTS)
    names = ("tooling", "spending", "silent", "asking")
    agents = {name: {"provider": "python", "target": f"{folder}/agents.py:{name}"} for name in names}
    with mesh.LocalNode(folder / "data", config={"agents": agents}) as node, node.client() as client:
        yield client


def log(client: mesh.Client, session_id: str) -> list[mesh.Event]:
    return list(client.sessions.events(session_id))


def test_e01_denied_tool_fails_the_run_although_its_agent_succeeds(guarded: mesh.Client) -> None:
    """If a denied tool is used under cancel, then the run fails with policy_violation, told once."""
    with pytest.raises(mesh.RunError) as caught:
        guarded.run_once("tooling", "x", id="e01", policy={"tool_rules": [["deny", ["bash"]]]})
    assert caught.value.code == "policy_violation"
    events = log(guarded, "e01")
    [violation] = [e for e in events if e.type == "policy_violation"]
    assert violation.data["kind"] == "tool_denied"
    [run] = guarded.sessions.runs("e01")
    assert (run.status, (run.error or {})["code"]) == ("failed", "policy_violation")
    assert [e.type for e in events if e.type in ("run_failed", "run_completed")] == ["run_failed"]


def test_e03_asked_approval_is_one_event_and_the_run_goes_on(guarded: mesh.Client) -> None:
    """If the policy only asks, then the run succeeds, with one request, and result and run say what broke."""
    policy = {"name": "p", "tool_rules": [["deny", ["bash"]]], "on_violation": "request_approval"}
    result = guarded.run_once("tooling", "x", policy=policy)
    [asked] = [e for e in result.events if e.type == "tool_approval_requested"]
    assert asked.data == {
        "tool_name": "bash", "tool_call_id": "t1", "tool_input": {"command": "ls"}, "policy_name": "p",
        "violation_kind": "tool_denied",
    }
    assert result.policy is not None
    assert [v["kind"] for v in result.policy["violations"]] == ["tool_denied"]
    assert guarded.runs.get(result.run_id).metadata["policy"] == result.policy


@pytest.mark.parametrize("policy", [
    {"tool_rules": [["allow", []]]}, {"limits": {"max_total_tokens": 0}}, {"limits": {"max_tool_calls": 0}},
    {"tool_rules": [["allow", ["x"]], ["deny", ["x"]]]},
])
def test_e05_policy_that_allows_nothing_keeps_the_agent_from_starting(
    guarded: mesh.Client, tmp_path: Path, policy: dict[str, Any]
) -> None:
    """If nothing can be done under a policy, then the run fails and its agent never executed."""
    with pytest.raises(mesh.RunError) as caught:
        guarded.run_once("asking", str(tmp_path / "file"), policy=policy)
    assert caught.value.code == "policy_violation"
    assert not (tmp_path / "file").exists()


def test_e07_limit_on_an_unknown_cost_is_said_and_breaks_nothing(guarded: mesh.Client) -> None:
    """If nobody knows the price, then the run succeeds and its policy says that cost was not watched."""
    result = guarded.run_once("spending", "x", policy={"limits": {"max_cost_usd": 0.0001}})
    assert result.policy is not None
    assert result.policy["metadata"] == {"warnings": ["missing_cost_rates"]}


def test_e11_exceeded_budget_is_one_violation(guarded: mesh.Client) -> None:
    """If usage goes on above its limit under warn, then that is one event and the run succeeds."""
    policy = {"limits": {"max_total_tokens": 150}, "on_violation": "warn"}
    result = guarded.run_once("spending", "x", policy=policy)
    [violation] = [e for e in result.events if e.type == "policy_violation"]
    assert violation.data["details"]["actual"] == 200


def test_silent_agent_is_stopped_when_its_time_is_up(guarded: mesh.Client) -> None:
    """If an agent says nothing for longer than its policy allows, then the run fails by the timer."""
    with pytest.raises(mesh.RunError) as caught:
        guarded.run_once("silent", "x", policy={"limits": {"max_duration_ms": 50}}, timeout_s=20)
    assert caught.value.code == "policy_violation"


def test_tool_that_is_asked_for_first_never_runs_when_denied(guarded: mesh.Client, tmp_path: Path) -> None:
    """If an agent asks before it calls a tool that is denied, then the tool is not called."""
    with pytest.raises(mesh.RunError) as caught:
        guarded.run_once("asking", str(tmp_path / "file"), policy={
            "tool_rules": [["deny", ["Write"]]], "on_violation": "warn"})
    assert caught.value.code == "tool_permission_denied"
    assert not (tmp_path / "file").exists()


def test_command_that_a_policy_forbids_is_not_executed(guarded: mesh.Client, tmp_path: Path) -> None:
    """If a rule about arguments does not allow a command line, then the shell never starts it."""
    rule = ["allow", [{"tool": "bash", "args": {"command": ["echo *"]}}]]
    with pytest.raises(mesh.RunError) as caught:
        guarded.run_once("shell", f"touch {tmp_path}/file", policy={"tool_rules": [rule]})
    assert caught.value.code in ("policy_violation", "tool_permission_denied")
    assert not (tmp_path / "file").exists()
    assert guarded.run_once("shell", "echo hi", policy={"tool_rules": [rule]}).output["content"] == "hi\n"


def test_layers_of_policies_only_tighten(guarded: mesh.Client) -> None:
    """If a later layer allows more than an earlier one, then the earlier one holds."""
    policies = [{"limits": {"max_tool_calls": 5}, "tool_rules": [["deny", ["bash"]]]},
                {"limits": {"max_tool_calls": 50}, "tool_rules": [["allow", ["*"]]], "on_violation": "warn"}]
    with pytest.raises(mesh.RunError) as caught:
        guarded.run_once("tooling", "x", policies=policies)
    assert caught.value.code == "policy_violation"


@pytest.mark.parametrize(("policy", "code"), [
    ({"limits": {"max_total_tokens": -1}}, "validation_error"),
    ({"limit": {}}, "validation_error"),
    ("strict", "validation_error"),
    ({"approval_s": 0}, "validation_error"),
    ({"approval_default": "maybe"}, "validation_error"),
    ({"limits": [{"kind": "max_tool_calls", "most": 1, "scope": "tag:other"}]}, "validation_error"),
])
def test_policy_that_cannot_be_kept_is_refused_and_nothing_is_stored(
    guarded: mesh.Client, policy: Any, code: str
) -> None:
    """If a policy is wrong, or about a tag of others, then the call is refused."""
    session = guarded.sessions.start("echo")
    with pytest.raises(mesh.InvalidArgument) as caught:
        guarded.runs.submit(session.id, "x", policy=policy)
    assert caught.value.code == code
    assert list(guarded.sessions.runs(session.id)) == []
