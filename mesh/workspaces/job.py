"""What one run does with its workspace: take it, look before and after, give it back.

Rules of this file:

1. The folder is the run's alone, from before its first snapshot until its rollback is done.
2. Before the provider begins it is known whether a rollback is possible, and it is noted on the disk. If the
   runner dies, the next start (or the next run that wants the folder) finishes it: see ``journal``.
3. Everything here blocks; it is called in a thread. ``stop`` makes it leave early, except a rollback.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from mesh.core.workspace import PATCH_BYTES, Diff, Snapshot, patch_key
from mesh.errors import InvalidArgument, MeshError, StoreError
from mesh.workspaces import git
from mesh.workspaces.base import Backend, Base, overlap
from mesh.workspaces.files import Stop, storage
from mesh.workspaces.journal import Record
from mesh.workspaces.locks import Lock, try_lock


class Job:
    """One run's workspace. The methods are called in their order, by one thread at a time."""

    def __init__(self, base: Base, run_id: str, attempt: int, options: dict[str, Any]) -> None:
        self.base = base
        self.options = options
        self.stop = Stop()
        self.path = options["path"]
        self.facts: dict[str, Any] = {}  #: for the run's record; one map from the beginning to the end
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.before: Snapshot | None = None
        self._run_id, self._attempt = run_id, attempt
        self._name = f"{run_id}-{attempt}"
        self._lock: Lock | None = None
        self._record: Record | None = None
        self._backend: Backend | None = None
        self._tree: tuple[str, Path] | None = None

    @property
    def rollback(self) -> bool:
        """Whether the run's changes are undone unless it completes."""
        return bool(self.options.get("rollback_on_failure"))

    def take(self) -> bool:
        """Try to have the folder alone; False while somebody else has it, or has left it half done.

        Raises:
            InvalidArgument: ``validation_error``: there is no such folder.
            StoreError: ``storage_error``: what a dead run left cannot be put back.
        """
        self.path = os.path.realpath(self.options["path"])
        if not os.path.isdir(self.path):  # noqa: PTH112
            self.base.recover(self.path)  # a dead run may have removed it
        if not os.path.isdir(self.path):  # noqa: PTH112
            raise InvalidArgument(f"workspace.path: no such folder: {self.options['path']}")
        lock = try_lock(self.path)
        if lock is None:
            return False
        if any(overlap(intent["path"], self.path) for intent in self.base.journal.intents()):
            lock.release()
            self.base.recover(self.path)
            return False
        self._lock = lock
        return True

    def open(self) -> None:
        """Take the state before the run.

        Raises:
            MeshError: the run must not begin; the workspace is as it was.
        """
        about = {"run_id": self._run_id, "ignore": self.options.get("ignore")}
        self._record = self.base.journal.begin(self._name, {
            "path": self.path, "run_id": self._run_id, "keeps": self.rollback,
        })
        backend = self.base.backend(
            self.path, self.options.get("strategy", "auto"), self._record.folder, self.stop, **about
        )
        if self.options.get("worktree"):
            backend = self._open_worktree(backend)
        self._backend = backend
        keep = self.rollback and self._tree is None
        self.before = before = backend.snapshot("before", keep=keep)
        if keep:
            self._record.note(
                rollback=True, backend=backend.name, before=before.to_map(), ignore=about["ignore"]
            )
        self.facts |= {
            "backend": backend.name, "path": self.path, "before_ref": before.ref, "after_ref": None,
            "before_snapshot": _shown(before), "after_snapshot": None, "diff": None,
        }
        self.events.append(_taken(before))

    def _open_worktree(self, backend: Backend) -> git.GitBackend:
        """A working tree of the run's own, with the files as they are; the folder itself is free again."""
        if not isinstance(backend, git.GitBackend):
            raise StoreError("a worktree needs a git repository", code="storage_error")
        assert self._record is not None
        place = backend.place
        folder = self.base.folder / "trees" / self._record.folder.name
        with storage("cannot make a worktree"):
            folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        snapshot = backend.snapshot("before")
        self._tree = (place.top, folder)
        self._record.note(path=str(folder), worktree=str(folder), top=place.top)
        git.worktree(place, folder, snapshot.ref, self.stop)
        self.path = str(folder / place.prefix).rstrip("/")
        Path(self.path).mkdir(parents=True, exist_ok=True)
        self._release_lock()
        scratch = self._record.folder / "tree"
        scratch.mkdir()
        own = git.find(self.path, self.stop)
        assert own is not None
        return git.GitBackend(self.path, own, scratch, self.stop, self._run_id)

    def close(self, completed: bool) -> MeshError | None:
        """Look at what the run did, put it back where that was asked for, give the folder back.

        Returns why a run that completed has failed after all.
        """
        self.stop.clear()
        problem, undone = None, False
        try:
            if self.before is not None:
                problem = self._looked("after" if completed else "after_failure")
                if self.rollback and (problem is not None or not completed):
                    undone = self._undo()
        finally:
            self._end(undone=undone)
        return problem

    def _looked(self, label: str) -> MeshError | None:
        try:
            self._look(label)
        except MeshError as exc:
            self.facts["problem"] = exc.to_map()
            return exc
        return None

    def _look(self, label: str) -> None:
        """Take the state after the run, compare, keep the patch."""
        assert self._backend is not None and self.before is not None
        if not os.path.isdir(self.path):  # noqa: PTH112
            raise StoreError(f"the workspace is gone: {self.path}", code="storage_error")
        after = self._backend.snapshot(label)
        self.facts |= {"after_ref": after.ref, "after_snapshot": _shown(after)}
        self.events.append(_taken(after))
        wanted = self.options.get("max_patch_bytes", PATCH_BYTES)
        diff, patch = self._backend.diff(
            self.before, after, patch_bytes=wanted if self.options.get("capture_patch", True) else None
        )
        diff = self._with_patch(diff, patch)
        self.facts["diff"] = diff.to_map()
        self.events.append(("workspace_diff_computed", {
            "files_changed": diff.files_changed, "insertions": diff.insertions, "deletions": diff.deletions,
            "has_patch": bool(diff.patch or diff.patch_ref),
        }))

    def _with_patch(self, diff: Diff, patch: bytes) -> Diff:
        if not patch:
            return diff
        place = self.options.get("artifact_store")
        if place:
            key = patch_key(self._run_id, self._attempt)
            if place is not True:  # a folder of somebody else's: of many nodes, maybe
                key += f"_{os.urandom(16).hex()}"
            self.base.artifacts(place).put(key, patch)
            return msgspec.structs.replace(diff, patch_ref=key)
        text = patch.decode(errors="replace")
        exact = {} if text.encode() == patch else {"patch_exact": False}
        return msgspec.structs.replace(diff, patch=text, metadata={**diff.metadata, **exact})

    def _undo(self) -> bool:
        """Put the workspace back. What fails now is tried again by whoever wants the folder next."""
        self.facts["rollback"] = {"done": False}
        assert self._backend is not None and self.before is not None
        try:
            done = {} if self._tree is not None else self._backend.rollback(self.before)
        except (MeshError, OSError) as exc:
            assert self._record is not None
            self._record.release()
            error = exc if isinstance(exc, MeshError) else StoreError(str(exc), code="storage_error")
            kept = str(self._record.folder)
            self.facts["rollback"] = {"done": False, "error": error.to_map(), "kept": kept}
            self._record = None
            self.base.tell(f"a rollback is not possible now: {exc}", self.path)
            return False
        self.facts["rollback"] = {"done": True, **done}
        return True

    def _end(self, *, undone: bool) -> None:
        """Give everything back. Of a worktree that was not undone a ref of its own remains."""
        try:
            if self._tree is not None:
                self._end_worktree(undone)
            elif isinstance(self._backend, git.GitBackend) and self.rollback and self._record is not None:
                self._backend.release()
        finally:
            if self._record is not None:
                self._record.close()
            self._release_lock()

    def _end_worktree(self, undone: bool) -> None:
        assert self._tree is not None
        after = self.facts.get("after_ref")
        if isinstance(self._backend, git.GitBackend) and after and not undone:
            self._backend.protect(after)
            self.facts["worktree_ref"] = self._backend.ref_name
        git.drop_worktree(*self._tree)

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _taken(snapshot: Snapshot) -> tuple[str, dict[str, Any]]:
    data = {"label": snapshot.label, "backend": snapshot.backend, "ref": snapshot.ref}
    return "workspace_snapshot_taken", data


def _shown(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot for the run's record, without what only a rollback reads."""
    shown = snapshot.to_map()
    shown["metadata"] = {key: value for key, value in shown["metadata"].items() if key != "folders"}
    return shown


__all__ = ["Job"]
