"""The real Claude Code (the SDK brings it along) and the real Codex (from PATH; a build machine installs it),
against a scripted server: what recordings cannot show."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from driving import Result, run
from scripted import Step, Threaded, call, end, text, use

from mesh.core.message import Message, Role

COMMAND = "echo written > made.txt"
#: One red dot.
IMAGE = {"type": "image", "media_type": "image/png", "data":
         "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="}
CODEX = "@openai/codex@^0.169"


def _claude(body: dict[str, Any]) -> list[Step]:
    if "tool_result" in json.dumps(body["messages"]) or not body.get("tools"):
        return [text("do"), text("ne"), use(7, 3), end()]
    given = json.dumps({"command": COMMAND, "description": "x"})
    return [call("toolu_1", "Bash", given), use(7, 3), end("tool_use")]


def _codex(body: dict[str, Any]) -> list[Step]:
    if body["input"][-1].get("type") == "function_call_output":
        return [text("done"), use(7, 3), end()]
    return [call("call_1", "exec_command", json.dumps({"cmd": COMMAND})), use(7, 3), end("tool_use")]


@pytest.fixture
def server() -> Iterator[Threaded]:
    with Threaded({"claude-sonnet-4-5": _claude, "gpt-5": _codex}) as started:
        yield started


def claude(server: Threaded, folder: Path, **more: Any) -> dict[str, Any]:
    pytest.importorskip("claude_agent_sdk")
    env = {"HOME": str(folder), "ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_API_KEY": "k", "IS_SANDBOX": "1",
           "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    return {"provider": "claude_code", "cwd": str(folder), "env": env, "model": "claude-sonnet-4-5",
            "setting_sources": [], **more}


def own_id(result: Result) -> str:
    assert result.settle["status"] == "completed", result.settle
    return str(result.settle["provider_metadata"]["provider_session_id"])


def policy(effect: str) -> list[dict[str, Any]]:
    return [{"name": "p", "tool_rules": [[effect, ["bash"]]], "on_violation": "warn"}]


def test_real_claude_runs_no_tool_that_a_policy_forbids(
    server: Threaded, tmp_path: Path
) -> None:
    """If a policy forbids a tool that Claude's own modes and rules allow, then it does not run."""
    own = claude(server, tmp_path, permission_mode="full_auto", allowed_tools=["Bash"])
    first = run(own, "go", policies=policy("deny"))
    again = run(own, "go on", policies=policy("deny"), resume=own_id(first))
    assert own_id(again) == own_id(first)
    assert [data["tool_name"] for data in first.data("tool_call_failed")] == ["Bash"]
    assert not (tmp_path / "made.txt").exists()


def test_real_claude_runs_a_tool_that_a_policy_allows(server: Threaded, tmp_path: Path) -> None:
    """If a policy allows a tool that Claude would ask a human for, then it runs. An image is shown to it."""
    shown = {"messages": [{"role": "user", "content": [{"type": "text", "text": "go"}, IMAGE]}]}
    result = run(claude(server, tmp_path), shown, policies=policy("allow"))
    assert IMAGE["data"] in json.dumps(server.requests[-1].body["messages"])
    assert result.types.count("tool_call_completed") == 1
    assert (tmp_path / "made.txt").read_text() == "written\n"
    assert result.output["content"] == "done"


@pytest.fixture
def codex(tmp_path: Path) -> str:
    """The program."""
    found = shutil.which("codex")
    if found is None and os.environ.get("CI") and shutil.which("npm"):
        install = ["npm", "install", "--no-fund", "--no-audit", "--prefix", str(tmp_path / "npm"), CODEX]
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(install, check=False, capture_output=True, timeout=60)
        found = shutil.which(str(tmp_path / "npm/node_modules/.bin/codex"))
    if found is None:
        pytest.skip("needs codex: npm install -g @openai/codex")
    return found


def codex_of(server: Threaded, folder: Path, program: str) -> dict[str, Any]:
    provider = {"name": "m", "base_url": f"{server.url}/v1", "wire_api": "responses"}
    return {"provider": "codex", "program": program, "model": "gpt-5", "cwd": str(folder),
            "env": {"HOME": str(folder / "home")},
            "config": {"model_provider": "m", "model_providers": {"m": provider}}}


def test_real_codex_keeps_its_sandbox_and_counts_apart_when_resumed(
    server: Threaded, tmp_path: Path, codex: str
) -> None:
    """If a Codex thread is resumed, then its sandbox still holds, and the run's usage is its own. An image of
    its prompt is shown to the model."""
    home, app = tmp_path / "home", tmp_path / "app"
    home.mkdir()
    app.mkdir()
    own = {**codex_of(server, tmp_path, codex), "cwd": str(app)}
    shown = {"messages": [{"role": "user", "content": [{"type": "text", "text": "go"}, IMAGE]}]}
    first = run(own, shown)
    assert IMAGE["data"][:40] in json.dumps(server.requests[0].body["input"])
    kept = {"used_before": first.settle["provider_metadata"]["used_before"]}
    again = run(own, "go on", resume=own_id(first), metadata={"provider_sessions": {"codex": kept}})
    assert own_id(again) == own_id(first)
    assert not (app / "made.txt").exists()
    assert again.settle["token_usage"]["output_tokens"] == first.settle["token_usage"]["output_tokens"]
    freed = run({**own, "sandbox": "danger-full-access"}, "go on", resume=own_id(first))
    assert own_id(freed) == own_id(first)
    assert (app / "made.txt").exists()


UNKNOWN = "01990000-0000-7000-8000-000000000000"


def test_real_programs_that_do_not_know_a_session_are_told_the_past(
    server: Threaded, tmp_path: Path, codex: str
) -> None:
    """If Claude or Codex refuses to resume a session, then the run goes on, and is told the conversation."""
    past = (Message(Role.USER, "the word is marmalade"),)
    (tmp_path / "home").mkdir()
    for own in (claude(server, tmp_path), codex_of(server, tmp_path, codex)):
        result = run(own, "go", resume=UNKNOWN, past=past)
        assert result.settle["status"] == "completed", result.settle
        assert own_id(result) != UNKNOWN
        assert "marmalade" in json.dumps(server.requests[-1].body)
