"""Forgetting what a tag used: decided for the whole node, since a tag's sums stand in many partitions.

Rules of this file:

1. A partition in which no run with a tag ended for long asks all others. Only when each of them says the same
   all forget the tag, together: a sum is whole, or it begins anew.
2. Who does not answer in time may know of a newer run: then nothing is forgotten in this sweep. Messages may
   be lost, come twice or late: each is checked against what is stored when it is acted upon, an answer
   against the question. A run that ends between its partition's answer and the word to forget keeps that
   partition's part of a sum: some milliseconds, for a tag unused for days; another round is not worth that.
3. What comes from others waits for the next step between two batches, where the store may be written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mesh.store.removing import Removing

#: Steps of a sweep in which the others may answer: about 5 s.
WAIT_STEPS = 250
#: Messages of others that wait for a step; what comes beyond is repeated with their next sweep.
HEARD_MAX = 1_000

Tell = Callable[[int, list[Any]], None]


class TagAge:
    """Of one partition. ``tell`` sends a message to another one, by its index."""

    def __init__(
        self, removing: Removing, forgotten: Callable[[str], object], *, index: int = 0, partitions: int = 1,
        tell: Tell = lambda _index, _message: None,
    ) -> None:
        self._removing = removing
        self._forgotten = forgotten
        self._others = [other for other in range(partitions) if other != index]
        self._tell = tell
        self._asked: dict[str, set[int]] = {}  #: tag -> the partitions that did not say yet that it is old
        self._before = 0.0  #: since when, of the question under way
        self._heard: deque[tuple[int, list[Any]]] = deque()

    @property
    def heard(self) -> bool:
        """Whether a message of another partition waits for ``act``."""
        return bool(self._heard)

    def take(self, sender: int, message: list[Any]) -> None:
        """Note a message of another partition: ``["tags", what, tags, before]``."""
        if len(self._heard) < HEARD_MAX:
            self._heard.append((sender, message))

    def act(self) -> None:
        """Do what the others' messages ask for."""
        while self._heard:
            sender, (_, what, tags, before) = self._heard.popleft()
            if what == "old":
                for tag in tags if before == self._before else ():
                    self._asked.get(tag, set()).discard(sender)
            elif what == "old?":
                old = [tag for tag in tags if self._removing.is_old(tag, before)]
                self._tell(sender, ["tags", "old", old, before])
            else:
                self._forget([tag for tag in tags if self._removing.is_old(tag, before)])

    def sweep(self, before: float, limit: int) -> Iterator[None]:
        """Forget the tags with which no run ended since then, some in each step."""
        behind: str | None = ""
        while behind is not None:
            old, behind = self._removing.old_tags(behind, before, limit)
            if old and self._others:
                yield from self._ask(old, before)
                old = [tag for tag, silent in self._asked.items()
                       if not silent and self._removing.is_old(tag, before)]
                self._asked = {}
                self._tell_all("forget", old, before)
            self._forget(old)
            yield

    def _ask(self, tags: list[str], before: float) -> Iterator[None]:
        self._asked, self._before = {tag: set(self._others) for tag in tags}, before
        self._tell_all("old?", tags, before)
        for _ in range(WAIT_STEPS):
            if not any(self._asked.values()):
                return
            yield

    def _tell_all(self, what: str, tags: Iterable[str], before: float) -> None:
        for other in self._others if tags else ():
            self._tell(other, ["tags", what, list(tags), before])

    def _forget(self, tags: list[str]) -> None:
        if tags:
            self._removing.forget_tags(tags)
        for tag in tags:
            self._forgotten(tag)


__all__ = ["HEARD_MAX", "WAIT_STEPS", "TagAge"]
