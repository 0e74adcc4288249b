"""Neighbours of one op travel together, and every call still gets its own answer."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.client import _surface_routes as plans
from mesh.client._facts import answers_of
from mesh.client._found import Found, found_of
from mesh.client._gather import GATHERED, ONE, gather, spread
from mesh.client._payload import split
from mesh.client._surface import resolution, route_entry, route_record
from mesh.core import wire
from mesh.core.records import Provenance, RouteRecord
from mesh.core.route_record import encode_record, encode_route
from mesh.errors import RemoteProtocolError

FALLBACK = {"external_room_id": "f"}


ROUTE = {"external_room_id": "x"}
SHAPES: tuple[Any, ...] = (
    lambda key: ("route.get", (key,)),
    lambda key: ("route.set", (key, ROUTE)),
    lambda key: ("route.set", (key, ROUTE, 5)),
    lambda key: ("route.resolve", (key,)),
    lambda key: ("route.resolve", (key, [FALLBACK])),
    lambda key: ("route.delete", (key,)),
    lambda key: ("route.get_many", ([key, "a:b:c"],)),
)
#: Runs of one shape, some longer than what is packed at a time.
RUNS = st.tuples(st.sampled_from(SHAPES), st.sampled_from((1, 2, 3, 300)))
CALLS = st.lists(RUNS, min_size=1, max_size=20).map(
    lambda runs: [shape(f"a:{n}:{i}") for n, (shape, count) in enumerate(runs) for i in range(count)]
)


def stored(route: dict[str, Any], age_ms: int = 5, left_ms: int = 7, flags: int = 0) -> bytes:
    """A node's record at the time 1 000, as a list brings it."""
    record = encode_record(1_000 - age_ms, 1_000 + left_ms, flags, 0, encode_route(route, 10_000))
    found: bytes = wire.unpack(record)
    return found


def record_of(key: str) -> RouteRecord:
    return RouteRecord({"external_room_id": key}, 5, 7)


def node(body: bytes) -> list[Any]:
    """What a node answers: a list of keys with a record for each, other lists with a pair for each item."""
    singles = {many: single for single, many in GATHERED.items()}
    answers: list[Any] = []
    for op, args in wire.decode_calls(body):
        if op not in singles:
            answers.append([0, [op, *args]])
        elif op == "route.get_many":
            answers.append([0, [1_000, [stored({"external_room_id": key}) for key in args[0]], []]])
        elif op == "route.set_many":
            answers.append([0, [[0, ["route.set", *item]] for item in args[0]]])
        else:
            answers.append([0, [[0, [singles[op], key, *args[1:]]] for key in args[0]]])
    return answers


def expected(call: Any) -> list[Any]:
    op, args = call
    if op == "route.get":
        return [0, record_of(args[0])]
    if op == "route.get_many":  # a caller's own list stays one call with one answer
        return [0, [record_of(key) for key in args[0]]]
    return [0, [op, *args]]


def seen(pair: Any) -> list[Any]:
    """A pair as ``expected`` says it."""
    status, value = pair
    if type(value) is list and type(value[0]) is int:
        value = found_of(value).each(2)
    if type(value) is RouteRecord:
        return [status, value]
    if type(value) is list and value and value[0] == "route.get":  # it travelled alone
        value = record_of(value[1])
    return [status, value]


@given(CALLS)
def test_each_call_gets_its_own_answer_in_order(calls: list[Any]) -> None:
    """If any calls travel together, then each gets the answer to itself, in order."""
    bodies, bad = split(calls, wire.FRAME_BYTES_MAX)
    assert not bad
    found = [seen(pair) for packed in bodies for pair in spread(node(packed.body), packed.spans)]
    assert found == [expected(call) for call in calls]


def test_gets_of_one_turn_travel_as_one_call() -> None:
    """If all calls are gets, then they travel as one get_many."""
    calls = [("route.get", (f"a:b:{n}",)) for n in range(5)]
    assert gather(calls) == ([("route.get_many", ([f"a:b:{n}" for n in range(5)],))], [5])


def test_single_call_travels_as_it_is() -> None:
    """If there is one call, then nothing is gathered."""
    call = ("route.set", ("a:b:c", ROUTE))
    assert gather([call]) == ([call], ONE)


def test_single_get_beside_other_calls_travels_as_a_list_of_one() -> None:
    """If there is one get beside other calls, then it is a list, whose answer is a record."""
    get, put = ("route.get", ("a:b:c",)), ("route.delete", ("a:b:c",))
    assert gather([get]) == ([get], ONE)
    assert gather([put, get]) == ([put, ("route.get_many", (["a:b:c"],))], [0, 1])


def test_resolve_with_fallbacks_keeps_its_own_fallbacks() -> None:
    """If resolves bring fallbacks, then they are not mixed with each other."""
    calls = [("route.resolve", ("a:b:1", [FALLBACK])), ("route.resolve", ("a:b:2",))]
    assert gather(calls) == (calls, [0, 0])


def test_refused_list_refuses_each_of_its_calls() -> None:
    """If the gathered call fails as a whole, then each of its calls has that error, and no other."""
    error = {"code": "limit_exceeded", "message": "m", "details": {}}
    assert spread([[1, error], [0, 7]], [3, 0]) == [[1, error]] * 3 + [[0, 7]]


@pytest.mark.parametrize(
    "value",
    [None, [], [[0, 1]], [[0, 1], [0, 2], [0, 3]], [[0, 1], [0]], "ab", [[0, 1], 5], ["ab", "cd"], [{}, {}]],
)
def test_answer_of_another_form_is_a_protocol_error(value: Any) -> None:
    """If a list does not answer each of its calls, then nobody gets another one's answer."""
    with pytest.raises(RemoteProtocolError):
        spread([[0, value]], [2])


