"""Commands to the runners: numbered, kept until acknowledged, sent again when they are not."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from mesh.core import mailbox, wire
from mesh.core.records import RunStatus
from mesh.core.run import RunState
from mesh.core.state import RunnerEntry, State

RESEND_S = 1.0
#: What runs where is compared so often: the runner's answer to the last comparison may have been lost.
KNOWN_S = 10.0
#: Commands of one frame are at most so large (a single one may be larger).
FRAME_BYTES = 4 * 1024 * 1024
_COMMANDS = wire.array_header(4) + wire.pack("commands")


class _Outbox:
    __slots__ = ("incarnation", "known_s", "next", "sent_s", "unacked")

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.next = 1
        self.sent_s = 0.0  #: when the oldest unacknowledged command was sent, or one before it acknowledged
        self.known_s = 0.0
        self.unacked: deque[tuple[int, bytes]] = deque()


class Outboxes:
    """One outbox per runner; a new incarnation of the runner begins an empty one.

    Its bound is the partition's own work: a run has one command of each kind open, and ``sessions.max_live``
    and ``queue_max`` bound the runs.
    """

    def __init__(self, state: State, send: Callable[[bytes, bytes], None]) -> None:
        self.state = state
        self._send = send
        self._boxes: dict[int, _Outbox] = {}

    def on_roster(self, entries: dict[int, RunnerEntry]) -> None:
        """Begin anew with each new incarnation: tell it what we believe is running there.

        Call it before anything is dispatched there: a run whose command follows is not known yet.
        """
        for index, entry in entries.items():
            box = self._boxes.get(index)
            if entry.reachable and (box is None or box.incarnation != entry.incarnation):
                self._boxes[index] = _Outbox(entry.incarnation)
                self._compare(index, self._boxes[index])

    def compare_now(self) -> None:
        """Have the next ``resend`` compare: answers may have been ignored for a while."""
        for box in self._boxes.values():
            box.known_s = 0.0

    def _compare(self, index: int, box: _Outbox) -> None:
        box.known_s = self.state.mono
        running = self._running_on(index, box.incarnation)
        words = [word for run in running for word in self._words(run)]
        self._put(index, box, [["known", [[run.id, run.attempt] for run in running]], *words])

    def _words(self, run: RunState) -> list[list[Any]]:
        """What a runner must know of a run beside that it executes."""
        if run.cancelling:
            return [["cancel", run.id, run.attempt, run.reason]]
        words: list[list[Any]] = []
        if run.status == RunStatus.PAUSED:
            words.append(["pause", run.id, run.attempt])
        if self.state.work_of(run.session_id).steering or (run.taken and not run.takes):
            words.append(["steer", run.id, run.attempt])
        return words

    def _running_on(self, index: int, incarnation: int) -> list[RunState]:
        running = [self.state.run(run_id) for work in self.state.work.values() for run_id in work.running]
        return [run for run in running if (run.runner, run.runner_incarnation) == (index, incarnation)]

    def add(self, commands: list[tuple[int, list[Any]]]) -> None:
        """Send new commands; those to a runner that is not there are covered by its next "known"."""
        by_runner: dict[int, list[Any]] = {}
        for index, command in commands:
            by_runner.setdefault(index, []).append(command)
        for index, batch in by_runner.items():
            box = self._boxes.get(index)
            if box is not None:
                self._put(index, box, [c for c in batch if not self._is_stale(index, box, c)])

    def _is_stale(self, index: int, box: _Outbox, command: list[Any]) -> bool:
        """Whether a run was dispatched and lost again in one batch: its runner was replaced meanwhile."""
        if command[0] != "run":
            return False
        run = self.state.run(command[1])
        return (run.attempt, run.runner, run.runner_incarnation) != (command[2], index, box.incarnation)

    def _put(self, index: int, box: _Outbox, commands: list[Any]) -> None:
        new = [(box.next + i, wire.repack(command)) for i, command in enumerate(commands)]
        box.next += len(new)
        if not box.unacked:  # else a steady flow of new ones puts off the repetition of a lost one for ever
            box.sent_s = self.state.mono
        box.unacked.extend(new)
        self._transmit(index, box, new)

    def _transmit(self, index: int, box: _Outbox, commands: Iterable[tuple[int, bytes]]) -> None:
        peer = wire.actor_id(mailbox.RUNNER, index, box.incarnation)
        frame: list[bytes] = []
        first = size = 0
        for number, command in commands:
            if frame and size + len(command) > FRAME_BYTES:
                self._send(peer, self._encode(first, frame))
                frame, size = [], 0
            first = number if not frame else first
            frame.append(command)
            size += len(command)
        if frame:
            self._send(peer, self._encode(first, frame))

    def _encode(self, first: int, commands: list[bytes]) -> bytes:
        epoch = wire.pack(self.state.epoch)
        return b"".join((_COMMANDS, epoch, wire.pack(first), wire.array_header(len(commands)), *commands))

    def on_acks(self, index: int, incarnation: int, epoch: int, number: int) -> None:
        """Forget what arrived."""
        box = self._boxes.get(index)
        if box is None or box.incarnation != incarnation or epoch != self.state.epoch:
            return
        while box.unacked and box.unacked[0][0] <= number:
            box.unacked.popleft()
            box.sent_s = self.state.mono

    def resend(self, now_s: float) -> None:
        """Send again what was not acknowledged for a while; compare now and then what is running there."""
        for index, box in self._boxes.items():
            if box.unacked and now_s - box.sent_s >= RESEND_S:
                box.sent_s = now_s
                self._transmit(index, box, box.unacked)
            elif not box.unacked and now_s - box.known_s >= KNOWN_S:
                self._compare(index, box)


__all__ = ["FRAME_BYTES", "KNOWN_S", "RESEND_S", "Outboxes"]
