"""How a node is started, found and stopped from outside. Used by the command line and by ``LocalNode``.

A node is one process, ``python -m mesh.node``, that reads a launch document (JSON) and is its own
supervisor. The environment mark must be there at exec, since that is what the kernel shows to others for
the rest of the process's life. Processes are named by pid AND start time: a pid alone may have been given
to a stranger.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from xxhash import xxh3_64_hexdigest

from mesh.config import NodeConfig
from mesh.errors import ConfigError, MeshError, NodeUnreachable, from_wire
from mesh.proc import start_time

MARK = "MESH_MARK"
START_TIMEOUT_S = 30.0
#: After SIGKILL a process is gone in milliseconds unless the kernel itself is stuck.
KILL_WAIT_S = 5.0
_POLL_S = 0.01
_READY_BYTES_MAX = 256 * 1024


@dataclass(slots=True)
class Spawned:
    """A node that was started and has not reported yet."""

    process: subprocess.Popen[bytes]
    ready_fd: int  #: one JSON line arrives here, see ``wait_ready``
    parent_fd: int | None  #: closing it asks the node for an orderly end; None when it is detached
    log: Path  #: where its own stderr goes


def runtime_root() -> Path:
    """The folder of all running nodes of this user: address files and, below, their sockets."""
    named = os.environ.get("MESH_RUNTIME_DIR")
    if named:
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base, "mesh") if base else Path(f"/tmp/mesh-{os.getuid()}")


def data_hash(data_dir: Path) -> str:
    """Eight hex digits that stand for a data folder."""
    return xxh3_64_hexdigest(os.fsencode(data_dir.resolve()))[:8]


def runtime_dir(data_dir: Path) -> Path:
    """Where the node of this data folder keeps its sockets."""
    return runtime_root() / data_hash(data_dir)


def address_file(name: str) -> Path:
    """Where a node that was started by name can be found."""
    return runtime_root() / f"{name}.json"


def launch_env(data_dir: Path, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a new node: ours, a mark of its own, and a path on which ``mesh`` is found."""
    env = dict(os.environ if base is None else base)
    env[MARK] = f"{data_hash(data_dir)}:{secrets.token_hex(8)}"
    home = Path(__file__).resolve().parents[1]
    if home.name not in ("site-packages", "dist-packages"):
        env["PYTHONPATH"] = os.pathsep.join((str(home), *filter(None, (env.get("PYTHONPATH"),))))
    return env


def document(
    config: NodeConfig,
    data_dir: Path,
    *,
    by_name: bool,
    parent_fd: int | None = None,
    ready_fd: int | None = None,
    foreground: bool = False,
) -> dict[str, Any]:
    """What ``python -m mesh.node`` needs to know."""
    return {
        "config": config.to_document(), "data_dir": str(data_dir.resolve()), "by_name": by_name,
        "parent_fd": parent_fd, "ready_fd": ready_fd, "foreground": foreground, "sys_path": sys.path,
    }


def spawn_node(config: NodeConfig, data_dir: Path, *, by_name: bool, detach: bool = False) -> Spawned:
    """Start a node in a session of its own and return at once; ``wait_ready`` tells how it went.

    Unless detached, the node ends when this process does, however that happens.
    """
    log = data_dir / "logs" / "supervisor.log"
    _make_folder(log.parent)
    try:
        if log.exists() and log.stat().st_size > config.limits.log_bytes:
            log.replace(log.with_suffix(".log.1"))
        log.touch(mode=0o600)
    except OSError as exc:
        raise ConfigError(f"node.data_dir: {log}: {exc.strerror}") from exc
    ready_in, ready_out = os.pipe()
    parent_in, parent_out = (None, None) if detach else os.pipe()
    inherited = [fd for fd in (ready_out, parent_in) if fd is not None]
    launch = document(config, data_dir, by_name=by_name, parent_fd=parent_in, ready_fd=ready_out)
    try:
        with _document_file(launch) as stdin, log.open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "mesh.node"],
                stdin=stdin, stdout=errors, stderr=errors, pass_fds=inherited,
                env=launch_env(data_dir), start_new_session=True,
            )
    except BaseException:
        for fd in filter(None, (ready_in, parent_out)):
            os.close(fd)
        raise
    finally:
        for fd in inherited:
            os.close(fd)
    return Spawned(process, ready_in, parent_out, log)


