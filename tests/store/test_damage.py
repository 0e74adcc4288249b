"""A flipped byte anywhere in a file is an error, or makes no difference. It never is another answer."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from mesh.core import session as sessions
from mesh.core.receipts import Receipt
from mesh.core.records import RunStatus
from mesh.core.route_record import encode_record, encode_route
from mesh.core.run import RunState
from mesh.core.slots import run_id_for
from mesh.core.state import State
from mesh.errors import StoreError
from mesh.store import file
from mesh.store.node_db import NodeDb
from mesh.store.schema import SCHEMA_VERSION
from mesh.store.sqlite import Store

CLIENTS = [bytes([n]) * 16 for n in range(1, 5)]
SIDS = [f"s{n}" for n in range(12)]
FLIPS = 150
#: What recovery reads: a damaged row is left out there, and counted.
LEAVING_OUT = ("live", "active", "routes")


def build(path: Path) -> None:
    """A file with rows of every kind, closed in order."""
    store = Store(path)
    store.acquire(boot_id="boot", offset_ms=7)
    state = State(store, partition=0, epoch=store.epoch, node="mesh")
    for sid in SIDS:
        session = sessions.new_session(state.next_session, sid, "echo", {"tags": [sid]}, 1.0)
        state.next_session += 1
        state.put_session(msgspec.structs.replace(session, runner=0, incarnation=1))
        run = RunState(
            n=state.next_run, id=run_id_for(sid, "0" * 29), session_id=sid, status=RunStatus.RUNNING,
            input="x", options={}, created_at=1.0, attempt=1,
        )
        state.next_run += 1
        state.put_run(run)
        for n in range(10):
            state.append(sid, "message_streamed", {"content": f"{sid} {n} " + "x" * 100}, run=run)
        state.put_progress(run, 2)
        state.announce("started", state.sessions[sid])
        state.spent[7, sid] = {"total_tokens": 9}
    bodies = [encode_route({"external_room_id": str(n)}, 10_000) for n in range(300)]
    routes = {f"a:b:room{n}": encode_record(1, 10**9, 0, 0, body) for n, body in enumerate(bodies)}
    tabled = dict(list(routes.items())[:200])  # the others stand in the log
    store.commit(State(store, partition=0, epoch=store.epoch, node="mesh"), tabled, {}, {}, power=True)
    store.fold_all_routes()
    for key in tabled:
        del routes[key]
    receipts = {(c, n): Receipt((b"answer %d" % n,), 1) for c in CLIENTS for n in (1, 2)}
    store.commit(state, routes, receipts, {}, power=True)
    store.save_counters(state, 1)
    store.close()


def everything(store: Store) -> dict[str, Callable[[], Any]]:
    """Every way to read, by name."""
    reads: dict[str, Callable[[], Any]] = {
        "counters": store.counters, "live": store.live_sessions, "active": store.active_runs,
        "routes": lambda: [row for row in store.routes("", 9_999) if row[1]],
        "feed": lambda: store.feed_events(0, 9_999, 10**9),
        "lifecycle": lambda: store.feed_lifecycle(0, 999), "lowest": store.lowest_lifecycle,
        "epoch": lambda: store.borrow(0),
    }
    for n, sid in enumerate(SIDS, 1):
        reads[f"session {sid}"] = lambda sid=sid: store.session(sid)
        reads[f"run of {sid}"] = lambda sid=sid: store.run(run_id_for(sid, "0" * 29))
        reads[f"runs of {sid}"] = lambda n=n: store.list_runs(n, after=0, limit=99, bytes_max=10**9)
        reads[f"events of {sid}"] = lambda n=n: store.events(n, bytes_max=10**9)
        reads[f"some events of {sid}"] = lambda n=n: store.events(n, after=3, run=n, since=0.0)
    for sid in SIDS:
        reads[f"spent of {sid}"] = lambda sid=sid: store.spent_by_tag(sid)
    for status, agent in ((None, None), (0, None), (None, "echo")):
        reads[f"list {status} {agent}"] = lambda status=status, agent=agent: store.list_sessions(
            status=status, agent_id=agent, after=0, limit=99, bytes_max=10**9)
    for n in range(0, 300, 7):
        reads[f"route {n}"] = lambda n=n: store.route(f"a:b:room{n}")
    for client in CLIENTS:
        reads[f"receipts {client[0]}"] = lambda client=client: store.receipts(client)
    return reads


def read_all(path: Path) -> dict[str, Any]:
    """What each read gives: its value, or the code of its error."""
    found: dict[str, Any] = {}
    try:
        store = Store(path)
    except StoreError as error:
        return {"open": error.code}
    try:
        for name, read in everything(store).items():
            try:
                found[name] = read()
            except StoreError as error:
                found[name] = f"error: {error.code}"
        found["damaged"] = store.damage is not None
    finally:
        store.connection.close()
    return found


def flipped(source: Path, target: Path, at: int, bit: int) -> Path:
    """A copy with one bit turned, without what an earlier copy left."""
    data = bytearray(source.read_bytes())
    data[at] ^= 1 << bit
    for suffix in ("-wal", "-shm", "-journal"):
        target.with_name(target.name + suffix).unlink(missing_ok=True)
    target.write_bytes(data)
    return target


def test_a_flipped_byte_is_an_error_or_makes_no_difference(tmp_path: Path) -> None:
    """If one byte of a file is flipped, anywhere, then each read gives what it gave before, or says that
    something is damaged; nothing hangs, nothing else is raised."""
    sound = tmp_path / "sound.db"
    build(sound)
    expected = read_all(sound)
    assert not any(str(value).startswith("error") for value in expected.values())
    dice = random.Random(7)
    places = [*range(0, 100, 3), 18, 19, 20, *(dice.randrange(sound.stat().st_size) for _ in range(FLIPS))]
    harmless = 0
    for at in places:
        bit = dice.randrange(8)
        found = read_all(flipped(sound, tmp_path / "flipped.db", at, bit))
        if "open" in found:
            assert found["open"] == "storage_read_failed", (at, bit)
            continue
        wrong = {name for name, value in found.items() if name != "damaged" and value != expected[name]}
        for name in wrong:
            left_out = name in LEAVING_OUT and all(row in expected[name] for row in found[name])
            assert found[name] == "error: storage_read_failed" or left_out, (at, bit, name)
        assert found["damaged"] == bool(wrong), (at, bit)
        harmless += not wrong
    assert harmless < len(places) / 8  # pages that no read needs


def test_damage_in_one_page_leaves_the_others_readable(tmp_path: Path) -> None:
    """If a page of routes is damaged, then its routes are refused, and all others are there."""
    sound = tmp_path / "sound.db"
    build(sound)
    at = page_of(sound, "route") + 2000
    store = Store(flipped(sound, tmp_path / "p.db", at, 3))
    answers = []
    for n in range(300):
        try:
            answers.append(store.route(f"a:b:room{n}") is not None)
        except StoreError as error:
            assert error.code == "storage_read_failed" and "checksum" in error.message
            answers.append(False)
    assert 0 < answers.count(False) < 60
    assert "p.db is damaged" in str(store.damage)
    store.connection.close()


def page_of(path: Path, table: str) -> int:
    """Where a leaf page of a table begins."""
    db = apsw.Connection(str(path))
    row = db.execute(
        "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY pageno LIMIT 1", (table,)
    ).fetchone()
    db.close()
    return (int(row[0]) - 1) * 4096


def test_a_file_of_an_older_mesh_gets_checksums_when_it_is_opened(tmp_path: Path) -> None:
    """If a file has none, then opening it rewrites it once, with the same content; a flip is found then."""
    sound, old = tmp_path / "sound.db", tmp_path / "old.db"
    build(sound)
    expected = read_all(sound)
    without_checksums(sound, old)
    assert header(old) == (0, 0)
    store = Store(old)
    assert store.acquire(boot_id="boot", offset_ms=7) == 2 and store.meta("schema") == SCHEMA_VERSION
    store.close()
    assert header(old) == (8, file.MARK)
    found = read_all(old)
    assert {**found, "epoch": 1} == expected
    damaged = read_all(flipped(old, tmp_path / "f.db", page_of(old, "session") + 100, 0))
    assert "error: storage_read_failed" in damaged.values()


def test_who_waits_while_a_file_gets_checksums_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a file of an older mesh is rewritten, then whoever waits hears of it; else nobody does."""
    sound, old = tmp_path / "sound.db", tmp_path / "old.db"
    build(sound)
    without_checksums(sound, old)
    monkeypatch.setattr(file, "TELL_S", 0.0)
    monkeypatch.setattr(file, "_LOOK_STEPS", 10)
    told: list[str] = []
    Store(old, told.append).close()
    assert told and set(told) == {"old.db is rewritten with checksums on its pages: 0 s"}
    told.clear()
    Store(old, told.append).close()
    assert told == []


