"""The route table: many keys at once, pages, prune and sweep; and what is said about it."""

from __future__ import annotations

from typing import Any

import pytest
from bench import Bench
from hypothesis import given
from hypothesis import strategies as st
from route_cases import (
    EXPIRED,
    KT,
    TTL,
    F,
    G,
    K,
    R,
    arrange,
    code,
    notes_of,
    put,
    resolve,
    run,
    table,
    value,
)

from mesh.config import RoutesSection
from mesh.core import route_state, wire
from mesh.core.pending import MANY_BYTES_MAX, REPLY_BYTES_MAX, was_cut
from mesh.core.route_found import RouteRecord
from mesh.core.routes import LIST_BYTES_MAX, LIST_LIMIT_MAX, MANY_MAX, RouteTable

# --- many, list, prune, sweep ---


def test_many_answer_item_by_item() -> None:
    """If some items are refused, then each has its own error, in order, and the others stand."""
    t = table()
    replies = value(t.set_many([[[K, R], [K], ["bad", R], [KT, {}], 7, [KT, F, 0], [KT, F, 50]]], 0, []))
    assert [status if status == 0 else result["code"] for status, result in replies] == [
        0,
        "invalid_argument",
        "invalid_session_key",
        "invalid_route",
        "invalid_argument",
        "invalid_ttl",
        0,
    ]
    assert found(t, [KT, "c:b:none", None, K, [], KT], 50) == [
        "expired",
        "not_found",
        "invalid_session_key",
        RouteRecord(R, 50, TTL - 50),
        "invalid_session_key",
        "not_found",
    ]
    resolved = value(t.resolve_many([["c:b:1", K, "bad"], F], 50))
    assert [result["code"] if status else result[0] for status, result in resolved] == [
        "ext-f",
        "ext-r",
        "invalid_session_key",
    ]
    assert wire.unpack(t.resolve_many([["c:b:2"]], 50))[1][0][1]["code"] == "no_route"


def test_many_have_a_bound() -> None:
    """If a list is longer than the bound, or no list, then the whole call is refused."""
    t = table()
    assert code(t.get_many, [[K] * (MANY_MAX + 1)], 0) == "limit_exceeded"
    assert code(t.set_many, ["x"], 0, []) == "invalid_argument"
    assert found(t, [K] * 20, 0) == ["not_found"] * 20


