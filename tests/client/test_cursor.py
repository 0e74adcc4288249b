"""The gap machine: whatever the feed loses, doubles or delays, each message comes once and in order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.client._cursor import CURSOR, FETCH_ROWS, FeedCursor, Hole, topic_id
from mesh.client._surface import decode_cursor, encode_cursor
from mesh.core.notification import Notification
from mesh.core.slots import even_map, session_slot
from mesh.errors import InvalidArgument

PARTITIONS = 2
MAP = even_map(PARTITIONS)


def packed(rows: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Events of one partition as they are published together."""
    shared = ("partition", "epoch", "node", "topic")
    events = [{name: row[name] for name in row if name not in shared} for row in rows]
    return "packed.all", {"ts": 1.0, "events": events, **{name: rows[0][name] for name in shared[:3]}}


class Log:
    """What the partitions hold: the truth that holes are fetched from."""

    def __init__(self) -> None:
        self.lifecycle: dict[int, list[dict[str, Any]]] = {p: [] for p in range(PARTITIONS)}
        self.events: dict[int, list[dict[str, Any]]] = {p: [] for p in range(PARTITIONS)}

    def happen(self, partition: int, session_id: str, *, lifecycle: bool) -> tuple[str, dict[str, Any]]:
        """Append one message; returns it as it is published."""
        common = {"partition": partition, "session_id": session_id, "epoch": 1, "node": "n"}
        if lifecycle:
            rows = self.lifecycle[partition]
            rows.append(
                {**common, "lseq": len(rows) + 1, "topic": f"lifecycle.status.{topic_id(session_id)}"}
            )
        else:
            rows = self.events[partition]
            seq = sum(row["session_id"] == session_id for row in rows) + 1
            topic = f"session.{topic_id(session_id)}.turn_completed"
            rows.append(
                {**common, "pos": len(rows) + 1, "seq": seq, "type": "turn_completed", "topic": topic}
            )
        return rows[-1]["topic"], rows[-1]

    def head(self, partition: int) -> dict[str, Any]:
        return {
            "partition": partition,
            "epoch": 1,
            "node": "n",
            "lseq": len(self.lifecycle[partition]),
            "pos": len(self.events[partition]),
            "lseq_kept": 1,
        }

    def read(self, hole: Hole, page: int) -> tuple[list[Any], bool]:
        """What the partition answers to a fetch, at most ``page`` rows."""
        if hole.unit == "lifecycle":
            rows = [row for row in self.lifecycle[hole.partition] if row["lseq"] > hole.after]
        elif hole.unit == "session":
            rows = [row for row in self.events[hole.partition] if row["pos"] > hole.after]
        else:
            rows = [
                row
                for row in self.events[hole.partition]
                if row["session_id"] == hole.session_id and row["seq"] > hole.after
            ]
            return rows[:page], len(rows) <= page
        return [(row["topic"], row) for row in rows[:page]], len(rows) <= page


def listener(*topics: str, log: Log | None = None, after: str | None = None) -> FeedCursor:
    position = None if after is None else decode_cursor(after, CURSOR)
    machine = FeedCursor(topics, MAP, PARTITIONS, encode_cursor, position)
    truth = log or Log()
    for partition in range(PARTITIONS):
        machine.check_history(truth.head(partition))
        machine.on_opening("node.echo.token", truth.head(partition), "token")
    assert machine.missing() == []
    for session_id, partition in machine.sessions.items():
        machine.session_at(session_id, sum(r["session_id"] == session_id for r in truth.events[partition]))
    return machine


def mend(machine: FeedCursor, log: Log, page: int = FETCH_ROWS) -> list[Notification]:
    """Fetch all holes."""
    out: list[Notification] = []
    for _ in range(10_000):
        if not machine.holes:
            return out
        hole = machine.holes[0]
        out += machine.fetched(hole, *log.read(hole, page))
    raise AssertionError("a hole that never closes")


