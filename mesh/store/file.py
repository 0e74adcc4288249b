"""One SQLite file: how it is opened, what its errors become, how a damaged row is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import apsw
import msgspec
from xxhash import xxh3_64_intdigest

from mesh.errors import StoreError

T = TypeVar("T")
#: A frozen former owner may hold the lock until the supervisor has killed it.
LOCK_WAIT_MS = 5_000


def open_file(path: Path) -> apsw.Connection:
    """Open with every pragma; the lock is taken by the first write."""
    db = apsw.Connection(str(path))
    if db.readonly("main"):
        db.close()
        raise StoreError("the file is read-only", code="storage_write_failed")
    db.set_busy_timeout(LOCK_WAIT_MS)
    for pragma in (
        "locking_mode = EXCLUSIVE", "journal_mode = WAL", "wal_autocheckpoint = 0", "synchronous = FULL",
        "temp_store = MEMORY", "cache_size = -65536", "journal_size_limit = 67108864",
    ):
        db.execute(f"PRAGMA {pragma}").fetchall()
    return db


def checksum(data: bytes) -> int:
    """What a row keeps of its blob, so that a flipped byte is found: 63 bits (integers there are signed)."""
    return xxh3_64_intdigest(data) >> 1


def guard(work: Callable[[], T], what: str, undo: Callable[[], None] | None = None) -> T:
    """Run database work; its exceptions become StoreError, once, here. ``undo`` follows any exception."""
    try:
        return work()
    except (apsw.Error, OSError, msgspec.MsgspecError) as exc:
        if undo is not None:
            undo()
        damaged = isinstance(exc, apsw.CorruptError | apsw.NotADBError | msgspec.MsgspecError)
        code = "storage_read_failed" if damaged else "store_unavailable"
        details = {"reason": type(exc).__name__}
        raise StoreError(f"cannot {what}: {_why(exc)}", code=code, details=details) from exc
    except Exception:
        if undo is not None:
            undo()
        raise


def _why(exc: Exception) -> str:
    return "the disk is full" if isinstance(exc, apsw.FullError) else str(exc)


__all__ = ["LOCK_WAIT_MS", "checksum", "guard", "open_file"]
