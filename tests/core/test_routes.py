"""The route table: the resolution table row by row, order of use, expiry, undo, loading, telemetry."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from mesh.config import RoutesSection
from mesh.core import wire
from mesh.core.route_record import (
    HEADER_BYTES,
    ROUTE_DEPTH_MAX,
    TTL_MS_MAX,
    decode_record,
    encode_record,
    encode_route,
    rebase,
)
from mesh.core.routes import LIST_BYTES_MAX, LIST_LIMIT_MAX, MANY_MAX, RouteTable
from mesh.errors import InvalidArgument, NotFound, StoreError

K = "telegram:bot_1:room_1"
KT = "telegram:bot_1:room_1:t1"
R = {"external_room_id": "ext-r"}
F = {"external_room_id": "ext-f"}
G = {"external_room_id": "ext-g"}
TTL = 1_000
GUESS = 300


def table(capacity: int = 100, *, memory: int = 100, ttl: int = TTL, guess: int = GUESS) -> RouteTable:
    settings = RoutesSection(
        ttl_ms=ttl, guess_ttl_ms=guess, max_entries_per_partition=capacity, expired_memory_max=memory
    )
    return RouteTable(settings, route_bytes_max=4096, partition=3)


def value(reply: bytes) -> Any:
    status, result = wire.unpack(reply)
    assert status == 0
    return result


def put(t: RouteTable, key: str, route: dict[str, Any], now: int, ttl: int | None = None) -> None:
    assert t.set([key, route, ttl], now, []) == wire.OK_NIL


def get(t: RouteTable, key: str, now: int) -> Any:
    return value(t.get([key], now))


def resolve(t: RouteTable, key: str, now: int, *fallbacks: Any) -> Any:
    return value(t.resolve([key, list(fallbacks)], now))


def code(call: Any, *args: Any) -> str:
    with pytest.raises((NotFound, InvalidArgument)) as caught:
        call(*args)
    return caught.value.code


# --- the resolution table (2.5). E and R: missing, live, expired (still here), gone (expired and removed) ---

GONE, EXPIRED, LIVE, MISSING = "gone", "expired", "live", "missing"


def arrange(e: str, r: str, key: str) -> tuple[RouteTable, int]:
    """A table at time 100 with the exact entry and the room entry in the wanted states."""
    t = table()
    for name, state, route in ((K, r, R), (key, e, {"external_room_id": "ext-e"})):
        if state != MISSING:
            put(t, name, route, 0, TTL if state == LIVE else 50)
            if state == GONE:
                t.prune([], 100, [])
    return t, 100


ROWS = [
    ("D1", KT, LIVE, MISSING, F, ["ext-e", "state_hit", False, False, None]),
    ("D1 room", K, LIVE, LIVE, F, ["ext-e", "state_hit", False, False, None]),
    ("D2", KT, MISSING, LIVE, F, ["ext-r", "partition_fallback", True, False, "thread_scope_miss"]),
    ("D3", KT, EXPIRED, LIVE, F, ["ext-r", "partition_fallback", True, True, "stale"]),
    ("D3 gone", KT, GONE, LIVE, F, ["ext-r", "partition_fallback", True, True, "stale"]),
    ("D4", KT, MISSING, MISSING, F, ["ext-f", "provided_fallback", True, False, "miss"]),
    ("D5", KT, MISSING, EXPIRED, F, ["ext-f", "provided_fallback", True, True, "stale"]),
    ("D5 gone", KT, MISSING, GONE, F, ["ext-f", "provided_fallback", True, True, "stale"]),
    ("D6", KT, EXPIRED, MISSING, F, ["ext-f", "provided_fallback", True, True, "stale"]),
    ("D6 both", KT, EXPIRED, EXPIRED, F, ["ext-f", "provided_fallback", True, True, "stale"]),
    ("D6 gone", KT, GONE, GONE, F, ["ext-f", "provided_fallback", True, True, "stale"]),
    ("D7", K, MISSING, MISSING, F, ["ext-f", "provided_fallback", True, False, "miss"]),
    ("D8", K, EXPIRED, EXPIRED, F, ["ext-f", "provided_fallback", True, True, "stale"]),
    ("D8 gone", K, GONE, GONE, F, ["ext-f", "provided_fallback", True, True, "stale"]),
]


@pytest.mark.parametrize(("row", "key", "e", "r", "fallback", "expected"), ROWS, ids=[row[0] for row in ROWS])
def test_resolve_follows_the_decision_table(
    row: str, key: str, e: str, r: str, fallback: dict[str, Any], expected: list[Any]
) -> None:
    """If the exact entry, the room entry and the fallback are as in a row, then its outcome is answered."""
    t, now = arrange(e, r, key)
    room, route, *rest = resolve(t, key, now, fallback)
    assert [room, *rest] == expected
    assert route["external_room_id"] == room


@pytest.mark.parametrize(("row", "key", "e", "r", "fallback", "expected"), ROWS, ids=[row[0] for row in ROWS])
def test_resolve_after_a_fallback_is_a_hit(
    row: str, key: str, e: str, r: str, fallback: dict[str, Any], expected: list[Any]
) -> None:
    """If a key was resolved, then the next resolve of it hits what was answered, whatever is offered (R10)."""
    t, now = arrange(e, r, key)
    resolve(t, key, now, fallback)
    assert resolve(t, key, now, G) == [expected[0], {"external_room_id": expected[0]}, "state_hit", False, False, None]


@pytest.mark.parametrize("fallbacks", [None, [], "junk", 7, [{}], [None, 1, {"external_room_id": None}], {}])
@pytest.mark.parametrize(("e", "stale"), [(MISSING, False), (EXPIRED, True), (GONE, True)])
def test_resolve_with_nothing_is_no_route(fallbacks: Any, e: str, stale: bool) -> None:
    """If neither an entry nor a usable fallback is there, then the answer is no_route (D9), and says stale."""
    t, now = arrange(e, MISSING, KT)
    with pytest.raises(NotFound) as caught:
        t.resolve([KT, fallbacks], now)
    assert (caught.value.code, caught.value.details) == ("no_route", {"stale": stale})


def test_a_missing_fallback_argument_is_none() -> None:
    """If the fallbacks are left out, then there are none."""
    assert code(table().resolve, [K], 0) == "no_route"


@pytest.mark.parametrize("fallbacks", [[{}, F, G], F, [None, "x", F]])
def test_the_first_usable_fallback_is_taken(fallbacks: Any) -> None:
    """If fallbacks hold junk, then the first usable one is taken; a single map is a list of one (R18)."""
    assert value(table().resolve([K, fallbacks], 0))[0] == "ext-f"


def test_a_thread_is_no_route_of_its_room() -> None:
    """If only a thread is stored, then its room has no route (R16)."""
    t = table()
    put(t, KT, R, 0)
    assert code(t.resolve, [K], 0) == "no_route"


def test_a_room_fallback_is_written_under_the_thread() -> None:
    """If a thread takes its room's route, then get of the thread returns it as a guess (R12)."""
    t = table()
    put(t, K, R, 0)
    resolve(t, KT, 200, F)
    assert get(t, KT, 200) == [R, 0, 800, "guessed"]


