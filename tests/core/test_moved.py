"""A write that may have happened before its slots moved: its receipt answers, or it is placed anew."""

from __future__ import annotations

from typing import Any

import pytest
from bench import Bench
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import wire
from mesh.core.keys import SessionKey
from mesh.core.moved import heir, place, sender
from mesh.core.pending import Pending
from mesh.core.slots import route_slot, session_slot

MOVED = int(wire.Flag.MOVED | wire.Flag.PARTITION)
ROUTE = {"external_room_id": "r"}


def moved(bench: Bench, number: int, *calls: list[Any], former: int = 0) -> Pending:
    """A write that was sent to partition ``former`` before, under an older map."""
    header = wire.Header(2, MOVED, 0, former, 0, 0, next(bench._requests), number, 1)
    return Pending(bench.client, header, 0, list(calls), bench.mono + 10, index=0)


def answer(bench: Bench, pending: Pending) -> Any:
    bench.turn(writes=[(pending, 1)])
    return bench.replies[pending.request_id]


def give_away(bench: Bench, *slots: int) -> None:
    """These slots are partition 1's from now on."""
    bench.partition.slot_map = bytes(int(slot in slots) for slot in range(4096))


@pytest.mark.parametrize("call", [
    ["session.create", ["gone", "echo", None]],
    ["session.delete", ["gone"]],
    ["run.cancel", [f"run_{session_slot('gone'):03x}{'0' * 29}"]],
    ["session.as", [{}, "session.abort", ["gone"]]],
])
def test_a_call_on_a_slot_that_moved_is_not_done_and_the_others_are(bench: Bench, call: list[Any]) -> None:
    """If one of two calls is about a slot that moved, then it alone is to be placed anew, now and when the
    number comes again."""
    give_away(bench, session_slot("gone"))
    calls = (call, ["session.create", ["here", "echo", None]])
    first = moved(bench, 1, *calls)
    reply = answer(bench, first)
    assert reply[0][1]["details"] == {"again": True} and reply[1][0] == 0
    assert first.reply_flags == wire.Flag.MORE and not bench.state.has_session("gone")
    assert answer(bench, moved(bench, 1, *calls)) == reply


def test_a_route_whose_slot_moved_is_to_be_placed_anew_also_among_many(bench: Bench) -> None:
    """If a key's slot moved, then the item that names it says so, and the other one is stored."""
    mine, gone = str(SessionKey("tg", "b", "mine")), str(SessionKey("tg", "b", "gone"))
    bench.partition.routes.check_owner = bench.partition._check_owner
    give_away(bench, route_slot(gone))
    [[_, items]] = answer(bench, moved(bench, 1, ["route.set_many", [[[mine, ROUTE], [gone, ROUTE]]]]))
    assert items[0] == [0, None] and items[1][1]["details"] == {"again": True}


def test_a_write_that_happened_is_answered_from_its_receipt(bench: Bench) -> None:
    """If the slot moved behind the write, then the number has the answer of that time."""
    reply = bench.replies[bench.post(["session.create", ["gone", "echo", None]])]
    give_away(bench, session_slot("gone"))
    assert answer(bench, moved(bench, 1, ["session.create", ["gone", "echo", None]])) == reply
    assert reply[0][0] == 0


def test_numbers_of_a_partition_that_is_no_more_are_not_those_of_its_heir(bench: Bench) -> None:
    """If a client has the same number open at both, then they are two writes."""
    bench.post(["session.create", ["a", "echo", None]])
    assert answer(bench, moved(bench, 1, ["session.create", ["b", "echo", None]], former=3))[0][0] == 0
    assert bench.state.has_session("a") and bench.state.has_session("b")


def test_the_flag_without_the_address_of_a_partition_means_nothing() -> None:
    """If somebody sends it with a slot, then the write is one as any other."""
    header = wire.Header(2, int(wire.Flag.MOVED), 0, 4095, 0, 0, 1, 1, 1)
    assert Pending(b"c" * 16, header, 0, [], 0.0, index=0).key == (b"c" * 16, 1)


@given(st.integers(0, 254), st.lists(st.integers(1, 255), min_size=1, max_size=5))
def test_a_receipt_is_where_its_write_is_asked_for_whatever_the_numbers_of_partitions(
    written_by: int, counts: list[int]
) -> None:
    """If partitions come and go, then a receipt is in one file, that of the heir, under the name it has
    there."""
    index, name = written_by, b"c" * 16
    for count in counts:
        index, name = place(name, index, count)
        assert index == heir(written_by, count) < count
        assert name == sender(b"c" * 16, written_by, index)