def test_what_a_list_has_beyond_an_answer_is_to_be_asked_for_again() -> None:
    """If a list names more bytes than an answer takes, then as much as fits comes, what is not there is said,
    and the rest is to be asked for again; nothing more is joined than a frame takes."""
    t = table()
    t.set([K, {**R, "more": "x" * 4_000}], 0, [])
    asked = [*[K] * (REPLY_BYTES_MAX // 4_000), KT, K]
    answer = t.get_many([asked], 0)
    _, records, errors = value(answer)
    came = sum(1 for record in records if record)
    assert MANY_BYTES_MAX - 30_000 < sum(map(len, filter(None, records))) <= MANY_BYTES_MAX
    assert all(records[:came]) and len(answer) < REPLY_BYTES_MAX and was_cut([answer])
    again = [place for place, error in errors if error["details"].get("again") is True]
    assert sorted([*again, len(asked) - 2]) == list(range(came, len(asked)))
    assert len(value(t.get_many([asked[came:]], 0))[1]) == len(asked) - came


def test_a_list_of_resolutions_beyond_an_answer_is_cut() -> None:
    """If what a list resolves to is more than an answer takes, then the rest is to be asked for again."""
    t = table()
    t.set([K, {**R, "more": "x" * 4_000}], 0, [])
    answer = t.resolve_many([[K] * 3_600], 0)
    statuses = [status for status, _ in value(answer)]
    came = statuses.index(1)
    assert 3_300 < came < 3_400 and set(statuses[came:]) == {1} and was_cut([answer])
    assert not was_cut([t.resolve_many([[K] * came], 0), t.get_many([[K] * 3_000], 0)])


@pytest.mark.parametrize("op", ["route.get_many", "route.resolve_many"])
def test_a_cut_list_says_so_in_its_reply(bench: Bench, op: str) -> None:
    """If a list of a payload was cut, then the reply says that calls are to be sent again."""
    bench.partition.routes.set([K, {**R, "more": "x" * 4_000}], bench.partition.boot_ms, [])
    assert not bench.partition.read([(op, [[K] * 3_000])])[1]
    assert bench.partition.read([(op, [[K] * 3_600])])[1]
    assert bench.partition.read([(op, [[K] * 2_000]), (op, [[K] * 2_000])])[1]


FIELDS = ("route", "age_ms", "ttl_left_ms", "provenance")


def found(t: RouteTable, asked: list[Any], now_ms: int) -> list[Any]:
    """What a list brings for each key: the record as the SDK reads it, or the code of its error."""
    now, records, errors = value(t.get_many([asked], now_ms))
    assert now == now_ms and [place for place, _ in errors] == [n for n, r in enumerate(records) if r is None]
    said = [record and RouteRecord(record, now) for record in records]
    for place, error in errors:
        said[place] = error["code"]
    return said


def test_list_of_live_keys_is_their_records_and_uses_them() -> None:
    """If every key of a list is here, then each record says what get says, and is used in that order."""
    t = table()
    for name in ("c:b:1", "c:b:2", "c:b:3"):
        t.set([name, R], 100, [])
    asked = ["c:b:2", "c:b:1", "c:b:2"]
    said = [dict(zip(FIELDS, value(t.get([name], 130)), strict=True)) for name in asked]
    assert found(t, asked, 130) == list(map(RouteRecord.from_map, said))
    assert list(t.entries) == ["c:b:3", "c:b:1", "c:b:2"]


@pytest.mark.parametrize("moved_ms", [0, -10_000])
def test_list_beside_an_expired_entry_gives_what_lives(moved_ms: int) -> None:
    """If something in the table has expired, then the live keys of a list come, and an expired one does not,
    also when its end lies before the boot of the machine."""
    old = table()
    old.set(["c:b:old", R, 50], 0, [])
    old.set(["c:b:1", R, 90_000], 0, [])
    t = table()
    t.load([(key, row) for key, row in old.take_dirty().items() if row], moved_ms, now_ms=60)
    assert found(t, ["c:b:1"], 60) == [RouteRecord(R, 60 - moved_ms, 90_000 - 60 + moved_ms)]
    assert found(t, ["c:b:1", "c:b:old"], 60)[1] == "expired"
    assert "c:b:old" not in t.entries


def test_empty_list_beside_an_expired_entry_is_answered() -> None:
    """If a list has no key while something in the table has expired, then its answer is empty, too."""
    t = table()
    put(t, "c:b:old", R, 0, 5)
    assert found(t, [], 10) == []


def test_expired_row_of_a_full_table_is_gone_when_it_is_met() -> None:
    """If a row that is not loaded yet has expired and the table is full, then it is evicted and not there."""
    old = table()
    put(old, K, R, 0, 5)
    rows = {key: row for key, row in old.take_dirty().items() if row}
    for ask in (
        lambda t: code(t.get, [K], 10) == "not_found",
        lambda t: code(t.resolve, [K], 10) == "no_route",
        lambda t: code(t.resolve, [KT], 10) == "no_route",
        lambda t: t.delete([K], 10, []) == wire.OK_FALSE,
    ):
        t = table(capacity=1)
        t.loading, t.fetch = True, rows.get
        put(t, "c:b:live", R, 0)
        assert ask(t)
        assert list(t.entries) == ["c:b:live"] and t.take_dirty()[K] is None


def test_list_finds_what_is_not_loaded_yet() -> None:
    """If rows of the store are still missing in memory, then a list finds their keys there."""
    old, t = table(), table()
    old.set([K, R], 0, [])
    [(key, row)] = old.take_dirty().items()
    t.loading, t.fetch = True, {key: row}.get
    assert found(t, [K, "c:b:none"], 5) == [RouteRecord(R, 5, TTL - 5), "not_found"]


def test_list_pages_through_live_routes_in_key_order() -> None:
    """If routes are listed page by page, then each live one comes once; the order of use stays."""
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


@pytest.mark.parametrize(
    "args",
    [
        [None, None, 0],
        [None, None, LIST_LIMIT_MAX + 1],
        [None, None, True],
        [None, None, None],
        [1, None, 5],
        [None, [], 5],
        [None, None, 5, 7],
        [None, None],
    ],
)
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
    """If a sweep needs several calls, then its note comes with the last; an empty one gives none (R28)."""
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
        (
            "evicted",
            {"entries": 1, "session_key": "c:b:y", "reason": "capacity", "external_room_id": "ext-g"},
        ),
        ("fallback", {"source": "provided_fallback", "reason": "stale", "stale": True, "session_key": K}),
        (
            "resolved",
            {
                "outcome": "fallback",
                "stale": True,
                "fallback": True,
                "source": "provided_fallback",
                "reason": "stale",
                "session_key": K,
            },
        ),
    ]


def test_notes_of_a_hit_and_of_a_miss() -> None:
    """If a resolve hits, then reason is None; if it misses, there is neither source nor reason."""
    t = table()
    t.watched = True
    put(t, K, R, 0)
    resolve(t, K, 0)
    assert code(t.resolve, ["c:b:x"], 0) == "no_route"
    assert notes_of(t)[1:] == [
        (
            "resolved",
            {
                "outcome": "hit",
                "stale": False,
                "fallback": False,
                "source": "state_hit",
                "reason": None,
                "session_key": K,
            },
        ),
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


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from(("set", "delete", "short", "store", "guess")))),
       st.integers(1, 7))