def test_a_copy_of_a_room_route_ends_when_the_original_does() -> None:
    """If a room's route is copied to a thread, then the copy inherits the remaining time (R30, WR5)."""
    t = table(ttl=1_800_000)
    put(t, K, R, 0, 1_000)
    resolve(t, KT, 900)
    assert code(t.get, [KT], 1_200) == "expired"


@pytest.mark.parametrize(("ttl", "guess", "lives"), [(1_000, 300, 300), (200, 300, 200)])
def test_a_guess_lives_shortly(ttl: int, guess: int, lives: int) -> None:
    """If a caller's fallback is written back, then it lives for guess_ttl_ms, or the usual time if less."""
    t = table(ttl=ttl, guess=guess)
    resolve(t, K, 0, F)
    assert get(t, K, 0) == [F, 0, lives, "guessed"]


def test_set_overwrites_a_guess() -> None:
    """If a guess is there, then set replaces it with a learned route and the full time (WR7)."""
    t = table()
    resolve(t, K, 0, F)
    put(t, K, R, 10)
    assert get(t, K, 10) == [R, 0, TTL, "learned"]


def test_a_copy_does_not_evict_its_original() -> None:
    """If the table holds one entry only, then a room's route is used but not copied."""
    t = table(1)
    put(t, K, R, 0)
    assert resolve(t, KT, 0)[2] == "partition_fallback"
    assert resolve(t, K, 0)[2] == "state_hit"
    assert t.count == 1


