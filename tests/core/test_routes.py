"""The route table: the resolution table row by row; get, set and delete."""

from __future__ import annotations

from typing import Any

import pytest
from route_cases import (
    EXPIRED,
    GONE,
    KT,
    LIVE,
    MISSING,
    TTL,
    F,
    G,
    K,
    R,
    arrange,
    code,
    get,
    put,
    resolve,
    table,
    value,
)

from mesh.core import wire
from mesh.core.route_record import (
    ROUTE_DEPTH_MAX,
    TTL_MS_MAX,
)
from mesh.errors import InvalidArgument, NotFound

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
    """If a key was resolved, then the next resolve hits what was answered, whatever is offered (R10)."""
    t, now = arrange(e, r, key)
    resolve(t, key, now, fallback)
    assert resolve(t, key, now, G) == [
        expected[0],
        {"external_room_id": expected[0]},
        "state_hit",
        False,
        False,
        None,
    ]


@pytest.mark.parametrize("fallbacks", [None, [], "junk", 7, [{}], [None, 1, {"external_room_id": None}], {}])
@pytest.mark.parametrize(("e", "stale"), [(MISSING, False), (EXPIRED, True), (GONE, True)])
def test_resolve_with_nothing_is_no_route(fallbacks: Any, e: str, stale: bool) -> None:
    """If neither an entry nor a usable fallback is there, then no_route (D9), which says stale."""
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
            {
                "a": "external_room_id",
                "nested": {"external_room_id": room},
                "external_room_id": room,
                "z": room,
            },
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
    route = {
        "z": [1, {"deep": None}],
        "external_room_id": "ext",
        "channel_type": "telegram",
        "b": b"\x00\xff",
        "f": 1.5,
    }
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


@pytest.mark.parametrize(
    "route",
    [
        None,
        [],
        "x",
        7,
        {},
        {"room_id": "x"},
        {"external_room_id": None},
        {"external_room_id": "x", 1: 2},
        {b"external_room_id": "x"},
        {"external_room_id": "x", "big": "y" * 4096},
        {"external_room_id": "\ud800"},
        {"external_room_id": "x", "n": 2**70},
        {"external_room_id": "x", "deep": _nested(ROUTE_DEPTH_MAX)},
        {"external_room_id": _nested(900)},
    ],
)
def test_a_bad_route_is_refused(route: Any) -> None:
    """If a route breaks a rule, then invalid_route, and nothing is stored."""
    t = table()
    assert code(t.set, [K, route], 0, []) == "invalid_route"
    assert (t.count, t.dirty, t.notes) == (0, {}, [])


@pytest.mark.parametrize(
    "key",
    [
        None,
        7,
        [],
        ["a", "b", "c", None],
        {},
        b"a:b:c",
        "",
        "a:b",
        "a:b:c:d:e",
        "a::c",
        ":b:c",
        "a:b:c:",
        "a:b:c%2d",
        "a:b:c%3a",
        "a:b:c\n",
        "a:b:%",
        "a:b:\ud800",
        "a:b:" + "x" * 1024,
        True,
        _nested(900),
    ],
)
def test_a_key_that_is_not_canonical_is_refused_everywhere(key: Any) -> None:
    """If the text is not the one text of a key, then every operation says invalid_session_key (R06)."""
    t = table()
    calls = [(t.get, [key], 0), (t.resolve, [key, F], 0), (t.set, [key, R], 0, []), (t.delete, [key], 0, [])]
    assert {code(*call) for call in calls} == {"invalid_session_key"}
    assert (t.count, t.dirty) == (0, {})


def test_a_key_of_another_partition_is_refused_item_by_item() -> None:
    """If the owner check raises for a key, then no operation takes it, and the others of a list stand."""

    def check(key: str) -> None:
        if key == K:
            raise InvalidArgument("elsewhere", code="invalid_argument")

    t = table()
    t.check_owner = check
    calls = [(t.get, [K], 0), (t.resolve, [K, F], 0), (t.set, [K, R], 0, []), (t.delete, [K], 0, [])]
    assert {code(*call) for call in calls} == {"invalid_argument"}
    assert [status for status, _ in value(t.set_many([[[K, R], [KT, R]]], 0, []))] == [1, 0]
    assert list(t.entries) == [KT]


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
