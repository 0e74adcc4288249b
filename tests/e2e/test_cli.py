"""The command line against real nodes."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.launch import find_node

pytestmark = pytest.mark.e2e
MESH = [sys.executable, "-m", "mesh"]
NAME = "cli-test"
#: Nothing here takes so long; it only turns a hang into a failure.
PATIENCE_S = 30.0
BEGUN: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def nothing_goes_on() -> Iterator[None]:
    """If a test fails in the middle, then the commands it began end all the same."""
    yield
    while BEGUN:
        process = BEGUN.pop()
        process.kill()
        process.communicate()


def _environ(**more: str) -> dict[str, str]:
    return {
        k: v for k, v in os.environ.items() if not k.startswith("MESH_") or k == "MESH_RUNTIME_DIR"
    } | more


def mesh(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*MESH, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=_environ(**more),
        check=False,
    )


def begin(*arguments: str, **more: str) -> subprocess.Popen[bytes]:
    """Start a command whose output is read while it runs."""
    process = subprocess.Popen(
        [*MESH, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environ(**more)
    )
    BEGUN.append(process)
    return process


def read_until(process: subprocess.Popen[bytes], wanted: bytes) -> bytes:
    """Read the output until it holds this text; fail if it ends or takes for ever."""
    assert process.stdout is not None
    seen, until_s = b"", time.monotonic() + PATIENCE_S
    while wanted not in seen:
        assert select.select([process.stdout], [], [], until_s - time.monotonic())[0], f"only {seen!r}"
        chunk = os.read(process.stdout.fileno(), 65536)
        assert chunk, f"ended after {seen!r}, stderr {process.stderr.read() if process.stderr else b''!r}"
        seen += chunk
    return seen


def interrupt(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """Press Ctrl-C and wait for the end."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out.decode(), err.decode()


def eventually(condition: Callable[[], Any]) -> Any:
    """Wait for a condition."""
    until_s = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < until_s
        time.sleep(0.01)
    return value


@pytest.fixture(scope="module")
def node(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """A node started by ``mesh up --detach``; calling the fixture runs a command on it."""
    data = tmp_path_factory.mktemp("node")
    started = mesh("up", "--detach", "--port", "0", "--name", NAME, "--data-dir", str(data), "-o", "json")
    assert started.returncode == 0, started.stderr
    info = json.loads(started.stdout)
    assert info["name"] == NAME and info["address"].startswith("tcp://127.0.0.1:")
    try:
        yield lambda *arguments: mesh(*arguments, MESH_NODE_NAME=NAME)
    finally:
        down = mesh("down", "--name", NAME, "-o", "json")
        assert json.loads(down.stdout)["orderly"] is True
        assert find_node(NAME) is None


def test_status_shows_every_process(node: Any) -> None:
    """If the node is asked, then router, partitions and runner are there and ready."""
    rows = [line.split("\t") for line in node("status").stdout.splitlines()]
    assert [(row[0], row[1]) for row in rows] == [
        ("router", "ready"),
        ("partition-0", "ready"),
        ("partition-1", "ready"),
        ("runner-0", "ready"),
    ]


def test_second_up_in_the_same_folder_is_one_line(node: Any) -> None:
    """If a node runs on this data folder, then a second one says so and does not start."""
    data = json.loads(node("status", "-o", "json").stdout)["data_dir"]
    done = mesh("up", "--port", "0", "--name", "another", "--data-dir", data)
    assert done.returncode == 1 and "already running" in done.stderr.splitlines()[0]


def test_routes_from_set_to_delete(node: Any) -> None:
    """If a route is stored, then it is found, listed, resolved from, and gone after delete."""
    key = "telegram:bot1:room42"
    assert node("route", "set", key, "room9", "--field", "x:=1").returncode == 0
    assert json.loads(node("route", "get", key, "-o", "json").stdout)["route"] == {
        "external_room_id": "room9",
        "x": 1,
    }
    assert node("route", "resolve", key).stdout == "room9\n"
    assert node("route", "list", "--bridge", "bot1").stdout.startswith(f"{key}\troom9\t")
    assert node("route", "delete", key).returncode == 0
    gone = node("route", "get", key)
    assert gone.returncode == 4 and len(gone.stderr.splitlines()) <= 2


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (("route", "get", "nokey"), 2),
        (("route", "set", "a:b:c", "r", "--ttl-ms", "0"), 2),
        (("session", "show", "nobody"), 4),
        (("session", "start", "no-such-agent"), 4),
        (("partition", "restart", "99"), None),
    ],
)
def test_refusals_are_one_line_with_a_code(
    node: Any, arguments: tuple[str, ...], exit_code: int | None
) -> None:
    """If the node refuses, then stderr begins with the error, there is no traceback, the code is stable."""
    done = node(*arguments)
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert done.returncode == exit_code if exit_code is not None else done.returncode in (1, 2, 4)