def test_a_copy_at_capacity_evicts_another_entry() -> None:
    """If the table is full and the room was used longest ago, then its copy evicts somebody else."""
    t = table(2)
    put(t, K, R, 0)
    put(t, "c:b:other", G, 0)
    resolve(t, KT, 0)
    assert list(t.entries) == [K, KT]


@pytest.mark.parametrize(
    "fallback", [{"external_room_id": "x", "big": "y" * 5000}, {"external_room_id": "x", 5: 1}]
)
def test_a_fallback_that_set_would_refuse_is_used_once(fallback: dict[Any, Any]) -> None:
    """If a fallback breaks the rules of a route, then it is answered but not remembered."""
    t = table()
    assert resolve(t, K, 0, fallback)[:3] == ["x", fallback, "provided_fallback"]
    assert t.count == 0


def test_the_room_is_cut_out_of_the_route_wherever_it_stands() -> None:
    """If the same bytes stand earlier in the route, or the id is no text, then resolve is still right."""
    for room in ("x", 7, -1, 1.5, True, [1, "a"], {"a": None}, "ä" * 50, b"raw"):
        for route in (
            {"external_room_id": room},
            {"a": "external_room_id", "nested": {"external_room_id": room}, "external_room_id": room, "z": room},
            {"a": {"external_room_id": "other"}, "external_room_id": room},
            {**{f"k{i}": i for i in range(20)}, "external_room_id": room},
        ):
            t = table()
            put(t, K, route, 0)
            assert resolve(t, K, 0)[:2] == [room, route]
            assert resolve(t, KT, 0)[:2] == [room, route]
            assert value(table().resolve([K, route], 0))[:2] == [room, route]


# --- set, get, delete ---


def test_get_of_a_key_that_was_never_set_is_not_found() -> None:
    """If nothing was set, then get says not_found (R02)."""
    assert code(table().get, [K], 0) == "not_found"


def test_get_returns_the_route_unchanged_with_its_ages() -> None:
    """If a route has fields of its own, then they survive; age and time left are exact."""
    t = table()
    route = {"z": [1, {"deep": None}], "external_room_id": "ext", "channel_type": "telegram", "b": b"\x00\xff", "f": 1.5}
    put(t, K, route, 1_000)
    found = get(t, K, 1_250)
    assert found == [route, 250, 750, "learned"]
    assert list(found[0]) == list(route)


def test_times_beyond_32_bits_are_answered_too() -> None:
    """If a route may live for centuries, then its ages still fit the reply."""
    t = table()
    put(t, K, R, 0, TTL_MS_MAX)
    assert get(t, K, 2**33) == [R, 2**33, TTL_MS_MAX - 2**33, "learned"]


def test_a_route_is_live_until_the_very_millisecond_it_expires() -> None:
    """If the time equals expires_at, then the entry is expired: first expired, then not_found (2.4)."""
    t = table()
    put(t, K, R, 0, 50)
    assert get(t, K, 49)[2] == 1
    assert code(t.get, [K], 50) == "expired"
    assert code(t.get, [K], 50) == "not_found"
    assert t.take_dirty() == {K: None}