def wait_ready(spawned: Spawned, timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
    """Wait until the node serves, and return its address map. Closes ``ready_fd``.

    Raises:
        MeshError: it refused to start (its own error), died, or took longer; in each case it was ended.
    """
    try:
        answer = _read_line(spawned.ready_fd, timeout_s)
    except MeshError:
        abandon(spawned)
        raise
    finally:
        os.close(spawned.ready_fd)
    if answer is None:
        abandon(spawned)
        raise MeshError(f"the node died while starting: {_last_line(spawned.log)}", code="node_unreachable")
    if "error" in answer:
        with suppress(subprocess.TimeoutExpired):
            spawned.process.wait(KILL_WAIT_S)  # it cleared up before it told us
        abandon(spawned)
        error = answer["error"]
        raise from_wire(error["code"], error["message"], error.get("details"))
    return answer


def abandon(spawned: Spawned, *, timeout_s: float = KILL_WAIT_S) -> None:
    """End a node for sure: ask, wait ``timeout_s``, kill; its children die with it. Repeating is harmless."""
    if spawned.parent_fd is not None:
        os.close(spawned.parent_fd)
        spawned.parent_fd = None
    process = spawned.process
    if process.poll() is None:
        process.terminate()
        process.send_signal(signal.SIGCONT)
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def exec_foreground(config: NodeConfig, data_dir: Path, *, by_name: bool = True) -> NoReturn:
    """Become the node: this process is replaced by its supervisor, terminal and pid stay."""
    exec_again(document(config, data_dir, by_name=by_name, foreground=True), data_dir)


def exec_again(launch: dict[str, Any], data_dir: Path) -> NoReturn:
    """Become the node of this launch document, with its mark in the environment from exec on."""
    file = _document_file(launch)
    os.set_inheritable(file.fileno(), True)
    sys.stdout.flush()
    sys.stderr.flush()
    arguments = [sys.executable, "-m", "mesh.node", f"fd:{file.fileno()}"]
    os.execve(sys.executable, arguments, launch_env(data_dir))


def find_node(where: str | Path) -> dict[str, Any] | None:
    """The address map of a running node, by its name or its runtime folder; None when it does not run."""
    path = where / "node.json" if isinstance(where, Path) else address_file(where)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        pid, started = int(found["pid"]), int(found["start_time"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if start_time(pid) == started else None


def stop_node(found: Mapping[str, Any], timeout_s: float = 20.0) -> bool:
    """Ask a node to stop and wait for its end. False when it had to be killed after ``timeout_s``.

    Raises:
        NodeUnreachable: it does not run any more.
    """
    pid, started = int(found["pid"]), int(found["start_time"])
    for signum, wait_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, KILL_WAIT_S)):
        if start_time(pid) != started:
            raise NodeUnreachable(f"node {found.get('name', '')} (pid {pid}) is not running")
        os.kill(pid, signum)
        os.kill(pid, signal.SIGCONT)
        if _wait_gone(pid, started, wait_s):
            return signum == signal.SIGTERM
    raise MeshError(f"pid {pid} does not die, not even by SIGKILL", code="internal_error")


def _wait_gone(pid: int, started: int, timeout_s: float) -> bool:
    until_s = time.monotonic() + timeout_s
    while start_time(pid) == started:
        if time.monotonic() > until_s:
            return False
        time.sleep(_POLL_S)
    return True


def _make_folder(path: Path) -> None:
    try:
        for folder in (path.parent, path):  # the mode is that of the last one alone
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"node.data_dir: {path}: {exc.strerror}") from exc


def _document_file(launch: dict[str, Any]) -> IO[bytes]:
    """An unlinked file: agents' settings appear neither in a command line nor on the disk."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller's process gives it to the node
    file.write(json.dumps(launch).encode())
    file.flush()
    file.seek(0)
    return file


def _read_line(fd: int, timeout_s: float) -> dict[str, Any] | None:
    until_s = time.monotonic() + timeout_s
    data = b""
    while not data.endswith(b"\n"):
        left_s = until_s - time.monotonic()
        if left_s <= 0 or not select.select([fd], [], [], left_s)[0]:
            raise MeshError(f"the node did not start within {timeout_s:g} s", code="timeout")
        chunk = os.read(fd, 65536)
        if not chunk or len(data) > _READY_BYTES_MAX:
            return None
        data += chunk
    answer: dict[str, Any] = json.loads(data)
    return answer


def _last_line(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "it said nothing"


__all__ = [
    "KILL_WAIT_S", "MARK", "START_TIMEOUT_S", "Spawned", "abandon", "address_file", "data_hash", "document",
    "exec_again", "exec_foreground", "find_node", "launch_env", "runtime_dir", "runtime_root", "spawn_node",
    "stop_node", "wait_ready",
]
