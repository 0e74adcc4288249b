"""What a supervisor does before its first child: lock, leftovers, folders, node.db, slots.

What the children run is imported here, so that a fork finds it in memory; but each kind when its first child
is due, for the runner begins first and takes the longest.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from mesh.config import NodeConfig
from mesh.errors import ConfigError, MeshError, StoreError
from mesh.launch import runtime_dir
from mesh.log import Log
from mesh.node import runtime
from mesh.node.child import Child, Control
from mesh.node.fork import LogFile, Main, fork_child
from mesh.node.reaper import become_subreaper, weaker

#: Whose children are forked first.
FIRST = "runner"
#: Pause between two looks at the child that moves slots, and between two words that it goes on.
_LOOK_S, _SAY_S = 0.01, 1.0


class Ground(NamedTuple):
    """What the children stand on."""

    data_dir: Path
    runtime_dir: Path
    life: runtime.Life
    addresses: runtime.AddressFiles
    mains: Mapping[str, Main]


class Mains(dict[str, Main]):
    """What a child of each kind runs; imported when it is asked for first."""

    def __missing__(self, kind: str) -> Main:
        main: Main = importlib.import_module(f"mesh.node.{kind}").main
        self[kind] = main
        gc.freeze()  # pages that no collection touches stay shared with the children
        return main


class Report:
    """Tells whoever started us, once, how the start went."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def goes_on(self) -> None:
        """It takes long, for a reason: who waits goes on waiting."""
        self._write(b"")

    def ready(self, address: Mapping[str, Any]) -> None:
        """The node serves at this address."""
        self._tell(dict(address))

    def failed(self, error: MeshError) -> None:
        """The node does not start. Later failures find nobody who listens, and say nothing here."""
        self._tell({"error": error.to_wire()})

    def close(self) -> None:
        """End the conversation; a start that was never reported is seen as a death."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _tell(self, answer: dict[str, Any]) -> None:
        self._write(json.dumps(answer).encode())
        self.close()

    def _write(self, line: bytes) -> None:
        if self._fd is not None:
            with suppress(OSError):
                os.write(self._fd, line + b"\n")


def prepare(
    config: NodeConfig,
    data_dir: Path,
    *,
    by_name: bool,
    mains: Mapping[str, Main] | None,
    log: Log,
    stack: ExitStack,
    stopped: Callable[[], bool],
    goes_on: Callable[[], object],
) -> Ground:
    """Make everything ready for the first fork; ``stack`` takes it back at the end, in reverse.

    While slots are moving, ``stopped`` tells whether somebody wants us to stop, and ``goes_on`` is called.

    Raises:
        MeshError: the node cannot start here; nothing was changed but the traces of an earlier life.
    """
    for sentence in weaker():
        log.write("weaker on this platform", what=sentence)
    become_subreaper()
    _make_data_dir(data_dir)
    stack.callback(runtime.DataLock(data_dir).close)
    addresses = runtime.AddressFiles(runtime_dir(data_dir), config.node.name, by_name=by_name)
    reaped = runtime.reap_leftovers(data_dir)
    if reaped:
        log.write("killed leftovers of an earlier life", pids=[proc.pid for proc in reaped])
    folder = runtime.make_runtime_dir(data_dir)
    stack.callback(runtime.remove_runtime_dir, folder)
    stack.callback(addresses.remove)
    stack.callback((data_dir / "processes.json").unlink, missing_ok=True)
    mains = Mains() if mains is None else mains
    life = _begin_life(config, data_dir, mains)
    ground = Ground(data_dir, folder, life, addresses, mains)
    if not life.resize:
        return ground
    log.write("moving slots", partitions=config.node.partitions)
    return ground._replace(life=_resize(config, ground, stopped, goes_on))


def _make_data_dir(data_dir: Path) -> None:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (data_dir / "logs").mkdir(mode=0o700, exist_ok=True)
        if not os.access(data_dir, os.W_OK | os.X_OK):
            raise PermissionError(13, "not writable")
    except OSError as exc:
        raise ConfigError(f"node.data_dir: {data_dir}: {exc.strerror}") from exc


def _begin_life(config: NodeConfig, data_dir: Path, mains: Mapping[str, Main]) -> runtime.Life:
    """Count this start in node.db; while the disk is busy with that, import what is needed first."""
    with ThreadPoolExecutor(1) as beside:
        life = beside.submit(runtime.begin_life, data_dir, config.node.partitions)
        mains[FIRST]
    return life.result()


def _resize(
    config: NodeConfig, ground: Ground, stopped: Callable[[], bool], goes_on: Callable[[], object]
) -> runtime.Life:
    """Move slots in a child, which opens the databases in our place; a kill is mended by the next start."""
    ours, theirs = socket.socketpair()
    life = ground.life
    child = Child(
        name="resize", kind="resize", index=0, incarnation=0, node_boot=life.boot, config=config,
        data_dir=ground.data_dir, runtime_dir=ground.runtime_dir, slot_map=life.slot_map,
        map_version=life.map_version, control=Control(theirs),
    )
    log = LogFile(ground.data_dir / "logs" / "resize.log", config.limits.log_bytes)
    with ours, theirs:
        pid = fork_child(child, ground.mains.get("resize", _resize_main), log)
        status = _wait(pid, stopped, goes_on)
    if status is None:
        raise MeshError("stopped while slots were moving; the next start goes on with it", code="cancelled")
    after = runtime.read_life(ground.data_dir, life.boot, config.node.partitions)
    if status != 0 or after.resize:
        lines = log.last_lines().splitlines() or [f"exit status {os.waitstatus_to_exitcode(status)}"]
        raise StoreError(f"slots could not be moved to {config.node.partitions} partitions: {lines[-1]}")
    return after


def _wait(pid: int, stopped: Callable[[], bool], goes_on: Callable[[], object]) -> int | None:
    """The exit status of a child; None when it was killed because somebody wants us to stop."""
    said_s = time.monotonic()
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        if stopped():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        if time.monotonic() - said_s > _SAY_S:
            said_s = time.monotonic()
            goes_on()
        time.sleep(_LOOK_S)


def _resize_main(child: Child) -> None:
    from mesh.store.resize import resize

    resize(child.data_dir, child.config.node.partitions)


__all__ = ["FIRST", "Ground", "Mains", "Report", "prepare"]
