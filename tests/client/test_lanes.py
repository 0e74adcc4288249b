"""Calls gather while earlier ones of their kind are on their way, and nobody waits long."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.client._lanes import HOLD_S, LIMITED_MAX, Lanes
from mesh.client._payload import PAYLOAD_CALLS
from mesh.client._protocol import READ, WAIT, WRITE, Protocol
from mesh.core import wire
from mesh.core.slots import even_map
from mesh.core.wire import Kind

SET = ("route.delete", ("a:b:c",))


class Wire:
    """A protocol core that has said HELLO, at a time that only moves by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.boot = 1
        self.done: dict[Any, Any] = {}
        self.core = Protocol(lambda: b"\1" * 16, "tcp://test:1", 5.0)
        self.core.add_control(Kind.HELLO, 0, "hello", None)
        [hello] = self.flush()
        facts = {"boot": 1, "map_version": 1, "slots": even_map(2), "partitions": 2}
        self.answer(hello, facts)

    def add(self, token: Any, kind: int = WRITE, limit: float | None = None) -> None:
        self.core.add(kind, 0, SET, token, limit)

    def flush(self) -> list[wire.Header]:
        self._finish(self.core.flush(self.now_s))
        return self.sent()

    def sent(self) -> list[wire.Header]:
        headers = []
        while (outgoing := self.core.next_frame(self.now_s)) is not None:
            headers.append(wire.decode_header(outgoing[1]))
            self.core.sent()
        return headers

    def answer(self, header: wire.Header, value: Any) -> None:
        head = wire.encode_header(
            Kind.REPLY, answers=header.kind, request_id=header.request_id, number=self.boot
        )
        self._finish(self.core.on_frame(head + wire.pack(value), self.now_s))

    def _finish(self, completions: Any) -> None:
        for tokens, pairs in completions:
            self.done.update(zip(tokens, pairs, strict=False))


@pytest.fixture
def node() -> Wire:
    return Wire()


def test_call_behind_an_open_one_leaves_with_its_answer(node: Wire) -> None:
    """If a payload is on its way, then the next calls gather, and leave as one when it is answered."""
    node.add("first")
    [first] = node.flush()
    node.add("second")
    assert node.flush() == []
    node.add("third")
    assert node.flush() == [] and node.core.gathering
    node.answer(first, [[0, True]])
    [both] = node.flush()
    assert both.number == 2 and not node.core.gathering
    node.answer(both, [[0, True], [0, False]])
    assert node.done.keys() == {"hello", "first", "second", "third"}


def test_write_behind_one_that_stays_open_leaves_after_the_hold(node: Wire) -> None:
    """If a payload stays open, then the next write leaves HOLD_S after it, by the timer alone."""
    node.add("first")
    node.flush()
    node.add("second")
    node.flush()
    assert node.core.due_s <= node.now_s + HOLD_S
    node.now_s += HOLD_S
    node._finish(node.core.tick(node.now_s))
    assert [header.number for header in node.sent()] == [2]


def test_gathered_calls_survive_a_new_map(node: Wire) -> None:
    """If the router says HELLO anew while calls gather, then they leave by the timer alone."""
    node.add("first")
    [first] = node.flush()
    node.add("second")
    node.flush()
    node.core.on_frame(
        wire.encode_header(Kind.REPLY, answers=Kind.PING, request_id=99, number=2), node.now_s
    )  # another boot id
    again, hello = node.sent()
    node.boot = 2
    assert (hello.kind, again.request_id) == (Kind.HELLO, first.request_id)
    facts = {"boot": 2, "map_version": 2, "slots": even_map(2), "partitions": 2}
    node.answer(hello, facts)
    assert node.core.due_s <= node.now_s
    node._finish(node.core.tick(node.now_s))
    assert [header.number for header in node.sent()] == [2]


def test_waits_are_never_held(node: Wire) -> None:
    """If waiting reads are on their way, then the next one leaves at once: they stay open by nature."""
    for token in range(3):
        node.add(token, WAIT)
        assert len(node.flush()) == 1


def test_read_does_not_wait_for_a_write(node: Wire) -> None:
    """If a write is on its way, then a read leaves at once."""
    node.add("write")
    node.flush()
    node.add("read", READ)
    assert [header.kind for header in node.flush()] == [READ]


def test_full_batch_does_not_wait(node: Wire) -> None:
    """If as many calls wait as a payload holds, then they leave at once."""
    node.add("first")
    node.flush()
    for token in range(PAYLOAD_CALLS):
        node.add(token)
    assert len(node.flush()) == 1


def test_time_limit_runs_from_the_first_flush(node: Wire) -> None:
    """If a write gathers, then its time limit has begun already."""
    node.add("first", limit=2.0)
    node.flush()
    node.add("second", limit=2.0)
    node.flush()
    node.now_s += HOLD_S
    [second] = node.flush()
    assert second.remaining_ms == int((2.0 - HOLD_S) * 1000)


def test_gathered_writes_end_with_the_client(node: Wire) -> None:
    """If the client is closed, then what gathers ends too, with client_closed."""
    node.add("first")
    node.flush()
    node.add("second")
    node.flush()
    node._finish(node.core.close())
    assert node.done["second"][1]["code"] == "client_closed"


def test_time_limits_that_are_remembered_are_bounded() -> None:
    """If callers use ever new time limits, then batches without calls are forgotten."""
    lanes = Lanes(even_map(2), 4)
    held = lanes.find(WRITE, 0, 1.5)
    held.calls.append(SET)
    for n in range(10 * LIMITED_MAX):
        lanes.find(WRITE, 0, 2.0 + n)
    assert len(lanes._limited) <= LIMITED_MAX and lanes.find(WRITE, 0, 1.5) is held