def test_session_prompt_waits_and_streams(node: Any) -> None:
    """If a session is prompted with --wait, then the answer is the output, and its log has it all."""
    session = node("session", "start", "shell").stdout.strip()
    assert node("session", "prompt", session, "echo one; echo two", "--wait").stdout == "one\ntwo\n"
    types = [
        json.loads(line)["type"]
        for line in node("session", "events", session, "-o", "json").stdout.splitlines()
    ]
    assert types[:2] == ["session_created", "session_started"] and types[-1] == "run_completed"
    shown = json.loads(node("session", "show", session, "-o", "json").stdout)
    assert shown["status"] == "active" and [run["status"] for run in shown["runs"]] == ["completed"]


def test_attach_detaches_and_resumes(node: Any) -> None:
    """If Ctrl-C detaches from a session, then its run goes on, and the resume line shows the rest."""
    session = node("session", "start", "shell").stdout.strip()
    assert node("session", "prompt", session, "echo first; sleep 2; echo second").returncode == 0
    follower = begin("session", "attach", session, "--after", "0", MESH_NODE_NAME=NAME)
    read_until(follower, b"\nfirst\n")
    code, _, err = interrupt(follower)
    assert code == 0 and f"mesh session attach {session} --after " in err
    after = err.strip().rpartition(" ")[2]
    again = begin("session", "attach", session, "--after", after, MESH_NODE_NAME=NAME)
    seen = read_until(again, b"run_completed")
    assert b"second\n" in seen and b"\nfirst\n" not in seen
    assert interrupt(again)[0] == 0


def test_stop_makes_a_prompt_fail_and_resume_mends_it(node: Any) -> None:
    """If a session is stopped, then prompts are refused with a hint until it is resumed."""
    session = node("session", "start", "echo").stdout.strip()
    assert node("session", "stop", session).returncode == 0
    refused = node("session", "prompt", session, "hi")
    assert refused.returncode == 1 and "session_paused" in refused.stderr and "resume" in refused.stderr
    assert node("session", "resume", session).returncode == 0
    assert node("session", "prompt", session, "hi", "--wait").returncode == 0


def test_listen_hears_a_session_start(node: Any) -> None:
    """If a listener is live, then a session's start reaches it."""
    listener = begin("listen", "lifecycle.started.", "-n", "1", "-o", "json", MESH_NODE_NAME=NAME)
    sessions = []

    def heard() -> bool:
        sessions.append(node("session", "start", "echo").stdout.strip())
        return listener.poll() is not None

    eventually(heard)
    out, err = listener.communicate()
    assert listener.returncode == 0, err
    note = json.loads(out)
    assert (
        note["topic"].startswith("lifecycle.started.")
        and note["data"]["session_id"] in sessions
        and note["cursor"]
    )


