"""How a node is started, found and stopped from outside. Used by the command line and by ``LocalNode``.

A node is one process, ``python -m mesh.node``, that reads a launch document (JSON) and is its own
supervisor. It may be begun before its document is known: then it imports what it needs, and waits. The
environment mark must be there at exec, since that is what the kernel shows to others for the rest of the
process's life. Processes are named by pid AND start time: a pid alone may have been given to a stranger.

What this module imports stands between a command and its node: no more than it needs until the process runs.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, NoReturn

from xxhash import xxh3_64_hexdigest

from mesh.errors import ConfigError, MeshError, NodeUnreachable, from_wire
from mesh.proc import start_time

if TYPE_CHECKING:
    from mesh.config import NodeConfig

MARK = "MESH_MARK"
START_TIMEOUT_S = 30.0
#: After SIGKILL a process is gone in milliseconds unless the kernel itself is stuck.
KILL_WAIT_S = 5.0
#: Of a supervisor's log, unless the settings say otherwise.
LOG_BYTES = 4 * 1024 * 1024
#: What a process that was begun before its document is given as argument, with the descriptor to look at.
BEGUN = "begun:"
#: What it reads from its stdin when the document is there; the end of it means that there will be none.
GO = b"\n"
_POLL_S = 0.01
_READY_BYTES_MAX = 256 * 1024


class Spawned:
    """A node that was started and has not reported yet."""

    def __init__(
        self, process: subprocess.Popen[bytes], ready_fd: int, parent_fd: int | None, log: Path
    ) -> None:
        self.process = process
        self.ready_fd = ready_fd  #: one JSON line arrives here, and empty ones before it; see ``wait_ready``
        self.parent_fd = parent_fd  #: closing it asks the node for an orderly end; None when it is detached
        self.log = log  #: where its own stderr goes


class Begun(NamedTuple):
    """A process that will be the node of this folder, once it is told its launch document."""

    spawned: Spawned
    data_dir: Path
    document: IO[bytes]  #: the file where it looks for the document
    theirs: tuple[int, int | None]  #: ``ready_fd`` and ``parent_fd`` as the process knows them

    def tell(self, launch: dict[str, Any]) -> Spawned:
        """Have it be this node."""
        try:
            _write_document(self.document, launch)
            self._say(GO)
        except BaseException:
            self.end()
            raise
        return self.spawned

    def end(self) -> None:
        """There will be no node."""
        self._say(b"")
        abandon(self.spawned)
        os.close(self.spawned.ready_fd)

    def drop(self) -> None:
        """There will be no node, and its temporary folder goes."""
        self.end()
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def _say(self, word: bytes) -> None:
        with suppress(OSError):  # a full disk, where ``tell`` failed: it tries the rest again
            self.document.close()
        stdin = self.spawned.process.stdin
        assert stdin is not None
        if not stdin.closed:
            with suppress(BrokenPipeError):  # it is dead: ``wait_ready`` says why
                stdin.write(word)
            stdin.close()


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
    env[MARK] = f"{data_hash(data_dir)}:{os.urandom(8).hex()}"
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


def begin_node(data_dir: Path | None = None, *, detach: bool = False, log_bytes: int = LOG_BYTES) -> Begun:
    """Start a node's process in a session of its own, and return at once; ``spawn_node`` tells it what to be.

    Without ``data_dir`` it gets a temporary one, which goes if it is told nothing. Unless detached, it ends
    when this process does, however that happens.
    """
    if data_dir is not None:
        return _begin(data_dir, [], detach, log_bytes)
    data_dir = Path(tempfile.mkdtemp(prefix="mesh-")).resolve()
    try:
        return _begin(data_dir, [str(data_dir)], detach, log_bytes)
    except BaseException:
        shutil.rmtree(data_dir, ignore_errors=True)
        raise


def _begin(data_dir: Path, temporary: list[str], detach: bool, log_bytes: int) -> Begun:
    log = _log_file(data_dir, log_bytes)
    file = tempfile.TemporaryFile()  # noqa: SIM115 - agents' settings stand in no command line and no folder
    ready_in, ready_out = os.pipe()
    parent_in, parent_out = (None, None) if detach else os.pipe()
    inherited = [fd for fd in (ready_out, parent_in) if fd is not None]
    try:
        with log.open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "mesh.node", f"{BEGUN}{file.fileno()}", *temporary],
                stdin=subprocess.PIPE, stdout=errors, stderr=errors, pass_fds=[*inherited, file.fileno()],
                bufsize=0, env=launch_env(data_dir), start_new_session=True,
            )
    except BaseException:
        file.close()
        for fd in filter(None, (ready_in, parent_out)):
            os.close(fd)
        raise
    finally:
        for fd in inherited:
            os.close(fd)
    return Begun(Spawned(process, ready_in, parent_out, log), data_dir, file, (ready_out, parent_in))


def spawn_node(
    config: NodeConfig, data_dir: Path, *, by_name: bool, detach: bool = False, begun: Begun | None = None
) -> Spawned:
    """Start a node, in ``begun`` if that is there, and return at once; ``wait_ready`` tells how it went."""
    begun = begun or begin_node(data_dir, detach=detach, log_bytes=config.limits.log_bytes)
    ready_fd, parent_fd = begun.theirs
    return begun.tell(document(config, data_dir, by_name=by_name, parent_fd=parent_fd, ready_fd=ready_fd))


def _log_file(data_dir: Path, bytes_max: int) -> Path:
    log = data_dir / "logs" / "supervisor.log"
    _make_folder(log.parent)
    try:
        if log.exists() and log.stat().st_size > bytes_max:
            log.replace(log.with_suffix(".log.1"))
        log.touch(mode=0o600)
    except OSError as exc:
        raise ConfigError(f"node.data_dir: {log}: {exc.strerror}") from exc
    return log


def wait_ready(spawned: Spawned, timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
    """Wait until the node serves, and return its address map. Closes ``ready_fd``.

    Raises:
        MeshError: it refused to start (its own error), died, or was silent for so long; in each case it was
            ended, and so it is by Ctrl-C.
    """
    try:
        answer = _read_line(spawned.ready_fd, timeout_s)
    except BaseException:  # Ctrl-C, too: who started the node would not know that it is there
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
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the node closes it
    _write_document(file, launch)
    os.set_inheritable(file.fileno(), True)
    sys.stdout.flush()
    sys.stderr.flush()
    arguments = [sys.executable, "-m", "mesh.node", f"fd:{file.fileno()}"]
    os.execve(sys.executable, arguments, launch_env(data_dir))


def find_node(where: str | Path) -> dict[str, Any] | None:
    """The address map of a running node, by its name or its runtime folder; None when it does not run."""
    import json

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


def _write_document(file: IO[bytes], launch: dict[str, Any]) -> None:
    import json

    file.write(json.dumps(launch).encode())
    file.flush()
    file.seek(0)


def _read_line(fd: int, timeout_s: float) -> dict[str, Any] | None:
    import json

    until_s = time.monotonic() + timeout_s
    data = b""
    while not data.endswith(b"\n"):
        left_s = until_s - time.monotonic()
        if left_s <= 0 or not select.select([fd], [], [], left_s)[0]:
            raise MeshError(f"the node did not start within {timeout_s:g} s", code="timeout")
        chunk = os.read(fd, 65536)
        if not chunk or len(data) > _READY_BYTES_MAX:
            return None
        data = (data + chunk).lstrip(b"\n")
        if not data:  # an empty line: it takes long, and goes on
            until_s = time.monotonic() + timeout_s
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
    "BEGUN", "GO", "KILL_WAIT_S", "LOG_BYTES", "MARK", "START_TIMEOUT_S", "Begun", "Spawned", "abandon",
    "address_file", "begin_node", "data_hash", "document", "exec_again", "exec_foreground", "find_node",
    "launch_env", "runtime_dir", "runtime_root", "spawn_node", "stop_node", "wait_ready",
]
