"""The patches that runs left in the node's artifact store: read for clients, removed with their session.

What a run put into a folder of its caller's own is read from there, and never removed: that is the caller's.
Nor does an imported run own a patch: it is the original's, which may be a session of this node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mesh.core import wire
from mesh.core.run import RunState
from mesh.core.state import State
from mesh.core.workspace import patch_key
from mesh.errors import InvalidArgument, MeshError, NotFound
from mesh.store.sqlite import Store

#: Bytes of a page of runs whose artifacts are removed.
_PAGE_BYTES = 4 * 1024 * 1024


class Artifacts:
    """Of one partition's runs. Nothing of workspaces is loaded before somebody asks."""

    def __init__(self, state: State, store: Store) -> None:
        self._state = state
        self._store = store
        self._folder = store.path.parent / "workspaces" / "artifacts"
        self.table: dict[str, Callable[[list[Any], int], bytes]] = {"run.patch": self.patch}

    def patch(self, args: list[Any], now: int) -> bytes:  # noqa: ARG002
        if len(args) != 1:
            raise InvalidArgument(f"expected a run id, not {len(args)} arguments")
        run = self._state.run(args[0])
        diff = _diff(run)
        if isinstance(diff.get("patch"), str):
            return wire.ok(diff["patch"].encode())
        key = diff.get("patch_ref")
        if not isinstance(key, str):
            return wire.ok(None)
        place = self._place(run)
        if not place.is_dir():
            raise NotFound(f"the artifact store of run {run.id} is not there", code="not_found")
        from mesh.workspaces.artifacts import FileStore

        return wire.ok(FileStore(place).get(key))

    def _place(self, run: RunState) -> Path:
        given = (run.options.get("workspace") or {}).get("artifact_store")
        return Path(given) if isinstance(given, str) else self._folder

    def forget(self, session: int, limit: int) -> Iterator[None]:
        """Remove what the runs of a session left here, some runs at a time; doing it twice harms nobody."""
        after, more = 0, self._folder.is_dir()
        while more:
            runs, more = self._store.list_runs(session, after=after, limit=limit, bytes_max=_PAGE_BYTES)
            for run in runs:
                self._remove(run)
                after = run.n
            yield

    def _remove(self, run: RunState) -> None:
        from mesh.workspaces.artifacts import FileStore

        if (run.options.get("workspace") or {}).get("artifact_store") is not True:
            return
        store = FileStore(self._folder)
        with suppress(MeshError):  # the folder's own trouble; what is stored goes on
            for attempt in range(1, run.attempt + 1):  # also of those whose runner died before it said so
                store.delete(patch_key(run.id, attempt))


def _diff(run: RunState) -> dict[str, Any]:
    workspace = run.metadata.get("workspace")
    diff = workspace.get("diff") if isinstance(workspace, dict) else None
    return diff if isinstance(diff, dict) else {}


__all__ = ["Artifacts"]
