"""Repair: whatever byte of a file is turned, what can be read is saved and fits together."""

from __future__ import annotations

import random
from pathlib import Path

import apsw
import pytest
from test_damage import flipped, page_of
from test_sqlite import commit, fill, opened, state_of

from mesh.core.route_record import encode_record, encode_route
from mesh.errors import StoreError
from mesh.store import consistency
from mesh.store.examine import examine
from mesh.store.repair import repair

SESSIONS, EVENTS, ROUTES = 40, 12, 60


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "sound" / "partition-0.db"
    path.parent.mkdir()
    store = opened(path)
    state = state_of(store)
    for n in range(SESSIONS):
        fill(state, f"s{n}", events=EVENTS)
    record = encode_record(1, 10**12, 0, 0, encode_route({"external_room_id": "x" * 90}, 999))
    commit(store, state, routes={f"a:b:r{n}": record for n in range(ROUTES - 10)})
    store.fold_all_routes()
    commit(store, state_of(store), routes={f"a:b:r{n}": record for n in range(ROUTES - 10, ROUTES)})
    store.close()
    return path


def copied(sound: Path, tmp_path: Path, at: int, bit: int = 0) -> Path:
    return flipped(sound, tmp_path / "partition-0.db", at, bit)


def counted(path: Path) -> dict[str, int]:
    store = opened(path)
    found = {
        table: store.connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        for table in ("session", "run", "event", "route")
    }
    assert not store.damage
    store.close()
    return found


@pytest.mark.parametrize("table", ["event", "session", "run", "route"])
def test_a_damaged_page_costs_what_stood_in_it(sound: Path, tmp_path: Path, table: str) -> None:
    """If a byte of a page is turned, then repair saves all but the rows it hit, and keeps the old file."""
    before = counted(sound)
    path = copied(sound, tmp_path, page_of(sound, table) + 3000)
    assert examine(path)
    done = repair(path)
    assert examine(path) == [] and path.with_name(done.kept_as).exists()
    after = counted(path)
    gone = before["session"] - after["session"]  # and with a session its run and its events
    assert before[table] - after[table] <= 1 and after["route"] >= before["route"] - (table == "route")
    assert before["run"] - after["run"] == gone + (table == "run" and before["run"] != after["run"])
    assert before["event"] - after["event"] in (EVENTS * gone, EVENTS * gone + (table == "event"))


def test_a_log_that_lost_events_says_so(sound: Path, tmp_path: Path) -> None:
    """If an event is lost, then its session's row tells that it is gone, and the check finds no hole."""
    db = apsw.Connection(str(sound))
    db.execute("UPDATE event SET fragment = zeroblob(30) WHERE session = 3 AND seq = 5")
    db.close()
    done = repair(sound)
    assert done.lost == {"event": 1} and "session s2" in done.gaps[0]
    store = opened(sound)
    session = store.session("s2")
    assert session is not None and (session.pruned, session.pruned_to, session.seq) == (1, 5, EVENTS)
    for phase in range(len(consistency.PHASES)):
        assert list(consistency.of_phase(store.connection, phase)) == []
    store.close()


def test_any_flipped_byte_leaves_a_sound_file_or_an_untouched_one(sound: Path, tmp_path: Path) -> None:
    """If any byte is turned, then repair gives a sound file with nearly everything, or refuses."""
    before = counted(sound)
    dice = random.Random(3)
    size = sound.stat().st_size
    for at in [*range(16, 100, 9), *(dice.randrange(4096, size) for _ in range(12))]:
        path = copied(sound, tmp_path, at, dice.randrange(8))
        content = path.read_bytes()
        try:
            repair(path)
        except StoreError:
            assert path.read_bytes() == content and at < 4096
            continue
        assert examine(path) == [], at
        after = counted(path)
        assert sum(after.values()) > 0.5 * sum(before.values()), (at, after)
        assert not [p for p in tmp_path.iterdir() if "salvage" in p.name or "mended" in p.name]


def test_a_file_in_use_is_not_repaired(sound: Path) -> None:
    """If a node uses the file, then repair refuses and changes nothing."""
    store = opened(sound)
    with pytest.raises(StoreError):
        repair(sound)
    store.close()


def test_what_does_not_fit_together_is_found(sound: Path) -> None:
    """If rows are missing or damaged, then each kind of problem is named."""
    db = apsw.Connection(str(sound))
    db.execute("DELETE FROM session WHERE n = 5")
    db.execute("DELETE FROM event WHERE session = 7 AND seq IN (3, 4)")
    db.execute("UPDATE route SET record = x'01' WHERE key = 'a:b:r7'")
    db.execute("UPDATE run SET record = x'01' WHERE n = 9")
    found = [p for phase in range(len(consistency.PHASES)) for p in consistency.of_phase(db, phase)]
    db.close()
    assert sorted((p.kind, p.subject) for p in found) == [
        ("damaged", "route a:b:r7"), ("damaged", "run 9"), ("hole", "s6"), ("orphan_event", "session row 5"),
        ("orphan_run", "run-s4")]
    assert [p.text for p in found if p.kind == "hole"] == ["events 3 to 4 are missing"]