def test_pages_by_the_stores_index_are_those_of_the_memory(
    steps: list[tuple[int, str]], limit: int
) -> None:
    """If keys are stored, not yet stored, deleted or expired in any mixture, then pages made with the store's
    index hold what a look at the whole memory gives."""
    t = table()
    stored: set[str] = set()
    for number, what in steps:
        key = f"c:b:r{number}"
        if what == "set":
            put(t, key, R, 0)
        elif what == "delete":
            t.delete([key], 0, [])
        elif what == "short":
            t.set([key, R, 10], 0, [])
        elif what == "guess":
            t.resolve([key, [F]], 0)
        else:
            for name, record in t.take_dirty().items():
                (stored.discard if record is None else stored.add)(name)

    def pages() -> list[str]:
        found, after = [], ""
        while after is not None:
            rows, after = value(t.list([None, None, limit, after or None], 20))
            found += [row[0] for row in rows]
        return found

    expected = pages()
    looks: list[str] = []

    def keys_after(after: str, count: int) -> list[str]:
        looks.append(after)
        return sorted(key for key in stored if key > after)[:count]

    t.keys_after = keys_after
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(route_state, "KEYS_PER_LOOK", 3)
        assert pages() == expected
    assert looks


def test_a_filter_that_nothing_matches_looks_at_a_bounded_number_of_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If a filter is rare, then a page ends after so many keys, says where to go on, and none is missed."""
    monkeypatch.setattr("mesh.core.routes.LIST_LOOK_MAX", 10)
    t = table()
    names = [f"c:{'rare' if index == 37 else 'b'}:{index:02d}" for index in range(40)]
    for name in names:
        put(t, name, {"external_room_id": name}, 0)
    looked: list[int] = []

    def keys_after(after: str, count: int) -> list[str]:
        looked.append(count)
        return [name for name in sorted(names) if name > after][:count]

    t.keys_after = keys_after
    t.take_dirty()
    seen, after, pages = [], None, 0
    while True:
        rows, after = value(t.list(["rare", None, 5, after], 1))
        seen += [row[0] for row in rows]
        pages += 1
        if after is None:
            break
    assert seen == ["c:rare:37"] and pages == 4
