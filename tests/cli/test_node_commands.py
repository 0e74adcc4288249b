"""``up``, ``down``, ``doctor``, ``logs`` and ``bench`` as far as they need no running node."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from mesh.cli import bench_report, doctor, measure
from mesh.launch import address_file
from mesh.proc import start_time

Cli = Callable[..., Result]
FakeClient = Any  # the fixture's class, tests/cli/conftest.py


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_up_on_a_port_in_use_is_one_line(cli: Cli, tmp_path: Path, taken_port: int) -> None:
    """If the port is in use, then one line names it, a hint says what to do, and nothing starts."""
    done = cli("up", "--port", str(taken_port), "--data-dir", str(tmp_path / "d"))
    first, hint = done.stderr.splitlines()
    assert done.exit_code == 2
    assert f"127.0.0.1:{taken_port}" in first and "in use" in first and "--port" in hint


def test_up_on_a_folder_that_cannot_be_made_is_one_line(cli: Cli, tmp_path: Path) -> None:
    """If the data folder cannot be made, then one line names it."""
    (tmp_path / "file").write_text("")
    done = cli("up", "--port", "0", "--data-dir", str(tmp_path / "file" / "d"))
    assert done.exit_code == 2 and str(tmp_path / "file" / "d") in done.stderr.splitlines()[0]


def test_up_with_a_broken_config_is_one_line(cli: Cli, tmp_path: Path) -> None:
    """If the config is wrong, then file, key and nearest name are said and nothing starts."""
    file = tmp_path / "c.toml"
    file.write_text("[node]\nprt = 1\n")
    done = cli("up", "--config", str(file))
    line = done.stderr.splitlines()[0]
    assert done.exit_code == 2 and str(file) in line and "node.prt" in line and "port" in line


def test_up_twice_says_who_runs(cli: Cli, tmp_path: Path) -> None:
    """If a node of this name runs, then its pid and address are said; the exit code is 1."""
    file = address_file("taken")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        json.dumps(
            {
                "name": "taken",
                "pid": os.getpid(),
                "start_time": start_time(os.getpid()),
                "address": "tcp://x:1",
                "data_dir": str(tmp_path),
            }
        )
    )
    try:
        done = cli("up", "--name", "taken", "--port", "0", "--data-dir", str(tmp_path / "other"))
    finally:
        file.unlink()
    assert done.exit_code == 1 and f"pid {os.getpid()}, tcp://x:1" in done.stderr


@pytest.mark.parametrize(
    "arguments", [("--port", "70000"), ("--partitions", "0"), ("--runners", "x"), ("--prt", "1")]
)
def test_up_with_a_wrong_option_is_a_usage_error(cli: Cli, arguments: tuple[str, ...]) -> None:
    """If an option's value cannot be, then the exit code is 2."""
    assert cli("up", *arguments).exit_code == 2


def test_down_without_a_node_is_no_node(cli: Cli) -> None:
    """If no node runs, then the exit code is 3."""
    done = cli("down", "--name", "nobody")
    assert done.exit_code == 3 and "nobody" in done.stderr


def test_doctor_refuses_an_old_python() -> None:
    """If Python is too old, then the finding says what to install."""
    found = doctor.python_version((3, 10, 1))
    assert found.state == "fail" and "3.11" in found.fix


def test_doctor_refuses_an_old_library() -> None:
    """If SQLite has the corruption bug, then the finding fails; the fixed version passes."""
    assert doctor.at_least("sqlite", "3.40.1", doctor.SQLITE_MIN, "fix").state == "fail"
    assert doctor.at_least("sqlite", "3.51.3", doctor.SQLITE_MIN, "fix").state == "ok"


def test_doctor_names_a_data_folder_below_a_file(tmp_path: Path) -> None:
    """If the data folder cannot exist, then the finding says what stands in its way."""
    (tmp_path / "file").write_text("")
    found = doctor.data_folder(tmp_path / "file" / "d")
    assert found.state == "fail" and "--data-dir" in found.fix


def test_doctor_names_a_runtime_folder_that_is_too_long_or_open(tmp_path: Path) -> None:
    """If sockets cannot live there, or others could write there, then the finding says so."""
    assert doctor.runtime_folder(Path("/tmp") / ("x" * 120)).state == "fail"
    folder = Path(os.environ["MESH_RUNTIME_DIR"])
    folder.chmod(0o777)
    try:
        assert doctor.runtime_folder(folder).state == "warn"
    finally:
        folder.chmod(0o700)
    assert doctor.runtime_folder(folder).state == "ok"


def test_doctor_stops_at_a_broken_config(cli: Cli, tmp_path: Path) -> None:
    """If the config is wrong, then doctor says so, and exits with 1."""
    file = tmp_path / "c.toml"
    file.write_text("[nod]\n")
    done = cli("doctor", "--config", str(file), "-o", "json")
    report = json.loads(done.stdout)
    assert done.exit_code == 1 and report["ok"] is False
    assert report["checks"][-1]["name"] == "config" and report["checks"][-1]["fix"]


