"""One partition's file: what a commit keeps, what a fence refuses, what damage looks like."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from mesh.core import events as ev
from mesh.core import session as sessions
from mesh.core.receipts import Receipt
from mesh.core.records import RunStatus
from mesh.core.route_record import encode_record, encode_route
from mesh.core.run import RunState
from mesh.core.session import SessionState
from mesh.core.slots import session_slot
from mesh.core.state import State
from mesh.errors import StoreError
from mesh.store.sqlite import Store

CLIENT = b"c" * 16


def opened(path: Path) -> Store:
    store = Store(path)
    store.acquire(boot_id="boot", offset_ms=7)
    return store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = opened(tmp_path / "p.db")
    yield made
    made.close()


def state_of(store: Store) -> State:
    counters = store.counters()
    state = State(store, partition=0, epoch=store.epoch, node="mesh")
    state.pos, state.lseq = counters["pos"], counters["lseq"]
    state.next_session, state.next_run = counters["next_session"], counters["next_run"]
    return state


def fill(state: State, sid: str = "s", events: int = 3, **changes: Any) -> SessionState:
    """A session with a running run and some events."""
    session = msgspec.structs.replace(
        sessions.new_session(state.next_session, sid, "echo", {"tags": ["t"]}, 1.0), **changes
    )
    state.next_session += 1
    state.put_session(session)
    run = RunState(
        n=state.next_run,
        id=f"run-{sid}",
        session_id=sid,
        status=RunStatus.RUNNING,
        input="x",
        options={},
        created_at=1.0,
        attempt=1,
    )
    state.next_run += 1
    state.put_run(run)
    for n in range(events):
        state.append(sid, "message_streamed", {"n": n}, run=run)
    state.put_progress(run, 2)
    state.announce("started", session)
    return session


def commit(store: Store, state: State, routes: Any = None, receipts: Any = None, settled: Any = None) -> None:
    store.commit(state, routes or {}, receipts or {}, settled or {}, power=True)
    state.end_batch()


def route(room: str = "r") -> bytes:
    return encode_record(1, 10**9, 0, 0, encode_route({"external_room_id": room}, 10_000))


def test_a_commit_is_read_back_by_the_next_incarnation(tmp_path: Path) -> None:
    """If a batch was committed, then sessions, runs, events, feed, routes and receipts are there again."""
    store = opened(tmp_path / "p.db")
    state = state_of(store)
    fill(state, runner=0, incarnation=1)
    commit(store, state, {"a:b:c": route()}, {(CLIENT, 1): Receipt((b"x", None), 1)})
    store.connection.close()  # no checkpoint, as after a kill
    again = opened(tmp_path / "p.db")
    assert again.epoch == store.epoch + 1
    assert again.counters() == {"pos": 3, "lseq": 1, "next_session": 2, "next_run": 2, "sessions": 1}
    assert again.session("s") == state.sessions["s"] and again.run("run-s") == state.runs["run-s"]
    assert again.live_sessions() == [state.sessions["s"]] and [r.batch for r in again.active_runs()] == [2]
    found, complete = again.events(1)
    assert [e.seq for e in found] == [1, 2, 3] and complete
    assert again.routes("", 9) == [("a:b:c", route(), 7, "boot")] and again.route("a:b:c") == (
        route(),
        7,
        "boot",
    )
    assert again.receipts(CLIENT) == [(1, Receipt((b"x", None), 1))]
    assert [topic for topic, _ in again.feed_lifecycle(0, 9)] == ["lifecycle.started.s"]
    assert [sid for sid, _ in again.feed_events(1, 9, 10**6)] == ["s", "s"]
    again.close()


def test_a_transaction_that_fails_at_any_statement_writes_nothing(store: Store) -> None:
    """If the disk refuses in the middle of a commit, then nothing of it is there and the next one works."""
    state = state_of(store)
    store.connection.execute(
        "CREATE TEMP TRIGGER full BEFORE INSERT ON receipt BEGIN SELECT RAISE(ABORT, 'full'); END"
    )
    fill(state)
    with pytest.raises(StoreError) as refused:
        store.commit(state, {"a:b:c": route()}, {(CLIENT, 1): Receipt((b"x",))}, {}, power=True)
    assert refused.value.code == "store_unavailable"
    assert store.session("s") is None and store.counters()["pos"] == 0 and store.routes("", 9) == []
    store.connection.execute("DROP TRIGGER full")
    store.commit(state, {}, {(CLIENT, 1): Receipt((b"x",))}, {}, power=False)
    assert store.session("s") is not None


def test_a_really_full_disk_is_store_unavailable(store: Store) -> None:
    """If SQLite says SQLITE_FULL, then it is our error, and there is room again afterwards."""
    pages = store.connection.execute("PRAGMA page_count").fetchone()[0]
    store.connection.execute(f"PRAGMA max_page_count = {pages}")
    state = state_of(store)
    fill(state, events=2_000)
    with pytest.raises(StoreError) as refused:
        store.commit(state, {}, {}, {}, power=True)
    assert refused.value.details == {"reason": "FullError"}
    assert not store.connection.in_transaction
    store.connection.execute("PRAGMA max_page_count = 1000000")
    commit(store, state)
    assert store.counters()["pos"] == 2_000


@pytest.mark.parametrize("write", [
    lambda s: s.commit(state_of(s), {"a:b:c": route()}, {}, {}, power=True),
    lambda s: s.probe(),
    lambda s: s.sweep(silent_before=1, lifecycle_below=1),
    lambda s: s.save_counters(state_of(s), 1),
])
def test_every_write_is_fenced_by_the_epoch(store: Store, write: Callable[[Store], None]) -> None:
    """If another incarnation holds the lease, then no write of the old one gets through."""
    store.connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'epoch'")
    with pytest.raises(StoreError) as refused:
        write(store)
    assert refused.value.code == "stale_epoch"
    assert store.routes("", 9) == [] and not store.connection.in_transaction


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """If a newer mesh wrote the file, then it is refused and left as it was."""
    store = opened(tmp_path / "p.db")
    store.connection.execute("UPDATE meta SET value = 99 WHERE name = 'schema'")
    store.close()
    other = Store(tmp_path / "p.db")
    with pytest.raises(StoreError) as refused:
        other.acquire(boot_id="b", offset_ms=0)
    assert refused.value.code == "migration_required"
    assert other.meta("schema") == 99 and other.meta("epoch") == 1
    other.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """If the file is something else, then the error says so in our words."""
    (tmp_path / "p.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError) as refused:
        opened(tmp_path / "p.db")
    assert refused.value.code == "storage_read_failed"


@pytest.mark.parametrize("table", ["session", "run", "event", "route"])
def test_a_flipped_byte_is_an_error_and_does_not_keep_the_rest_down(store: Store, table: str) -> None:
    """If a row is damaged, then reading it is storage_read_failed, recovery leaves it out and counts it."""
    state = state_of(store)
    for sid in ("s", "t"):
        fill(state, sid, runner=0, incarnation=1)
    commit(store, state, {"a:b:c": route(), "a:b:d": route()})
    store.fold_all_routes()
    column = "fragment" if table == "event" else "record"
    key = {"event": "pos", "route": "key"}.get(table, "n")
    blob = bytearray(
        store.connection.execute(f"SELECT {column} FROM {table} ORDER BY {key} LIMIT 1").fetchone()[0]
    )
    blob[-1] ^= 1
    store.connection.execute(
        f"UPDATE {table} SET {column} = ? WHERE {key} = (SELECT min({key}) FROM {table})", (bytes(blob),)
    )
    reads: dict[str, Callable[[], Any]] = {
        "session": lambda: store.session("s"),
        "run": lambda: store.run("run-s"),
        "event": lambda: store.events(1),
        "route": lambda: store.route("a:b:c"),
    }
    with pytest.raises(StoreError) as refused:
        reads[table]()
    assert refused.value.code == "storage_read_failed"
    assert len(store.live_sessions()) == 2 - (table == "session")
    assert len(store.active_runs()) == 2 - (table == "run")
    assert sum(1 for row in store.routes("", 9) if row[1]) == 2 - (table == "route")
    assert store.damaged == (table != "event")


def test_a_record_that_has_another_shape_is_damage_too(store: Store) -> None:
    """If a record's checksum is right but its content is not ours, then it is the same error, not a crash."""
    from mesh.store.file import checksum

    junk = msgspec.msgpack.encode([1, 2, 3])
    columns = "n, id, slot, status, agent_id, live, record, sum"
    store.connection.execute(f"INSERT INTO session({columns}) VALUES (1, 's', ?, 0, 'a', 1, ?, ?)",
                             (session_slot("s"), junk, checksum(junk)))
    with pytest.raises(StoreError) as refused:
        store.session("s")
    assert refused.value.code == "storage_read_failed" and store.live_sessions() == []


