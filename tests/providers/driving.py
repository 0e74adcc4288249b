"""Runs an agent as a runner does, without sockets: what it leaves in the log, and how it ended."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from mesh.config import LimitsSection
from mesh.core import wire
from mesh.core.events import EVENT_TYPES
from mesh.core.message import Message, Transcript
from mesh.core.prices import Prices
from mesh.core.redact import Redactor
from mesh.core.runner import Outbox, RunLog
from mesh.errors import NotFound
from mesh.log import Log
from mesh.node.continuing import Transcripts
from mesh.node.drive import Drive
from mesh.node.ending import cancelled as cancelled_with
from mesh.node.pieces import TEXT_CHARS_MAX
from mesh.node.processes import RunProcesses
from mesh.node.speech import HOLD_S, Shows
from mesh.node.ws_drive import Workspaces
from mesh.providers.registry import Registry

LIMIT_S = 20.0


class Result(NamedTuple):
    """What a run left."""

    events: list[dict[str, Any]]
    settle: dict[str, Any]

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    @property
    def error(self) -> dict[str, Any]:
        return self.settle["error"]

    @property
    def output(self) -> dict[str, Any]:
        return self.settle["output"]

    def data(self, event_type: str) -> list[dict[str, Any]]:
        return [event["data"] for event in self.events if event["type"] == event_type]


class Bench:
    """A drive's host."""

    def __init__(
        self, agents: dict[str, Any], *, output_bytes: int = 4 * 1024 * 1024, bytes_max: int = 10**9
    ) -> None:
        self.outbox = Outbox(bytes_max)
        self.processes = RunProcesses()
        self.registry = Registry(agents, processes=self.processes)
        self.states: dict[str, dict[str, Any]] = {}
        self.redactor = Redactor()
        self.output_bytes_max, self.event_bytes_max = output_bytes, 2 * output_bytes + TEXT_CHARS_MAX
        self.late = 0
        self.prices = Prices()
        self.transcripts = Transcripts(self._no_log, lambda: b"")
        self.asked: list[tuple[str, int]] = []
        self.human: bool | None = None  #: what a human says to every question; None: nobody answers
        self.done: dict[str, asyncio.Event] = {}
        self.spoke = asyncio.Event()
        self.stored: dict[str, list[Any]] = {}
        self.workspaces = Workspaces(
            Path(tempfile.gettempdir()) / "unused", LimitsSection(), self.processes, Log("test")
        )
        self.registry.start()

    async def _no_log(self, partition: int, op: str, args: list[Any]) -> Any:
        raise NotFound("there is no log here")

    def changed(self, log: RunLog) -> None:
        self.spoke.set()

    def holds(self, run: Shows) -> None:
        asyncio.get_running_loop().call_later(HOLD_S, run.release)

    async def room(self, log: RunLog) -> None:
        while not self.outbox.has_room(log):
            self.store()
            await asyncio.sleep(0)

    def store(self) -> None:
        """Take everything that is there into the log."""
        for key, log in list(self.outbox.logs.items()):
            for message in self.outbox.close(log, 0.0):
                batch = wire.unpack(message)
                self.stored.setdefault(key[0], []).append(batch)
                self.outbox.stored(key, batch[3])

    def ask(self, key: Any, tag: Any, partition: int, make: Any, answered: Any) -> None:
        self.asked.append((key[0], tag))
        if isinstance(tag, str) and self.human is not None:
            decision = {"approved": self.human, "scope": "once", "by": "ann", "reason": None}
            asyncio.get_running_loop().call_soon(answered, decision)

    async def read(self, partition: int, op: str, args: list[Any]) -> Any:
        """Nobody else used anything."""
        return {}

    def partitions(self) -> int:
        return 1

    def ended(self, drive: Drive) -> None:
        self.done[drive.key[0]].set()

    def begin(
        self,
        agent: str,
        run_input: Any,
        *,
        session: str = "ses_1",
        attempt: int = 1,
        metadata: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None,
        resume: str | None = None,
        past: tuple[Message, ...] = (),
        **options: Any,
    ) -> Drive:
        """Begin a run; ``resume`` and ``past`` are what its continuation would have found."""
        run_id = "run_" + os.urandom(16).hex()
        self.done[run_id] = asyncio.Event()
        record = {
            "id": session,
            "agent": agent,
            "agent_id": "me",
            "incarnation": 3,
            "context": {"k": "v"} if context is None else context,
            "metadata": metadata or {},
            "tags": ["t"],
        }
        drive = Drive(
            self, (run_id, attempt), partition=0, session=record, run_input=run_input, options=options
        )
        drive.context.resume = resume
        drive.context.transcript = Transcript(session, past)
        drive.start()
        return drive

    async def result(self, drive: Drive) -> Result:
        async with asyncio.timeout(LIMIT_S):
            await self.done[drive.key[0]].wait()
        return self.so_far(drive)

    def so_far(self, drive: Drive) -> Result:
        self.store()
        batches = self.stored.get(drive.key[0], [])
        events = []
        for batch in batches:
            for code, _, fragment in batch[4]:
                event = wire.unpack(wire.map_header(9) + fragment)
                assert event["type"] == EVENT_TYPES[code]
                events.append(event)
        return Result(events, batches[-1][5] if batches else {})

    async def until(self, drive: Drive, condition: Callable[[Result], bool]) -> Result:
        """Wait until what the run said so far is as wanted."""
        async with asyncio.timeout(LIMIT_S):
            while not condition(result := self.so_far(drive)):
                self.spoke.clear()
                await self.spoke.wait()
        return result


def drive(agents: dict[str, Any], play: Callable[[Bench], Awaitable[Any]], **settings: Any) -> Any:
    """Run a play on a bench; no task, no process, no transport is left."""

    async def main() -> Any:
        bench = Bench(agents, **settings)
        await bench.registry.loaded()
        try:
            return await play(bench)
        finally:
            await bench.registry.close()

    return asyncio.run(main())


def run(
    table: dict[str, Any], run_input: Any, *, settings: dict[str, Any] | None = None, **options: Any
) -> Result:
    """One run of one agent, to its end."""

    async def play(bench: Bench) -> Result:
        return await bench.result(bench.begin("agent", run_input, **options))

    result = drive({"agent": table}, play, **(settings or {}))
    assert isinstance(result, Result)
    return result


def run_of(agent: Any, agents: dict[str, Any]) -> Result:
    """One run of the one named ``agent`` among these; ``agent`` says its input and options (contract.py)."""

    async def play(bench: Bench) -> Result:
        return await bench.result(bench.begin("agent", agent.input, **agent.options))

    result = drive(agents, play)
    assert isinstance(result, Result)
    return result


async def cancelled(bench: Bench, running: Drive) -> Result:
    """Cancel a run and wait until its provider is done."""
    running.stop(cancelled_with())
    return await bench.result(running)


def gone(pid: int) -> bool:
    """Whether a process ended; one that only waits to be collected did."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def python_agent(folder: Path, source: str, function: str = "agent", **table: Any) -> dict[str, Any]:
    """The table of a python agent whose file holds this source."""
    file = folder / f"agent_{os.urandom(4).hex()}.py"
    file.write_text(source)
    return {"provider": "python", "target": f"{file}:{function}", **table}
