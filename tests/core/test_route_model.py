"""The route table against a naive model: order of use, times, provenance, expiries, undo, the store."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.config import RoutesSection
from mesh.core import wire
from mesh.core.expiry import ExpiryIndex
from mesh.core.keys import room_text
from mesh.core.route_record import decode_record
from mesh.core.routes import RouteTable
from mesh.errors import MeshError

KEYS = ("c:b:a", "c:b:a:1", "c:b:a:2", "c:b:b", "c:b:b:1")
CAPACITY, TTL, GUESS = 3, 100, 40
key_names = st.sampled_from(KEYS)
rooms = st.integers(0, 9)
ttls = st.sampled_from([None, 1, 10, 60, 100, 5_000])
fallbacks = st.none() | rooms


def table(capacity: int = CAPACITY) -> RouteTable:
    config = RoutesSection(
        ttl_ms=TTL, guess_ttl_ms=GUESS, max_entries_per_partition=capacity, expired_memory_max=1_000
    )
    return RouteTable(config, route_bytes_max=1_000, partition=0)


def route(room: int) -> dict[str, Any]:
    return {"external_room_id": room, "room": room}


def answer(call: Any, *args: Any) -> Any:
    """The value, or the error's code."""
    try:
        return wire.unpack(call(*args))[1]
    except MeshError as error:
        return error.code


class Entry(NamedTuple):
    room: int
    updated: int
    expires: int
    provenance: str


class Model:
    """The rules of the specification, with no thought of speed."""

    def __init__(self) -> None:
        self.entries: OrderedDict[str, Entry] = OrderedDict()
        self.expired: set[str] = set()

    def put(self, key: str, entry: Entry, left_in_table: set[str]) -> None:
        self.entries[key] = entry
        self.entries.move_to_end(key)
        self.expired.discard(key)
        while len(self.entries) > CAPACITY:
            over = [k for k, e in self.entries.items() if e.expires <= entry.updated]
            victim = next(k for k in over if k not in left_in_table) if over else next(iter(self.entries))
            del self.entries[victim]
            if over:
                self.expired.add(victim)

    def live(self, key: str, now: int) -> Entry | None:
        """The live entry of a key; an expired one is removed and remembered."""
        entry = self.entries.get(key)
        if entry is not None and entry.expires <= now:
            del self.entries[key]
            self.expired.add(key)
            return None
        return entry

    def get(self, key: str, now: int) -> Any:
        if key not in self.entries:
            return "not_found"
        entry = self.live(key, now)
        if entry is None:
            return "expired"
        self.entries.move_to_end(key)
        return [route(entry.room), now - entry.updated, entry.expires - now, entry.provenance]

    def resolve(self, key: str, fallback: int | None, now: int, left_in_table: set[str]) -> Any:
        entry = self.live(key, now)
        if entry is not None:
            self.entries.move_to_end(key)
            return [entry.room, route(entry.room), "state_hit", False, False, None]
        stale = key in self.expired
        if (room := room_text(key)) != key:
            entry = self.live(room, now)
            if entry is not None:
                self.entries.move_to_end(room)
                self.put(key, entry._replace(updated=now, provenance="guessed"), left_in_table)
                reason = "stale" if stale else "thread_scope_miss"
                return [entry.room, route(entry.room), "partition_fallback", True, stale, reason]
            stale = stale or room in self.expired
        if fallback is None:
            return "no_route"
        self.put(key, Entry(fallback, now, now + GUESS, "guessed"), left_in_table)
        reason = "stale" if stale else "miss"
        return [fallback, route(fallback), "provided_fallback", True, stale, reason]

    def delete(self, key: str, now: int) -> bool:
        entry = self.entries.pop(key, None)
        self.expired.discard(key)
        return entry is not None and entry.expires > now

    def prune(self, now: int) -> int:
        return sum(self.live(key, now) is None for key in list(self.entries))


