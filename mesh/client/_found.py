"""The answer of ``route.get_many``, read as far as nobody has to look: records stay the bytes that came."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Annotated, Any

import msgspec

from mesh.core.route_found import RECORD_BYTES_MIN, RouteRecord
from mesh.errors import RemoteProtocolError


class Found(msgspec.Struct, array_like=True):
    """The node's clock; by place the record, or nil; the errors of those with nil, and their places."""

    now_ms: int
    records: list[Annotated[bytes, msgspec.Meta(min_length=RECORD_BYTES_MIN)] | None]
    errors: list[tuple[int, dict[str, Any]]]

    def each(self, count: int) -> list[Any]:
        """What was found for each of ``count`` keys: a ``RouteRecord``, or an error map.

        Raises:
            RemoteProtocolError: it is not the answer to so many keys.
        """
        found: list[Any] = list(map(RouteRecord, self.records, repeat(self.now_ms)))
        whole = all(self.records)
        if self.errors:
            for place, error in self.errors:
                if not 0 <= place < len(found) or type(found[place]) is dict or self.records[place]:
                    raise RemoteProtocolError(f"not the answers to {count} keys")
                found[place] = error
            whole = self.records.count(None) == len(self.errors)
        if len(found) != count or not whole:
            raise RemoteProtocolError(f"not the answers to {count} keys")
        return found

    def pairs(self, count: int) -> Sequence[Any]:
        """The same as a pair for each key.

        Raises:
            RemoteProtocolError: as ``each``.
        """
        found = self.each(count)
        if self.errors:
            return [(int(type(one) is dict), one) for one in found]
        return list(zip(repeat(0), found, strict=False))


def found_of(value: Any) -> Found:
    """The answer; it is plain data when it travelled with answers of another kind.

    Raises:
        RemoteProtocolError: it has another form.
    """
    if type(value) is Found:
        return value
    try:
        return msgspec.convert(value, Found)
    except (msgspec.ValidationError, RecursionError) as exc:
        raise RemoteProtocolError(f"not the answer to a list of keys: {exc}"[:200]) from exc


__all__ = ["Found", "found_of"]
