"""The answers of the node as records: each kind is read straight into its type, as far as somebody looks.

What stays ``msgspec.Raw`` until its plan reads it costs 0.2 us instead of a tree of maps and lists. A value
that its type does not fit (data with numbers as keys, a field of a newer node) is read as plain data first.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mesh.client._payload import Pair
from mesh.core import wire
from mesh.core.records import Event, Run
from mesh.errors import RemoteProtocolError

#: Ops whose values stay encoded until their plan reads them.
RAW_OPS = frozenset(("run.once", "run.wait", "session.events", "session.wait"))


class Ended(Run, frozen=True):
    """A run, with its events where they were wanted and are not too many."""

    events: tuple[Event, ...] | None = None


class Logged(msgspec.Struct, array_like=True):
    """A page of a log; whether these are all; up to which seq events were removed."""

    events: list[Event]
    complete: bool
    pruned_to: int = 0


class _Sealed(msgspec.Struct, array_like=True):
    """The same, its events as they came."""

    events: msgspec.Raw
    complete: bool
    pruned_to: int = 0
    last_seq: int = 0


_pairs = msgspec.msgpack.Decoder(list[tuple[int, msgspec.Raw]]).decode
_parts = msgspec.msgpack.Decoder(list[tuple[int, int, msgspec.Raw]]).decode
_ended = msgspec.msgpack.Decoder(Ended | None).decode
_page = msgspec.msgpack.Decoder(Logged).decode
_sealed = msgspec.msgpack.Decoder(_Sealed).decode
_BAD = (msgspec.MsgspecError, ValueError, TypeError, RecursionError)


def raw_pairs(data: memoryview) -> list[Pair]:
    """The pairs of a reply, successful values still encoded.

    Raises:
        msgspec.MsgspecError: bytes that are no array of pairs.
    """
    return [pair if pair[0] == 0 else (pair[0], plain_of(pair[1])) for pair in _pairs(data)]


def parts(frame: bytes) -> list[tuple[int, Pair]]:
    """(place of the call, its pair) of a reply to several waiting reads.

    Raises:
        RemoteProtocolError: bytes of another form.
    """
    try:
        found = _parts(memoryview(frame)[wire.HEADER_BYTES :])
        return [(place, (status, plain_of(raw) if status else raw)) for place, status, raw in found]
    except _BAD as exc:
        raise RemoteProtocolError(f"not the answers to waiting reads: {exc}"[:200]) from exc


def plain_of(value: Any) -> Any:
    """An answer as plain data, for who wants maps."""
    return wire.unpack(bytes(value)) if type(value) is msgspec.Raw else value


def run_of(value: Any) -> Ended | None:
    """The answer of ``run.wait``; None: it has not ended yet.

    Raises:
        RemoteProtocolError: no run map.
    """
    try:
        if type(value) is msgspec.Raw:
            ended: Ended | None = _ended(value)
            return ended
    except _BAD:
        value = plain_of(value)
    if value is None:
        return None
    try:
        run = Ended.from_map({**value, "events": None})
        events = value.get("events")
        return run if events is None else msgspec.structs.replace(run, events=tuple(map(event_of, events)))
    except (AttributeError, *_BAD) as exc:
        raise RemoteProtocolError(f"not a run: {exc}"[:200]) from exc


def events_of(value: Any) -> Logged:
    """The answer of ``session.events`` and ``session.wait``.

    Raises:
        RemoteProtocolError: no page of events.
    """
    try:
        if type(value) is msgspec.Raw:
            page: Logged = _page(value)
            return page
    except _BAD:
        value = plain_of(value)
    try:
        rows, complete, *pruned_to = value
        return Logged([event_of(row) for row in rows], bool(complete), *pruned_to[:1])
    except (LookupError, *_BAD) as exc:
        raise RemoteProtocolError(f"not a page of events: {exc}"[:200]) from exc


def goes_on_after(value: Any) -> int | None:
    """The seq behind which the log goes on after this page; None: it does not, or only its events tell."""
    try:
        page = _sealed(value) if type(value) is msgspec.Raw else None
    except _BAD:
        return None
    return None if page is None or page.complete else page.last_seq or None


def event_of(values: dict[str, Any]) -> Event:
    """Read one event that was decoded as plain data: its ``data`` may have any keys."""
    return Event(
        values["id"],
        values["type"],
        values["session_id"],
        values["run_id"],
        values["seq"],
        values["ts"],
        values["data"],
        values["metadata"],
        values["provider"],
        values["correlation_id"],
        values["schema_version"],
    )


__all__ = ["RAW_OPS", "Ended", "Logged", "event_of", "events_of", "goes_on_after", "parts", "plain_of",
           "raw_pairs", "run_of"]
