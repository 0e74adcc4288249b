"""Plans of routes: what is asked, and what the answers mean together."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from mesh.client._found import found_of
from mesh.client._gather import listed_pairs
from mesh.client._payload import Call, Unsent
from mesh.client._protocol import READ, WRITE, Facts
from mesh.client._surface import (
    EVERY_S,
    FACTS,
    PAGE_MAX,
    REPLACE,
    Ask,
    NeedFacts,
    Plan,
    check_route,
    check_ttl,
    cursor_places,
    decode_cursor,
    encode_cursor,
    failure,
    known_places,
    listed,
    place_route,
    resolution,
    route_entry,
    valid_fallbacks,
    value_of,
)
from mesh.core.records import Page, PruneResult, Resolution, Source
from mesh.errors import (
    InvalidArgument,
    MeshError,
    NotAllowed,
    NotFound,
    RemoteProtocolError,
    Unavailable,
    shown,
)

#: Keys of one request of the ``*_many`` methods: it is executed whole, and the other clients wait so long.
MANY_MAX = 1_024
#: How often keys are placed anew when the map changes under a ``*_many``.
PLACE_ATTEMPTS = 5
#: Answered by the caller's own fallback: the node cannot say it in time.
_UNAVAILABLE = frozenset(
    ("timeout", "partition_unavailable", "overloaded", "node_unreachable", "session_unavailable")
)


class Linked(Protocol):
    """What a plan may know of its client."""

    timeout_s: float

    @property
    def slot_map(self) -> bytes:
        """The placement map; empty before the first answer."""

    @property
    def fallback_after_s(self) -> float:
        """How long a resolve with fallbacks waits."""

    def note(self, partition: int) -> None:
        """Tell the router that a fallback was used."""


# --- one key ---


def set_call(key: Any, route: Any, ttl_ms: Any) -> tuple[int, Call]:
    """(slot, call) of ``routes.set``."""
    text, slot = place_route(key)
    route = check_route(route)
    if ttl_ms is None:
        return slot, ("route.set", (text, route))
    check_ttl(ttl_ms)
    return slot, ("route.set", (text, route, ttl_ms))


def resolve(link: Linked, key: Any, fallbacks: Any, timeout_s: float | None) -> Plan:
    """Ask the node; when it cannot answer in time and there is a usable fallback, answer from that."""
    text, slot = place_route(key)
    usable = valid_fallbacks(fallbacks)
    limit_s = _resolve_limit(link, usable, timeout_s)
    [result] = yield [Ask(READ, slot, ("route.resolve", (text, usable)), limit_s)]
    if usable and isinstance(result, MeshError) and result.code in _UNAVAILABLE:
        return _from_fallback(link, text, slot, usable)
    return resolution(value_of(result), link.slot_map[slot], text)


def _resolve_limit(link: Linked, usable: list[dict[str, Any]], timeout_s: float | None) -> float | None:
    if not usable:
        return timeout_s
    return min(link.timeout_s if timeout_s is None else timeout_s, link.fallback_after_s)


def _from_fallback(link: Linked, text: str, slot: int, usable: list[dict[str, Any]]) -> Resolution:
    """The caller's first usable fallback. The partition is -1 when no node ever said where the slot lives."""
    partition = link.slot_map[slot] if link.slot_map else -1
    if partition >= 0:
        link.note(partition)
    route = usable[0]
    return Resolution(
        route["external_room_id"],
        route,
        partition,
        text,
        Source.PROVIDED_FALLBACK,
        True,
        False,
        "session_unavailable",
    )


# --- many keys ---


class _Group(NamedTuple):
    """Keys of one partition: where their results go, and what travels."""

    partition: int
    places: list[int]
    items: list[Any]


