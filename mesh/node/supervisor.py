"""The supervisor of a node: performs what ``core/supervisor.py`` decides.

One thread and one ``selectors`` loop over the children's pipes, a wake-up pipe for signals and, when it was
started by a program, a pipe whose end tells of that program's death. It never opens a ZeroMQ context and
keeps no database open, so its forks are cheap and safe.

The router's end is the node's end: nobody could reach the node to mend it. So a router that exhausts its
restarts, or whose port is taken at the start, ends the node with one clear line and status 1.
"""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from mesh.config import NodeConfig
from mesh.core.mailbox import ChildState
from mesh.core.supervisor import Action, Announce, ChildSpec, Kill, RestartPolicy, Spawn, Stop, Supervision
from mesh.errors import MeshError, StoreError, from_wire
from mesh.log import Log
from mesh.node.child import Child, Control
from mesh.node.family import Family
from mesh.node.fork import Main
from mesh.node.prepare import Ground, Report, prepare
from mesh.node.runtime import write_processes
from mesh.node.wakeup import Wakeup
from mesh.proc import start_time

Status = Callable[[dict[str, Any]], None]
STATUS_EVERY_S = 1.0
LOGS_EVERY_S = 5.0
ROUTER = "router"


def run(
    config: NodeConfig,
    *,
    data_dir: Path,
    by_name: bool,
    parent_fd: int | None = None,
    ready_fd: int | None = None,
    status: Status | None = None,
    mains: dict[str, Main] | None = None,
    log: Log | None = None,
    complain: Callable[[MeshError], object] | None = None,
) -> int:
    """Supervise one node until a signal, the parent's end or a fatal error; return the exit status.

    ``ready_fd`` gets one JSON line, the address map or ``{"error": ...}``; empty ones say that it takes long.
    ``status`` is called about once a second. ``complain`` gets the error that ends the node.
    ``mains`` replaces what the children run.
    """
    log = log or Log("supervisor")
    report = Report(ready_fd)
    try:
        with ExitStack() as stack:
            wake = stack.enter_context(Wakeup())
            try:
                ground = prepare(
                    config, data_dir, by_name=by_name, mains=mains, log=log, stack=stack,
                    stopped=lambda: wake.asked > 0, goes_on=report.goes_on,
                )
            except OSError as exc:  # a full or read-only disk
                where = f"node.data_dir: {exc.filename or data_dir}: {exc.strerror}"
                raise StoreError(where, code="storage_write_failed") from exc
            node = Supervisor(config, ground, wake, report, log, parent_fd=parent_fd, status=status)
            stack.callback(node.close)
            node.serve()
            return 0
    except MeshError as exc:
        report.failed(exc)
        log.write("ended", error=str(exc))
        if complain is not None:
            complain(exc)
        return 1
    finally:
        report.close()


