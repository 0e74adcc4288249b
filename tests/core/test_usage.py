"""How what providers say about tokens becomes the counts of a run."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import usage, wire

NAMES = st.sampled_from(["input_tokens", "output_tokens", "total_tokens", "x"])
SAID = st.dictionaries(NAMES, st.integers(0, 10**6), max_size=4)
ANYTHING = st.dictionaries(
    st.one_of(st.text(max_size=80), st.integers(), st.booleans()),
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([1])),
    max_size=50,
)


def all_of(said: list[dict[str, Any]], mode: str) -> usage.Counts:
    used: usage.Counts = {}
    for one in said:
        used = usage.folded(used, one, mode)
    return used


@given(said=st.lists(SAID, max_size=8))
def test_deltas_are_added(said: list[dict[str, int]]) -> None:
    """If a provider says what it used since the last time, then the counts are the sums."""
    names = {name for one in said for name in one}
    assert all_of(said, "delta") == {name: sum(one.get(name, 0) for one in said) for name in names}


@given(said=st.lists(SAID, max_size=8), order=st.randoms())
def test_totals_count_once_however_often_and_late_they_come(
    said: list[dict[str, int]], order: Any
) -> None:
    """If a provider says totals, then the largest of each holds, in any order and with repetitions."""
    names = {name for one in said for name in one}
    expected = {name: max(one.get(name, 0) for one in said) for name in names}
    again = [*said, *said]
    order.shuffle(again)
    assert all_of(said, "total") == all_of(again, "total") == expected


@given(steps=st.lists(st.integers(0, 1000), max_size=20))
def test_both_ways_of_counting_agree(steps: list[int]) -> None:
    """If one provider says deltas and another the totals of the same work, then both runs used the same."""
    totals = [{"input_tokens": sum(steps[: i + 1])} for i in range(len(steps))]
    assert all_of([{"input_tokens": n} for n in steps], "delta") == all_of(totals, "total")


@given(said=st.lists(ANYTHING, max_size=5), mode=st.sampled_from(["delta", "total"]))
def test_counts_of_anything_are_bounded_and_can_be_stored(said: list[dict[Any, Any]], mode: str) -> None:
    """If a provider says anything at all, then the counts are few, not negative, and msgpack carries them."""
    used = all_of(said, mode)
    assert len(used) <= usage.COUNTS_MAX
    assert all(type(name) is str and value >= 0 for name, value in used.items())
    assert wire.unpack(wire.pack(used)) == used


@given(before=SAID, attempt=SAID)
def test_attempts_are_added(before: dict[str, int], attempt: dict[str, int]) -> None:
    """If a run is executed again, then what both attempts used is paid for."""
    both = usage.added(dict(before), attempt)
    assert both == {name: before.get(name, 0) + attempt.get(name, 0) for name in before | attempt}


@pytest.mark.parametrize("value", [True, -1, -0.5, float("nan"), float("inf"), "3", None, [1]])
def test_what_is_no_count_is_left_out(value: Any) -> None:
    """If a value cannot be a count, then it is none."""
    assert usage.counts({"input_tokens": value}) == {}


def test_names_of_caches_are_one() -> None:
    """If a provider calls its cache counts by a longer name, then they are the same counts."""
    said = {"cache_read_input_tokens": 1, "cache_creation_input_tokens": 2, "model": "m"}
    assert usage.counts(said) == {"cache_read_tokens": 1, "cache_creation_tokens": 2}


def test_sums_stay_within_what_can_be_stored() -> None:
    """If sums grow over 64 bits, then they stop there."""
    used = usage.added({"a": usage.COUNT_MAX, "b": 1e308}, {"a": usage.COUNT_MAX, "b": 1e308})
    assert used == {"a": usage.COUNT_MAX, "b": usage.COUNT_MAX}


def test_cost_is_no_token() -> None:
    """If a provider said what it cost, then that is not among the tokens."""
    assert usage.without_cost({"input_tokens": 1, usage.COST: 0.5}) == {"input_tokens": 1}
