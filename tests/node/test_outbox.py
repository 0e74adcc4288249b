"""Commands to the runners: nothing that was lost stays lost, nothing stale is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mesh.core import wire
from mesh.core.records import RunStatus
from mesh.core.run import RunState
from mesh.core.state import RunnerEntry, State
from mesh.node.outbox import RESEND_S, Outboxes
from mesh.store.sqlite import Store


class Wire:
    """One partition's outboxes, and the (first number, names of the commands) of each frame that left."""

    def __init__(self, folder: Path) -> None:
        self.state = State(Store(folder / "p.db"), partition=0, epoch=1, node="mesh")
        self.frames: list[tuple[int, list[str]]] = []
        self.outboxes = Outboxes(self.state, self._sent)

    def _sent(self, peer: bytes, message: bytes) -> None:
        _, _, first, commands = wire.unpack(message)
        self.frames.append((first, [command[0] for command in commands]))

    def runner(self, incarnation: int) -> None:
        self.outboxes.on_roster({0: RunnerEntry(incarnation, 1, "ready", True)})

    def add(self, *command: Any) -> None:
        self.outboxes.add([(0, list(command))])


def test_a_lost_command_is_sent_again_under_a_steady_flow_of_new_ones(tmp_path: Path) -> None:
    """If a command is lost and others follow all the time, then it is sent again after a second."""
    there = Wire(tmp_path)
    there.runner(5)
    there.outboxes.on_acks(0, 5, 1, 1)
    for _ in range(4):
        there.add("close", "s")
        there.state.mono += RESEND_S / 3
        there.outboxes.on_acks(0, 5, 1, 1)  # the runner repeats what it has: nothing beyond the gap
        there.outboxes.resend(there.state.mono)
    assert (2, ["close"] * 3) in there.frames


def test_a_run_that_was_lost_in_the_batch_that_dispatched_it_is_not_sent(tmp_path: Path) -> None:
    """If a runner is replaced in the batch that dispatched a run, then its successor does not get it."""
    there = Wire(tmp_path)
    there.runner(5)
    there.state.runs["r"] = RunState(
        n=1, id="r", session_id="s", status=RunStatus.FAILED, input=None, options={}, created_at=0.0,
        attempt=2, runner=0, runner_incarnation=5,
    )
    there.runner(6)
    there.add("run", "r", 1, {}, None, {})
    there.add("close", "s")
    assert [names for _, names in there.frames] == [["known"], ["known"], ["close"]]
