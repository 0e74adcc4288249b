"""What the runs of a node share about their workspaces, and what is finished for those that died.

Rules of this file:

1. Nobody touches a folder without its lock, nor a record without its own: a run that lives is left alone.
2. What a dead run left is put back by the next start or by the next run that wants the folder, whoever
   comes first; before that run begins, in any case.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mesh.core.workspace import Snapshot
from mesh.errors import MeshError, StoreError
from mesh.workspaces import git
from mesh.workspaces.artifacts import FileStore
from mesh.workspaces.content import Content
from mesh.workspaces.files import Stop
from mesh.workspaces.folder import FolderBackend, digests_kept
from mesh.workspaces.journal import Journal, Record
from mesh.workspaces.locks import try_lock

#: How often the rollback of a dead run is tried; then it is put aside for people.
TRIES_MAX = 5
Backend = git.GitBackend | FolderBackend


class Base(NamedTuple):
    """What the runs of a node share. ``folder`` is theirs alone."""

    folder: Path
    files_max: int
    content_bytes_max: int
    end_processes: Callable[[str], None] = lambda _run_id: None  #: what a dead run left is ended
    tell: Callable[[str, str], None] = lambda _what, _path: None

    @property
    def journal(self) -> Journal:
        """The records of all runs."""
        return Journal(self.folder / "runs")

    @property
    def content(self) -> Content:
        """The contents that rollbacks may need."""
        return Content(self.folder / "content", self.content_bytes_max)

    def artifacts(self, place: Any) -> FileStore:
        """The node's own store (True), or one in another folder."""
        return FileStore(place if isinstance(place, str) else self.folder / "artifacts")

    def in_use(self) -> Iterable[str]:
        """The contents that rollbacks may need."""
        for path in self.journal.names():
            yield from digests_kept(path)

    def backend(self, path: str, strategy: str, scratch: Path, stop: Stop, **about: Any) -> Backend:
        """The backend of a folder.

        Raises:
            StoreError: ``storage_error``: git was asked for and cannot.
        """
        run_id, ignore = about.get("run_id", ""), about.get("ignore")
        place = self._place(path, strategy, stop)
        if place is not None:
            return git.GitBackend(path, place, scratch, stop, run_id)
        return FolderBackend(
            path, scratch, stop, content=self.content, files_max=self.files_max, in_use=self.in_use,
            ignore=ignore,
        )

    def _place(self, path: str, strategy: str, stop: Stop) -> git.Place | None:
        if strategy == "hash":
            return None
        try:
            place = git.find(path, stop)
        except MeshError as exc:
            if strategy == "auto" and exc.code == "dependency_not_available":
                return None
            raise
        if place is None and strategy == "git":
            raise StoreError(f"not inside a git repository: {path}", code="storage_error")
        if place is not None and strategy == "auto" and git.is_ignored(path, place, stop):
            return None
        return place

    def recover(self, path: str | None = None) -> None:
        """Finish what dead runs intended, in all folders or in those that share files with ``path``.

        Raises:
            StoreError: ``storage_error``: of ``path`` that is not possible.
        """
        for record in self.journal.dead():
            problem = None
            if path is None or overlap(record.path, path):
                problem = self._finish(record)
            else:
                record.release()
            if problem is not None and path is not None:
                raise problem

    def _finish(self, record: Record) -> MeshError | None:
        """Put back what a dead run left, and forget it; else why that cannot be done."""
        lock = None
        try:
            if not record.intent.get("worktree") and Path(record.path).is_dir():
                lock = try_lock(record.path)
                if lock is None:
                    return None
            self._put_back(record)
            record.close()
        except (MeshError, OSError) as exc:
            return self._failed(record, exc)
        finally:
            record.release()
            if lock is not None:
                lock.release()
        return None

    def _failed(self, record: Record, exc: Exception) -> MeshError:
        """It is tried again by the next start, and by the next run in the folder, a few times."""
        tries = record.intent.get("tries", 0) + 1
        with suppress(MeshError):
            record.note(tries=tries)
        place = record.folder if tries < TRIES_MAX else record.give_up()
        message = f"an earlier run's rollback is not possible: {exc}; what it needs is in {place}"
        self.tell(message, record.path)
        return StoreError(message, code="storage_error", details={"tries": tries, "tries_max": TRIES_MAX})

    def _put_back(self, record: Record) -> None:
        intent = record.intent
        self.end_processes(intent["run_id"])
        if intent.get("worktree"):
            git.drop_worktree(intent["top"], Path(intent["worktree"]))
        stop = Stop()
        if intent.get("keeps") and not intent.get("rollback"):
            self._forget(record, stop)
        elif intent.get("rollback"):
            backend = self.backend(
                record.path, intent["backend"], record.folder, stop, run_id=intent["run_id"],
                ignore=intent.get("ignore"),
            )
            backend.rollback(Snapshot.from_map(intent["before"]))
            self.tell("rolled back what a dead run had changed", record.path)

    def _forget(self, record: Record, stop: Stop) -> None:
        """Its snapshot may have been protected, and then it died before its provider began."""
        with suppress(MeshError):
            backend = self.backend(record.path, "git", record.folder, stop, run_id=record.intent["run_id"])
            if isinstance(backend, git.GitBackend):
                backend.release()


def overlap(one: str, other: str) -> bool:
    """Whether two folders are one, or one holds the other."""
    one, other = f"{one.rstrip('/')}/", f"{other.rstrip('/')}/"
    return one.startswith(other) or other.startswith(one)


def sweep(base: Base) -> None:
    """At a runner's start: finish what dead runs intended; remove what nobody made ready."""
    base.journal.sweep()
    base.recover()
    trees = base.folder / "trees"
    if trees.is_dir():
        found = list(trees.iterdir())  # before the names: a tree is made behind its record
        known = {path.name for path in base.journal.names()}
        for path in found:
            if path.name not in known:
                shutil.rmtree(path, ignore_errors=True)


__all__ = ["TRIES_MAX", "Backend", "Base", "overlap", "sweep"]
