"""Workspaces that are plain folders: content hashes, and a way back through the content store."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mesh.core.folder_state import (
    FIFO,
    FILE,
    FOLDER,
    LINK,
    SPECIAL,
    Entry,
    Ignored,
    Manifest,
    changed_paths,
    ref_of,
    steps_back,
)
from mesh.core.workspace import PATHS_MAX, Diff, Snapshot, kept_paths
from mesh.errors import InvalidArgument, StoreError
from mesh.workspaces.content import Content, digest_of, link_digest
from mesh.workspaces.files import Stop, Tree, storage, write_atomically

#: A file whose times are this close to a scan is read again by the next: it may have changed within a tick.
RACY_NS = 2_000_000_000
#: The digest of a file that a run closed for us: unlike any other, so it is written again.
CLOSED = "closed"


class FolderBackend:
    """One plain folder; ``scratch`` holds what its first snapshot saw."""

    name = "hash"

    def __init__(
        self, path: str, scratch: Path, stop: Stop, *, content: Content, files_max: int,
        in_use: Callable[[], Iterable[str]] = tuple, ignore: dict[str, Any] | None = None,
    ) -> None:
        self.path = path
        self._scratch = scratch
        self._stop = stop
        self._content = content
        self._files_max = files_max
        self._in_use = in_use
        self._ignored = Ignored(**(ignore or {}))
        self._links: dict[str, str] = {}
        self._last: dict[str, Entry] = {}
        self._last_ns = 0
        self._seen: dict[str, dict[str, Entry]] = {}
        self._forced = False  #: going back: what was closed for us is opened

    # --- snapshot and diff ---

    def snapshot(self, label: str, *, keep: bool = False) -> Snapshot:
        """Hash every regular file; ``keep`` stores the contents, for a rollback.

        Raises:
            StoreError: ``storage_error``: something cannot be read.
            InvalidArgument: ``limit_exceeded``: too many files, or too much to keep.
        """
        manifest = self._scan()
        ref = ref_of(manifest)
        if keep:
            with storage("cannot keep the snapshot"):  # first, so that nobody makes room with its contents
                write_atomically(self._scratch / "manifest.json", _dump(manifest, self._links))
            self._content.keep(self.path, manifest, self._in_use, self._stop)
        self._seen[ref] = manifest
        kinds = [entry.kind for entry in manifest.values()]
        return Snapshot(self.name, self.path, ref, label, time.time(), {
            "files": kinds.count(FILE), "links": kinds.count(LINK),
            "special": kinds.count(SPECIAL) + kinds.count(FIFO),
            "bytes": sum(entry.size for entry in manifest.values()),
        })

    def diff(
        self, before: Snapshot, after: Snapshot, *, patch_bytes: int | None = None  # noqa: ARG002
    ) -> tuple[Diff, bytes]:
        """The paths that changed; a plain folder has no counts and no patch."""
        if (before.backend, before.path) != (after.backend, after.path):
            raise InvalidArgument("two snapshots of different workspaces cannot be compared")
        paths = changed_paths(self._seen[before.ref], self._seen[after.ref])
        kept, metadata = kept_paths(paths)
        return Diff(self.name, before.ref, after.ref, len(paths), 0, 0, kept, metadata=metadata), b""

    def _scan(self) -> dict[str, Entry]:
        began_ns = time.time_ns()
        found: dict[str, Entry] = {}
        self._links = {}
        with storage("cannot read the workspace"):
            self._scan_folder("", found)
        self._last, self._last_ns = found, began_ns
        return found

    def _scan_folder(self, folder: str, found: dict[str, Entry]) -> None:
        pending = [folder]
        while pending:
            self._stop.check()
            parent = pending.pop()
            for entry in self._listed(parent):
                path = f"{parent}/{entry.name}" if parent else entry.name
                if path in self._ignored:
                    continue
                seen = self._entry(path, entry)
                if seen is not None:
                    found[path] = seen
                    if seen.kind == FOLDER:
                        pending.append(path)
            if len(found) > self._files_max:
                raise InvalidArgument(
                    f"the workspace has more than {self._files_max} files (limits.workspace_files)",
                    code="limit_exceeded",
                )

    def _listed(self, folder: str) -> list[os.DirEntry[str]]:
        place = os.path.join(self.path, folder)  # noqa: PTH118  paths by the thousand
        try:
            return list(os.scandir(place))
        except FileNotFoundError:
            if not folder:
                raise
            return []
        except PermissionError:
            if not self._forced:
                raise
            os.chmod(place, stat.S_IRWXU)  # noqa: PTH101
            return list(os.scandir(place))

    def _entry(self, path: str, entry: os.DirEntry[str]) -> Entry | None:
        try:
            state = entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(state.st_mode):
                self._links[path] = target = os.readlink(entry.path)  # noqa: PTH115
                return Entry(LINK, 0, 0, link_digest(target))
        except FileNotFoundError:
            return None
        mode = stat.S_IMODE(state.st_mode)
        if stat.S_ISDIR(state.st_mode):
            return Entry(FOLDER, mode)
        if not stat.S_ISREG(state.st_mode):
            return Entry(FIFO if stat.S_ISFIFO(state.st_mode) else SPECIAL, mode)
        known = self._last.get(path)
        if known is not None and known.stamp == _stamp(state) and known.stamp[2] + RACY_NS < self._last_ns:
            return known._replace(mode=mode)
        try:
            read = digest_of(entry.path, self._stop)
        except PermissionError:
            if not self._forced:
                raise
            return Entry(FILE, mode, state.st_size, CLOSED)
        if read is None:
            return None
        digest, state = read
        return Entry(FILE, mode, state.st_size, digest, _stamp(state))

    # --- rollback ---

    def rollback(self, to: Snapshot) -> dict[str, Any]:
        """Put contents, links, folders and modes back as the kept snapshot has them.

        Raises:
            StoreError: ``storage_error``; taking it up again is safe.
        """
        with storage("cannot go back"):
            kept, links = _load((self._scratch / "manifest.json").read_bytes())
        if ref_of(kept) != to.ref:
            raise StoreError("the kept snapshot is another one", code="storage_error")
        self._forced = True
        with storage("cannot go back"):
            Path(self.path).mkdir(parents=True, exist_ok=True)
            with Tree(self.path) as tree:
                _open_up(tree, kept)
                steps = steps_back(kept, self._scan())
                self._perform(tree, steps.remove, steps.folders)
                for path in steps.write:
                    self._write(tree, path, kept[path], links)
                for path in steps.modes:
                    tree.chmod(path, kept[path].mode)
        done: dict[str, Any] = {"restored": len(steps.write), "removed": len(steps.remove)}
        return done | ({"lost": steps.lost[:PATHS_MAX]} if steps.lost else {})

    def _perform(self, tree: Tree, remove: list[str], folders: list[str]) -> None:
        for path in remove:
            self._stop.check()
            tree.remove(path)
        for path in folders:
            tree.make_way(path)
            tree.make_folder(path)

    def _write(self, tree: Tree, path: str, entry: Entry, links: dict[str, str]) -> None:
        self._stop.check()
        if entry.kind == LINK:
            tree.link(path, links[path])
        elif entry.kind == FIFO:
            tree.fifo(path)
        else:
            tree.write(path, self._content.read(entry.digest, self._stop), entry.mode)


def _open_up(tree: Tree, kept: Manifest) -> None:
    """Folders that a run closed for us are opened, so that the rest can be seen."""
    for path in sorted(path for path, entry in kept.items() if entry.kind == FOLDER):
        if tree.kind(path) == stat.S_IFDIR:
            tree.chmod(path, kept[path].mode | stat.S_IRWXU)


def _stamp(state: os.stat_result) -> tuple[int, int, int]:
    return state.st_ino, state.st_mtime_ns, state.st_ctime_ns


def _dump(manifest: Manifest, links: dict[str, str]) -> bytes:
    rows = {path: list(entry) for path, entry in manifest.items()}
    return json.dumps({"entries": rows, "links": links}).encode()


def _load(data: bytes) -> tuple[dict[str, Entry], dict[str, str]]:
    kept = json.loads(data)
    entries = {
        path: Entry(kind, mode, size, digest, (stamp[0], stamp[1], stamp[2]))
        for path, (kind, mode, size, digest, stamp) in kept["entries"].items()
    }
    return entries, kept["links"]


def digests_kept(scratch: Path) -> set[str]:
    """The contents that a run's rollback may need."""
    try:
        entries, _ = _load((scratch / "manifest.json").read_bytes())
    except FileNotFoundError:
        return set()
    return {entry.digest for entry in entries.values() if entry.kind == FILE}


__all__ = ["RACY_NS", "FolderBackend", "digests_kept"]
