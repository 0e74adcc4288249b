"""Questions and answers between runners and partitions: reads of the log, one page at a time.

A question may be lost with a mailbox, or its answer: it is asked again until it is answered. It changes
nothing, so being answered twice harms nobody.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from mesh.core import mailbox, wire
from mesh.core.access import unwrapped
from mesh.core.partition import Partition
from mesh.errors import RemoteProtocolError, from_wire

#: What a runner may ask.
ASKABLE = frozenset(("session.events", "session.get", "budget.used"))
#: A question is repeated so often while nobody answers.
AGAIN_S = 1.0
#: A partition ends its turn of answers behind so many bytes: a thousand runs that begin at once do not hold
#: it up, and neither do long logs (a page of 1 000 events takes 5 ms).
TURN_BYTES = 128 * 1024
#: Questions that wait in a partition; one beyond that is dropped, and asked again.
QUESTIONS_MAX = 10_000


class _Question:
    __slots__ = ("answer", "asked_s", "message", "partition")

    def __init__(self, partition: int, message: bytes, answer: asyncio.Future[bytes]) -> None:
        self.partition = partition
        self.message = message
        self.answer = answer
        self.asked_s = 0.0


class Asker:
    """The runner's side. A run has one page of a log open at a time, and for each of its budget's questions
    (one at a time, and one for each call that reserves) one read for every partition."""

    def __init__(self, post: Callable[[int, bytes], None]) -> None:
        self._post = post
        self._tokens = itertools.count(1)
        self._open: dict[int, _Question] = {}

    async def ask(self, partition: int, op: str, args: list[Any]) -> Any:
        """The value of a read, however long it takes that somebody answers.

        Raises:
            MeshError: the read's error.
        """
        loop = asyncio.get_running_loop()
        while True:
            token = next(self._tokens)
            question = _Question(partition, wire.pack(["read", token, op, args]), loop.create_future())
            self._open[token] = question
            self._put(question, loop.time())
            try:
                status, value = _decoded(await question.answer)
            finally:
                del self._open[token]
            if not status:
                return value
            error = from_wire(value["code"], value["message"], value.get("details"))
            if not error.retryable:
                raise error
            await asyncio.sleep(AGAIN_S)

    def answered(self, token: int, answer: bytes) -> None:
        """An answer came; one that nobody waits for was given twice."""
        waiting = self._open.get(token)
        if waiting is not None and not waiting.answer.done():
            waiting.answer.set_result(answer)

    def again(self, now_s: float, partition: int | None = None, *, everything: bool = False) -> None:
        """Ask again what is open for long, or all that a partition, or any, has forgotten."""
        for question in self._open.values():
            forgotten = everything or question.partition == partition or now_s - question.asked_s >= AGAIN_S
            if forgotten and not question.answer.done():
                self._put(question, now_s)

    def _put(self, question: _Question, now_s: float) -> None:
        question.asked_s = now_s
        self._post(question.partition, question.message)


def _decoded(answer: bytes) -> tuple[int, Any]:
    status, value = wire.unpack(answer)
    if status and not isinstance(value, dict):
        raise RemoteProtocolError("an error is a map")
    return status, value


class Questions:
    """The partition's side: what is asked, until a turn has room for the answer."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._waiting: dict[tuple[int, int, int], tuple[str, list[Any]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, runner: int, incarnation: int, message: list[Any]) -> None:
        """Note a question; the same one asked again is one."""
        _, token, op, args = message
        if len(self._waiting) < QUESTIONS_MAX:
            self._waiting[runner, incarnation, token] = (op, args)

    def answer(self, send: Callable[[bytes], None]) -> None:
        """Answer the oldest, against what is committed."""
        room = TURN_BYTES
        while self._waiting and room > 0:
            key = next(iter(self._waiting))
            op, args = self._waiting.pop(key)
            name = op if unwrapped(op, args)[0] in ASKABLE else f"{op!r:.40}"
            runner, incarnation, token = key
            answer = wire.pack(["answer", token, self._partition.read_inside(name, args)])
            send(wire.actor_id(mailbox.RUNNER, runner, incarnation) + answer)
            room -= len(answer)


__all__ = ["AGAIN_S", "ASKABLE", "QUESTIONS_MAX", "TURN_BYTES", "Asker", "Questions"]
