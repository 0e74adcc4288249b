"""Python values as plain data: what they become, and what is refused with its place."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import OrderedDict, deque
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import wire
from mesh.core.plain import converted, plain, plain_map, seconds, to_json, utc
from mesh.errors import InvalidArgument, NotFound


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: int
    y: Any


@dataclasses.dataclass
class Note:
    text: str
    when: datetime


class Packed(msgspec.Struct):
    a: int
    b: Any


class Offering:
    def to_map(self) -> dict[str, Any]:
        return {"when": NOON}


NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
TEXT = "2026-11-21T12:00:00+00:00"
EXPECTED = [
    (NOON, TEXT),
    (datetime(2026, 11, 21, 12, 0), "2026-11-21T12:00:00"),
    (NOON.astimezone(timezone(timedelta(hours=2))), "2026-11-21T14:00:00+02:00"),
    (date(2026, 11, 21), "2026-11-21"),
    (time(12, 30), "12:30:00"),
    (timedelta(minutes=1, milliseconds=500), 60.5),
    (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    (Decimal("1.10"), "1.10"),
    (Fraction(1, 4), 0.25),
    (Colour.RED, "red"),
    (Level.HIGH, 3),
    ({3, 1, 2}, [1, 2, 3]),
    (frozenset("ba"), ["a", "b"]),
    ((1, (2,)), [1, [2]]),
    (Point(1, NOON), [1, TEXT]),
    (range(3), [0, 1, 2]),
    (deque("ab"), ["a", "b"]),
    (bytearray(b"x"), b"x"),
    (memoryview(b"x"), b"x"),
    (PurePosixPath("/a/b"), "/a/b"),
    (OrderedDict(a=1), {"a": 1}),
    (MappingProxyType({"a": {1}}), {"a": [1]}),
    (Note("t", NOON), {"text": "t", "when": TEXT}),
    (Packed(1, {2}), {"a": 1, "b": [2]}),
    (Offering(), {"when": TEXT}),
    (NotFound("gone"), NotFound("gone").to_map()),
    (
        {7: "a", None: "b", True: "c", 2.5: "d", NOON: "e", Colour.RED: "f"},
        {"7": "a", "null": "b", "true": "c", "2.5": "d", TEXT: "e", "red": "f"},
    ),
    ("a\ud800b", "a?b"),
    ({"\ud800": 1}, {"?": 1}),
]

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
)
texts = st.text(st.characters(exclude_categories=["Cs"]))
plain_values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
strange = st.datetimes() | st.dates() | st.times() | st.timedeltas() | st.uuids() | st.text() | st.decimals()
values = st.recursive(
    leaves | strange | st.sets(st.integers(0, 9) | st.dates()),
    lambda inner: (
        st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(texts, inner, max_size=4)
    ),
    max_leaves=20,
)


@pytest.mark.parametrize(("value", "expected"), EXPECTED, ids=lambda value: type(value).__name__)
def test_each_kind_of_value_becomes_what_the_table_says(value: Any, expected: Any) -> None:
    """If a value of the table travels, alone or nested, then it arrives as the table says."""
    found = plain(value)
    if isinstance(found, tuple):  # plain already: it travels as a list
        found = wire.unpack(wire.pack(found))
    assert found == expected
    assert converted({"a": [value, {"b": value}]}) == {"a": [expected, {"b": expected}]}


@given(plain_values)
def test_what_is_plain_stays_the_same_object(value: Any) -> None:
    """If data is plain already, then nothing of it is copied, and a copy would equal it."""
    assert plain(value) is value
    assert converted(value) == value


@given(values)
def test_what_was_converted_travels_and_is_plain(value: Any) -> None:
    """If anything of the table was converted, then msgpack and JSON carry it, and it converts to itself."""
    found = converted(value)
    assert wire.pack(wire.unpack(wire.pack(found))) == wire.pack(found)
    assert plain(found) is found
    assert wire.pack(converted(found)) == wire.pack(found)
    json.loads(to_json(value))


@pytest.mark.parametrize(
    ("value", "place", "kind"),
    [
        ({"items": [1, {"when": object()}]}, "context.items[1].when", "object"),
        ({"a b": {"c": print}}, "context['a b'].c", "builtin_function_or_method"),
        ({"n": 1 << 64}, "context.n", "int"),
        ({"x": [-(1 << 63) - 1]}, "context.x[0]", "int"),
        ({"x": {(1, 2): 3}}, "context.x", "tuple"),
        ({"x": {1: 2, "1": 3}}, "context.x", "str"),
        ({"x": 1j}, "context.x", "complex"),
        ({"x": Note}, "context.x", "type"),
        ({"x": (i for i in "ab")}, "context.x", "generator"),
    ],
)
def test_what_cannot_travel_is_named_with_its_place(value: Any, place: str, kind: str) -> None:
    """If data holds something unknown, then the error names where it is and of what type."""
    with pytest.raises(InvalidArgument) as caught:
        plain(value, "context")
    assert caught.value.code == "validation_error"
    assert caught.value.details == {"path": place, "type": kind}
    assert caught.value.message.startswith(place + ": ")


class Evil(dict[str, Any]):
    def items(self) -> Any:
        raise OSError("no")


def test_an_object_whose_reading_fails_is_refused() -> None:
    """If reading an object raises, then it is a typed error like any other."""
    with pytest.raises(InvalidArgument, match="type Evil failed"):
        plain({"x": Evil(a=1)})


@pytest.mark.parametrize("wrap", [lambda value: [value], lambda value: {"a": value}, lambda value: (value,)])
@pytest.mark.parametrize("leaf", [1, NOON])
def test_data_may_be_so_deep_and_no_deeper(wrap: Any, leaf: Any) -> None:
    """If data is nested deeper than the limit, then limit_exceeded; at the limit it travels."""
    value = leaf
    for _ in range(wire.DEPTH_MAX - 1):
        value = wrap(value)
    wire.check_depth(wire.unpack(wire.pack(plain(value))))
    with pytest.raises(InvalidArgument) as caught:
        plain(wrap(value))
    assert caught.value.code == "limit_exceeded"


@pytest.mark.parametrize("member", [1, NOON])
def test_data_that_holds_itself_is_refused(member: Any) -> None:
    """If data holds itself, then limit_exceeded, at once."""
    ring: list[Any] = [member]
    ring.append(ring)
    with pytest.raises(InvalidArgument) as caught:
        plain(ring)
    assert caught.value.code == "limit_exceeded"


def test_json_writes_bytes_as_base64_and_no_number_as_null() -> None:
    """If a value has no form in JSON, then it has the documented one."""
    assert to_json({"b": b"\xff\x00", "t": NOON}) == '{"b": "/wA=", "t": "' + TEXT + '"}'
    assert json.loads(to_json({"n": [math.nan, math.inf, 1.5]})) == {"n": [None, None, 1.5]}


@pytest.mark.parametrize("value", [[1], "text", None, {1, 2}, Point(1, 2)])
def test_a_map_is_asked_for_and_not_got(value: Any) -> None:
    """If something is no map where one is needed, then the error says what it is."""
    with pytest.raises(InvalidArgument, match=f"context must be a map, not {type(value).__name__}"):
        plain_map(value, "context")


def test_a_dataclass_is_a_map() -> None:
    """If a map is needed, then whatever becomes one will do."""
    assert plain_map(Note("t", NOON), "data") == {"text": "t", "when": TEXT}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(NOON, NOON.timestamp()), (NOON.replace(tzinfo=None), NOON.timestamp()), (5, 5.0), (1.5, 1.5)],
)
def test_times_are_seconds(value: Any, expected: float) -> None:
    """If a time is given as a datetime or a number, then it is seconds; without a zone it is UTC."""
    assert seconds(value, "ts") == expected
    assert utc(seconds(value, "ts")) is not None


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, 1e12, "1", True, None, b"1"])
def test_what_is_no_time_is_refused(value: Any) -> None:
    """If a time is none, then validation_error, which names it."""
    with pytest.raises(InvalidArgument, match="ts must be"):
        seconds(value, "ts")


def test_no_time_stays_none() -> None:
    """If a record has no such time, then there is no datetime either."""
    assert utc(None) is None
