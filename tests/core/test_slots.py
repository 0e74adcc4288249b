"""Slots: the same in every process and language, and moved as little as possible."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.slots import (
    PARTITIONS_MAX,
    SLOT_COUNT,
    check_id,
    even_map,
    moved_map,
    route_slot,
    run_id_for,
    run_slot,
    session_slot,
)
from mesh.errors import InvalidArgument

#: Known answers, for whoever writes a client in another language.
ROUTES = {
    "telegram:bot_1:chat_123": 2326,
    "telegram:bot_1:chat_123:t1": 2326,
    "matrix:bot:!a%3Asrv": 2459,
    "слак:b:ü": 1424,
}
SESSIONS = {"s1": 3320, "session-1": 516, "0b8f6f0e-1111-4222-8333-444455556666": 3307, "A.b_c-d": 730}


def test_slots_are_the_known_ones() -> None:
    """If a slot differs from these, then clients of another version or language ask the wrong partition."""
    assert {key: route_slot(key) for key in ROUTES} == ROUTES
    assert {session: session_slot(session) for session in SESSIONS} == SESSIONS


def test_another_process_finds_the_same_slots() -> None:
    """If another process with another hash seed asks, then the slots are the same (R32)."""
    program = f"from mesh.core.slots import route_slot; print([route_slot(k) for k in {list(ROUTES)!r}])"
    environ = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "PYTHONUTF8": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environ, check=True
    )
    assert done.stdout.strip() == str(list(ROUTES.values()))


def test_a_room_and_its_threads_share_a_slot() -> None:
    """If keys differ in their thread only, then they have one slot (WR1)."""
    assert (
        len(
            {route_slot(f"telegram:bot:room:{thread}") for thread in range(100)}
            | {route_slot("telegram:bot:room")}
        )
        == 1
    )


def test_keys_spread_over_partitions() -> None:
    """If there are 4 partitions, then 16 rooms use more than one, and 20 000 use all alike (R32)."""
    owners = even_map(4)
    assert len({owners[route_slot(f"telegram:bot_1:room_{index}")] for index in range(16)}) > 1
    counts = Counter(owners[route_slot(f"telegram:bot_1:room_{index}")] for index in range(20_000))
    assert all(4_500 < counts[owner] < 5_500 for owner in range(4))


@given(
    st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,40}", fullmatch=True),
    st.from_regex(r"[0-9a-f]{29,32}", fullmatch=True),
)
def test_a_run_is_routed_by_its_own_id(session_id: str, random_hex: str) -> None:
    """If a run id is made for a session, then it leads to the session's slot."""
    assert check_id(session_id) == session_id
    run_id = run_id_for(session_id, random_hex)
    assert run_slot(run_id) == session_slot(session_id)
    assert check_id(run_id, "run id") == run_id


@pytest.mark.parametrize(
    "run_id",
    [
        None,
        7,
        "",
        "run_",
        "run_" + "g" * 32,
        "run_" + "a" * 31,
        "run_" + "A" * 32,
        "run_" + "a" * 33,
        "run_" + "a" * 32 + "\n",
        ["x"],
        "x" * 10_000,
    ],
)
def test_what_is_no_run_id_is_refused(run_id: Any) -> None:
    """If an id is not of mesh's form, then invalid_id."""
    with pytest.raises(InvalidArgument) as caught:
        run_slot(run_id)
    assert caught.value.code == "invalid_id"
    assert len(caught.value.message) < 200


def _deep() -> Any:
    value: Any = 1
    for _ in range(1_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        b"x",
        "",
        ".",
        "..",
        "a/b",
        "a b",
        "a:b",
        "ä",
        "a\n",
        "x" * 129,
        "a\x00",
        [],
        _deep(),
        "y" * 10_000,
    ],
)
def test_what_is_no_id_is_refused(value: Any) -> None:
    """If an id could be a path or a topic of its own, then invalid_id, with a short message."""
    with pytest.raises(InvalidArgument) as caught:
        check_id(value)
    assert caught.value.code == "invalid_id"
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("partitions", [1, 2, 3, 7, 64, PARTITIONS_MAX])
def test_the_first_map_is_even(partitions: int) -> None:
    """If a node is new, then no partition has more than one slot more than another."""
    counts = Counter(even_map(partitions))
    assert sum(counts.values()) == SLOT_COUNT
    assert set(counts) == set(range(partitions))
    assert max(counts.values()) - min(counts.values()) <= 1


@given(st.lists(st.integers(1, PARTITIONS_MAX), min_size=2, max_size=5))
def test_a_resize_moves_as_few_slots_as_possible(sizes: list[int]) -> None:
    """If the number of partitions changes, then the map is even, and no even map moves fewer slots (WR9)."""
    current = even_map(sizes[0])
    for before, after in pairwise(sizes):
        result = moved_map(current, after)
        counts, kept = Counter(result), Counter(current)
        assert set(counts) == set(range(after))
        assert max(counts.values()) - min(counts.values()) <= 1
        base, extra = divmod(SLOT_COUNT, after)
        had = [kept[owner] for owner in range(after)]
        staying = sum(min(have, base) for have in had) + min(extra, sum(have > base for have in had))
        assert sum(a != b for a, b in zip(current, result, strict=True)) == SLOT_COUNT - staying
        if before == after:
            assert result == current
        current = result


def test_a_record_given_for_its_id_is_told_what_to_give() -> None:
    """If a Session stands where an id belongs, then the error names the attribute, not half a record."""

    class Session:
        id = "ses_1"

    for check in (check_id, run_slot):
        with pytest.raises(InvalidArgument, match=r"\(a Session: give its \.id\)"):
            check(Session())  # type: ignore[arg-type]
