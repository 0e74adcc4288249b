"""Contents of files by their digest, so that a plain folder can go back; bounded, shared by all runs.

What a run that is under way may need stays. The rest is a memory that spares copies, and makes room, the
oldest first.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mesh.core.folder_state import FILE, LINK, Entry, Manifest
from mesh.errors import InvalidArgument, StoreError
from mesh.workspaces.files import Stop, storage
from mesh.workspaces.locks import LOOK_S, try_lock

#: How long a run waits until others have kept theirs.
KEEP_WAIT_S = 60.0
_CHUNK = 1 << 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Content:
    """The store: ``ab/abcdef...``, one file per digest."""

    def __init__(self, folder: Path, bytes_max: int) -> None:
        self._folder = folder
        self._bytes_max = bytes_max

    def keep(
        self, root: str, manifest: Manifest, in_use: Callable[[], Iterable[str]], stop: Stop
    ) -> None:
        """Store every content of a manifest.

        Raises:
            InvalidArgument: ``limit_exceeded``: more than the store may hold.
            StoreError: ``storage_error``: unreadable, or changed while it was read.
        """
        wanted = {entry.digest: (path, entry) for path, entry in manifest.items() if entry.kind == FILE}
        needed = sum(entry.size for _, entry in wanted.values())
        if needed > self._bytes_max:
            raise _too_much(needed, self._bytes_max)
        with storage("cannot keep the workspace's contents"), self._alone(stop):
            missing = {digest: found for digest, found in wanted.items() if not self._path(digest).exists()}
            if missing:
                more = sum(entry.size for _, entry in missing.values())
                self._make_room(more, wanted.keys() | set(in_use()))
            for path, entry in missing.values():
                stop.check()
                self._copy(os.path.join(root, path), entry)  # noqa: PTH118  paths by the thousand

    def read(self, digest: str, stop: Stop) -> Iterator[bytes]:
        """A content in pieces; proven when the last one was taken.

        Raises:
            StoreError: ``storage_error``: it is gone or damaged.
        """
        seen = hashlib.sha256()
        with storage("a kept content is gone"), self._path(digest).open("rb") as file:
            while chunk := file.read(_CHUNK):
                stop.check()
                seen.update(chunk)
                yield chunk
        if seen.hexdigest() != digest:
            raise StoreError(f"the kept content {digest[:16]} is damaged", code="storage_error")

    @contextmanager
    def _alone(self, stop: Stop) -> Iterator[None]:
        """One writer at a time, over all runners of the node; the kernel frees it."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        until_s = time.monotonic() + KEEP_WAIT_S
        while (lock := try_lock(self._folder, alone=True)) is None:
            stop.check()
            if time.monotonic() > until_s:
                raise StoreError(f"others keep contents for over {KEEP_WAIT_S:g} s", code="storage_error")
            time.sleep(LOOK_S)
        try:
            yield
        finally:
            lock.release()

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest

    def _copy(self, source: str, entry: Entry) -> None:
        target = self._path(entry.digest)
        target.parent.mkdir(exist_ok=True)
        beside = target.with_name(target.name + ".tmp")
        digest = hashlib.sha256()
        fd = os.open(source, _READ)
        try:
            with beside.open("wb") as file:
                while chunk := os.read(fd, _CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
        finally:
            os.close(fd)
        if digest.hexdigest() != entry.digest:
            beside.unlink()
            raise StoreError(f"the workspace changed while it was read: {source}", code="storage_error")
        beside.replace(target)

    def _make_room(self, needed: int, keep: set[str]) -> None:
        present = []
        for folder in self._folder.iterdir():
            present += [(entry.stat(), entry.path, entry.name) for entry in os.scandir(folder)]
        used = sum(found.st_size for found, _, _ in present)
        for found, path, name in sorted(present, key=lambda item: item[0].st_mtime_ns):
            if used + needed <= self._bytes_max:
                return
            if name not in keep:
                os.unlink(path)  # noqa: PTH108
                used -= found.st_size
        if used + needed > self._bytes_max:
            raise _too_much(used + needed, self._bytes_max)


def _too_much(needed: int, most: int) -> InvalidArgument:
    return InvalidArgument(
        f"rollback is not possible: {needed} bytes would have to be kept, at most {most} "
        "(limits.workspace_bytes)", code="limit_exceeded", details={"needed_bytes": needed},
    )


def digest_of(path: str, stop: Stop) -> tuple[str, os.stat_result] | None:
    """The digest of a regular file and its state; None when it is none any more."""
    try:
        fd = os.open(path, _READ)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        digest = hashlib.sha256()
        while chunk := os.read(fd, _CHUNK):
            digest.update(chunk)
            stop.check()
        return digest.hexdigest(), os.fstat(fd)
    finally:
        os.close(fd)


def link_digest(target: str) -> str:
    """A link stands for where it points."""
    return LINK + hashlib.sha256(target.encode(errors="surrogateescape")).hexdigest()


__all__ = ["Content", "digest_of", "link_digest"]
