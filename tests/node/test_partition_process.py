"""The real partition process behind a real router, spoken to in raw wire protocol."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from harness import COMPLETED, FakeRunner, MiniNode, RawClient

from mesh.core import wire
from mesh.core.announced import unpacked
from mesh.core.events import TYPE_CODE
from mesh.core.slots import run_id_for
from mesh.errors import StoreError
from mesh.node.reads import EVENTS_PER_PAGE
from mesh.store.sqlite import Store

pytestmark = pytest.mark.e2e
KEY = "tg:b:room1"
ROUTE = {"external_room_id": "x", "a": 1}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[MiniNode]:
    with MiniNode(tmp_path) as made:
        yield made


@pytest.fixture
def client(node: MiniNode) -> Iterator[RawClient]:
    with RawClient(node) as made:
        yield made


def test_many_calls_of_one_payload_are_answered_in_order(client: RawClient) -> None:
    """If a payload holds many calls, good and bad, then each has its answer in its place."""
    calls: list[list[Any]] = [["route.set", [f"tg:b:r{n}", ROUTE]] for n in range(200)]
    calls[7:7] = [["nope", []], ["session.create", ["s", "echo", {}]]]
    assert client.write(*calls).codes == ["ok"] * 7 + ["unknown_op", "ok"] + ["ok"] * 193
    answer = client.read(*(["route.get", [f"tg:b:r{n}"]] for n in range(201)))
    assert answer.codes == ["ok"] * 200 + ["not_found"]


def test_an_acknowledged_write_is_read_by_anybody(node: MiniNode, client: RawClient) -> None:
    """If a write was answered, then the next read, of another client too, sees it."""
    with RawClient(node) as other:
        for n in range(50):
            client.write(["route.set", [KEY, {**ROUTE, "n": n}]])
            assert other.read(["route.get", [KEY]]).value[0]["n"] == n


def test_a_repeated_number_has_one_effect_also_after_kill_9(node: MiniNode, client: RawClient) -> None:
    """If a payload comes again, then it is answered from its receipt; a killed partition's successor knows
    it."""
    calls = [["session.create", ["s", "echo", {}]], ["route.set", [KEY, ROUTE]]]
    first = client.write(*calls, number=1)
    assert client.write(*calls, number=1).body == first.body
    node.kill_partition()
    assert node.start_partition()["epoch"] == first.header.done_below + 1
    again = client.write(*calls, number=1)
    assert again.body == first.body and again.header.done_below == first.header.done_below + 1
    assert client.read(["session.events", ["s", None]]).value[0][-1]["seq"] == 1
    assert client.read(["route.get", [KEY]]).value[0] == ROUTE
    assert [h.address for h in client.gone] == [0]


def test_a_number_below_done_below_is_refused_also_after_kill_9(node: MiniNode, client: RawClient) -> None:
    """If a client gave a number up, then it is refused by this partition and its successor."""
    client.write(["route.set", [KEY, ROUTE]], number=1)
    client.write(["route.set", [KEY, ROUTE]], number=3, done_below=3)
    late = ["route.set", [KEY, {**ROUTE, "late": True}]]
    assert client.write(late, number=2).codes == ["invalid_operation"]
    node.kill_partition()
    node.start_partition()
    assert client.write(late, number=2).codes == ["invalid_operation"]
    assert "late" not in client.read(["route.get", [KEY]]).value[0]


def test_a_stranger_with_a_high_number_is_client_expired(client: RawClient) -> None:
    """If nobody remembers a client, then number 2 is refused and number 1 is not."""
    assert client.write(["route.set", [KEY, ROUTE]], number=2).codes == ["client_expired"]
    assert client.write(["route.set", [KEY, ROUTE]], number=1).codes == ["ok"]


@pytest.mark.parametrize("number", [0, 2**62 + 1, 2**64 - 1])
def test_a_number_beyond_the_stores_integers_harms_nobody(client: RawClient, number: int) -> None:
    """If a number cannot be stored, then it is refused and the partition lives."""
    epoch = client.write(["route.set", [KEY, ROUTE]], number=1).header.done_below
    answer = client.write(["route.set", [KEY, ROUTE]], number=number, done_below=min(number, 2**64 - 1))
    assert answer.codes == ["validation_error"]
    assert client.read(["route.get", [KEY]]).header.done_below == epoch


DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\xc1",
        b"\x93\x01",
        b"\x81\xa1a\x01",
        b"\x90\x90",
        b"\x91\x05",
        b"\x91\x91\xa1a",
        b"\xdd\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xffabc",
        b"\x91" * 5_000,
        wire.pack([["a", 5]]),
        wire.pack([[5, []]]),
        b"\xa2\xff\xfe",
        b"\x91\x92\xa1a\x91\x81\x90\x01",
        b"\x91\x92\xa1a\x91\xc7\x01\x05x",
    ],
)
def test_a_body_that_is_no_list_of_calls_is_a_protocol_error(client: RawClient, junk: bytes) -> None:
    """If the body is broken in any way, then the payload is refused by a typed error and the node lives."""
    for kind in (wire.Kind.READ, wire.Kind.WRITE, wire.Kind.WAIT):
        answer = client.again(lambda kind=kind: client.send(kind, junk, number=1))
        assert answer.codes in (["protocol_error"], []), (kind, answer.body)
    assert client.read(["route.config", []]).codes == ["ok"]


NONSENSE = [
    None,
    5,
    -1,
    2**63,
    2**64 - 1,
    float("nan"),
    float("inf"),
    "",
    "a\0b\x1b",
    "x" * 5000,
    b"\xff",
    [],
    [[]],
    {},
    {1: 2},
    {"a": DEEP},
    DEEP,
    ["s"] * 9,
    True,
    {"after": 2**63},
    {"since": 2**64 - 1},
    {"since": float("nan")},
    {"until": "soon"},
    {"run_id": [1]},
    {"type": [[]]},
    {"type": "nope"},
    {"limit": 0},
    {"limit": "5"},
    {"before": None},
]


def test_nonsense_is_answered_by_typed_errors(client: RawClient) -> None:
    """If any op is called with any nonsense, then it is answered by an error of ours and nobody dies."""
    from mesh.core.ops import CATALOGUE

    client.write(["session.create", ["s", "echo", {}]])
    epoch = client.read(["feed.head", []]).header.done_below
    for op in CATALOGUE:
        if op.name == "agent.reload":
            continue
        lists = [[x] for x in NONSENSE] + [["s", x] for x in NONSENSE] + [[x, "s"] for x in NONSENSE] + [
            [x] * n for x in NONSENSE for n in (0, 3, 4, 5, 9)]
        if op.kind == "wait":
            requests = [client.wait(op.name, *args, remaining_ms=1) for args in lists]
            codes = [client.take(request).codes[0] for request in requests]
        else:
            say = client.read if op.kind == "read" else client.write
            codes = say(
                *([op.name, args] for args in lists), remaining_ms=500
            ).codes  # what needs a runner has none
        assert "internal_error" not in codes, (op.name, lists[codes.index("internal_error")])
    assert client.read(["feed.head", []]).header.done_below == epoch


def test_a_deadline_that_passed_is_refused(client: RawClient) -> None:
    """If no time is left when the partition takes a payload, then it is not executed."""
    assert client.write(["route.set", [KEY, ROUTE]], remaining_ms=0).codes == ["timeout"]
    assert client.read(["route.get", [KEY]], remaining_ms=0).codes == ["timeout"]
    assert client.read(["route.get", [KEY]]).codes == ["not_found"]


def test_too_many_in_flight_are_overloaded(tmp_path: Path) -> None:
    """If a client has more payloads open than its share, then its next is refused with the time to come
    again, and another client is served."""
    with (
        MiniNode(tmp_path, config={"limits": {"inflight_per_partition": 8}}) as node,
        RawClient(node) as client,
    ):
        # No runner is there: starts are parked, and stay in flight.
        for number in range(1, 5):
            client.send(
                wire.Kind.WRITE, wire.pack([["session.start", [f"s{number}", "echo", {}]]]), number=number
            )
        answer = client.take(client.send(wire.Kind.READ, wire.pack([["feed.head", []]])))
        assert answer.codes == ["overloaded"] and answer.body["details"]["retry_after_ms"] > 0
        with RawClient(node) as other:
            assert other.read(["feed.head", []]).codes == ["ok"]


def test_waiting_reads_do_not_count_and_are_bounded(tmp_path: Path) -> None:
    """If more reads are parked than may be, then the next is refused by the bound's name; others are
    served."""
    config = {"limits": {"inflight_per_partition": 4, "waiters_per_client": 5}}
    with MiniNode(tmp_path, config=config) as node, RawClient(node) as client:
        client.write(["session.create", ["s", "echo", {}]])
        requests = [client.wait("session.wait", "s", {"after": 1}) for _ in range(6)]
        answer = client.take(requests[-1])
        assert answer.codes == ["overloaded"] and "waiters_per_client" in answer.body[0][1]["message"]
        assert client.read(["feed.head", []]).codes == ["ok"]
        client.write(["session.cancel", ["s"]])
        assert all(
            client.take(request).value[0][0]["type"] == "session_cancelled" for request in requests[:-1]
        )


def test_a_waiting_read_wakes_for_its_own_matches_only(client: RawClient) -> None:
    """If an event does not match a filter, then its waiter sleeps on; the match answers it."""
    client.write(["session.create", ["s", "echo", {}]], ["session.create", ["t", "echo", {}]])
    failed = client.wait("session.wait", "s", {"type": ["session_failed"]})
    other = client.wait("session.wait", "t", {"after": 1, "type": "session_cancelled"})
    everything = client.wait("session.wait", "s", {"after": 1})
    client.write(["session.fail", ["s", "why"]])
    assert [e["type"] for e in client.take(everything).value[0]] == ["session_failed"]
    assert [e["seq"] for e in client.take(failed).value[0]] == [2]
    client.write(["session.cancel", ["t"]])
    assert [e["type"] for e in client.take(other).value[0]] == ["session_cancelled"]
    first, second = (run_id_for("u", digit * 29) for digit in "12")
    client.write(["session.create", ["u", "echo", {}]])
    client.write(["run.create", [first, "u", "x"]], ["run.create", [second, "u", "x"]])
    one = client.wait("session.wait", "u", {"run_id": second})
    client.write(["run.cancel", [first]])
    client.write(["run.cancel", [second]])
    assert [(e["run_id"], e["seq"]) for e in client.take(one).value[0]] == [(second, 3)]


def test_a_waiting_read_is_answered_empty_when_its_time_is_over(client: RawClient) -> None:
    """If nothing matches in time, then the answer is empty, not an error."""
    client.write(["session.create", ["s", "echo", {}]])
    assert client.take(client.wait("session.wait", "s", {"after": 1}, remaining_ms=50)).value == [[], True]
    run_id = run_id_for("s", "0" * 29)
    client.write(["run.create", [run_id, "s", "x"]])
    assert client.take(client.wait("run.wait", run_id, remaining_ms=50)).value is None


def test_several_waiting_reads_of_one_payload_are_answered_one_by_one(client: RawClient) -> None:
    """If a payload holds several waiting reads, then each is answered when it has something to say, with its
    place; only the last answer ends the payload."""
    first, second = run_id_for("s", "1" * 29), run_id_for("s", "2" * 29)
    client.write(["session.create", ["s", "echo", {}]], ["run.create", [first, "s", "x"]],
                 ["run.create", [second, "s", "y"]])
    calls = [["run.wait", [first]], ["run.wait", ["nothing"]], ["run.wait", [second, "run"]],
             ["session.wait", ["s", {"after": 1}]]]
    request = client.send(wire.Kind.WAIT, wire.pack(calls))
    answer = client.take(request)
    assert [row[:2] for row in answer.body] == [[1, 1]] and answer.header.flags == wire.Flag.MORE
    client.write(["run.cancel", [second]])
    answer = client.take(request)
    assert [row[:2] for row in answer.body] == [[3, 0], [2, 0]] and answer.header.flags == wire.Flag.MORE
    assert [event["type"] for event in answer.body[1][2]["events"]] == ["run_cancelled"]
    assert answer.body[0][2][0] == answer.body[1][2]["events"]
    client.write(["run.cancel", [first]])
    answer = client.take(request)
    assert [row[:2] for row in answer.body] == [[0, 0]] and not answer.header.flags
    assert "events" not in answer.body[0][2]


def test_waiting_reads_of_one_payload_end_together_when_their_time_is_over(client: RawClient) -> None:
    """If nothing happens in time, then all of a payload's waiting reads are answered empty, in one reply."""
    run_id = run_id_for("s", "0" * 29)
    client.write(["session.create", ["s", "echo", {}]], ["run.create", [run_id, "s", "x"]])
    calls = [["run.wait", [run_id, "session"]], ["session.wait", ["s", {"after": 1}]]]
    answer = client.take(client.send(wire.Kind.WAIT, wire.pack(calls), remaining_ms=50))
    assert sorted(answer.body) == [[0, 0, None], [1, 0, [[], True]]] and not answer.header.flags


