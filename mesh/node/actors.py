"""A partition's talk with the router and the runners (``core/mailbox.py`` lists the messages)."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from mesh.core import mailbox, wire
from mesh.core.partition import Partition
from mesh.core.state import RunnerEntry
from mesh.errors import RemoteProtocolError
from mesh.log import Log
from mesh.node.outbox import Outboxes
from mesh.node.questions import Questions

T = TypeVar("T")


class Actors:
    """Takes what actors say. Answers to runners leave after the commit of what they announce."""

    def __init__(
        self, partition: Partition, outboxes: Outboxes, log: Log, *, on_welcome: Callable[[int], None]
    ) -> None:
        self.partition = partition
        self.state = partition.state
        self.runners = partition.runners
        self.outboxes = outboxes
        self.log = log
        self.on_welcome = on_welcome  #: takes the boot id of a new router
        self.answers: dict[tuple[int, int], list[bytes]] = {}  #: by runner and its incarnation
        self.questions = Questions(partition)
        self.on_tags: Callable[[int, list[Any]], None] = lambda _index, _message: None
        self.news = False  #: the runners changed: parked calls may find one now

    def take(self, frame: bytes, *, writable: bool) -> None:
        """Take one frame. What cannot be written now is left to the sender's repetition."""
        kind, index, incarnation = wire.parse_actor_id(frame[:16])
        try:
            message = wire.unpack(frame[wire.ACTOR_PREFIX_BYTES:])
            for one in message[1] if message[0] == "many" else [message]:
                self.guarded(self._take, kind, index, incarnation, one, writable)
        except (RemoteProtocolError, LookupError, TypeError) as exc:
            self.log.write("an actor's frame makes no sense", why=str(exc), bytes=len(frame))

    def _take(self, kind: bytes, index: int, incarnation: int, message: list[Any], writable: bool) -> None:
        match kind, message[0]:
            case mailbox.ROUTER, "welcome":
                self.on_welcome(message[1])
            case mailbox.ROUTER, "roster":
                self._on_roster({row[0]: RunnerEntry(*row[1:]) for row in message[1]}, writable)
            case mailbox.RUNNER, "frame" if writable:
                self._frame(index, incarnation, message)
            case mailbox.RUNNER, "batch" if writable:
                self._answer(index, incarnation, self.runners.on_batch(index, incarnation, message))
            case mailbox.RUNNER, "take" if writable:
                self._answer(index, incarnation, self.runners.on_take(index, incarnation, message))
            case mailbox.RUNNER, "ask" if writable:
                heard = self.partition.ops.approvals.on_ask(index, incarnation, message)
                self._answer(index, incarnation, heard)
            case mailbox.RUNNER, "hold" if writable:
                self._answer(index, incarnation, self.runners.on_hold(index, incarnation, message))
            case mailbox.RUNNER, "lost" if writable:
                self.runners.on_lost(index, incarnation, message[1])
            case mailbox.RUNNER, "left" if writable:
                self.runners.on_left(index, incarnation, message[1])
            case mailbox.RUNNER, "acks":
                self.outboxes.on_acks(index, incarnation, message[1], message[2])
            case mailbox.RUNNER, "read":
                self.questions.take(index, incarnation, message)
            case mailbox.PARTITION, "tags":
                self.on_tags(index, message)
            case mailbox.RUNNER, "catalogue":
                self.news |= self.partition.ops.on_catalogue(index, message[1], message[2])

    def _frame(self, index: int, incarnation: int, message: list[Any]) -> None:
        """Batches of many runs: one answer says which of them are not stored."""
        _, number, batches = message
        mark = self.state.mark()
        others: list[tuple[int, list[Any] | None]]
        try:
            others = self.runners.on_frame(index, incarnation, batches)
        except Exception:  # noqa: BLE001 - one of them is to blame: each by itself
            self.state.back_to(mark)
            take = self.runners.on_batch
            answers = [self.guarded(take, index, incarnation, batch) for batch in batches]
            others = [(place, answer) for place, answer in enumerate(answers)
                      if answer is None or answer[0] != "stored"]
        for _, answer in others:
            self._answer(index, incarnation, answer)
        self._answer(index, incarnation, ["frame", number, [place for place, _ in others]])

    def _answer(self, index: int, incarnation: int, message: list[Any] | None) -> None:
        if message is not None:
            self.answers.setdefault((index, incarnation), []).append(wire.repack(message))

    def _on_roster(self, entries: dict[int, RunnerEntry], writable: bool) -> None:
        self.state.runners = entries
        self.news = True
        self.outboxes.on_roster(entries)
        if writable:
            self.runners.on_roster(entries)
        self.partition.ops.agents.on_roster()

    def guarded(self, work: Callable[..., T], *args: Any) -> T | None:
        """A bug in the handling of one message undoes that message alone."""
        mark = self.state.mark()
        try:
            return work(*args)
        except Exception:  # noqa: BLE001 - one of the few places that catch broadly
            self.state.back_to(mark)
            self.log.write("a message could not be handled", trace=traceback.format_exc())
            return None


__all__ = ["Actors"]
