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

COMMAND = "echo written > made.txt"
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
    """If a policy allows a tool that Claude would ask a human for, then it runs."""
    result = run(claude(server, tmp_path), "go", policies=policy("allow"))
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


def test_real_codex_keeps_its_sandbox_and_counts_apart_when_resumed(
    server: Threaded, tmp_path: Path, codex: str
) -> None:
    """If a Codex thread is resumed, then its sandbox still holds, and the run's usage is its own."""
    home, app = tmp_path / "home", tmp_path / "app"
    home.mkdir()
    app.mkdir()
    provider = {"name": "m", "base_url": f"{server.url}/v1", "wire_api": "responses"}
    own = {"provider": "codex", "program": codex, "model": "gpt-5", "cwd": str(app),
           "env": {"HOME": str(home)},
           "config": {"model_provider": "m", "model_providers": {"m": provider}}}
    first = run(own, "go")
    kept = {"used_before": first.settle["provider_metadata"]["used_before"]}
    again = run(own, "go on", resume=own_id(first), metadata={"provider_sessions": {"codex": kept}})
    assert own_id(again) == own_id(first)
    assert not (app / "made.txt").exists()
    assert again.settle["token_usage"]["output_tokens"] == first.settle["token_usage"]["output_tokens"]
    freed = run({**own, "sandbox": "danger-full-access"}, "go on", resume=own_id(first))
    assert own_id(freed) == own_id(first)
    assert (app / "made.txt").exists()