def test_settled_receipts_are_deleted_with_the_commit(store: Store) -> None:
    """If a client settled numbers, then their rows go in the same transaction; others stay."""
    state = state_of(store)
    commit(store, state, receipts={(CLIENT, n): Receipt((b"x",), 1) for n in range(1, 6)})
    commit(store, state, receipts={(CLIENT, 6): Receipt((b"x",), 4)}, settled={CLIENT: 4})
    assert [n for n, _ in store.receipts(CLIENT)] == [4, 5, 6]
    assert store.receipts(CLIENT)[-1][1].done_below == 4


def test_a_page_ends_at_its_limit_and_at_its_bytes(store: Store) -> None:
    """If there is more than a page holds, then it says so; cursors lead to the rest without holes."""
    state = state_of(store)
    for n in range(25):
        fill(state, f"s{n:02}", events=1)
    commit(store, state)
    for limit, bytes_max in [(10, 10**6), (1000, 300), (1, 1)]:
        seen: list[str] = []
        after: int | None = 0
        while after is not None:
            page, after = store.list_sessions(
                status=None, agent_id=None, after=after, limit=limit, bytes_max=bytes_max
            )
            seen += [s.id for s in page]
        assert seen == [f"s{n:02}" for n in range(25)]
    assert store.list_sessions(status=1, agent_id="echo", after=0, limit=9, bytes_max=1) == ([], None)