@pytest.mark.parametrize("value", [None, 7, [], [7], [[0, 1], 5], ["ab", "cd"], [[0, [1, 2]], [0, None]]])
def test_wrong_answer_to_resolve_many_is_an_error_of_each_key(value: Any) -> None:
    """If a node's answer to a list has another form, then each of its keys has that error."""
    link: Any = SimpleNamespace(slot_map=bytes(4096), timeout_s=1.0)
    plan = plans.resolve_many(link, ["a:b:1", "a:b:2"], (), None)
    next(plan)
    plan.send(SimpleNamespace(slot_map=bytes(4096)))
    with pytest.raises(StopIteration) as ended:
        plan.send([value])
    assert [type(result) for result in ended.value.value] == [RemoteProtocolError] * 2


@pytest.mark.parametrize("read", [route_record, route_entry, lambda value: resolution(value, 0, "a:b:c")])
@pytest.mark.parametrize(
    "value",
    [None, 7, [], {}, [ROUTE, 1, 2, "x"], [b"xx", 1, 2, "learned"], ["k", None, 1, 2, "learned"],
     ["r", 7, "state_hit", False, False, None], ["r", ROUTE, [], False, False, None]],
)
def test_wrong_answer_about_one_route_is_a_protocol_error(read: Callable[[Any], Any], value: Any) -> None:
    """If a node's answer about one route has another form, then it is refused as such."""
    with pytest.raises(RemoteProtocolError):
        read(value)


@pytest.mark.parametrize(
    "route", [b"\xc1", b"\x90", b"\x81\xa1\xff\x01", b"\x80\x80", b"\x81\xa1a" + b"\x91" * 5000]
)
def test_record_without_a_route_is_a_protocol_error_when_it_is_opened(route: bytes) -> None:
    """If what stands behind a record's times is no route, then whoever looks is told so, each time."""
    [found] = Found(1_000, [bytes(29) + route], []).each(1)
    for _ in range(2):
        with pytest.raises(RemoteProtocolError):
            print(found.ttl_left_ms)


def _frame(value: Any) -> bytes:
    return bytes(wire.HEADER_BYTES) + wire.pack(value)


ERROR = {"code": "not_found", "message": "m", "details": {}}


def test_answer_of_get_many_is_read_into_records() -> None:
    """If routes come, then they are records already, and errors stand beside them as maps."""
    route = {"external_room_id": "x", "n": [1, {"a": None}], "raw": b"\x00"}
    frame = _frame([[0, [1_000, [stored(route, flags=1), None], [[1, ERROR]]]]])
    [(status, found)] = answers_of(frame, "route.get_many")
    assert status == 0 and found.each(2) == [RouteRecord(route, 5, 7, Provenance.GUESSED), ERROR]
    assert found.pairs(2) == [(0, RouteRecord(route, 5, 7, Provenance.GUESSED)), (1, ERROR)]


@pytest.mark.parametrize(
    ("records", "errors"),
    [
        ([], []),
        ([None], []),
        (["r"], []),
        (["r", "r", "r"], []),
        (["r", None], []),
        (["r", "r"], [[1, ERROR]]),
        (["r", None], [[0, ERROR]]),
        (["r", None], [[2, ERROR]]),
        (["r", None], [[-1, ERROR]]),
        (["r", None], [[1, ERROR], [1, ERROR]]),
        ([None, None], [[1, ERROR], [1, ERROR]]),
    ],
)
def test_list_that_does_not_answer_each_key_is_a_protocol_error(records: Any, errors: Any) -> None:
    """If a key has neither a record nor an error, or both, then nobody gets another one's answer."""
    whole = [stored(ROUTE) if one else None for one in records]
    with pytest.raises(RemoteProtocolError):
        Found(1_000, whole, [(place, error) for place, error in errors]).pairs(2)


def test_record_too_short_for_its_times_is_a_protocol_error() -> None:
    """If a record has no room for a route, then the answer is refused before anybody looks at it."""
    with pytest.raises(RemoteProtocolError):
        answers_of(_frame([[0, [1_000, [bytes(29)], []]]]), "route.get_many")


@pytest.mark.parametrize("op", ["route.get_many", "session.get"])
@pytest.mark.parametrize(
    "value",
    [None, 7, "x", {"a": 1}, [7], [[0]], [[0, 1, 2]], [[0, [[7]]]], [["x", []]], [[0, [[0, [{}, 1]]]]]],
)
def test_answer_of_a_wrong_shape_is_a_protocol_error(op: str, value: Any) -> None:
    """If an answer has another shape, then it is refused or, where any value may stand, kept as it is."""
    try:
        found = answers_of(_frame(value), op)
    except RemoteProtocolError:
        return
    assert op == "session.get" and all(len(pair) == 2 for pair in found)


def test_answer_cut_anywhere_is_a_protocol_error() -> None:
    """If an answer is cut at any byte, then it is refused."""
    whole = _frame([[0, [1_000, [stored(ROUTE), None], [[1, ERROR]]]]])
    for end in range(wire.HEADER_BYTES, len(whole)):
        with pytest.raises(RemoteProtocolError):
            answers_of(whole[:end], "route.get_many")


def test_record_made_from_its_map_is_the_same() -> None:
    """If a record goes through its map form, then it comes back equal."""
    record = RouteRecord({"external_room_id": "x"}, 5, 7, Provenance.GUESSED)
    assert RouteRecord.from_map(record.to_map()) == record