def test_overwriting_renews_the_time_to_live() -> None:
    """If a key is set again, then its time starts anew, be it longer or shorter."""
    t = table()
    put(t, K, R, 0, 50)
    put(t, K, F, 40, 50)
    assert get(t, K, 80)[0] == F
    put(t, K, G, 80, 5)
    assert code(t.get, [K], 85) == "expired"


@pytest.mark.parametrize("ttl", [0, -5, "x", 1.5, True, TTL_MS_MAX + 1, [], 2**63])
def test_a_bad_ttl_is_refused(ttl: Any) -> None:
    """If a time to live is no whole number in range, then invalid_ttl, and nothing is stored."""
    t = table()
    assert code(t.set, [K, R, ttl], 0, []) == "invalid_ttl"
    assert (t.count, t.dirty) == (0, {})


def _nested(depth: int) -> Any:
    inner: Any = 1
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize("route", [
    None, [], "x", 7, {}, {"room_id": "x"}, {"external_room_id": None}, {"external_room_id": "x", 1: 2},
    {b"external_room_id": "x"}, {"external_room_id": "x", "big": "y" * 4096}, {"external_room_id": "\ud800"},
    {"external_room_id": "x", "n": 2**70}, {"external_room_id": "x", "set": {1}},
    {"external_room_id": "x", "deep": _nested(ROUTE_DEPTH_MAX)}, {"external_room_id": _nested(900)},
])
def test_a_bad_route_is_refused(route: Any) -> None:
    """If a route breaks a rule, then invalid_route, and nothing is stored."""
    t = table()
    assert code(t.set, [K, route], 0, []) == "invalid_route"
    assert (t.count, t.dirty, t.notes) == (0, {}, [])


@pytest.mark.parametrize("key", [
    None, 7, [], ["a", "b", "c", None], {}, b"a:b:c", "", "a:b", "a:b:c:d:e", "a::c", ":b:c", "a:b:c:", "a:b:c%2d",
    "a:b:c%3a", "a:b:c\n", "a:b:%", "a:b:\ud800", "a:b:" + "x" * 1024, True, _nested(900),
])
def test_a_key_that_is_not_canonical_is_refused_everywhere(key: Any) -> None:
    """If the text is not the one text of a key, then every operation says invalid_session_key (R06)."""
    t = table()
    calls = [(t.get, [key], 0), (t.resolve, [key, F], 0), (t.set, [key, R], 0, []), (t.delete, [key], 0, [])]
    assert {code(*call) for call in calls} == {"invalid_session_key"}
    assert (t.count, t.dirty) == (0, {})


@pytest.mark.parametrize("args", [[], [K, R, 1, 2, 3]])
def test_a_wrong_number_of_arguments_is_refused(args: list[Any]) -> None:
    """If an operation gets too few or too many arguments, then invalid_argument."""
    t = table()
    reads = [t.get, t.resolve, t.get_many, t.resolve_many, t.list]
    writes = [t.set, t.set_many, t.delete]
    assert {code(read, args, 0) for read in reads} == {"invalid_argument"}
    assert {code(write, args, 0, []) for write in writes} == {"invalid_argument"}
    assert code(t.prune, [1], 0, []) == "invalid_argument"


def test_delete_says_whether_a_live_route_was_there() -> None:
    """If a route is live, then delete answers true; if it expired or never was, false."""
    t = table()
    put(t, K, R, 0, 50)
    put(t, KT, R, 0, 500)
    assert t.delete([KT], 100, []) == wire.OK_TRUE
    assert t.delete([KT], 100, []) == wire.OK_FALSE
    assert t.delete([K], 100, []) == wire.OK_FALSE
    assert code(t.get, [K], 100) == "not_found"


@pytest.mark.parametrize("write", ["set", "delete"])
def test_a_write_clears_the_memory_of_an_expiry(write: str) -> None:
    """If a key expired and was then set or deleted, then a later miss is a miss and not stale."""
    t = table()
    put(t, K, R, 0, 10)
    assert code(t.get, [K], 10) == "expired"
    if write == "set":
        put(t, K, R, 10)
    assert t.delete([K], 11, []) == (wire.OK_TRUE if write == "set" else wire.OK_FALSE)
    assert resolve(t, K, 12, F)[3:] == [True, False, "miss"]


