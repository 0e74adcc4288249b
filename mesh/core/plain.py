"""What a value becomes when it travels, is stored, or is shown: the one mapping from Python to plain data.

| Python | plain |
|---|---|
| None, bool, int (64 bits), float, str, bytes | itself; half of a surrogate pair in a text becomes ``?`` |
| any other Integral, Real | int, float |
| dict and any Mapping; dataclass, NamedTuple as a list; anything with ``to_map()`` | a map with text keys |
| list, tuple, set (sorted, if it can be), any other Sequence | a list |
| datetime, date, time | ISO-8601 text |
| timedelta | seconds, a float |
| Enum | its value |
| UUID, Decimal, a path | its text |
| bytearray, memoryview | bytes |
| any other object, a number beyond 64 bits, data nested too deeply | refused, with its type and its place |

Keys become texts as in JSON (``1`` is ``"1"``, ``None`` is ``"null"``); two that become the same are refused.
In JSON, bytes are base64 and a float that is no number is ``null``.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from numbers import Integral, Real
from typing import Any
from uuid import UUID

import msgspec

from mesh.core.wire import DEPTH_MAX, FRAME_BYTES_MAX
from mesh.errors import InvalidArgument, shown

INT_MIN, INT_MAX = -(2**63), 2**64 - 1
#: Records hold data of the allowed depth some levels down.
RECORD_DEPTH_MAX = DEPTH_MAX + 16
#: The year 10 000, which a ``datetime`` cannot say.
SECONDS_MAX = 253_402_300_800
#: These are plain whatever they hold.
_LEAVES = frozenset((bool, float, bytes, type(None)))
_TEXTUAL = (date, time, UUID, Decimal)


def plain(
    value: Any, name: str = "value", *, code: str = "validation_error", depth_max: int = DEPTH_MAX
) -> Any:
    """The value as it can travel: itself when it is plain already, else a converted copy.

    Raises:
        InvalidArgument: ``code``, or ``limit_exceeded`` for depth; message and details name place and type.
    """
    if _is_flat(value) or _is_plain(value, depth_max):
        return value
    return converted(value, name, code=code, depth_max=depth_max)


def plain_map(value: Any, name: str, *, code: str = "validation_error") -> dict[str, Any]:
    """``plain`` of what has to be a map.

    Raises:
        InvalidArgument: ``code``; it becomes no map.
    """
    found = plain(value, name, code=code)
    if type(found) is not dict:
        raise InvalidArgument(f"{name} must be a map, not {type(value).__name__}", code=code)
    return found


def converted(
    value: Any, name: str = "value", *, code: str = "validation_error", depth_max: int = DEPTH_MAX
) -> Any:
    """A plain copy: only dicts with text keys, lists, and the leaves of the table.

    Raises:
        InvalidArgument: as ``plain``.
    """
    try:
        return _Copy().of(value, depth_max)
    except _Refused as exc:
        place = name + "".join(reversed(exc.steps))
        raise InvalidArgument(
            f"{place}: {exc.reason}", code="limit_exceeded" if exc.deep else code,
            details={"path": place, "type": exc.kind},
        ) from exc.__cause__


def to_json(value: Any) -> str:
    """One line of JSON of any value of the table."""
    found = converted(value, depth_max=RECORD_DEPTH_MAX)
    try:
        return _dumps(found, allow_nan=False)
    except ValueError:
        return _dumps(_without_nan(found), allow_nan=False)


def seconds(value: Any, name: str) -> float:
    """A time as records hold it, seconds since the epoch; a ``datetime`` without a zone is taken as UTC.

    Raises:
        InvalidArgument: ``validation_error``; neither a ``datetime`` nor a number of the years 1970 to 9999.
    """
    if isinstance(value, datetime):
        return (value if value.tzinfo is not None else value.replace(tzinfo=UTC)).timestamp()
    if type(value) not in (int, float) or not 0 <= value < SECONDS_MAX:
        raise InvalidArgument(f"{name} must be seconds since 1970 or a datetime, not {shown(value, 40)}")
    return float(value)


def utc(seconds: float | None) -> datetime | None:
    """The time of a record, which is in seconds since the epoch, as an aware ``datetime``."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _dumps(value: Any, *, allow_nan: bool) -> str:
    return json.dumps(
        value, ensure_ascii=False, allow_nan=allow_nan, default=_base64, separators=(", ", ": ")
    )


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _without_nan(value: Any) -> Any:
    if type(value) is dict:
        return {key: _without_nan(item) for key, item in value.items()}
    if type(value) is list:
        return [_without_nan(item) for item in value]
    return None if type(value) is float and not math.isfinite(value) else value


# --- is it plain already? Every event passes here: no copies, no recursion ---


def _is_flat(value: Any) -> bool:
    """Whether it is a map of plain leaves: most events' data is."""
    if type(value) is not dict:
        return False
    for key, item in value.items():
        if type(key) is not str or not key.isascii():
            return False
        kind = type(item)
        if kind is str:
            if not item.isascii() and _clean(item) is not item:
                return False
        elif kind is int:
            if not INT_MIN <= item <= INT_MAX:
                return False
        elif kind not in _LEAVES:
            return False
    return True


def _is_plain(value: Any, depth_max: int) -> bool:
    """Whether all of it is; tuples count as lists. Depth first: data that holds itself ends at the limit."""
    left, opened = FRAME_BYTES_MAX, [iter((value,))]
    while opened:
        for item in opened[-1]:
            kind = type(item)
            if kind in _LEAVES or (kind is str and item.isascii()):
                continue
            inner = _inside(item)
            if inner is None:
                return False
            left -= len(inner)
            if left < 0:
                raise InvalidArgument("more items than bytes in a frame", code="limit_exceeded")
            if inner:
                if len(opened) == depth_max:
                    return False
                opened.append(iter(inner))
                break
        else:
            opened.pop()
    return True


