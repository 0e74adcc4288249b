"""The node's own small database: how often it was started, and which partition owns which slot.

Written by the supervisor before its children exist, and by the move of slots (``store/resize.py``).
It is opened, used and closed; nobody keeps it open, least of all over a fork.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import apsw

from mesh.core.slots import SLOT_COUNT, even_map
from mesh.errors import StoreError
from mesh.store.file import connect, refused

SCHEMA = 1
_CREATE = """
CREATE TABLE IF NOT EXISTS node (
    one         INTEGER PRIMARY KEY CHECK (one = 1),
    boot        INTEGER NOT NULL,
    map         BLOB,
    map_version INTEGER NOT NULL,
    pending     BLOB
) STRICT;
INSERT OR IGNORE INTO node (one, boot, map, map_version, pending) VALUES (1, 0, NULL, 0, NULL);
"""


class NodeDb:
    """``data_dir/node.db``. Every method is one durable transaction.

    Raises:
        StoreError: the file cannot be used; ``migration_required`` when a newer mesh wrote it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = connect(path)
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA journal_mode = PERSIST").fetchall()  # see _take_room
            self._migrate()
        except StoreError as exc:
            raise StoreError(f"{path}: {exc.message}", code=exc.code) from exc
        except apsw.Error as exc:
            raise self._refused(exc) from exc

    def __enter__(self) -> NodeDb:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def boot(self) -> int:
        """Begin a new life of the node and return its number, from 1; no two lives share one."""
        return int(self._one("UPDATE node SET boot = boot + 1 RETURNING boot")[0])

    def ensure_map(self, partitions: int) -> None:
        """At the first start, deal the slots out evenly; later this does nothing."""
        self._write("UPDATE node SET map = ?, map_version = 1 WHERE map IS NULL", even_map(partitions))

    def slot_map(self) -> tuple[bytes, int, int]:
        """(owner of each slot, version of the map, number of partitions). Call ``ensure_map`` first."""
        owners, version = self._one("SELECT map, map_version FROM node")
        assert owners is not None, "ensure_map comes first"
        return bytes(owners), int(version), max(owners) + 1

    def set_map(self, owners: bytes) -> int:
        """Flip to another map, durably, and return its version."""
        assert len(owners) == SLOT_COUNT
        statement = "UPDATE node SET map = ?, map_version = map_version + 1 RETURNING map_version"
        return int(self._one(statement, owners)[0])

    def pending_map(self) -> bytes | None:
        """The map of a move of slots that was begun and is not finished, else None."""
        pending = self._one("SELECT pending FROM node")[0]
        return None if pending is None else bytes(pending)

    def set_pending(self, owners: bytes | None) -> None:
        """Note that a move towards this map begins; None notes that it is finished, sources swept."""
        self._write("UPDATE node SET pending = ?", owners)

    def close(self) -> None:
        """Close the file. Harmless when repeated."""
        self._db.close()

    def _migrate(self) -> None:
        found = int(self._db.pragma("user_version"))
        if found > SCHEMA:
            raise StoreError(
                f"written by a newer mesh (schema {found}, we know {SCHEMA}): update mesh",
                code="migration_required",
            )
        with self._db:
            self._db.execute(_CREATE)
            self._db.pragma("user_version", SCHEMA)
        if found == 0:
            self._take_room()

    def _take_room(self) -> None:
        """Let file and journal reach the size that they ever need: a node can start on a full disk."""
        for _ in range(3):
            self._write("UPDATE node SET map = ?, pending = ?", bytes(SLOT_COUNT), bytes(4 * SLOT_COUNT))
        self._write("UPDATE node SET map = NULL, pending = NULL")

    def _one(self, statement: str, *values: Any) -> tuple[Any, ...]:
        try:
            with self._db:
                rows = self._db.execute(statement, values).fetchall()
        except apsw.Error as exc:
            raise self._refused(exc) from exc
        return tuple(rows[0])

    def _write(self, statement: str, *values: Any) -> None:
        try:
            with self._db:
                self._db.execute(statement, values)
        except apsw.Error as exc:
            raise self._refused(exc) from exc

    def _refused(self, exc: apsw.Error) -> StoreError:
        return refused(str(self._path), exc)


__all__ = ["NodeDb"]
