"""Tails: the log of a session that somebody waits for, whole or not at all, and bounded."""

from __future__ import annotations

from mesh.core.state import EventRow
from mesh.core.waiting import Group, Waiter
from mesh.node import tails
from mesh.node.tails import Tails


def waiter() -> Waiter:
    return Waiter(Group(b"c" * 16, 1, 1), 0, 1.0)


def rows(first: int, count: int, size: int = 10) -> list[EventRow]:
    return [EventRow(n, 1, "s", n, 1, 1, "r", 1.0, b"x" * size) for n in range(first, first + count)]


def test_a_tail_that_saw_every_event_holds_them_all() -> None:
    """If a session's events come from its first one on, then its tail is its log."""
    kept, one = Tails(), waiter()
    kept.begin("s", one)
    kept.extend("s", rows(1, 3))
    kept.extend("s", rows(4, 2))
    kept.extend("other", rows(1, 1))
    assert [row.seq for row in kept.end("s", one) or ()] == [1, 2, 3, 4, 5] and len(kept) == 0


def test_a_tail_that_missed_an_event_is_none() -> None:
    """If the first event seen is not the session's first one, or one is missing, then there is no tail."""
    for parts in ((rows(2, 1),), (rows(1, 1), rows(3, 1))):
        kept, one = Tails(), waiter()
        kept.begin("s", one)
        for part in parts:
            kept.extend("s", part)
        assert kept.end("s", one) is None and len(kept) == 0


def test_a_tail_is_bounded_alone_and_with_the_others() -> None:
    """If a log grows too long, or all of them together, then there is no tail, and its room is free."""
    kept, one = Tails(), waiter()
    kept.begin("s", one)
    kept.extend("s", rows(1, 2, tails.TAIL_BYTES_MAX))
    assert kept.end("s", one) is None
    names = [f"s{n}" for n in range(2 * tails.TAILS_BYTES_MAX // tails.TAIL_BYTES_MAX)]
    for name in names:
        kept.begin(name, one)
        kept.extend(name, rows(1, 1, tails.TAIL_BYTES_MAX // 2))
    held = [name for name in names if kept.end(name, one) is not None]
    assert 0 < len(held) < len(names)
    kept.begin("again", one)
    kept.extend("again", rows(1, 1))
    assert kept.end("again", one) is not None


def test_a_second_waiter_has_no_tail_and_leaves_the_first_its_own() -> None:
    """If two wait for one session, then the tail belongs to the first of them."""
    kept, one, two = Tails(), waiter(), waiter()
    kept.begin("s", one)
    kept.begin("s", two)
    kept.extend("s", rows(1, 1))
    assert kept.end("s", two) is None and kept.end("s", one) is not None