@pytest.mark.parametrize("whole", [True, False])
def test_a_run_is_answered_with_its_events_also_when_it_ended_before(client: RawClient, whole: bool) -> None:
    """If the events are wanted with a run, then they are those of the log, however late one asks."""
    run_id = run_id_for("s", "0" * 29)
    client.write(["session.create", ["s", "echo", {}]], ["run.create", [run_id, "s", "x"]],
                 ["run.cancel", [run_id]])
    run = client.take(client.wait("run.wait", run_id, "session" if whole else "run")).value
    expected = client.read(["session.events", ["s", {} if whole else {"run_id": run_id}]]).value[0]
    assert run["events"] == expected and len(expected) == (2 if whole else 1)


def test_a_short_log_is_read_to_its_end(client: RawClient) -> None:
    """If there are more events than fit on a page, then the page says that it is not all."""
    run_ids = [run_id_for("s", f"{n:029x}") for n in range(EVENTS_PER_PAGE + 5)]
    client.write(["session.create", ["s", "echo", {}]])
    for begin in range(0, len(run_ids), 1_000):
        some = run_ids[begin:begin + 1_000]
        client.write(*(["run.create", [run_id, "s", "x"]] for run_id in some))
        client.write(*(["run.cancel", [run_id]] for run_id in some))
    found, complete, _, last_seq = client.read(["session.events", ["s", {}]]).value
    assert not complete
    assert last_seq == found[-1]["seq"]
    rest, complete = client.read(["session.events", ["s", {"after": last_seq}]]).value
    assert complete and len(found) + len(rest) == len(run_ids) + 1


