"""Another number of partitions: every route, session, run and event is still there, whatever was killed
when."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core.moved import place, sender
from mesh.core.receipts import Receipt
from mesh.core.records import RunStatus
from mesh.core.route_record import encode_record, encode_route
from mesh.core.run import RunState
from mesh.core.slots import even_map, route_slot, session_slot
from mesh.core.state import State
from mesh.store import resize as module
from mesh.store.node_db import NodeDb
from mesh.store.resize import resize
from mesh.store.sqlite import Store

SESSIONS = [f"session-{n}" for n in range(40)]
CLIENT = b"c" * 16
KEYS = [f"tg:b:room{n}" for n in range(60)]


def build(folder: Path, partitions: int = 2) -> None:
    """A node's data with routes, sessions, runs and events in each partition."""
    with NodeDb(folder / "node.db") as node:
        node.ensure_map(partitions)
        owners, _, _ = node.slot_map()
    for index in range(partitions):
        store = Store(folder / f"partition-{index}.db")
        store.acquire(boot_id=f"boot-{index}", offset_ms=index)
        state = State(store, partition=index, epoch=1, node="mesh")
        for sid in (s for s in SESSIONS if owners[session_slot(s)] == index):
            session = sessions.new_session(state.next_session, sid, "echo", {"context": {"id": sid}}, 1.0)
            state.next_session += 1
            state.put_session(session)
            state.append(sid, "session_created", {})
            for n in range(3):
                run = RunState(
                    n=state.next_run,
                    id=f"run-{sid}-{n}",
                    session_id=sid,
                    status=RunStatus.RUNNING,
                    input=n,
                    options={},
                    created_at=1.0,
                    attempt=1,
                )
                state.next_run += 1
                state.put_run(run)
                for step in range(4):
                    state.append(sid, "message_streamed", {"n": n, "step": step}, run=run)
                state.put_progress(run, 2)
        routes: dict[str, bytes | None] = {
            key: encode_record(1, 10**9, 0, 0, encode_route({"external_room_id": key}, 9_999))
            for key in KEYS if owners[route_slot(key)] == index}
        receipts = {(CLIENT, number): Receipt((b"%d" % index, None), 1) for number in (1, 2)}
        store.commit(state, routes, receipts, {}, power=False)
        store.close()


def content(folder: Path) -> dict[str, Any]:
    """Everything that users stored, read from the owner of each slot; asserts that nobody else has any of
    it."""
    with NodeDb(folder / "node.db") as node:
        owners, _, count = node.slot_map()
        assert node.pending_map() is None
    found: dict[str, Any] = {"partitions": count}
    for path in sorted(folder.glob("partition-*.db")):
        index = int(path.stem.partition("-")[2])
        store = Store(path)
        store.acquire(boot_id="check", offset_ms=0)
        for key, record, offset_ms, boot_id in store.routes("", 10_000):
            assert owners[route_slot(key)] == index and key not in found
            found[key] = (record, offset_ms, boot_id)
        listed, _ = store.list_sessions(status=None, agent_id=None, after=0, limit=1000, bytes_max=10**9)
        for session in listed:
            assert owners[session_slot(session.id)] == index and session.id not in found
            mine, _ = store.list_runs(session.n, after=0, limit=1000, bytes_max=10**9)
            events, _ = store.events(session.n, limit=1000)
            by_n = {run.n: run.id for run in mine}
            of_runs = store.connection.execute(
                "SELECT seq, run FROM event WHERE session = ? ORDER BY seq", (session.n,)).fetchall()
            found[session.id] = (
                session.context,
                session.seq,
                [(r.id, r.input, r.batch, runs.STATUS_CODE[r.status]) for r in mine],
                [(e.seq, e.type, e.fragment) for e in events],
                [(seq, by_n.get(run)) for seq, run in of_runs],
            )
        for (name,) in store.connection.execute("SELECT DISTINCT client FROM receipt").fetchall():
            assert place(name, index, count) == (index, name)
            for number, receipt in store.receipts(name):
                found[f"receipt {name[16:] or bytes((index,))!r} {number}"] = receipt
        pos = [row[0] for row in store.connection.execute("SELECT pos FROM event ORDER BY pos")]
        assert len(pos) == len(set(pos)) and store.counters()["pos"] >= max(pos, default=0)
        orphans = "SELECT count(*) FROM event WHERE session NOT IN (SELECT n FROM session)"
        assert store.connection.execute(orphans).fetchone() == (0,)
        for table in ("run", "progress"):
            column = (
                "session NOT IN (SELECT n FROM session)"
                if table == "run"
                else "run NOT IN (SELECT n FROM run)"
            )
            assert store.connection.execute(f"SELECT count(*) FROM {table} WHERE {column}").fetchone() == (0,)
        store.close()
    return found


def users(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "partitions"}


