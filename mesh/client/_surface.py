"""What each method of the SDK means: arguments -> calls, answers -> records. Both shells use every rule here.

A method that is one call has a function that checks and places its arguments, and one that reads the
answer. A method of several calls is a *plan*: a generator that yields what it needs and is sent what came:

    list[Ask]        -> a list of results in the same order: values, MeshErrors, or REPLACE
    NeedFacts()      -> what HELLO said (Facts); raised into the plan when there is no node
    Pause(seconds)   -> None, later
    Meanwhile(asks, work) -> as list[Ask]; ``work()`` is done while they are on their way
    Emit(callback, event) -> None, after the callback (awaited, if it is a coroutine function)

The drivers of the two shells are a dozen lines each.
"""

from __future__ import annotations

import base64
import binascii
import inspect
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple

from mesh.client._payload import STALE, Call
from mesh.client._protocol import READ, WRITE
from mesh.core import wire
from mesh.core.keys import SessionKey, text_of
from mesh.core.plain import plain_map
from mesh.core.records import Provenance, Resolution, RouteEntry, RouteRecord, Source, error_of
from mesh.core.slots import route_slot
from mesh.errors import DeadlineExceeded, InvalidArgument, MeshError, RemoteProtocolError, shown

Key = SessionKey | Sequence[str | None] | str
Route = Mapping[str, Any]

#: Keys whose text and slot are remembered per process.
PLACES_MAX = 16_384
#: How long a question to all partitions waits for each of them.
EVERY_S = 1.0
PAGE_MAX = 1_000
#: A parked read is given up by the SDK after this time and parked again; the node answers after 25 s.
PARK_S = 30.0
#: The callers' own limits are waited for in steps, so that those who wait together share a payload.
PARK_STEP_S = 0.5


class Ask(NamedTuple):
    """One call of a plan. ``slot`` below 0 is ~partition; ``timeout_s`` None is the caller's limit."""

    kind: int
    slot: int
    call: Call | None
    timeout_s: float | None = None
    gate: bool = False  #: when it fails, the rest of its list is not waited for


class Meanwhile(NamedTuple):
    """Ask, and have something done while the answers are on their way."""

    asks: list[Ask]
    work: Callable[[], object]


class Pause(NamedTuple):
    """Wait a moment."""

    seconds: float


class Emit(NamedTuple):
    """Hand something to the caller's function."""

    callback: Callable[[Any], Any]
    value: Any


class NeedFacts(NamedTuple):
    """Ask for what HELLO said."""

    timeout_s: float | None = None


FACTS = NeedFacts()
Request = list[Ask] | Meanwhile | Pause | Emit | NeedFacts
Plan = Generator[Request, Any, Any]


class _Replace:
    """The result of a call that has to be placed anew: the placement map changed."""


REPLACE = _Replace()


_places: dict[Any, tuple[str, int]] = {}


class _Gets(dict[Any, tuple[int, Call]]):
    """(slot, call) of ``routes.get`` by key. Remembered whole, and looked up without a call of ours."""

    def __missing__(self, key: Any) -> tuple[int, Call]:
        if len(self) >= PLACES_MAX:
            self.clear()
        found = self[key] = get_call(key)
        return found


GETS = _Gets()


def get_call(key: Any) -> tuple[int, Call]:
    """(slot, call) of ``routes.get``. ``GETS`` knows those of keys that a dict can hold.

    Raises:
        InvalidArgument: ``invalid_session_key`` or ``invalid_format``.
    """
    text, slot = place_route(key)
    return slot, ("route.get", (text,))


def place_route(key: Any) -> tuple[str, int]:
    """(text, slot) of a route key.

    Raises:
        InvalidArgument: ``invalid_session_key`` or ``invalid_format``.
    """
    try:
        found = _places.get(key)
    except TypeError:  # a list: fine as a key of a route, not of a dict
        return _place_route(key)
    return found if found is not None else _remember(key)


def known_places(keys: Sequence[Any]) -> list[Any]:
    """(text, slot) of many route keys, looked up in one go; None where nothing is remembered."""
    try:
        return list(map(_places.get, keys))
    except TypeError:  # one of them is a list
        return [None] * len(keys)


def _place_route(key: Any) -> tuple[str, int]:
    text = text_of(key)
    return text, route_slot(text)