def _inside(item: Any) -> Collection[Any] | None:
    """What a plain value holds; None when it is not plain."""
    kind = type(item)
    if kind in _LEAVES:
        return ()
    if kind is str:
        return () if item.isascii() or _clean(item) is item else None
    if kind is int:
        return () if INT_MIN <= item <= INT_MAX else None
    if kind is dict:
        plain_keys = all(type(key) is str and (key.isascii() or _clean(key) is key) for key in item)
        return item.values() if plain_keys else None
    return item if kind is list or kind is tuple else None


def _clean(text: str) -> str:
    """The text itself, or one that can be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


# --- converting ---


class _Refused(Exception):
    """Something cannot travel; the steps to it are collected on the way up, innermost first."""

    def __init__(self, reason: str, kind: str, *, deep: bool = False) -> None:
        self.reason = reason
        self.kind = kind
        self.deep = deep
        self.steps: list[str] = []


class _Copy:
    """One conversion. ``left``: how many levels may still be opened; ``room``: how many items may follow."""

    __slots__ = ("room",)

    def __init__(self) -> None:
        self.room = FRAME_BYTES_MAX

    def of(self, value: Any, left: int) -> Any:
        """The plain copy of anything."""
        kind = type(value)
        if kind in _LEAVES:
            return value
        if kind is str:
            return _clean(value)
        if kind is int:
            return _bounded(value)
        if kind is dict:
            return self.of_map(value, left)
        if kind is list or kind is tuple:
            return self.of_list(value, left)
        try:
            return self.stranger(value, left)
        except (_Refused, InvalidArgument):
            raise
        except Exception as exc:
            reason = f"reading an object of type {kind.__name__} failed: {shown(exc)}"
            raise _Refused(reason, kind.__name__) from exc

    def of_map(self, items: Mapping[Any, Any], left: int) -> dict[str, Any]:
        """Keys become texts."""
        made: dict[str, Any] = {}
        for key, item in items.items():
            self.open(items, left)
            text = _key(key)
            if text in made:
                raise _Refused(f"two keys become {shown(text)}", type(key).__name__)
            try:
                made[text] = self.of(item, left - 1)
            except _Refused as exc:
                exc.steps.append(f".{text}" if text.isidentifier() else f"[{shown(text)}]")
                raise
        return made

    def of_list(self, items: Iterable[Any], left: int) -> list[Any]:
        """Whatever is in it, in its order."""
        made: list[Any] = []
        for item in items:
            self.open(items, left)
            try:
                made.append(self.of(item, left - 1))
            except _Refused as exc:
                exc.steps.append(f"[{len(made)}]")
                raise
        return made

    def open(self, items: Any, left: int) -> None:
        """One more item, one level down."""
        self.room -= 1
        if left <= 1 or self.room < 0:
            reason = "data nested too deeply" if left <= 1 else "more items than bytes in a frame"
            raise _Refused(reason, type(items).__name__, deep=True)

    def stranger(self, value: Any, left: int) -> Any:
        """What is not of the plain types themselves."""
        if isinstance(value, Enum):
            return self.of(value.value, left)
        if isinstance(value, str):
            return _clean(str.__str__(value))
        if isinstance(value, Integral):
            return _bounded(int(value))
        if isinstance(value, Real):
            return float(value)
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value)
        if isinstance(value, timedelta):
            return value.total_seconds()
        if isinstance(value, _TEXTUAL):
            return _text(value)
        return self.composed(value, left)

    def composed(self, value: Any, left: int) -> Any:
        """What holds other values."""
        kind = type(value)
        if callable(getattr(kind, "to_map", None)) and not isinstance(value, type):
            return self.of_map(value.to_map(), left)
        if isinstance(value, Mapping):
            return self.of_map(value, left)
        if isinstance(value, Set):
            return self.of_list(_sorted(value), left)
        if isinstance(value, Sequence):
            return self.of_list(value, left)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self.of_map({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, left)
        if isinstance(value, msgspec.Struct):
            return self.of_map({name: getattr(value, name) for name in value.__struct_fields__}, left)
        if hasattr(kind, "__fspath__"):
            return self.of(value.__fspath__(), left)
        raise _Refused(f"an object of type {kind.__name__} cannot travel", kind.__name__)


def _bounded(number: int) -> int:
    if not INT_MIN <= number <= INT_MAX:
        raise _Refused("an integer of more than 64 bits cannot travel", "int")
    return number


def _key(key: Any) -> str:
    if isinstance(key, Enum):
        return _key(key.value)
    if isinstance(key, str):
        return _clean(str.__str__(key))
    if key is None or isinstance(key, bool | int | float):
        return json.dumps(key)
    if isinstance(key, _TEXTUAL):
        return _text(key)
    raise _Refused(f"a key of type {type(key).__name__} cannot travel", type(key).__name__)


def _text(value: Any) -> str:
    return str(value.isoformat()) if isinstance(value, date | time) else str(value)


def _sorted(items: Set[Any]) -> list[Any]:
    try:
        return sorted(items)
    except TypeError:
        return list(items)


__all__ = [
    "INT_MAX", "INT_MIN", "RECORD_DEPTH_MAX", "SECONDS_MAX", "converted", "plain", "plain_map", "seconds",
    "to_json", "utc",
]
