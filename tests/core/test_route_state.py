"""The route table: capacity, memory, undo, the store and loading."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import pytest
from route_cases import (
    KT,
    F,
    G,
    K,
    R,
    code,
    content,
    get,
    put,
    resolve,
    run,
    table,
)

from mesh.core import route_state, wire
from mesh.core.route_record import (
    HEADER_BYTES,
    decode_record,
    encode_record,
    encode_route,
    header_of,
    rebase,
)
from mesh.core.routes import RouteTable
from mesh.errors import StoreError

# --- capacity ---


def test_the_entry_used_longest_ago_is_evicted() -> None:
    """If a third entry enters a table of two, then the first one goes (R22)."""
    t = table(2)
    t.watched = True
    for name in "abc":
        put(t, f"c:b:{name}", {"external_room_id": f"ext-{name}"}, 0)
    assert list(t.entries) == ["c:b:b", "c:b:c"]
    assert t.take_dirty()["c:b:a"] is None
    assert t.notes[-2:] == [
        (
            "evicted",
            {
                "count": 1,
                "entries": 2,
                "session_key": "c:b:a",
                "reason": "capacity",
                "external_room_id": "ext-a",
                "component": "session_manager",
                "partition": 3,
            },
        ),
        (
            "set",
            {
                "count": 1,
                "evicted": 1,
                "entries": 2,
                "session_key": "c:b:c",
                "component": "session_manager",
                "partition": 3,
            },
        ),
    ]


@pytest.mark.parametrize("use", ["get", "resolve", "set", "room"])
def test_using_an_entry_protects_it(use: str) -> None:
    """If the older entry was read or written since, then the other one is evicted (WR4, R24)."""
    t = table(3)
    for key in (K, "c:b:x", "c:b:y"):
        put(t, key, R, 0)
    for _ in range(1000 if use == "set" else 1):
        {
            "get": lambda: get(t, K, 1),
            "resolve": lambda: resolve(t, K, 1),
            "set": lambda: put(t, K, R, 1),
            "room": lambda: resolve(t, KT, 1),
        }[use]()
    assert t.count == 3
    put(t, "c:b:z", R, 2)
    assert K in t.entries
    assert "c:b:x" not in t.entries


def test_expired_entries_are_evicted_before_live_ones() -> None:
    """If room is needed, then an expired entry goes even when it was used last (WR4), and is remembered."""
    t = table(3)
    put(t, "c:b:old", R, 0)
    put(t, "c:b:brief", R, 0, 10)
    put(t, "c:b:mid", R, 0)
    put(t, "c:b:new", R, 10)
    assert set(t.entries) == {"c:b:old", "c:b:mid", "c:b:new"}
    assert resolve(t, "c:b:brief", 10, F)[5] == "stale"


def test_one_key_set_over_and_over_keeps_the_memory_flat() -> None:
    """If one key is set a hundred thousand times, then nothing gathers anywhere (R26, WR3)."""
    t = table(10)
    put(t, K, R, 0)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for now in range(100_000):
        t.set([K, R, 1 + now * 7919 % 100_000], now, [])
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 20_000
    assert t.count == 1


def test_a_key_set_and_deleted_over_and_over_keeps_the_memory_flat() -> None:
    """If keys come and go, then their filings go with them."""
    t = table(10)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for now in range(20_000):
        t.set([f"c:b:{now}", R], now, [])
        t.delete([f"c:b:{now - now % 2}"], now, [])
        t.dirty.clear()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 40_000


def test_a_route_costs_at_most_450_bytes() -> None:
    """If a table holds 20 000 routes of 100 bytes under keys of 30 letters, each costs at most 450 bytes."""
    count = 20_000
    route = {"external_room_id": "ext-" + "x" * 50, "channel_type": "telegram", "rest": "y" * 8}
    assert len(wire.pack(route)) >= 100
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    t = table(count, ttl=1_800_000)
    for index in range(count):
        t.set([f"telegram:bot_1:room_{index:010d}", route], index * 10, [])
        t.dirty.clear()
    per_route = (tracemalloc.get_traced_memory()[0] - before) / count
    tracemalloc.stop()
    assert per_route <= 450, per_route


# --- undo and the store ---


def test_undo_restores_memory_and_dirty_marks() -> None:
    """If a batch of writes fails, then its undo list brings back every route and every mark."""
    t = table(3)
    for index, key in enumerate((K, KT, "c:b:x")):
        put(t, key, R, index, 1_000 if index else 20)
    t.take_dirty()
    assert code(t.get, ["c:b:none"], 5) == "not_found"
    resolve(t, "c:b:guess", 30, F)  # evicts the expired K, lazily
    before, dirty, order = content(t), dict(t.dirty), list(t.entries)
    undo: list[Any] = []
    t.set(["c:b:new", G], 40, undo)
    t.set([KT, G, 5], 41, undo)
    t.delete(["c:b:x"], 42, undo)
    t.delete([K], 42, undo)
    t.set([K, R], 43, undo)
    t.prune([], 100, undo)
    t.set_many([[["c:b:1", R], ["c:b:2", R], ["bad", R], ["c:b:3", R], ["c:b:4", R]]], 44, undo)
    drained = t.take_dirty()
    t.put_back(drained)
    run(undo)
    assert (content(t), t.dirty) == (before, dirty)
    assert set(t.entries) == set(order)
    assert resolve(t, K, 50, F)[5] == "stale"


def test_undo_puts_an_evicted_entry_back_at_the_cold_end() -> None:
    """If an eviction is undone, then the entry is again the next to go."""
    t = table(2)
    put(t, "c:b:a", R, 0)
    put(t, "c:b:b", R, 0)
    undo: list[Any] = []
    t.set(["c:b:c", R], 0, undo)
    run(undo)
    assert list(t.entries) == ["c:b:a", "c:b:b"]


def test_an_undo_over_capacity_is_trimmed_by_the_next_write() -> None:
    """If a read filled the place before the undo, then the next write evicts until the bound is kept."""
    t = table(2)
    put(t, "c:b:a", R, 0)
    put(t, "c:b:b", R, 0)
    undo: list[Any] = []
    t.delete(["c:b:a"], 0, undo)
    resolve(t, "c:b:guess", 0, F)
    run(undo)
    assert t.count == 3
    put(t, "c:b:d", R, 1)
    assert t.count == 2


def test_a_lazy_change_is_dirty_but_not_undone() -> None:
    """If a read wrote back or removed something, then it is to be stored, whatever becomes of the writes."""
    t = table()
    put(t, K, R, 0, 10)
    t.take_dirty()
    resolve(t, K, 20, F)
    assert set(t.dirty) == {K}
    assert decode_record(t.dirty[K] or b"").provenance == "guessed"


def test_a_store_that_takes_nothing_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """If too many changes wait for the store, then fallbacks are answered but not written back."""
    monkeypatch.setattr(route_state, "DIRTY_SPARE_MAX", 3)
    t = table(2)
    put(t, K, R, 0)
    for index in range(20):
        assert resolve(t, f"c:b:{index}", 0, F)[0] == "ext-f"
        assert resolve(t, KT, 0)[0] == "ext-r"
        assert len(t.dirty) <= 6
    t.take_dirty()
    resolve(t, "c:b:x", 0, F)
    assert set(t.dirty) >= {"c:b:x"}


def test_put_back_does_not_overwrite_what_came_later() -> None:
    """If a key changed after the marks were taken, then the later mark stays."""
    t = table()
    put(t, K, R, 0)
    put(t, KT, R, 0)
    taken = t.take_dirty()
    t.delete([K], 1, [])
    t.put_back(taken)
    assert t.dirty[K] is None
    assert t.dirty[KT] == taken[KT]


def stored(*rows: tuple[str, dict[str, Any], int, int]) -> dict[str, bytes]:
    """Rows as a store holds them: key, route, updated, ttl."""
    t = table()
    for key, route, updated, ttl in rows:
        put(t, key, route, updated, ttl)
    return {key: record for key, record in t.take_dirty().items() if record is not None}


def loading(rows: dict[str, bytes], capacity: int = 100) -> RouteTable:
    t = table(capacity)
    t.loading = True
    t.fetch = rows.get
    return t


def test_a_row_that_is_not_loaded_yet_is_found() -> None:
    """If a key is asked for while loading, then its row is fetched before it is called missing."""
    rows = stored((K, R, 0, 500), ("c:b:x", G, 0, 50))
    t = loading(rows)
    assert get(t, K, 100) == [R, 100, 400, "learned"]
    assert resolve(loading(rows), KT, 100)[2] == "partition_fallback"
    assert code(t.get, ["c:b:x"], 100) == "expired"
    assert code(t.get, ["c:b:x"], 100) == "not_found"
    assert loading(rows).delete([K], 0, []) == wire.OK_TRUE
    assert set(t.dirty) == {"c:b:x"}


def test_loading_never_overrides_what_happened_since_the_start() -> None:
    """If a key was set, deleted or removed since the start, then its old row is passed over."""
    rows = stored((K, R, 0, 500), (KT, R, 0, 500), ("c:b:x", R, 0, 500), ("c:b:y", R, 0, 50))
    t = loading(rows)
    put(t, K, G, 10)
    t.delete([KT], 10, [])
    assert code(t.get, ["c:b:y"], 60) == "expired"
    t.load(rows.items())
    t.loaded()
    assert {key: entry.route for key, entry in content(t).items()} == {K: G, "c:b:x": R}
    assert (t.loading, t.fetch) == (False, None)
    put(t, KT, R, 70)
    assert get(t, KT, 70)[0] == R


def test_an_undone_delete_makes_the_row_count_again() -> None:
    """If a delete while loading is undone, then the route is back; so is one that a set had covered."""
    rows = stored((K, R, 0, 500), (KT, R, 0, 500))
    t = loading(rows)
    undo: list[Any] = []
    t.delete([K], 0, undo)
    t.set([KT, G], 0, undo)
    run(undo)
    assert (get(t, K, 0)[0], get(t, KT, 0)[0], t.dirty) == (R, R, {})


def test_loaded_rows_are_colder_than_everything_used() -> None:
    """If rows are loaded after a use, then they are evicted first; rows before other rows are hotter."""
    rows = stored(*((f"c:b:{index}", R, 0, 500) for index in range(3)))
    t = loading(rows)
    put(t, K, R, 0)
    t.load(rows.items())
    assert list(t.entries) == ["c:b:2", "c:b:1", "c:b:0", K]


def test_rows_over_the_capacity_leave_the_store() -> None:
    """If more rows are stored than fit, then the surplus is evicted, said, deleted and not fetched."""
    rows = stored(*((f"c:b:{index}", R, 0, 500) for index in range(3)))
    t = loading(rows, capacity=2)
    t.watched = True
    t.load(rows.items())
    assert (t.count, t.dirty) == (2, {"c:b:2": None})
    assert [(what, fields["session_key"]) for what, fields in t.notes] == [("evicted", "c:b:2")]
    assert code(t.get, ["c:b:2"], 0) == "not_found"


def test_a_fetched_row_keeps_the_capacity() -> None:
    """If a fetch fills the table over its capacity, then the entry used longest ago goes."""
    rows = stored((K, R, 0, 500))
    t = loading(rows, capacity=1)
    put(t, "c:b:x", G, 0)
    assert get(t, K, 0)[0] == R
    assert list(t.entries) == [K]
    assert t.dirty["c:b:x"] is None


@pytest.mark.parametrize(
    ("shift", "now", "age", "left"),
    [
        (-9_900, 150, 50, 450),
        (-9_990, 150, 140, 360),
        (0, 10_100, 100, 400),
        (-9_000, 150, 0, 500),
    ],
)
def test_a_reboot_moves_the_times(shift: int, now: int, age: int, left: int) -> None:
    """If the machine rebooted, then ages go on by wall time; a wall clock set back gives no extra life."""
    rows = stored((K, R, 10_000, 500))
    t = table()
    t.load(rows.items(), shift, now_ms=now)
    assert get(t, K, now) == [R, age, left, "learned"]
    if shift:
        assert decode_record(rebase(rows[K], shift, now)) == decode_record(t.entries[K])


def test_a_reboot_long_ago_leaves_expired_routes() -> None:
    """If the machine was off for longer than the time to live, then the route is expired."""
    rows = stored((K, R, 10_000, 500))
    t = table()
    t.load(rows.items(), -1_000_000, now_ms=50)
    assert code(t.get, [K], 50) == "expired"
    t.load(stored((K, R, 10_000, 500)).items(), -1_000_000, now_ms=50)
    assert t.sweep(50, 10) == 1


def test_a_row_from_before_the_mark_is_loaded() -> None:
    """If a row lacks msgpack's mark, as older ones do, then it says the same, and a list may hold it."""
    route, at, size = encode_route(R, 10_000)
    row = struct.pack(">qqBIII", -5, 95, 1, 7, at + 29, size) + route
    marked = encode_record(-5, 95, 1, 7, (route, at, size))
    assert header_of(row) == header_of(marked) and decode_record(row) == decode_record(marked)
    t = table()
    t.load([(K, row)])
    assert wire.unpack(t.entries[K]) == t.entries[K][5:] and len(t.entries[K]) == len(row) + 5


@pytest.mark.parametrize("record", [b"", b"x" * HEADER_BYTES, encode_record(0, 1, 0, 0, (b"ab", 1, 99))])
def test_a_damaged_row_is_an_error(record: bytes) -> None:
    """If a stored row is no record, then loading says so."""
    with pytest.raises(StoreError):
        table().load([(K, record)])
    with pytest.raises(StoreError):
        decode_record(record)


def test_a_record_survives_its_round_trip() -> None:
    """If a record is decoded, then it says what was encoded."""
    body = encode_route(R, 100)
    record = encode_record(-5, 95, 1, 7, body)
    assert decode_record(record) == (-5, 95, "guessed", R)