def test_a_session_named_like_a_run_is_not_mixed_up_with_it(client: RawClient) -> None:
    """If a session's id looks like a run's, then waiting for either is answered as what it is."""
    run_id = run_id_for("s", "0" * 29)
    client.write(["session.create", ["s", "echo", {}]], ["run.create", [run_id, "s", "x"]],
                 ["session.create", [run_id, "echo", {}]])
    of_session = client.wait("session.wait", run_id, {"after": 1}, remaining_ms=200)
    of_run = client.wait("run.wait", run_id)
    client.write(["run.cancel", [run_id]])
    assert client.take(of_run).value["status"] == "cancelled"
    assert client.take(of_session).value == [[], True]


def test_a_bug_in_one_call_is_internal_error_and_undone(tmp_path: Path) -> None:
    """If a handler fails in the middle, then it alone is undone, its neighbours stand, the log has the
    trace."""

    def break_cancel() -> None:
        from mesh.core.session_ops import SessionOps

        def broken(self: SessionOps, args: list[Any], part: Any) -> bytes:
            self.create(["half", "echo", None], part)
            raise ZeroDivisionError("a bug of ours")

        SessionOps.cancel = broken

    with MiniNode(tmp_path, before=break_cancel) as node, RawClient(node) as client:
        calls = [
            ["session.create", ["a", "echo", {}]],
            ["session.cancel", ["a"]],
            ["session.create", ["b", "echo", {}]],
        ]
        assert client.write(*calls).codes == ["ok", "internal_error", "ok"]
        assert client.read(*(["session.get", [s]] for s in ("a", "half", "b"))).codes == [
            "ok", "session_not_found", "ok"]
        assert "a bug of ours" in node.log()
        assert client.read(["feed.head", []]).value["pos"] == 2


