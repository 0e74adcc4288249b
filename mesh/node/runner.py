"""The runner process: hosts live sessions and executes their runs, on one asyncio loop.

Three conversations: commands come from the partitions, numbered, and are acknowledged; events go to them
in batches that are kept until they are in the log; the router hears once a second that we are here. See
``core/mailbox.py`` for the messages and ``core/runner.py`` for their bookkeeping.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from mesh.core import mailbox, wire
from mesh.core.admission import Admission, share
from mesh.core.prices import Prices
from mesh.core.runner import Inbox, Outbox, RunLog
from mesh.log import Log
from mesh.node import reaper
from mesh.node.asking import Asking
from mesh.node.child import Child
from mesh.node.continuing import Transcripts
from mesh.node.drive import Drive
from mesh.node.ending import cancelled, unstored
from mesh.node.holding import Holding
from mesh.node.printing import Marked, install
from mesh.node.processes import RunProcesses, watch_children
from mesh.node.questions import Asker
from mesh.node.runner_link import Link
from mesh.node.speech import Held
from mesh.node.spending import Read
from mesh.node.watch import Watch
from mesh.node.ws_drive import Workspaces
from mesh.providers.registry import Registry

#: How often the router and the partitions are told what they may have forgotten.
TELL_S = 1.0
#: How long a runner that was told to stop waits for its last batches to be stored.
STOP_S = 3.0
#: How soon the router is told again when that failed, or when it may be a new one.
RETRY_S = 0.02


def main(child: Child) -> None:
    """Serve until told to stop; whatever the runs started is gone afterwards."""
    streams = install(child.config.redaction.redactor())
    watch_children()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    serving = loop.create_task(_serve(child, streams))
    try:
        while not serving.done():
            try:
                loop.run_until_complete(serving)
            except (SystemExit, KeyboardInterrupt) as exc:  # raised in a task of the agent's own making
                Log(child.name).write("an agent's task tried to end the process", by=type(exc).__name__)
    finally:
        reaper.kill_tree()
    serving.result()


async def _serve(child: Child, streams: tuple[Marked, Marked]) -> None:
    runner = Runner(child, streams)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, runner.stop)
    runner.start()
    await runner.served()


class Runner:
    """All state of one runner. Everything happens on its loop."""

    def __init__(self, child: Child, streams: tuple[Marked, ...] = ()) -> None:
        limits = child.config.limits
        self.outbox = Outbox(limits.runner_unacked_bytes)
        self.processes = RunProcesses()
        self.registry = Registry(
            child.config.agents, processes=self.processes, on_change=self._tell_catalogue,
            source=child.config.source, mcp=child.config.mcp, redactor=child.config.redaction.redactor(),
            hosting=child.config.hosting(), runner=child.index,
        )
        self.workspaces = Workspaces(child.data_dir, limits, self.processes, Log(child.name))
        self.states: dict[str, dict[str, Any]] = {}
        self.redactor = child.config.redaction.redactor()
        self.output_bytes_max = limits.output_bytes
        self.event_bytes_max = min(limits.event_bytes, limits.frame_bytes * 3 // 4)
        self.prices = Prices(child.config.prices)
        self.late = 0
        self._child = child
        self._streams = streams
        self._log = Log(child.name)
        self._loop = asyncio.get_running_loop()
        self.holds = Held(self._loop).add
        self._link = Link(
            child, self._log, on_message=self._on_message, on_turn=self._turn, on_wake=self._woken
        )
        self._log_reads = Asker(self._link.post)
        self.read: Read = self._log_reads.ask
        self.transcripts = Transcripts(self.read, lambda: self._slot_map)
        self._watch = Watch(child, self._log, on_stop=self.stop, on_unblocked=self._unblocked)
        self._runs: dict[str, Drive] = {}  # until the settlement is stored
        # Until the provider is done, also those that were dropped.
        self._admission: Admission[Drive] = Admission(
            share(limits.running, child.index, child.config.hosting().count)
        )
        self._asking = Asking(self._post, self._link.wake)
        self.ask = self._asking.ask
        self._inboxes: dict[int, Inbox] = {}
        self._holding = Holding(self._link.wake)
        self.changed = self._holding.changed
        self._waiting: list[tuple[RunLog, asyncio.Future[None]]] = []
        self._reloads: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        self._boot: int | None = None
        self._partitions, self._slot_map = max(child.slot_map, default=0) + 1, child.slot_map
        self._stopping = asyncio.Event()
        self._quiet = asyncio.Event()
        self._told_s = 0.0
        self._states_max = child.config.sessions.max_live
        self._messages: dict[str, Callable[..., None]] = {
            "commands": self._on_commands, "frame": self._on_frame, "stored": self._on_stored,
            "expected": self._on_expected, "fenced": self._on_fenced, **self._asking.messages,
            "answer": lambda _, token, body: self._log_reads.answered(token, body),
        }
        self._commands: dict[str, Callable[..., None]] = {
            "run": self._do_run, "cancel": self._do_cancel, "close": self._do_close, "known": self._do_known,
            "reload": self._do_reload, "pause": partial(self._do_turn, True),
            "resume": partial(self._do_turn, False), "steer": self._do_steer,
            "decided": self._asking.messages["decided"],
        }

    def start(self) -> None:
        """Load the agents, say that we are here, and serve."""
        self.workspaces.recover()
        self.registry.start()
        self._watch.start()
        self._child.control.send("ready", epoch=self._child.incarnation, pid=os.getpid())
        self._tell()

    def stop(self) -> None:
        """Begin to stop: no new runs, the present ones are cancelled."""
        if not self._stopping.is_set():
            self._stopping.set()
            for drive in list(self._admission.line):
                self._forget(*drive.key)  # it never began: the next runner has it
            for drive in list(self._admission.inside):
                if drive.asks_again:
                    self._forget(*drive.key)
                else:
                    drive.stop(cancelled("shutdown"))
            self._check_quiet()

    async def served(self) -> None:
        """Return when the runner was told to stop and what it had to say is stored, or time is over."""
        await self._stopping.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await self._quiet.wait()
        kept = wire.pack(["left", [list(drive.key) for drive in self._runs.values()]])
        for partition in range(self._partitions):
            self._link.post(partition, kept)
        await asyncio.sleep(0)  # the end of this turn, where it leaves
        self._link.tell_router(["bye"])
        self._watch.end()
        self._link.close()

    def _check_quiet(self) -> None:
        if self._stopping.is_set() and not self._admission.inside and not self.outbox.logs:
            self._quiet.set()

    # --- what a drive needs ---

    async def room(self, log: RunLog) -> None:
        """Return when enough was stored for this log to take more."""
        while not self.outbox.has_room(log):
            waiter = self._loop.create_future()
            self._waiting.append((log, waiter))
            await waiter

    def ended(self, drive: Drive) -> None:
        """The provider of a drive is done: whoever waits longest for its place begins."""
        self._asking.forget(drive.key)
        admitted = self._admission.leave(drive)
        if admitted is not None:
            admitted.start()
        for stream in self._streams:
            stream.finish(f"{drive.info.id} {drive.key[0]}")
        self._check_quiet()

    def partitions(self) -> int:
        """How many the node has."""
        return self._partitions

    # --- sending ---

    def _turn(self) -> None:
        """The end of a turn: batches from new events, and acknowledgements."""
        now_s = time.monotonic()
        for partition in self._asking.partitions():
            self._holding.release(partition)
        for partition, logs, acks in self._holding.due():
            for frame in self.outbox.frame(partition, logs, now_s):
                self._link.post(partition, frame)
            if acks:
                inbox = self._inboxes[partition]
                self._post(partition, ["acks", inbox.epoch, inbox.done])
        self._asking.turn()

    def _post(self, partition: int, message: list[Any]) -> None:
        self._link.post(partition, wire.pack(message))

    def _tell(self) -> None:
        """Once a second: that we are here, our agents, and what was not stored for long."""
        self._tell_router()
        if not self._link.blocked:
            self._tell_catalogue()
            self._log_reads.again(time.monotonic())
            for partition, messages in self.outbox.overdue(time.monotonic()):
                for message in messages:
                    self._link.post(partition, message)
            self._make_room()  # what is sent again holds up nobody
            self._asking.again()
        self._stop_unstored()
        self.processes.collect(time.monotonic())
        self._loop.call_later(TELL_S, self._tell)

    def _stop_unstored(self) -> None:
        """An agent must not work for hours while nothing of it is kept."""
        limit_s = self._child.config.limits.unstored_s
        for run_id, attempt in self.outbox.unstored(time.monotonic() - limit_s):
            for drive in self._drives(run_id, attempt):
                drive.stop(unstored(limit_s))

    def _tell_router(self) -> None:
        child = self._child
        self._told_s = time.monotonic()
        told = self._link.tell_router([
            "ready", mailbox.RUNNER.decode(), child.index, child.incarnation, os.getpid(), self._stats(),
        ])
        if not told and not self._quiet.is_set():  # not connected yet, or no more
            self._loop.call_later(RETRY_S, self._woken)

    def _woken(self) -> None:
        """The socket stirred: perhaps it met a router that does not know us yet."""
        if time.monotonic() - self._told_s >= RETRY_S:
            self._tell_router()

    def _stats(self) -> dict[str, Any]:
        return {
            "runs": len(self._runs), "executing": len(self._admission.inside),
            "waiting": len(self._admission.line), "running_max": self._admission.limit,
            "unacked_bytes": self.outbox.bytes, "lag_ms": self._watch.lag_ms, "sessions": len(self.states),
            "refused": self._link.refused, "late_events": self.late,
            "redacted": self.redactor.count, "patterns_gave_up": self.redactor.gave_up,
        }

    def _catalogue(self) -> Any:
        """Our agents; the problem of one that cannot be loaded is a text of its own making."""
        return self.redactor.data(self.registry.catalogue())

    def _tell_catalogue(self) -> None:
        if self._boot is not None:
            message = wire.pack(["catalogue", None, self._catalogue()])
            for partition in range(self._partitions):
                self._link.post(partition, message)

    def _resend(self, partition: int | None) -> None:
        """What a partition (None: any) was sent and did not store may have been lost with its mailbox."""
        self._log_reads.again(time.monotonic(), partition, everything=partition is None)
        for index, messages in self.outbox.of_partition(partition, time.monotonic()):
            for message in messages:
                self._link.post(index, message)
        self._asking.lost(partition)  # behind what the runs said before

    # --- receiving ---

    def _on_message(self, kind: bytes, index: int, incarnation: int, message: list[Any]) -> None:
        if kind == mailbox.ROUTER:
            if message[0] == "welcome":
                self._welcomed(message[1], message[3])
            return
        epoch = message[1] if message[0] == "commands" else incarnation
        if kind == mailbox.PARTITION and self._heard(index, epoch):
            self._messages[message[0]](index, *message[1:])
            if message[0] != "commands":
                self._holding.answered(index)

    def _welcomed(self, boot: int, slot_map: bytes) -> None:
        self._partitions, self._slot_map = max(slot_map, default=0) + 1, slot_map
        if boot != self._boot:
            self._boot = boot
            self._tell_router()
            self._tell_catalogue()
            self._resend(None)

    def _heard(self, partition: int, epoch: int) -> bool:
        """Whether the sender is the present holder of its place; a new one is told everything."""
        inbox = self._inboxes.setdefault(partition, Inbox())
        if inbox.heard(epoch):
            self._post(partition, ["catalogue", None, self._catalogue()])
            self._resend(partition)
        return epoch == inbox.epoch

    def _on_commands(self, partition: int, epoch: int, first: int, commands: list[list[Any]]) -> None:
        inbox = self._inboxes[partition]
        if self._stopping.is_set():
            return  # unacknowledged, and so known not to be executed
        for name, *args in inbox.take(epoch, first, commands):
            try:
                self._commands[name](partition, *args)
            except Exception as exc:  # noqa: BLE001  one bad command must not take the next ones along
                why = f"{type(exc).__name__}: {exc}"[:300]
                self._log.write("a command was refused", command=str(name)[:40], why=why)
        self._holding.acknowledge(partition)  # behind the runs just begun: what they say leaves with it

    def _on_frame(self, partition: int, number: int, missing: list[int]) -> None:
        for run_id, attempt in self.outbox.framed(partition, number, missing, time.monotonic()):
            self._over(run_id, attempt)
        self._make_room()

    def _on_stored(self, partition: int, run_id: str, attempt: int, n: int) -> None:  # noqa: ARG002
        if self.outbox.stored((run_id, attempt), n):
            self._over(run_id, attempt)
        self._make_room()

    def _over(self, run_id: str, attempt: int) -> None:
        """The end of an attempt is stored."""
        for _ in self._drives(run_id, attempt):
            del self._runs[run_id]

    def _make_room(self) -> None:
        self._check_quiet()
        if self._waiting and not self.outbox.full:
            waiting, self._waiting = self._waiting, []
            for log, waiter in waiting:
                if not self.outbox.has_room(log):
                    self._waiting.append((log, waiter))
                elif not waiter.done():
                    waiter.set_result(None)

    def _on_expected(self, partition: int, run_id: str, attempt: int, n: int) -> None:
        log = self.outbox.logs.get((run_id, attempt))
        again = None if log is None else log.since(n, time.monotonic())
        if again is None:  # it wants what it told us to forget, or what we never had
            self._forget(run_id, attempt)
            self._post(partition, ["lost", [[run_id, attempt]]])
        for message in again or ():
            self._link.post(partition, message)

    def _on_fenced(self, partition: int, run_id: str, attempt: int) -> None:  # noqa: ARG002
        self._forget(run_id, attempt)

    def _forget(self, run_id: str, attempt: int) -> None:
        for drive in self._drives(run_id, attempt):
            del self._runs[run_id]
            drive.drop()
        self._make_room()

    # --- commands ---

    def _do_run(
        self, partition: int, run_id: str, attempt: int, *rest: Any,  # session map, input, options
    ) -> None:
        session, run_input, options = rest
        present = self._runs.get(run_id)
        if present is not None:
            if present.key[1] >= attempt:
                return
            self._forget(run_id, present.key[1])
        self._bound_states()
        drive = Drive(
            self, (run_id, attempt), partition=partition, session=session, run_input=run_input,
            options=options or {},
        )
        self._runs[run_id] = drive
        if self._admission.enter(drive):
            drive.start()

    def _bound_states(self) -> None:
        """Sessions whose end was never told (their partition died) must not add up."""
        while len(self.states) > self._states_max:
            session_id = next(iter(self.states))
            del self.states[session_id]
            self._log.write("the state of the oldest session was dropped", session=session_id)

    def _do_cancel(self, partition: int, run_id: str, attempt: int, reason: str = "cancel") -> None:
        drive = self._runs.get(run_id)
        if drive is None or drive.key[1] != attempt:
            self._post(partition, ["lost", [[run_id, attempt]]])
        else:
            drive.stop(cancelled(reason))

    def _do_turn(self, paused: bool, _partition: int, run_id: str, attempt: int) -> None:
        for drive in self._drives(run_id, attempt):
            drive.context.paused.turn(paused)

    def _do_steer(self, partition: int, run_id: str, attempt: int) -> None:  # noqa: ARG002
        for drive in self._drives(run_id, attempt):
            drive.steering.hint()

    def _drives(self, run_id: str, attempt: int) -> list[Drive]:
        """The attempt, when it is not over."""
        drive = self._runs.get(run_id)
        return [] if drive is None or drive.key[1] != attempt else [drive]

    def _do_close(self, partition: int, session_id: str) -> None:  # noqa: ARG002
        self.states.pop(session_id, None)
        self.transcripts.forget(session_id)

    def _do_known(self, partition: int, pairs: list[list[Any]]) -> None:
        lost = [[r, a] for r, a in pairs if r not in self._runs or self._runs[r].key[1] != a]
        if lost:
            self._post(partition, ["lost", lost])

    def _do_reload(self, partition: int, token: str) -> None:
        task = self._loop.create_task(self._reload(partition, token))
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload(self, partition: int, token: str) -> None:
        async with self._reloading:
            await self.registry.reload()
        self._tell_catalogue()  # the others know it before whoever asked does
        self._post(partition, ["catalogue", token, self._catalogue()])

    # --- agents that block ---

    def _unblocked(self, task: asyncio.Task[Any], where: str) -> None:
        """The loop is free again: say in the log of the run that blocked it what it did."""
        drive = next((drive for drive in self._admission.inside if drive.task is task), None)
        if drive is not None:
            lag_ms = self._watch.lag_ms
            message = f"the agent blocked its runner for {lag_ms / 1000:.1f} s at {where}"
            drive.report("error_occurred", {"error_message": message, "lag_ms": lag_ms})


__all__ = ["Runner", "main"]
