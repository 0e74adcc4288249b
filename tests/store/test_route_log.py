"""The log of routes: what was written is what is read, whatever was folded, killed or damaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import apsw
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from test_damage import flipped, page_of
from test_sqlite import state_of

from mesh.core.route_record import encode_record, encode_route
from mesh.errors import StoreError
from mesh.store import consistency, route_log
from mesh.store.repair import repair
from mesh.store.schema import SCHEMA_VERSION
from mesh.store.sqlite import Store

KEYS = [f"a:b:r{n}" for n in range(12)]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generations of few writes, steps of few keys."""
    monkeypatch.setattr(route_log, "KEPT_MIN", 8)
    monkeypatch.setattr(route_log, "KEYS_PER_ROW", 3)
    monkeypatch.setattr(route_log, "KEYS_PER_STEP", 2)
    monkeypatch.setattr(route_log, "ROWS_PER_STEP", 2)


def record(n: int) -> bytes:
    return encode_record(n, 10**9, 0, 0, encode_route({"external_room_id": f"room {n}"}, 999))


def opened(path: Path, boot_id: str = "boot") -> Store:
    store = Store(path)
    store.acquire(boot_id=boot_id, offset_ms=len(boot_id))
    return store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "p.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = opened(path)
    yield store
    store.connection.close()


def write(store: Store, routes: dict[str, bytes | None]) -> None:
    store.commit(state_of(store), routes, {}, {}, power=False)


def logged(store: Store) -> int:
    found: int = store.connection.execute("SELECT count(*) FROM route_log").fetchall()[0][0]
    return found


def tabled(store: Store) -> list[str]:
    return [row[0] for row in store.connection.execute("SELECT key FROM route ORDER BY key")]


def fold(store: Store, routes: int = 0) -> None:
    """What upkeep does after each batch."""
    store.route_log.turn(routes)
    if store.route_log.due(routes):
        store.fold_routes()


class Model(RuleBasedStateMachine):
    """A store beside a dict: key -> (record, boot id)."""

    @initialize()
    def open(self) -> None:
        self.folder = TemporaryDirectory()
        self.path = Path(self.folder.name) / "p.db"
        self.boot, self.written = "boot", 0
        self.expected: dict[str, tuple[bytes, str]] = {}
        self.store = opened(self.path)

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1), deleted=st.booleans())
    def write(self, keys: list[str], deleted: bool) -> None:
        routes: dict[str, bytes | None] = {}
        for n, key in enumerate(keys):
            self.written += 1
            routes[key] = None if deleted and n % 2 else record(self.written)
        write(self.store, routes)
        for key, value in routes.items():
            self.expected.pop(key, None)
            if value is not None:
                self.expected[key] = value, self.boot

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=5))
    def refuse(self, keys: list[str]) -> None:
        self.store.connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'epoch'")
        with pytest.raises(StoreError):
            write(self.store, dict.fromkeys(keys, record(0)))
        self.store.connection.execute("UPDATE meta SET value = value - 1 WHERE name = 'epoch'")

    @rule(steps=st.integers(1, 8), routes=st.sampled_from((0, 100)))
    def fold(self, steps: int, routes: int) -> None:
        for _ in range(steps):
            fold(self.store, routes)

    @rule()
    def fold_all(self) -> None:
        self.store.fold_all_routes()
        assert logged(self.store) == 0 and tabled(self.store) == sorted(self.expected)

    @rule(again=st.booleans())
    def kill(self, again: bool) -> None:
        self.store.connection.close()
        if not again:
            self.boot += "+"
        self.store = opened(self.path, self.boot)

    @invariant()
    def what_was_written_is_read(self) -> None:
        found: list[tuple[str, bytes, int, str]] = []
        while page := self.store.routes(found[-1][0] if found else "", 4):
            found += page
            if len(page) < 4:
                break
        rows = sorted(self.expected.items())
        assert found == [(key, value, len(boot), boot) for key, (value, boot) in rows]
        for key in KEYS:
            known = self.expected.get(key)
            assert self.store.route(key) == (known and (known[0], len(known[1]), known[1]))

    @invariant()
    def keys_come_in_order(self) -> None:
        found: list[str] = []
        while page := self.store.route_keys(found[-1] if found else "", 3):
            found += page
        assert found == sorted(set(found)) and set(self.expected) <= set(found) <= set(KEYS)

    @invariant()
    def the_file_is_sound(self) -> None:
        for phase in (4, 5):
            assert not list(consistency.of_phase(self.store.connection, phase))
        assert self.store.damage is None

    def teardown(self) -> None:
        self.store.connection.close()
        self.folder.cleanup()


