"""Wire protocol v1, byte by byte; and whatever bytes come, nothing but a MeshError leaves the codec."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import wire
from mesh.core.wire import Flag, Header, Kind
from mesh.errors import InvalidArgument, LocalProtocolError, MeshError, NotFound, RemoteProtocolError

GOLDEN_HEADER = bytes.fromhex(
    "4d48 01 02 01 00 0102 03040506 0708090a 0b0c0d0e0f101112 131415161718191a 1b1c1d1e1f202122"
)
GOLDEN_BODY = bytes.fromhex("91 92 a9 726f7574652e676574 91 a5 613a623a63")

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | texts
    | st.binary(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


# --- the header ---


def test_the_header_is_these_bytes() -> None:
    """If one byte of the header moved, then every other client and node of version 1 would break."""
    fields: dict[str, Any] = {
        "flags": Flag.PARTITION,
        "address": 0x0102,
        "map_version": 0x03040506,
        "remaining_ms": 0x0708090A,
        "request_id": 0x0B0C0D0E0F101112,
        "number": 0x131415161718191A,
        "done_below": 0x1B1C1D1E1F202122,
    }
    assert wire.encode_header(Kind.WRITE, **fields) == GOLDEN_HEADER
    assert wire.decode_header(GOLDEN_HEADER + b"body") == Header(kind=2, answers=0, **fields)
    assert (wire.HEADER_BYTES, wire.encode_header(Kind.REPLY, answers=Kind.READ)[5]) == (40, 1)


def test_the_numbers_of_kinds_and_flags_never_change() -> None:
    """If a number changed, then an old peer would take one kind for another."""
    assert {kind.name: int(kind) for kind in Kind} == {
        "READ": 1,
        "WRITE": 2,
        "WAIT": 3,
        "HELLO": 4,
        "STATUS": 5,
        "RESTART": 6,
        "PING": 7,
        "NOTE": 8,
        "RESTART_RUNNER": 9,
        "REPLY": 16,
        "GONE": 17,
    }
    assert {flag.name: int(flag) for flag in Flag} == {
        "PARTITION": 1,
        "REFUSED": 2,
        "STALE_MAP": 4,
        "AGAIN": 8,
        "MORE": 16,
        "MOVED": 32,
    }


@pytest.mark.parametrize(
    ("given_ms", "sent_ms"), [(-5, 0), (0, 0), (1, 1), (2**32, 2**32 - 1), (10**15, 2**32 - 1)]
)
def test_a_remaining_time_is_cut_to_its_field(given_ms: int, sent_ms: int) -> None:
    """If the remaining time does not fit, then the nearest that does is sent."""
    assert wire.decode_header(wire.encode_header(Kind.READ, remaining_ms=given_ms)).remaining_ms == sent_ms


@pytest.mark.parametrize("length", range(40))
def test_a_truncated_header_is_refused(length: int) -> None:
    """If a payload ends anywhere within its header, then it is a protocol error."""
    with pytest.raises(RemoteProtocolError):
        wire.decode_header(GOLDEN_HEADER[:length])


def test_a_foreign_protocol_or_version_is_refused() -> None:
    """If magic or version is another, then the error says what came, and which version is spoken here."""
    with pytest.raises(RemoteProtocolError, match="HT"):
        wire.decode_header(b"HTTP/1.1 200 OK".ljust(40))
    with pytest.raises(RemoteProtocolError) as caught:
        wire.decode_header(b"MH\x02" + GOLDEN_HEADER[3:])
    assert caught.value.details == {"version": 2, "expected": 1}


@given(st.binary(max_size=60))
def test_no_header_raises_anything_but_a_protocol_error(payload: bytes) -> None:
    """If a header is garbage, then it is decoded or refused, nothing else."""
    for data in (payload, b"MH\x01" + payload):
        try:
            assert type(wire.decode_header(data)) is Header
        except RemoteProtocolError:
            pass


def test_an_actor_is_these_bytes() -> None:
    """If a peer is an actor, then kind, index and incarnation stand in its 16 bytes."""
    peer = wire.actor_id(b"P", 0x0102, 0x030405060708090A)
    assert peer == bytes.fromhex("00 50 0102 030405060708090a 00000000")
    assert wire.parse_actor_id(peer) == (b"P", 0x0102, 0x030405060708090A)
    assert b"\x00X" + bytes(14) == wire.ROUTER_ID
    assert (len(peer), wire.ACTOR_PREFIX_BYTES) == (wire.CLIENT_ID_BYTES, 24)
    for length in (0, 15, 17):
        with pytest.raises(RemoteProtocolError):
            wire.parse_actor_id(bytes(length))


# --- the body ---


def test_a_body_is_these_bytes() -> None:
    """If one call is encoded, then it is msgpack of [[op, args]]."""
    assert (
        wire.encode_body([["route.get", ["a:b:c"]]])
        == wire.encode_body([("route.get", ("a:b:c",))])
        == GOLDEN_BODY
    )
    assert (
        wire.decode_calls(GOLDEN_BODY)
        == wire.decode_calls(memoryview(GOLDEN_BODY))
        == [["route.get", ["a:b:c"]]]
    )


@given(values)
def test_a_value_survives_the_wire(value: Any) -> None:
    """If a value is of the protocol's types, then it arrives as it was sent."""
    assert wire.unpack(wire.pack(value)) == value


