"""What runs intend to do with their workspaces, so that the next start can finish it.

Rules of this file:

1. A record is a folder, locked by its run for as long as the run lives: whoever gets that lock knows that
   the run is dead.
2. A record appears whole (it is made beside its place and moved there), before the first step that it is
   for, and goes as the last step of all.
3. A run that ended well has no record, or one without ``rollback``: it is never rolled back.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mesh.workspaces.files import storage, write_atomically
from mesh.workspaces.locks import Lock, try_lock

#: A record in the making belongs to nobody after this time.
MAKING_S = 60.0
#: Records whose rollback failed are kept for people, the newest so many.
FAILED_KEPT = 20
_MAKING, _FAILED = "making-", "failed-"
_INTENT = "intent.json"


class Record:
    """One run's folder, locked by us."""

    def __init__(self, folder: Path, lock: Lock, intent: dict[str, Any]) -> None:
        self.folder = folder
        self.intent = intent
        self._lock = lock

    @property
    def path(self) -> str:
        """The workspace that this record is about."""
        return str(self.intent["path"])

    def note(self, **changes: Any) -> None:
        """Change the intent; it is on the disk afterwards.

        Raises:
            StoreError: ``storage_error``.
        """
        self.intent = {**self.intent, **changes}
        with storage("cannot note what a rollback needs"):
            write_atomically(self.folder / _INTENT, json.dumps(self.intent).encode(), durable=True)

    def close(self) -> None:
        """Nothing is left to do: forget it."""
        with suppress(OSError):
            (self.folder / _INTENT).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()

    def release(self) -> None:
        """Leave it to somebody else."""
        self._lock.release()

    def give_up(self) -> Path:
        """The rollback cannot be done: keep what it had for people. Returns where."""
        place = self.folder.with_name(f"{_FAILED}{self.folder.name}")
        with suppress(OSError):
            self.folder.replace(place)
        self._lock.release()
        failed = sorted(self.folder.parent.glob(f"{_FAILED}*"), key=lambda path: path.stat().st_mtime_ns)
        for old in failed[:-FAILED_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return place


class Journal:
    """All records of a node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, name: str, intent: dict[str, Any]) -> Record:
        """A record for a run that begins now.

        Raises:
            StoreError: ``storage_error``.
        """
        name = re.sub(r"[^A-Za-z0-9_-]", "_", name)
        making = self.folder / f"{_MAKING}{name}"
        with storage("cannot make a record of the workspace"):
            making.mkdir(parents=True, mode=0o700)
            lock = try_lock(making, alone=True)
            assert lock is not None, "two runs of one name"
            (making / _INTENT).write_bytes(json.dumps(intent).encode())
            place = making.rename(self.folder / name)
        return Record(place, lock, intent)

    def names(self) -> list[Path]:
        """The folders of all records that were made and not given up."""
        with suppress(FileNotFoundError):
            return [path for path in self.folder.iterdir() if not path.name.startswith((_MAKING, _FAILED))]
        return []

    def dead(self) -> Iterator[Record]:
        """The records whose runs died, one after the other, each locked; what is no record is removed."""
        for path in self.names():
            lock = _lock_of(path)
            if lock is None:
                continue
            intent = _read(path)
            if intent is None:
                shutil.rmtree(path, ignore_errors=True)
                lock.release()
            else:
                yield Record(path, lock, intent)

    def intents(self) -> list[dict[str, Any]]:
        """What all records say, also those of living runs."""
        return [intent for path in self.names() if (intent := _read(path)) is not None]

    def sweep(self) -> None:
        """Remove what was never finished making."""
        with suppress(OSError):
            for path in self.folder.glob(f"{_MAKING}*"):
                if time.time() - path.stat().st_mtime > MAKING_S:
                    shutil.rmtree(path, ignore_errors=True)


def _lock_of(path: Path) -> Lock | None:
    with suppress(Exception):  # it went meanwhile
        return try_lock(path, alone=True)
    return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        intent = json.loads((path / _INTENT).read_bytes())
    except (OSError, ValueError):
        return None
    return intent if isinstance(intent, dict) and isinstance(intent.get("path"), str) else None


__all__ = ["FAILED_KEPT", "MAKING_S", "Journal", "Record"]
