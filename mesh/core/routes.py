"""The route table of one partition: what each ``route.*`` operation answers.

It decides the nine rows of the resolution table (D1 to D9 of the specification; D10 and D11 are the
caller's, when nobody is here to ask), and what a write leaves behind. State and its changes: ``route_state``.

Rules of this file:

1. Arguments come decoded and unchecked; the clock is an argument (CLOCK_BOOTTIME, milliseconds).
2. An answer is the encoded ``[status, value]``. A single operation that is refused raises; in a
   ``*_many`` each refused item has its own ``[1, error]`` and the others stand.
3. A key that is here needs no check: only checked keys get in.
4. ``get`` and a resolve that hits refresh the order of use. A resolve that falls back writes what it
   answered under the exact key, as a guess: a room's route with the time that it had left, the caller's
   fallback for ``guess_ttl_ms`` at most. ``set`` always wins over both.
5. ``list`` walks the store's own index of the keys (a sorted one here costs more memory than the keys): a
   page looks at LIST_LOOK_MAX of them, so that a filter which nothing matches never holds up the loop. It
   disturbs no order; it sees only what was loaded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from heapq import nsmallest
from typing import Any

from mesh.core import keys
from mesh.core.pending import MANY_BYTES_MAX, cut_records, join_list
from mesh.core.route_record import (
    GUESSED,
    HEADER,
    HEADER_BYTES,
    PROVENANCES,
    TIMES,
    Body,
    check_ttl,
    encode_ages,
    encode_route,
    expires_of,
    first_fallback,
)
from mesh.core.route_state import HOT, RouteSettings, RouteState, Undo, is_expired
from mesh.core.wire import ERROR, OK, OK_FALSE, OK_NIL, OK_TRUE, array_header, failure, ok, pack
from mesh.errors import InvalidArgument, MeshError, NotFound

Args = list[Any]  # the class has a method ``list``, so these have names
Pieces = list[bytes]
Records = list[Any]  #: bytes
Keys = list[str]

#: Items of one ``*_many``; the SDK cuts longer lists.
MANY_MAX = 4096
LIST_LIMIT_MAX = 1000
#: Keys that one page of a list looks at, whatever its filter finds among them.
LIST_LOOK_MAX = 4_000
#: A page of ``list`` ends early when its routes exceed this.
LIST_BYTES_MAX = 1024 * 1024

_GET = OK + array_header(4)
_RESOLVED = OK + array_header(6)
_PROVENANCE = tuple(pack(name) for name in PROVENANCES)
_HIT = pack("state_hit") + pack(False) + pack(False) + pack(None)
_NIL = pack(None)
#: An encoded time before 0, which compares as a late one, is not below this.
_BEFORE_0 = b"\x80"
_REFUSED = (TypeError, KeyError)


class RouteTable(RouteState):
    """The operations. Mutating ones take ``undo``, which gets what reverses them, to be run in reverse."""

    def __init__(self, settings: RouteSettings, *, route_bytes_max: int, partition: int) -> None:
        super().__init__(settings, route_bytes_max=route_bytes_max, partition=partition)
        #: Answers for an item of a list that failed through our own fault; called inside ``except``.
        self.on_bug: Callable[[str], bytes] | None = None
        #: Raises for the text of a key that belongs to another partition; asked about keys not in memory.
        self.check_owner: Callable[[str], None] | None = None

    # --- reads ---

    def get(self, args: Args, now_ms: int) -> bytes:
        """``[route, age_ms, ttl_left_ms, provenance]`` of exactly this key, never a fallback.

        Raises:
            NotFound: ``not_found``; or ``expired``, once, when the entry's time had come.
            InvalidArgument: ``invalid_session_key``.
        """
        if len(args) != 1:
            raise _wrong_args("get", "key")
        record = self._live(args[0], now_ms)
        updated, expires, flags = TIMES.unpack_from(record)
        ages = encode_ages(now_ms - updated, expires - now_ms)
        reply: bytes = _GET + record[HEADER_BYTES:] + ages + _PROVENANCE[flags & GUESSED]
        return reply

    def get_many(self, args: Args, now_ms: int) -> bytes:
        """``[now_ms, [record or nil, ...], [[place, error], ...]]``: what ``get`` says of each key of a list.

        A record is what stands in memory: who reads it looks at its times and its route. So a list of which
        every key is here costs a handful of calls, and no loop of ours: 0.3 us a key where it was 1.8.

        What finds no room in the answer has the error ``limit_exceeded`` with ``again``: ask for it alone.
        """
        if len(args) != 1:
            raise _wrong_args("get_many", "[key, ...]")
        asked = _items(args[0])
        errors: Pieces = []
        records: Records
        try:
            records = list(map(self.entries.get, asked))
        except TypeError:  # one of them is no text
            records = [None]
        if all(records) and self._all_live(records, now_ms):
            deque(map(self.entries.move_to_end, asked), 0)
        else:
            records = self._look_closely(asked, errors, now_ms)
        if sum(map(len, records)) > MANY_BYTES_MAX:
            cut_records(records, errors)
        head = (OK, array_header(3), pack(now_ms), array_header(len(asked)))
        return b"".join((*head, *records, array_header(len(errors)), *errors))

    def _all_live(self, records: Records, now_ms: int) -> bool:
        """Whether none of these records has expired."""
        if not records or self._expiry.first_expired(now_ms) is None:
            return True
        ends: Pieces = list(map(expires_of, records))
        return min(ends) > now_ms.to_bytes(8, "big") and max(ends) < _BEFORE_0

    def _look_closely(self, asked: Args, errors: Pieces, now_ms: int) -> Records:
        """The records of a list's keys, one by one; nil, and an error, where there is none."""
        records: Records = []
        for place, key in enumerate(asked):
            try:
                record = self._live(key, now_ms)
            except MeshError as error:
                errors.append(array_header(2) + pack(place) + pack(error.to_wire()))
            except Exception:  # noqa: BLE001 - see ``set_many``
                assert self.on_bug is not None
                errors.append(array_header(2) + pack(place) + self.on_bug("route.get")[len(ERROR) :])
            else:
                records.append(record)
                continue
            records.append(_NIL)
        return records

    def resolve(self, args: Args, now_ms: int) -> bytes:
        """``[external_room_id, route, source, fallback, stale, reason]``: where a reply goes.

        Raises:
            NotFound: ``no_route``, nothing is known and no usable fallback was given.
            InvalidArgument: ``invalid_session_key``.
        """
        if not 1 <= len(args) <= 2:
            raise _wrong_args("resolve", "key, fallbacks?")
        key = args[0]
        try:
            record: bytes | None = self.entries[key]
        except _REFUSED:
            record = self._find(self._checked(key), now_ms)
        if record is not None:
            _, _, _, expires, _, _, at, size = HEADER.unpack_from(record)
            if expires > now_ms:
                self.entries.move_to_end(key)
                if self.watched:
                    self._say_resolved(key, "hit", source="state_hit", reason=None)
                return _RESOLVED + record[at : at + size] + record[HEADER_BYTES:] + _HIT
        return self._fall_back(key, record, args[1] if len(args) > 1 else None, now_ms)

    def resolve_many(self, args: Args, now_ms: int) -> bytes:
        """``resolve`` of each key of a list, all with the same fallbacks."""
        if not 1 <= len(args) <= 2:
            raise _wrong_args("resolve_many", "[key, ...], fallbacks?")
        asked, more = _items(args[0]), args[1:]
        parts: Pieces = []
        for key in asked:
            try:
                parts.append(self.resolve([key, *more], now_ms))
            except MeshError as error:
                parts.append(failure(error))
            except Exception:  # noqa: BLE001 - see ``set_many``
                assert self.on_bug is not None
                parts.append(self.on_bug("route.resolve"))
        return join_list(parts)

    def list(self, args: Args, now_ms: int) -> bytes:
        """A page of live routes in key order, and the key to go on after, or nil at the end.

        Raises:
            InvalidArgument: ``invalid_argument``, or ``invalid_cursor`` for ``after_key``.
        """
        bridge, room, limit, after = _list_args(args)
        looked_to = None
        if self.keys_after is not None:
            found, looked_to = self._look(bridge, room, after, limit, now_ms)
        else:
            found = nsmallest(limit + 1, self._matching(bridge, room, after, now_ms))
        parts: Pieces = []
        size = 0
        for key in found[:limit]:
            record = self.entries[key]
            updated, expires, flags = TIMES.unpack_from(record)
            route = record[HEADER_BYTES:]
            size += len(route)
            if size > LIST_BYTES_MAX and parts:
                break
            ages = encode_ages(now_ms - updated, expires - now_ms)
            parts.append(array_header(5) + pack(key) + route + ages + _PROVENANCE[flags & GUESSED])
        following = found[len(parts) - 1] if len(parts) < len(found) else looked_to
        return b"".join((OK, array_header(2), array_header(len(parts)), *parts, pack(following)))

    # --- writes ---

    def set(self, args: Args, now_ms: int, undo: Undo) -> bytes:
        """Store a route under a key; it overwrites what was there, guesses first of all.

        Raises:
            InvalidArgument: ``invalid_session_key``, ``invalid_route`` or ``invalid_ttl``; nothing changed.
        """
        if not 2 <= len(args) <= 3:
            raise _wrong_args("set", "key, route, ttl_ms?")
        key = args[0]
        try:
            known = key in self.entries
        except TypeError:
            known = False
        if not known:
            self._checked(key)
        body = encode_route(args[1], self.route_bytes_max)
        ttl_ms = check_ttl(args[2], self.ttl_ms) if len(args) > 2 else self.ttl_ms
        evicted = self._store(key, body, (now_ms, now_ms + ttl_ms), 0, undo)
        if self.watched:
            fields = {"count": 1, "evicted": evicted, "entries": len(self.entries), "session_key": key}
            self._say("set", fields, undo)
        return OK_NIL

    def set_many(self, args: Args, now_ms: int, undo: Undo) -> bytes:
        """``set`` of each ``[key, route, ttl_ms?]`` of a list, in its order."""
        if len(args) != 1:
            raise _wrong_args("set_many", "[[key, route, ttl_ms?], ...]")
        items = _items(args[0])
        parts = [OK, array_header(len(items))]
        for item in items:
            mark = len(undo)
            try:
                if type(item) is not list:
                    raise _wrong_args("set_many", "[[key, route, ttl_ms?], ...]")
                parts.append(self.set(item, now_ms, undo))
            except MeshError as error:
                parts.append(failure(error))
            except Exception:  # noqa: BLE001 - the SDK gathers single sets here: a bug harms one of them
                while len(undo) > mark:
                    undo.pop()()
                assert self.on_bug is not None
                parts.append(self.on_bug("route.set"))
        return b"".join(parts)

    def delete(self, args: Args, now_ms: int, undo: Undo) -> bytes:
        """Remove a route; whether a live one was there. The key's past is forgotten with it.

        Raises:
            InvalidArgument: ``invalid_session_key``.
        """
        if len(args) != 1:
            raise _wrong_args("delete", "key")
        key = self._checked(args[0])
        record = self._find(key, now_ms)
        if record is None:
            self._forget(key, undo)
            return OK_FALSE
        undo.append(self._before(key, record, HOT))
        self._remove(key, record)
        return OK_FALSE if is_expired(record, now_ms) else OK_TRUE

    def prune(self, args: Args, now_ms: int, undo: Undo) -> bytes:
        """Remove every expired entry now; how many there were."""
        if args:
            raise _wrong_args("prune", "nothing")
        return ok(self._prune(now_ms, len(self.entries), undo))

    def sweep(self, now_ms: int, budget: int) -> int:
        """The periodic prune, a piece at a time: at most ``budget`` entries; less means it is finished.

        A finished sweep that removed anything, over all its pieces, leaves one ``pruned`` note.
        """
        removed = self._prune(now_ms, budget, None)
        self._swept += removed
        if removed < budget:
            if self._swept and self.watched:
                self._say("pruned", {"count": self._swept, "entries": len(self.entries)})
            self._swept = 0
        return removed

    # --- the resolution table below its first row ---

    def _fall_back(self, key: str, record: bytes | None, fallbacks: Any, now_ms: int) -> bytes:
        stale = self._was_there(key, record)
        room_key = keys.room_text(key)
        if room_key != key:
            room = self._find(room_key, now_ms)
            if room is not None and not is_expired(room, now_ms):
                return self._from_room(key, room_key, room, stale, now_ms)
            stale = self._was_there(room_key, room) or stale
        fallback = first_fallback(fallbacks)
        if fallback is None:
            if self.watched:
                self._say_resolved(key, "miss", stale=stale)
            raise NotFound(f"no route and no fallback for {key}", code="no_route", details={"stale": stale})
        return self._from_caller(key, fallback, stale, now_ms)

    def _was_there(self, key: str, record: bytes | None) -> bool:
        """Whether the key's route expired; one that is met (``record`` is not live) is removed."""
        if record is None:
            return key in self._expired
        self._expire(key, record)
        return True

    def _from_room(self, key: str, room_key: str, room: bytes, stale: bool, now_ms: int) -> bytes:
        """D2 and D3: the room's route, which is written back with the time that it has left."""
        _, _, _, expires, _, _, at, size = HEADER.unpack_from(room)
        self.entries.move_to_end(room_key)
        body = (room[HEADER_BYTES:], at - HEADER_BYTES, size)
        if self.may_guess and self.entries_max > 1:  # one place: it would evict the entry it copies
            self._store(key, body, (now_ms, expires), GUESSED, None)
        return self._fallen(key, body, "partition_fallback", stale, "stale" if stale else "thread_scope_miss")

    def _from_caller(self, key: str, fallback: dict[str, Any], stale: bool, now_ms: int) -> bytes:
        """D4 to D8: the caller's fallback. One that ``set`` would refuse is used, but not remembered."""
        try:
            body = encode_route(fallback, self.route_bytes_max)
        except InvalidArgument:
            route, room = pack(fallback), pack(fallback["external_room_id"])
            body = route, route.index(room), len(room)
        else:
            if self.may_guess:
                self._store(key, body, (now_ms, now_ms + self.guess_ttl_ms), GUESSED, None)
        return self._fallen(key, body, "provided_fallback", stale, "stale" if stale else "miss")

    def _fallen(self, key: str, body: Body, source: str, stale: bool, reason: str) -> bytes:
        if self.watched:
            said = {"count": 1, "source": source, "reason": reason, "stale": stale, "session_key": key}
            self._say("fallback", said)
            self._say_resolved(key, "fallback", stale=stale, source=source, reason=reason)
        route, at, size = body
        tail = pack(source) + pack(True) + pack(stale) + pack(reason)
        return b"".join((_RESOLVED, route[at : at + size], route, tail))

    def _say_resolved(self, key: str, outcome: str, *, stale: bool = False, **more: Any) -> None:
        fields = {"count": 1, "outcome": outcome, "stale": stale, "fallback": outcome == "fallback"}
        self._say("resolved", {**fields, **more, "session_key": key})

    # --- pieces ---

    def _checked(self, key: Any) -> str:
        """Refuse what is not the one text of a key, or another partition's."""
        text = keys.check_text(key)
        if self.check_owner is not None:
            self.check_owner(text)
        return text

    def _late(self, key: Any, now_ms: int) -> bytes:
        """The record of a key that is not in memory, if the store still has it."""
        record = self._find(self._checked(key), now_ms)
        if record is None:
            raise NotFound(f"no route for {key}")
        return record

    def _live(self, key: Any, now_ms: int) -> bytes:
        """The record of a key, which was used now.

        Raises:
            NotFound: as ``get``.
            InvalidArgument: as ``get``.
        """
        try:
            record = self.entries[key]
        except _REFUSED:
            record = self._late(key, now_ms)
        if is_expired(record, now_ms):
            self._expire(key, record)
            raise NotFound(f"the route of {key} expired", code="expired")
        self.entries.move_to_end(key)
        return record

    def _look(
        self, bridge: str | None, room: str | None, after: str, limit: int, now_ms: int
    ) -> tuple[Keys, str | None]:
        """(at most ``limit + 1`` keys that match, the key that was reached when more are to be looked at)."""
        found: Keys = []
        key = after
        for looked, following in enumerate(self.in_order(after, now_ms)):
            if looked == LIST_LOOK_MAX or len(found) > limit:
                return found, key
            key = following
            if _has_field(key, 1, bridge) and _has_field(key, 2, room):
                found.append(key)
        return found, None

    def _matching(self, bridge: str | None, room: str | None, after: str, now_ms: int) -> Iterator[str]:
        found: Iterator[str] = (key for key in self.entries if key > after)
        for wanted, field in ((bridge, 1), (room, 2)):
            if wanted is not None:
                found = _with_field(found, field, wanted)
        if self._expiry.first_expired(now_ms) is None:
            return found
        return (key for key in found if not is_expired(self.entries[key], now_ms))


