"""Programs that misbehave: whatever they print or do, the run ends with a named error and nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from conditions import wait_for
from driving import Bench, Result, drive, run
from stand_in import StandIn

from mesh.core.message import Message, Role
from mesh.node.ending import cancelled
from mesh.providers import program as program_module
from mesh.providers.program import classify

STARTED = {"type": "thread.started", "thread_id": "t1"}
DONE = {"type": "turn.completed", "usage": {"input_tokens": 1, "output_tokens": 1}}
ANSWER = {"type": "item.completed", "item": {"id": "i", "type": "agent_message", "text": "hello"}}


@pytest.fixture
def program(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path, "codex")


def table(program: StandIn, **more: Any) -> dict[str, Any]:
    return {"provider": "codex", "program": str(program.path), "cwd": str(program.folder), **more}


def of_run(run_id: str) -> list[int]:
    """Living processes that carry a run's mark."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"MESH_RUN={run_id}\0".encode() in (entry / "environ").read_bytes() and (
                entry / "stat"
            ).read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def failed(result: Result, code: str) -> dict[str, Any]:
    assert (result.settle["status"], result.error["code"]) == ("failed", code), result.error
    return result.error


def test_missing_program_is_named_with_how_to_get_it(tmp_path: Path) -> None:
    """If the program is not there, then the run fails and says how to install it and how to log in."""
    result = run({"provider": "codex", "program": "no-such-program-x"}, "hi")
    error = failed(result, "dependency_not_available")
    assert "npm install -g @openai/codex" in error["message"]
    assert "codex login" in error["message"]
    assert error["provider_error"]["kind"] == "cli_not_found"


def test_program_that_prints_nothing_and_ends_says_so(program: StandIn) -> None:
    """If a program ends without a word, then the run fails with its exit code."""
    error = failed(run(table(program.plays()), "hi"), "provider_error")
    assert error["message"] == "codex said nothing (exit code 0)"


def test_program_that_is_silent_is_given_up(program: StandIn) -> None:
    """If a program says nothing for its time, then the run fails with provider_timeout and it is gone."""
    result = run(table(program.plays(before="sleep 1000"), start_timeout_s=0.2), "hi")
    error = failed(result, "provider_timeout")
    assert error["provider_error"]["kind"] == "timeout"


def test_program_that_waits_for_a_login_is_given_up_at_once(program: StandIn) -> None:
    """If a program asks for a login on stderr and waits, then the run does not wait with it."""
    program.plays(before="echo 'No API key found. Starting login flow...' >&2; sleep 1000")
    error = failed(run(table(program), "hi"), "provider_authentication_failed")
    assert "codex login" in error["message"]


def test_exit_with_a_word_on_stderr_repeats_it(program: StandIn) -> None:
    """If a program fails with a word on stderr, then the error has that word, the exit code and stderr."""
    words = ("warning: x", "Error: disk is full", "at 1")
    program.plays([STARTED], after="".join(f"echo '{word}' >&2; " for word in words) + "exit 9")
    error = failed(run(table(program), "hi"), "provider_error")
    assert error["message"] == "codex: Error: disk is full (exit code 9)"
    assert (error["provider_error"]["exit_code"], error["provider_error"]["kind"]) == (9, "transport_exit")
    assert error["provider_error"]["stderr"] == "warning: x\nError: disk is full\nat 1\n"


def test_stderr_is_cut(program: StandIn) -> None:
    """If stderr is long, then 200 lines of it are kept and the error says that it was cut."""
    program.plays(after="seq 100000 >&2; exit 1")
    error = failed(run(table(program), "hi"), "provider_error")
    assert len(error["provider_error"]["stderr"].splitlines()) == 200
    assert error["message"] == "codex: 100000 (exit code 1)"


def test_garbage_among_the_lines_is_passed_over(program: StandIn) -> None:
    """If a program prints other lines too, then what is JSON among them counts."""
    program.plays(["hello!", "", STARTED, "[1]", '{"half": ', ANSWER, DONE, "{bye"])
    result = run(table(program), "hi")
    assert (result.settle["status"], result.output) == ("completed", {"content": "hello"})