def test_there_and_back_keeps_everything(tmp_path: Path) -> None:
    """If a node goes from 2 to 3 partitions and back, then every row is as before, in its new owner alone."""
    build(tmp_path)
    before = content(tmp_path)
    receipts = {f"receipt {bytes((index,))!r} {number}" for index in (0, 1) for number in (1, 2)}
    assert set(KEYS) | set(SESSIONS) | receipts == set(users(before))
    resize(tmp_path, 3)
    grown = content(tmp_path)
    assert grown["partitions"] == 3 and users(grown) == users(before)
    resize(tmp_path, 2)
    assert content(tmp_path) == before


@pytest.mark.parametrize("partitions", [1, 5])
def test_any_other_number_keeps_everything(tmp_path: Path, partitions: int) -> None:
    """If the number changes by more than one, then nothing is lost either."""
    build(tmp_path)
    before = content(tmp_path)
    resize(tmp_path, partitions)
    assert users(content(tmp_path)) == users(before)


def test_the_heir_of_a_partition_answers_for_it_until_it_is_back(tmp_path: Path) -> None:
    """If a partition goes, then its receipts are its heir's, beside that one's own of the same client and as
    old as they were; when it is there again, they are its own."""
    build(tmp_path)
    resize(tmp_path, 1)
    store = Store(tmp_path / "partition-0.db")
    store.acquire(boot_id="check", offset_ms=0)
    assert [receipt.parts[0] for _, receipt in store.receipts(sender(CLIENT, 1, 0))] == [b"1", b"1"]
    assert [receipt.parts[0] for _, receipt in store.receipts(CLIENT)] == [b"0", b"0"]
    seen = {row[0] for row in store.connection.execute("SELECT seen FROM receipt")}
    assert all(0 <= store.served_s() - at < 60 for at in seen)
    store.close()
    resize(tmp_path, 2)
    store = Store(tmp_path / "partition-1.db")
    store.acquire(boot_id="check", offset_ms=0)
    assert [receipt.parts[0] for _, receipt in store.receipts(CLIENT)] == [b"1", b"1"]
    store.close()


def test_the_same_number_changes_nothing(tmp_path: Path) -> None:
    """If the number is the same, then no file is touched and the map keeps its version."""
    build(tmp_path)
    with NodeDb(tmp_path / "node.db") as node:
        before = node.slot_map()
    resize(tmp_path, 2)
    with NodeDb(tmp_path / "node.db") as node:
        assert node.slot_map() == before == (even_map(2), 1, 2)


STEPS = ["set_pending", "set_map", "routes", "session", "_events", "_delete", "_give", "close", "acquire"]


def in_child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("place", STEPS)
@pytest.mark.parametrize("goal", [3, 1])
def test_killed_at_any_step_the_next_start_completes_the_move(tmp_path: Path, place: str, goal: int) -> None:
    """If the move is killed at the first, second, third visit of a step, before or after it, then the next
    one completes it."""
    (tmp_path / "original").mkdir()
    build(tmp_path / "original")
    expected = users(content(tmp_path / "original"))
    for visit in range(1, 7):
        for after in (False, True):
            folder = tmp_path / f"{visit}-{after}"
            folder.mkdir()
            for path in (tmp_path / "original").glob("*.db"):
                (folder / path.name).write_bytes(path.read_bytes())
            killed = in_child(lambda v=visit, a=after, f=folder: resize_killed_at(place, v, a, f, goal))  # type: ignore[misc]
            resize(folder, goal)
            found = content(folder)
            assert users(found) == expected and found["partitions"] == goal, (place, visit, after)
        if killed != 9:
            return  # the step is not visited so often


def resize_killed_at(place: str, visit: int, after: bool, folder: Path, goal: int) -> None:
    """Run a move that exits at the given visit of a step; 9 says that it did."""
    owner: Any = {
        "set_pending": NodeDb, "set_map": NodeDb, "routes": module._Mover, "session": module._Mover,
        "_events": module._Mover, "_delete": module, "_give": module, "close": Store, "acquire": Store}[place]
    original = getattr(owner, place)
    visits = 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal visits
        visits += 1
        if visits == visit and not after:
            os._exit(9)
        result = original(*args, **kwargs)
        if visits == visit:
            os._exit(9)
        return result

    setattr(owner, place, dying)
    resize(folder, goal)


def test_a_move_that_was_begun_is_completed_before_another_one(tmp_path: Path) -> None:
    """If a move to 3 was killed and the next start asks for 1, then both are done, in that order."""
    build(tmp_path)
    expected = users(content(tmp_path))
    assert in_child(lambda: resize_killed_at("session", 3, True, tmp_path, 3)) == 9
    resize(tmp_path, 1)
    found = content(tmp_path)
    assert found["partitions"] == 1 and users(found) == expected
