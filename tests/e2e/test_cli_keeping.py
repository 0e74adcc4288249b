"""Finding, keeping and deleting on the command line, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mesh


@pytest.fixture
def run(node: mesh.LocalNode) -> Any:
    """``mesh ARGS``: exit code, standard output, standard error."""

    def call(*args: str, code: int = 0, given: str | None = None) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mesh", "--address", node.address, *args], input=given, check=False,
            capture_output=True, text=True, timeout=60, env={**os.environ, "NO_COLOR": "1"})
        assert done.returncode == code, (args, done.stdout, done.stderr)
        return done.stdout

    return call


def test_a_session_is_found_exported_deleted_and_brought_back(
    run: Any, client: mesh.Client, tmp_path: Path
) -> None:
    """If a user finds, exports, deletes and imports a session, then each command says what it did."""
    client.run_once("echo", "hello", id="a", tags=["demo"])
    client.run_once("counter", "3", id="b")
    assert run("search", "sessions", "--tag", "demo").split()[0] == "a"
    found = json.loads(run("search", "sessions", "--order", "created_at_asc", "--limit", "1", "-o", "json"))
    assert [item["id"] for item in found["items"]] == ["a"] and found["cursor"]
    runs = run("search", "runs", "--status", "completed", "--started-after", "2020-01-31")
    assert len(runs.splitlines()) == 2
    assert run("search", "events", "--type", "message_sent", "--session", "a", "--count") == "1\n"
    assert "hello" in run("search", "events", "--type", "message_sent", "--session", "a")
    assert run("usage").splitlines()[0].startswith("all\t2\t")
    assert json.loads(run("session", "stats", "a", "-o", "json"))["run_count"] == 1
    file = tmp_path / "a.jsonl"
    run("session", "export", "a", str(file))
    assert run("session", "export", "a") == file.read_text()
    run("session", "delete", "a")
    assert run("search", "sessions").split()[0] == "b"
    assert "deleted" in run("search", "sessions", "--include-deleted")
    run("session", "undelete", "a")
    run("session", "delete", "a", "--hard")
    run("session", "delete", "a", code=4)
    assert json.loads(run("maintenance", "run", "-o", "json"))["errors"] == []
    assert run("session", "import", given=file.read_text()) == "a\n"
    run("session", "import", str(file), code=1)
    assert run("session", "import", str(file), "--id", "c") == "c\n"
    assert run("maintenance", "check") == ""
    audit = [line.split("\t")[2:] for line in run("audit", "--target", "a").splitlines()]
    assert audit[0] == ["session.import", "a", "already_exists"] and ["session.delete", "a", "ok"] in audit
    assert run("search", "sessions", "--created-after", "yesterday-ish", code=2) == ""


def test_a_damaged_file_is_repaired_when_the_node_is_down(
    tmp_path: Path, node_config: dict[str, Any]
) -> None:
    """If a row of a database is damaged, then repair saves the rest, but not of a node that is up."""
    from mesh.store.file import connect

    def repair(code: int) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mesh", "repair", "--data-dir", str(tmp_path / "d")], check=False,
            capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done
        return done.stdout

    with mesh.LocalNode(tmp_path / "d", partitions=1, config=node_config) as node, node.client() as client:
        client.run_once("counter", "20", id="a")
        client.run_once("echo", "x", id="b")
        repair(1)
    db = connect(tmp_path / "d" / "partition-0.db")
    db.execute("UPDATE event SET fragment = zeroblob(9) WHERE seq = 7")
    db.close()
    said = repair(0)
    assert "lost: " in said and "session a: 1 events" in said
    assert repair(0) == ""
    with mesh.LocalNode(tmp_path / "d", partitions=1, config=node_config) as node, node.client() as client:
        assert client.maintenance.check().problems == ()
        assert client.sessions.get("a").pruned == 1
        assert client.run_once("echo", "goes on").output["content"] == "goes on"
