"""One batch: reads before writes, undo of one call, receipts, and replies that fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, new_run_id
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.core import partition, pending, wire
from mesh.core.keys import SessionKey
from mesh.core.partition import Partition
from mesh.errors import DeadlineExceeded, InvalidArgument, MeshError, StoreError

ROUTE = {"external_room_id": "r"}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.store.connection.close()


def read(partition: Partition, *calls: list[Any]) -> Any:
    return wire.unpack(partition.read(list(calls))[0])


def test_calls_of_one_payload_see_each_other_in_order(bench: Bench) -> None:
    """If a list of calls builds on each other, then they are decided in their order."""
    run_id = new_run_id("s", 1)
    reply = bench.replies[
        bench.post(
            ["session.create", ["s", "echo", None]],
            ["session.activate", ["s"]],
            ["run.create", [run_id, "s", "x"]],
            ["run.execute", [run_id]],
        )
    ]
    assert [status for status, _ in reply] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("calls", "code"),
    [
        ([["nope", []]], "unknown_op"),
        ([["session.get", ["s"]]], "unknown_op"),
        ([["route.get", ["a"]]], "unknown_op"),
        ([["session.create", []]], "validation_error"),
        ([["session.create", ["s"] * 9]], "validation_error"),
        ([["partition.backup", [5]]], "validation_error"),
        ([["partition.backup", []]], "validation_error"),
    ],
)
def test_a_wrong_call_is_answered_by_its_own_error(bench: Bench, calls: Any, code: str) -> None:
    """If an op is unknown, a read, or has wrong arguments, then the call alone is refused."""
    reply = bench.replies[bench.post(*calls, ["session.create", ["ok", "echo", None]])]
    assert reply[0][1]["code"] == code and reply[1][0] == 0


def test_a_write_in_a_read_payload_is_refused(bench: Bench) -> None:
    """If a READ payload holds a write, then it is not executed."""
    reply = read(bench.partition, ["session.create", ["s", "echo", None]], ["nope", []])
    assert [r[1]["code"] for r in reply] == ["unknown_op", "unknown_op"] and not bench.state.has_session("s")


def test_a_read_that_fails_inside_is_internal_error_and_harms_nobody(bench: Bench) -> None:
    """If a read handler has a bug, then its neighbours are answered."""

    def broken(args: list[Any], now: int) -> bytes:
        raise KeyError("x")

    bench.partition.reads.update(broken=broken, fine=lambda args, now: wire.OK_NIL)
    reply = read(bench.partition, ["broken", []], ["fine", []])
    assert reply[0][1]["code"] == "internal_error" and reply[1] == [0, None] and len(bench.bugs) == 1


def test_a_repetition_in_the_same_batch_is_answered_after_the_commit_and_once(bench: Bench) -> None:
    """If a number comes twice before the commit, then nobody hears of it before the disk has it."""
    first = _pending(bench, 1, ["session.create", ["s", "echo", None]])
    second = _pending(bench, 1, ["session.create", ["s", "echo", None]])
    bench.store.fail_next = True
    bench.turn(writes=[(first, 1), (second, 1)])
    assert not any(isinstance(reply, list) for reply in bench.replies.values())
    assert not bench.state.has_session("s")
    third, fourth = (_pending(bench, 1, ["session.create", ["s", "echo", None]]) for _ in range(2))
    bench.turn(writes=[(third, 1), (fourth, 1)])
    assert [r[0][0] for r in bench.replies.values() if isinstance(r, list)] == [0]


def _pending(bench: Bench, number: int, *calls: list[Any]) -> Any:
    request = next(bench._requests)
    header = wire.Header(2, 0, 0, 0, 0, 0, request, number, 1)
    return pending.Pending(bench.client, header, 0, list(calls), bench.mono + 10)


def test_a_number_that_comes_again_with_other_calls_is_refused(bench: Bench) -> None:
    """If a payload that is half done comes again with another number of calls, then nothing is executed."""
    bench.crash_runner(0)
    bench.roster()
    bench.post(["session.create", ["t", "echo", None]], ["session.start", ["s", "echo", None]])
    bench.kill()
    reply = bench.replies[bench.post(["session.create", ["u", "echo", None]], number=1)]
    assert isinstance(reply, InvalidArgument) and not bench.state.has_session("u")


def test_a_deadline_that_passed_refuses_the_payload(bench: Bench) -> None:
    """If the time limit passed on the way, then nothing is executed and the number stays free."""
    assert isinstance(bench.replies[bench.post(["session.create", ["s", "echo", None]], limit_s=0.0)],
                      DeadlineExceeded)
    assert bench.replies[bench.post(["session.create", ["s", "echo", None]], number=1)][0][0] == 0


def test_while_degraded_only_what_was_answered_is_answered(bench: Bench) -> None:
    """If nothing can be written, then a repeated number has its answer, a new one has none."""
    request = bench.post(["session.create", ["s", "echo", None]])
    body = bench.partition.repeated(_pending(bench, 1, ["session.create", ["s", "echo", None]]), 1)
    assert body is not None and wire.unpack(body) == bench.replies[request]
    assert bench.partition.repeated(_pending(bench, 2, ["session.create", ["t", "echo", None]]), 1) is None


def test_replies_that_do_not_fit_are_refused_call_by_call(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the answers of a payload are more than a frame holds, then the surplus ones are limit_exceeded and
    undone, also in a read."""
    for module in (partition, pending):
        monkeypatch.setattr(module, "REPLY_BYTES_MAX", 1_000)
    reply = bench.replies[bench.post(*(["session.create", [f"s{n}", "echo", None]] for n in range(8)))]
    codes = ["ok" if status == 0 else value["code"] for status, value in reply]
    assert codes[0] == "ok" and codes[-1] == "limit_exceeded"
    assert [bench.state.has_session(f"s{n}") for n in range(8)] == [code == "ok" for code in codes]
    bench.partition.reads["big"] = lambda args, now: wire.ok("x" * 600)
    assert [r[0] for r in read(bench.partition, ["big", []], ["big", []], ["big", []])] == [0, 1, 1]


