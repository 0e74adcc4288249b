"""Backups of a running partition: a few pages per turn of its loop, so that nobody waits for them."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

from mesh.core import wire
from mesh.core.pending import PartOf
from mesh.errors import InvalidArgument, InvalidState, MeshError, StoreError
from mesh.store.sqlite import Store

PAGES_PER_STEP = 512


class Backups:
    """The backups that are under way."""

    def __init__(self, store: Store, index: int) -> None:
        self._store = store
        self._index = index
        self.active: list[tuple[Generator[bool, None, None], Path, PartOf]] = []

    def begin(self, effects: list[tuple[str, Any, PartOf]]) -> None:
        """Start copying into ``<folder>/partition-N.db``; an existing file there is refused.

        The copy has its name only when it is whole: one that a death cut short is begun anew.
        """
        for _, folder, part in effects:
            target = Path(folder) / f"partition-{self._index}.db"
            try:
                if not target.is_absolute() or "\0" in folder:
                    raise InvalidArgument(f"{folder!r:.200}: give an absolute path")
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists() or any(target == other for _, other, _ in self.active):
                    raise InvalidState(f"{target} exists: choose an empty folder", code="already_exists")
                self.active.append((self._store.backup_to(target, PAGES_PER_STEP), target, part))
            except OSError as exc:
                part.resolve(wire.failure(_refused(target, exc)))
            except MeshError as error:
                part.resolve(wire.failure(error))

    def step(self) -> None:
        """Copy some pages of each; answer those that are complete."""
        going, self.active = self.active, []
        for copy, target, part in going:
            try:
                if next(copy, True):
                    copy.close()
                    part.resolve(wire.ok(str(target)))
                else:
                    self.active.append((copy, target, part))
            except OSError as exc:
                part.resolve(wire.failure(_refused(target, exc)))
            except MeshError as error:
                part.resolve(wire.failure(error))


def _refused(target: Path, exc: OSError) -> StoreError:
    return StoreError(f"{target}: {exc.strerror}", code="storage_write_failed")


__all__ = ["Backups"]