class _Many:
    """The keys of one ``*_many`` call, in parallel lists: this is the hot loop of the fastest methods."""

    def __init__(
        self,
        kind: int,
        call: Callable[[list[Any]], Call],
        store: Callable[[list[Any], list[int], Any], Iterable[int]],
    ) -> None:
        self.kind = kind
        self.call = call
        self.store = store  #: (results, places, answer): read a group's answer; the places to ask anew
        self.results: list[Any] = []
        self.errors: dict[int, MeshError] = {}  #: what was found wrong here, by place
        self.items: list[tuple[Any, int]] = []  #: by place: what travels, and its slot

    def add_keys(self, keys: Iterable[Any]) -> None:
        """Keys that travel as their text."""
        keys = listed(keys, "keys")
        known = known_places(keys)
        if all(known):
            self.items = known
            return
        for key, found in zip(keys, known, strict=True):
            try:
                self.items.append(found or place_route(key))
            except MeshError as error:
                self.add_error(error)

    def add_error(self, error: MeshError) -> None:
        """The next item is wrong: it is answered here."""
        self.errors[len(self.items)] = error
        self.items.append((None, 0))

    def plan(self, limit_s: float | None) -> Plan:
        """Ask every partition at once; returns the results in the caller's order."""
        self.results = [None] * len(self.items)
        for place, error in self.errors.items():
            self.results[place] = error
        places: Sequence[int] = range(len(self.items))
        if self.errors:
            places = [p for p in places if p not in self.errors]
        attempts = 0
        while attempts < PLACE_ATTEMPTS:
            try:
                facts: Facts = yield NeedFacts(limit_s)
            except MeshError as error:
                self._fail(places, error)
                return self.results
            groups = self._grouped(places, facts.slot_map)
            anew: list[int] = []
            while groups:
                answers = yield [Ask(self.kind, ~g.partition, self.call(g.items), limit_s) for g in groups]
                groups = self._take(groups, answers, anew)
            if not anew:
                return self.results
            attempts += len(anew) == len(places)  # else it goes forward: an answer holds so many bytes
            places = anew
        self._fail(places, Unavailable("the placement map keeps changing; try again"))
        return self.results

    def _grouped(self, places: Sequence[int], slot_map: bytes) -> list[_Group]:
        items = self.items
        if len(places) < len(items):
            items = [items[place] for place in places]
        found: dict[int, _Group] = {}
        groups: list[_Group] = []
        for place, (item, slot) in zip(places, items, strict=True):
            partition = slot_map[slot]
            group = found.get(partition)
            if group is None or len(group[1]) == MANY_MAX:
                group = found[partition] = _Group(partition, [], [])
                groups.append(group)
            group[1].append(place)
            group[2].append(item)
        return groups

    def _take(self, groups: list[_Group], answers: Sequence[Any], anew: list[int]) -> list[_Group]:
        """Store the answers; returns the groups that have to be asked again in halves."""
        again = []
        for group, answer in zip(groups, answers, strict=True):
            partition, places, items = group
            if answer is REPLACE:
                anew.extend(places)
            elif isinstance(answer, Unsent) and len(places) > 1:
                middle = len(places) // 2
                again.append(_Group(partition, places[:middle], items[:middle]))
                again.append(_Group(partition, places[middle:], items[middle:]))
            elif isinstance(answer, MeshError):
                self._fail(places, answer)
            else:
                try:
                    anew.extend(self.store(self.results, places, answer))
                except RemoteProtocolError as wrong:
                    self._fail(places, wrong)
        return again

    def _fail(self, places: Iterable[int], error: MeshError) -> None:
        for place in places:
            self.results[place] = error


def _store_nothing(results: list[Any], places: list[int], answer: Any) -> list[int]:
    refused = []
    for place, (status, value) in zip(places, listed_pairs(answer, len(places)), strict=True):
        results[place] = failure(value) if status else None
        if status:
            refused.append(place)
    return _anew(results, refused)


def _anew(results: list[Any], refused: list[int]) -> list[int]:
    """What is elsewhere by now, or found no room in the answer."""
    return [place for place in refused if results[place].details.get("again") is True]


def _store_records(results: list[Any], places: list[int], answer: Any) -> Iterable[int]:
    found = found_of(answer)
    for place, one in zip(places, found.each(len(places)), strict=True):
        results[place] = one
    for inside, error in found.errors:
        results[places[inside]] = failure(error)
    return _anew(results, [places[inside] for inside, _ in found.errors])


def set_many(pairs: Iterable[Any], timeout_s: float | None) -> Plan:
    """``routes.set`` of many: each item is (key, route) or (key, route, ttl_ms)."""
    many = _Many(WRITE, lambda items: ("route.set_many", (items,)), _store_nothing)
    for item in listed(pairs, "pairs"):
        try:
            key, route, *ttl = item
            text, slot = place_route(key)
            if ttl:
                (ttl_ms,) = ttl
                check_ttl(ttl_ms)
            travels = (text, check_route(route), *ttl)
        except MeshError as error:
            many.add_error(error)
        except (TypeError, ValueError):
            many.add_error(InvalidArgument("an item of set_many is (key, route) or (key, route, ttl_ms)"))
        else:
            many.items.append((travels, slot))
    return (yield from many.plan(timeout_s))


def get_many(keys: Iterable[Any], timeout_s: float | None) -> Plan:
    """``routes.get`` of many."""
    many = _Many(READ, lambda items: ("route.get_many", (items,)), _store_records)
    many.add_keys(keys)
    return (yield from many.plan(timeout_s))


def resolve_many(link: Linked, keys: Iterable[Any], fallbacks: Any, timeout_s: float | None) -> Plan:
    """``routes.resolve`` of many; the fallbacks hold for each of them."""
    usable = valid_fallbacks(fallbacks)

    def store(results: list[Any], places: list[int], answer: Any) -> Iterable[int]:
        slot_map, refused = link.slot_map, []
        for place, (status, value) in zip(places, listed_pairs(answer, len(places)), strict=True):
            text, slot = many.items[place]
            results[place] = failure(value) if status else resolution(value, slot_map[slot], text)
            if status:
                refused.append(place)
        return _anew(results, refused)

    many = _Many(READ, lambda items: ("route.resolve_many", (items, usable)), store)
    many.add_keys(keys)
    results: list[Any] = yield from many.plan(_resolve_limit(link, usable, timeout_s))
    if usable:
        for place, result in enumerate(results):
            if place not in many.errors and isinstance(result, MeshError) and result.code in _UNAVAILABLE:
                results[place] = _from_fallback(link, *many.items[place], usable)
    return results


