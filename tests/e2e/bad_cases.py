"""What is wrong on the wire, as a table: frames, and the code that refuses them."""

from __future__ import annotations

import os
import struct
from typing import Any, NamedTuple

import msgpack
import xxhash

HEADER = struct.Struct(">2sBBBBHIIQQQ")
READ, WRITE, WAIT, HELLO, STATUS, RESTART, PING, NOTE = range(1, 9)
BIG = 16 * 1024 * 1024


class Case(NamedTuple):
    """Frames of one message, and how it is refused: the code, of the payload or of its first call."""

    name: str
    frames: tuple[bytes, ...]
    code: str


def slot_of(scope: str) -> int:
    """The slot that the README says."""
    return xxhash.xxh3_64_intdigest(scope.encode()) % 4096


def head(
    kind: int = READ,
    *,
    magic: bytes = b"MH",
    version: int = 1,
    flags: int = 0,
    reserved: int = 0,
    address: int = 1,
    map_version: int = 0,
    remaining_ms: int = 9000,
    request_id: int = 7,
    number: int = 0,
    done_below: int = 0,
) -> bytes:
    """Forty bytes."""
    return HEADER.pack(
        magic,
        version,
        kind,
        flags,
        reserved,
        address,
        map_version,
        remaining_ms,
        request_id,
        number,
        done_below,
    )


def read(op: Any, *args: Any, address: int = 1) -> bytes:
    """A READ of one call."""
    return head(address=address) + msgpack.packb([[op, list(args)]])


def nested(depth: int, maps: bool = False) -> bytes:
    """Arrays, or maps, in each other."""
    return (b"\x81\xa1d" if maps else b"\x91") * depth + b"\xc0"


def call_with(op: str, *encoded: bytes) -> bytes:
    """The body of one call whose arguments are given as they travel."""
    return b"\x91\x92" + msgpack.packb(op) + bytes((0x90 | len(encoded),)) + b"".join(encoded)


def written(op: str, *encoded: bytes, address: int) -> bytes:
    """A WRITE of one call; its number is filled in by who sends it."""
    return head(WRITE, address=address, number=1, done_below=1) + call_with(op, *encoded)


KEY = "bad:input:room"
_KEY = slot_of("r:" + KEY)
_P = msgpack.packb
_S = slot_of("s:bad")
_RUN = f"run_{_S:03x}{os.urandom(15).hex()[:29]}"

