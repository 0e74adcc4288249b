"""Each session's log: filled in later and in bulk, never missing for a reader, mended when it is damaged."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_damage import flipped, page_of
from test_resize import build, content, resize
from test_sqlite import commit, fill, opened, state_of

from mesh.core import session as sessions
from mesh.core.query import Query
from mesh.core.state import State
from mesh.errors import StoreError
from mesh.log import Log
from mesh.node.health import Health
from mesh.store import by_session, consistency
from mesh.store.by_session import FEW_SESSIONS
from mesh.store.examine import examine
from mesh.store.query import Search
from mesh.store.removing import Removing
from mesh.store.repair import repair
from mesh.store.schema import SCHEMA_VERSION
from mesh.store.sqlite import Store

MANY = FEW_SESSIONS + 4


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = opened(tmp_path / "p.db")
    yield made
    made.close()


def say(store: Store, state: State, sids: list[str], events: int = 2) -> None:
    """A commit with events of these sessions."""
    for sid in sids:
        if sid not in state.sessions:
            fill(state, sid, events=0)
    for n in range(events):
        for sid in sids:
            state.append(sid, "message_streamed", {"n": n})
    commit(store, state)


def crowd(store: Store, count: int = MANY) -> State:
    """A state whose file got events of many sessions in one commit."""
    state = state_of(store)
    say(store, state, [f"s{n}" for n in range(count)])
    return state


def entries(db: apsw.Connection) -> tuple[list[Any], list[Any]]:
    """(what the table says, what it should)."""
    order = "ORDER BY session, seq"
    return (db.execute(f"SELECT session, seq, pos FROM main.log {order}").fetchall(),
            db.execute(f"SELECT session, seq, pos FROM event {order}").fetchall())


def whole(store: Store) -> bool:
    table, events = entries(store.connection)
    return table == events and not store.by_session.behind and not store.by_session.viewed


def seqs(store: Store, session: int) -> list[int]:
    return [event.seq for event in store.events(session)[0]]


def killed(store: Store) -> None:
    """Nothing more is written, as after a kill."""
    store.connection.close()


def aged(path: Path) -> None:
    """Make a file what schema 5 left."""
    db = apsw.Connection(str(path))
    db.execute("CREATE UNIQUE INDEX event_session ON event(session, seq); DROP TABLE log;"
               "DELETE FROM meta WHERE name = 'filled'; UPDATE meta SET value = 5 WHERE name = 'schema'")
    db.close()


def refuse(store: Store, *, on: bool) -> None:
    """Whether the disk has no room for another page."""
    pages = store.connection.execute("PRAGMA page_count").fetchall()[0][0]
    store.connection.execute(f"PRAGMA max_page_count = {pages if on else 1 << 30}").fetchall()


# --- when it is filled in ---


def test_a_commit_of_few_sessions_fills_in_what_it_appends(store: Store) -> None:
    """If few sessions have events behind, then the commit leaves nothing to do for a reader."""
    crowd(store, FEW_SESSIONS)
    assert whole(store)


def test_events_of_many_sessions_are_filled_in_when_one_of_them_is_read(store: Store) -> None:
    """If many sessions appended, then the table waits, and whoever reads one of them finds all of it."""
    state = crowd(store)
    assert entries(store.connection)[0] == [] and len(store.by_session.behind) == MANY
    assert seqs(store, 3) == [1, 2] and whole(store)
    say(store, state, [f"s{n}" for n in range(MANY)])
    say(store, state, ["s1"])  # one more does not pay for the others
    assert seqs(store, MANY + 1) == [] and not whole(store)  # one that has nothing behind
    assert store.ends_of_log(2)[1][0] == 6 and whole(store)


@pytest.mark.parametrize("read", [
    lambda store: store.session("s4").seq == 2,
    lambda store: store.event_type(5, 2) is not None,
    lambda store: store.list_sessions(
        status=None, agent_id=None, after=4, limit=1, bytes_max=99)[0][0].seq == 2,
    lambda store: len(Removing(store, State(store, partition=0, epoch=1, node="n")).events_of(
        5, 0, [], but=True)[0]) == 2,
])
def test_every_way_to_read_by_session_fills_in_first(store: Store, read: Any) -> None:
    """If a session has events behind, then no way to read by session misses them."""
    crowd(store)
    assert read(store) and whole(store)


def test_a_search_in_one_session_fills_in_first(store: Store) -> None:
    """If a session has events behind, then a search finds them."""
    crowd(store)
    query = Query("sequence_asc", {"session_ids": ["s5"]}, 9)
    found = Search(store, lambda _: True, bytes_max=1 << 20).events(query)
    assert [event.seq for _, _, (_, event) in found.rows] == [1, 2] and whole(store)


def test_the_table_is_due_at_the_bound_and_whole_at_a_checkpoint(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If FILL_EVENTS are behind, then it is due; a checkpoint leaves nothing behind."""
    monkeypatch.setattr(by_session, "FILL_EVENTS", 3 * MANY)
    state = crowd(store)
    assert not store.by_session.due
    say(store, state, [f"s{n}" for n in range(MANY)], events=1)
    assert store.by_session.due
    store.fill_log()
    assert not store.by_session.due and whole(store)
    say(store, state, [f"s{n}" for n in range(MANY)], events=1)
    store.checkpoint()
    assert whole(store)


