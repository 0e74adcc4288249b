"""The shell provider: pipes, groups, exit codes, bounds and fences."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from driving import Bench, Result, cancelled, drive, gone, run

from mesh.node.processes import RunProcesses
from mesh.providers.execution import Command, Execution

SHELL = {"provider": "shell"}


def pids(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def test_both_pipes_are_streamed_and_kept_apart() -> None:
    """If a command writes to stdout and stderr, then both are events and both are in the output."""
    result = run(SHELL, "echo out; echo err >&2")
    streams = {data["stream"]: data["content"] for data in result.data("message_streamed")}
    assert streams == {"stdout": "out\n", "stderr": "err\n"}
    assert (result.output["content"], result.output["stderr"]) == ("out\n", "err\n")
    assert (result.output["exit_code"], result.output["truncated"]) == (0, False)
    assert result.data("message_received")[0]["content"] == "out\n"
    assert result.data("run_completed")[0]["stop_reason"] == "exit_code_0"


def test_two_full_pipes_do_not_block_each_other() -> None:
    """If a command fills both pipes, then it ends, and nothing is lost."""
    result = run(SHELL, "head -c 300000 /dev/zero | tr '\\0' a; head -c 300000 /dev/zero | tr '\\0' b >&2")
    assert result.output["content"] == "a" * 300_000
    assert result.output["stderr"] == "b" * 300_000


def test_output_beyond_the_bound_is_read_and_dropped() -> None:
    """If a command writes more than max_output_bytes, then it runs to its end and the output says
    truncated."""
    result = run(SHELL | {"max_output_bytes": 1000}, "head -c 5000000 /dev/zero | tr '\\0' a; echo end >&2")
    assert result.settle["status"] == "completed"
    assert (result.output["content"], result.output["truncated"]) == ("a" * 1000, True)
    assert result.output["stderr"] == "end\n"
    assert sum(len(data["content"]) for data in result.data("message_streamed")) == 1004


def test_invalid_utf8_becomes_replacement_characters() -> None:
    """If a command writes bytes that are no text, then they are replaced, and whole characters survive
    cuts."""
    result = run(SHELL, r"printf 'a\377b\303'; sleep 0.05; printf '\244c\342\202'")
    assert result.output["content"] == "a\ufffdb\u00e4c\ufffd"


@pytest.mark.parametrize(
    ("line", "code", "exit_code"),
    [
        ("exit 3", "command_failed", 3),
        ("kill -9 $$", "command_failed", 137),
        ("no-such-command-x", "command_not_found", 127),
        ("/etc/passwd", "command_failed", 126),
    ],
)
def test_exit_code_decides_how_a_run_failed(line: str, code: str, exit_code: int) -> None:
    """If a command does not succeed, then the code tells why and the exit code is in error and output."""
    result = run(SHELL, line)
    assert (result.error["code"], result.error["details"]["exit_code"]) == (code, exit_code)
    assert result.output["exit_code"] == exit_code
    assert result.data("run_failed")[0]["provider_error"]["exit_code"] == exit_code


def test_failure_names_the_last_line_of_stderr() -> None:
    """If a command fails with a word on stderr, then the message repeats its last line."""
    result = run(SHELL, "echo first >&2; echo 'it is the disk' >&2; exit 9")
    assert result.error["message"] == "the command ended with exit code 9: it is the disk"
    assert result.error["provider_error"]["stderr"] == "first\nit is the disk\n"


def test_stderr_of_a_failure_is_cut() -> None:
    """If stderr is long, then the error keeps its first 200 lines and says that it was cut."""
    result = run(SHELL, "seq 1000 >&2; exit 1")
    error = result.error["provider_error"]
    assert (error["stderr"].splitlines()[-1], error["truncated"]) == ("200", True)


def test_other_success_exit_codes_complete() -> None:
    """If the agent's table calls an exit code a success, then the run completes."""
    result = run(SHELL | {"success_exit_codes": [0, 3]}, "exit 3")
    assert result.settle["status"] == "completed"
    assert result.data("run_completed")[0]["stop_reason"] == "exit_code_3"


def test_background_job_and_daemon_are_gone_after_the_run() -> None:
    """If a command leaves a background job and a daemon of its own session, then both end with it."""
    result = run(SHELL, "sleep 1000 & echo $!; setsid sh -c 'echo $$; exec sleep 1000' & sleep 0.3")
    assert result.settle["status"] == "completed"
    found = pids(result.output["content"])
    assert len(found) == 2
    assert all(gone(pid) for pid in found)


def test_job_without_our_environment_is_gone_too() -> None:
    """If a background job has emptied its environment, then its group still gives it away."""
    result = run(SHELL, "env -i sleep 1000 & echo $!")
    assert all(gone(pid) for pid in pids(result.output["content"]))


def test_cancel_ends_the_whole_tree() -> None:
    """If a run is cancelled, then its command, a grandchild of its own session and a deaf one are gone."""
    deaf = "(trap '' TERM; echo $(sh -c 'echo $PPID'); sleep 1000)"
    line = f"echo $$; setsid sh -c 'echo $$; sleep 1000' & {deaf} & wait"

    async def play(bench: Bench) -> Any:
        running = bench.begin("agent", line)
        so_far = await bench.until(
            running, lambda r: sum(d["content"].count("\n") for d in r.data("message_streamed")) >= 3
        )
        found = pids("".join(data["content"] for data in so_far.data("message_streamed")))
        return found, await cancelled(bench, running), [gone(pid) for pid in found]

    found, result, all_gone = drive({"agent": SHELL}, play)
    assert len(found) == 3
    assert result.settle["status"] == "cancelled"
    assert all(all_gone)


