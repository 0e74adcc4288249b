"""A runner's questions for steering prompts: asked behind what the run said so far, again until answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from mesh.core.runner import Key
from mesh.providers.live import Steering


class Asker(Protocol):
    """A run that asks."""

    key: Key
    partition: int

    @property
    def steering(self) -> Steering:
        """Its end of the talk."""


class Asking:
    """The open questions of one runner, at most one per run."""

    def __init__(self, post: Callable[[int, list[Any]], None]) -> None:
        self._post = post
        self._open: dict[Key, Asker] = {}
        self._new: list[Asker] = []

    def ask(self, asker: Asker) -> None:
        """Ask at the end of this turn."""
        self._open[asker.key] = asker
        self._new.append(asker)

    def partitions(self) -> set[int]:
        """Those that are asked at the end of this turn: what the runs said before leaves first."""
        return {asker.partition for asker in self._new}

    def turn(self) -> None:
        """The run's batches of this turn are on their way: the new questions follow them."""
        for asker in self._new:
            self._send(asker)
        self._new.clear()

    def again(self, partition: int | None = None) -> None:
        """Repeat what was not answered by a partition (None: by any)."""
        for asker in self._open.values():
            if partition in (None, asker.partition):
                self._send(asker)

    def _send(self, asker: Asker) -> None:
        if asker.steering.open:
            self._post(asker.partition, ["take", *asker.key, asker.steering.open])

    def taken(self, key: Key, number: int, texts: list[str]) -> None:
        """The answer to a question; a copy of it is not heard."""
        asker = self._open.get(key)
        if asker is not None and asker.steering.open == number:
            del self._open[key]
            asker.steering.taken(number, texts)

    def forget(self, key: Key) -> None:
        """The run is over."""
        self._open.pop(key, None)


__all__ = ["Asker", "Asking"]