class Routes(RuleBasedStateMachine):
    """Whatever is done in whatever order, the table and the model agree, and the store follows."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000
        self.table = table()
        self.model = Model()
        self.store: dict[str, bytes] = {}

    @rule(ms=st.integers(1, 70))
    def advance(self, ms: int) -> None:
        self.now += ms

    @rule(key=key_names, room=rooms, ttl=ttls)
    def set(self, key: str, room: int, ttl: int | None) -> None:
        assert answer(self.table.set, [key, route(room), ttl], self.now, []) is None
        entry = Entry(room, self.now, self.now + (ttl or TTL), "learned")
        self.model.put(key, entry, set(self.table.entries))

    @rule(key=key_names)
    def get(self, key: str) -> None:
        assert answer(self.table.get, [key], self.now) == self.model.get(key, self.now)

    @rule(key=key_names, fallback=fallbacks)
    def resolve(self, key: str, fallback: int | None) -> None:
        given = [] if fallback is None else [route(fallback)]
        found = answer(self.table.resolve, [key, given], self.now)
        assert found == self.model.resolve(key, fallback, self.now, set(self.table.entries))

    @rule(key=key_names)
    def delete(self, key: str) -> None:
        assert answer(self.table.delete, [key], self.now, []) is self.model.delete(key, self.now)

    @rule()
    def prune(self) -> None:
        assert answer(self.table.prune, [], self.now, []) == self.model.prune(self.now)

    @rule()
    def sweep(self) -> None:
        removed = 0
        while (piece := self.table.sweep(self.now, 1)) == 1:
            removed += piece
        assert removed == self.model.prune(self.now)

    @rule(limit=st.integers(1, 4))
    def list(self, limit: int) -> None:
        seen, after = [], None
        while True:
            rows, after = answer(self.table.list, [None, None, limit, after], self.now)
            seen += [row[0] for row in rows]
            if after is None:
                break
        assert seen == sorted(k for k, e in self.model.entries.items() if e.expires > self.now)

    @rule(
        writes=st.lists(
            st.tuples(key_names, st.sampled_from(["set", "delete", "prune"]), rooms, ttls), max_size=6
        ),
        drained=st.booleans(),
    )
    def fail(self, writes: list[Any], drained: bool) -> None:
        """A batch of writes whose transaction fails leaves no trace but the order of use."""
        before, dirty, memory = self.content(), dict(self.table.dirty), set(self.table._expired)
        order = [*self.table.entries]
        undo: list[Any] = []
        for key, what, room, ttl in writes:
            args = {"set": [key, route(room), ttl], "delete": [key], "prune": []}[what]
            getattr(self.table, what)(args, self.now, undo)
        if drained:
            self.table.put_back(self.table.take_dirty())
        for step in reversed(undo):
            step()
        assert (self.content(), self.table.dirty) == (before, dirty)
        assert set(self.table._expired) == memory
        for key in self.table.entries:
            self.model.entries.move_to_end(key)
        touched = {key for key, *_ in writes}
        untouched = [key for key in self.table.entries if key not in touched]
        if not any(
            what == "prune" or before[key].expires_ms <= self.now for key in before for _, what, *_ in writes
        ):
            assert untouched == [key for key in order if key not in touched]

    @rule()
    def flush(self) -> None:
        self.store = self.followed()
        self.table.take_dirty()

    def content(self) -> dict[str, Any]:
        return {key: decode_record(record) for key, record in self.table.entries.items()}

    def followed(self) -> dict[str, bytes]:
        """The store as it will be after the next transaction."""
        rows = {**self.store, **self.table.dirty}
        return {key: record for key, record in rows.items() if record is not None}

    @invariant()
    def the_table_is_the_model(self) -> None:
        entries = [
            (key, Entry(r.route["room"], r.updated_ms, r.expires_ms, r.provenance))
            for key, r in self.content().items()
        ]
        assert entries == [*self.model.entries.items()]
        assert set(self.table._expired) == self.model.expired

    @invariant()
    def the_store_follows_the_memory(self) -> None:
        assert {key: decode_record(row) for key, row in self.followed().items()} == self.content()

    @invariant()
    def every_entry_has_one_filing(self) -> None:
        index = self.table._expiry
        filed = sorted(index._keys[slot] for bucket in index._buckets.values() for slot in bucket)
        assert filed == sorted(self.table.entries)


TestRoutes = Routes.TestCase
TestRoutes.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

calls = st.one_of(
    st.tuples(st.just("set"), key_names, rooms, ttls),
    st.tuples(st.just("get"), key_names),
    st.tuples(st.just("resolve"), key_names, fallbacks),
    st.tuples(st.just("delete"), key_names),
    st.tuples(st.just("advance"), st.integers(1, 60)),
    st.tuples(st.just("load")),
)


def perform(t: RouteTable, now: int, call: Any) -> Any:
    what, key, *rest = call
    match what:
        case "set":
            return answer(t.set, [key, route(rest[0]), rest[1]], now, [])
        case "delete":
            return answer(t.delete, [key], now, [])
        case "resolve":
            return answer(t.resolve, [key, None if rest[0] is None else route(rest[0])], now)
    return answer(t.get, [key], now)


@settings(max_examples=150, deadline=None)
@given(before=st.lists(calls, max_size=12), after=st.lists(calls, max_size=15))
def test_a_restart_cannot_be_seen(before: list[Any], after: list[Any]) -> None:
    """If a table is loaded in the midst of requests, then it answers as the one that never stopped."""
    now, old = 1_000, table(100)
    for call in before:
        now += call[1] if call[0] == "advance" else 0
        if call[0] not in ("advance", "load"):
            perform(old, now, call)
    rows = {key: record for key, record in old.take_dirty().items() if record is not None}
    new = table(100)
    new._expired.update(old._expired)
    new.loading, new.fetch = True, dict(rows).get
    chunks = [[row] for row in rows.items()]
    for call in after:
        if call[0] == "advance":
            now += call[1]
        elif call[0] == "load" and chunks:
            new.load(chunks.pop())
        elif call[0] != "load":
            assert perform(new, now, call) == perform(old, now, call)
    for chunk in chunks:
        new.load(chunk)
    new.loaded()
    assert {k: decode_record(r) for k, r in new.entries.items()} == {
        k: decode_record(r) for k, r in old.entries.items()
    }


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from("frx"), st.integers(0, 5), st.integers(-50, 400)), max_size=60),
    width=st.sampled_from([1, 7, 100]),
)
def test_the_expiry_index_finds_exactly_what_expired(steps: list[tuple[str, int, int]], width: int) -> None:
    """If keys are filed, moved and removed, then what is taken out at a time is what expired by then."""
    index, slots, expires, now = ExpiryIndex(width), {}, {}, 0
    for what, number, ms in steps:
        key = str(number)
        if what == "r" and key in slots:
            index.remove(slots.pop(key))
            del expires[key]
        elif what == "f":
            expires[key] = now + ms
            if key in slots:
                index.refile(slots[key], now + ms)
            else:
                slots[key] = index.file(key, now + ms)
        elif what == "x":
            now += abs(ms)
            found = []
            while (over := index.first_expired(now)) is not None:
                found.append(over)
                index.remove(slots.pop(over))
            assert sorted(found) == sorted(k for k, e in expires.items() if e <= now)
            for over in found:
                del expires[over]


def test_a_large_bucket_ripens_in_pieces() -> None:
    """If thousands of keys expire in one bucket, then each is found once."""
    index = ExpiryIndex(1_000)
    slots = {str(number): index.file(str(number), 500) for number in range(3_000)}
    found = set()
    while (key := index.first_expired(5_000)) is not None:
        found.add(key)
        index.remove(slots[key])
    assert found == set(slots)
