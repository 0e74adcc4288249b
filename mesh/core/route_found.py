"""What ``routes.get`` finds: a record of the node as its bytes, opened when somebody looks at it.

Of a list of routes most are passed on or asked for one field, so a client makes of each answer one small
object and nothing else: 0.1 us, where a decoded route takes 1.1.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Self

import msgspec
from msgspec.structs import force_setattr

from mesh.core.record import Record
from mesh.errors import RemoteProtocolError

#: A node's record on the wire, without msgpack's mark: updated_ms, expires_ms, flags, 12 bytes of the node's
#: own, and behind these 29 bytes the route (``route_record.py``).
_TIMES = struct.Struct(">qqB")
RECORD_BYTES_MIN = 30
_ROUTE_AT = RECORD_BYTES_MIN - 1
_GUESSED = 1


class Provenance(StrEnum):
    """``learned`` by a set, or ``guessed`` by a write-back of resolve."""

    LEARNED = "learned"
    GUESSED = "guessed"


_PROVENANCES = (Provenance.LEARNED, Provenance.GUESSED)
_Opened = tuple[dict[str, Any], int, int, Provenance]


class RouteRecord(Record, frozen=True, gc=False, eq=False):
    """What ``routes.get`` finds: ``route``, ``age_ms`` and ``ttl_left_ms`` (ms on the node's clock, never raw
    clock readings) and ``provenance``. Made by hand it takes these four, in this order.

    What comes from a node is its record and its clock, and is opened at the first look; one that holds no
    route is a ``RemoteProtocolError`` then. Not tracked by the collector: decoded data cannot point back to
    the record.
    """

    packed: Any  #: the record's bytes, once opened the four values; or the route of one that was made by hand
    at_ms: int  #: the node's clock when it answered; or the age
    left_ms: int = 0
    origin: Provenance = Provenance.LEARNED

    @property
    def route(self) -> dict[str, Any]:
        """The caller's map, as it was set."""
        return self._open()[0]

    @property
    def age_ms(self) -> int:
        """How long ago it was set."""
        return self._open()[1]

    @property
    def ttl_left_ms(self) -> int:
        """How long it lives on."""
        return self._open()[2]

    @property
    def provenance(self) -> Provenance:
        """How the node came to know it."""
        return self._open()[3]

    def _open(self) -> _Opened:
        known = self.packed
        if type(known) is bytes:
            updated_ms, expires_ms, flags = _TIMES.unpack_from(known)
            ages = self.at_ms - updated_ms, expires_ms - self.at_ms
            try:
                route = _decode_route(known[_ROUTE_AT:])
            except (ValueError, RecursionError) as exc:
                raise RemoteProtocolError(f"not a route: {exc}"[:200]) from exc
            known = (route, *ages, _PROVENANCES[flags & _GUESSED])
            force_setattr(self, "packed", known)  # one step: other threads see the bytes or all of it
        elif type(known) is not tuple:
            return known, self.at_ms, self.left_ms, self.origin
        opened: _Opened = known
        return opened

    def to_map(self) -> dict[str, Any]:
        """The record as plain, JSON-friendly maps and lists."""
        route, age_ms, ttl_left_ms, provenance = self._open()
        return {
            "route": route,
            "age_ms": age_ms,
            "ttl_left_ms": ttl_left_ms,
            "provenance": provenance.value,
        }

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_map``."""
        provenance = Provenance(values.get("provenance", Provenance.LEARNED))
        return cls(values["route"], values["age_ms"], values["ttl_left_ms"], provenance)

    def __repr__(self) -> str:
        return "RouteRecord(" + ", ".join(f"{k}={v!r}" for k, v in self.to_map().items()) + ")"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RouteRecord) and self.to_map() == other.to_map()

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return RouteRecord, self._open()


_decode_route = msgspec.msgpack.Decoder(dict[str, Any]).decode


__all__ = ["RECORD_BYTES_MIN", "Provenance", "RouteRecord"]
