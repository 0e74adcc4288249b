"""The pure protocol core: time is a number, the network is a list."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from mesh.client._lanes import HOLD_S
from mesh.client._payload import LOCAL_ERROR, PAYLOAD_CALLS, STALE, Numbering, split
from mesh.client._protocol import HELLO, READ, STATUS, WAIT, WRITE, Protocol
from mesh.core import wire
from mesh.core.slots import SLOT_COUNT, even_map
from mesh.core.wire import Flag, Header, Kind
from mesh.errors import (
    ClientExpired,
    InvalidArgument,
    MeshError,
    Overloaded,
    RequestError,
    Unavailable,
    from_wire,
)

GET = ("session.get", ("a:b:c",))
SET = ("route.set", ("a:b:c", {"external_room_id": "1"}))
BOOT = 7


class Wire:
    """A protocol core with the node's side of the wire in the test's hands."""

    def __init__(self, timeout_s: float = 5.0) -> None:
        serial = count(1)
        self.core = Protocol(lambda: bytes([next(serial)]) * 16, "tcp://test:1", timeout_s)
        self.now_s = 100.0
        self.done: dict[Any, Any] = {}
        self.boot = BOOT
        self.map_version = 1

    def flush(self) -> list[tuple[bytes, Header, list[Any]]]:
        """End the turn; returns what was sent: (client id, header, calls)."""
        self._finish(self.core.flush(self.now_s))
        return self.sent()

    def sent(self) -> list[tuple[bytes, Header, list[Any]]]:
        frames = []
        while (outgoing := self.core.next_frame(self.now_s)) is not None:
            client_id, frame = outgoing
            self.core.sent()
            body = frame[wire.HEADER_BYTES :]
            frames.append((client_id, wire.decode_header(frame), wire.decode_calls(body) if body else []))
        return frames

    def pass_s(self, seconds: float) -> list[tuple[bytes, Header, list[Any]]]:
        """Let time pass, waking the core at each of its moments; returns all that was sent."""
        until_s, frames = self.now_s + seconds, []
        while self.core.due_s <= until_s:
            self.now_s = max(self.now_s, self.core.due_s)
            self._finish(self.core.tick(self.now_s))
            frames += self.sent()
        self.now_s = until_s
        return frames

    def receive(self, frame: bytes) -> None:
        self._finish(self.core.on_frame(frame, self.now_s))

    def reply(self, header: Header, value: Any, *, flags: int = 0, epoch: int = 1) -> None:
        """The node answers a request."""
        self.receive(
            wire.encode_header(
                Kind.REPLY,
                flags=flags,
                answers=header.kind,
                address=header.address,
                map_version=self.map_version,
                request_id=header.request_id,
                number=self.boot,
                done_below=epoch,
            )
            + (wire.pack(value) if value is not None else b"")
        )

    def refuse(self, header: Header, error: MeshError, flags: int = 0) -> None:
        self.reply(header, error.to_wire(), flags=Flag.REFUSED | flags, epoch=0)

    def gone(self, partition: int, epoch: int) -> None:
        self.receive(wire.encode_header(Kind.GONE, address=partition, number=self.boot, done_below=epoch))

    def hello(self, frames: list[Any], slot_map: bytes | None = None) -> list[Any]:
        """Answer the HELLO among the frames; returns what that lets out."""
        header = next(h for _, h, _ in frames if h.kind == HELLO)
        slots = even_map(2) if slot_map is None else slot_map
        facts = {"boot": self.boot, "map_version": self.map_version, "slots": slots, "partitions": 2}
        self.reply(header, facts, epoch=0)
        return self.sent()

    def add(
        self,
        call: Any = GET,
        token: Any = "t",
        *,
        kind: int = READ,
        slot: int = 0,
        limit: float | None = None,
    ):
        self.core.add(kind, slot, call, token, limit)

    def _finish(self, completions: Any) -> None:
        for tokens, pairs in completions:
            self.done.update(zip(tokens, pairs, strict=False))

    def code(self, token: Any = "t") -> str:
        status, value = self.done[token]
        assert status in (1, LOCAL_ERROR)
        return value["code"] if status == 1 else value.code


@pytest.fixture
def fresh() -> Wire:
    return Wire()


@pytest.fixture
def ready() -> Wire:
    """A core that has said HELLO."""
    made = Wire()
    made.core.add_control(HELLO, 0, "hello", None)
    made.hello(made.flush())
    return made


# --- hello ---


def test_first_call_waits_for_hello_and_then_leaves(fresh: Wire) -> None:
    """If the map is unknown, then HELLO goes first and the call follows its answer."""
    fresh.add()
    frames = fresh.flush()
    assert [h.kind for _, h, _ in frames] == [HELLO]
    [(_, header, calls)] = fresh.hello(frames)
    assert header.kind == READ and header.flags == Flag.PARTITION and header.map_version == 1
    assert calls == [["session.get", ["a:b:c"]]]


def test_hello_is_repeated_until_somebody_answers(fresh: Wire) -> None:
    """If nobody answers HELLO, then it is sent every 50 ms while a call waits."""
    fresh.add(limit=1.0)
    fresh.flush()
    assert 15 <= len(fresh.pass_s(0.99)) <= 20


def test_no_answer_to_hello_is_node_unreachable(fresh: Wire) -> None:
    """If nobody ever answers, then the call fails naming the address and what to do, and HELLO ends."""
    fresh.add(limit=1.0)
    fresh.flush()
    fresh.pass_s(1.1)
    status, error = fresh.done["t"]
    assert status == 1 and error["code"] == "node_unreachable"
    assert "tcp://test:1" in error["message"] and "mesh up" in error["message"]
    assert fresh.pass_s(10) == []


def test_peer_of_another_version_is_named(fresh: Wire) -> None:
    """If the peer speaks another version, then the waiting calls say so."""
    fresh.add()
    fresh.flush()
    fresh.receive(b"MH\x02" + bytes(60))
    assert fresh.code() == "protocol_error"
    assert "version 2" in fresh.done["t"][1]["message"]


@pytest.mark.parametrize("frame", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(30), b"MH\x01"])
def test_peer_that_is_no_mesh_is_a_protocol_error(fresh: Wire, frame: bytes) -> None:
    """If the peer answers something else, then the error is protocol_error, not a timeout."""
    fresh.add()
    fresh.flush()
    fresh.receive(frame)
    assert fresh.code() == "protocol_error"


def test_hello_without_a_map_is_a_protocol_error(fresh: Wire) -> None:
    """If HELLO's answer holds no map, then the waiting call fails."""
    fresh.add()
    [(_, header, _)] = fresh.flush()
    fresh.reply(header, {"boot": 1})
    assert fresh.code() == "protocol_error"


