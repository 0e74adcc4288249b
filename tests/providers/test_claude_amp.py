"""``claude_code`` and ``amp``: recorded turns, limits, resume with usage, permission, what goes wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from driving import Result, run
from stand_in import StandIn, TalkingStandIn, recorded
from subject_programs import INIT, result

pytest.importorskip("claude_agent_sdk")
CLAUDE, AMP = recorded("claude_turn.jsonl"), recorded("amp_turn.jsonl")


@pytest.fixture
def claude(tmp_path: Path) -> TalkingStandIn:
    return TalkingStandIn(tmp_path, "claude").plays(CLAUDE)


@pytest.fixture
def amp(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path, "amp").plays(AMP)


def table(program: StandIn, **more: Any) -> dict[str, Any]:
    provider = "amp" if program.path.name == "amp" else "claude_code"
    return {"provider": provider, "program": str(program.path), "cwd": str(program.folder), **more}


def failed(result: Result, code: str) -> dict[str, Any]:
    assert (result.settle["status"], result.error["code"]) == ("failed", code), result.error
    return result.error


def test_recorded_turn_of_claude_becomes_the_events_of_a_run(claude: TalkingStandIn) -> None:
    """If Claude runs a command and answers, then the log has pieces, call, result, answer, usage, cost."""
    found = run(table(claude), "do it")
    assert found.output["content"] == "done here"
    assert [data["content"] for data in found.data("message_streamed")] == ["done ", "here"]
    [call] = found.data("tool_call_completed")
    assert (call["tool_name"], call["tool_output"]) == ("Bash", "hi")
    assert call["tool_input"]["command"] == "echo hi"
    assert found.settle["token_usage"] == {
        "input_tokens": 200, "output_tokens": 20, "cache_read_tokens": 80, "cache_creation_tokens": 10,
        "total_cost_usd": 0.001266,
    }
    assert found.data("run_completed")[0]["total_cost_usd"] == 0.001266
    assert found.settle["turn_count"] == 2
    assert found.settle["provider_metadata"]["model"] == CLAUDE[0]["model"]


def test_limits_and_modes_are_passed_through_at_each_start(claude: TalkingStandIn) -> None:
    """If table or call set limits and modes, then a first run and a resumed one are started with them."""
    own = table(claude, permission_mode="accept_edits", max_turns=3, allowed_tools=["Read", "Grep"])
    run(own, "do it", provider_opts={"max_budget_usd": 0.5, "max_turns": 2}, context={"system_prompt": "Hi"})
    run(own, "go on", resume=CLAUDE[0]["session_id"])
    wanted = ["--permission-mode=acceptEdits", "--allowedTools=Read,Grep"]
    first, second = "\n".join(claude.args).split("--output-format")[1:]
    assert all(word in first and word in second for word in wanted)
    assert "--max-turns=2" in first and "--max-budget-usd=0.5" in first and "--max-turns=3" in second
    assert "--append-system-prompt=Hi" in first and f"--resume={CLAUDE[0]['session_id']}" in second


@pytest.mark.parametrize(("policy", "budget"), [
    ({"limits": {"max_cost_usd": 0.2}}, "0.2"), ({"limits": {"max_cost_usd": 0.7}}, "0.5"),
    ({"limits": {"max_cost_usd": 0.2}, "on_violation": "warn"}, "0.5"),
])
def test_cost_budget_of_a_policy_is_claudes_own_limit(
    claude: TalkingStandIn, policy: dict[str, Any], budget: str
) -> None:
    """If a policy ends a run that costs too much, then Claude is told to stop there by itself; never later
    than the table says."""
    policies = [{"name": "p", "on_violation": "cancel", **policy}]
    found = run(table(claude, max_budget_usd=0.5), "do it", policies=policies)
    assert found.settle["status"] == "completed", found.settle
    assert [word for word in claude.args if "budget" in word] == [f"--max-budget-usd={budget}"]


def test_what_a_resumed_session_cost_before_is_no_part_of_the_budget(claude: TalkingStandIn) -> None:
    """If Claude counts from the session's beginning, then its limit is what is left beyond that."""
    policies = [{"name": "p", "on_violation": "cancel", "limits": {"max_cost_usd": 0.25}}]
    metadata = {"provider_sessions": {"claude_code": {"used_before": {"total_cost_usd": 0.5}}}}
    run(table(claude), "go on", policies=policies, resume=CLAUDE[0]["session_id"], metadata=metadata)
    assert [word for word in claude.args if "budget" in word] == ["--max-budget-usd=0.75"]


