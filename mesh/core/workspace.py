"""What a run may say about its workspace, and what it is told about it afterwards.

A workspace is a folder that a run works in. Its state is taken before and after (``Snapshot``), compared
(``Diff``), and on request put back when the run does not complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mesh.core.records import Record
from mesh.errors import InvalidArgument, shown

STRATEGIES = ("auto", "git", "hash")
#: A larger patch is dropped, and says so.
PATCH_BYTES = 1_048_576
#: The most that ``max_patch_bytes`` may allow: a patch travels with its run.
PATCH_BYTES_MAX = 4 * 1_048_576
#: How long a run waits for another one that has the folder.
LOCK_WAIT_S = 60.0
#: Paths of one diff that are kept, and their characters; ``files_changed`` counts all.
PATHS_MAX = 10_000
PATHS_CHARS_MAX = 524_288
IGNORES_MAX = 1_000

_KINDS: dict[str, tuple[type, ...]] = {
    "enabled": (bool,), "path": (str,), "strategy": (str,), "capture_patch": (bool,),
    "max_patch_bytes": (int,), "rollback_on_failure": (bool,), "artifact_store": (bool, str),
    "ignore": (dict,), "worktree": (bool,), "lock_wait_s": (int, float),
}


class Snapshot(Record, frozen=True):
    """The state of a workspace at one moment. ``ref`` names it: a commit (git) or a digest (hash)."""

    backend: str
    path: str
    ref: str
    label: str
    captured_at: float
    metadata: dict[str, Any] = {}


class Diff(Record, frozen=True):
    """What changed between two snapshots. ``changed_paths`` is sorted and relative to the workspace."""

    backend: str
    from_ref: str
    to_ref: str
    files_changed: int
    insertions: int
    deletions: int
    changed_paths: tuple[str, ...]
    patch: str | None = None
    patch_bytes: int = 0
    patch_truncated: bool = False  #: it was larger than ``max_patch_bytes`` and dropped
    patch_ref: str | None = None  #: its key in the artifact store, when that has it
    metadata: dict[str, Any] = {}


def checked_workspace(value: Any) -> dict[str, Any] | None:
    """The ``workspace`` option of a run, proven; None when it asks for nothing.

    Raises:
        InvalidArgument: names the key.
    """
    if type(value) is not dict:
        raise InvalidArgument(f"workspace must be a map, not {shown(value)}")
    for name, given in value.items():
        kinds = _KINDS.get(name)
        if kinds is None:
            raise InvalidArgument(f"workspace has no key {shown(name)}", details={"known": sorted(_KINDS)})
        if type(given) not in kinds:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise InvalidArgument(f"workspace.{name} must be {wanted}, not {shown(given)}")
    if value.get("enabled") is False:
        return None
    _check_places(value)
    _check_choices(value)
    _check_ignore(value.get("ignore", {}))
    return value


def _check_places(value: dict[str, Any]) -> None:
    if "path" not in value:
        raise InvalidArgument("workspace.path is missing", code="missing_required_field")
    for name in ("path", "artifact_store"):
        place = value.get(name)
        if type(place) is str and (not place.startswith("/") or "\0" in place):
            raise InvalidArgument(f"workspace.{name} must be an absolute path, not {shown(place, 200)}")


def _check_choices(value: dict[str, Any]) -> None:
    if value.get("strategy", "auto") not in STRATEGIES:
        raise InvalidArgument(
            f"workspace.strategy: no strategy {shown(value['strategy'])}", details={"known": [*STRATEGIES]}
        )
    if not 0 <= value.get("max_patch_bytes", 0) <= PATCH_BYTES_MAX:
        raise InvalidArgument(f"workspace.max_patch_bytes must be from 0 to {PATCH_BYTES_MAX}")
    if not 0 < value.get("lock_wait_s", LOCK_WAIT_S) <= 86_400:
        raise InvalidArgument("workspace.lock_wait_s must be more than 0 and at most 86400")
    if value.get("worktree") and value.get("strategy") == "hash":
        raise InvalidArgument("workspace.worktree needs git; strategy 'hash' has no worktrees")


def _check_ignore(ignore: dict[str, Any]) -> None:
    if ignore.keys() - {"paths", "globs"}:
        raise InvalidArgument("workspace.ignore has the keys paths and globs")
    for name, given in ignore.items():
        if type(given) is not list or not all(type(item) is str and item for item in given):
            raise InvalidArgument(f"workspace.ignore.{name} must be a list of texts, not {shown(given)}")
        if len(given) > IGNORES_MAX:
            raise InvalidArgument(f"workspace.ignore.{name}: at most {IGNORES_MAX}", code="limit_exceeded")


def kept_paths(paths: Sequence[str]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The paths that a diff keeps, as text that travels, and what to say when that is not all."""
    kept: list[str] = []
    left = PATHS_CHARS_MAX
    for path in sorted(paths):
        left -= len(path)
        if left < 0 or len(kept) == PATHS_MAX:
            return tuple(kept), {"paths_truncated": True}
        kept.append(path.encode(errors="replace").decode())
    return tuple(kept), {}


def patch_key(run_id: str, attempt: int) -> str:
    """Under which the node's store has what an attempt changed: known also when its runner died over it."""
    return f"patch_{run_id}_{attempt}"


def result_of(metadata: dict[str, Any]) -> dict[str, Any] | None:
    """``RunResult.workspace`` of a run, from what its metadata keep."""
    kept = metadata.get("workspace")
    return kept if type(kept) is dict else None


__all__ = [
    "LOCK_WAIT_S", "PATCH_BYTES", "PATCH_BYTES_MAX", "PATHS_CHARS_MAX", "PATHS_MAX", "STRATEGIES", "Diff",
    "Snapshot", "checked_workspace", "kept_paths", "patch_key", "result_of",
]