def test_commits_that_fill_in_themselves_move_the_mark_at_the_bound(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no more than few sessions ever append, then a kill still leaves no more than the bound to do."""
    monkeypatch.setattr(by_session, "FILL_EVENTS", 10)
    state = state_of(store)
    for _ in range(9):
        say(store, state, ["s"], events=3)
        assert state.pos - by_session.marked(store.connection) < 10
    assert by_session.marked(store.connection) > 0 and whole(store)


def test_a_checkpoint_leaves_nothing_behind_the_mark(tmp_path: Path) -> None:
    """If few sessions append and a page of events is damaged after a checkpoint, then the next start does
    not need it: it costs only what stands on it."""
    store = opened(tmp_path / "p.db")
    state = state_of(store)
    for n in range(9):
        say(store, state, [f"s{n}"], events=30)
    store.close()
    path = flipped(tmp_path / "p.db", tmp_path / "f.db", page_of(tmp_path / "p.db", "event") + 2000, 1)
    store = opened(path)
    assert not store.by_session.viewed and store.damage is None
    assert len(seqs(store, 9)) == 30
    with pytest.raises(StoreError, match="checksum"):
        seqs(store, 1)
    store.close()


# --- kills ---


@pytest.mark.parametrize("count", [3, MANY])
def test_what_a_killed_process_left_behind_is_filled_in_at_the_start(tmp_path: Path, count: int) -> None:
    """If a process is killed between a commit and the filling, then the next one begins with all of it."""
    path = tmp_path / "p.db"
    pid = os.fork()
    if pid == 0:
        crowd(opened(path), count)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    store = opened(path)
    assert whole(store) and len(entries(store.connection)[0]) == 2 * count and store.damage is None
    assert seqs(store, 1) == [1, 2]
    store.close()


def test_the_mark_is_no_further_than_the_table_after_a_failed_commit(store: Store) -> None:
    """If a commit fails behind its events, then nothing of it is taken for filled in, or for behind."""
    state = crowd(store)
    store.fill_log()
    store.connection.execute(
        "CREATE TEMP TRIGGER full BEFORE INSERT ON lifecycle BEGIN SELECT RAISE(ABORT, 'full'); END")
    for count in (1, MANY):
        for n in range(count):
            state.append(f"s{n}", "message_streamed", {})
        state.announce("started", state.sessions["s1"])
        with pytest.raises(StoreError):
            store.commit(state, {}, {}, {}, power=True)
        assert whole(store) and seqs(store, 1) == [1, 2]
    store.connection.execute("DROP TRIGGER full")


# --- a disk that refuses ---


def test_a_full_disk_leaves_every_log_readable(store: Store) -> None:
    """If the table cannot be filled, then readers find what is behind all the same, also what is appended
    meanwhile; when there is room again, then the table has all of it."""
    state = crowd(store)
    store.fill_log()
    store.checkpoint(truncate=True)
    say(store, state, [f"s{n}" for n in range(MANY)], events=200)
    refuse(store, on=True)
    assert all(len(seqs(store, n)) == 202 for n in range(1, MANY + 1)) and store.by_session.viewed
    with pytest.raises(StoreError, match="full"):
        store.fill_log()
    assert store.session("s6").seq == 202  # type: ignore[union-attr]
    refuse(store, on=False)
    say(store, state, [f"s{n}" for n in range(3)])
    assert seqs(store, 1)[-1] == 204 and not whole(store)
    store.checkpoint()
    assert whole(store) and seqs(store, 1)[-1] == 204


def test_a_reader_writes_nothing_into_a_file_in_which_a_write_met_damage(store: Store) -> None:
    """If a write met damage, then a session's events that are behind are read, and not filled in."""
    crowd(store)
    health = Health(store, Log("partition-0"), boot_id="boot", offset_ms=0, starts=1)
    health.failed(StoreError("a page is damaged", code="storage_read_failed"))
    before = store.wal_bytes_estimate()
    assert store.by_session.behind and not health.probe()
    assert all(seqs(store, n) == [1, 2] for n in range(1, MANY + 1))
    assert store.wal_bytes_estimate() == before and store.by_session.viewed
    assert store.connection.execute("SELECT count(*) FROM main.log").fetchall() == [(0,)]


def test_reads_under_a_borrowed_epoch_find_what_is_behind(tmp_path: Path) -> None:
    """If the lease cannot be written, then a file whose table is behind is read whole, and later filled."""
    killed_store = opened(tmp_path / "p.db")
    crowd(killed_store)
    killed(killed_store)
    store = Store(tmp_path / "p.db")
    store.borrow(1)
    assert seqs(store, 5) == [1, 2] and entries(store.connection)[0] == []
    store.acquire(boot_id="boot", offset_ms=0)
    assert whole(store)
    store.close()


# --- damage ---


def test_two_events_in_one_place_are_damage_and_stop_nobody(store: Store) -> None:
    """If an event has the place of another one, then that is noted, the first stays, and commits go on."""
    state = crowd(store)
    store.fill_log()
    state.sessions["s1"] = msgspec.structs.replace(state.sessions["s1"], seq=1)
    say(store, state, ["s1", *(f"s{n}" for n in range(2, MANY))])
    second = f"event {2 * MANY + 1}"
    assert seqs(store, 2) == [1, 2, 3] and f"{second} has the place of another one" in str(store.damage)
    found = list(consistency.of_phase(store.connection, consistency.PHASES.index("event")))
    assert [(p.kind, p.subject) for p in found] == [("wrong_log", second)]
    say(store, state, ["s1"])
    assert seqs(store, 2) == [1, 2, 3, 4, 5]


def test_an_entry_that_is_missing_or_wrong_is_found_and_mended(tmp_path: Path) -> None:
    """If the table does not say what the events say, then that is a problem, no reader gets an event of
    another session, and repair makes the table anew."""
    path = tmp_path / "p.db"
    store = opened(path)
    crowd(store)
    store.fill_log()
    store.connection.execute("DELETE FROM log WHERE session = 3 AND seq = 1")
    store.connection.execute("UPDATE log SET pos = 1 WHERE session = 4 AND seq = 2")
    assert seqs(store, 3) == [2] and seqs(store, 4) == [1]
    store.close()
    assert len([line for line in examine(path) if "not in the log of its session" in line]) == 2
    assert not repair(path).lost and examine(path) == []
    store = opened(path)
    assert whole(store) and seqs(store, 3) == seqs(store, 4) == [1, 2]
    store.close()


def test_a_damaged_page_of_the_table_is_told_and_mended(tmp_path: Path) -> None:
    """If a page of the table is damaged, then what needs it is refused, events that are behind are still
    shown, and repair loses nothing."""
    sound = tmp_path / "sound" / "p.db"
    sound.parent.mkdir()
    store = opened(sound)
    state = state_of(store)
    for _ in range(12):
        say(store, state, [f"s{n}" for n in range(40)], events=5)
    store.close()
    path = flipped(sound, tmp_path / "p.db", page_of(sound, "log") + 3000, 1)
    store = opened(path)
    refused = set()
    for n in range(1, 41):
        try:
            assert len(seqs(store, n)) == 60
        except StoreError as error:
            assert error.code == "storage_read_failed"
            refused.add(n)
    assert refused and len(refused) < 20 and "damaged" in str(store.damage)
    state = state_of(store)
    for n in range(40):
        if n + 1 not in refused:
            state.session(f"s{n}")
            state.append(f"s{n}", "message_streamed", {})
    commit(store, state)
    assert len(seqs(store, max(set(range(1, 41)) - refused))) == 61
    store.close()
    assert any("checksum is wrong" in line for line in examine(path))
    done = repair(path)
    assert not done.lost and done.saved["event"] == 40 * 60 + 40 - len(refused) and examine(path) == []


# --- files of schema 5 ---


def test_a_file_of_schema_5_is_read_at_once_and_copied_in_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a file has the old index, then its logs are whole at every moment of the copying, over a kill, and
    with events that come and go meanwhile."""
    monkeypatch.setattr(by_session, "COPY_ROWS", 7)
    path = tmp_path / "p.db"
    store = opened(path)
    crowd(store)
    store.close()
    aged(path)
    assert examine(path) == []
    store = opened(path)
    assert store.meta("schema") == SCHEMA_VERSION and store.by_session.copying and seqs(store, 2) == [1, 2]
    store.copy_log()
    state = state_of(store)
    for sid in ("s0", "s19"):  # one that is copied, one that is not
        removing, session = Removing(store, state), state.session(sid)
        rows, _ = removing.events_of(session.n, 0, [], but=True)
        removing.prune(session, rows[:1])
        state.append(sid, "message_streamed", {})
    commit(store, state)
    say(store, state, ["new"])
    killed(store)
    store = opened(path)
    assert store.by_session.copying and seqs(store, 1) == seqs(store, 20) == [2, 3]
    assert examine_live(store) == []
    steps = 0
    while store.by_session.copying:
        store.copy_log()
        steps += 1
    assert steps > 3 and whole(store) and not by_session.has_old_index(store.connection)
    assert seqs(store, 1) == seqs(store, 20) == [2, 3] and seqs(store, MANY + 1) == [1, 2]
    store.close()
    assert examine(path) == []


def examine_live(store: Store) -> list[str]:
    db, phases = store.connection, range(len(consistency.PHASES))
    return [problem.text for phase in phases for problem in consistency.of_phase(db, phase)]


def test_a_copied_index_is_read_by_nobody_when_the_disk_fills_up_then(tmp_path: Path) -> None:
    """If the old index was copied and dropped, and what is behind cannot be filled in, then a session is read
    by the table, and not by a look at all events."""
    path = tmp_path / "p.db"
    store = opened(path)
    state = crowd(store)
    store.close()
    aged(path)
    store = opened(path)
    state = state_of(store)
    for n in range(MANY):
        state.session(f"s{n}")
        state.append(f"s{n}", "message_streamed", {})
    commit(store, state)
    with store.connection:
        store.by_session.copy()
    store.by_session.copying = False
    store.connection.execute(
        "CREATE TEMP TRIGGER full BEFORE INSERT ON main.log BEGIN SELECT RAISE(ABORT, 'full'); END")
    with pytest.raises(StoreError):
        store.fill_log()
    [(sql,)] = store.connection.execute("SELECT sql FROM sqlite_temp_schema WHERE name = 'log'")
    assert "main.log" in sql and all(seqs(store, n) == [1, 2, 3] for n in range(1, MANY + 1))
    store.connection.execute("DROP TRIGGER full")
    store.fill_log()
    assert whole(store)
    store.close()


def test_a_file_of_schema_5_on_a_disk_that_refuses_is_read(tmp_path: Path) -> None:
    """If an older file cannot be written, then its logs are read by the old index."""
    path = tmp_path / "p.db"
    store = opened(path)
    crowd(store)
    store.close()
    aged(path)
    store = Store(path)
    store.borrow(1)
    assert seqs(store, 5) == [1, 2]
    killed(store)


# --- rows that go, and move ---


def test_purge_and_prune_take_what_is_behind_from_both_tables(store: Store) -> None:
    """If a session has events behind when it is removed or pruned, then neither table keeps any of them."""
    state = crowd(store)
    removing = Removing(store, state)
    found, _ = removing.events_behind(0, [], but=True)
    gone = [row for row in found if row[1] == 2 and row[2] == 1]
    removing.prune(state.sessions["s1"], gone)
    assert seqs(store, 2) == [2] and whole(store)
    say(store, state, [f"s{n}" for n in range(MANY)])
    store.connection.execute("UPDATE session SET deleted = ? WHERE n = 5", (sessions.ERASED,))
    assert removing.purge(5, 100) == 0  # its run first
    assert removing.purge(5, 100) == 4 and whole(store) and seqs(store, 5) == []


def test_slots_move_with_events_that_are_behind(tmp_path: Path) -> None:
    """If files are killed with events behind, or are of schema 5, then another number of partitions has every
    event, and whole tables."""
    build(tmp_path, 2)
    for index, path in enumerate(sorted(tmp_path.glob("partition-*.db"))):
        store = opened(path)
        state = state_of(store)
        for (sid,) in store.connection.execute("SELECT id FROM session").fetchall():
            state.session(sid)
            state.append(sid, "message_streamed", {"behind": True})
        commit(store, state)
        assert not whole(store)
        killed(store)
        if index:
            opened(path).close()
            aged(path)
    copied = tmp_path / "copied"
    shutil.copytree(tmp_path, copied)
    before = content(copied)
    for count in (3, 1):
        resize(tmp_path, count)
        assert content(tmp_path) == before | {"partitions": count}
        for path in tmp_path.glob("partition-*.db"):
            store = opened(path)
            assert whole(store)
            store.close()


# --- whatever happens, in whatever order ---

WHO = st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True)
STEPS = st.lists(st.one_of(
    st.tuples(st.just("say"), WHO, st.integers(1, 3)),
    st.tuples(st.sampled_from(["read", "prune", "purge"]), st.integers(0, 5)),
    st.tuples(st.sampled_from(["checkpoint", "kill", "close", "full", "room", "age", "step"])),
), max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_a_log_is_whole_whatever_happened_before(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, steps: list[Any]
) -> None:
    """If commits, readers, removals, kills, full disks and upgrades follow each other in any order, then each
    log is what was said and not removed, and in the end so is the table."""
    for name, value in (("FEW_SESSIONS", 2), ("FILL_EVENTS", 12), ("COPY_ROWS", 3)):
        monkeypatch.setattr(by_session, name, value)
    world = World(tmp_path_factory.mktemp("log") / "p.db")
    try:
        for step in steps:
            getattr(world, step[0])(*step[1:])
        world.check()
    finally:
        killed(world.store)


class World:
    """A file, and what its logs should be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs: dict[int, list[int]] = {}
        self.purged: set[int] = set()
        self._open()

    def _open(self) -> None:
        self.store = opened(self.path)
        self.state = state_of(self.store)
        assert self.store.damage is None
        if not self.logs:
            say(self.store, self.state, [f"s{n}" for n in range(6)], events=1)
            self.logs = {n: [1] for n in range(6)}

    def say(self, who: list[int], events: int) -> None:
        who = [n for n in who if n not in self.purged]
        for _ in range(events):
            for n in who:
                self.state.session(f"s{n}")
                self.state.append(f"s{n}", "message_streamed", {})
                self.logs[n].append(self.state.sessions[f"s{n}"].seq)
        try:
            commit(self.store, self.state)
        except StoreError:  # no room: nothing of it happened
            for n in who:
                del self.logs[n][-events:]
            self.state.undo_to(0)
            self.state.end_batch()
        if self.store.by_session.due:
            self.room()
            self.store.fill_log()

    def read(self, n: int) -> None:
        assert seqs(self.store, n + 1) == self.logs[n]

    def prune(self, n: int) -> None:
        self.room()
        if n in self.purged:
            return
        removing, session = Removing(self.store, self.state), self.state.session(f"s{n}")
        rows, _ = removing.events_of(session.n, 0, [], but=True)
        if len(rows) > 1:
            removing.prune(session, rows[:1])
            del self.logs[n][:1]

    def purge(self, n: int) -> None:
        self.room()
        if len(self.purged) < 4:
            db, removing = self.store.connection, Removing(self.store, self.state)
            db.execute("UPDATE session SET deleted = ? WHERE n = ?", (sessions.ERASED, n + 1))
            removing.purge(n + 1, 2)
            while removing.purge(n + 1, 2):
                pass
            self.purged.add(n)
            self.logs[n] = []

    def checkpoint(self) -> None:
        self.store.checkpoint()

    def kill(self) -> None:
        killed(self.store)
        self._open()

    def close(self) -> None:
        self.room()
        self.store.save_counters(self.state, 1)
        self.store.close()
        self._open()

    def age(self) -> None:
        if not self.store.by_session.copying:
            self.close()
            self.store.close()
            aged(self.path)
            self._open()

    def step(self) -> None:
        self.room()
        if self.store.by_session.copying:
            self.store.copy_log()

    def full(self) -> None:
        refuse(self.store, on=True)

    def room(self) -> None:
        refuse(self.store, on=False)

    def check(self) -> None:
        for n in self.logs:
            self.read(n)
        self.room()
        while self.store.by_session.copying:
            self.step()
        self.store.fill_log()
        assert whole(self.store) and self.store.damage is None
        for n in self.logs:
            self.read(n)