def test_cost_of_a_run_that_reached_its_budget_is_known(claude: TalkingStandIn) -> None:
    """If Claude stops at a policy's budget, then the cost is in the log, and the policy ended the run."""
    last = result("", subtype="error_max_budget_usd", is_error=True, total_cost_usd=0.21)
    policies = [{"name": "p", "on_violation": "cancel", "limits": {"max_cost_usd": 0.2}}]
    found = run(table(claude.plays([INIT, last, {"exit": 1}])), "do it", policies=policies)
    failed(found, "policy_violation")
    assert found.data("token_usage_updated")[-1]["total_cost_usd"] == 0.21


def test_cost_of_a_resumed_session_is_what_this_run_cost(claude: TalkingStandIn) -> None:
    """If Claude counts the cost from the session's beginning, then a run's cost is what came since."""
    before = {"used_before": {"total_cost_usd": 0.001}}
    metadata = {"provider_sessions": {"claude_code": before}}
    found = run(table(claude), "go on", resume=CLAUDE[0]["session_id"], metadata=metadata)
    assert found.data("run_completed")[0]["total_cost_usd"] == pytest.approx(0.000266)


@pytest.mark.parametrize(("last", "code", "word"), [
    (result("Please run /login", is_error=True), "provider_authentication_failed", "claude auth login"),
    (result("", subtype="error_max_turns", is_error=True), "limit_exceeded", "max_turns reached"),
    (result("", subtype="error_max_budget_usd", is_error=True), "limit_exceeded", "max_budget_usd reached"),
    (result("API Error: 529 Overloaded", is_error=True), "provider_rate_limited", "Overloaded"),
    (result("", subtype="error_during_execution", errors=["it broke"]), "provider_error", "it broke"),
])
def test_failed_result_has_the_code_of_its_reason(
    claude: TalkingStandIn, last: dict[str, Any], code: str, word: str
) -> None:
    """If Claude's last word is an error, then the run fails with the code of its reason."""
    claude.plays([INIT, last, {"exit": 1}])
    assert word in failed(run(table(claude), "hi"), code)["message"]


def test_claude_that_dies_before_its_first_word_fails_at_once(claude: TalkingStandIn) -> None:
    """If the program ends before it answers the SDK, then nobody waits for the SDK's own time limit."""
    claude.path.write_text("#!/bin/sh\necho 'Error: bad flag' >&2; exit 2\n")
    error = failed(run(table(claude), "hi"), "provider_error")
    assert error["message"] == "claude: Error: bad flag (exit code 2)"


def test_a_subagents_words_are_no_answer(claude: TalkingStandIn) -> None:
    """If a subagent speaks, then its words are not said, and its tools are."""
    call = {"type": "tool_use", "id": "t", "name": "Grep", "input": {}}
    content = [{"type": "text", "text": "inner"}, call]
    message = {"id": "m", "role": "assistant", "model": "m", "content": content}
    inner = {"type": "assistant", "parent_tool_use_id": "p", "message": message}
    found = run(table(claude.plays([INIT, inner, result("outer")])), "hi")
    assert found.output["content"] == "outer"
    assert found.data("tool_call_started")[0]["tool_name"] == "Grep"
    assert "inner" not in str(found.data("message_received"))


def test_recorded_turn_of_amp_becomes_the_events_of_a_run(amp: StandIn) -> None:
    """If Amp runs a command and answers, then the log has it, and cached tokens are counted once."""
    found = run(table(amp, permission_mode="full_auto", mode="high"), "how many files?")
    assert found.output["content"] == "Two."
    assert [data["content"] for data in found.data("message_received")] == ["I look.", "Two."]
    assert found.data("tool_call_completed")[0]["tool_output"] == "a\nb"
    assert found.settle["token_usage"] == {
        "input_tokens": 15, "output_tokens": 12, "cache_read_tokens": 25201, "cache_creation_tokens": 467,
    }
    assert found.settle["provider_metadata"]["provider_session_id"] == AMP[0]["session_id"]
    assert amp.args == ["--execute", "--stream-json", "--mode", "high", "--dangerously-allow-all"]
    assert amp.stdin == "how many files?"


def test_amp_thread_is_continued_with_its_modes(amp: StandIn) -> None:
    """If a thread is continued, then its id and the modes are said anew."""
    run(table(amp, permission_mode="full_auto"), "go on", resume=AMP[0]["session_id"])
    assert amp.args == [
        "threads", "continue", AMP[0]["session_id"], "--execute", "--stream-json", "--dangerously-allow-all",
    ]


def test_login_flow_of_amp_is_an_error_without_its_link(amp: StandIn) -> None:
    """If Amp begins a login on stdout and waits, then the run fails at once, and nobody reads its token."""
    flow = "No API key found. Starting login flow...\nhttps://x/login?authToken=30a87c915d8972f4a598c368"
    amp.plays(before=f"printf '%s\\n' '{flow}'; sleep 1000")
    error = failed(run(table(amp), "hi"), "provider_authentication_failed")
    assert "amp login" in error["message"]
    assert "30a87c" not in str(error)