SIDS = ("alpha", "beta", "gam.ma", "delta")
STEP = st.tuples(
    st.sampled_from(SIDS),
    st.booleans(),
    st.sampled_from(("arrives", "lost", "twice", "late")),
    st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(
    steps=st.lists(STEP, max_size=40),
    topics=st.sampled_from(
        (("",), ("session.",), ("lifecycle.",), ("session.alpha.",), ("session.gam%2Ema.", "life"))
    ),
    page=st.integers(1, 5),
)
def test_each_message_comes_once_and_in_order(steps: list[Any], topics: tuple[str, ...], page: int) -> None:
    """If messages are lost, doubled or late, then a listener still gets each once, in its counter's order."""
    log = Log()
    machine = listener(*topics)
    got: list[Notification] = []
    late: list[tuple[str, dict[str, Any]]] = []
    for session_id, lifecycle, fate, fetch_now in steps:
        message = log.happen(MAP[session_slot(session_id)], session_id, lifecycle=lifecycle)
        if fate == "late":
            late.append(message)
        for _ in range({"arrives": 1, "twice": 2}.get(fate, 0)):
            got += machine.on_message(*message)
        if fetch_now:
            got += mend(machine, log, page)
    for message in late:
        got += machine.on_message(*message)
    for partition in range(PARTITIONS):
        got += [n for n in machine.on_message("node.head", log.head(partition)) if n.topic != "node.head"]
    got += mend(machine, log, page)
    for partition in range(PARTITIONS):
        for kind, rows, counter in (
            ("lifecycle.", log.lifecycle[partition], "lseq"),
            ("session.", log.events[partition], "pos"),
        ):
            wanted = [row[counter] for row in rows if row["topic"].startswith(topics)]
            seen = [
                n.data[counter] for n in got if n.topic.startswith(kind) and n.data["partition"] == partition
            ]
            assert seen == wanted


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from(SIDS), st.booleans()), min_size=1, max_size=25), data=st.data()
)
def test_cursor_of_any_notification_continues_behind_it(steps: list[Any], data: st.DataObject) -> None:
    """If a listener comes back with the cursor of the n-th message, then it gets n+1 onwards, exactly."""
    log = Log()
    machine = listener("session.", "lifecycle.")
    got: list[Notification] = []
    for session_id, lifecycle in steps:
        got += machine.on_message(*log.happen(MAP[session_slot(session_id)], session_id, lifecycle=lifecycle))
    n = data.draw(st.integers(0, len(got) - 1))
    again = listener("session.", "lifecycle.", log=log, after=got[n].cursor)
    rest = mend(again, log)
    key = lambda note: (note.topic, note.data["partition"], note.data.get("pos"), note.data.get("lseq"))  # noqa: E731
    assert sorted(map(key, rest), key=str) == sorted(map(key, got[n + 1 :]), key=str)


def test_last_message_lost_shows_with_the_next_head() -> None:
    """If the very last message is lost, then node.head names the hole."""
    log, machine = Log(), listener("lifecycle.")
    log.happen(0, "x", lifecycle=True)
    assert machine.holes == []
    machine.on_message("node.head", log.head(0))
    assert machine.holes == [Hole("lifecycle", 0, "", 0, 1)]


def test_hole_that_cannot_be_fetched_shows_again() -> None:
    """If a partition is away while a hole is fetched, then its next head names the hole again."""
    for topics, lifecycle in ((("lifecycle.",), True), (("session.",), False), (("session.alpha.",), False)):
        log, machine = Log(), listener(*topics)
        home = MAP[session_slot("alpha")]
        log.happen(home, "alpha", lifecycle=lifecycle)
        machine.on_message("node.head", log.head(home))
        machine.unfetched(machine.holes[0])
        assert machine.holes == []
        machine.on_message("node.head", log.head(home))
        assert len(machine.holes) == 1
        assert len(mend(machine, log)) == 1


def test_number_that_the_log_lost_is_passed_over() -> None:
    """If the log has no row for a number (its session moved away), then the listener goes on."""
    log, machine = Log(), listener("session.")
    for _ in range(3):
        message = log.happen(0, "x", lifecycle=False)
    del log.events[0][0]
    machine.on_message(*message)
    assert [n.data["pos"] for n in mend(machine, log)] == [2, 3]


