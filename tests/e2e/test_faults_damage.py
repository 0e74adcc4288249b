"""A database with a flipped byte under a real node: what is refused, what goes on, what the operator sees."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import pytest
from helpers import wait_for

import mesh
from mesh.store.file import page_checksums
from mesh.store.sqlite import Store

ROUTE = {"external_room_id": "x"}
PAGE = 4096
Filled = tuple[list[mesh.SessionKey], list[str]]


def key(n: int) -> mesh.SessionKey:
    return mesh.SessionKey("telegram", "bot", f"room_{n}")


def fill(data: Path) -> Filled:
    """A node with two partitions, hundreds of routes and some sessions with logs; stopped in order."""
    keys = [key(n) for n in range(600)]
    with mesh.LocalNode(data, partitions=2) as node, node.client(timeout_s=20.0) as client:
        client.routes.set_many([(k, {**ROUTE, "n": n, "text": "y" * 100}) for n, k in enumerate(keys)])
        sids = [client.run_once("echo", "z" * 3000).session_id for _ in range(24)]
    for index in range(2):
        store = Store(data / f"partition-{index}.db")
        store.acquire(boot_id="test", offset_ms=0)
        store.fold_all_routes()  # as time would
        store.close()
    return keys, sids


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[mesh.SessionKey], list[str]]:
    """The files of such a node, made once; each test damages a copy."""
    data = tmp_path_factory.mktemp("sound") / "data"
    return data, *fill(data)


@pytest.fixture
def filled(tmp_path: Path, sound: Any) -> Filled:
    """A copy of them in ``tmp_path / "data"``, and what is in there."""
    data, keys, sids = sound
    shutil.copytree(data, tmp_path / "data")
    return keys, sids


def flip(data: Path, table: str, index: int = 0, at: int = PAGE // 2) -> None:
    """Turn a bit in a leaf of a table (or of the file itself)."""
    file = data / f"partition-{index}.db"
    page = 1
    if table != "header":
        assert page_checksums()
        db = apsw.Connection(str(file))
        sql = "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY pageno"
        page = db.execute(sql, (table,)).fetchone()[0]
        db.close()
    content = bytearray(file.read_bytes())
    content[(page - 1) * PAGE + at] ^= 8
    file.write_bytes(content)


def ask(read: Any) -> str:
    """ok, or the code of the error."""
    try:
        read()
    except mesh.MeshError as error:
        return error.code
    return "ok"


def degraded(client: mesh.Client) -> str | None:
    found: str | None = client.status()["partitions"][0].get("degraded")
    return found


def test_damaged_routes_are_refused_by_name_and_the_rest_goes_on(tmp_path: Path, filled: Filled) -> None:
    """If a page of routes is damaged, then its keys are refused, never "not found"; all others are right,
    new writes are taken, the status says what is wrong, and doctor names the file."""
    keys, _ = filled
    flip(tmp_path / "data", "route")
    with mesh.LocalNode(tmp_path / "data", partitions=2) as node, node.client(timeout_s=20.0) as client:
        assert "partition-0.db" in wait_for(lambda: degraded(client), "the status says degraded")
        found = client.routes.get_many(keys)
        codes = {r.code for r in found if isinstance(r, mesh.MeshError)}
        assert codes == {"storage_read_failed"}
        sound = [(n, r) for n, r in enumerate(found) if not isinstance(r, mesh.MeshError)]
        assert len(sound) > 500 and all(r.route["n"] == n for n, r in sound)
        bad = next(k for k, r in zip(keys, found, strict=True) if isinstance(r, mesh.MeshError))
        client.routes.set(bad, ROUTE)
        assert client.routes.get(bad).route == ROUTE
        new = next(k for k in map(key, range(10_000, 10_100)) if client.partitions.of(k) == 0)
        assert ask(lambda: client.routes.get(new)) in ("not_found", "storage_read_failed")
        assert client.run_once("echo", "still").output["content"]
    done = doctor(tmp_path / "data")
    assert done.returncode == 1 and "partition-0.db" in done.stdout and "backup" in done.stdout
    assert "route" in done.stdout


def test_a_damaged_log_is_refused_where_it_is_damaged(tmp_path: Path, filled: Filled) -> None:
    """If a page of events is damaged, then a log on it says so, and the others are whole."""
    _, sids = filled
    flip(tmp_path / "data", "event")
    with mesh.LocalNode(tmp_path / "data", partitions=2) as node, node.client(timeout_s=20.0) as client:
        answers = {sid: ask(lambda sid=sid: client.sessions.events(sid)) for sid in sids}
        assert set(answers.values()) == {"ok", "storage_read_failed"}
        bad = [sid for sid, code in answers.items() if code != "ok"]
        assert len(bad) <= 4
        for sid in answers:
            assert client.sessions.get(sid).status == "completed"
        assert "partition-0.db" in wait_for(lambda: degraded(client), "the status says degraded")
        assert client.partitions.info(0).state == "ready"


def test_a_write_that_meets_damage_ends_all_writes_of_that_partition(tmp_path: Path, filled: Filled) -> None:
    """If a write needs a damaged page, then nothing of its batch is written, that partition takes no more
    writes, reads go on, and the other partition is not disturbed."""
    keys, sids = filled
    flip(tmp_path / "data", "run_started")
    with mesh.LocalNode(tmp_path / "data", partitions=2) as node, node.client(timeout_s=20.0) as client:
        mine, other = (next(k for k in keys if client.partitions.of(k) == index) for index in (0, 1))
        client.routes.set(mine, {**ROUTE, "text": "before"})
        bad = next(sid for sid in map(str, range(100)) if client.partitions.of(sid) == 0)
        client.sessions.create("echo", id=bad)
        assert ask(lambda: client.runs.create(bad, "x")) == "store_unavailable"
        pid = client.partitions.pid(0)
        wait_for(lambda: "damaged" in str(degraded(client)), "the status says why")
        assert ask(lambda: client.routes.set(mine, ROUTE)) == "store_unavailable"
        assert client.routes.get(mine).route["text"] and ask(lambda: client.routes.set(other, ROUTE)) == "ok"
        assert {ask(lambda sid=sid: client.sessions.events(sid)) for sid in sids} == {"ok"}
        assert client.partitions.pid(0) == pid


def test_a_broken_header_takes_one_partition_down_and_no_other(tmp_path: Path, filled: Filled) -> None:
    """If a file is no database any more, then its partition is down at once with the reason and the file's
    name, the other serves; and the backup brings it back."""
    keys, _ = filled
    with mesh.LocalNode(tmp_path / "data", partitions=2) as node, node.client(timeout_s=20.0) as client:
        client.backup(str(tmp_path / "backup"))
    flip(tmp_path / "data", "header", at=3)
    with mesh.LocalNode(tmp_path / "data", partitions=2) as node, node.client(timeout_s=20.0) as client:
        info = wait_for(lambda: (i := client.partitions.info(0)).state == "down" and i, "it gave up at once")
        assert info.restarts == 0 and "partition-0.db" in info.cause["reason"]
        served = [ask(lambda k=k: client.routes.get(k)) for k in keys if client.partitions.of(k) == 1]
        assert set(served) == {"ok"}
        for old in (tmp_path / "data").glob("partition-0.db*"):
            old.unlink()
        (tmp_path / "backup" / "partition-0.db").rename(tmp_path / "data" / "partition-0.db")
        client.partitions.restart(0)
        wait_for(lambda: client.partitions.info(0).state == "ready", "the copy serves")
        assert {ask(lambda k=k: client.routes.get(k)) for k in keys} == {"ok"}


def test_a_single_partition_with_a_broken_file_is_one_clear_line(tmp_path: Path) -> None:
    """If no partition can start, then the node does not start, and the error names the file."""
    with mesh.LocalNode(tmp_path / "data", partitions=1):
        pass
    flip(tmp_path / "data", "header", at=3)
    with pytest.raises(mesh.MeshError) as refused:
        mesh.LocalNode(tmp_path / "data", partitions=1).start()
    assert "partition-0.db" in refused.value.message and "\n" not in refused.value.message


def test_a_damaged_map_of_slots_is_one_clear_line(tmp_path: Path) -> None:
    """If node.db is damaged, then the node does not start with a wrong map: the error names the file."""
    with mesh.LocalNode(tmp_path / "data", partitions=2):
        pass
    file = tmp_path / "data" / "node.db"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    for at in range(0, len(content), PAGE):
        content[at + 4000] ^= 1
    file.write_bytes(content)
    with pytest.raises(mesh.StoreError) as refused:
        mesh.LocalNode(tmp_path / "data", partitions=2).start()
    assert str(file) in refused.value.message and refused.value.code == "storage_read_failed"


def test_a_flip_in_the_log_of_a_killed_node_is_told(tmp_path: Path) -> None:
    """If the log beside the database is damaged after a kill, then what it still holds is served, and the
    status says that commits were lost and where the log is kept."""
    keys = [key(n) for n in range(40)]
    with mesh.LocalNode(tmp_path / "data", partitions=1) as node, node.client(timeout_s=20.0) as client:
        for k in keys:
            client.routes.set(k, ROUTE)
        os.kill(node.pid, signal.SIGKILL)
    wal = tmp_path / "data" / "partition-0.db-wal"
    content = bytearray(wal.read_bytes())
    content[len(content) // 2] ^= 1
    wal.write_bytes(content)
    with mesh.LocalNode(tmp_path / "data", partitions=1) as node, node.client(timeout_s=20.0) as client:
        why = wait_for(lambda: degraded(client), "the status tells of it")
        assert "lost" in why and "partition-0.db-wal.damaged" in why
        answers = [ask(lambda k=k: client.routes.get(k)) for k in keys]
        assert answers == sorted(answers, reverse=True) and set(answers) == {"ok", "not_found"}
        client.routes.set(keys[-1], ROUTE)
    assert "partition-0.db-wal.damaged" in doctor(tmp_path / "data").stdout


def doctor(data: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mesh", "doctor"], capture_output=True, text=True, timeout=60, check=False,
        cwd=Path(mesh.__file__).parents[1],
        env={**os.environ, "MESH_NODE_DATA_DIR": str(data), "MESH_NODE_PORT": "0", "TERM": "dumb"},
    )


@pytest.mark.parametrize("table", ["session", "run", "receipt", "lifecycle", "meta", "log", "boot"])
def test_damage_anywhere_is_a_state_and_no_crash_loop(tmp_path: Path, filled: Filled, table: str) -> None:
    """If a page of any table or index is damaged, then its partition serves what it can or is down, with the
    reason, without a restart; the other one is not disturbed, and no answer is wrong."""
    keys, sids = filled
    flip(tmp_path / "data", table)
    with mesh.LocalNode(tmp_path / "data", partitions=2) as node, node.client(timeout_s=20.0) as client:
        info = wait_for(lambda: (i := client.partitions.info(0)).state in ("ready", "down") and i, "a state")
        assert info.restarts == 0
        fine = {"ok"} if info.state == "ready" else {"partition_unavailable"}
        codes = {p: {ask(lambda k=k: client.routes.get(k)) for k in keys if client.partitions.of(k) == p}
                 for p in (0, 1)}
        assert codes[1] == {"ok"} and codes[0] <= fine | {"storage_read_failed"}
        answers = {ask(lambda sid=sid: client.sessions.events(sid)) for sid in sids}
        assert answers <= fine | {"ok", "storage_read_failed"}
        for sid in sids[:4]:
            ask(lambda sid=sid: client.sessions.start("echo", id=f"new-{sid}"))
        if info.state == "down":
            assert "partition-0.db" in info.cause["reason"]
        elif "storage_read_failed" in codes[0] | answers:
            assert "partition-0.db" in wait_for(lambda: degraded(client), "the status says degraded")
        assert client.partitions.info(0).restarts == 0
        other = next(k for k in keys if client.partitions.of(k) == 1)
        assert ask(lambda: client.routes.set(other, ROUTE)) == "ok"