# --- coalescing ---


def test_calls_of_one_turn_travel_together(ready: Wire) -> None:
    """If calls of one turn have kind, partition and limit in common, then they are one payload."""
    for n in range(5):
        ready.add(token=n)
    [(_, header, calls)] = ready.flush()
    assert len(calls) == 5
    ready.reply(header, [[0, n] for n in range(5)])
    assert ready.done == {"hello": ready.done["hello"], **{n: [0, n] for n in range(5)}}


def test_other_partition_kind_or_limit_is_another_payload(ready: Wire) -> None:
    """If partition, kind or limit differ, then the calls travel apart, in order of the first of each."""
    ready.add(slot=0)
    ready.add(slot=1)
    ready.add(SET, kind=WRITE)
    ready.add(limit=1.0)
    frames = ready.flush()
    assert [(h.kind, h.address, h.remaining_ms) for _, h, _ in frames] == [
        (READ, 0, 5000),
        (READ, 1, 5000),
        (WRITE, 0, 5000),
        (READ, 0, 1000),
    ]


def test_waiting_reads_of_one_turn_share_a_payload_and_are_answered_one_by_one(ready: Wire) -> None:
    """If several waiting reads travel together, then each is completed once, by the reply that names its
    place, and the payload stays open until the last one is."""
    for n in range(3):
        ready.add(("run.wait", (f"r{n}",)), n, kind=WAIT)
    [(_, header, calls)] = ready.flush()
    assert [args for _, args in calls] == [["r0"], ["r1"], ["r2"]]
    ready.done.clear()
    ready.reply(header, [[2, 1, {"code": "run_not_found", "message": "", "details": {}}]], flags=Flag.MORE)
    assert ready.code(2) == "run_not_found" and list(ready.done) == [2]
    ready.reply(header, [[2, 0, None], [0, 0, None]], flags=Flag.MORE)
    assert ready.code(2) == "run_not_found" and list(ready.done) == [2, 0]
    ready.gone(0, 1)
    [(_, again, calls)] = ready.sent()
    assert again.request_id == header.request_id and len(calls) == 3
    ready.done.clear()
    ready.reply(again, [[0, 0, None], [1, 0, None]], epoch=2)
    ready.reply(again, [[1, 0, None]], epoch=2)
    assert list(ready.done) == [1] and ready.core.stray == 1


