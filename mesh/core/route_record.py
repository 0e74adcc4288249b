"""One route as bytes: the form in which it lives in memory, lies in the store and travels in a list.

    offset size  field        meaning
    0      5     bin          msgpack's mark of what follows as one bin: C6 and its length
    5      8     updated_ms   boot clock (CLOCK_BOOTTIME), signed: after a reboot it may lie before 0
    13     8     expires_ms   boot clock; the whole time to live is expires_ms - updated_ms
    21     1     flags        bit 0: guessed (a fallback or a room's route that was written back)
    22     4     slot         place in the expiry index of this life of the table; means nothing in the store
    26     4     room_at      where in these bytes the encoded external_room_id stands,
    30     4     room_bytes   and how long it is
    34     ...   route        the caller's map as msgpack, byte for byte what a reply carries

So no read decodes a route: a reply is cut out of these bytes, that of ``route.get_many`` is a join of whole
records. All integers are big-endian. Rows of a store from before the mark lack it (``header_of``).
"""

from __future__ import annotations

import struct
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec

from mesh.core.wire import DEPTH_MAX, check_depth, pack, unpack
from mesh.errors import InvalidArgument, MeshError, StoreError

HEADER = struct.Struct(">BIqqBIII")
HEADER_BYTES = HEADER.size
TIMES = struct.Struct(">5xqqB")
SLOT = struct.Struct(">22xI")
#: The first byte of a record, and what the length behind it counts beside the route.
BIN, BARE_BYTES = 0xC6, HEADER_BYTES - 5
#: Cuts a record's expires_ms out, so that those of many are compared without a loop of ours.
expires_of = itemgetter(slice(13, 21))
_BARE = struct.Struct(">qqBIII")
GUESSED = 1
PROVENANCES = ("learned", "guessed")
TTL_MS_MAX = 10**13
#: A reply wraps a route in up to five arrays, and must itself keep the wire's limit.
ROUTE_DEPTH_MAX = DEPTH_MAX - 8

ROOM = "external_room_id"
_ROOM_PACKED = pack(ROOM)
_ROOM_FIRST = 1 + len(_ROOM_PACKED)
_SCALARS = frozenset((str, int, float, bool, bytes, type(None)))
#: What was decoded holds nothing that msgspec would encode otherwise than ``pack``; it takes half the time.
_encode = msgspec.msgpack.Encoder().encode
_AGES = struct.Struct(">BIBI")
_LONG_AGES = struct.Struct(">BQBQ")


#: An encoded route, where its external_room_id stands in it, and how long that is. A plain tuple: a named
#: one costs 0.2 us per write.
Body = tuple[bytes, int, int]


class Record(NamedTuple):
    """A record, decoded for people and tests."""

    updated_ms: int
    expires_ms: int
    provenance: str
    route: dict[str, Any]


def encode_route(route: Any, bytes_max: int) -> Body:
    """Check a decoded route and encode it.

    Raises:
        InvalidArgument: ``invalid_route``; the message says what is wrong.
    """
    if type(route) is not dict:
        raise _invalid(f"it must be a map, not {type(route).__name__}")
    room = route.get(ROOM)
    if room is None:
        raise _invalid(f"{ROOM} is required and must not be nil")
    try:
        flat = True
        for name, value in route.items():
            if type(name) is not str:
                raise TypeError(f"a key is {type(name).__name__}, not str")
            if type(value) not in _SCALARS:
                flat = False
        if not flat:
            check_depth(route, ROUTE_DEPTH_MAX)
        packed = _encode(route)
        size = len(_encode(room))
    except (TypeError, ValueError, OverflowError, MeshError) as exc:
        raise _invalid(getattr(exc, "message", "") or str(exc)) from exc
    if len(packed) > bytes_max:
        raise _invalid(f"{len(packed)} bytes encoded; the limit is {bytes_max}")
    if packed.startswith(_ROOM_PACKED, 1):
        return packed, _ROOM_FIRST, size
    # An earlier place that looks the same holds the same bytes, so it serves as well.
    return packed, packed.index(_ROOM_PACKED + _encode(room)) + len(_ROOM_PACKED), size