@given(values)
def test_a_reply_is_read_as_any_value_is(value: Any) -> None:
    """If a value comes in a reply, then the faster reader finds the same, also under a header full of 255."""
    packed = wire.pack(value)
    assert wire.unpack_reply(b"\xff" * wire.HEADER_BYTES + packed) == wire.unpack(packed)


@given(values)
def test_a_truncated_value_is_refused_at_every_byte(value: Any) -> None:
    """If a value is cut anywhere, or something follows it, then it is a protocol error."""
    packed = wire.pack(value)
    for length in range(len(packed)):
        with pytest.raises(RemoteProtocolError):
            wire.unpack(packed[:length])
    with pytest.raises(RemoteProtocolError):
        wire.unpack(packed + b"\xc0")


@given(
    st.binary(max_size=40)
    | st.lists(
        st.sampled_from(
            [
                b"\x91",
                b"\x81",
                b"\xdd\x00\x00\x00\x02",
                b"\xdf\xff\xff\xff\xff",
                b"\xc7\x0c\xff",
                b"\xd6\xff",
                b"\xd7\xff",
                b"\xa1",
                b"\xc0",
                b"\xc1",
                b"\xd9\x04",
                b"\xc6\x7f\xff\xff\xff",
                b"\xcf",
                b"\xcb",
                bytes(8),
            ]
        ),
        max_size=12,
    ).map(b"".join)
)
def test_garbage_raises_nothing_but_a_mesh_error(data: bytes) -> None:
    """If a body is garbage, then it is decoded or refused, nothing else."""
    for call in (wire.unpack, wire.decode_calls, lambda data: wire.unpack_reply(bytes(40) + data)):
        try:
            call(data)
        except MeshError:
            pass


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\xa1\xff",
        b"\x81\x90\x01",
        b"\x91" * 5_000 + b"\xc0",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xd4\x05a",
        b"\xc7\x05\xff12345",
        b"\xc7\x0c\xff" + b"\xff" * 12,
        b"\xdd\x00\x03\x00\x00" * 40_000,
    ],
    ids=lambda data: data[:6].hex() or "empty",
)
def test_a_body_that_lies_is_refused(data: bytes) -> None:
    """If a body announces what is not there, nests too deeply, or holds an extension, it is refused."""
    with pytest.raises(RemoteProtocolError):
        wire.unpack(data)


def test_a_frame_over_the_limit_is_refused_on_both_sides() -> None:
    """If a value is larger than a frame, then it is neither sent nor decoded."""
    with pytest.raises(LocalProtocolError) as caught:
        wire.pack(b"x" * wire.FRAME_BYTES_MAX)
    assert caught.value.code == "limit_exceeded"
    with pytest.raises(RemoteProtocolError):
        wire.unpack(b"\xc6" + struct.pack(">I", wire.FRAME_BYTES_MAX) + bytes(wire.FRAME_BYTES_MAX))


def test_a_timestamp_arrives_as_seconds() -> None:
    """If a peer sends a msgpack timestamp, then it becomes a float, which can go on travelling."""
    assert wire.unpack(msgpack.packb(msgpack.Timestamp(5, 500_000_000))) == 5.5


def test_an_extension_in_a_reply_is_refused() -> None:
    """If a reply holds an extension type, then it is a protocol error; nothing but a header is None."""
    with pytest.raises(RemoteProtocolError):
        wire.unpack_reply(bytes(wire.HEADER_BYTES) + msgpack.packb(msgpack.ExtType(5, b"a")))
    assert wire.unpack_reply(bytes(wire.HEADER_BYTES)) is None