def test_waiting_reads_that_are_left_end_with_their_time_limit(ready: Wire) -> None:
    """If some of several waiting reads are answered, then only the others are given up at the limit."""
    for n in range(3):
        ready.add(("run.wait", (f"r{n}",)), n, kind=WAIT, limit=4.0)
    [(_, header, _)] = ready.flush()
    ready.reply(header, [[1, 0, None]], flags=Flag.MORE)
    ready.done.pop(1)
    ready.pass_s(5.0)
    assert 1 not in ready.done and ready.code(0) == ready.code(2) == "timeout"


def test_waiting_reads_that_are_left_move_with_the_placement_map(ready: Wire) -> None:
    """If the map turns out to be stale after some answers, then only the others are placed anew."""
    for n in range(3):
        ready.add(("run.wait", (f"r{n}",)), n, kind=WAIT, limit=20.0)
    [(_, header, _)] = ready.flush()
    ready.reply(header, [[1, 0, None]], flags=Flag.MORE)
    ready.map_version = 2
    ready.refuse(header, RequestError("old", code="invalid_argument"), Flag.STALE_MAP | Flag.AGAIN)
    [(_, _, calls)] = [frame for frame in ready.hello(ready.sent()) if frame[1].kind == WAIT]
    assert [args for _, args in calls] == [["r0"], ["r2"]]


def test_a_payload_holds_a_bounded_number_of_calls(ready: Wire) -> None:
    """If more calls are issued than a payload may hold, then they are split and none is lost."""
    for n in range(10_000):
        ready.add(token=n)
    sizes = [len(calls) for _, _, calls in ready.flush()]
    assert sum(sizes) == 10_000 and max(sizes) <= PAYLOAD_CALLS


def test_large_calls_are_split_by_bytes() -> None:
    """If calls are large, then bodies stay near the bound, decode, and keep the order."""
    calls = [("x", (n, b"y" * 2000)) for n in range(2000)]
    bodies, bad = split(calls, wire.FRAME_BYTES_MAX)
    assert bad == [] and len(bodies) >= 3
    assert [c[1][0] for b in bodies for c in wire.decode_calls(b.body)] == list(range(2000))
    assert [(b.first, b.end) for b in bodies] == list(
        zip([0, *(b.end for b in bodies[:-1])], [b.end for b in bodies], strict=True)
    )


def test_value_that_cannot_travel_fails_its_own_call_alone(ready: Wire) -> None:
    """If one of several calls holds what msgpack has not, then only that one fails, here."""
    ready.add(token="good1")
    ready.add(("route.set", ("k", {"external_room_id": object()})), "bad")
    ready.add(token="good2")
    sent = [call for _, _, calls in ready.flush() for call in calls]
    assert sent == [["session.get", ["a:b:c"]]] * 2
    assert set(ready.done) == {"hello", "bad"}
    assert isinstance(ready.done["bad"][1], InvalidArgument)
    assert ready.done["bad"][1].code == "validation_error"


def test_call_over_the_frame_limit_is_limit_exceeded() -> None:
    """If one call is larger than a frame may be, then it is refused here and nothing is sent of it."""
    bodies, bad = split([GET, ("x", (b"y" * 5000,))], 4096)
    assert [b.first for b in bodies] == [0]
    assert [(index, error.code) for index, error in bad] == [(1, "limit_exceeded")]


# --- replies ---


@pytest.mark.parametrize("value", [[], [[0, 1], [0, 2]], "text", {"a": 1}, [[0]], [0]])
def test_reply_of_a_wrong_shape_is_a_protocol_error(ready: Wire, value: Any) -> None:
    """If a reply does not answer each call, then the calls fail instead of being mixed up."""
    ready.add()
    [(_, header, _)] = ready.flush()
    ready.reply(header, value)
    assert ready.code() == "protocol_error"


def test_truncated_reply_is_a_protocol_error_for_its_calls(ready: Wire) -> None:
    """If a reply's body is cut anywhere, then its calls fail with protocol_error."""
    ready.add()
    [(_, header, _)] = ready.flush()
    whole = wire.encode_header(
        Kind.REPLY, answers=READ, request_id=header.request_id, number=BOOT
    ) + wire.pack([[0, {"key": "value"}]])
    ready.receive(whole[:-3])
    assert ready.code() == "protocol_error"


