"""Files of a workspace, touched so that a link never leads out of it and a crash never halves one.

Everything below a workspace is reached from its open folder, component by component, without following a
link. A file is written beside its place and moved there.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mesh.errors import RunError, StoreError

#: Names of files and folders on their way to their place; whoever finds one later may remove it.
STAGED = ".mesh-restore-"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Stop:
    """Tells work in a thread that nobody waits for it any more."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __bool__(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        """From any thread."""
        self._event.set()

    def clear(self) -> None:
        """What comes now is waited for again."""
        self._event.clear()

    def check(self) -> None:
        """Leave the work.

        Raises:
            RunError: ``cancelled``.
        """
        if self._event.is_set():
            raise RunError("the work on the workspace was given up", code="cancelled")


@contextmanager
def storage(what: str) -> Iterator[None]:
    """What the operating system refuses becomes ``storage_error``."""
    try:
        yield
    except OSError as exc:
        where = f": {exc.filename}" if isinstance(exc.filename, str) else ""
        message = f"{what}: {exc.strerror or exc}{where}".encode(errors="replace").decode()
        raise StoreError(message, code="storage_error") from exc


def write_atomically(path: Path, data: bytes, *, durable: bool = False) -> None:
    """The file has its old contents or the new ones, whenever somebody looks."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    beside.replace(path)


class Tree:
    """A workspace's folder, open. Paths are relative; no step on the way is a link."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._fd = os.open(root, _FOLDER)
        self._kept: tuple[str, int] = ("", self._fd)  # the folder of the last call: neighbours come together

    def close(self) -> None:
        """Give the descriptors back."""
        self._keep("", self._fd)
        os.close(self._fd)

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _keep(self, parent: str, fd: int) -> None:
        if self._kept[1] != self._fd:
            os.close(self._kept[1])
        self._kept = (parent, fd)

    def _at(self, path: str) -> tuple[int, str]:
        """The open folder of a path, and its name there."""
        parent, _, name = path.rpartition("/")
        if parent != self._kept[0]:
            self._keep("", self._fd)
            fd = self._fd
            for part in parent.split("/") if parent else ():
                below = os.open(part, _FOLDER, dir_fd=fd)
                if fd != self._fd:
                    os.close(fd)
                fd = below
            self._kept = (parent, fd)
        return self._kept[1], name

    def forget(self) -> None:
        """The folder of the last call may be another one now."""
        self._keep("", self._fd)

    def kind(self, path: str) -> int:
        """The type bits of what stands there; 0 for nothing."""
        try:
            fd, name = self._at(path)
            return stat.S_IFMT(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def make_folder(self, path: str) -> None:
        """A folder stands there afterwards; whatever else stood there is removed."""
        if self.kind(path) == stat.S_IFDIR:
            return
        fd, name = self._at(path)
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=fd)
        os.mkdir(name, dir_fd=fd)
        self.forget()

    def make_way(self, path: str) -> None:
        """All folders above a path exist and are folders."""
        parts = path.split("/")[:-1]
        for i in range(len(parts)):
            self.make_folder("/".join(parts[:i + 1]))

    def place(self, source: str, path: str) -> None:
        """Move what stands at the absolute ``source`` to a path, over what is there."""
        fd, name = self._at(path)
        os.replace(source, name, dst_dir_fd=fd)

    def write(self, path: str, chunks: Iterable[bytes], mode: int) -> None:
        """Write a file beside its place and move it there; when the chunks fail, its place is as it was."""
        fd, name = self._at(path)
        beside = f"{STAGED}{os.urandom(8).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(beside, flags, 0o600, dir_fd=fd)
        try:
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    view = view[os.write(file, view):]
            os.fchmod(file, mode)
        except BaseException:
            os.unlink(beside, dir_fd=fd)
            raise
        finally:
            os.close(file)
        os.replace(beside, name, src_dir_fd=fd, dst_dir_fd=fd)

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link beside its place and move it there."""
        fd, name = self._at(path)
        beside = f"{STAGED}{os.urandom(8).hex()}"
        os.symlink(target, beside, dir_fd=fd)
        os.replace(beside, name, src_dir_fd=fd, dst_dir_fd=fd)

    def fifo(self, path: str) -> None:
        """Make a FIFO beside its place and move it there."""
        fd, name = self._at(path)
        beside = f"{STAGED}{os.urandom(8).hex()}"
        os.mkfifo(beside, dir_fd=fd)
        os.replace(beside, name, src_dir_fd=fd, dst_dir_fd=fd)

    def chmod(self, path: str, mode: int) -> None:
        """Set the mode of a file or folder that is no link."""
        fd, name = self._at(path)
        if not stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            os.chmod(name, mode, dir_fd=fd)

    def remove(self, path: str) -> bool:
        """Remove a file, a link or an empty folder. False for a folder that holds something."""
        try:
            fd, name = self._at(path)
            if self.kind(path) != stat.S_IFDIR:
                os.unlink(name, dir_fd=fd)
                return True
        except (FileNotFoundError, NotADirectoryError):
            return True
        self.forget()
        fd, name = self._at(path)
        try:
            os.rmdir(name, dir_fd=fd)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def remove_all(self, path: str) -> None:
        """Remove a path and everything below it; a link is removed, never followed."""
        if self.kind(path) == stat.S_IFDIR:
            fd, name = self._at(path)
            os.chmod(name, 0o700, dir_fd=fd)
            below = os.open(name, _FOLDER, dir_fd=fd)
            try:
                names = os.listdir(below)  # noqa: PTH208  of a descriptor
            finally:
                os.close(below)
            for child in names:
                self.remove_all(f"{path}/{child}")
        self.remove(path)


__all__ = ["STAGED", "Stop", "Tree", "storage", "write_atomically"]