def without_checksums(source: Path, target: Path) -> None:
    """A file as an older mesh, or one without the extension, would have left it."""
    lines = []
    with apsw.Connection(str(source)) as db:
        shell_rows = {name: db.execute(f"SELECT * FROM {name}").fetchall() for name in tables(db)}
        lines = [sql for (sql,) in db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")]
    plain = sqlite3.connect(target)
    for sql in lines:
        plain.execute(sql)
    for name, rows in shell_rows.items():
        if rows:
            plain.executemany(f"INSERT INTO {name} VALUES ({','.join('?' * len(rows[0]))})", rows)
    plain.execute("UPDATE meta SET value = 1 WHERE name = 'schema'")
    plain.commit()
    plain.close()


def tables(db: apsw.Connection) -> list[str]:
    return [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]


def header(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:100]
    return head[20], int.from_bytes(head[68:72])


def test_without_the_extension_rows_are_still_checked_and_checked_files_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this SQLite cannot checksum pages, then a file without them works, and one with them is refused."""
    sound, old = tmp_path / "sound.db", tmp_path / "old.db"
    build(sound)
    without_checksums(sound, old)
    monkeypatch.setattr(file, "page_checksums", lambda: False)
    with pytest.raises(StoreError) as refused:
        Store(sound)
    assert refused.value.code == "migration_required"
    store = Store(old)
    store.acquire(boot_id="boot", offset_ms=7)
    assert store.meta("schema") == SCHEMA_VERSION and store.session("s0") is not None
    store.connection.execute("UPDATE session SET record = zeroblob(9) WHERE id = 's0'")
    with pytest.raises(StoreError) as damaged:
        store.session("s0")
    assert damaged.value.code == "storage_read_failed"
    store.close()


def test_a_damaged_backup_source_is_never_copied(tmp_path: Path) -> None:
    """If a page is damaged, then a backup fails and leaves no file: a copy would look sound."""
    sound = tmp_path / "sound.db"
    build(sound)
    store = Store(flipped(sound, tmp_path / "p.db", page_of(sound, "event") + 1000, 1))
    with pytest.raises(StoreError) as refused:
        list(store.backup_to(tmp_path / "copy.db", 5))
    assert refused.value.code == "storage_read_failed"
    assert not list(tmp_path.glob("copy*"))
    store.connection.close()


def test_a_copy_keeps_its_checksums(tmp_path: Path) -> None:
    """If a backup is opened, then it reads as the original, and a flip in it is found."""
    sound = tmp_path / "sound.db"
    build(sound)
    store = Store(sound)
    list(store.backup_to(tmp_path / "copy.db", 5))
    store.connection.close()
    expected = read_all(sound)
    assert read_all(tmp_path / "copy.db") == expected
    assert "error: storage_read_failed" in read_all(
        flipped(tmp_path / "copy.db", tmp_path / "f.db", page_of(sound, "run") + 50, 7)).values()


def test_a_flip_in_the_node_database_is_named(tmp_path: Path) -> None:
    """If the map of slots is damaged, then the error names the file, and no wrong map is used."""
    path = tmp_path / "node.db"
    with NodeDb(path) as db:
        db.ensure_map(3)
        db.boot()
        expected = db.slot_map()
    dice = random.Random(3)
    kept = tmp_path / "kept.db"
    shutil.copyfile(path, kept)
    for _ in range(60):
        flipped(kept, path, dice.randrange(kept.stat().st_size), dice.randrange(8))
        try:
            with NodeDb(path) as db:
                assert db.slot_map() == expected
        except StoreError as error:
            assert error.code == "storage_read_failed" and str(path) in error.message


def killed(path: Path, commits: int) -> None:
    """A file whose log was not copied into it, as kill -9 leaves it: each commit is one route."""
    build(path)
    store = Store(path)
    store.acquire(boot_id="boot", offset_ms=7)
    state = State(store, partition=0, epoch=store.epoch, node="mesh")
    body = encode_route({"external_room_id": "x" * 3000}, 10_000)
    for n in range(commits):
        store.commit(state, {f"a:b:late{n}": encode_record(1, 10**9, 0, 0, body)}, {}, {}, power=True)
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{path}{suffix}", f"{path}.killed{suffix}")
    store.close()


def test_a_flip_in_the_log_is_told_from_its_end(tmp_path: Path) -> None:
    """If a byte of the log is flipped, then each commit is there, or the status says that some are lost and
    where the log is kept; a log that a kill cut short is no damage."""
    killed(tmp_path / "p.db", 20)
    source, log = tmp_path / "p.db.killed", (tmp_path / "p.db.killed-wal").read_bytes()
    path, beside = tmp_path / "q.db", tmp_path / "q.db-wal"

    def opened(content: bytes) -> tuple[int, str | None]:
        for old in tmp_path.glob("q.db*"):
            old.unlink()
        shutil.copyfile(source, path)
        beside.write_bytes(content)
        store = Store(path)
        there = sum(store.route(f"a:b:late{n}") is not None for n in range(20))
        damage = store.damage
        store.acquire(boot_id="boot", offset_ms=7)
        store.connection.close()
        again = Store(path)
        assert again.damage is None  # it is told once
        again.connection.close()
        return there, damage

    assert opened(log) == (20, None)
    dice = random.Random(5)
    for at in [*range(0, 32, 3), *(dice.randrange(32, len(log)) for _ in range(80)), len(log) - 1]:
        data = bytearray(log)
        data[at] ^= 1 << dice.randrange(8)
        there, damage = opened(bytes(data))
        assert (there == 20) == (damage is None), at
        assert damage is None or (tmp_path / "q.db-wal.damaged").read_bytes() == bytes(data)
    for cut in (len(log) - 1, len(log) - 4000, len(log) - 4120, len(log) // 2, 40, 10):
        assert opened(log[:cut])[1] is None, cut