def test_garbage_after_hello_is_counted_and_harms_nobody(ready: Wire) -> None:
    """If a bad frame comes in between, then open calls go on and it is counted."""
    ready.add()
    [(_, header, _)] = ready.flush()
    ready.receive(b"rubbish")
    assert "t" not in ready.done and ready.core.stray == 1
    ready.reply(header, [[0, 1]])
    assert ready.done["t"] == [0, 1]


@pytest.mark.parametrize("value", [[[1, 5]], [[1, None]], [[1, {"details": 5}]], [[1, {}]], [[1, "x"]]])
def test_part_of_an_answer_with_a_strange_error_is_an_answer(ready: Wire, value: Any) -> None:
    """If a reply says that there is more and its error has another form, then the call has its answer."""
    ready.add()
    [(_, header, _)] = ready.flush()
    ready.reply(header, value, flags=Flag.MORE)
    assert ready.done["t"] == value[0]


def test_part_of_an_answer_of_the_router_is_its_answer(ready: Wire) -> None:
    """If a reply to what has no calls says that there is more, then it is taken as the answer."""
    ready.core.add_control(STATUS, 0, "t", None)
    [(_, header, _)] = ready.flush()
    ready.reply(header, {"name": "n"}, flags=Flag.MORE)
    assert tuple(ready.done["t"]) == (0, {"name": "n"})


def test_second_reply_to_the_same_request_is_dropped(ready: Wire) -> None:
    """If a request is answered twice, then the second answer changes nothing."""
    ready.add()
    [(_, header, _)] = ready.flush()
    ready.reply(header, [[0, 1]])
    ready.reply(header, [[0, 2]])
    assert ready.done["t"] == [0, 1] and ready.core.stray == 1


# --- numbers ---


def write(w: Wire, token: Any = "t", **more: Any) -> tuple[bytes, Header]:
    w.now_s += 2 * HOLD_S  # or it would gather behind the one before
    w.add(SET, token, kind=WRITE, **more)
    [(client, header, _)] = w.flush()
    return client, header


def test_writes_are_numbered_from_one_per_partition(ready: Wire) -> None:
    """If writes go to two partitions, then each has its own numbers from 1; reads have none."""
    assert [write(ready, slot=s)[1].number for s in (0, 0, 1)] == [1, 2, 1]
    ready.add()
    assert ready.flush()[0][1].number == 0


def test_done_below_is_the_lowest_open_number(ready: Wire) -> None:
    """If a middle number is answered first, then done_below waits for the lowest."""
    headers = [write(ready, n)[1] for n in range(3)]
    assert [h.done_below for h in headers] == [1, 1, 1]
    ready.reply(headers[1], [[0, None]])
    assert write(ready, "next")[1].done_below == 1
    ready.reply(headers[0], [[0, None]])
    assert write(ready, "last")[1].done_below == 3


def test_write_that_was_given_up_is_settled(ready: Wire) -> None:
    """If a write's limit passes, then its number is below done_below of the next: it can never land later."""
    write(ready, limit=0.5)
    ready.pass_s(0.6)
    assert ready.code() == "timeout"
    assert write(ready, "next")[1].done_below == 2


def test_number_refused_for_sure_is_used_again(ready: Wire) -> None:
    """If every frame of a write was refused with AGAIN until its limit, then its number is used again."""
    _, header = write(ready, limit=0.05)
    ready.refuse(header, Unavailable(), Flag.AGAIN)
    for _, again, _ in ready.pass_s(0.04):
        ready.refuse(again, Unavailable(), Flag.AGAIN)
    ready.pass_s(0.1)
    assert ready.code() == "timeout"
    assert write(ready, "next")[1].number == 1


def test_number_that_may_have_landed_is_never_used_again(ready: Wire) -> None:
    """If one frame of a write may have been executed, then a later refusal does not free its number."""
    _, header = write(ready, limit=0.05)
    ready.gone(0, 1)
    for _, again, _ in ready.sent():
        ready.refuse(again, Unavailable(), Flag.AGAIN)
    ready.pass_s(0.1)
    _, following = write(ready, "next")
    assert (header.number, following.number, following.done_below) == (1, 2, 2)