class Supervisor:
    """One node: decisions from the core, processes from the family."""

    def __init__(
        self,
        config: NodeConfig,
        ground: Ground,
        wake: Wakeup,
        report: Report,
        log: Log,
        *,
        parent_fd: int | None = None,
        status: Status | None = None,
    ) -> None:
        self._config = config
        self._ground = ground
        self._wake = wake
        self._report = report
        self._log = log
        self._status = status
        self._parent = None if parent_fd is None else (parent_fd, os.getppid())
        specs = child_specs(config)
        self._specs = {spec.name: spec for spec in specs}
        self._core = Supervision(specs, restart_policy(config))
        self._selector = selectors.DefaultSelector()
        self._selector.register(wake, selectors.EVENT_READ, wake.drain)
        if parent_fd is not None:
            self._selector.register(parent_fd, selectors.EVENT_READ, self._hear_parent)
        self._family = Family(
            specs, folder=ground.data_dir / "logs", log_bytes=config.limits.log_bytes,
            selector=self._selector, hear=self._hear, log=log,
        )
        self._spawned = 0
        self._refused: set[str] = set()  #: files that a disk did not take
        self._endpoints = {"address": "", "feed": ""}
        self._served = False
        self._error: MeshError | None = None
        self._roster_due = self._processes_due = False
        self._note = ""  #: what a child said last of what takes long at its start
        self._began_s = time.monotonic()
        self._status_s = self._logs_s = 0.0  #: when each was done last

    def serve(self) -> None:
        """Start the children, keep them running, and return when all of them are gone again.

        Raises:
            MeshError: the node could not start, or lost its router for good. All children are gone.
        """
        self._do(self._core.start(time.monotonic()))
        while not self._core.finished:
            for key, _ in self._selector.select(self._core.wait_s(time.monotonic())):
                key.data()
            self._collect()
            self._heed_signals()
            self._do(self._core.tick(time.monotonic()))
            self._publish()
            self._keep_house()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Leave no process behind, not even when ``serve`` failed."""
        self._family.close()
        self._selector.close()

    # --- what happened ---

    def _hear(self, name: str, message: dict[str, Any]) -> None:
        now_s = time.monotonic()
        match message.get("t"):
            case "ready":
                if name == ROUTER:
                    self._on_router_ready(message)
                self._do(self._core.ready(name, message.get("epoch"), now_s))
            case "beat":
                self._do(self._core.beat(name, now_s, float(message.get("lag_ms") or 0.0)))
            case "progress":
                self._core.progress(name, now_s)
                self._note = str(message.get("note") or "")
                self._report.goes_on()
            case "restart":
                self._log.write("restart by hand", child=message.get("name"))
                self._do(self._core.restart(str(message.get("name")), now_s))
            case "fatal":
                self._on_fatal(name, message)
            case "hopeless":
                self._core.give_up(name, str(message.get("message")))
            case other:
                self._log.write("unknown message", child=name, t=str(other))

    def _on_router_ready(self, message: dict[str, Any]) -> None:
        self._endpoints = {key: str(message.get(key, "")) for key in self._endpoints}
        if self._served:
            self._write("the address", lambda: self._ground.addresses.write(self._address()))

    def _on_fatal(self, name: str, message: dict[str, Any]) -> None:
        """A child knows that trying again cannot help. At the start that ends the node; later, the child."""
        code, text = str(message.get("code") or "config_error"), str(message.get("message"))
        error = from_wire(code, text, message.get("details"))
        if self._served:
            self._log.write("child cannot go on", child=name, error=str(error))
        else:
            self._fail(error)

    def _hear_parent(self) -> None:
        assert self._parent is not None
        if not os.read(self._parent[0], 4096):
            self._selector.unregister(self._parent[0])
            self._shutdown("its parent is gone")

    def _heed_signals(self) -> None:
        if self._wake.asked:
            self._shutdown("asked by a signal")
        if self._wake.hard:
            for name in self._core.pids():
                self._family.kill(name)
        if self._parent is not None and os.getppid() != self._parent[1]:
            self._shutdown("its parent is gone")

    def _collect(self) -> None:
        for name, pid, cause in self._family.deaths():
            how = {key: cause[key] for key in ("exit_status", "signal")}
            self._log.write("child ended", child=name, pid=pid, **how)
            self._do(self._core.exited(name, cause, time.monotonic()))
        self._family.sweep()

    # --- what follows ---

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Spawn(name):
                    self._spawn(name)
                case Stop(name, again):
                    self._family.stop(name, again=again)
                case Kill(name, reason):
                    self._log.write("kills a child", child=name, reason=reason)
                    self._family.kill(name)
                case Announce(name, state):
                    self._announce(name, state)

    def _spawn(self, name: str) -> None:
        self._spawned += 1
        incarnation = self._ground.life.boot * 1_000_000 + self._spawned
        spec = self._specs[name]
        now_s = time.monotonic()
        try:
            pid = self._family.spawn(
                lambda control: self._child(spec, incarnation, control), self._ground.mains[spec.kind]
            )
        except OSError as exc:
            cause = {"exit_status": None, "signal": None, "stderr": f"cannot fork: {exc}", "at": time.time()}
            self._do(self._core.exited(name, cause, now_s))
            return
        self._processes_due = True
        self._do(self._core.started(name, pid, incarnation, now_s))

    def _child(self, spec: ChildSpec, incarnation: int, control: Control) -> Child:
        ground, life = self._ground, self._ground.life
        return Child(
            name=spec.name, kind=spec.kind, index=spec.index, agent=spec.agent, incarnation=incarnation,
            node_boot=life.boot, config=self._config, data_dir=ground.data_dir,
            runtime_dir=ground.runtime_dir, slot_map=life.slot_map, map_version=life.map_version,
            control=control, **self._endpoints,
        )

    def _announce(self, name: str, state: ChildState) -> None:
        self._roster_due = True
        if state is ChildState.READY and self._served:
            self._log.write("child serves again", child=name, pid=self._core.pids()[name])
        if state is ChildState.DOWN:
            self._log.write("child is down", child=name)
            if name == ROUTER:
                self._fail(self._gave_up("the router does not stay up", ROUTER))
        if not self._served and not self._core.stopping:
            self._check_served()

    def _check_served(self) -> None:
        """The first time that router and partitions all came up, or gave up: the rest serves on."""
        states = self._core.states()
        names = [name for name, spec in self._specs.items() if spec.kind == "partition"]
        if any(states[name] not in (ChildState.READY, ChildState.DOWN) for name in names):
            return
        if all(states[name] is ChildState.DOWN for name in names):
            self._fail(self._gave_up("no partition comes up", names[0]))
        elif states[ROUTER] is ChildState.READY:
            if not self._write("the address", lambda: self._ground.addresses.write(self._address())):
                self._fail(StoreError(f"MESH_RUNTIME_DIR: cannot write to {self._ground.runtime_dir}"))
                return
            self._served = True
            self._report.ready(self._address())
            self._status_s = 0.0
            seconds = round(time.monotonic() - self._began_s, 3)
            self._log.write("serving", **self._endpoints, seconds=seconds)

    def _gave_up(self, what: str, name: str) -> MeshError:
        cause = next(entry["cause"] for entry in self._core.roster() if entry["name"] == name) or {}
        if cause.get("reason"):
            return MeshError(f"{what}: {cause['reason']}", code="internal_error")
        lines = str(cause.get("stderr") or "").splitlines()
        last = lines[-1] if lines else f"ended by {cause.get('signal') or cause.get('exit_status')}"
        return MeshError(f"{what}: {last}", code="internal_error")

    def _fail(self, error: MeshError) -> None:
        if self._error is None:
            self._error = error
            self._shutdown(str(error))

    def _shutdown(self, reason: str) -> None:
        if not self._core.stopping:
            self._log.write("stopping", reason=reason)
            self._do(self._core.shutdown(time.monotonic()))

    # --- every turn ---

    def _publish(self) -> None:
        self._family.flush()
        if self._roster_due:
            self._roster_due = not self._family.send(ROUTER, "roster", children=self._core.roster())
        if self._processes_due:
            pids = self._core.pids()
            self._processes_due = not self._write(
                "processes.json", lambda: write_processes(self._ground.data_dir, pids))

    def _write(self, what: str, write: Callable[[], object]) -> bool:
        """Write a file of ours; a disk that refuses is logged once and ends nobody."""
        try:
            write()
        except OSError as exc:
            if what not in self._refused:
                self._log.write("cannot write", what=what, why=str(exc))
                self._refused.add(what)
            return False
        self._refused.discard(what)
        return True

    def _keep_house(self) -> None:
        now_s = time.monotonic()
        if now_s - self._logs_s >= LOGS_EVERY_S:
            self._logs_s = now_s
            self._family.bound_logs()
        if self._status is not None and now_s - self._status_s >= STATUS_EVERY_S:
            self._status_s = now_s
            with suppress(OSError):  # the terminal may be gone
                self._status({
                    **self._address(), "serving": self._served, "uptime_s": now_s - self._began_s,
                    "children": self._core.roster(), "note": self._note,
                })

    def _address(self) -> dict[str, Any]:
        folder = self._ground.runtime_dir
        return {
            "name": self._config.node.name, "pid": os.getpid(), "start_time": start_time(os.getpid()),
            **self._endpoints, "ipc": f"ipc://{folder}/front", "feed_ipc": f"ipc://{folder}/feed",
            "data_dir": str(self._ground.data_dir), "runtime_dir": str(folder),
        }


def child_specs(config: NodeConfig) -> list[ChildSpec]:
    """The children of a node. Runners stop first, then partitions, the router last."""
    partitions = [ChildSpec(f"partition-{i}", "partition", i, 1) for i in range(config.node.partitions)]
    hosting = config.hosting()
    runners = [ChildSpec(f"runner-{i}", "runner", i, 2, hosting.agent_of(i)) for i in range(hosting.count)]
    return [ChildSpec(ROUTER, "router", 0, 0), *partitions, *runners]


def restart_policy(config: NodeConfig) -> RestartPolicy:
    """``[supervision]`` in the core's terms."""
    section = config.supervision
    return RestartPolicy(
        intensity=section.intensity, period_s=section.period_s,
        backoff_s=section.backoff_ms / 1000, backoff_max_s=section.backoff_max_ms / 1000,
        hang_timeout_s=section.hang_timeout_s, start_timeout_s=section.start_timeout_s,
        stop_timeout_s=section.stop_timeout_s, agent_block_timeout_s=section.agent_block_timeout_s,
        tick_s=min(0.25, section.heartbeat_s, section.hang_timeout_s / 4),
    )


__all__ = ["Status", "Supervisor", "child_specs", "restart_policy", "run"]