def test_lifecycle_history_that_is_gone_is_invalid_cursor() -> None:
    """If lifecycle messages behind a cursor are no longer kept, then that is said, not skipped."""
    log, machine = Log(), listener("lifecycle.")
    for _ in range(3):
        message = log.happen(0, "x", lifecycle=True)
    del log.lifecycle[0][0]
    machine.on_message(*message)
    with pytest.raises(InvalidArgument) as refused:
        mend(machine, log)
    assert refused.value.code == "invalid_cursor"


def test_cursor_older_than_kept_history_is_refused_at_once() -> None:
    """If a partition no longer keeps what follows the cursor, then opening is refused."""
    log, machine = Log(), listener("lifecycle.")
    [note] = machine.on_message(*log.happen(0, "x", lifecycle=True))
    for _ in range(5):
        log.happen(0, "x", lifecycle=True)
    again = FeedCursor(("lifecycle.",), MAP, PARTITIONS, encode_cursor, decode_cursor(note.cursor, "feed"))
    with pytest.raises(InvalidArgument) as refused:
        again.check_history({**log.head(0), "lseq_kept": 4})
    assert refused.value.code == "invalid_cursor"


@pytest.mark.parametrize("text", ["", "x", "AAAA", encode_cursor(["routes", 1, {}]), encode_cursor([1])])
def test_text_that_is_no_cursor_is_refused(text: str) -> None:
    """If a cursor is not one of the feed, then it is invalid_cursor."""
    with pytest.raises(InvalidArgument) as refused:
        decode_cursor(text, "feed")
    assert refused.value.code == "invalid_cursor"


@settings(max_examples=300, deadline=None)
@given(
    sids=st.lists(st.sampled_from(SIDS), max_size=30),
    cuts=st.lists(st.tuples(
        st.integers(1, 5), st.sampled_from(("arrives", "lost", "twice", "late", "begun"))
    ), min_size=30, max_size=30),
    one=st.booleans(),
    finer=st.booleans(),
)
def test_events_that_come_packed_are_each_delivered_once_and_in_order(
    sids: list[str], cuts: list[tuple[int, str]], one: bool, finer: bool
) -> None:
    """If packs are lost, doubled, late or overlap, then each event comes once, as if it had come alone."""
    log = Log()
    wanted = f"session.{topic_id(SIDS[0])}." if one else "session."
    machine = listener(wanted)
    for sid in sids:
        log.happen(MAP[session_slot(sid)], sid, lifecycle=False)
    got: list[Notification] = []
    late: list[tuple[str, dict[str, Any]]] = []
    rows = {p: [r for r in log.events[p] if not one or r["session_id"] == SIDS[0]] for p in log.events}
    for left in rows.values():
        for size, fate in cuts:
            some, left = left[:size], left[size - (fate == "begun"):]
            for _ in range({"lost": 0, "late": 0, "twice": 2}.get(fate, 1) if some else 0):
                got += machine.on_message(*packed(some))
            if some and fate == "late":
                late.append(packed(some))
            if finer:
                got += mend(machine, log, 2)
    for message in late:
        got += machine.on_message(*message)
    for partition in rows:
        machine.on_message("node.head", log.head(partition))
    got += mend(machine, log)
    for partition, expected in rows.items():
        mine = [(n.topic, n.data["seq"], n.data["pos"]) for n in got if n.data["partition"] == partition]
        assert mine == [(r["topic"], r["seq"], r["pos"]) for r in expected]


def test_cursor_of_a_packed_event_goes_on_right_behind_it() -> None:
    """If the cursor of an event in the middle of a pack is used, then the next event of that pack comes."""
    log, machine = Log(), listener("session.", "lifecycle.")
    rows = [log.happen(0, "alpha", lifecycle=False)[1] for _ in range(4)]
    notes = machine.on_message(*packed(rows))
    again = listener("session.", "lifecycle.", log=log, after=notes[1].cursor)
    assert [n.data["pos"] for n in mend(again, log)] == [3, 4]
    single = listener("session.alpha.")
    notes = single.on_message("packed.one.alpha.", packed(rows)[1])
    assert decode_cursor(notes[2].cursor, "feed")[4] == {"alpha": 3}