def test_only_garbage_is_an_error_that_shows_it(program: StandIn) -> None:
    """If nothing that a program prints is JSON, then the error shows how it begins."""
    error = failed(run(table(program.plays(["usage: codex [x]", "bye"])), "hi"), "provider_error")
    assert error["details"]["no_json"] == "usage: codex [x]\nbye\n"


def test_hundred_megabytes_of_garbage_end_early(program: StandIn) -> None:
    """If a program prints no end of what is no JSON, then the run fails when it is over the bound."""
    program.plays(before="yes 'what is this' | head -c 100000000")
    error = failed(run(table(program), "hi"), "provider_error")
    assert error["provider_error"]["kind"] == "parse_error"
    assert str(program_module.NOISE_BYTES_MAX) in error["message"]


def test_line_without_an_end_is_bounded(program: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a line does not end, then the run fails when it is over the bound."""
    monkeypatch.setattr(program_module, "LINE_BYTES_MAX", 100_000)
    program.plays(before="head -c 100000000 /dev/zero | tr '\\0' x")
    error = failed(run(table(program), "hi"), "provider_error")
    assert "a line of more than 100000 bytes" in error["message"]


def test_hundred_megabytes_of_answers_are_kept_to_the_bound(program: StandIn) -> None:
    """If a program says no end of valid answers, then the output is cut and the log stays bounded."""
    answer = {"type": "item.completed", "item": {"type": "agent_message", "text": "x" * 100_000}}
    program.plays([STARTED, *[answer] * 100, DONE])
    result = run(table(program), "hi", settings={"output_bytes": 1_000_000})
    assert result.settle["status"] == "completed"
    assert sum(len(data["content"]) for data in result.data("message_streamed")) == 10_000_000


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_lines_cut_anywhere_are_the_same(program: StandIn, cut: int) -> None:
    """If a program writes in pieces that end anywhere, then its lines are whole again."""
    program.plays([STARTED, ANSWER, DONE])
    said = program.folder / "codex.said"
    program.path.write_text(
        f"#!/bin/sh\ncat > /dev/null\nhead -c {cut} {said}; sleep 0.02; tail -c +{cut + 1} {said}\n"
    )
    assert run(table(program), "hi").output == {"content": "hello"}


def test_program_that_does_not_end_after_its_last_word_is_ended(
    program: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a program hangs after its turn is complete, then the run completes and the program is gone."""
    monkeypatch.setattr(program_module, "EXIT_S", 0.2)
    result = run(table(program.plays([STARTED, ANSWER, DONE], after="sleep 1000")), "hi")
    assert (result.settle["status"], result.output) == ("completed", {"content": "hello"})


@pytest.mark.parametrize("stubborn", ["trap '' TERM INT HUP; ", "setsid "])
def test_cancel_leaves_nothing_of_a_stubborn_program(program: StandIn, stubborn: str) -> None:
    """If a program ignores SIGTERM, or its child left its group, then a cancelled run leaves neither."""
    program.plays([STARTED], after=f"{stubborn}sleep 1000 & {stubborn}sleep 1001; sleep 1002")

    async def play(bench: Bench) -> tuple[Result, list[int]]:
        going = bench.begin("agent", "hi")
        await asyncio.to_thread(wait_for, lambda: len(of_run(going.key[0])) >= 3, "the program's children")
        going.stop(cancelled())
        return await bench.result(going), of_run(going.key[0])

    result, left = drive({"agent": table(program)}, play)
    assert (result.settle["status"], left) == ("cancelled", [])


def test_program_killed_from_outside_fails_the_run(program: StandIn) -> None:
    """If somebody kills the program in the middle, then the run fails and names the signal's exit code."""
    program.plays([STARTED], after="kill -9 $$")
    error = failed(run(table(program), "hi"), "provider_error")
    assert error["provider_error"]["exit_code"] == 128 + signal.SIGKILL


def test_large_prompt_meets_a_program_that_speaks_first(program: StandIn) -> None:
    """If a program prints a lot before it reads, then a prompt larger than a pipe arrives whole."""
    program.plays([STARTED, ANSWER, DONE])
    body = program.path.read_text().replace("printf", "seq 60000; printf", 1)
    program.path.write_text(body)
    prompt = "x" * 1_000_000
    assert run(table(program), prompt).settle["status"] == "completed"
    assert program.stdin == prompt


def test_past_and_system_prompt_stand_before_the_prompt(program: StandIn) -> None:
    """If a run continues a session that the program does not know, then it is told what was said."""
    program.plays([STARTED, ANSWER, DONE])
    past = (
        Message(Role.USER, "I am Ann"), Message(Role.ASSISTANT, "hello Ann"),
        Message(Role.ASSISTANT, tool_call_id="1", tool_name="bash", tool_input={"command": "ls"}),
        Message(Role.TOOL, tool_call_id="1", tool_name="bash", tool_output="a b"),
    )
    run(table(program), "who am I?", past=past, context={"system_prompt": "Be brief."})
    assert program.stdin == (
        "Be brief.\n\nThe conversation so far:\nuser: I am Ann\nassistant: hello Ann\n"
        "tool bash called with: {'command': 'ls'}\ntool bash gave: a b\n\nwho am I?"
    )


@pytest.mark.parametrize(("given", "message"), [
    ({"x": 1}, "a prompt is needed"), ("   ", "a prompt is needed"),
])
def test_nothing_to_say_starts_nothing(program: StandIn, given: Any, message: str) -> None:
    """If an input has no prompt, then the run fails before the program starts."""
    error = failed(run(table(program.plays()), given), "validation_error")
    assert message in error["message"]
    assert program.args == []


@pytest.mark.parametrize(("options", "message"), [
    ({"modell": "x"}, "did you mean 'model'"), ({"env": {"A": 1}}, "expected a table of texts"),
    ({"cwd": "/no/such/folder"}, "no such folder"),
])
def test_wrong_options_of_a_call_start_nothing(program: StandIn, options: Any, message: str) -> None:
    """If provider_opts are wrong, then the run fails, names the option, and starts nothing."""
    error = failed(run(table(program.plays()), "hi", provider_opts=options), "validation_error")
    assert message in error["message"]
    assert program.args == []


def test_settings_of_a_call_win_over_the_table(program: StandIn) -> None:
    """If a call gives model and env, then they hold for it, and the table's other values stay."""
    program.plays([STARTED, ANSWER, DONE], before=f'echo "$A $B" > {program.folder}/env')
    own = table(program, model="m1", env={"A": "1", "B": "2"})
    run(own, "hi", provider_opts={"model": "m2", "env": {"B": "3"}})
    assert "m2" in program.args and "m1" not in program.args
    assert (program.folder / "env").read_text() == "1 3\n"


def test_secrets_of_a_table_are_names_of_variables(
    program: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a table names a variable of the node, then the program gets its value; a missing one is named."""
    program.plays([STARTED, ANSWER, DONE], before=f'echo "$KEY" > {program.folder}/env')
    monkeypatch.setenv("MY_KEY", "k1")
    run(table(program, env={"KEY": "env:MY_KEY"}), "hi")
    assert (program.folder / "env").read_text() == "k1\n"
    error = failed(run(table(program, env={"KEY": "env:NO_KEY"}), "hi"), "validation_error")
    assert "NO_KEY is not set" in error["message"]


def test_failures_have_the_code_of_their_words() -> None:
    """If a program says why, then the code is that of its words; else it is provider_error."""
    assert classify("Error: Please run /login") == "provider_authentication_failed"
    assert classify("Your access token could not be refreshed") == "provider_authentication_failed"
    assert classify("Credit balance is too low") == "provider_quota_exceeded"
    assert classify("529 Overloaded") == "provider_rate_limited"
    assert classify("the tokens of line 401a are odd") == "provider_error"


def test_this_file_leaves_no_process() -> None:
    """If the tests above are done, then no stand-in is alive."""
    assert not [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_stand_in(pid)]


def _is_stand_in(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith((b"sleep\0100", b"setsid\0sleep\0100"))
    except OSError:
        return False