def test_numbering_hands_out_released_numbers_first() -> None:
    """If a number is released, then it is next, and done_below does not pass it."""
    numbers = Numbering()
    assert [numbers.take() for _ in range(3)] == [1, 2, 3]
    numbers.settle(1)
    numbers.release(2)
    assert numbers.done_below() == 2
    assert numbers.take() == 2
    numbers.settle(2)
    numbers.settle(3)
    assert numbers.done_below() == 4


# --- resending ---


def test_router_with_another_boot_id_gets_what_is_open_again(ready: Wire) -> None:
    """If a reply carries another boot id, then open payloads leave again, same ids and numbers, and HELLO."""
    _, first = write(ready, "w")
    ready.add(token="r")
    [(_, read, _)] = ready.flush()
    ready.boot = 8
    ready.reply(read, [[0, 1]])
    again = ready.sent()
    assert sorted(h.kind for _, h, _ in again) == [WRITE, HELLO]
    resent = next(h for _, h, _ in again if h.kind == WRITE)
    assert (resent.request_id, resent.number) == (first.request_id, first.number)
    ready.reply(resent, [[0, None]])
    assert ready.done["w"] == [0, None]


def test_same_boot_id_resends_nothing(ready: Wire) -> None:
    """If replies carry the known boot id, then nothing is sent again."""
    write(ready, "w")
    ready.add(token="r")
    [(_, read, _)] = ready.flush()
    ready.reply(read, [[0, 1]])
    assert ready.sent() == []


def test_gone_resends_what_was_sent_to_that_epoch(ready: Wire) -> None:
    """If a partition is gone, then its open payloads leave again once, those of others do not."""
    _, first = write(ready, "a")
    write(ready, "b", slot=1)
    ready.gone(0, 1)
    [(_, again, _)] = ready.sent()
    assert (again.request_id, again.number) == (first.request_id, first.number)
    ready.gone(1, 0)
    ready.gone(0, 1)
    assert len(ready.sent()) <= 2


def test_gone_of_an_older_epoch_than_seen_resends_nothing(ready: Wire) -> None:
    """If GONE names an epoch below the one that answered since, then it is old news."""
    _, header = write(ready, "a")
    ready.reply(header, [[0, None]], epoch=5)
    write(ready, "b")
    ready.gone(0, 4)
    assert ready.sent() == []


def test_higher_epoch_in_a_reply_resends_what_the_old_one_had(ready: Wire) -> None:
    """If GONE was lost, then the first reply of the new epoch has the same effect."""
    _, header = write(ready, "a")
    ready.reply(header, [[0, None]], epoch=5)
    _, lost = write(ready, "b")
    _, new = write(ready, "c")
    ready.reply(new, [[0, None]], epoch=6)
    assert [h.request_id for _, h, _ in ready.sent()] == [lost.request_id]


def test_again_is_repeated_with_growing_pauses_until_the_limit(ready: Wire) -> None:
    """If a partition is restarting, then the payload is repeated 20 to 200 ms apart, same number."""
    _, header = write(ready, limit=2.0)
    numbers, started_s = [], ready.now_s
    while "t" not in ready.done:
        ready.refuse(header, Unavailable("partition 0 is restarting"), Flag.AGAIN)
        for _, header, _ in ready.pass_s(0.2):
            numbers.append(header.number)
    assert set(numbers) == {1} and 9 <= len(numbers) <= 30
    status, error = ready.done["t"]
    assert (status, error["code"], error["details"]["last_refusal"]) == (
        1,
        "timeout",
        "partition_unavailable",
    )
    assert ready.now_s - started_s == pytest.approx(2.0, abs=0.21)


def test_partition_that_is_down_is_an_answer_at_once(ready: Wire) -> None:
    """If a partition is refused without AGAIN, then the caller hears it at once."""
    _, header = write(ready)
    ready.refuse(header, Unavailable("partition 0 is down", details={"down": True}))
    assert ready.code() == "partition_unavailable"


def test_overloaded_is_repeated_after_its_own_pause(ready: Wire) -> None:
    """If a bound was reached, then the payload leaves again after retry_after_ms, not before."""
    ready.add()
    [(_, header, _)] = ready.flush()
    ready.refuse(header, Overloaded(details={"retry_after_ms": 100}), Flag.AGAIN)
    assert ready.pass_s(0.09) == []
    [(_, again, _)] = ready.pass_s(0.02)
    ready.reply(again, [[0, 1]])
    assert ready.done["t"] == [0, 1]


