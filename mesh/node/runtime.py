"""The files of a running node: lock, runtime folder, address files, list of processes, node.db.

The lock on ``data_dir`` is held for life. The kernel gives it back when the supervisor dies, so no stale
lock exists; children close their copy.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mesh.errors import ConfigError
from mesh.launch import MARK, address_file, data_hash, find_node, runtime_dir
from mesh.node.reaper import Proc, alive, environ_mark, kill_all, marked_elsewhere, proc_of
from mesh.proc import boot_id, start_time
from mesh.store.node_db import NodeDb

SOCKETS = ("front", "back", "pub", "feed")
#: sun_path holds 108 bytes with its end on Linux, 104 on macOS.
SOCKET_PATH_BYTES_MAX = 107 if sys.platform.startswith("linux") else 103
#: A supervisor that was just killed may have a child that had no time yet to close its copy of the lock.
LOCK_WAIT_S = 1.0
_LOCK_LOOK_S = 0.02


class Life(NamedTuple):
    """What a start of the node learns from ``node.db``."""

    boot: int
    slot_map: bytes
    map_version: int
    resize: bool  #: slots must move before the children start


class DataLock:
    """The exclusive right to a data folder.

    Raises:
        ConfigError: another node holds it; names its pid.
    """

    def __init__(self, data_dir: Path) -> None:
        path = data_dir / "lock"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        until_s = time.monotonic() + LOCK_WAIT_S
        while not self._try():
            holder = self._holder()
            if (holder is not None and alive(holder)) or time.monotonic() > until_s:
                os.close(self._fd)
                who = "another node" if holder is None else f"the node with pid {holder.pid}"
                raise ConfigError(f"{data_dir} is in use by {who}: stop it, or choose another node.data_dir")
            time.sleep(_LOCK_LOOK_S)
        with suppress(OSError):  # a full disk: the lock is held all the same
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, json.dumps([os.getpid(), start_time(os.getpid())]).encode(), 0)

    def close(self) -> None:
        """Give the folder back."""
        os.close(self._fd)

    def _try(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as exc:
            os.close(self._fd)
            raise ConfigError(f"node.data_dir: files there cannot be locked: {exc.strerror}") from exc
        return True

    def _holder(self) -> Proc | None:
        try:
            pid, started = json.loads(os.pread(self._fd, 256, 0))
        except ValueError:
            return None
        return Proc(pid, started)


def make_runtime_dir(data_dir: Path) -> Path:
    """Create the folder of the sockets, for this user alone, without what an earlier life left in it.

    Raises:
        ConfigError: the folder belongs to somebody else, or its path is too long for a socket.
    """
    folder = runtime_dir(data_dir)
    longest = os.fsencode(folder / max(SOCKETS, key=len))
    if len(longest) > SOCKET_PATH_BYTES_MAX:
        raise ConfigError(
            f"MESH_RUNTIME_DIR: {folder.parent} is too long: a socket's path has at most"
            f" {SOCKET_PATH_BYTES_MAX} bytes, and {os.fsdecode(longest)} has {len(longest)}"
        )
    for path in (folder.parent, folder):
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = path.lstat()
        except OSError as exc:
            raise ConfigError(f"MESH_RUNTIME_DIR: {path}: {exc.strerror}") from exc
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise ConfigError(f"{path} is not a folder of ours: set MESH_RUNTIME_DIR to another one")
    folder.chmod(0o700)
    _remove_files(folder)
    return folder


def remove_runtime_dir(folder: Path) -> None:
    """Remove the sockets and the address file, and the folder when nothing else is in it."""
    with suppress(OSError):
        _remove_files(folder)
        folder.rmdir()


def _remove_files(folder: Path) -> None:
    for name in (*SOCKETS, "node.json"):
        (folder / name).unlink(missing_ok=True)


class AddressFiles:
    """Tells clients where the node is: ``node.json`` beside the sockets and, if wanted, one by its name."""

    def __init__(self, folder: Path, name: str, *, by_name: bool) -> None:
        self._paths = [folder / "node.json", *([address_file(name)] if by_name else [])]
        other = find_node(name) if by_name else None
        if other is not None and other["pid"] != os.getpid():
            raise ConfigError(
                f"a node named {name!r} is running already (pid {other['pid']}, {other.get('data_dir')}):"
                " stop it (mesh down), or choose another node.name"
            )

    def write(self, address: Mapping[str, Any]) -> None:
        """Publish the address; readers see the old file or the new one, never half of one."""
        for path in self._paths:
            write_json(path, address)

    def remove(self) -> None:
        """Take back what this process wrote; another node's file stays."""
        for path in self._paths:
            with suppress(OSError, ValueError):
                if json.loads(path.read_text(encoding="utf-8"))["pid"] == os.getpid():
                    path.unlink()


