"""Wire protocol v1: the only codec. What travels between client, router and actors, byte by byte.

Client side (one frame): ``header (40 bytes) + msgpack body``. All integers are big-endian.

    offset size  field         request                                reply
    0      2     magic         "MH"                                   the same
    2      1     version       1                                      the same
    3      1     kind          see Kind                               REPLY or GONE
    4      1     flags         see Flag                               see Flag
    5      1     reserved      0                                      kind of the request answered
    6      2     address       a slot, or a partition (Flag.PARTITION) the partition that answered
    8      4     map_version   of the placement map (0: address is a slot)  the current one
    12     4     remaining_ms  time the caller still waits, > 0       bytes of the request answered
    16     8     request_id    unique per client                      echoed
    24     8     number        of a WRITE, from 1 per (client, partition)   the router's boot id
    32     8     done_below    every number below it is settled       epoch of the answering partition

Body of a request: an array of calls ``[op, args]`` (args is an array). Body of a reply: an array of
``[status, value]`` in the same order; status 0 is success, 1 an error whose value is
``{"code", "message", "details"}``. A WAIT of several calls is answered by ``[place, status, value]`` of those
that have an answer, in any number of replies; all but the last carry Flag.MORE. With Flag.REFUSED the whole
payload was refused and the body is ONE such error map. HELLO, STATUS, RESTART, PING, NOTE and RESTART_RUNNER
have an empty body and are answered by the router.

Inside the node (one frame behind the ZeroMQ identity): ``peer (16 bytes) + deadline_ms (8 bytes) + payload``
towards an actor, ``peer (16 bytes) + payload`` from an actor. A peer is a client id (first byte not 0)
or an actor address: 0, kind letter (``P`` partition, ``R`` runner, ``X`` the router itself), index (u16),
incarnation (u64), four zero bytes. ``deadline_ms`` is CLOCK_MONOTONIC, which all processes of a machine
share.

Rules: the router unpacks a header and never a body; time limits travel as REMAINING milliseconds, because
the clocks of two machines never meet; every size has a limit with a name.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from enum import IntEnum, IntFlag
from functools import partial
from typing import Any, NamedTuple

import msgpack
import msgspec

from mesh.errors import InvalidArgument, LocalProtocolError, MeshError, RemoteProtocolError

MAGIC = b"MH"
VERSION = 1
HEADER = struct.Struct(">2sBBBBHIIQQQ")
HEADER_BYTES = HEADER.size
CLIENT_ID_BYTES = 16
ACTOR_PREFIX_BYTES = CLIENT_ID_BYTES + 8
FRAME_BYTES_MAX = 16 * 1024 * 1024
#: One event: what it travels in, to its partition and to its readers, fits into a frame with it.
EVENT_BYTES_MAX = 12 * 1024 * 1024
CALLS_PER_PAYLOAD_MAX = 4096
#: msgpack-python stops at 1024 levels by itself; ours is lower so that every language can keep it.
DEPTH_MAX = 64
#: Waiting reads are short calls and not counted in flight, so the size of their payload is bounded here.
WAIT_BYTES_MAX = 64 * 1024
#: A waiting read is answered empty after this time at the latest; the SDK parks it again.
WAIT_MS_MAX = 25_000

DEADLINE = struct.Struct(">Q")
_ACTOR = struct.Struct(">BcHQ4x")


class Kind(IntEnum):
    """What a payload is. READ, WRITE and WAIT go to a partition; the rest is the router's own."""

    READ = 1
    WRITE = 2
    WAIT = 3
    HELLO = 4
    STATUS = 5
    RESTART = 6
    PING = 7
    NOTE = 8
    RESTART_RUNNER = 9
    REPLY = 16
    GONE = 17


class Flag(IntFlag):
    """Bits of the flags byte."""

    PARTITION = 1  #: request: address is a partition and map_version counts
    REFUSED = 2  #: reply: the body is one error map for the whole payload
    STALE_MAP = 4  #: reply, with REFUSED: say HELLO again, then resend
    AGAIN = 8  #: reply, with REFUSED: nothing was done; resend the same numbers
    MORE = 16  #: reply to several calls: others have no answer yet (WAIT: it follows; else: ask again)
    MOVED = 32  #: request: a WRITE that was sent under an older map, to the partition of that time


class Header(NamedTuple):
    """The 40 bytes, as values."""

    kind: int
    flags: int
    answers: int
    address: int
    map_version: int
    remaining_ms: int
    request_id: int
    number: int
    done_below: int


#: Takes the nine fields of ``Header`` in their order, within their bounds: 1 us less than ``encode_header``.
pack_header = partial(HEADER.pack, MAGIC, VERSION)


def encode_header(
    kind: int,
    *,
    flags: int = 0,
    answers: int = 0,
    address: int = 0,
    map_version: int = 0,
    remaining_ms: int = 0,
    request_id: int = 0,
    number: int = 0,
    done_below: int = 0,
) -> bytes:
    """Pack a header; a remaining time below 0 or over 49 days is cut to what the field holds."""
    remaining_ms = max(0, min(remaining_ms, 0xFFFFFFFF))
    return pack_header(
        kind, flags, answers, address, map_version, remaining_ms, request_id, number, done_below
    )