def test_killed_partition_comes_back_and_its_cause_is_shown(node: Any) -> None:
    """If a partition is killed, then it answers again and status names the signal."""
    before = json.loads(node("partition", "list", "-o", "json").stdout)["items"][0]
    os.kill(before["pid"], signal.SIGKILL)

    def back() -> dict[str, Any] | None:
        now = json.loads(node("partition", "list", "-o", "json").stdout)["items"][0]
        return now if now["state"] == "ready" and now["pid"] not in (None, before["pid"]) else None

    now = eventually(back)
    assert now["epoch"] > before["epoch"] and now["restarts"] >= 1
    row = next(line for line in node("status").stdout.splitlines() if line.startswith("partition-0"))
    assert "killed by SIGKILL" in row


def test_doctor_finds_all_well(node: Any) -> None:
    """If everything is there, then doctor says so, measures a round trip and asks the node for its agents."""
    report = json.loads(node("doctor", "-o", "json").stdout)
    assert report["ok"] is True, report
    assert [c["name"] for c in report["checks"]][-2:] == ["round trip", "agents"]


def test_run_with_a_config_has_a_node_of_its_own(node: Any, tmp_path: Path) -> None:
    """If a config is given, then its agents are there although a node is up that knows nothing of them; who
    forgets to give it is told where the agent is, and an address beside it is refused."""
    config = tmp_path / "mesh.toml"
    config.write_text('[agents.mine]\nprovider = "echo"\n')
    assert mesh("run", "--config", str(config), "mine", "hi", MESH_NODE_NAME=NAME).stdout == "hi"
    forgot = mesh("run", "mine", "hi", MESH_NODE_NAME=NAME, MESH_CONFIG=str(config))
    assert forgot.returncode == 4 and f"try --config {config}" in forgot.stderr
    both = mesh("--address", "tcp://127.0.0.1:9", "run", "--config", str(config), "mine", "hi")
    assert both.returncode == 2 and "goes with no --address" in both.stderr


def test_logs_of_the_node(node: Any) -> None:
    """If logs are asked for a process that wrote nothing, then that is no error."""
    assert node("logs", "router").returncode == 0
    assert node("logs", "nobody").returncode == 4


def test_backup_copies_every_database(node: Any, tmp_path: Path) -> None:
    """If a running node is backed up, then each file exists; a second time into the folder is refused."""
    done = node("backup", str(tmp_path / "b"))
    assert done.returncode == 0, done.stderr
    assert {Path(line).name for line in done.stdout.splitlines()} == {
        "partition-0.db",
        "partition-1.db",
        "node.db",
    }
    assert all(Path(line).stat().st_size for line in done.stdout.splitlines())
    assert node("backup", str(tmp_path / "b")).returncode == 1


def test_agents_are_listed_and_reloaded(node: Any) -> None:
    """If agents are listed, then those of every node are there."""
    for step in ("list", "reload"):
        items = json.loads(node("agent", step, "-o", "json").stdout)["items"]
        assert {"echo", "shell"} <= {item["name"] for item in items}


def test_no_node_is_exit_code_3() -> None:
    """If no node runs, then the exit code is 3 and the hint starts one."""
    done = mesh("status", MESH_NODE_NAME="nobody")
    assert done.returncode == 3 and "mesh up" in done.stderr


def test_up_in_the_foreground_prints_its_banner_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    """If a foreground node gets Ctrl-C, then it ends in order with 0 and its address file is gone."""
    up = begin("up", "--port", "0", "--name", "cli-fore", "--data-dir", str(tmp_path / "d"))
    seen = read_until(up, b"status\n").decode()
    assert str(tmp_path / "d") in seen and "partitions 2" in seen and "run shell" in seen
    found = find_node("cli-fore")
    assert found is not None and found["pid"] == up.pid
    assert interrupt(up)[0] == 0
    assert find_node("cli-fore") is None


def _lonely(*arguments: str) -> subprocess.CompletedProcess[str]:
    return mesh("run", *arguments, MESH_NODE_NAME="nobody")


