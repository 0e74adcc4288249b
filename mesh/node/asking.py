"""A runner's questions to partitions: asked behind what the run said so far, again until they are heard.

Rules of this file:

1. A question is ``[kind, run, attempt, ...]`` and has a tag; its answer names both. A copy of an answer finds
   nothing, and is not heard.
2. It is repeated until it is answered, or until the partition said that it is stored; then only to the
   partition's next incarnation, or through a new router.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mesh.core.runner import Key

#: What tells a question from the others of its run: the number of a take, the name of a request.
Tag = int | str


class Question:
    """One open question. ``message`` is made when it first leaves."""

    __slots__ = ("answered", "heard", "make", "message", "partition")

    def __init__(
        self, partition: int, make: Callable[[], list[Any]], answered: Callable[..., None]
    ) -> None:
        self.partition = partition
        self.make = make
        self.answered = answered
        self.message: list[Any] | None = None
        self.heard = False  #: stored there; its answer may take hours


class Asking:
    """The open questions of one runner. ``messages`` are the answers that it takes."""

    def __init__(self, post: Callable[[int, list[Any]], None], wake: Callable[[], None]) -> None:
        self._post = post
        self._wake = wake
        self._open: dict[Key, dict[Tag, Question]] = {}
        self._new: list[Question] = []
        self.messages: dict[str, Callable[..., None]] = {
            "taken": self._answered, "decided": self._answered, "held": self._answered,
            "asked": self._heard,
        }

    def ask(
        self, key: Key, tag: Tag, partition: int, make: Callable[[], list[Any]],
        answered: Callable[..., None],
    ) -> None:
        """Ask at the end of this turn; ``answered`` is called once, with what the answer holds."""
        question = self._open.setdefault(key, {})[tag] = Question(partition, make, answered)
        self._new.append(question)
        self._wake()

    def partitions(self) -> set[int]:
        """Those that are asked at the end of this turn: what the runs said before leaves first."""
        return {question.partition for question in self._new}

    def turn(self) -> None:
        """The run's batches of this turn are on their way: the new questions follow them."""
        for question in self._new:
            self._send(question)
        self._new.clear()

    def again(self) -> None:
        """Repeat what no partition has heard."""
        for question in self._all():
            if not question.heard:
                self._send(question)

    def lost(self, partition: int | None) -> None:
        """Repeat everything that a partition (None: each) was asked: it may be a new one."""
        for question in self._all():
            if partition in (None, question.partition):
                self._send(question)

    def _all(self) -> Iterator[Question]:
        return (question for questions in self._open.values() for question in questions.values())

    def _send(self, question: Question) -> None:
        if question.message is None:
            question.message = question.make()
        self._post(question.partition, question.message)

    def _answered(self, _partition: int, run_id: str, attempt: int, tag: Tag, answer: Any) -> None:
        questions = self._open.get((run_id, attempt), {})
        question = questions.pop(tag, None)
        if not questions:
            self._open.pop((run_id, attempt), None)
        if question is not None:
            question.answered(answer)

    def _heard(self, _partition: int, run_id: str, attempt: int, tag: Tag) -> None:
        question = self._open.get((run_id, attempt), {}).get(tag)
        if question is not None:
            question.heard = True

    def forget(self, key: Key) -> None:
        """The run is over."""
        self._open.pop(key, None)


__all__ = ["Asking", "Question", "Tag"]
