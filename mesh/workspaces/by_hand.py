"""A workspace without a run: snapshot, diff and rollback from a script."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from mesh.core.workspace import PATCH_BYTES, Diff, Snapshot, checked_workspace
from mesh.errors import InvalidArgument, InvalidState
from mesh.workspaces.base import Backend, Base
from mesh.workspaces.files import Stop
from mesh.workspaces.git import GitBackend
from mesh.workspaces.locks import try_lock

FILES_MAX = 200_000
CONTENT_BYTES_MAX = 1_073_741_824


class Workspace:
    """An open workspace; nobody else works in it meanwhile."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._kept: Snapshot | None = None

    @property
    def backend(self) -> str:
        """``git`` or ``hash``."""
        return self._backend.name

    def snapshot(self, label: str = "", *, keep: bool = False) -> Snapshot:
        """Take the state; the last one with ``keep`` is where ``rollback`` goes.

        Raises:
            MeshError: ``storage_error``, ``limit_exceeded``.
        """
        snapshot = self._backend.snapshot(label, keep=keep)
        if keep:
            self._kept = snapshot
        return snapshot

    def diff(self, before: Snapshot, after: Snapshot, *, max_patch_bytes: int = PATCH_BYTES) -> Diff:
        """What changed between two snapshots of this workspace.

        Raises:
            InvalidArgument: ``validation_error``: of another one.
        """
        diff, patch = self._backend.diff(before, after, patch_bytes=max_patch_bytes)
        return msgspec.structs.replace(diff, patch=patch.decode(errors="replace") or None)

    def rollback(self, to: Snapshot) -> dict[str, Any]:
        """Put the files back as the snapshot taken with ``keep`` has them.

        Raises:
            InvalidState: ``invalid_operation``: its contents were not kept.
        """
        if self._kept is None or to.ref != self._kept.ref:
            raise InvalidState("this snapshot was not kept, or is not the last one", code="invalid_operation")
        return self._backend.rollback(to)


@contextmanager
def open_workspace(
    path: str | os.PathLike[str], *, strategy: str = "auto", **options: Any
) -> Iterator[Workspace]:
    """Have a folder alone, for snapshots by hand. ``ignore`` is the only further option.

    Raises:
        InvalidArgument: ``validation_error``: no such folder.
        InvalidState: ``session_busy``: somebody has it.
    """
    real = os.path.realpath(path)
    checked_workspace({"path": real, "strategy": strategy, **options})
    if not os.path.isdir(real):  # noqa: PTH112
        raise InvalidArgument(f"no such folder: {os.fspath(path)}")
    lock = try_lock(real)
    if lock is None:
        raise InvalidState(f"somebody works in {real}", code="session_busy")
    with tempfile.TemporaryDirectory(prefix="mesh-workspace-") as folder:
        base = Base(Path(folder), FILES_MAX, CONTENT_BYTES_MAX)
        backend = base.backend(real, strategy, Path(folder), Stop(), ignore=options.get("ignore"))
        try:
            yield Workspace(backend)
        finally:
            if isinstance(backend, GitBackend):
                backend.release()
            lock.release()


__all__ = ["Workspace", "open_workspace"]
