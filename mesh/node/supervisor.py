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
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from mesh.config import NodeConfig
from mesh.core.mailbox import ChildState
from mesh.core.supervisor import Action, Announce, ChildSpec, Kill, RestartPolicy, Spawn, Stop, Supervision
from mesh.errors import MeshError, from_wire
from mesh.log import Log
from mesh.node import prepare
from mesh.node.child import Child, Control
from mesh.node.fork import HANDLED, LogFile, Main, cause_of, fork_child
from mesh.node.reaper import children, kill_group, kill_tree
from mesh.node.runtime import Life, write_processes
from mesh.proc import start_time

Status = Callable[[dict[str, Any]], None]
STATUS_EVERY_S = 1.0
LOGS_EVERY_S = 5.0
#: How long one look for strays may hold up the loop; the next tick goes on with it.
SWEEP_S = 1.0
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
    complain: Callable[[MeshError], None] | None = None,
) -> int:
    """Be the supervisor of one node until a signal, the parent's end or a fatal error; return the exit status.

    ``ready_fd`` gets one JSON line: the address map, or ``{"error": ...}``. ``status`` is called about once
    a second. ``complain`` gets the error that ends the node. ``mains`` replaces what the children run.
    """
    log = log or Log("supervisor")
    report = prepare.Report(ready_fd)
    try:
        with ExitStack() as stack:
            wake = stack.enter_context(Wakeup())
            ground = prepare.prepare(
                config, data_dir, by_name=by_name, mains=mains, log=log, stack=stack, stopped=lambda: wake.asked > 0
            )
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


class Wakeup:
    """Signals as data: each one makes the loop's descriptor readable and is counted."""

    def __init__(self) -> None:
        self.asked = 0  #: how often somebody asked us to stop
        self.hard = False  #: a second Ctrl-C: do not wait for anybody
        self._in, self._out = socket.socketpair()
        for end in (self._in, self._out):
            end.setblocking(False)
        self._old: list[tuple[int, Any]] = []

    def __enter__(self) -> Wakeup:
        self._old = [(signum, signal.signal(signum, self._note)) for signum in HANDLED]
        self._fd = signal.set_wakeup_fd(self._out.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._fd)
        for signum, handler in self._old:
            signal.signal(signum, handler)
        self._in.close()
        self._out.close()

    def fileno(self) -> int:
        """Readable after a signal."""
        return self._in.fileno()

    def drain(self) -> None:
        """Forget the bytes; what they meant is in ``asked``."""
        with suppress(BlockingIOError):
            while self._in.recv(4096):
                pass

    def _note(self, signum: int, _frame: object) -> None:
        if signum != signal.SIGCHLD:
            self.hard = self.hard or (signum == signal.SIGINT and self.asked > 0)
            self.asked += 1