def decode_header(payload: bytes) -> Header:
    """Unpack the header of a payload.

    Raises:
        RemoteProtocolError: too short, wrong magic, or another version (``details["version"]``).
    """
    if len(payload) < HEADER_BYTES:
        raise RemoteProtocolError(f"a payload has at least {HEADER_BYTES} bytes, not {len(payload)}")
    magic, version, *rest = HEADER.unpack_from(payload)
    if magic != MAGIC:
        raise RemoteProtocolError(f"not the mesh protocol: it begins with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise RemoteProtocolError(
            f"wire protocol version {version}; this side speaks {VERSION}: update the older one",
            details={"version": version, "expected": VERSION},
        )
    return Header(*rest)


def actor_id(kind: bytes, index: int, incarnation: int = 0) -> bytes:
    """The 16-byte peer of an actor; incarnation 0 means "whoever holds the place now"."""
    return _ACTOR.pack(0, kind, index, incarnation)


def parse_actor_id(peer: bytes) -> tuple[bytes, int, int]:
    """(kind letter, index, incarnation) of an actor's peer.

    Raises:
        RemoteProtocolError: not 16 bytes.
    """
    if len(peer) != CLIENT_ID_BYTES:
        raise RemoteProtocolError(f"a peer has {CLIENT_ID_BYTES} bytes, not {len(peer)}")
    _, kind, index, incarnation = _ACTOR.unpack(peer)
    return kind, index, incarnation


ROUTER_ID = actor_id(b"X", 0)


def encode_body(calls: Sequence[Sequence[Any]]) -> bytes:
    """Encode the calls of one payload.

    Raises:
        LocalProtocolError: a value that msgpack has not, or a frame over the limit; nothing was sent.
    """
    return pack(calls)


def pack(value: Any) -> bytes:
    """msgpack with the limits of this protocol; tuples become arrays.

    Raises:
        LocalProtocolError: a type, an integer or a depth that cannot travel, or too many bytes.
    """
    try:
        packer = _packers.pop()
    except IndexError:
        packer = msgpack.Packer(buf_size=_PACKER_BYTES)
    try:
        packed: bytes = packer.pack(value)
    except (TypeError, ValueError, OverflowError, RecursionError, UnicodeEncodeError) as exc:
        raise LocalProtocolError(f"this value cannot travel: {exc}") from exc
    finally:
        _packers.append(packer)
    if len(packed) > _PACKER_BYTES_MAX:
        _packers.clear()
    if len(packed) > FRAME_BYTES_MAX - HEADER_BYTES:
        raise _too_large(len(packed))
    return packed


#: Packers that nobody uses now, one for each thread at most. ``msgpack.packb`` makes one per call, with a
#: buffer of 256 KiB: where the heap is trimmed in between, that is 16 us of page faults instead of 0.7.
_packers: list[msgpack.Packer] = []
_PACKER_BYTES = 16 * 1024
#: A packer whose buffer grew beyond is not kept.
_PACKER_BYTES_MAX = 1024 * 1024


def _too_large(size: int) -> LocalProtocolError:
    return LocalProtocolError(
        f"{size} bytes are over the frame limit of {FRAME_BYTES_MAX}: split the call", code="limit_exceeded"
    )


def unpack(data: bytes | memoryview) -> Any:
    """Decode one msgpack value. A msgpack timestamp becomes seconds; other extension types are refused.

    Raises:
        RemoteProtocolError: not msgpack, trailing bytes, invalid UTF-8, or nested too deeply.
    """
    if len(data) > FRAME_BYTES_MAX:
        raise RemoteProtocolError(f"{len(data)} bytes are over the frame limit of {FRAME_BYTES_MAX}")
    try:
        # msgpack bounds every announced length by the bytes that are there, and nesting by 1024 levels.
        return msgpack.unpackb(data, strict_map_key=False, timestamp=1, ext_hook=_refuse_extension)
    except (ValueError, TypeError, RecursionError, MemoryError, msgpack.UnpackException) as exc:
        raise RemoteProtocolError(f"not a msgpack value: {type(exc).__name__} {exc}"[:200]) from exc


def unpack_reply(frame: bytes) -> Any:
    """Decode what follows a frame's header as ``unpack`` does; None when there is nothing.

    msgspec reads it in two thirds of the time and makes fewer objects for the collector (0.7 us less per
    route). What it refuses is left to ``unpack``, for the same errors. It reads two things differently, which
    no node sends: timestamps (they became floats when they arrived there) and arrays as keys of a map.

    Raises:
        RemoteProtocolError: as ``unpack``.
    """
    return unpack_own(memoryview(frame)[HEADER_BYTES:]) if len(frame) > HEADER_BYTES else None


def unpack_own(data: bytes | memoryview) -> Any:
    """What a node sent, faster than ``unpack``, with the same errors."""
    if len(data) <= FRAME_BYTES_MAX:
        try:
            return _decode(data)
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError, MemoryError):
            pass
    return unpack(data)