# --- every partition ---


def ask_every(kind: int, call: Call, limit_s: float | None, only: Iterable[int] | None = None) -> Plan:
    """Ask all partitions at once: {partition: value or MeshError}."""
    facts: Facts = yield FACTS
    asked = list(range(facts.partitions)) if only is None else list(only)
    answers = yield [Ask(kind, ~partition, call, limit_s) for partition in asked]
    return dict(zip(asked, answers, strict=True))


def prune(timeout_s: float | None) -> Plan:
    """Remove what has expired everywhere; a partition that does not answer counts 0."""
    answers = yield from ask_every(WRITE, ("route.prune", ()), timeout_s)
    pruned = sum(a for a in answers.values() if type(a) is int)
    return PruneResult(pruned, len(answers))


def list_pages(
    kind: str,
    op: str,
    filters: tuple[Any, ...],
    *,
    limit: Any,
    cursor: str | None,
    timeout_s: float | None,
    order: Callable[[Any], Any],
    after_of: Callable[[Any], Any],
    parse: Callable[[Any], Any],
    slot: int | None = None,
) -> Plan:
    """One page over all partitions, or of that with ``slot``. Each gives up to ``limit`` rows in its own
    order; the first ``limit`` of the merged rows are returned, and the cursor remembers the last row taken
    from each partition."""
    check_limit(limit, kind)
    facts: Facts = yield FACTS
    places = _cursor_places(kind, cursor, facts.partitions)
    if slot is not None and cursor is None:
        places = {facts.slot_map[slot]: None}
    limit_s = EVERY_S if timeout_s is None else min(EVERY_S, timeout_s)
    asked = sorted(places)
    answers = yield [Ask(READ, ~p, (op, (*filters, limit, places[p])), limit_s) for p in asked]
    missing = [p for p, answer in zip(asked, answers, strict=True) if isinstance(answer, MeshError)]
    found = {p: answer for p, answer in zip(asked, answers, strict=True) if p not in missing}
    for answer in answers:
        if isinstance(answer, InvalidArgument | NotAllowed | NotFound):
            raise answer
    streams = [[(order(row), p, n, row) for n, row in enumerate(rows)] for p, (rows, _) in found.items()]
    taken: list[Any] = []
    used = dict.fromkeys(found, 0)
    for _, p, _, row in heapq.merge(*streams, key=lambda item: item[0]):
        if len(taken) == limit:
            break
        taken.append(parse(row))
        used[p] += 1
        places[p] = after_of(row)
    for p, (rows, after) in found.items():
        if used[p] == len(rows):
            if after is None:
                del places[p]
            else:
                places[p] = after
    more = set(places) - set(missing)
    return Page(taken, encode_cursor([kind, facts.partitions, places]) if more else None, missing)


def _cursor_places(kind: str, cursor: str | None, partitions: int) -> dict[int, Any]:
    if cursor is None:
        return dict.fromkeys(range(partitions))
    position = decode_cursor(cursor, kind)
    if len(position) != 3 or position[1] != partitions:
        raise InvalidArgument(
            "this cursor is of another number of partitions; begin anew", code="invalid_cursor"
        )
    return cursor_places(position[2], partitions, cursor)


def list_routes(
    bridge_id: Any, room_id: Any, limit: Any, cursor: str | None, timeout_s: float | None
) -> Plan:
    """``routes.list``: by key."""
    for name, value in (("bridge_id", bridge_id), ("room_id", room_id)):
        if value is not None and (type(value) is not str or not value):
            raise InvalidArgument(
                f"{name} must be a non-empty str or None, not {shown(value, 60)}", code="invalid_argument"
            )
    return (
        yield from list_pages(
            "routes",
            "route.list",
            (bridge_id, room_id),
            limit=limit,
            cursor=cursor,
            timeout_s=timeout_s,
            order=_first,
            after_of=_first,
            parse=route_entry,
        )
    )


def _first(row: Any) -> Any:
    return row[0]


def check_limit(limit: Any, kind: str) -> None:
    """Refuse a page size that is not from 1 to PAGE_MAX.

    Raises:
        InvalidArgument: ``validation_error``; of routes ``invalid_argument``.
    """
    if type(limit) is not int or not 1 <= limit <= PAGE_MAX:
        raise InvalidArgument(
            f"limit must be a whole number from 1 to {PAGE_MAX}, not {shown(limit, 40)}",
            code="invalid_argument" if kind == "routes" else "validation_error",
        )


__all__ = [
    "Linked",
    "ask_every",
    "get_many",
    "list_pages",
    "list_routes",
    "prune",
    "resolve",
    "resolve_many",
    "set_call",
    "set_many",
]