#: The payload is refused before a call of it is looked at.
FRAMES = (
    Case("nothing at all", (b"",), "protocol_error"),
    Case("one byte", (b"M",), "protocol_error"),
    Case("39 of 40 bytes", (head()[:-1],), "protocol_error"),
    Case("noise", (os.urandom(4000),), "protocol_error"),
    Case("HTTP", (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3,), "protocol_error"),
    Case("wrong magic", (head(magic=b"HM"),), "protocol_error"),
    Case("version 0", (head(version=0),), "protocol_error"),
    Case("version 255", (head(version=255),), "protocol_error"),
    Case("kind 0", (head(0),), "protocol_error"),
    Case("kind REPLY", (head(16),), "protocol_error"),
    Case("kind GONE", (head(17),), "protocol_error"),
    Case("kind 255", (head(255),), "protocol_error"),
    Case("a second frame", (read("feed.head"), b"more"), "protocol_error"),
    Case("a hundred frames", (b"x",) * 100, "protocol_error"),
    Case("slot 4096", (head(address=4096) + b"\x90",), "protocol_error"),
    Case("slot 65535", (head(address=65535) + b"\x90",), "protocol_error"),
    Case("partition 9", (head(flags=1, address=9, map_version=1) + b"\x90",), "protocol_error"),
    Case("a future placement map", (head(flags=1, map_version=2**32 - 1) + b"\x90",), "invalid_argument"),
    Case("no map version", (head(flags=1, map_version=0) + b"\x90",), "invalid_argument"),
    Case("no body", (head(),), "protocol_error"),
    Case("a byte msgpack never uses", (head() + b"\xc1",), "protocol_error"),
    Case("a truncated body", (read("route.get", KEY)[:-1],), "protocol_error"),
    Case("bytes behind the body", (read("feed.head") + b"\xc0",), "protocol_error"),
    Case("an array that lies about its length", (head() + b"\xdd\xff\xff\xff\xff",), "protocol_error"),
    Case("a map that lies about its length", (head() + b"\xdf\xff\xff\xff\xff",), "protocol_error"),
    Case("bytes that lie about their length", (head() + b"\xc6\xff\xff\xff\xff",), "protocol_error"),
    Case("invalid UTF-8", (head() + b"\x91\x92\xa2\xff\xfe\x90",), "protocol_error"),
    Case("a surrogate", (head() + b"\x91\x92\xa3\xed\xa0\x80\x90",), "protocol_error"),
    Case("an extension type", (head() + call_with("route.get", b"\xd4\x05\x00"),), "protocol_error"),
    Case("an array as a key", (head() + call_with("route.get", b"\x81\x90\xc0"),), "protocol_error"),
    Case("10 000 levels of arrays", (head() + nested(10_000),), "protocol_error"),
    Case("10 000 levels of maps", (head() + nested(10_000, maps=True),), "protocol_error"),
    Case("5 000 000 levels", (head() + nested(5_000_000),), "protocol_error"),
    Case("a body that is a map", (head() + b"\x80",), "protocol_error"),
    Case("a call that is a text", (head() + b"\x91\xa1x",), "protocol_error"),
    Case("a call without arguments", (head() + b"\x91\x91\xa1x",), "protocol_error"),
    Case("arguments that are a map", (head() + b"\x91\x92\xa1x\x80",), "protocol_error"),
    Case("an op that is a number", (read(5),), "protocol_error"),
    Case("4097 calls", (head() + _P([["feed.head", []]] * 4097),), "limit_exceeded"),
    Case("no time left", (head(remaining_ms=0) + b"\x90",), "timeout"),
    Case("a write without time", (head(WRITE, remaining_ms=0, number=1, done_below=1) + b"\x90",), "timeout"),
    Case("number 0", (head(WRITE, number=0) + b"\x90",), "validation_error"),
    Case("number 2^64 - 1", (head(WRITE, number=2**64 - 1, done_below=1) + b"\x90",), "validation_error"),
    Case("number 7 of a stranger", (head(WRITE, number=7, done_below=1) + b"\x90",), "client_expired"),
    Case("done_below over its number", (head(WRITE, number=1, done_below=2) + b"\x90",), "validation_error"),
    Case("done_below 2^64 - 1", (head(WRITE, number=1, done_below=2**64 - 1) + b"\x90",), "validation_error"),
    Case("a WAIT of 100 KiB", (head(WAIT) + b"\xc6" + bytes(100_000),), "limit_exceeded"),
    Case("a partition that is not there", (head(RESTART, address=200),), "not_found"),
    Case("a note about no partition", (head(NOTE, address=200),), "not_found"),
)

