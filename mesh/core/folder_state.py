"""The state of a plain folder as content hashes: what differs, what to ignore, and how to get back.

Rules of this file:

1. A path is relative, with ``/``. A directory, a link, a FIFO and a special file (socket, device) are entries
   too: nothing is followed, nothing special is opened. A special file cannot be made again.
2. Going back is a list of steps that may be taken any number of times: remove what is new, deepest first;
   make folders, highest first; write what differs; set modes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple

#: First components of paths that are never looked at (spec 9).
SKIPPED = frozenset((".git", "deps", "_build", "node_modules"))
FILE, LINK, FOLDER, FIFO, SPECIAL = "f", "l", "d", "q", "p"


class Entry(NamedTuple):
    """One path. ``stamp`` (inode, mtime, ctime in ns) tells whether a file must be read again."""

    kind: str
    mode: int
    size: int = 0
    digest: str = ""
    stamp: tuple[int, int, int] = (0, 0, 0)

    @property
    def state(self) -> tuple[str, int, str]:
        """What makes two entries the same."""
        return self.kind, self.mode if self.kind == FILE else 0, self.digest


Manifest = Mapping[str, Entry]


class Steps(NamedTuple):
    """How to come from one state to an earlier one."""

    remove: list[str]  #: deepest first
    folders: list[str]  #: highest first
    write: list[str]
    modes: list[str]  #: deepest first, after everything else
    lost: list[str]  #: special files that are gone and cannot be made again


def ref_of(manifest: Manifest) -> str:
    """SHA-256 over the sorted ``path:hash`` lines."""
    lines = (f"{path}:{entry.digest}" for path, entry in sorted(manifest.items()) if entry.digest)
    return sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def changed_paths(before: Manifest, after: Manifest) -> list[str]:
    """Files and links that are new, gone or different; sorted."""
    return sorted(
        path for path in before.keys() | after.keys()
        if _file_state(before.get(path)) != _file_state(after.get(path))
    )


def _file_state(entry: Entry | None) -> tuple[str, int, str] | None:
    return None if entry is None or entry.kind == FOLDER else entry.state


def steps_back(before: Manifest, now: Manifest) -> Steps:
    """The steps from ``now`` to ``before``."""
    steps = Steps([], [], [], [], [])
    for path, entry in now.items():
        kept = before.get(path)
        if kept is None or (kept.kind != entry.kind and {kept.kind, entry.kind} & {FOLDER, SPECIAL}):
            steps.remove.append(path)
    for path, entry in before.items():
        _step(steps, path, entry, now.get(path))
    for paths in (steps.remove, steps.modes):
        paths.sort(key=lambda path: (-path.count("/"), path))
    steps.folders.sort()
    return steps


def _step(steps: Steps, path: str, entry: Entry, present: Entry | None) -> None:
    same_kind = present is not None and present.kind == entry.kind
    digest, mode = (present.digest, present.mode) if present is not None and same_kind else (None, None)
    if entry.kind == FOLDER and not same_kind:
        steps.folders.append(path)
    elif entry.kind == SPECIAL and not same_kind:
        steps.lost.append(path)
    elif entry.kind in (FILE, LINK, FIFO) and digest != entry.digest:
        steps.write.append(path)
    if entry.kind in (FILE, FOLDER, FIFO) and mode != entry.mode:
        steps.modes.append(path)


class Ignored:
    """What a snapshot leaves out: first components, and globs (``*``, ``?``, ``**``)."""

    def __init__(self, paths: Iterable[str] = (), globs: Iterable[str] = ()) -> None:
        self._first = SKIPPED.union(path.strip("/") for path in paths if "/" not in path.strip("/"))
        self._deep = frozenset(path.strip("/") for path in paths if "/" in path.strip("/"))
        self._globs = [(_pattern(glob), "/" in glob) for glob in globs]

    def __contains__(self, path: str) -> bool:
        if path in self._first or path in self._deep:
            return True
        name = path.rpartition("/")[2]
        return any(
            pattern.fullmatch(path) or (not deep and pattern.fullmatch(name))
            for pattern, deep in self._globs
        )


@lru_cache(maxsize=1_024)
def _pattern(glob: str) -> re.Pattern[str]:
    """A glob as an expression: ``*`` and ``?`` stay within one component, ``**`` does not."""
    parts = re.split(r"(\*\*/?|\*|\?)", glob.strip("/"))
    known = {"**/": r"(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(known.get(part, re.escape(part)) for part in parts), re.DOTALL)


__all__ = [
    "FIFO", "FILE", "FOLDER", "LINK", "SKIPPED", "SPECIAL", "Entry", "Ignored", "Manifest", "Steps",
    "changed_paths", "ref_of", "steps_back",
]