def test_only_so_many_expiries_are_remembered() -> None:
    """If more keys expire than may be remembered, then the oldest is forgotten."""
    t = table(memory=2)
    for index in range(3):
        put(t, f"c:b:{index}", R, 0, 10)
        assert code(t.get, [f"c:b:{index}"], 20) == "expired"
    assert [resolve(t, f"c:b:{index}", 20, F)[5] for index in range(3)] == ["miss", "stale", "stale"]


def test_no_memory_of_expiries_is_a_setting_too() -> None:
    """If the memory is switched off, then a removed expiry is a miss."""
    t = table(memory=0)
    put(t, K, R, 0, 10)
    t.prune([], 20, [])
    assert resolve(t, K, 20, F)[5] == "miss"


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
        ("evicted", {"count": 1, "entries": 2, "session_key": "c:b:a", "reason": "capacity",
                     "external_room_id": "ext-a", "component": "session_manager", "partition": 3}),
        ("set", {"count": 1, "evicted": 1, "entries": 2, "session_key": "c:b:c",
                 "component": "session_manager", "partition": 3}),
    ]


@pytest.mark.parametrize("use", ["get", "resolve", "set", "room"])
def test_using_an_entry_protects_it(use: str) -> None:
    """If the older entry was read or written since, then the other one is evicted (WR4, R24)."""
    t = table(3)
    for key in (K, "c:b:x", "c:b:y"):
        put(t, key, R, 0)
    for _ in range(1000 if use == "set" else 1):
        {"get": lambda: get(t, K, 1), "resolve": lambda: resolve(t, K, 1), "set": lambda: put(t, K, R, 1),
         "room": lambda: resolve(t, KT, 1)}[use]()
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


# --- many, list, prune, sweep ---


def test_many_answer_item_by_item() -> None:
    """If some items are refused, then each has its own error, in order, and the others stand."""
    t = table()
    replies = value(t.set_many([[[K, R], [K], ["bad", R], [KT, {}], 7, [KT, F, 0], [KT, F, 50]]], 0, []))
    assert [status if status == 0 else result["code"] for status, result in replies] == [
        0, "invalid_argument", "invalid_session_key", "invalid_route", "invalid_argument", "invalid_ttl", 0,
    ]
    gets = value(t.get_many([[KT, "c:b:none", None, K]], 50))
    assert [result["code"] if status else result[0] for status, result in gets] == [
        "expired", "not_found", "invalid_session_key", R,
    ]
    resolved = value(t.resolve_many([["c:b:1", K, "bad"], F], 50))
    assert [result["code"] if status else result[0] for status, result in resolved] == [
        "ext-f", "ext-r", "invalid_session_key",
    ]
    assert wire.unpack(t.resolve_many([["c:b:2"]], 50))[1][0][1]["code"] == "no_route"


def test_many_have_a_bound() -> None:
    """If a list is longer than the bound, or no list, then the whole call is refused."""
    t = table()
    assert code(t.get_many, [[K] * (MANY_MAX + 1)], 0) == "limit_exceeded"
    assert code(t.set_many, ["x"], 0, []) == "invalid_argument"
    assert len(value(t.get_many([[K] * 20], 0))) == 20


def test_list_pages_through_live_routes_in_key_order() -> None:
    """If routes are listed page by page, then each live one comes once, and the use order is not disturbed."""
    t = table()
    names = [f"c:b:{index:02d}" for index in range(7)]
    for name in reversed(names):
        put(t, name, {"external_room_id": name}, 0)
    put(t, "c:b:zz", R, 0, 5)
    order, seen, after = list(t.entries), [], None
    while True:
        rows, after = value(t.list([None, None, 3, after], 10))
        seen += [row[0] for row in rows]
        if after is None:
            break
    assert seen == names
    assert rows[-1] == [names[-1], {"external_room_id": names[-1]}, 10, TTL - 10, "learned"]
    assert list(t.entries) == order