def _has_field(key: str, field: int, wanted: str | None) -> bool:
    return wanted is None or (wanted in key and key.split(":", 3)[field] == wanted)


def _with_field(names: Iterator[str], field: int, wanted: str) -> Iterator[str]:
    part = f":{wanted}"  # a cheap look first: most keys do not hold it anywhere
    return (key for key in names if part in key and key.split(":", 3)[field] == wanted)


def _items(value: Any) -> Args:
    if type(value) is not list:
        raise InvalidArgument("the first argument is a list", code="invalid_argument")
    if len(value) > MANY_MAX:
        raise InvalidArgument(f"{len(value)} items in one call; at most {MANY_MAX}", code="limit_exceeded")
    return value


def _list_args(args: Args) -> tuple[str | None, str | None, int, str]:
    if not 3 <= len(args) <= 4:
        raise _wrong_args("list", "bridge_id?, room_id?, limit, after_key?")
    bridge, room, limit, *rest = args
    if type(limit) is not int or not 1 <= limit <= LIST_LIMIT_MAX:
        raise InvalidArgument(f"limit is a whole number from 1 to {LIST_LIMIT_MAX}", code="invalid_argument")
    after = rest[0] if rest and rest[0] is not None else ""
    if type(after) is not str:
        raise InvalidArgument("after_key is the text of a key", code="invalid_cursor")
    return _filter("bridge_id", bridge), _filter("room_id", room), limit, after


def _filter(name: str, value: Any) -> str | None:
    """A field as it stands in the text of a key, so that no key has to be decoded."""
    if value is None:
        return None
    if type(value) is not str:
        raise InvalidArgument(f"{name} is a text or nil", code="invalid_argument")
    return keys.encode_field(value)


def _wrong_args(op: str, expected: str) -> InvalidArgument:
    return InvalidArgument(f"route.{op} takes: {expected}", code="invalid_argument")


__all__ = ["LIST_BYTES_MAX", "LIST_LIMIT_MAX", "LIST_LOOK_MAX", "MANY_MAX", "RouteTable"]
