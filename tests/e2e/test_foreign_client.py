"""A client written from the README alone: nothing of mesh is used but the node."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
import xxhash
import zmq

import mesh

HEADER = struct.Struct(">2sBBBBHIIQQQ")
READ, WRITE, WAIT, HELLO, PING, REPLY = 1, 2, 3, 4, 7, 16
REFUSED, AGAIN = 2, 8
Answer = tuple[tuple[Any, ...], Any]


class Foreign:
    """One DEALER, one frame each way."""

    def __init__(self, address: str) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.ROUTING_ID, b"\x01" + os.urandom(15))
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(address)
        self.request_id = 0
        self.numbers: dict[int, int] = {}
        self.slots: bytes = self.ask(HELLO)[1]["slots"]

    def close(self) -> None:
        self.context.destroy(linger=0)

    def ask(self, kind: int, slot: int = 0, calls: Any = None, number: int = 0) -> Answer:
        while True:
            fields, body = self.send(kind, slot, calls, number)
            if not fields[3] & AGAIN:
                return fields, body
            time.sleep(0.02)  # as the protocol says: the same bytes again after a short pause

    def send(self, kind: int, slot: int, calls: Any, number: int) -> Answer:
        self.request_id += 1
        header = HEADER.pack(b"MH", 1, kind, 0, 0, slot, 0, 10_000, self.request_id, number, number)
        self.socket.send(header + (b"" if calls is None else msgpack.packb(calls)))
        assert self.socket.poll(15_000), "no answer"
        frame = self.socket.recv()
        fields = HEADER.unpack_from(frame)
        assert fields[:2] == (b"MH", 1) and fields[2] == REPLY and fields[8] == self.request_id
        return fields, msgpack.unpackb(frame[HEADER.size :])

    def write(self, slot: int, *calls: Any) -> Any:
        partition = self.slots[slot]
        self.numbers[partition] = self.numbers.get(partition, 0) + 1
        return self.ask(WRITE, slot, calls, self.numbers[partition])[1]


def slot_of(scope: str) -> int:
    return xxhash.xxh3_64_intdigest(scope.encode()) % 4096


@pytest.fixture
def foreign(node: mesh.LocalNode) -> Iterator[Foreign]:
    """A foreign client of the node."""
    opened = Foreign(node.address)
    for slot in (0, 1):  # a slot of each partition: both are there
        opened.ask(READ, slot, [["feed.head", []]])
    yield opened
    opened.close()


def test_routes_of_a_foreign_client_are_read_by_the_sdk(foreign: Foreign, client: mesh.Client) -> None:
    """If another language follows the README, then it and the SDK agree on slots, keys and bodies."""
    text = "matrix:bot:!room%3Asrv"
    slot = slot_of("r:" + text)
    assert foreign.write(slot, ["route.set", [text, {"external_room_id": "1"}]]) == [[0, None]]
    key = mesh.SessionKey("matrix", "bot", "!room:srv")
    assert client.routes.get(key).route == {"external_room_id": "1"}
    [status, value], missing = foreign.ask(READ, slot, [["route.get", [text]], ["route.get", ["a:b:c"]]])[1]
    assert status == 0 and value[0] == {"external_room_id": "1"} and value[3] == "learned"
    assert missing[0] == 1 and missing[1]["code"] == "not_found"
    both = [["route.get_many", [[text, text + ":no"]]]]
    [[_, (now_ms, records, errors)]] = foreign.ask(READ, slot, both)[1]
    updated_ms, expires_ms, guessed = struct.unpack_from(">qqB", records[0])
    assert 0 <= now_ms - updated_ms < 60_000 and expires_ms > now_ms and not guessed & 1
    assert msgpack.unpackb(records[0][29:]) == {"external_room_id": "1"} and records[1] is None
    assert [(place, error["code"]) for place, error in errors] == [(1, "not_found")]
    thread = foreign.ask(READ, slot, [["route.resolve", [text + ":t1", []]]])[1]
    assert thread[0][1][2:] == ["partition_fallback", True, False, "thread_scope_miss"]


def test_repeated_number_is_answered_from_its_receipt(foreign: Foreign) -> None:
    """If a numbered payload is sent twice, then its effect is one and its answer the same."""
    slot = slot_of("s:foreign")
    calls = [["session.create", ["foreign", "echo", None]]]
    first = foreign.ask(WRITE, slot, calls, 1)[1]
    assert first[0][0] == 0
    assert foreign.ask(WRITE, slot, calls, 1)[1] == first
    assert foreign.ask(WRITE, slot, calls, 2)[1][0][1]["code"] == "already_exists"


def test_run_once_and_wait_by_hand(foreign: Foreign) -> None:
    """If a foreign client mints its ids by the rules, then a run executes and its log reads as promised."""
    slot = slot_of("s:byhand")
    run_id = f"run_{slot:03x}{os.urandom(15).hex()[:29]}"
    accepted = foreign.write(slot, ["run.once", [run_id, "byhand", "echo", "hi", None, None]])
    assert accepted[0] == [0, run_id]
    done = foreign.ask(WAIT, slot, [["run.wait", [run_id]]])[1][0][1]
    assert (done["status"], done["output"]["content"]) == ("completed", "hi")
    events, complete = foreign.ask(READ, slot, [["session.events", ["byhand", {"after": 2}]]])[1][0][1]
    assert complete and [event["seq"] for event in events] == list(range(3, 3 + len(events)))


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"", "protocol_error"),
        (b"GET / HTTP/1.1\r\n" * 4, "protocol_error"),
        (HEADER.pack(b"MH", 9, READ, 0, 0, 0, 0, 1000, 1, 0, 0), "protocol_error"),
        (HEADER.pack(b"MH", 1, 99, 0, 0, 0, 0, 1000, 1, 0, 0), "protocol_error"),
        (HEADER.pack(b"MH", 1, READ, 0, 0, 5000, 0, 1000, 1, 0, 0), "protocol_error"),
        (HEADER.pack(b"MH", 1, READ, 0, 0, 1, 0, 9000, 1, 0, 0) + b"\xc1", "protocol_error"),
        (HEADER.pack(b"MH", 1, READ, 0, 0, 1, 0, 9000, 1, 0, 0) + b"\x91" * 5000, "protocol_error"),
        (HEADER.pack(b"MH", 1, WRITE, 0, 0, 1, 0, 9000, 1, 7, 1) + b"\x90", "client_expired"),
    ],
)
def test_garbage_gets_a_typed_refusal_and_the_node_goes_on(foreign: Foreign, frame: bytes, code: str) -> None:
    """If a frame breaks the protocol, then it is refused with a code, and the next call works."""
    foreign.socket.send(frame)
    assert foreign.socket.poll(15_000), "no refusal"
    answer = foreign.socket.recv()
    assert HEADER.unpack_from(answer)[3] & REFUSED
    assert msgpack.unpackb(answer[HEADER.size :])["code"] == code
    assert foreign.ask(PING)[1] is None
