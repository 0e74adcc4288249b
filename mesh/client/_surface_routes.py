"""Plans of routes: what is asked, and what the answers mean together."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from mesh.client._payload import Call
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
    decode_cursor,
    encode_cursor,
    failure,
    place_route,
    resolution,
    route_entry,
    route_record,
    valid_fallbacks,
    value_of,
)
from mesh.core.records import Page, PruneResult, Resolution, Source
from mesh.errors import InvalidArgument, LocalProtocolError, MeshError

#: Keys of one request of the ``*_many`` methods.
MANY_MAX = 4_096
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


class _Many:
    """The keys of one ``*_many`` call: where each result goes, and what is still to be asked."""

    def __init__(
        self, kind: int, call: Callable[[list[Any]], Call], parse: Callable[[Any, int], Any]
    ) -> None:
        self.kind = kind
        self.call = call
        self.parse = parse
        self.results: list[Any] = []
        self.rows: list[tuple[int, int, Any]] = []  #: (place in the results, slot, what travels)

    def plan(self, limit_s: float | None) -> Plan:
        """Ask every partition at once; returns the results in the caller's order."""
        rows = self.rows
        for _ in range(PLACE_ATTEMPTS):
            if not rows:
                break
            try:
                facts: Facts = yield NeedFacts(limit_s)
            except MeshError as error:
                self._fail(rows, error)
                return self.results
            groups = _grouped(rows, facts.slot_map)
            rows = []
            while groups:
                answers = yield [
                    Ask(self.kind, ~partition, self.call([row[2] for row in group]), limit_s)
                    for partition, group in groups
                ]
                groups = self._take(groups, answers, rows)
        self._fail(
            rows, InvalidArgument("the placement map keeps changing; try again", code="partition_unavailable")
        )
        return self.results

    def _take(self, groups: list[Any], answers: Sequence[Any], anew: list[Any]) -> list[Any]:
        """Store the answers; returns the groups that have to be asked again in halves."""
        again = []
        for (partition, group), answer in zip(groups, answers, strict=True):
            if answer is REPLACE:
                anew.extend(group)
            elif isinstance(answer, LocalProtocolError) and len(group) > 1:
                middle = len(group) // 2
                again += [(partition, group[:middle]), (partition, group[middle:])]
            elif isinstance(answer, MeshError):
                self._fail(group, answer)
            else:
                results, parse = self.results, self.parse
                for (place, _, _), (status, value) in zip(group, answer, strict=True):
                    results[place] = parse(value, place) if status == 0 else failure(value)
        return again

    def _fail(self, rows: Iterable[tuple[int, int, Any]], error: MeshError) -> None:
        for place, _, _ in rows:
            self.results[place] = error


def _grouped(rows: list[tuple[int, int, Any]], slot_map: bytes) -> list[tuple[int, list[Any]]]:
    by_partition: dict[int, list[Any]] = {}
    for row in rows:
        by_partition.setdefault(slot_map[row[1]], []).append(row)
    return [
        (partition, group[first : first + MANY_MAX])
        for partition, group in by_partition.items()
        for first in range(0, len(group), MANY_MAX)
    ]


def _nothing(_value: Any, _place: int) -> None:
    return None


def _record(value: Any, _place: int) -> Any:
    return route_record(value)


def set_many(pairs: Iterable[Any], timeout_s: float | None) -> Plan:
    """``routes.set`` of many: each item is (key, route) or (key, route, ttl_ms)."""
    many = _Many(WRITE, lambda group: ("route.set_many", (group,)), _nothing)
    for place, item in enumerate(pairs):
        many.results.append(None)
        try:
            key, route, *ttl = item
            text, slot = place_route(key)
            if ttl:
                (ttl_ms,) = ttl
                check_ttl(ttl_ms)
            many.rows.append((place, slot, (text, check_route(route), *ttl)))
        except MeshError as error:
            many.results[place] = error
        except (TypeError, ValueError):
            many.results[place] = InvalidArgument(
                "an item of set_many is (key, route) or (key, route, ttl_ms)"
            )
    return (yield from many.plan(timeout_s))


def get_many(keys: Iterable[Any], timeout_s: float | None) -> Plan:
    """``routes.get`` of many."""
    many = _Many(READ, lambda group: ("route.get_many", (group,)), _record)
    _place_all(many, keys)
    return (yield from many.plan(timeout_s))


def resolve_many(link: Linked, keys: Iterable[Any], fallbacks: Any, timeout_s: float | None) -> Plan:
    """``routes.resolve`` of many; the fallbacks hold for each of them."""
    usable = valid_fallbacks(fallbacks)
    keys = list(keys)
    placed: dict[int, tuple[int, str]] = {}

    def parse(value: Any, place: int) -> Resolution:
        slot, text = placed[place]
        return resolution(value, link.slot_map[slot], text)

    many = _Many(READ, lambda group: ("route.resolve_many", (group, usable)), parse)
    _place_all(many, keys)
    placed.update({place: (slot, text) for place, slot, text in many.rows})
    results: list[Any] = yield from many.plan(_resolve_limit(link, usable, timeout_s))
    if usable:
        for place, (slot, text) in placed.items():
            if isinstance(results[place], MeshError) and results[place].code in _UNAVAILABLE:
                results[place] = _from_fallback(link, text, slot, usable)
    return results


def _place_all(many: _Many, keys: Iterable[Any]) -> None:
    for place, key in enumerate(keys):
        many.results.append(None)
        try:
            text, slot = place_route(key)
        except MeshError as error:
            many.results[place] = error
        else:
            many.rows.append((place, slot, text))


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
) -> Plan:
    """One page over all partitions. Each gives up to ``limit`` rows in its own order; the first ``limit`` of
    the merged rows are returned, and the cursor remembers the last row taken from each partition."""
    check_limit(limit)
    facts: Facts = yield FACTS
    places = _cursor_places(kind, cursor, facts.partitions)
    limit_s = EVERY_S if timeout_s is None else min(EVERY_S, timeout_s)
    asked = sorted(places)
    answers = yield [Ask(READ, ~p, (op, (*filters, limit, places[p])), limit_s) for p in asked]
    missing = [p for p, answer in zip(asked, answers, strict=True) if isinstance(answer, MeshError)]
    found = {p: answer for p, answer in zip(asked, answers, strict=True) if p not in missing}
    for answer in answers:
        if isinstance(answer, InvalidArgument):
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
    if len(position) != 3 or position[1] != partitions or type(position[2]) is not dict:
        raise InvalidArgument(
            "this cursor is of another number of partitions; begin anew", code="invalid_cursor"
        )
    return dict(position[2])


def list_routes(
    bridge_id: Any, room_id: Any, limit: Any, cursor: str | None, timeout_s: float | None
) -> Plan:
    """``routes.list``: by key."""
    for name, value in (("bridge_id", bridge_id), ("room_id", room_id)):
        if value is not None and (type(value) is not str or not value):
            raise InvalidArgument(
                f"{name} must be a non-empty str or None, not {value!r:.60}", code="invalid_argument"
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


def check_limit(limit: Any) -> None:
    """Refuse a page size that is not from 1 to PAGE_MAX.

    Raises:
        InvalidArgument: ``invalid_argument``.
    """
    if type(limit) is not int or not 1 <= limit <= PAGE_MAX:
        raise InvalidArgument(
            f"limit must be a whole number from 1 to {PAGE_MAX}, not {limit!r:.40}", code="invalid_argument"
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