class Supervisor:
    """The children of one node, their pipes and logs."""

    def __init__(
        self,
        config: NodeConfig,
        ground: prepare.Ground,
        wake: Wakeup,
        report: prepare.Report,
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
        self._logs = {
            name: LogFile(ground.data_dir / "logs" / f"{name}.log", config.limits.log_bytes) for name in self._specs
        }
        self._controls: dict[str, Control] = {}
        self._names: dict[int, str] = {}
        self._spawned = 0
        self._foreign = set(children(os.getpid()))
        self._endpoints = {"address": "", "feed": ""}
        self._served = False
        self._error: MeshError | None = None
        self._roster_due = self._processes_due = False
        self._began_s = time.monotonic()
        self._status_s = self._logs_s = 0.0
        self._selector = selectors.DefaultSelector()
        self._selector.register(wake, selectors.EVENT_READ, wake.drain)
        if parent_fd is not None:
            self._selector.register(parent_fd, selectors.EVENT_READ, self._hear_parent)

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
        """Leave nothing behind: no process, no socket, no address."""
        for pid in self._names:
            kill_group(pid)
        survivors = kill_tree(keep=self._foreign, reap=True)
        if survivors:
            self._log.write("processes survive SIGKILL", pids=[proc.pid for proc in survivors])
        for control in self._controls.values():
            control.close()
        self._selector.close()

    # --- what happened ---

    def _hear(self, name: str) -> None:
        control = self._controls.get(name)
        if control is None:
            return
        try:
            messages = control.receive()
        except ValueError as exc:
            self._log.write("kills a child that sends no messages", child=name, error=str(exc))
            self._kill(name)
            return
        for message in messages:
            self._on_message(name, message)
        if control.closed:
            self._hang_up(name)

    def _on_message(self, name: str, message: dict[str, Any]) -> None:
        now_s = time.monotonic()
        match message.get("t"):
            case "ready":
                if name == ROUTER:
                    self._endpoints = {key: str(message.get(key, "")) for key in self._endpoints}
                    if self._served:
                        self._ground.addresses.write(self._address())
                self._do(self._core.ready(name, message.get("epoch"), now_s))
            case "beat":
                self._do(self._core.beat(name, now_s, float(message.get("lag_ms") or 0.0)))
            case "progress":
                self._core.progress(name, now_s)
            case "restart":
                self._log.write("restart by hand", child=message.get("name"))
                self._do(self._core.restart(str(message.get("name")), now_s))
            case "fatal":
                self._on_fatal(name, message)
            case other:
                self._log.write("unknown message", child=name, t=str(other))

    def _on_fatal(self, name: str, message: dict[str, Any]) -> None:
        error = from_wire(str(message.get("code") or "config_error"), str(message.get("message")))
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
                self._kill(name)
        if self._parent is not None and os.getppid() != self._parent[1]:
            self._shutdown("its parent is gone")

    def _collect(self) -> None:
        """Take every death that the kernel has for us: children's and strays'."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self._foreign.discard(pid)
            name = self._names.pop(pid, None)
            if name is not None:
                self._on_death(name, pid, status)
        if not self._foreign.union(self._names).issuperset(children(os.getpid())):
            self._sweep()

    def _on_death(self, name: str, pid: int, status: int) -> None:
        self._hear(name)
        self._hang_up(name)
        kill_group(pid)
        if self._specs[name].kind == "runner":
            self._sweep()
        cause = cause_of(status, self._logs[name])
        self._log.write("child ended", child=name, pid=pid, exit_status=cause["exit_status"], signal=cause["signal"])
        self._do(self._core.exited(name, cause, time.monotonic()))

    def _sweep(self) -> None:
        """Kill what came back to us from a dead runner. Known children, and those we began with, stay."""
        survivors = kill_tree(keep=self._foreign | set(self._names), reap=True, timeout_s=SWEEP_S)
        if survivors:
            self._log.write("strays do not die yet", pids=[proc.pid for proc in survivors])

    # --- what follows ---

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Spawn(name):
                    self._spawn(name)
                case Stop(name):
                    self._stop(name)
                case Kill(name, reason):
                    self._log.write("kills a child", child=name, reason=reason)
                    self._kill(name)
                case Announce(name, state):
                    self._announce(name, state)

    def _spawn(self, name: str) -> None:
        ours, theirs = socket.socketpair()
        self._spawned += 1
        child = self._child(self._specs[name], Control(theirs))
        now_s = time.monotonic()
        try:
            pid = fork_child(child, self._ground.mains[child.kind], self._logs[name])
        except OSError as exc:
            ours.close()
            cause = {"exit_status": None, "signal": None, "stderr": f"cannot fork: {exc}", "at": time.time()}
            self._do(self._core.exited(name, cause, now_s))
            return
        finally:
            theirs.close()
        self._names[pid] = name
        self._controls[name] = Control(ours)
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._hear(name))
        self._processes_due = True
        self._do(self._core.started(name, pid, child.incarnation, now_s))

    def _child(self, spec: ChildSpec, control: Control) -> Child:
        ground, life = self._ground, self._ground.life
        return Child(
            name=spec.name, kind=spec.kind, index=spec.index, incarnation=incarnation(life, self._spawned),
            node_boot=life.boot, config=self._config, data_dir=ground.data_dir, runtime_dir=ground.runtime_dir,
            slot_map=life.slot_map, map_version=life.map_version, control=control,
            address=self._endpoints["address"], feed=self._endpoints["feed"],
        )

    def _stop(self, name: str) -> None:
        if name in self._controls:
            self._controls[name].send("stop")
        for signum in (signal.SIGTERM, signal.SIGCONT):
            os.kill(self._core.pids()[name], signum)

    def _kill(self, name: str) -> None:
        pid = self._core.pids().get(name)
        if pid in self._names:
            kill_group(pid)
            os.kill(pid, signal.SIGKILL)

    def _hang_up(self, name: str) -> None:
        control = self._controls.pop(name, None)
        if control is not None:
            self._selector.unregister(control)
            control.close()

    def _announce(self, name: str, state: ChildState) -> None:
        self._roster_due = True
        if state is ChildState.DOWN:
            self._log.write("child is down", child=name)
            if name == ROUTER:
                self._fail(MeshError(f"the router does not stay up: {self._last_words(ROUTER)}", code="internal_error"))
        if not self._served:
            self._check_served()

    def _check_served(self) -> None:
        """The first time that the router and the partitions all came up, or gave up."""
        partitions = [s for name, s in self._core.states().items() if self._specs[name].kind == "partition"]
        if self._core.stopping or any(s not in (ChildState.READY, ChildState.DOWN) for s in partitions):
            return
        if ChildState.READY not in partitions:
            words = self._last_words(next(name for name, spec in self._specs.items() if spec.kind == "partition"))
            self._fail(MeshError(f"no partition comes up: {words}", code="internal_error"))
        elif self._core.states()[ROUTER] is ChildState.READY:
            self._served = True
            self._ground.addresses.write(self._address())
            self._report.ready(self._address())
            self._log.write("serving", **self._endpoints, seconds=round(time.monotonic() - self._began_s, 3))

    def _address(self) -> dict[str, Any]:
        folder = self._ground.runtime_dir
        return {
            "name": self._config.node.name, "pid": os.getpid(), "start_time": start_time(os.getpid()),
            **self._endpoints, "ipc": f"ipc://{folder}/front", "feed_ipc": f"ipc://{folder}/feed",
            "data_dir": str(self._ground.data_dir), "runtime_dir": str(folder),
        }

    def _last_words(self, name: str) -> str:
        words = next(entry["cause"] for entry in self._core.roster() if entry["name"] == name) or {}
        lines = str(words.get("stderr", "")).splitlines() or [str(words.get("signal") or words.get("exit_status"))]
        return lines[-1]

    def _fail(self, error: MeshError) -> None:
        if self._error is None:
            self._error = error
            self._report.failed(error)
            self._shutdown(str(error))

    def _shutdown(self, reason: str) -> None:
        if not self._core.stopping:
            self._log.write("stopping", reason=reason)
            self._do(self._core.shutdown(time.monotonic()))

    # --- every turn ---

    def _publish(self) -> None:
        for control in self._controls.values():
            control.flush()
        if self._roster_due and ROUTER in self._controls:
            self._roster_due = not self._controls[ROUTER].send("roster", children=self._core.roster())
        if self._processes_due:
            self._processes_due = False
            write_processes(self._ground.data_dir, self._core.pids())

    def _keep_house(self) -> None:
        now_s = time.monotonic()
        if now_s - self._logs_s >= LOGS_EVERY_S:
            self._logs_s = now_s
            for log in self._logs.values():
                log.bound()
        if self._status is not None and now_s - self._status_s >= STATUS_EVERY_S:
            self._status_s = now_s
            self._status({
                **self._address(), "uptime_s": now_s - self._began_s, "serving": self._served,
                "children": self._core.roster(),
            })


def child_specs(config: NodeConfig) -> list[ChildSpec]:
    """The children of a node. Runners stop first, then partitions, the router last."""
    partitions = [ChildSpec(f"partition-{i}", "partition", i, 1) for i in range(config.node.partitions)]
    runners = [ChildSpec(f"runner-{i}", "runner", i, 2) for i in range(config.node.runners)]
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


def incarnation(life: Life, spawned: int) -> int:
    """Grows with every start of a child, over restarts of the node too."""
    return life.boot * 1_000_000 + spawned


__all__ = ["Status", "Supervisor", "Wakeup", "child_specs", "restart_policy", "run"]