def test_end_that_is_itself_cancelled_leaves_nothing() -> None:
    """If the end of a stubborn command is cancelled, then the command is killed, and its exit was seen."""

    async def main() -> int:
        command = Execution(RunProcesses(), "run_1", 1_000)
        line = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
        await command.start(Command(["/bin/sh", "-c", line], "", "/", dict(os.environ), 60.0, True))
        await anext(command.chunks())
        ending = asyncio.ensure_future(command.end())
        await asyncio.sleep(0)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        return command.exit_code

    assert asyncio.run(main()) == 128 + 9


def test_timeout_ends_the_command() -> None:
    """If a command runs over timeout_s, then it is ended and the run failed with command_timeout."""
    result = run(SHELL | {"timeout_s": 0.3}, "echo $$; sleep 1000")
    assert (result.settle["status"], result.error["code"]) == ("failed", "command_timeout")
    assert result.output["exit_code"] == 124
    assert all(gone(pid) for pid in pids(result.output["content"]))


def test_call_may_set_cwd_env_and_timeout(tmp_path: Path) -> None:
    """If provider_opts name cwd and env, then the command has them, over those of the table."""
    opts = {"cwd": str(tmp_path), "env": {"A": "call"}}
    result = run(
        SHELL | {"env": {"A": "table", "B": "table"}}, "pwd; echo $A $B $MESH_RUN", provider_opts=opts
    )
    cwd, line = result.output["content"].splitlines()
    assert os.path.realpath(cwd) == os.path.realpath(tmp_path)
    assert line.startswith("call table run_")


def test_command_and_args_are_executed_without_a_shell(tmp_path: Path) -> None:
    """If the input names a command and its arguments, then no shell reads them."""
    result = run(SHELL, {"command": "echo", "args": ["$HOME", "a b"], "cwd": str(tmp_path)})
    assert result.output["content"] == "$HOME a b\n"


def test_user_messages_are_the_command_line() -> None:
    """If the input is a list of messages, then the user's are the line."""
    messages = [
        {"role": "system", "content": "exit 1"},
        {"role": "user", "content": "echo a"},
        {"role": "user", "content": "echo b"},
    ]
    assert run(SHELL, {"messages": messages}).output["content"] == "a\nb\n"


@pytest.mark.parametrize(
    ("run_input", "opts", "code"),
    [
        ("", {}, "validation_error"),
        ({"x": 1}, {}, "validation_error"),
        ("echo \0", {}, "validation_error"),
        ({"command": 3}, {}, "validation_error"),
        ({"command": "echo", "args": "x"}, {}, "validation_error"),
        ("echo", {"cwd": "/no/such/folder"}, "validation_error"),
        ("echo", {"timeout_s": -1}, "validation_error"),
        ("echo", {"env": {"A": 1}}, "validation_error"),
        ({"command": "/no/such/command"}, {}, "command_not_found"),
        ({"command": "/etc/passwd"}, {}, "command_failed"),
    ],
)
def test_what_cannot_be_started_says_why(run_input: Any, opts: dict[str, Any], code: str) -> None:
    """If a command cannot be started as asked, then the run fails with a code that tells whose
    fault it is."""
    result = run(SHELL, run_input, provider_opts=opts)
    assert (result.settle["status"], result.error["code"]) == ("failed", code)
    assert result.types == ["run_started", "run_failed"]


def test_denied_command_never_runs(tmp_path: Path) -> None:
    """If a line holds a denied command, then nothing of it is executed."""
    file = tmp_path / "made"
    result = run(SHELL | {"denied_commands": ["touch"]}, f"echo hi; touch {file}")
    assert result.error["code"] == "policy_violation"
    assert not file.exists()


def test_allowed_commands_fence_the_whole_line() -> None:
    """If only echo is allowed, then a second command of the line is refused."""
    table = SHELL | {"allowed_commands": ["echo"]}
    assert run(table, "echo hi").settle["status"] == "completed"
    assert run(table, "echo hi; pwd").error["code"] == "policy_violation"


@pytest.mark.parametrize(
    "table",
    [
        {"timeout": 1},
        {"timeout_s": "x"},
        {"env": ["A"]},
        {"success_exit_codes": ["0"]},
        {"allowed_commands": "ls"},
        {"cwd": 3},
        {"max_output_bytes": "big"},
        {"capabilities": [{"name": "x", "type": "y"}]},
        {"idempotent": "yes"},
    ],
)
def test_wrong_setting_is_a_problem_with_its_name(table: dict[str, Any]) -> None:
    """If a key of the agent's table is wrong, then the catalogue says which, and its runs fail."""

    async def play(bench: Bench) -> tuple[Any, Result]:
        return bench.registry.catalogue(), await bench.result(bench.begin("agent", "echo"))

    [entry], result = drive({"agent": SHELL | table}, play)
    assert (
        next(iter(table)) in entry["problem"]
        or "capability" in entry["problem"]
        or "texts" in entry["problem"]
    )
    assert result.error["code"] == "provider_error"