def test_a_route_of_another_partition_is_refused(bench: Bench) -> None:
    """If a key's slot belongs elsewhere, then set, also of many, refuses it."""
    bench.partition.slot_map = bytes([1]) * 4096
    bench.partition.routes.check_owner = bench.partition._check_owner
    key = str(SessionKey("tg", "b", "room"))
    assert bench.code("route.set", key, ROUTE) == "invalid_argument"
    reply = bench.call("route.set_many", [[key, ROUTE]])
    assert reply[0][1]["code"] == "invalid_argument"


def test_a_failed_transaction_takes_routes_back(bench: Bench) -> None:
    """If the commit of a route fails, then reads go on with the former one."""
    key = str(SessionKey("tg", "b", "room"))
    bench.call("route.set", key, {**ROUTE, "v": 1})
    bench.store.fail_next = True
    assert isinstance(bench.replies[bench.post(["route.set", [key, {**ROUTE, "v": 2}]])], StoreError)
    assert read(bench.partition, ["route.get", [key]])[0][1][0]["v"] == 1


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=6)
    | st.binary(max_size=6) | st.sampled_from(["s", "tg:b:room", 2**63]),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), x, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(calls=st.lists(st.tuples(st.integers(0, 99), st.lists(JUNK, max_size=6)), min_size=1, max_size=6))
def test_any_calls_are_answered_one_by_one(tmp_path_factory: Any, calls: Any) -> None:
    """If any op gets any arguments, then every call has an answer and none is a bug of ours."""
    bench = Bench(tmp_path_factory.mktemp("junk"))
    names = sorted(
        (bench.partition.writes | bench.partition.route_writes).keys() - {"partition.backup", "agent.reload"}
    )
    try:
        reply = bench.replies.get(bench.post(*([names[n % len(names)], args] for n, args in calls)))
    except MeshError:
        reply = None  # the arguments cannot travel
    reads = sorted(bench.partition.reads)
    answers = read(bench.partition, *([reads[n % len(reads)], args] for n, args in calls))
    assert len(answers) == len(calls) and not bench.bugs, bench.bugs[:1]
    assert reply is None or len(reply) == len(calls)
    bench.store.connection.close()