def test_doctor_without_room_for_a_node_of_its_own_says_so(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no temporary folder can be made, then that is a check that fails, beside those that were made."""
    monkeypatch.setenv("MESH_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("MESH_ADDRESS", raising=False)
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: (_ for _ in ()).throw(OSError(28, "No space left")))
    done = cli("doctor", "-o", "json")
    last = json.loads(done.stdout)["checks"][-1]
    assert done.exit_code == 1 and (last["name"], last["state"]) == ("round trip", "fail")
    assert "No space left" in last["text"]


@pytest.mark.parametrize(
    ("whose", "problem", "state", "part"),
    [
        (doctor.UP, "", "ok", "1 loaded by the node that is up"),
        (doctor.UP, "Traceback\nNameError: x", "warn", "mesh agent reload"),
        ("a node of its own", "NameError: x", "warn", "mesh doctor"),
    ],
)
def test_doctor_says_whose_agents_are_loaded_and_what_to_do(
    fake: FakeClient, whose: str, problem: str, state: str, part: str
) -> None:
    """If agents were loaded, or not, then doctor says by which node; one that stays can load them anew."""
    fake.answers["agents.list"] = [{"name": "a", "problem": problem}]
    found = doctor._agents(fake, whose)
    assert found.state == state and part in (found.fix or found.text)
    assert "Traceback" not in found.text


def _logs(folder: Path) -> Path:
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "router.log").write_text("r1\nr2\n")
    (folder / "logs" / "runner-0.log.1").write_text("old\n")
    (folder / "logs" / "runner-0.log").write_text("new\n")
    return folder


def test_logs_of_one_process_begin_with_the_older_file(cli: Cli, tmp_path: Path) -> None:
    """If a log was rotated, then its older part comes first."""
    assert cli("logs", "runner-0", "--data-dir", str(_logs(tmp_path))).stdout == "old\nnew\n"


def test_logs_of_all_processes_stand_in_the_order_of_their_times(cli: Cli, tmp_path: Path) -> None:
    """If two processes wrote in turns, then their latest lines are shown in that order."""
    folder = tmp_path / "logs"
    folder.mkdir()
    at = "2026-11-22T01:00:0{}.000Z {}\n".format
    (folder / "router.log").write_text(at(1, "r1") + "  more of it\n" + at(5, "r5"))
    (folder / "runner-0.log").write_text(at(2, "a2") + at(4, "a4"))
    shown = cli("logs", "-n", "4", "--data-dir", str(tmp_path)).stdout
    assert [line.split()[-1] for line in shown.splitlines()] == ["it", "a2", "a4", "r5"]


def test_logs_of_all_processes_name_each_line(cli: Cli, tmp_path: Path) -> None:
    """If no process is named, then each line says whose it is; -n keeps the last lines."""
    assert (
        cli("logs", "-n", "2", "--data-dir", str(_logs(tmp_path))).stdout == "runner-0: old\nrunner-0: new\n"
    )


def test_logs_as_json_lines(cli: Cli, tmp_path: Path) -> None:
    """If JSON is wanted, then each line is one document."""
    done = cli("logs", "router", "-o", "json", "--data-dir", str(_logs(tmp_path)))
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"log": "router", "line": "r1"},
        {"log": "router", "line": "r2"},
    ]


def test_logs_of_a_session_are_the_lines_marked_with_it(cli: Cli, tmp_path: Path) -> None:
    """If a session is named, then only what its agent printed is shown."""
    file = _logs(tmp_path) / "logs" / "runner-0.log"
    file.write_text("[s1 run_a] mine\n[s12 run_b] another's\nnobody's\n")
    assert cli("logs", "--session", "s1", "--data-dir", str(tmp_path)).stdout == "[s1 run_a] mine\n"


def test_logs_of_nobody_name_those_there_are(cli: Cli, tmp_path: Path) -> None:
    """If there is no such log, then the exit code is 4 and the existing ones are named."""
    done = cli("logs", "runner-9", "--data-dir", str(_logs(tmp_path)))
    assert done.exit_code == 4 and "router, runner-0" in done.stderr


def test_followed_log_goes_on_and_begins_anew(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a followed file grows, is cut, and Ctrl-C comes, then each new line was shown once."""
    file = _logs(tmp_path) / "logs" / "router.log"

    def steps() -> Iterator[None]:
        with file.open("a") as log:
            log.write("r3\nr4 half")
        yield
        with file.open("a") as log:
            log.write(" done\n")
        yield
        file.write_text("a\n")
        yield

    todo = steps()

    def step(_: float) -> None:
        if next(todo, "end") == "end":
            raise KeyboardInterrupt

    monkeypatch.setattr("mesh.cli.logs.time.sleep", step)
    assert (
        cli("logs", "router", "-n", "1", "-f", "--data-dir", str(tmp_path)).stdout
        == "r2\nr3\nr4 half done\na\n"
    )


def test_percentile_of_sorted_values() -> None:
    """If values are sorted, then the share below is found, and the last one is the end."""
    values = [float(i) for i in range(100)]
    assert (
        measure.percentile(values, 0.5),
        measure.percentile(values, 0.99),
        measure.percentile(values, 1),
    ) == (50, 99, 99)


def test_ratios_compare_figures_of_one_run() -> None:
    """If one call takes 100 us, then 20 000 a second are twice its rate."""
    figures = [
        measure.Figure("routes.get, one by one, p50", 100.0, "us", {}),
        measure.Figure("routes.get, concurrent", 2e4, "/s", {}),
    ]
    assert bench_report.ratios(figures) == {"routes.get, concurrent / one by one": 2.0}


def test_ratios_without_a_base_are_none() -> None:
    """If nothing was measured to compare with, then there is no ratio."""
    assert bench_report.ratios([measure.Figure("x", 1.0, "/s", {})]) == {}


def test_machine_says_what_it_was_measured_on() -> None:
    """If a report is read later, then it names CPUs and Python."""
    facts: dict[str, Any] = bench_report.machine()
    assert facts["cpus"] and facts["python"]