@pytest.mark.usefixtures("short")
def test_what_is_read_is_what_was_written() -> None:
    """If routes are written, deleted, folded in steps, refused, and their partition killed, in any order,
    then every read gives what a dict would."""
    limits = settings(max_examples=15, stateful_step_count=25, deadline=None)
    run_state_machine_as_test(Model, settings=limits)  # type: ignore[no-untyped-call]


def test_what_is_written_again_and_again_never_enters_the_table(store: Store) -> None:
    """If the same few routes are written all the time, then the log stays short and the table untouched."""
    for n in range(200):
        write(store, {KEYS[n % 4]: record(n)})
        fold(store)
    assert tabled(store) == [] and logged(store) < 40
    assert store.route(KEYS[3]) == (record(199), 4, "boot")


def test_asking_whether_a_step_is_due_changes_nothing(store: Store) -> None:
    """If it is asked again and again, then the answer is the same until somebody acts."""
    for n in range(13):
        write(store, {KEYS[n % 12]: record(n)})
    assert [store.route_log.due(0) for _ in range(3)] == [False] * 3
    store.route_log.turn(0)
    assert [store.route_log.due(0) for _ in range(3)] == [True] * 3


@pytest.mark.parametrize("size", [1, 12])
def test_the_log_stays_bounded_however_fast_it_grows(store: Store, size: int) -> None:
    """If every route is a new one, then folding keeps up, with one step for each batch."""
    longest = 0
    for n in range(120):
        write(store, {f"a:b:r{n * size + k}": record(n) for k in range(size)})
        fold(store)
        longest = max(longest, logged(store))
    assert longest <= 60 and len(store.routes("", 9_999)) == 120 * size


def test_a_page_of_keys_looks_at_a_page_of_the_log(store: Store) -> None:
    """If all routes are in the log, then a page of their keys is made of no more than a page of each part."""
    write(store, dict.fromkeys(KEYS, record(1)))
    store.route_log.turn(0)
    write(store, dict.fromkeys(reversed(KEYS), record(2)))
    ordered = sorted(KEYS)
    assert store.route_log.between(ordered[1], None, 3) == set(ordered[2:5])
    assert store.route_keys(ordered[1], 3) == ordered[2:5]


def test_few_large_routes_are_folded_by_their_bytes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If routes are large, then the log is bounded by its bytes, long before it has enough writes."""
    monkeypatch.setattr(route_log, "KEPT_MIN", 10**6)
    monkeypatch.setattr(route_log, "KEPT_BYTES_MAX", 8 * len(record(1)))
    for n in range(120):
        write(store, {f"a:b:r{n}": record(n)})
        fold(store)
    assert logged(store) <= 60 and len(store.routes("", 999)) == 120


def test_a_step_of_folding_takes_few_large_routes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If routes are large, then a step writes, or removes, no more than its bytes say, and all are folded."""
    monkeypatch.setattr(route_log, "KEYS_PER_STEP", 100)
    monkeypatch.setattr(route_log, "ROWS_PER_STEP", 100)
    monkeypatch.setattr(route_log, "BYTES_PER_STEP", 2 * len(record(1)))
    for n, key in enumerate(KEYS):
        write(store, {key: record(n)})
    assert store.route_log.finish()
    found = []
    while store.route_log.finish():
        store.fold_routes()
        found.append((len(tabled(store)), logged(store)))
    assert found[:6] == [(n, 12) for n in range(2, 13, 2)]
    removed = [before - after for (_, before), (_, after) in pairwise(found[5:])]
    assert set(removed) <= {1, 2} and found[-1] == (12, 0)