def test_overloaded_is_raised_when_no_time_is_left(ready: Wire) -> None:
    """If the pause would pass the limit, then the caller gets overloaded with its details."""
    ready.add(limit=0.05)
    [(_, header, _)] = ready.flush()
    ready.refuse(header, Overloaded(details={"retry_after_ms": 100}), Flag.AGAIN)
    assert ready.code() == "overloaded"
    assert ready.done["t"][1]["details"]["retry_after_ms"] == 100


def test_thousands_of_silent_payloads_are_not_looked_at_thousands_of_times(
    ready: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a frozen partition leaves thousands of payloads open, each due at a moment of its own, then few
    ticks serve them all: the calls to other partitions need the time."""
    looks: list[float] = []
    look = ready.core._tick_open
    monkeypatch.setattr(ready.core, "_tick_open", lambda now, done: (looks.append(now), look(now, done)))
    for n in range(2_000):
        ready.core.add(READ, 0, GET, n, 30.0 + n)  # a limit of its own: it does not gather with the others
        assert len(ready.flush()) == 1
        ready.now_s += 0.0005
    sent = ready.pass_s(2.5)
    assert len(looks) < 200
    assert sum(header.kind == Kind.READ for _, header, _ in sent) == 2_000


def test_silence_is_answered_by_a_ping_and_then_resends(ready: Wire) -> None:
    """If a request stays silent, then a PING goes at 1 s and the request again at 2, 4, 8 s: no storm."""
    ready.add(limit=20.0)
    [(_, header, _)] = ready.flush()
    frames = ready.pass_s(15.9)
    kinds = [h.kind for _, h, _ in frames]
    assert kinds == [Kind.PING, READ, READ, READ]
    assert {h.request_id for _, h, _ in frames if h.kind == READ} == {header.request_id}


def test_parked_read_is_not_resent_but_asks_for_the_router(ready: Wire) -> None:
    """If a waiting read is silent, then only PINGs leave; a new boot id sends it again."""
    ready.add(("run.wait", ("r",)), kind=WAIT, limit=30.0)
    ready.flush()
    frames = ready.pass_s(10)
    assert {h.kind for _, h, _ in frames} == {int(Kind.PING)} and len(frames) <= 5
    ready.boot = 9
    ready.reply(frames[-1][1], None)
    assert sorted(h.kind for _, h, _ in ready.sent()) == [WAIT, HELLO]


def test_reconnected_link_asks_for_the_boot_id_when_something_is_open(ready: Wire) -> None:
    """If the link comes back, then HELLO asks whether it is the same router; an idle client is silent."""
    ready.core.reconnected(ready.now_s)
    assert ready.sent() == []
    ready.add()
    ready.flush()
    ready.core.reconnected(ready.now_s)
    assert [h.kind for _, h, _ in ready.sent()] == [HELLO]


def test_idle_core_sleeps(ready: Wire) -> None:
    """If nothing is open, then there is nothing to wake up for, also after a router's restart."""
    ready.add()
    [(_, header, _)] = ready.flush()
    ready.boot = 8
    ready.reply(header, [[0, 1]])
    ready.sent()
    ready.pass_s(10)
    assert ready.core.due_s == float("inf")


# --- limits ---


def test_timeout_names_op_address_and_time(ready: Wire) -> None:
    """If nobody answers in time, then the error says which op, where, and how long it waited."""
    ready.add()
    ready.flush()
    ready.pass_s(5.1)
    status, error = ready.done["t"]
    assert (status, error["code"]) == (1, "timeout")
    assert all(part in error["message"] for part in ("session.get", "tcp://test:1", "5 s"))


def test_payload_that_never_left_is_node_unreachable(ready: Wire) -> None:
    """If the link took nothing of a call, then it surely did nothing: node_unreachable."""
    ready.add(limit=1.0)
    ready.core.flush(ready.now_s)
    assert ready.core.next_frame(ready.now_s) is not None
    ready.core.blocked(ready.now_s)
    ready.now_s += 1.1
    ready._finish(ready.core.tick(ready.now_s))
    assert ready.code() == "node_unreachable"


def test_remaining_time_shrinks_with_each_resend(ready: Wire) -> None:
    """If a payload is sent again, then its header carries what is left of the limit."""
    _, header = write(ready)
    ready.now_s += 2.0
    ready.gone(0, 1)
    [(_, again, _)] = ready.sent()
    assert (header.remaining_ms, again.remaining_ms) == (5000, 3000)


def test_close_ends_everything_that_waits(ready: Wire) -> None:
    """If the client is closed, then calls in every stage end with client_closed."""
    ready.add(token="open")
    ready.flush()
    ready.add(token="queued")
    ready.core.add_control(STATUS, 0, "control", None)
    ready._finish(ready.core.close())
    assert {ready.code(t) for t in ("open", "queued", "control")} == {"client_closed"}


# --- the map ---


def stale() -> MeshError:
    return RequestError("say HELLO again")


def test_stale_map_says_hello_and_places_the_calls_anew(ready: Wire) -> None:
    """If the map is stale, then HELLO goes first and each call goes to its slot's new partition."""
    ready.add(token="a", slot=0)
    ready.add(token="b", slot=2)
    [(_, header, _)] = ready.flush()
    ready.map_version = 2
    ready.refuse(header, stale(), Flag.STALE_MAP | Flag.AGAIN)
    ready.add(token="c", slot=0)
    moved = bytes([1]) + even_map(2)[1:]
    frames = ready.flush()
    placed = ready.hello(frames, moved)
    assert sorted((h.address, h.map_version, len(calls)) for _, h, calls in placed) == [(0, 2, 1), (1, 2, 2)]


def test_call_added_before_a_new_map_arrives_goes_where_that_map_says(ready: Wire) -> None:
    """If HELLO brings another map between a call and its flush, then the call is placed by that map."""
    ready.add(token="a", slot=0)
    [(_, header, _)] = ready.flush()
    ready.map_version = 2
    ready.refuse(header, stale(), Flag.STALE_MAP | Flag.AGAIN)
    moved = bytes([1]) + even_map(2)[1:]
    ready.hello(ready.flush(), moved)
    ready.map_version = 3
    ready.add(token="b", slot=0)
    ready.core.reconnected(ready.now_s)
    frames = ready.sent()
    placed = ready.hello(frames, even_map(2)) + ready.flush()
    assert [(h.address, h.map_version, len(calls)) for _, h, calls in placed] == [(0, 3, 1)]


def test_stale_write_gets_a_number_of_its_new_partition(ready: Wire) -> None:
    """If a write was surely not done, then it is numbered at its new home, and its old number is free."""
    write(ready, "w", slot=0)
    _, refused = write(ready, "x", slot=0)
    ready.map_version = 2
    ready.refuse(refused, stale(), Flag.STALE_MAP | Flag.AGAIN)
    [(_, placed, _)] = ready.hello(ready.flush(), bytes([1]) * SLOT_COUNT)
    assert (placed.address, placed.number) == (1, 1)


def test_stale_write_that_may_have_happened_keeps_number_and_partition(ready: Wire) -> None:
    """If a write was sent before to an epoch that died, then only its old partition has the receipt."""
    _, first = write(ready, "w")
    ready.gone(0, 1)
    [(_, again, _)] = ready.sent()
    ready.map_version = 2
    ready.refuse(again, stale(), Flag.STALE_MAP | Flag.AGAIN)
    ready.hello(ready.sent(), bytes([1]) * SLOT_COUNT)
    [(_, third, _)] = ready.pass_s(0.1)
    assert (third.address, third.number, third.request_id) == (0, first.number, first.request_id)
    assert third.flags == Flag.PARTITION | Flag.MOVED and third.map_version == 2
    anew = {"code": "invalid_argument", "message": "", "details": {"again": True}}
    ready.reply(third, [[1, anew]], flags=Flag.MORE)
    [(_, placed, _)] = ready.sent()
    assert (placed.address, placed.number, placed.flags) == (1, 1, Flag.PARTITION) and not ready.done.get("w")
    ready.reply(placed, [[0, None]])
    assert ready.done["w"] == [0, None]


def test_what_was_placed_by_an_older_map_is_never_sent_as_if_by_the_new_one(ready: Wire) -> None:
    """If HELLO brings another map while a write and a read are open, then both leave under the map of their
    partition, and behind its refusal the read is placed anew at once and the write is marked."""
    write(ready, "w")
    ready.add(GET, "r")
    ready.flush()
    ready.map_version, ready.boot = 2, BOOT + 1
    ready.core.reconnected(ready.now_s)
    again = ready.hello(ready.sent(), bytes([1]) * SLOT_COUNT)
    assert [(h.kind, h.address, h.map_version) for _, h, _ in again] == [(WRITE, 0, 1), (READ, 0, 1)]
    ready.refuse(again[1][1], stale(), Flag.STALE_MAP | Flag.AGAIN)
    assert [(h.kind, h.address, h.map_version) for _, h, _ in ready.sent()] == [(READ, 1, 2)]
    ready.refuse(again[0][1], stale(), Flag.STALE_MAP | Flag.AGAIN)
    assert [(h.kind, h.address, h.flags) for _, h, _ in ready.pass_s(0.1)] == [(WRITE, 0, 1 | Flag.MOVED)]


def test_call_on_many_slots_goes_back_to_its_plan(ready: Wire) -> None:
    """If the map is stale for a call on many keys, then its plan is told to place them anew."""
    ready.add(("route.get_many", (["a:b:c"],)), slot=~0)
    [(_, header, _)] = ready.flush()
    ready.refuse(header, stale(), Flag.STALE_MAP | Flag.AGAIN)
    assert ready.done["t"] is STALE


# --- identity ---


def test_expired_client_begins_anew_with_another_id(ready: Wire) -> None:
    """If the node forgot our numbers, then the refused write leaves again, as number 1 of a new client."""
    old, header = write(ready, "a")
    ready.reply(header, [[0, None]])
    _, expired = write(ready, "b")
    ready.refuse(expired, ClientExpired())
    [(new, again, _)] = ready.sent()
    assert new != old and (again.number, again.done_below) == (1, 1)
    ready.reply(again, [[0, None]])
    assert ready.done["b"] == [0, None]
    assert [identity.client_id for identity in ready.core.retired] == [old]


def test_open_writes_stay_with_the_identity_that_sent_them(ready: Wire) -> None:
    """If one partition forgot us, then what is open at another is resent under the old id and number."""
    old, elsewhere = write(ready, "a", slot=1)
    _, expired = write(ready, "b", slot=0)
    ready.refuse(expired, ClientExpired())
    ready.sent()
    assert ready.core.retired == []
    ready.gone(1, 1)
    [(client, again, _)] = ready.sent()
    assert (client, again.number) == (old, elsewhere.number)
    ready.reply(again, [[0, None]])
    assert len(ready.core.retired) == 1


def test_later_refusals_of_an_expired_write_do_not_renew_it_again(ready: Wire) -> None:
    """If several copies of a write are refused since the node forgot us, then it is renewed once: under one
    more identity it could happen twice."""
    _, expired = write(ready, "a")
    ready.refuse(expired, ClientExpired())
    [(_, anew, _)] = ready.sent()
    ready.refuse(expired, ClientExpired())
    assert ready.sent() == [] and anew.request_id != expired.request_id
    ready.reply(anew, [[0, None]])
    assert ready.done["a"] == [0, None]


def test_write_that_overtook_a_lost_one_is_repeated_under_its_number(ready: Wire) -> None:
    """If the node does not know us since our first write was lost, then the second keeps its number: a copy
    of it that is still under way would be executed as soon as the first one arrives."""
    client, first = write(ready, "a")
    _, second = write(ready, "b")
    ready.refuse(second, ClientExpired())
    assert ready.sent() == []
    [(same, again, _)] = ready.pass_s(0.1)
    assert (same, again.number, again.request_id) == (client, second.number, second.request_id)
    ready.reply(first, [[0, None]])
    ready.refuse(again, ClientExpired())  # nothing earlier is open any more: the node really forgot us
    [(new, anew, _)] = ready.sent()
    assert new != client and anew.number == 1


def test_client_that_is_always_expired_gives_up(ready: Wire) -> None:
    """If each new identity is refused too, then the caller gets client_expired instead of a loop."""
    _, header = write(ready)
    for _ in range(10):
        if "t" in ready.done:
            break
        ready.refuse(header, ClientExpired())
        for _, header, _ in ready.sent():
            pass
    assert ready.code() == "client_expired"


def test_error_of_each_caller_is_his_own() -> None:
    """If a whole payload fails, then the error maps build separate exceptions."""
    w = Wire()
    w.add(token="a", limit=1.0)
    w.add(token="b", limit=1.0)
    w.flush()
    w.pass_s(2)
    first, second = (from_wire(w.done[t][1]["code"]) for t in ("a", "b"))
    assert first is not second and first.code == second.code == "node_unreachable"
