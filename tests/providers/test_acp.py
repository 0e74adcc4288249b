"""``acp`` with a real agent process: files and terminals stay in the folder, sessions are resumed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from driving import Result, run

from mesh.providers import acp_client

pytest.importorskip("acp")
DENY = {"tool_rules": [["deny", ["write_file"]]], "on_violation": "warn"}
PROGRAM = Path(__file__).with_name("acp_agent.py")


def played(folder: Path, prompt: str, *, policy: dict[str, Any] | None = None, **more: Any) -> Result:
    table = {"provider": "acp", "program": sys.executable, "args": [str(PROGRAM), str(folder)],
             "cwd": str(folder / "app"), **more.pop("table", {})}
    (folder / "app").mkdir(exist_ok=True)
    policies = {"policies": [{"name": "p", **policy}]} if policy else {}
    return run({**table}, f"DO {prompt}", **policies, **more)


def said(result: Result) -> str:
    assert result.settle["status"] == "completed", result.settle
    return str(result.output["content"])


def test_files_inside_the_folder_are_read_and_outside_are_not(tmp_path: Path) -> None:
    """If an agent reads files, then those of its folder are given, and a link that leads out is refused."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "a.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "secret.txt").write_text("outside\nplum\n")
    (tmp_path / "app" / "link").symlink_to(tmp_path / "secret.txt")
    assert said(played(tmp_path, f"read {tmp_path}/app/a.txt")) == "two\n"
    for path in ("../secret.txt", f"{tmp_path}/app/link"):
        answer = said(played(tmp_path, f"read {path}"))
        assert "outside of the run's folder" in answer and "plum" not in answer


def test_files_are_written_inside_the_folder_and_only_as_the_policy_allows(tmp_path: Path) -> None:
    """If an agent writes a file, then it is written in its folder, and not when the policy forbids it."""
    assert said(played(tmp_path, "write new/b.txt")) == "wrote"
    assert (tmp_path / "app" / "new" / "b.txt").read_text() == "written"
    result = played(tmp_path, "write c.txt", policy=DENY)
    assert "write_file was not permitted" in said(result)
    assert not (tmp_path / "app" / "c.txt").exists()


def test_terminals_run_in_the_folder_and_end_with_the_run(tmp_path: Path) -> None:
    """If an agent runs commands, then they run in its folder, and none outlives the run."""
    assert said(played(tmp_path, "run pwd; exit 3")) == f"3 {tmp_path.resolve()}/app\n"
    assert said(played(tmp_path, "leave")) == "left"
    assert not [entry for entry in Path("/proc").glob("[0-9]*") if _sleeps(entry)]


def _sleeps(entry: Path) -> bool:
    try:
        return (entry / "cmdline").read_bytes() == b"sleep\x001000\x00" and b"acp" in (
            entry / "environ").read_bytes()
    except OSError:
        return False


def test_session_is_loaded_with_its_mode_and_its_history_is_not_said_again(tmp_path: Path) -> None:
    """If a session is resumed, then it is loaded, its mode is set anew, and old answers are no news."""
    result = played(tmp_path, "good", resume="acp-1", table={"mode": "ask"})
    assert said(result) == "hello"
    assert (tmp_path / "loaded").read_text() == "acp-1"
    assert (tmp_path / "modes").read_text() == "ask\n"


@pytest.mark.parametrize(("calls", "code"), [(3, None), (4, "limit_exceeded"), (40, "limit_exceeded")])
def test_calls_that_do_not_end_are_bounded(
    calls: int, code: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an agent begins more calls than it may have open, then the run fails, and says so."""
    monkeypatch.setattr(acp_client, "CALLS_MAX", 3)
    result = played(tmp_path, f"flood {calls}")
    assert result.types.count("tool_call_started") == 3
    assert (result.error or {}).get("code") == code, result.settle
    if code is None:
        assert said(result) == "hello"


def test_without_policy_what_it_asks_a_human_is_refused(tmp_path: Path) -> None:
    """If there is no policy and no full_auto, then an agent that asks is told no."""
    result = played(tmp_path, "tool")
    assert [t for t in result.types if t.startswith("tool_call_f")] == ["tool_call_failed"]
    assert not (tmp_path / "ran").exists()


def test_agent_that_is_logged_out_says_how_to_log_in(tmp_path: Path) -> None:
    """If an agent needs a login, then the run fails with that code and the ways that it offers."""
    result = played(tmp_path, "good", table={"env": {"LOGGED_OUT": "1"}})
    assert result.error["code"] == "provider_authentication_failed"
    assert "Log in with X" in result.error["message"]


@pytest.mark.parametrize("script", ["echo hello; echo '{\"a\": 1}'; cat > /dev/null", "exit 4", "sleep 1000"])
def test_program_that_is_no_agent_fails(tmp_path: Path, script: str) -> None:
    """If the program speaks something else, nothing, or is gone, then the run fails and says so."""
    table = {"program": "/bin/sh", "args": ["-c", script], "start_timeout_s": 0.5}
    result = played(tmp_path, "good", table=table, deadline_s=2)
    assert result.settle["status"] in ("failed", "timeout")
    if script == "exit 4":
        assert result.error["message"].startswith("sh said nothing")
    if script == "sleep 1000":
        assert result.error["code"] == "provider_timeout"