def test_a_batch_of_large_routes_is_several_rows(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a batch has large routes, then no row of the log has many of them, and all are read at a start."""
    monkeypatch.setattr(route_log, "KEYS_PER_ROW", 100)
    monkeypatch.setattr(route_log, "ROW_BYTES_MAX", 2 * len(record(1)))
    write(store, {key: record(1) for key in KEYS})
    assert logged(store) == 8  # of one or two
    store.connection.close()
    store = opened(path)
    assert len(store.routes("", 99)) == 12
    store.connection.close()


def test_kills_do_not_let_the_log_grow(store: Store, path: Path) -> None:
    """If a partition dies again and again before a generation is long enough, then it is folded still."""
    for n in range(40):
        write(store, {f"a:b:r{n}": record(n)})
        store.connection.close()
        store = opened(path)
        for _ in range(12):
            fold(store)
    assert logged(store) < 30 and len(store.routes("", 99)) == 40
    store.connection.close()


@pytest.fixture
def two_batches(path: Path) -> Path:
    """r0 to r5 in the table, r0 and r1 newer in the log, r2 newer behind them."""
    store = opened(path)
    write(store, {key: record(1) for key in KEYS[:6]})
    store.fold_all_routes()
    write(store, {KEYS[0]: record(20), KEYS[1]: record(21)})
    write(store, {KEYS[2]: record(22)})
    store.close()
    return path


def test_a_damaged_record_of_the_log_costs_that_route_alone(
    two_batches: Path
) -> None:
    """If a record in the log is damaged, then it is refused, never its older one; the rest is there, nothing
    is folded, and repair loses that route alone."""
    store = opened(two_batches)
    [(body,)] = store.connection.execute("SELECT records FROM route_log ORDER BY n LIMIT 1")
    store.connection.execute("UPDATE route_log SET records = ? WHERE n = (SELECT min(n) FROM route_log)",
                             (body.replace(b"room 20", b"room 99"),))
    store.close()
    store = opened(two_batches)
    with pytest.raises(StoreError) as refused:
        store.route(KEYS[0])
    assert refused.value.code == "storage_read_failed"
    assert store.route(KEYS[1]) == (record(21), 4, "boot") and store.route(KEYS[3]) == (record(1), 4, "boot")
    assert [key for key, value, _, _ in store.routes("", 99) if not value] == [KEYS[0]]
    assert KEYS[0] in str(store.damage) and not store.route_log.finish()
    assert [p.subject for p in consistency.of_phase(store.connection, 5)] == [f"route {KEYS[0]}"]
    write(store, {KEYS[0]: record(30)})
    assert store.route(KEYS[0]) == (record(30), 4, "boot")
    store.connection.close()
    done = repair(two_batches)
    store = opened(two_batches)
    assert store.route(KEYS[0]) == (record(30), 4, "boot") and store.damage is None
    assert done.saved["route"] == 6 and not done.lost and logged(store) == 0
    store.connection.close()


def test_records_that_are_no_bytes_are_damaged_ones(two_batches: Path) -> None:
    """If a flipped byte makes a number of a batch's records, then its routes are lost, and no others."""
    store = opened(two_batches)
    store.connection.execute("UPDATE route_log SET records = 7 WHERE n = (SELECT min(n) FROM route_log)")
    store.close()
    done = repair(two_batches)
    assert done.lost == {"route": 2} and done.saved["route"] == 4


def test_a_batch_that_does_not_say_its_keys_puts_older_ones_in_doubt(two_batches: Path) -> None:
    """If the keys of a batch are lost, then what was not written since is refused until it is repaired."""
    store = opened(two_batches)
    first = "(SELECT min(n) FROM route_log)"
    store.connection.execute(f"UPDATE route_log SET head = zeroblob(9) WHERE n = {first}")
    store.close()
    store = opened(two_batches)
    assert store.route(KEYS[2]) == (record(22), 4, "boot")
    for key in (KEYS[0], KEYS[3], "a:b:unknown"):
        with pytest.raises(StoreError, match="a newer one may be lost"):
            store.route(key)
    assert [key for key, value, _, _ in store.routes("", 99) if value] == [KEYS[2]]
    assert "of the log of routes" in str(store.damage)
    store.close()
    done = repair(two_batches)
    assert len(done.gaps) == 1 and "of the log of routes (its checksum is wrong)" in done.gaps[0]
    store = opened(two_batches)
    assert store.route(KEYS[2]) == (record(22), 4, "boot") and store.route(KEYS[3]) is not None
    store.close()


def test_an_unreadable_page_of_the_log_is_passed_over(store: Store, path: Path) -> None:
    """If a page of the log cannot be read, then what stands behind it counts; older routes are in doubt."""
    for n in range(60):
        write(store, {f"a:b:r{n}": record(n)})
    store.close()
    broken = opened(flipped(path, path.with_name("f.db"), page_of(path, "route_log") + 3_000, 1))
    with pytest.raises(StoreError):
        broken.route("a:b:r3")
    assert broken.route("a:b:r59") == (record(59), 4, "boot") and broken.route_log.lost
    with pytest.raises(StoreError):
        broken.route("a:b:unknown")
    broken.close()


def without_keys(path: Path, row: int) -> Path:
    """A copy of a file in which the page with the keys of a row of its log cannot be read."""
    with closing(apsw.Connection(str(path))) as db:
        overflows: Any = db.execute(
            "SELECT pageno FROM dbstat WHERE name = 'route_log' AND path LIKE '%+000000' ORDER BY path")
        pages = [page for (page,) in overflows]
    return flipped(path, path.with_name("f.db"), (pages[row] - 1) * 4096 + 500, 1)


@pytest.mark.parametrize("row", [0, 1, -1])
def test_a_row_of_the_log_without_readable_keys_stops_no_start_and_no_write(
    store: Store, path: Path, row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a row's keys cannot be read, the last row's or that of a log with high numbers, then the start
    passes it over at once, and what is written next has a number of its own."""
    monkeypatch.setattr(route_log, "KEYS_PER_ROW", 1_000)
    store.route_log._last = 1 << 40
    for batch in range(3):
        write(store, {f"a:b:{batch}:{'long' * 20}{n}": record(n) for n in range(200)})
    store.close()
    broken = opened(without_keys(path, row))
    assert broken.route_log.lost and len(broken.route_log.damage) == 1
    write(broken, {KEYS[0]: record(1)})
    assert broken.route(KEYS[0]) == (record(1), 4, "boot") and logged(broken) == 4
    broken.connection.close()


def test_a_log_with_high_numbers_is_removed_as_fast_as_another(store: Store, path: Path) -> None:
    """If a log that was long in use is left behind, then the next start spends no steps on what is gone."""
    store.route_log._last = 1 << 40
    write(store, dict.fromkeys(KEYS, record(1)))
    store.connection.close()
    store = opened(path)
    steps = 0
    while store.route_log.finish() and steps < 20:
        store.fold_routes()
        steps += 1
    assert logged(store) == 0 and tabled(store) == sorted(KEYS)
    store.connection.close()


def test_an_older_file_gets_a_log(path: Path) -> None:
    """If a file is of a schema without the log, then its routes are there, and new ones are logged."""
    store = opened(path)
    write(store, {KEYS[0]: record(1)})
    store.fold_all_routes()
    store.connection.execute("DROP TABLE route_log; UPDATE meta SET value = 4 WHERE name = 'schema'")
    store.close()
    store = opened(path)
    assert store.meta("schema") == SCHEMA_VERSION and store.route(KEYS[0]) == (record(1), 4, "boot")
    write(store, {KEYS[1]: record(2)})
    assert logged(store) == 1 and len(store.routes("", 9)) == 2
    store.close()


def test_a_step_that_meets_a_damaged_page_is_the_last_and_routes_are_written_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a page of the table is damaged, then the log is folded no more and takes writes until it is full."""

    def damaged(*_: object) -> None:
        raise apsw.CorruptError("database disk image is malformed")

    monkeypatch.setattr(route_log, "STUCK_BYTES_MAX", 4_000)
    for n in range(13):
        write(store, {KEYS[n % 12]: record(n)})
    store.route_log.turn(0)
    assert store.route_log.due(0)
    with monkeypatch.context() as broken:
        broken.setattr(store.route_log, "fold", damaged)
        store.fold_routes()
    assert "malformed" in str(store.damage) and not store.route_log.due(0) and not store.route_log.finish()
    write(store, {KEYS[0]: record(50)})
    assert store.route(KEYS[0]) == (record(50), 4, "boot")
    while not store.route_log.due(0):
        write(store, {KEYS[1]: record(51)})
    with pytest.raises(StoreError, match="is full") as refused:
        store.fold_routes()
    assert refused.value.code == "storage_read_failed"
