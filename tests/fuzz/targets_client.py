"""Fuzz targets of the client: what a node, or something that is none, may send to it."""

from __future__ import annotations

from itertools import count
from typing import Any

from dice import Dice

from mesh.client._cursor import FeedCursor
from mesh.client._protocol import READ, STATUS, WAIT, WRITE, Protocol
from mesh.client._surface import encode_cursor, result_of
from mesh.client._surface_feed import decode_message
from mesh.core import wire
from mesh.core.slots import SLOT_COUNT, even_map
from mesh.core.wire import Kind
from mesh.errors import MeshError

BOOT = 7
HELLO = {"boot": BOOT, "map_version": 1, "slots": even_map(2), "partitions": 2}
_STATUSES = (0, 1, 2, 3, -1, None, [], "0", True)


class Conversation:
    """A protocol core whose node is made of dice. Every call must be completed exactly once."""

    def __init__(self, dice: Dice) -> None:
        serial = count(1)
        self.dice = dice
        self.core = Protocol(lambda: bytes([next(serial) % 255 + 1]) * 16, "tcp://test:1", 5.0)
        self.now_s = 100.0
        self.tokens = 0
        self.open: set[int] = set()
        self.requests: list[wire.Header] = []

    def step(self) -> None:
        """One thing that happens."""
        match self.dice.below(6):
            case 0:
                self._call()
            case 1:
                self.now_s += self.dice.pick((0.0, 0.03, 1.0, 6.0))
                self._finish(self.core.tick(self.now_s))
            case 2:
                self._hear(self.dice.take(self.dice.below(64)))
            case _:
                self._hear(self._reply())
        self._finish(self.core.flush(self.now_s))
        self._send()

    def _call(self) -> None:
        self.tokens += 1
        self.open.add(self.tokens)
        kind, slot = self.dice.pick((READ, WRITE, WAIT, STATUS)), self.dice.below(SLOT_COUNT)
        limit_s = self.dice.pick((None, 1.0))
        if kind == STATUS:
            self.core.add_control(STATUS, 0, self.tokens, limit_s)
        else:
            op = self.dice.pick(("route.get", "route.get_many", "session.wait"))
            self.core.add(kind, slot, (op, (self.dice.value(),)), self.tokens, limit_s)

    def _send(self) -> None:
        while (outgoing := self.core.next_frame(self.now_s)) is not None:
            if self.dice.below(8) == 7:
                self.core.blocked(self.now_s)
                return
            self.core.sent()
            self.requests.append(wire.decode_header(outgoing[1]))

    def _reply(self) -> bytes:
        """A reply to something that is open, with some of it wrong."""
        dice = self.dice
        asked = dice.pick(self.requests) if self.requests else None
        header = wire.encode_header(
            dice.pick((Kind.REPLY, Kind.REPLY, Kind.GONE, Kind.READ)),
            flags=dice.pick((0, 0, 2, 2 | 4, 2 | 8, 2 | 4 | 8, 255)),
            answers=asked.kind if asked else dice.below(256),
            address=dice.pick((0, 1, 65535)),
            map_version=dice.pick((1, 1, 2)),
            request_id=asked.request_id if asked else dice.number(64),
            number=dice.pick((BOOT, BOOT, BOOT, BOOT, 8, 0)),
            done_below=dice.pick((1, 1, 2, 0)),
        )
        return header + self._reply_body(asked)

    def _reply_body(self, asked: wire.Header | None) -> bytes:
        dice = self.dice
        match dice.below(6):
            case 0:
                return dice.take(dice.below(32))
            case 1:
                return wire.pack({**HELLO, dice.pick(tuple(HELLO)): dice.value()})
            case 2:
                return wire.pack(HELLO)
            case 3:
                code = dice.pick(("overloaded", "client_expired", "internal_error", "new", 5, None))
                return _packed({"code": code, "message": dice.value(), "details": dice.value()})
            case 4 if asked is not None:
                return _packed([[dice.pick(_STATUSES), dice.value()]])
            case _:
                return _packed(dice.value())

    def _hear(self, frame: bytes) -> None:
        self._finish(self.core.on_frame(frame, self.now_s))

    def _finish(self, done: Any) -> None:
        for tokens, pairs in done:
            for token, pair in zip(tokens, pairs, strict=False):
                self.open.remove(token)  # a KeyError says: completed twice
                status, value = pair
                result_of(status, value)

    def end(self) -> None:
        """Nothing stays open."""
        self._finish(self.core.close())
        assert not self.open, f"never completed: {self.open}"


def _packed(value: Any) -> bytes:
    try:
        return wire.pack(value)
    except MeshError:
        return b"\xc1"


def protocol(data: bytes) -> None:
    """A client with open calls hears anything: typed results, each call completed once."""
    conversation = Conversation(Dice(data))
    while not conversation.dice.empty:
        conversation.step()
    conversation.end()


_TOPICS = (
    "lifecycle.started.s1",
    "session.s1.run_started",
    "session.s2.x",
    "node.head",
    "node.echo.t",
    "route.set",
    "node.x",
    "",
    "session.",
    "lifecycle.",
    "packed.all",
    "packed.one.s1.",
)
_FIELDS = ("partition", "lseq", "pos", "seq", "session_id", "epoch", "node", "lseq_kept")


def feed(data: bytes) -> None:
    """A listener hears anything: messages in order, holes, or nothing; never an exception of its own."""
    dice = Dice(data)
    wanted = dice.pick(
        ((), ("lifecycle.",), ("session.s1.",), ("session.",), ("node.", "lifecycle.started."))
    )
    machine = FeedCursor(wanted, even_map(2), 2, encode_cursor)
    last: dict[int, int] = {}
    while not dice.empty:
        message = decode_message(_frames(dice))
        if message is None:
            continue
        topic, fields = message
        if dice.below(8) == 0:
            machine.on_opening(topic, fields, "t")
        for said in machine.on_message(topic, fields):
            if said.topic.startswith("lifecycle."):
                partition, number = said.data["partition"], said.data["lseq"]
                assert number > last.get(partition, -(2**70)), "a message was delivered twice"
                last[partition] = number
        for hole in machine.holes:
            assert 0 <= hole.partition < 2 or hole.unit != "events"
        assert len(machine.holes) <= 8
        if len(machine.holes) > 4:
            machine.unfetched(machine.holes[0])


def _frames(dice: Dice) -> list[bytes]:
    if dice.below(4) == 0:
        return [dice.take(dice.below(20)) for _ in range(dice.below(4))]
    small = (0, 1, 2, 3, 4, 5)
    fields: dict[str, Any] = {"partition": dice.below(2), "session_id": dice.pick(("s1", "s2"))}
    fields.update((name, dice.pick(small)) for name in ("lseq", "pos", "seq"))
    if dice.below(2):
        fields["events"] = [
            {"pos": dice.pick(small), "seq": dice.below(6), "session_id": dice.pick(("s1", 7)), "type": "t"}
            for _ in range(dice.below(3))
        ]
    for _ in range(dice.below(3)):
        fields[dice.pick(_FIELDS)] = dice.value()
    for _ in range(dice.below(2)):
        fields.pop(dice.pick(_FIELDS), None)
    return [dice.pick(_TOPICS).encode(), _packed(fields)]


__all__ = ["Conversation", "feed", "protocol"]
