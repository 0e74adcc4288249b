"""Coding programs on a real node: ``mesh run``, a killed runner, a session that goes on elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_for

import mesh

PLAYS = {
    "codex": [
        {"type": "thread.started", "thread_id": "t1"},
        {"type": "item.completed", "item": {"type": "agent_message", "text": "hello from codex"}},
        {"type": "turn.completed", "usage": {"input_tokens": 7, "output_tokens": 3}},
    ],
    "amp": [
        {"type": "system", "subtype": "init", "session_id": "T-1"},
        {"type": "assistant", "message": {"content": [{"type": "text", "text": "hello from amp"}]}},
        {"type": "result", "subtype": "success", "num_turns": 1, "result": "hello from amp"},
    ],
}

#: These talk before they work: a stand-in need not say anything to be at work.
SILENT = ("acp", "claude_code")
CHILDREN = "trap '' TERM; sleep 4721 & setsid sleep 4722 & sleep 4723"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


def program(folder: Path, name: str, *, hangs: bool = False) -> dict[str, Any]:
    """A stand-in; one that hangs has a child in its group and one in a session of its own."""
    said = "\n".join(map(json.dumps, PLAYS[name][: 1 if hangs else None]))
    path = folder / (f"{name}-hangs" if hangs else name)
    after = CHILDREN if hangs else ""
    path.write_text(f"#!/bin/sh\ncat > '{folder}/{name}.heard'\ncat <<'END'\n{said}\nEND\n{after}\n")
    path.chmod(0o755)
    return {"provider": name, "program": str(path), "cwd": str(folder)}


def silent(folder: Path, name: str) -> dict[str, Any]:
    """A stand-in that never answers what it is asked first; its children are those of the others."""
    path = folder / f"{name}-hangs"
    path.write_text(f"#!/bin/sh\n[ x$1 = x-v ] && echo 9.9.9 && exit\n{CHILDREN}\n")
    path.chmod(0o755)
    return {"provider": name, "program": str(path), "cwd": str(folder)}


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[mesh.Client]:
    agents = {name: program(folder, name) for name in PLAYS}
    agents |= {f"{name}-hangs": program(folder, name, hangs=True) for name in PLAYS}
    agents |= {f"{name}-hangs": silent(folder, name) for name in SILENT}
    agents["nobody"] = {"provider": "codex", "program": "no-such-program-x"}
    with (
        mesh.LocalNode(folder / "data", config={"agents": agents}) as node,
        node.client(timeout_s=20.0) as opened,
    ):
        yield opened


def sleepers() -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if b"sleep\x00472" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_conversation_goes_from_codex_to_amp_and_back(client: mesh.Client, folder: Path) -> None:
    """If a session's runs have other agents, then each is told what was said, and Codex resumes its thread
    only while that knows all of it."""
    sid = client.sessions.start("codex").id
    first = client.runs.wait(client.runs.submit(sid, "I am Ann").id)
    assert first.output == {"content": "hello from codex"}
    again = client.runs.submit(sid, "and?", continuation="auto")
    client.runs.wait(again.id)
    assert (folder / "codex.heard").read_text() == "and?"
    client.runs.wait(client.runs.submit(sid, "who?", continuation="auto", agent="amp").id)
    heard = (folder / "amp.heard").read_text()
    assert "user: I am Ann" in heard and "hello from codex" in heard and heard.endswith("who?")
    client.runs.wait(client.runs.submit(sid, "back", continuation="auto").id)
    assert "hello from amp" in (folder / "codex.heard").read_text()


def test_missing_program_leaves_the_node_up(client: mesh.Client) -> None:
    """If an agent's program is not there, then the node serves, and the run says how to install it."""
    with pytest.raises(mesh.MeshError) as caught:
        client.run_once("nobody", "hi")
    assert caught.value.code == "dependency_not_available"
    assert "npm install -g @openai/codex" in str(caught.value)


@pytest.mark.parametrize("name", (*PLAYS, *SILENT))
def test_killed_runner_leaves_nothing_of_a_program(client: mesh.Client, name: str) -> None:
    """If the runner is killed while a program works, then the program and its children are gone, and the run
    is settled."""
    sid = client.sessions.start(f"{name}-hangs").id
    run = client.runs.submit(sid, "hi")
    wait_for(lambda: len(sleepers()) >= 3, "the program's children")
    os.kill(client.sessions.handle(sid).pid, signal.SIGKILL)
    wait_for(lambda: not sleepers(), "the end of the program")
    wait_for(lambda: client.runs.get(run.id).status == "failed", "the settlement")
    assert client.runs.get(run.id).error["code"] == "outcome_unknown"


def test_mesh_run_prints_the_answer(folder: Path) -> None:
    """If three lines of config name an agent, then mesh run prints what it answers."""
    config = folder / "mesh.toml"
    table = program(folder, "codex")
    config.write_text(f'[agents.coder]\nprovider = "codex"\nprogram = "{table["program"]}"\n')
    done = subprocess.run(
        [sys.executable, "-m", "mesh", "run", "--config", str(config), "coder", "say hello"],
        capture_output=True, text=True, timeout=60, check=False, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(mesh.__file__).resolve().parents[1])},
    )
    assert (done.returncode, done.stdout.strip()) == (0, "hello from codex"), done.stderr