@pytest.mark.parametrize(
    "value",
    [
        2**64,
        -(2**63) - 1,
        {1, 2},
        object(),
        1j,
        "\ud800",
        {"a": {"b": [object()]}},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_travel_is_our_error(value: Any) -> None:
    """If a value has no place in the protocol, then LocalProtocolError, and nothing is sent."""
    with pytest.raises(LocalProtocolError):
        wire.pack(value)


def test_a_value_that_contains_itself_is_our_error() -> None:
    """If data nests without end, then LocalProtocolError."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(LocalProtocolError):
        wire.pack(endless)


@pytest.mark.parametrize(
    "body",
    [
        None,
        7,
        {},
        "x",
        [7],
        [[]],
        [["op"]],
        [["op", None]],
        [[7, []]],
        [["op", [], 1]],
        [["op", {}]],
        [[b"op", []]],
    ],
)
def test_a_body_that_is_no_array_of_calls_is_refused(body: Any) -> None:
    """If a body has another shape than [[op, args], ...], then it is a protocol error."""
    with pytest.raises(RemoteProtocolError):
        wire.decode_calls(wire.pack(body))


def test_too_many_calls_are_refused() -> None:
    """If a payload holds more calls than allowed, then limit_exceeded; at the limit it is fine."""
    calls = [["x", []]] * wire.CALLS_PER_PAYLOAD_MAX
    assert len(wire.decode_calls(wire.pack(calls))) == wire.CALLS_PER_PAYLOAD_MAX
    with pytest.raises(InvalidArgument) as caught:
        wire.decode_calls(wire.pack([*calls, ["x", []]]))
    assert caught.value.code == "limit_exceeded"


def nested(depth: int, kind: type = list) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"k": value} if kind is dict else kind([value])
    return value


@pytest.mark.parametrize("kind", [list, dict, tuple])
def test_depth_is_limited(kind: type) -> None:
    """If data nests deeper than the limit, in whatever containers, then limit_exceeded."""
    wire.check_depth(nested(wire.DEPTH_MAX - 1, kind))
    wire.check_depth("no container")
    for depth in (wire.DEPTH_MAX + 1, 900):
        with pytest.raises(InvalidArgument) as caught:
            wire.check_depth([1, "x", nested(depth, kind), {}])
        assert caught.value.code == "limit_exceeded"


# --- pieces of a reply ---


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65_535, 65_536])
def test_spliced_arrays_and_maps_are_whole_values(count: int) -> None:
    """If encoded members are put behind a header, then the result is what msgpack itself makes."""
    assert wire.array_header(count) + b"\xc0" * count == msgpack.packb([None] * count)
    pairs = dict.fromkeys(range(count))
    assert wire.map_header(count) + b"".join(msgpack.packb(key) + b"\xc0" for key in pairs) == msgpack.packb(
        pairs
    )


def test_replies_are_joined_from_their_parts() -> None:
    """If parts are joined, then the body is an array of [status, value] in their order."""
    error = NotFound("no route", details={"key": "k"})
    parts = [
        wire.ok({"a": 1}),
        wire.OK_NIL,
        wire.OK_TRUE,
        wire.OK_FALSE,
        wire.OK + wire.pack("x"),
        wire.failure(error),
    ]
    assert wire.unpack(wire.join_replies(parts)) == [
        [0, {"a": 1}],
        [0, None],
        [0, True],
        [0, False],
        [0, "x"],
        [1, error.to_wire()],
    ]
    assert wire.join_replies([]) == b"\x90"


def test_a_packer_outlives_what_cannot_travel_large_data_and_data_that_packs() -> None:
    """If packing fails, grows the buffer, or happens while a value is read, then the next one is as ever."""

    class Nosy(dict[str, int]):
        def items(self) -> Any:
            assert wire.unpack(wire.pack([1, 2])) == [1, 2]
            return super().items()

    for _ in range(2):
        with pytest.raises(LocalProtocolError):
            wire.pack(["x" * 100, object()])
        assert wire.pack("a") == b"\xa1a"
        assert len(wire.pack(b"x" * 3_000_000)) == 3_000_005
        assert wire.unpack(wire.pack(Nosy(a=1))) == {"a": 1}
        assert wire.pack([{"b": 1}]) == b"\x91\x81\xa1b\x01"
