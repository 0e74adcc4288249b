"""The places of a runner: never more than the limit, never one empty while somebody waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.admission import Admission, share


@given(st.integers(1, 5), st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=60))
def test_places_are_filled_in_order_and_never_exceeded(limit: int, steps: list[tuple[bool, int]]) -> None:
    """If runs come and go in any order, then the first ``limit`` of those that are there execute."""
    admission: Admission[int] = Admission(limit)
    inside: set[int] = set()
    line: list[int] = []
    for comes, one in steps:
        if comes and one not in inside and one not in line:
            begins = admission.enter(one)
            assert begins == (len(inside) < limit)
            (inside.add if begins else line.append)(one)
        elif not comes:
            first = admission.leave(one)
            inside.discard(one)
            line = [other for other in line if other != one]
            expected = line[0] if line and len(inside) < limit else None
            assert first == expected
            if first is not None:
                inside.add(line.pop(0))
        assert admission.inside == inside and list(admission.line) == line
        assert len(inside) <= limit and (not line or len(inside) == limit)


@pytest.mark.parametrize("count", [1, 2, 3, 64])
def test_the_shares_of_all_are_the_whole(count: int) -> None:
    """If a limit is divided between runners, then all shares together are the limit, and nearly equal."""
    for total in (count, count + 1, 100, 10_000):
        shares = [share(total, index, count) for index in range(count)]
        assert sum(shares) == total and max(shares) - min(shares) <= 1
