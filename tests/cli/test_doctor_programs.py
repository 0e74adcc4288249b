"""``mesh doctor`` on the programs of agents."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.cli.doctor_programs import programs


def script(folder: Path, name: str, body: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_missing_program_is_a_warning_that_says_what_to_do() -> None:
    """If an agent's program is not there, then doctor says how to install it and how to log in."""
    [check] = programs({"coder": {"provider": "codex", "program": "no-such-x"}, "sh": {"provider": "shell"}})
    assert (check.name, check.state, check.text) == ("agent coder", "warn", "no-such-x is not installed")
    assert check.fix == (
        "npm install -g @openai/codex; then log in: codex login (or set CODEX_API_KEY)"
    )


@pytest.mark.parametrize(("body", "state"), [('test "$*" = "login status"', "ok"), ("exit 1", "warn")])
def test_program_is_asked_whether_it_is_logged_in(tmp_path: Path, body: str, state: str) -> None:
    """If a program says by its exit code that nobody is logged in, then doctor says how to."""
    [check] = programs({"coder": {"provider": "codex", "program": script(tmp_path, "codex", body)}})
    assert check.state == state
    assert ("codex login" in check.fix) == (state == "warn")


def test_program_that_cannot_say_is_only_found(tmp_path: Path) -> None:
    """If a program has no way to say whether it is logged in, then it is found, with how to log in."""
    [check] = programs({"amp": {"provider": "amp", "program": script(tmp_path, "amp", "exit 1")}})
    assert check.state == "ok"
    assert "amp login" in check.text


@pytest.mark.parametrize(
    ("env", "state", "text"),
    [
        ({"KEY": "env:DOCTOR_KEY"}, "ok", "logged in"),
        ({"KEY": "env:DOCTOR_NONE"}, "warn", "DOCTOR_NONE is not set"),
        ({"KEY": 1}, "warn", "expected a table of texts"),
    ],
)
def test_program_is_asked_with_the_variables_of_its_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, object], state: str, text: str
) -> None:
    """If an agent's table has variables, then its program is asked with what they stand for."""
    monkeypatch.setenv("DOCTOR_KEY", "k1")
    program = script(tmp_path, "codex", 'test "$KEY" = k1')
    [check] = programs({"coder": {"provider": "codex", "program": program, "env": env}})
    assert check.state == state and text in check.text
