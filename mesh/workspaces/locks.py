"""One run at a time per folder: locks of the kernel on the folders themselves.

A holder has the folder for itself and a share of every folder above it. So two runs exclude each other when
one's workspace is, holds or lies in the other's, also over several nodes of one machine, and nothing is left
behind: the kernel frees a lock with the death of its holder.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from mesh.workspaces.files import storage

#: Pause between two tries of whoever waits for a folder.
LOOK_S = 0.02


class Lock:
    """A held lock."""

    def __init__(self, fds: list[int]) -> None:
        self._fds = fds

    def release(self) -> None:
        """Give it back; a second call does nothing."""
        while self._fds:
            os.close(self._fds.pop())


def try_lock(folder: str | Path, *, alone: bool = False) -> Lock | None:
    """Take the lock of an existing folder (a real path); None while somebody has it.

    ``alone`` leaves the folders above out: for folders that belong to one node.

    Raises:
        StoreError: ``storage_error``, the folder is gone or its file system knows no locks.
    """
    fds: list[int] = []
    lock = Lock(fds)
    with storage("cannot lock the workspace"):
        try:
            fds.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            fcntl.flock(fds[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
            for fd in () if alone else _above(Path(folder)):
                fds.append(fd)
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.release()
            return None
        except OSError:
            lock.release()
            raise
    return lock


def _above(folder: Path) -> Iterator[int]:
    """The open folders above; one that we may not read cannot be anybody's workspace of ours."""
    for parent in folder.parents:
        try:
            fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        yield fd


__all__ = ["LOOK_S", "Lock", "try_lock"]
