"""``codex``: recorded turns become events; modes, resume and usage hold; what goes wrong has a name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from driving import Result, run
from stand_in import StandIn, recorded

from mesh.errors import ConfigError
from mesh.providers.codex import CodexProvider
from mesh.providers.kinds import Place

TURN = recorded("codex_turn.jsonl")
THREAD = TURN[0]["thread_id"]


@pytest.fixture
def program(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path, "codex").plays(TURN)


def table(program: StandIn, **more: Any) -> dict[str, Any]:
    return {"provider": "codex", "program": str(program.path), "cwd": str(program.folder), **more}


def turn(*items: dict[str, Any], usage: dict[str, int] | None = None) -> list[dict[str, Any]]:
    done = {"type": "turn.completed", "usage": usage or {"input_tokens": 5, "output_tokens": 2}}
    return [{"type": "thread.started", "thread_id": THREAD}, *items, done]


def said(text: str) -> dict[str, Any]:
    return {"type": "item.completed", "item": {"id": "item_9", "type": "agent_message", "text": text}}


def resumed(program: StandIn, *, before: dict[str, int] | None = None, **more: Any) -> Result:
    mine = {"provider_session_id": THREAD, **({"used_before": before} if before else {})}
    return run(
        table(program, **more), "go on", resume=THREAD, metadata={"provider_sessions": {"codex": mine}}
    )


def test_recorded_turn_becomes_the_events_of_a_run(program: StandIn) -> None:
    """If Codex runs a command and answers, then the log has call, result, answer and usage."""
    result = run(table(program), "do it")
    assert result.settle["status"] == "completed", result.settle
    assert result.output == {"content": "done here"}
    assert [t for t in result.types if t != "error_occurred"] == [
        "run_started", "tool_call_started", "tool_call_completed", "message_streamed",
        "token_usage_updated", "turn_completed", "message_received", "run_completed",
    ]
    call = result.data("tool_call_completed")[0]
    assert (call["tool_call_id"], call["tool_name"]) == ("item_1", "bash")
    assert call["tool_output"]["exit_code"] == 0
    assert "touch" in call["tool_input"]["command"]
    assert result.settle["token_usage"] == {
        "input_tokens": 120, "output_tokens": 20, "reasoning_output_tokens": 6, "cache_read_tokens": 80,
    }
    assert result.settle["provider_metadata"]["provider_session_id"] == THREAD


def test_prompt_goes_by_stdin_and_modes_by_arguments(program: StandIn) -> None:
    """If a run begins, then the prompt is no argument that a process list shows, and both modes are said."""
    run(table(program, sandbox="workspace-write", model="m1", args=["--ephemeral"]), "a secret plan")
    assert program.stdin == "a secret plan"
    assert program.args[:2] == ["exec", "-c"]
    modes = {'sandbox_mode="workspace-write"', 'approval_policy="never"'}
    assert modes | {"m1", "--ephemeral"} <= set(program.args)
    assert (program.folder / "cwd").read_text().strip() == os.path.realpath(program.folder)


def test_modes_are_said_again_at_a_resume(program: StandIn) -> None:
    """If a thread is resumed, then sandbox and approval mode are given anew, as for a new one."""
    result = resumed(program, sandbox="danger-full-access", approval_mode="untrusted")
    assert result.data("run_started")[0]["sandbox"] == "danger-full-access"
    assert program.args[:2] == ["exec", "resume"]
    assert program.args[-3:] == ["--", THREAD, "-"]
    assert {'sandbox_mode="danger-full-access"', 'approval_policy="untrusted"'} <= set(program.args)


@pytest.mark.parametrize("more", [
    {"args": ["--yolo"]}, {"args": ["--sandbox=danger-full-access"]}, {"config": {"sandbox_mode": "x"}},
])
def test_modes_said_in_another_way_are_refused(program: StandIn, more: dict[str, Any]) -> None:
    """If a table says a mode by an argument, which is unlike what is told, then the agent has a problem."""
    with pytest.raises(ConfigError, match="say it by sandbox"):
        CodexProvider(table(program, **more), Place(None, False, "a", None))  # type: ignore[arg-type]


def test_usage_of_a_resumed_thread_is_what_this_run_used(program: StandIn) -> None:
    """If Codex counts from the thread's beginning, then a run's usage is what came since the last one."""
    before = {"input_tokens": 150, "cached_input_tokens": 50, "output_tokens": 15}
    result = resumed(program, before=before)
    assert result.settle["token_usage"]["input_tokens"] == 20
    assert result.settle["token_usage"]["cache_read_tokens"] == 30
    assert result.settle["token_usage"]["output_tokens"] == 5
    assert result.settle["provider_metadata"]["used_before"]["input_tokens"] == 200


def test_tools_told_only_at_their_end_have_a_start(program: StandIn) -> None:
    """If a call is told only when it is done, then its start is written too."""
    items = [
        {"id": "i1", "type": "file_change", "status": "failed", "changes": [{"path": "a", "kind": "add"}]},
        {"id": "i2", "type": "web_search", "query": "mesh"},
        {"id": "i3", "type": "mcp_tool_call", "server": "db", "tool": "read", "arguments": {"q": 1},
         "result": {"content": []}, "status": "completed"},
        {"id": "i4", "type": "of_the_future", "status": "completed", "much": 1},
    ]
    program.plays(turn(*({"type": "item.completed", "item": item} for item in items), said("x")))
    result = run(table(program), "do it")
    assert [data["tool_name"] for data in result.data("tool_call_started")] == [
        "apply_patch", "web_search", "mcp__db__read", "of_the_future",
    ]
    assert [t for t in result.types if t.startswith("tool_call_f")] == ["tool_call_failed"]
    assert result.types.count("tool_call_completed") == 3


def test_unknown_messages_are_counted(program: StandIn) -> None:
    """If a newer Codex says what this version does not know, then the run goes on and counts it."""
    program.plays(turn({"type": "weather.changed"}, said("x")))
    result = run(table(program), "do it")
    assert result.data("run_completed")[0]["unknown_messages"] == 1


@pytest.mark.parametrize(("message", "code"), [
    ("unexpected status 401 Unauthorized: Incorrect API key provided", "provider_authentication_failed"),
    ("You've hit your usage limit. Try again later", "provider_quota_exceeded"),
    ("unexpected status 429 Too Many Requests", "provider_rate_limited"),
    ("stream disconnected before completion", "provider_error"),
])
def test_failed_turn_has_the_code_of_its_reason(program: StandIn, message: str, code: str) -> None:
    """If a turn fails, then the run fails with the code of the reason, and repeats Codex's own words."""
    program.plays([TURN[0], {"type": "turn.failed", "error": {"message": message}}], after="exit 1")
    result = run(table(program), "do it")
    assert (result.settle["status"], result.error["code"]) == ("failed", code)
    assert message in result.error["message"]
    assert result.error["provider_error"]["exit_code"] == 1
    if code == "provider_authentication_failed":
        assert "codex login" in result.error["message"]