def test_events_are_filtered_and_paged(store: Store) -> None:
    """If filters are given, then only what matches comes, in order, with the word whether it is all."""
    state = state_of(store)
    fill(state, events=10)
    for name in ("error_occurred", "session_paused"):
        state.append("s", name, {})
    commit(store, state)
    assert [e.seq for e in store.events(1, after=9)[0]] == [10, 11, 12]
    assert [e.seq for e in store.events(1, types=[ev.TYPE_CODE["error_occurred"]])[0]] == [11]
    assert [e.seq for e in store.events(1, run=1, after=7)[0]] == [8, 9, 10]
    assert [e.seq for e in store.events(1, before=3)[0]] == [1, 2]
    found, complete = store.events(1, limit=5)
    assert len(found) == 5 and not complete
    found, complete = store.events(1, bytes_max=1)
    assert len(found) == 1 and not complete
    assert store.events(1, since=10.0) == ([], True)


def test_sweep_keeps_the_newest_lifecycle_message(store: Store) -> None:
    """If old lifecycle messages are deleted, then the newest stays, so that numbers never turn back."""
    state = state_of(store)
    session = fill(state)
    for _ in range(5):
        commit(store, state)
        state.announce("started", session)
    commit(store, state)
    store.sweep(silent_before=0, lifecycle_below=100)
    assert store.lowest_lifecycle() == 6 == store.counters()["lseq"]


def test_counters_outlive_their_rows(store: Store) -> None:
    """If the newest rows are gone, then the saved counters still say where to go on."""
    state = state_of(store)
    fill(state)
    commit(store, state)
    store.save_counters(state, 1)
    store.connection.execute("DELETE FROM event")
    store.connection.execute("DELETE FROM lifecycle")
    assert (store.counters()["pos"], store.counters()["lseq"]) == (3, 1)


@pytest.mark.parametrize("power", [True, False])
def test_a_committed_batch_survives_kill_9_in_the_next_one(tmp_path: Path, power: bool) -> None:
    """If the process is killed inside a transaction, then all before it is there and nothing of it."""
    path = tmp_path / "p.db"
    pid = os.fork()
    if pid == 0:
        store = opened(path)
        state = state_of(store)
        fill(state, "kept")
        store.commit(state, {"a:b:c": route()}, {}, {}, power=power)
        state.end_batch()
        fill(state, "lost")
        store._end = lambda: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        store.commit(state, {}, {}, {}, power=power)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    store = opened(path)
    assert store.session("kept") is not None and store.session("lost") is None
    assert store.route("a:b:c") is not None and store.counters()["pos"] == 3
    store.close()


def test_a_backup_is_complete_though_it_is_written_meanwhile(store: Store, tmp_path: Path) -> None:
    """If commits go on during a backup, then the copy is one sound state that has them."""
    state = state_of(store)
    fill(state, events=5_000)
    commit(store, state)
    steps = store.backup_to(tmp_path / "copy.db", 20)
    assert next(steps) is False
    fill(state, "t")
    commit(store, state)
    assert list(steps)[-1] is True
    copy = apsw.Connection(str(tmp_path / "copy.db"))
    assert copy.execute("SELECT count(*) FROM session").fetchone() == (2,)
    assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    copy.close()
    assert sorted(p.name for p in tmp_path.iterdir() if "part" in p.name) == []


def test_a_backup_that_is_given_up_leaves_no_file(store: Store, tmp_path: Path) -> None:
    """If a backup does not end, then nothing that looks like one is left."""
    state = state_of(store)
    fill(state, events=5_000)
    commit(store, state)
    steps = store.backup_to(tmp_path / "copy.db", 1)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert not list(tmp_path.glob("copy*"))