def _refuse_extension(code: int, _data: bytes | memoryview) -> Any:
    raise ValueError(f"extension type {code} is not part of the protocol")


_decode = msgspec.msgpack.Decoder(ext_hook=_refuse_extension).decode


def decode_calls(body: bytes | memoryview) -> list[Any]:
    """The calls of a request's body: a list of ``[op, args]``, shapes checked, arguments not.

    Raises:
        RemoteProtocolError: not an array of calls.
        InvalidArgument: ``limit_exceeded``, more calls than one payload may hold.
    """
    calls = unpack(body)
    if type(calls) is not list:
        raise RemoteProtocolError("the body of a request is an array of [op, args]")
    if len(calls) > CALLS_PER_PAYLOAD_MAX:
        raise InvalidArgument(
            f"{len(calls)} calls in one payload; at most {CALLS_PER_PAYLOAD_MAX}", code="limit_exceeded"
        )
    for call in calls:
        if type(call) is not list or len(call) != 2 or type(call[0]) is not str or type(call[1]) is not list:
            raise RemoteProtocolError("a call is [op: str, args: array]")
    return calls


def check_depth(value: Any, depth_max: int = DEPTH_MAX) -> None:
    """Refuse data that ``pack`` takes and a reader cannot: nested deeper than the limit (it may pass here and
    break a reader in another language), a map with an array as a key, an extension type.

    Raises:
        InvalidArgument: ``limit_exceeded``, or ``invalid_argument``.
    """
    left, opened = FRAME_BYTES_MAX, [iter((value,))]  # depth first: data that holds itself ends at the limit
    while opened:
        for item in opened[-1]:
            if isinstance(item, dict):
                if any(isinstance(key, tuple) for key in item):
                    raise InvalidArgument("a key of a map cannot be a tuple")
                inner: Collection[Any] = item.values()
            elif isinstance(item, msgpack.ExtType):
                raise InvalidArgument("msgpack's extension types cannot travel")
            elif isinstance(item, list | tuple):
                inner = item
            else:
                continue
            left -= len(inner)
            if left < 0:
                raise InvalidArgument("more items than bytes in a frame", code="limit_exceeded")
            if inner:
                if len(opened) == depth_max:
                    message = f"data nested deeper than {depth_max} levels"
                    raise InvalidArgument(message, code="limit_exceeded")
                opened.append(iter(inner))
                break
        else:
            opened.pop()


#: ``pack`` in a third of its time, for what a decoder gave and for numbers and texts of our own. It takes
#: what must not travel too (sets, dates, deep data), so what an agent or a caller made goes through ``pack``.
repack = msgspec.msgpack.Encoder().encode


# --- pieces of a reply: an actor splices encoded values, so that stored bytes are never decoded ---

OK_NIL = b"\x92\x00\xc0"
OK_TRUE = b"\x92\x00\xc3"
OK_FALSE = b"\x92\x00\xc2"
OK = b"\x92\x00"
ERROR = b"\x92\x01"


def ok(value: Any) -> bytes:
    """One successful ``[0, value]``, of what is stored or of our own.

    Raises:
        LocalProtocolError: it does not fit into a frame.
    """
    packed = repack(value)
    if len(packed) > FRAME_BYTES_MAX - HEADER_BYTES:
        raise _too_large(len(packed))
    return OK + packed


def failure(error: MeshError) -> bytes:
    """One failed ``[1, error map]``."""
    return ERROR + pack(error.to_wire())


def array_header(count: int) -> bytes:
    """The msgpack header of an array, to be followed by its encoded members."""
    if count < 16:
        return bytes((0x90 | count,))
    return b"\xdc" + count.to_bytes(2, "big") if count < 65536 else b"\xdd" + count.to_bytes(4, "big")


def map_header(count: int) -> bytes:
    """The msgpack header of a map, to be followed by its encoded keys and values."""
    if count < 16:
        return bytes((0x80 | count,))
    return b"\xde" + count.to_bytes(2, "big") if count < 65536 else b"\xdf" + count.to_bytes(4, "big")


def join_replies(parts: Sequence[bytes]) -> bytes:
    """The body of a reply from its encoded ``[status, value]`` parts."""
    if len(parts) == 1:
        return b"\x91" + parts[0]
    return b"".join((array_header(len(parts)), *parts))


__all__ = [
    "ACTOR_PREFIX_BYTES", "CALLS_PER_PAYLOAD_MAX", "CLIENT_ID_BYTES", "DEADLINE", "DEPTH_MAX", "ERROR",
    "EVENT_BYTES_MAX", "FRAME_BYTES_MAX", "HEADER", "HEADER_BYTES", "MAGIC", "OK", "OK_FALSE", "OK_NIL",
    "OK_TRUE", "ROUTER_ID", "VERSION", "WAIT_BYTES_MAX", "WAIT_MS_MAX", "Flag", "Header", "Kind", "actor_id",
    "array_header",
    "check_depth", "decode_calls", "decode_header", "encode_body", "encode_header", "failure",
    "join_replies", "map_header", "ok", "pack", "pack_header", "parse_actor_id", "repack", "unpack",
    "unpack_own", "unpack_reply",
]
