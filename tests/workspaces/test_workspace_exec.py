"""Commands for agents: run and stream, with nothing left behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from conditions import wait_for

from mesh.errors import MeshError
from mesh.proc import start_time
from mesh.workspaces import Chunk, run, run_streaming


def _run(*args: Any, **options: Any) -> Any:
    return asyncio.run(run(*args, **options))


async def _all(stream: AsyncIterator[Chunk]) -> list[Chunk]:
    return [chunk async for chunk in stream]


def test_a_command_gives_its_output_and_code(tmp_path: Path) -> None:
    """If a command says things on both pipes and fails, then both are in stdout and the code is no error."""
    script = "echo out; echo err >&2; echo $NAME; pwd; exit 3"
    done = _run("sh", ["-c", script], cwd=tmp_path, env={"NAME": "n"})
    assert sorted(done.stdout.split()) == sorted(["out", "err", "n", os.path.realpath(tmp_path)])
    assert (done.exit_code, done.stderr, done.timed_out, done.truncated) == (3, "", False, False)
    assert done.command == "sh" and done.args[0] == "-c" and done.cwd == str(tmp_path)


def test_a_timeout_keeps_what_was_said_and_ends_the_whole_group(tmp_path: Path) -> None:
    """If the time is over, then the output so far is there, the code is 124, and no process is left."""
    script = f"echo before; sleep 60 & echo $! > {tmp_path}/pid; echo more; wait"
    done = _run("sh", ["-c", script], timeout_s=0.5)
    assert done.stdout == "before\nmore\n" and done.timed_out and done.exit_code == 124
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: start_time(pid) is None, "the background process is gone")


def test_output_beyond_the_cap_is_cut_and_still_heard() -> None:
    """If a command says more than is kept, then a listener sees all of it, and its trouble is its own."""
    heard: list[bytes] = []

    def listen(chunk: bytes) -> None:
        heard.append(chunk)
        raise ValueError("the listener's")

    done = _run("sh", ["-c", "yes | head -c 100000"], max_output_bytes=10, on_output=listen)
    assert done.stdout == "y\n" * 5 and done.truncated and sum(map(len, heard)) == 100_000


@pytest.mark.parametrize(("command", "options", "code"), [
    ("no-such-command-here", {}, "command_not_found"),
    ("true", {"cwd": "/no/such/folder"}, "validation_error"),
    ("", {}, "validation_error"),
    ("tr\0ue", {}, "validation_error"),
    ("true", {"timeout_s": 0}, "validation_error"),
])
def test_what_cannot_be_started_is_typed(command: str, options: dict[str, Any], code: str) -> None:
    """If the command, its folder or its time are wrong, then run raises and a stream yields one error."""
    with pytest.raises(MeshError) as caught:
        _run(command, **options)
    assert caught.value.code == code
    chunks = asyncio.run(_all(run_streaming(command, **options)))
    assert [chunk.kind for chunk in chunks] == ["error"] and (chunks[0].error or {})["code"] == code


def test_a_stream_yields_bytes_as_they_come_and_the_code_at_the_end() -> None:
    """If a command says bytes that are no text, then they come unchanged, and the exit is last."""
    chunks = asyncio.run(_all(run_streaming("sh", ["-c", r"printf 'a\377'; exit 7"])))
    assert b"".join(chunk.data for chunk in chunks) == b"a\xff"
    assert chunks[-1] == Chunk("exit", exit_code=7)


def test_a_streams_time_limit_is_one_of_silence() -> None:
    """If a command keeps talking it may take longer than the limit; when it falls silent it ends with 124."""
    script = "for i in 1 2 3 4 5 6; do echo $i; sleep 0.2; done; sleep 60"
    chunks = asyncio.run(_all(run_streaming("sh", ["-c", script], timeout_s=0.8)))
    assert b"".join(chunk.data for chunk in chunks) == b"1\n2\n3\n4\n5\n6\n"
    assert chunks[-1].exit_code == 124


def test_leaving_a_stream_ends_its_command(tmp_path: Path) -> None:
    """If the reader leaves early, then the command and its children are gone."""

    async def leave() -> None:
        stream = run_streaming("sh", ["-c", f"echo $$ > {tmp_path}/pid; echo here; sleep 60"])
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(leave())
    assert start_time(int((tmp_path / "pid").read_text())) is None
