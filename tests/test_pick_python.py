"""Which interpreter ``bin/mesh`` makes its environment with."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "bin" / "_pick.py"

#: What each interpreter of a made-up machine says: version, real path, the time of one round in us.
MACHINE = {
    "python3": ([3, 12], "/opt/python3.12", 1000),
    "same": ([3, 12], "/opt/python3.12", 10),
    "fast": ([3, 12], "/usr/bin/python3.12", 700),
    "faster": ([3, 13], "/usr/bin/python3.13", 600),
    "equal": ([3, 13], "/usr/local/bin/python3.13", 950),
    "old": ([3, 11], "/usr/bin/python3.11", 500),
    "/usr/bin/python3": ([3, 12], "/usr/bin/python3.12", 700),
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("pick_python", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    paths = {path: took_us for _, path, took_us in MACHINE.values() if took_us > 10}

    def ask(command: str, argument: str) -> str:
        if argument == "time":
            return str(paths.get(command, ""))
        version, path, _ = MACHINE.get(command, ([], "", 0))
        return json.dumps([version, path]) if path else ""

    monkeypatch.setattr(module, "ask", ask)
    return module


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([], "python3"),
        (["same"], "python3"),
        (["equal"], "python3"),
        (["old"], "python3"),
        (["gone"], "python3"),
        (["fast"], "/usr/bin/python3.12"),
        (["faster", "fast"], "/usr/bin/python3.13"),
        (["gone", "old", "equal", "fast", "faster"], "/usr/bin/python3.13"),
    ],
)
def test_the_first_is_kept_unless_another_is_clearly_faster_and_no_older(
    machine: ModuleType, others: list[str], chosen: str
) -> None:
    """If another interpreter is clearly faster and no older, then it is taken; else the first one."""
    assert machine.pick("python3", others) == chosen


def test_taking_another_one_says_so(machine: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """If another interpreter is taken, then a line says which, why, and how to keep the first one."""
    machine.pick("python3", ["fast"])
    assert capsys.readouterr().err == (
        "mesh: takes /usr/bin/python3.12, which needs 70% of the time of python3 (/opt/python3.12); "
        "to have that one, remove .venv and set MESH_PYTHON=python3\n"
    )


@pytest.mark.parametrize(("platform", "chosen"), [("darwin", "python3"), ("linux", "/usr/bin/python3.12")])
def test_apples_stand_in_is_not_asked(
    machine: ModuleType, monkeypatch: pytest.MonkeyPatch, platform: str, chosen: str
) -> None:
    """If this is a Mac, then /usr/bin/python3 is left alone: it may open a dialog."""
    monkeypatch.setattr(sys, "platform", platform)
    assert machine.pick("python3", ["/usr/bin/python3"]) == chosen


def test_environment_whose_interpreter_was_removed_is_not_current(tmp_path: Path) -> None:
    """If the interpreter of the environment is gone, then the environment is made anew; else it is kept."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    words = 'root=$1; . "$2"; stamp_text >"$root/.venv/.installed-"; is_current ""'
    ask = ["sh", "-c", words, "sh", str(tmp_path), str(SCRIPT.with_name("_env.sh"))]
    python.symlink_to(sys.executable)
    assert subprocess.run(ask, check=False).returncode == 0
    python.unlink()
    python.symlink_to(tmp_path / "gone")
    assert subprocess.run(ask, check=False).returncode == 1


def test_a_first_one_that_cannot_answer_is_left_to_who_makes_the_environment(machine: ModuleType) -> None:
    """If the first interpreter cannot make environments, then it is not replaced in silence."""
    assert machine.pick("gone", ["fast"]) == "gone"


def test_a_real_interpreter_is_timed_and_named() -> None:
    """If the script is run by hand, then it prints one command that can be run."""
    words = [sys.executable, SCRIPT, sys.executable, "/no/such/python"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{sys.executable}\n", "")
    assert float(subprocess.run([sys.executable, SCRIPT, "time"], capture_output=True, check=True).stdout) > 0