def test_a_zombie_cannot_write(node: MiniNode, client: RawClient) -> None:
    """If another incarnation took the lease, then the older one's transactions are refused."""
    client.write(["route.set", [KEY, ROUTE]])
    node.kill_partition()
    path = node.folder / "partition-0.db"
    zombie = Store(path)
    zombie.acquire(boot_id="b", offset_ms=0)
    zombie.connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'epoch'")
    with pytest.raises(StoreError) as refused:
        zombie.probe()
    assert refused.value.code == "stale_epoch"
    zombie.close()


def test_a_second_process_cannot_open_the_file(node: MiniNode) -> None:
    """If a partition serves, then its file is locked for everybody else."""
    with (
        closing(sqlite3.connect(node.folder / "partition-0.db", timeout=0.05)) as other,
        pytest.raises(sqlite3.OperationalError, match="locked"),
    ):
        other.execute("SELECT * FROM meta")


def test_a_run_survives_kill_9_of_its_partition(node: MiniNode, client: RawClient) -> None:
    """If the partition dies while a run executes, then the run goes on and ends once, and who waits is
    answered."""
    run_id = run_id_for("s", "0" * 29)
    with FakeRunner(node) as runner:
        assert client.write(
            ["session.start", ["s", "echo", {}]], ["run.submit", [run_id, "s", "hi"]]
        ).codes == ["ok", "ok"]
        assert runner.wait_for("run")[1:3] == [run_id, 1]
        runner.batch(run_id, 1, 1, [TYPE_CODE["run_started"]], None)
        seen = client.take(client.wait("session.wait", "s", {"type": "run_started"}))
        assert seen.value[0][0]["run_id"] == run_id
        node.kill_partition()
        node.start_partition()
        known = runner.wait_for("known")
        assert known[1] == [[run_id, 1]]
        waiting = client.wait("run.wait", run_id)
        for _ in range(3):  # a repeated batch is stored once
            runner.batch(run_id, 1, 2, [TYPE_CODE["run_completed"]], COMPLETED)
        assert client.take(waiting).value["status"] == "completed"
        events, _ = client.read(["session.events", ["s", None]]).value
        assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
        assert [e["type"] for e in events].count("run_completed") == 1


