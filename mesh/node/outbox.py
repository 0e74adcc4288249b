"""Commands to the runners: numbered, kept until acknowledged, sent again when they are not."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from mesh.core import mailbox, wire
from mesh.core.state import RunnerEntry, State

RESEND_S = 1.0


class _Outbox:
    __slots__ = ("incarnation", "next", "sent_s", "unacked")

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.next = 1
        self.sent_s = 0.0
        self.unacked: deque[list[Any]] = deque()


class Outboxes:
    """One outbox per runner; a new incarnation of the runner begins an empty one.

    Its bound is the partition's own work: a run has one command of each kind open, and ``sessions.max_live``
    and ``queue_max`` bound the runs.
    """

    def __init__(self, state: State, send: Callable[[bytes, list[Any]], None]) -> None:
        self.state = state
        self._send = send
        self._boxes: dict[int, _Outbox] = {}

    def on_roster(self, entries: dict[int, RunnerEntry]) -> None:
        """Begin anew with each new incarnation: tell it what we believe is running there."""
        for index, entry in entries.items():
            box = self._boxes.get(index)
            if entry.reachable and (box is None or box.incarnation != entry.incarnation):
                self._boxes[index] = _Outbox(entry.incarnation)
                self.add([(index, ["known", self._running_on(index, entry.incarnation)])], first=True)

    def _running_on(self, index: int, incarnation: int) -> list[list[Any]]:
        pairs = []
        for work in self.state.work.values():
            if work.running is not None:
                run = self.state.run(work.running)
                if (run.runner, run.runner_incarnation) == (index, incarnation):
                    pairs.append([run.id, run.attempt])
        return pairs

    def add(self, commands: list[tuple[int, list[Any]]], *, first: bool = False) -> None:
        """Send new commands; those to a runner that is not there are covered by its next "known"."""
        by_runner: dict[int, list[Any]] = {}
        for index, command in commands:
            by_runner.setdefault(index, []).append(command)
        for index, batch in by_runner.items():
            box = self._boxes.get(index)
            if box is None:
                continue
            number = box.next
            box.next += len(batch)
            box.unacked.extend([number + i, command] for i, command in enumerate(batch))
            box.sent_s = self.state.mono
            self._send(self._peer(index, box), ["commands", self.state.epoch, number, batch])

    def _peer(self, index: int, box: _Outbox) -> bytes:
        return wire.actor_id(mailbox.RUNNER, index, box.incarnation)

    def on_acks(self, index: int, incarnation: int, epoch: int, number: int) -> None:
        """Forget what arrived."""
        box = self._boxes.get(index)
        if box is None or box.incarnation != incarnation or epoch != self.state.epoch:
            return
        while box.unacked and box.unacked[0][0] <= number:
            box.unacked.popleft()

    def resend(self, now_s: float) -> None:
        """Send again what was not acknowledged for a while."""
        for index, box in self._boxes.items():
            if box.unacked and now_s - box.sent_s >= RESEND_S:
                box.sent_s = now_s
                self._send(self._peer(index, box), [
                    "commands", self.state.epoch, box.unacked[0][0], [command for _, command in box.unacked]])


__all__ = ["Outboxes"]