def write_json(path: Path, value: Any) -> None:
    """Replace a file as a whole, readable by this user alone."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(value, file)
        draft.replace(path)
    except OSError:
        with suppress(OSError):
            draft.unlink()
        raise


def write_processes(data_dir: Path, pids: Mapping[str, int]) -> None:
    """Note which processes this life has, for the next one to find."""
    procs = [(name, proc_of(pid)) for name, pid in pids.items()]
    write_json(data_dir / "processes.json", {
        "boot_id": boot_id(),
        "mark": os.environ.get(MARK, ""),
        "processes": [[name, *proc] for name, proc in procs if proc is not None],
    })


def reap_leftovers(data_dir: Path) -> list[Proc]:
    """Kill what an earlier life of this node left behind; call it while holding the lock.

    Proof is the environment mark of this data folder with another life's number, together with pid and
    start time. Where environments cannot be read, the noted pid and start time of this boot must do.
    Returns whom it killed.

    Raises:
        ConfigError: a leftover survives SIGKILL; starting beside it could harm the data.
    """
    own = os.environ.get(MARK, "")
    found = set(marked_elsewhere(MARK, data_hash(data_dir) + ":", own))
    found |= {proc for proc in _noted(data_dir) if _proven(proc, data_hash(data_dir))}
    survivors = kill_all(found)
    if survivors:
        pids = [proc.pid for proc in survivors]
        raise ConfigError(f"processes of an earlier node on {data_dir} do not die: {pids}")
    (data_dir / "processes.json").unlink(missing_ok=True)
    return sorted(found)


def begin_life(data_dir: Path, partitions: int) -> Life:
    """Count this start, and read the map of slots. The database is closed again when this returns."""
    with NodeDb(data_dir / "node.db") as db:
        db.ensure_map(partitions)
        boot = db.boot()
    return read_life(data_dir, boot, partitions)


def read_life(data_dir: Path, boot: int, partitions: int) -> Life:
    """The map as it is now, for instance after slots were moved."""
    with NodeDb(data_dir / "node.db") as db:
        owners, version, found = db.slot_map()
        return Life(boot, owners, version, found != partitions or db.pending_map() is not None)


def _noted(data_dir: Path) -> Iterable[Proc]:
    try:
        noted = json.loads((data_dir / "processes.json").read_text(encoding="utf-8"))
        procs = [Proc(int(pid), int(started)) for _, pid, started in noted["processes"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return procs if noted.get("boot_id") == boot_id() else []


def _proven(proc: Proc, prefix: str) -> bool:
    if not alive(proc) or proc.pid == os.getpid():
        return False
    if not Path("/proc/self/environ").exists():
        return True
    return (environ_mark(proc.pid, MARK) or "").startswith(prefix + ":")


__all__ = [
    "LOCK_WAIT_S", "SOCKETS", "AddressFiles", "DataLock", "Life", "begin_life",
    "make_runtime_dir", "read_life", "reap_leftovers", "remove_runtime_dir", "write_json", "write_processes",
]