def _remember(key: Any) -> tuple[str, int]:
    found = _place_route(key)
    if len(_places) >= PLACES_MAX:
        _places.clear()
    _places[key] = found
    return found


_FLAT = frozenset((str, int, bool, float, bytes, type(None)))


def check_route(route: Any) -> dict[str, Any]:
    """A route that may travel.

    Raises:
        InvalidArgument: ``invalid_route``.
    """
    if type(route) is not dict:
        if not isinstance(route, Mapping):
            raise InvalidArgument(f"a route is a mapping, not {type(route).__name__}", code="invalid_route")
        route = dict(route)
    checked: dict[str, Any] = route
    if checked.get("external_room_id") is None:
        raise InvalidArgument("a route needs an external_room_id that is not None", code="invalid_route")
    flat = True
    for key, value in checked.items():
        if type(key) is not str:
            raise InvalidArgument(f"a route's keys are strs, not {type(key).__name__}", code="invalid_route")
        if type(value) not in _FLAT:
            flat = False
    return checked if flat else plain_map(checked, "route", code="invalid_route")


def check_ttl(ttl_ms: Any) -> None:
    """Refuse what is not a positive whole number of milliseconds.

    Raises:
        InvalidArgument: ``invalid_ttl``.
    """
    if ttl_ms is not None and (type(ttl_ms) is not int or not 0 < ttl_ms <= 10**13):
        raise InvalidArgument(
            f"ttl_ms must be a whole number from 1 to 10**13, not {shown(ttl_ms, 40)}", code="invalid_ttl"
        )


def check_timeout(timeout_s: Any) -> None:
    """Refuse what is not a positive number of seconds.

    Raises:
        InvalidArgument: ``invalid_argument``.
    """
    if timeout_s is not None and not (
        isinstance(timeout_s, int | float) and (0 < timeout_s < 2**53 or timeout_s == float("inf"))
    ):
        raise InvalidArgument(
            f"timeout_s must be seconds from above 0 to 2**53, or inf, not {shown(timeout_s, 40)}",
            code="invalid_argument",
        )


def check_function(function: Any, what: str) -> None:
    """Refuse what cannot be called, before anything is asked.

    Raises:
        InvalidArgument: ``invalid_argument``.
    """
    if function is not None and not callable(function):
        raise InvalidArgument(f"{what} is a function, not {type(function).__name__}", code="invalid_argument")


def check_plain(function: Any, what: str) -> None:
    """Refuse a coroutine function where nobody would await it.

    Raises:
        InvalidArgument: ``invalid_argument``.
    """
    if inspect.iscoroutinefunction(function):
        raise InvalidArgument(f"{what} is a coroutine function: only AsyncClient calls one",
                              code="invalid_argument")


def listed(items: Any, what: str) -> list[Any]:
    """The items of a caller's list. A text is none: its letters are surely not what was meant.

    Raises:
        InvalidArgument: ``invalid_argument``.
    """
    if type(items) is list or (isinstance(items, Iterable) and not isinstance(items, str | bytes | Mapping)):
        return list(items)
    raise InvalidArgument(f"{what} is a list, not {type(items).__name__}", code="invalid_argument")


def failure(value: Any) -> MeshError:
    """The error of a pair that did not succeed: a new one each time, so that tracebacks do not mix."""
    return value if isinstance(value, MeshError) else error_of(value)


PROVENANCES: dict[str, Provenance] = {p.value: p for p in Provenance}
_SOURCE: dict[str, Source] = {s.value: s for s in Source}
_MISREAD = (TypeError, ValueError, KeyError)  #: what a value of another form raises


def route_record(value: Any) -> RouteRecord:
    """Read the answer of ``route.get``: a record when it travelled in a list, else four values.

    Raises:
        RemoteProtocolError: it is neither.
    """
    if type(value) is RouteRecord:
        return value
    try:
        route, age_ms, ttl_left_ms, provenance = value
        return RouteRecord(_as_map(route), age_ms, ttl_left_ms, PROVENANCES[provenance])
    except _MISREAD as exc:
        raise RemoteProtocolError(f"not a route: {shown(exc, 80)}") from exc


def route_entry(value: Any) -> RouteEntry:
    """Read one row of ``route.list``.

    Raises:
        RemoteProtocolError: it is none.
    """
    try:
        key, route, age_ms, ttl_left_ms, provenance = value
        return RouteEntry(key, _as_map(route), age_ms, ttl_left_ms, PROVENANCES[provenance])
    except _MISREAD as exc:
        raise RemoteProtocolError(f"not a row of a list of routes: {shown(exc, 80)}") from exc


