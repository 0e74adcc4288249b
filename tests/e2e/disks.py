"""Disks that refuse: a small tmpfs, a read-only view of a folder. For tests that need a real one."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

CHUNK = bytes(1024 * 1024)


def mount(*arguments: str) -> None:
    """Mount, or skip the test with the reason: mounting needs root, or a namespace of one's own."""
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here ({done.stderr.strip()}): run as root, or below: unshare -Urm")


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


@contextmanager
def small_disk(size: str) -> Iterator[Path]:
    """A tmpfs of that size, its path short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="md-", dir="/tmp"))
    try:
        mount("-t", "tmpfs", "-o", f"size={size}", "mesh-test", str(folder))
        try:
            yield folder
        finally:
            unmount(folder)
    finally:
        folder.rmdir()


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """A file or folder is read-only, for root too. Nobody may have a file open there for writing."""
    mount("--bind", str(path), str(path))
    try:
        mount("-o", "remount,bind,ro", str(path))
        yield
    finally:
        unmount(path)


def fill(disk: Path) -> Path:
    """Take the last byte of a disk; removing the returned file gives the room back."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (len(CHUNK), 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(CHUNK[:size])
    assert os.statvfs(disk).f_bfree == 0
    return filler


__all__ = ["CHUNK", "fill", "mount", "read_only", "small_disk", "unmount"]