def test_run_without_a_node(tmp_path: Path) -> None:
    """If no node is up, then a run works all the same, and its output is the command's alone."""
    file = tmp_path / "words"
    file.write_text("one two three\n")
    done = _lonely("shell", f"wc -w < {file}")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "3", "")


def test_run_works_in_the_callers_folder_with_and_without_a_node(node: Any, tmp_path: Path) -> None:
    """If a command is run from a folder, then it works there, whoever started the node, and wherever."""
    (tmp_path / "words").write_text("one two\n")
    for name in (NAME, "nobody"):
        done = subprocess.run(
            [*MESH, "run", "shell", "wc -w words"],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            cwd=tmp_path,
            env=_environ(MESH_NODE_NAME=name, PYTHONPATH=str(Path(__file__).resolve().parents[2])),
        )
        assert done.stdout.split() == ["2", "words"], done.stderr


def test_a_killed_run_command_cancels_its_run(node: Any, tmp_path: Path) -> None:
    """If the terminal goes away (SIGHUP), then the run on the node is cancelled and its command is gone."""
    process = begin("run", "shell", f"echo $$ > {tmp_path}/pid; echo ready; sleep 300", MESH_NODE_NAME=NAME)
    read_until(process, b"ready\n")
    process.send_signal(signal.SIGHUP)
    assert process.wait(PATIENCE_S) == 130
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_run_separates_stderr_and_reports_failure() -> None:
    """If the command fails, then its streams are apart and the exit code is 1."""
    done = _lonely("shell", "echo out; echo err >&2; exit 3")
    assert done.returncode == 1 and done.stdout == "out\n"
    assert done.stderr.startswith("err\n") and "error: " in done.stderr


def test_run_as_json_lines_without_a_node() -> None:
    """If JSON is wanted, then each line is an event and the last one ends the run."""
    done = _lonely("echo", "hello", "-o", "json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and events[-1]["type"] == "run_completed"


def test_run_that_takes_too_long_is_exit_code_5() -> None:
    """If --timeout passes, then the run is cancelled and the exit code is 5."""
    done = _lonely("shell", "sleep 60", "--timeout", "0.3")
    assert done.returncode == 5, done.stderr


def test_ctrl_c_cancels_the_run_and_leaves_nothing(tmp_path: Path) -> None:
    """If Ctrl-C comes while output streams, then the exit code is 130 and the command is gone."""
    process = begin(
        "run",
        "shell",
        f"echo $$ > {tmp_path}/pid; echo ready; sleep 300; echo never",
        MESH_NODE_NAME="nobody",
    )
    assert read_until(process, b"ready\n") == b"ready\n"
    code, out, _ = interrupt(process)
    assert code == 130 and "never" not in out
    pid = int((tmp_path / "pid").read_text())
    eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_own_agents_of_a_config_run(tmp_path: Path) -> None:
    """If the example config is named, then its agents run."""
    config = Path(__file__).resolve().parents[2] / "configs" / "agents.toml"
    assert _lonely("hello", "Ann", "--config", str(config)).stdout == "Hello, Ann!"


def test_bench_gives_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a node is measured, then each figure is there, and above 0 unless it is a difference of two."""
    from click.testing import CliRunner

    from mesh.cli import app, bench_own

    few = dict.fromkeys(bench_own.CALLS, 100) | {"memory": 20_000, "files": 1_000}
    monkeypatch.setattr(bench_own, "CALLS", few)
    monkeypatch.setattr(bench_own, "STREAM_S", 1.0)
    done = CliRunner().invoke(app.root, ["bench", "-o", "json"])
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    values = {figure["name"]: figure["value"] for figure in report["figures"]}
    assert [name for name, value in values.items() if value <= 0 and "beyond" not in name] == []
    assert len(values) >= 20
    assert report["machine"]["cpus"] and report["ratios"]