def resolution(value: Any, partition: int, text: str) -> Resolution:
    """Read the answer of ``route.resolve``.

    Raises:
        RemoteProtocolError: it is none.
    """
    try:
        room, route, source, fallback, stale, reason = value
        return Resolution(room, _as_map(route), partition, text, _SOURCE[source], fallback, stale, reason)
    except _MISREAD as exc:
        raise RemoteProtocolError(f"not a resolution: {shown(exc, 80)}") from exc


def _as_map(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise TypeError(f"a route is a map, not {type(value).__name__}")
    return value


def valid_fallbacks(fallbacks: Any) -> list[dict[str, Any]]:
    """The usable ones, in order; one route is a list of one, junk is an empty list (spec 2.2)."""
    if isinstance(fallbacks, Mapping):
        fallbacks = (fallbacks,)
    if not isinstance(fallbacks, Iterable) or isinstance(fallbacks, str | bytes):
        return []
    usable = [f for f in fallbacks if isinstance(f, Mapping) and f.get("external_room_id") is not None]
    return [dict(check_route(f)) for f in usable]


def encode_cursor(values: Any) -> str:
    """Opaque text of a position."""
    return _as_text(wire.pack(values))


def encode_place(values: Any) -> str:
    """The same of what is all our own: each message of a feed has one."""
    return _as_text(wire.repack(values))


def _as_text(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).translate(_URL_SAFE).rstrip(b"=").decode()


_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def decode_cursor(text: Any, kind: str) -> Any:
    """The inverse; the first item of the position names what it is for.

    Raises:
        InvalidArgument: ``invalid_cursor``.
    """
    try:
        values = wire.unpack(base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4)))
        if type(values) is not list or values[0] != kind:
            raise ValueError(kind)
    except (MeshError, AttributeError, ValueError, IndexError, binascii.Error) as exc:
        raise InvalidArgument(f"not a cursor of {kind}: {shown(text, 60)}", code="invalid_cursor") from exc
    return values


def cursor_places(places: Any, partitions: int, cursor: Any) -> dict[int, Any]:
    """What a cursor says of each partition where there is more. It comes from the caller, so from anywhere.

    Raises:
        InvalidArgument: ``invalid_cursor``.
    """
    fits = type(places) is dict and all(type(place) is int and 0 <= place < partitions for place in places)
    if not places or not fits:
        raise InvalidArgument(f"this cursor is of no such search: {shown(cursor, 60)}", code="invalid_cursor")
    return dict(places)


def park_limit(deadline_s: float | None, what: str, details: dict[str, Any]) -> float:
    """How long the next waiting read may be parked.

    Raises:
        DeadlineExceeded: the caller's own limit has passed.
    """
    if deadline_s is None:
        return PARK_S
    left_s = deadline_s - monotonic()
    if left_s <= 0:
        raise DeadlineExceeded(
            f"{what} within the caller's time limit; nothing was cancelled", details=details
        )
    if left_s > PARK_STEP_S:
        left_s -= left_s % PARK_STEP_S
    return min(PARK_S, left_s)


def result_of(status: int, value: Any) -> Any:
    """What a plan is given for a pair."""
    if status == 0:
        return value
    return REPLACE if status == STALE[0] else failure(value)


def value_of(result: Any) -> Any:
    """The value of one result, or its error raised."""
    if isinstance(result, MeshError):
        raise result
    return result


__all__ = [
    "EVERY_S",
    "FACTS",
    "GETS",
    "PAGE_MAX",
    "PROVENANCES",
    "READ",
    "REPLACE",
    "WRITE",
    "Ask",
    "Emit",
    "Key",
    "Meanwhile",
    "NeedFacts",
    "Pause",
    "Plan",
    "Request",
    "Route",
    "check_function",
    "check_plain",
    "check_route",
    "check_timeout",
    "check_ttl",
    "cursor_places",
    "decode_cursor",
    "encode_cursor",
    "encode_place",
    "failure",
    "get_call",
    "known_places",
    "listed",
    "place_route",
    "resolution",
    "result_of",
    "route_entry",
    "route_record",
    "valid_fallbacks",
    "value_of",
]
