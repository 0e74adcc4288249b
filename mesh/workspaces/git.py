"""Workspaces inside a git repository.

Rules of this file:

1. HEAD, the repository's index and its stash are never written. Work happens on a copy of the index; with
   it travels what git knows about unchanged files, so that a snapshot reads only what changed.
2. A snapshot is the tree of everything git would add, from the workspace's folder down; what lies outside
   stands as it stands in the index. A tree like HEAD's is HEAD, any other a commit that no branch has.
3. Going back writes each file beside its place and moves it there, and may be done any number of times.
   Submodules and repositories inside are left alone; one that is new is removed.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mesh.core.workspace import Diff, Snapshot, kept_paths
from mesh.errors import InvalidArgument, StoreError
from mesh.workspaces.files import STAGED, Stop, Tree, storage
from mesh.workspaces.gitcmd import Git, Said, failed

#: Paths that git cannot add (a repository without a commit, a FIFO over a file), left out of a snapshot.
STRANGE_MAX = 100
_STRANGE = re.compile(
    r"error: '(.*)/' does not have a commit checked out"
    r"|error: (.*): can only add regular files, symbolic links or git-directories"
)
_GITLINK = b"160000"


class Place(NamedTuple):
    """Where a workspace lies in its repository."""

    top: str
    git_dir: str
    prefix: str  #: of the workspace below ``top``, "" or ending in "/"
    index_file: str
    head: str
    head_tree: str


def find(path: str, stop: Stop) -> Place | None:
    """The repository around a folder; None when there is none.

    Raises:
        StoreError: ``storage_error``: no commit yet, or git refuses.
    """
    git = Git(path, stop)
    said = git.try_run(
        "rev-parse", "--show-toplevel", "--absolute-git-dir", "--show-prefix", "--git-path", "index",
        "HEAD^{commit}", "HEAD^{tree}",
    )
    lines = os.fsdecode(said.out).split("\n")
    if said.code == 0 and len(lines) >= 6:
        top, git_dir, prefix, index, head, tree = lines[:6]
        return Place(top, git_dir, prefix, str(Path(path, index)), head, tree)
    if "not a git repository" in said.err or "must be run in a work tree" in said.err:
        return None
    if len(lines) > 4:
        raise StoreError(
            f"the repository of {path} has no commit yet: make one, or use strategy 'hash'",
            code="storage_error",
        )
    raise failed("rev-parse", said)


def is_ignored(path: str, place: Place, stop: Stop) -> bool:
    """Whether the repository around a folder looks away from it."""
    return bool(place.prefix) and Git(path, stop).try_run("check-ignore", "-q", ".").code == 0


class GitBackend:
    """One workspace in a repository; ``scratch`` is a folder for its copy of the index."""

    name = "git"

    def __init__(self, path: str, place: Place, scratch: Path, stop: Stop, run_id: str = "") -> None:
        self.path = path
        self.place = place
        self._scratch = scratch
        self._index = scratch / "index"
        self._before = scratch / "index.before"
        self._git = Git(path, stop, str(self._index), run_id)
        self._run_id = run_id
        self._strange: list[str] = []
        self._beyond: tuple[str, ...] = ()  #: for files outside of a sparse checkout
        self.ref_name = f"refs/mesh/{re.sub(r'[^A-Za-z0-9_-]', '_', run_id) or 'snapshot'}"

    # --- snapshot and diff ---

    def snapshot(self, label: str, *, keep: bool = False) -> Snapshot:
        """Take the state; ``keep`` remembers what a rollback needs.

        Raises:
            StoreError: ``storage_error``; the workspace is as it was.
        """
        head, head_tree = self.place.head, self.place.head_tree
        with storage("cannot copy the repository's index"):
            if not self._index.exists():
                self._copy_index()
            else:
                head, head_tree = self._head()
        self._add()
        tree = self._git.run("write-tree").decode().strip()
        dirty = tree != head_tree
        ref = self._commit(tree, head, label) if dirty else head
        metadata: dict[str, Any] = {"head_ref": head, "dirty": dirty, "includes_untracked": True}
        if self._strange:
            metadata["left_out"] = sorted(self._strange)
        if keep:
            metadata["folders"] = self._empty_folders()
            with storage("cannot keep the index"):
                shutil.copy2(self._index, self._before)
            self.protect(ref)
        return Snapshot(self.name, self.path, ref, label, time.time(), metadata)

    def _copy_index(self) -> None:
        """With its time: git tells by it which files it must look into."""
        try:
            shutil.copy2(self.place.index_file, self._index)
        except FileNotFoundError:
            self._git.run("read-tree", self.place.head)

    def _head(self) -> tuple[str, str]:
        """HEAD as it is now; the run may have committed."""
        head, tree = self._git.run("rev-parse", "HEAD^{commit}", "HEAD^{tree}").decode().split()
        return head, tree

    def _add(self) -> None:
        """Stage everything; what git cannot add is left out and named."""
        for _ in range(STRANGE_MAX):
            without = [f":(exclude,literal){path}" for path in self._strange]
            said = self._git.try_run("add", "-A", *self._beyond, "--", ".", *without)
            if said.code == 0:
                return
            if "sparse" in said.err and not self._beyond:
                self._beyond = ("--sparse",)
            else:
                self._leave_out(said)
        raise StoreError(f"over {STRANGE_MAX} paths that git cannot add", code="storage_error")

    def _leave_out(self, said: Said) -> None:
        found = [one or other for one, other in _STRANGE.findall(said.err)]
        if not found:
            raise failed("add", said)
        for path in found:
            inside = path.removeprefix(self.place.prefix)
            self._strange.append(inside)
            gone = os.fsencode(inside) + b"\0"
            self._git.run("update-index", "-z", "--force-remove", "--stdin", stdin=gone)

    def _commit(self, tree: str, head: str, label: str) -> str:
        message = f"mesh: {label} {self._run_id}".strip()
        return self._git.run("commit-tree", "-p", head, "-m", message, tree).decode().strip()

    def protect(self, ref: str) -> None:
        """No garbage collection takes a snapshot that somebody may want back."""
        self._git.run("update-ref", self.ref_name, ref)

    def release(self) -> None:
        """The snapshot is not needed any more."""
        self._git.try_run("update-ref", "-d", self.ref_name)

    def diff(self, before: Snapshot, after: Snapshot, *, patch_bytes: int | None) -> tuple[Diff, bytes]:
        """What changed, and the whole patch as far as ``patch_bytes`` allows (None: no patch)."""
        if (before.backend, before.path) != (after.backend, after.path):
            raise InvalidArgument("two snapshots of different workspaces cannot be compared")
        if before.ref == after.ref:
            return Diff(self.name, before.ref, after.ref, 0, 0, 0, ()), b""
        scope = f"--relative={self.place.prefix}" if self.place.prefix else "--no-relative"
        patch = [] if patch_bytes is None else ["-p", "--binary", "--full-index"]
        said = self._git.try_run(
            "diff-tree", "-r", "-z", "--numstat", "--no-renames", "--no-ext-diff", "--no-textconv",
            "--no-color", scope, *patch, before.ref, after.ref, cwd=self.place.top,
            cap=None if patch_bytes is None else patch_bytes + _NUMSTAT_BYTES_MAX,
        )
        if said.code != 0:
            raise failed("diff-tree", said)
        return _diff_of(said, before, after, patch_bytes)

    # --- rollback ---

    def rollback(self, to: Snapshot) -> dict[str, Any]:
        """Put the files back as the snapshot has them; HEAD, index and stash stay.

        Raises:
            StoreError: ``storage_error``; taking it up again is safe.
        """
        with storage("cannot go back"):
            shutil.copy2(self._before, self._index)
        if not Path(self.path).is_dir():
            raise StoreError(f"the workspace is gone: {self.path}", code="storage_error")
        self._git.try_run("update-index", "-q", "--refresh")
        changed = self._changed()
        with storage("cannot go back"), Tree(self.path) as tree:
            self._clear_staged(tree)
            if changed:
                self._restore(tree, changed)
            removed = self._remove_new(tree, set(to.metadata.get("folders", ())),
                                       set(to.metadata.get("left_out", ())))
        self.release()
        return {"restored": len(changed), "removed": removed}

    def _changed(self) -> list[str]:
        """What differs from the snapshot, seen from the workspace."""
        raw = self._git.run(
            "diff-files", "-z", "--no-renames", "--ignore-submodules=all", "--relative", "--", "."
        )
        fields = raw.split(b"\0")
        return [
            os.fsdecode(path) for meta, path in zip(fields[::2], fields[1::2], strict=False)
            if meta[1:7] != _GITLINK
        ]

    def _restore(self, tree: Tree, changed: Sequence[str]) -> None:
        """Check the files out into a folder of ours, then move each to its place."""
        stage = f"{STAGED}{os.urandom(8).hex()}"
        tree.make_folder(stage)
        prefix = f"{self.place.prefix}{stage}/"
        names = b"".join(os.fsencode(path) + b"\0" for path in changed)
        self._git.run("checkout-index", "-f", "-z", "--stdin", f"--prefix={prefix}", stdin=names)
        for path in changed:
            tree.make_way(path)
            if tree.kind(path) == 0o040000:
                tree.remove_all(path)
            tree.place(str(Path(self.path, stage, self.place.prefix, path)), path)
        tree.forget()
        tree.remove_all(stage)

    def _clear_staged(self, tree: Tree) -> None:
        for name in os.listdir(self.path):  # noqa: PTH208
            if name.startswith(STAGED):
                tree.remove_all(name)

    def _remove_new(self, tree: Tree, folders: set[str], kept: set[str]) -> int:
        """Remove what git would add and the snapshot has not, and folders that hold nothing any more."""
        new = self._others()
        for path in new:
            if path.rstrip("/") in kept:
                continue
            if path.endswith("/"):
                tree.remove_all(path.rstrip("/"))
            else:
                tree.remove(path)
            _remove_empty(tree, path.rstrip("/"), folders)
        for path in self._empty_folders():
            if path not in folders and tree.remove(path):
                _remove_empty(tree, path, folders)
        for path in sorted(folders):
            tree.make_way(path)
            tree.make_folder(path)
        return len(new)

    def _others(self, *options: str) -> list[str]:
        raw = self._git.run("ls-files", "-o", "-z", "--exclude-standard", *options, "--", ".")
        return [os.fsdecode(path) for path in raw.split(b"\0") if path]

    def _empty_folders(self) -> list[str]:
        """Folders without anything in them, which git does not know."""
        found: list[str] = []
        for path in self._others("--directory"):
            if path.endswith("/"):
                found += _empty_below(self.path, path.rstrip("/"))
        return sorted(found)


#: What the counts of a diff may take before its patch begins.
_NUMSTAT_BYTES_MAX = 64 * 1024 * 1024


def _diff_of(said: Said, before: Snapshot, after: Snapshot, patch_bytes: int | None) -> tuple[Diff, bytes]:
    """Read ``--numstat -z``, and behind an empty record the patch."""
    insertions = deletions = at = 0
    paths: list[str] = []
    while at < len(said.out) and said.out[at] != 0:
        end = said.out.index(b"\0", at)
        added, deleted, path = said.out[at:end].split(b"\t", 2)
        insertions += 0 if added == b"-" else int(added)
        deletions += 0 if deleted == b"-" else int(deleted)
        paths.append(os.fsdecode(path))
        at = end + 1
    patch = said.out[at + 1:]
    size = len(patch) + said.dropped
    truncated = patch_bytes is not None and size > patch_bytes
    kept, metadata = kept_paths(paths)
    return Diff(
        "git", before.ref, after.ref, len(paths), insertions, deletions, kept, None, size, truncated, None,
        metadata,
    ), b"" if truncated else patch


def _empty_below(root: str, path: str) -> Iterable[str]:
    """The folder itself when it is empty, else the empty ones below it; repositories are left alone."""
    with suppress(OSError), os.scandir(Path(root, path)) as entries:
        listed = list(entries)
        if not listed:
            return [path]
        if not any(entry.name == ".git" for entry in listed):
            return [found for entry in listed if entry.is_dir(follow_symlinks=False)
                    for found in _empty_below(root, f"{path}/{entry.name}")]
    return []


def _remove_empty(tree: Tree, path: str, keep: set[str]) -> None:
    """Remove the folders above a path that are empty and were not before."""
    parent = path.rpartition("/")[0]
    while parent and parent not in keep and tree.remove(parent):
        parent = parent.rpartition("/")[0]


def worktree(place: Place, folder: Path, ref: str, stop: Stop) -> None:
    """Make a working tree of its own at ``folder``, with the files of ``ref``.

    Raises:
        StoreError: ``storage_error``; nothing is left of it.
    """
    try:
        Git(place.top, stop).run("worktree", "add", "--detach", "--force", str(folder), ref)
    except StoreError:
        drop_worktree(place.top, folder)
        raise


def drop_worktree(top: str, folder: Path) -> None:
    """Remove a working tree, also half of one, and what the repository knows of it."""
    shutil.rmtree(folder, ignore_errors=True)
    if Path(top).is_dir():
        Git(top, Stop()).try_run("worktree", "prune")


__all__ = [
    "STRANGE_MAX", "GitBackend", "Place", "drop_worktree", "find", "is_ignored", "worktree",
]