def test_list_filters_by_decoded_fields() -> None:
    """If a bridge or a room is asked for, then their fields are compared, not their encoded text."""
    t = table()
    for key in ("m:bot:!a%3Asrv", "m:bot:!a%3Asrv:t", "m:bot:b", "m:bot%25:b", "m:x:!a%3Asrv"):
        put(t, key, R, 0)

    def listed(bridge: Any, room: Any) -> list[str]:
        return [row[0] for row in value(t.list([bridge, room, 10, None], 0))[0]]

    assert listed("bot", "!a:srv") == ["m:bot:!a%3Asrv", "m:bot:!a%3Asrv:t"]
    assert listed("bot%", None) == ["m:bot%25:b"]
    assert listed(None, "b") == ["m:bot%25:b", "m:bot:b"]
    assert listed("", None) == []


def test_list_ends_a_page_before_it_grows_too_large() -> None:
    """If the routes are large, then a page holds fewer than the limit, and at least one."""
    t = RouteTable(RoutesSection(), route_bytes_max=LIST_BYTES_MAX * 2, partition=0)
    for index in range(3):
        put(t, f"c:b:{index}", {"external_room_id": "x", "big": "y" * (LIST_BYTES_MAX * (index + 1) // 2)}, 0)
    pages, after = [], None
    for _ in range(3):
        rows, after = value(t.list([None, None, 10, after], 0))
        pages.append(len(rows))
    assert (pages, after) == ([1, 1, 1], None)


@pytest.mark.parametrize("args", [
    [None, None, 0], [None, None, LIST_LIMIT_MAX + 1], [None, None, True], [None, None, None], [1, None, 5],
    [None, [], 5], [None, None, 5, 7], [None, None],
])
def test_bad_list_arguments_are_refused(args: list[Any]) -> None:
    """If a filter, a limit or a cursor is of a wrong kind, then it is refused."""
    assert code(table().list, args, 0) in {"invalid_argument", "invalid_cursor"}


def test_prune_removes_what_expired_and_nothing_else() -> None:
    """If entries expired, then prune counts and removes them, and says pruned to nobody."""
    t = table()
    t.watched = True
    for index in range(10):
        put(t, f"c:b:{index}", R, 0, 10 * (index + 1))
    t.notes.clear()
    assert value(t.prune([], 50, [])) == 5
    assert value(t.prune([], 50, [])) == 0
    assert t.count == 5
    assert [what for what, _ in t.notes] == ["stale"] * 5


def test_a_sweep_in_pieces_gives_one_pruned_note() -> None:
    """If a sweep needs several calls, then its note comes with the last one; an empty sweep gives none (R28)."""
    t = table()
    t.watched = True
    for index in range(5):
        put(t, f"c:b:{index}", R, 0, 10)
    put(t, K, R, 0)
    t.notes.clear()
    assert [t.sweep(10, 2) for _ in range(3)] == [2, 2, 1]
    assert t.sweep(20, 2) == 0
    pruned = [fields for what, fields in t.notes if what == "pruned"]
    assert pruned == [{"count": 5, "entries": 1, "component": "session_manager", "partition": 3}]
    assert t.sweep(5_000, 2) == 1


# --- telemetry (2.7) ---


def notes_of(t: RouteTable) -> list[tuple[str, dict[str, Any]]]:
    t.notes, notes = [], t.notes
    return [(what, {k: v for k, v in fields.items() if k not in ("component", "partition", "count")})
            for what, fields in notes]


def test_notes_of_one_resolve_come_in_order() -> None:
    """If one resolve removes, evicts and falls back, then: stale, evicted, fallback, resolved."""
    t = table(2)
    put(t, KT, R, 0, 10)
    put(t, "c:b:x", G, 0)
    put(t, K, R, 0, 10)
    put(t, "c:b:y", G, 0)
    t.entries_max = 1
    t.watched = True
    resolve(t, K, 20, F)
    assert notes_of(t) == [
        ("stale", {"session_key": K}),
        ("evicted", {"entries": 1, "session_key": "c:b:y", "reason": "capacity", "external_room_id": "ext-g"}),
        ("fallback", {"source": "provided_fallback", "reason": "stale", "stale": True, "session_key": K}),
        ("resolved", {"outcome": "fallback", "stale": True, "fallback": True, "source": "provided_fallback",
                      "reason": "stale", "session_key": K}),
    ]


def test_notes_of_a_hit_and_of_a_miss() -> None:
    """If a resolve hits, then reason is None; if it misses, there is neither source nor reason."""
    t = table()
    t.watched = True
    put(t, K, R, 0)
    resolve(t, K, 0)
    assert code(t.resolve, ["c:b:x"], 0) == "no_route"
    assert notes_of(t)[1:] == [
        ("resolved", {"outcome": "hit", "stale": False, "fallback": False, "source": "state_hit", "reason": None,
                      "session_key": K}),
        ("resolved", {"outcome": "miss", "stale": False, "fallback": False, "session_key": "c:b:x"}),
    ]


def test_a_thread_and_its_room_both_stale_give_two_notes() -> None:
    """If the thread's and the room's entry both expired, then each removal is said once."""
    t, now = arrange(EXPIRED, EXPIRED, KT)
    t.watched = True
    assert code(t.resolve, [KT], now) == "no_route"
    assert [fields["session_key"] for what, fields in notes_of(t) if what == "stale"] == [KT, K]


def test_nobody_watching_collects_nothing() -> None:
    """If nobody listens, then no note is made."""
    t = table(1)
    put(t, K, R, 0, 5)
    resolve(t, KT, 0, F)
    resolve(t, K, 10, F)
    t.sweep(5_000, 10)
    assert t.notes == []


def test_an_undone_write_takes_its_notes_back() -> None:
    """If a write is undone before anybody saw its notes, then they are gone; those of reads stay."""
    t = table(1)
    t.watched = True
    put(t, K, R, 0)
    notes_of(t)
    undo: list[Any] = []
    t.set(["c:b:x", R], 0, undo)
    resolve(t, "c:b:x", 0)
    run(undo)
    assert [what for what, _ in t.notes] == ["resolved"]


# --- undo and the store ---


def run(undo: list[Any]) -> None:
    for step in reversed(undo):
        step()


def content(t: RouteTable) -> dict[str, Any]:
    return {key: decode_record(record) for key, record in t.entries.items()}


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
    """If more rows are stored than fit, then the surplus is evicted, said and deleted, and not fetched again."""
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


@pytest.mark.parametrize(("shift", "now", "age", "left"), [
    (-9_900, 150, 50, 450), (-9_990, 150, 140, 360), (0, 10_100, 100, 400), (-9_000, 150, 0, 500),
])
def test_a_reboot_moves_the_times(shift: int, now: int, age: int, left: int) -> None:
    """If the machine rebooted, then ages go on by wall time; a wall clock set back gives no extra life."""
    rows = stored((K, R, 10_000, 500))
    t = table()
    t.load(rows.items(), shift, now_ms=now)
    assert get(t, K, now) == [R, age, left, "learned"]
    if shift:
        assert decode_record(rebase(rows[K], shift, now)) == decode_record(t.entries[K])


def test_a_reboot_long_ago_leaves_expired_routes() -> None:
    """If the machine was off for longer than the time to live, then the route is expired, before time 0 even."""
    rows = stored((K, R, 10_000, 500))
    t = table()
    t.load(rows.items(), -1_000_000, now_ms=50)
    assert code(t.get, [K], 50) == "expired"
    t.load(stored((K, R, 10_000, 500)).items(), -1_000_000, now_ms=50)
    assert t.sweep(50, 10) == 1


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