#: A call is refused, the payload is answered.
CALLS = (
    Case("an unknown op", (read("route.steal"),), "unknown_op"),
    Case("an op with no name", (read(""),), "unknown_op"),
    Case("an op of a megabyte", (read("x" * 2**20),), "unknown_op"),
    Case(
        "a write that says it is a read", (read("route.set", KEY, {"external_room_id": "1"}),), "unknown_op"
    ),
    Case("a read that says it is a write", (written("route.get", _P(KEY), address=_KEY),), "unknown_op"),
    Case("a read that wants to wait", (head(WAIT) + call_with("route.get", _P(KEY)),), "unknown_op"),
    Case("a WAIT of no calls", (head(WAIT) + _P([]),), "protocol_error"),
    Case("a WAIT for a number", (head(WAIT) + call_with("run.wait", b"\x05"),), "invalid_id"),
    Case("a WAIT for a map", (head(WAIT) + call_with("session.wait", b"\x80", b"\x80"),), "invalid_id"),
    Case(
        "a WAIT with deep filters",
        (head(WAIT) + call_with("session.wait", _P("bad"), nested(1000)),),
        "validation_error",
    ),
    Case("too many arguments", (read("route.get", *[KEY] * 1000),), "invalid_argument"),
    Case("too few", (read("route.get"),), "invalid_argument"),
    Case("a key that is a number", (read("route.get", 5),), "invalid_session_key"),
    Case("a key that is bytes", (read("route.get", b"a:b:c"),), "invalid_session_key"),
    Case("a key with control characters", (read("route.get", "a:b\x00:c\x1f"),), "invalid_session_key"),
    Case("a key of a megabyte", (read("route.get", "a:b:" + "c" * 2**20),), "invalid_session_key"),
    Case("a key with a wrong escape", (read("route.get", "a:b:%2f"),), "invalid_session_key"),
    Case("a key of another partition", (read("route.get", KEY, address=_KEY ^ 1),), "invalid_argument"),
    *(
        Case(
            f"a ttl of {name}",
            (written("route.set", _P(KEY), _P({"external_room_id": "1"}), ttl, address=_KEY),),
            "invalid_ttl",
        )
        for name, ttl in (
            ("0", b"\x00"),
            ("-1", b"\xff"),
            ("2^63", _P(2**63)),
            ("2^64 - 1", _P(2**64 - 1)),
            ("-2^63", _P(-(2**63))),
            ("a text", _P("60000")),
            ("NaN", _P(float("nan"))),
            ("infinity", _P(float("inf"))),
            ("1.5", _P(1.5)),
            ("true", _P(True)),
            ("an array", b"\x90"),
            ("depth 1000", nested(1000)),
        )
    ),
    Case(
        "a route that is deep",
        (written("route.set", _P(KEY), b"\x81\xb0external_room_id" + nested(900), address=_KEY),),
        "invalid_route",
    ),
    Case(
        "a route with a number as key",
        (written("route.set", _P(KEY), b"\x82\xb0external_room_id\xa11\x01\x02", address=_KEY),),
        "invalid_route",
    ),
    Case(
        "a route of a megabyte",
        (written("route.set", _P(KEY), _P({"external_room_id": "x" * 2**20}), address=_KEY),),
        "invalid_route",
    ),
    Case("a page of -1", (read("route.list", None, None, -1, None),), "invalid_argument"),
    Case("a page of 2^64 - 1", (read("route.list", None, None, 2**64 - 1, None),), "invalid_argument"),
    Case("a filter that is NaN", (read("route.list", float("nan"), None, 1, None),), "invalid_argument"),
    *(
        Case(
            f"a session named {name}",
            (written("session.create", sid, _P("echo"), b"\xc0", address=_S),),
            "invalid_id",
        )
        for name, sid in (
            ("../x", _P("../x")),
            ("..", _P("..")),
            ("/etc", _P("/etc")),
            ("a space", _P("a b")),
            ("NUL", _P("a\0")),
            ("nothing", _P("")),
            ("129 letters", _P("a" * 129)),
            ("5", b"\x05"),
            ("depth 1000", nested(1000)),
        )
    ),
    Case(
        "a deep agent",
        (written("session.create", _P("bad"), nested(1000), b"\xc0", address=_S),),
        "validation_error",
    ),
    Case(
        "deep fields",
        (
            written(
                "session.create", _P("bad"), _P("echo"), b"\x81\xa7context\x81\xa1x" + nested(900), address=_S
            ),
        ),
        "limit_exceeded",
    ),
    Case(
        "an unknown field",
        (written("session.create", _P("bad"), _P("echo"), _P({"x": 1}), address=_S),),
        "validation_error",
    ),
    Case(
        "tags that are a map",
        (written("session.create", _P("bad"), _P("echo"), _P({"tags": {"a": 1}}), address=_S),),
        "validation_error",
    ),
    Case("an unknown status", (read("session.list", "asleep", None, None, 1, None),), "invalid_status"),
    Case(
        "a status that is deep",
        (head() + call_with("session.list", nested(1000), b"\xc0", b"\xc0", b"\x01", b"\xc0"),),
        "invalid_status",
    ),
    Case(
        "tags that are NaN", (read("session.list", None, None, [float("nan")], 1, None),), "validation_error"
    ),
    Case(
        "an event type that is a map", (read("session.events", "bad", {"type": [{}]}),), "session_not_found"
    ),
    Case("a token with a dot", (read("feed.echo", "a.b"),), "validation_error"),
    Case("a token of a megabyte", (read("feed.echo", "a" * 2**20),), "validation_error"),
    Case("lifecycle after -1", (read("feed.lifecycle", -1, 1),), "validation_error"),
    Case("a page of 2^63 events", (read("feed.session", 0, 2**63),), "validation_error"),
    Case("a run id with a path", (written("run.get", _P("run_../../x"), address=_S),), "unknown_op"),
    Case(
        "a run of another slot",
        (written("run.submit", _P("run_" + "0" * 32), _P("bad"), _P("x"), address=_S),),
        "session_not_found",
    ),
    Case("a backup to a number", (written("partition.backup", b"\x05", address=_S),), "validation_error"),
    Case(
        "a backup below a file",
        (written("partition.backup", _P("/dev/null/x"), address=_S),),
        "storage_write_failed",
    ),
    Case(
        "arguments for what takes none",
        (written("agent.reload", nested(1000), address=_S),),
        "validation_error",
    ),
)

__all__ = [
    "BIG",
    "CALLS",
    "FRAMES",
    "HEADER",
    "HELLO",
    "KEY",
    "PING",
    "READ",
    "STATUS",
    "WAIT",
    "WRITE",
    "Case",
    "call_with",
    "head",
    "nested",
    "read",
    "slot_of",
    "written",
]