def encode_record(updated_ms: int, expires_ms: int, flags: int, slot: int, body: Body) -> bytes:
    """Put the header before an encoded route."""
    route, at, size = body
    return HEADER.pack(
        BIN, BARE_BYTES + len(route), updated_ms, expires_ms, flags, slot, at + HEADER_BYTES, size
    ) + route


def decode_record(record: bytes) -> Record:
    """Everything that a record says.

    Raises:
        StoreError: ``storage_error``, these bytes are no record.
    """
    updated, expires, flags, _, (route, _, _) = header_of(record)
    return Record(updated, expires, PROVENANCES[flags & GUESSED], unpack(route))


def header_of(record: bytes) -> tuple[int, int, int, int, Body]:
    """(updated_ms, expires_ms, flags, slot, body) of a record that comes from the store.

    Raises:
        StoreError: ``storage_error``, these bytes are no record.
    """
    begin = 5 if record[:1] == b"\xc6" else 0  # no time of a row without the mark begins so
    end = begin + BARE_BYTES
    if len(record) > end:
        updated, expires, flags, slot, at, size = _BARE.unpack_from(record, begin)
        if at > end and size > 0 and at + size <= len(record):
            return updated, expires, flags, slot, (record[end:], at - end, size)
    raise StoreError(f"a stored route of {len(record)} bytes is damaged", code="storage_error")


def rebase(record: bytes, shift_ms: int, now_ms: int) -> bytes:
    """Move a record's times to the boot clock of another boot; what is left stays within [0, ttl].

    ``shift_ms`` is what must be added to a time of the old clock. Wall time says it, and wall time can
    be set back: an age is never less than nothing, so nobody lives longer than the time it was given.
    """
    updated, expires, flags, slot, body = header_of(record)
    moved = min(updated + shift_ms, now_ms)
    return encode_record(moved, moved + expires - updated, flags, slot, body)


def encode_ages(age_ms: int, left_ms: int) -> bytes:
    """Two encoded integers, the age and the time to live that is left."""
    try:
        return _AGES.pack(0xCE, age_ms, 0xCE, left_ms)
    except struct.error:
        return _LONG_AGES.pack(0xCF, max(age_ms, 0), 0xCF, max(left_ms, 0))


def first_fallback(fallbacks: Any) -> dict[str, Any] | None:
    """The first usable of the caller's fallbacks: one map, a list of maps, or junk, which is none."""
    if type(fallbacks) is dict:
        fallbacks = [fallbacks]
    if type(fallbacks) is not list:
        return None
    return next((f for f in fallbacks if type(f) is dict and f.get(ROOM) is not None), None)


def check_ttl(ttl_ms: Any, default_ms: int) -> int:
    """A route's time to live in milliseconds; None means the configured one.

    Raises:
        InvalidArgument: ``invalid_ttl``.
    """
    if ttl_ms is None:
        return default_ms
    if type(ttl_ms) is not int or not 1 <= ttl_ms <= TTL_MS_MAX:
        raise InvalidArgument(
            f"ttl_ms must be a whole number from 1 to {TTL_MS_MAX}, or nil for the configured one",
            code="invalid_ttl",
        )
    return ttl_ms


def _invalid(reason: str) -> InvalidArgument:
    return InvalidArgument(f"invalid route: {reason}", code="invalid_route")


__all__ = [
    "BARE_BYTES", "BIN", "GUESSED", "HEADER", "HEADER_BYTES", "PROVENANCES", "ROOM", "ROUTE_DEPTH_MAX",
    "SLOT", "TIMES", "TTL_MS_MAX", "Body", "Record", "check_ttl", "decode_record", "encode_ages",
    "encode_record",
    "encode_route", "expires_of", "first_fallback", "header_of", "rebase",
]