def test_a_polite_stop_ends_live_sessions_and_leaves_a_clean_file(node: MiniNode, client: RawClient) -> None:
    """If the node stops, then each live session has one stopped (shutdown), and guesses are on the disk."""
    with FakeRunner(node):
        client.write(["session.start", ["s", "echo", {}]])
        client.read(["route.resolve", ["tg:b:other", [ROUTE]]])
        assert node.children["partition-0"].stop() == 0
    db = sqlite3.connect(node.folder / "partition-0.db")
    said = [wire.unpack(payload)["reason"] for (row,) in db.execute("SELECT payload FROM lifecycle")
            for _, topic, payload in unpacked(row) if topic == "lifecycle.stopped.s"]
    assert said == ["shutdown"]
    db.close()
    assert stored_routes(node.folder / "partition-0.db") == ["tg:b:other"]


def stored_routes(path: Path) -> list[str]:
    """The keys of all routes of a file."""
    store = Store(path)
    with closing(store.connection):
        return [row[0] for row in store.routes("", 9_999)]


def test_a_backup_is_whole_and_a_second_one_into_the_same_folder_is_refused(
    client: RawClient, tmp_path: Path
) -> None:
    """If a running partition is backed up, then the copy opens and holds what was acknowledged."""
    client.write(*(["route.set", [f"tg:b:r{n}", ROUTE]] for n in range(500)))
    folder = str(tmp_path / "copy")
    path = client.write(["partition.backup", [folder]]).value
    copy = sqlite3.connect(path)
    assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    copy.close()
    assert len(stored_routes(Path(path))) == 500
    assert client.write(["partition.backup", [folder]]).codes == ["already_exists"]
    assert client.write(["partition.backup", ["relative"]]).codes == ["validation_error"]
    assert client.write(["partition.backup", ["/proc/no/such"]]).codes[0] != "ok"


def test_a_reply_larger_than_a_frame_is_refused_call_by_call(client: RawClient) -> None:
    """If the answers of one payload would not fit into a frame, then those that do come, the link lives."""
    big = {"external_room_id": "x", "text": "y" * 60_000}
    client.write(*(["route.set", [f"tg:b:r{n}", big]] for n in range(100)))
    answer = client.read(*(["route.get_many", [[f"tg:b:r{n}" for n in range(100)]]] for _ in range(4)))
    assert answer.codes == ["ok", "ok", "limit_exceeded", "limit_exceeded"]
    assert client.read(["feed.head", []]).codes == ["ok"]


def test_a_client_that_claims_to_be_an_actor_is_refused(node: MiniNode) -> None:
    """If a client's id begins like those of our own actors, then it is refused at the door."""
    with RawClient(node, wire.actor_id(b"R", 0, 5)) as client:
        assert client.read(["feed.head", []]).codes == ["protocol_error"]


def test_routes_are_there_at_once_after_a_restart(node: MiniNode, client: RawClient) -> None:
    """If a partition with many routes restarts, then each is found while the others still load."""
    for start in range(0, 8_000, 2_000):
        client.write(["route.set_many", [[[f"tg:b:r{n}", ROUTE] for n in range(start, start + 2_000)]]])
    node.kill_partition()
    node.start_partition()
    assert client.read(["route.get", ["tg:b:r7999"]], ["route.get", ["tg:b:r0"]]).codes == ["ok", "ok"]
    assert set(client.read(["route.get_many", [[f"tg:b:r{n}" for n in range(4_000)]]]).codes) == {"ok"}