@pytest.mark.parametrize(
    "events", [[], [1], [{}], [{"pos": "x"}], [{"pos": 1}, 5], [{"pos": 1, "session_id": []}]]
)
def test_pack_that_makes_no_sense_is_counted_and_harms_nothing(events: list[Any]) -> None:
    """If a pack holds garbage, then it is a stray message, and the next one is taken."""
    machine, log = listener("session."), Log()
    assert machine.on_message("packed.all", {"partition": 0, "epoch": 1, "node": "n", "events": events}) == []
    assert machine.stray == 1
    row = log.happen(0, "alpha", lifecycle=False)[1]
    assert [n.number for n in listener("session.").on_message(*packed([row]))] == [1]


@pytest.mark.parametrize("topics", [("session.",), ("session.other.",)])
def test_cursor_of_other_topics_is_refused(topics: tuple[str, ...]) -> None:
    """If a cursor does not hold the counters these topics need, then it is invalid_cursor."""
    cursor = listener("lifecycle.").cursor()
    with pytest.raises(InvalidArgument) as refused:
        FeedCursor(topics, MAP, PARTITIONS, encode_cursor, decode_cursor(cursor, "feed"))
    assert refused.value.code == "invalid_cursor"


@pytest.mark.parametrize(
    ("topics", "subscribed"),
    [
        ((), {b"lifecycle.", b"packed.all", b"node.", b"route."}),
        (("lifecycle.started.x",), {b"lifecycle."}),
        (("session.a.run_started", "session.b."), {b"packed.one.a.", b"packed.one.b."}),
        (("session.a%2Eb.", "session.b."), {b"packed.one.a%2Eb.", b"packed.one.b."}),
        (("session.a.", "session."), {b"packed.all"}),
        (("session.ab",), {b"packed.all"}),
        (("node.partition_", "route.set"), {b"node.partition_", b"route.set"}),
    ],
)
def test_subscription_covers_the_unit_that_has_a_counter(
    topics: tuple[str, ...], subscribed: set[bytes]
) -> None:
    """If a topic is finer than its counter, then the whole unit is subscribed."""
    own = {b"node.head", b"node.echo.tok"}
    assert set(FeedCursor(topics, MAP, PARTITIONS, encode_cursor).subscriptions("tok")) - own == subscribed


@pytest.mark.parametrize("topic", ["nonsense", "sessions.x", "Lifecycle."])
def test_topic_that_nobody_publishes_is_refused(topic: str) -> None:
    """If a topic can never match, then the caller hears it instead of waiting for ever."""
    with pytest.raises(InvalidArgument):
        FeedCursor((topic,), MAP, PARTITIONS, encode_cursor)


def test_messages_before_the_echo_are_not_delivered_and_not_missed() -> None:
    """If something happened before the subscription was live, then the listener begins behind it."""
    log = Log()
    for _ in range(3):
        log.happen(0, "x", lifecycle=True)
    machine = listener("lifecycle.", log=log)
    assert machine.holes == []
    [note] = machine.on_message(*log.happen(0, "x", lifecycle=True))
    assert note.data["lseq"] == 4


def test_a_cursor_from_before_slots_moved_is_refused_also_when_they_moved_back() -> None:
    """If the map of slots is another one, then counters mean something else: a resumed listener and a live
    one learn that, whatever the number of partitions is now."""
    stand = decode_cursor(FeedCursor(("lifecycle.",), MAP, PARTITIONS, encode_cursor).cursor(), CURSOR)
    with pytest.raises(InvalidArgument) as refused:
        FeedCursor(("lifecycle.",), MAP, PARTITIONS, encode_cursor, stand, 3)
    assert refused.value.code == "invalid_cursor"
    live, log = listener("session."), Log()
    live.on_message("node.head", {**log.head(0), "map_version": 1})
    with pytest.raises(InvalidArgument, match="number of partitions"):
        live.on_message("node.head", {**log.head(0), "map_version": 2})
