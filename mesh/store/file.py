"""One SQLite file: how it is opened, what its errors become, how damage is found.

Each page ends with a checksum that SQLite writes and verifies itself (its ``cksumvfs``, which the wheels of
apsw bring): a flipped byte anywhere in a file, in a row, an index, a free page or the header, is an error and
never an answer. It costs nothing that can be measured. A row's own ``sum`` is the second line, where that
extension is missing.
"""

from __future__ import annotations

import fcntl
import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import apsw
import msgspec
from xxhash import xxh3_64_intdigest

from mesh.errors import StoreError

T = TypeVar("T")
#: A frozen former owner may hold the lock until the supervisor has killed it.
LOCK_WAIT_MS = 5_000
#: What cksumvfs needs at the end of each page. It stands in the file's header, and so does MARK (SQLite's
#: ``application_id``): no single flipped byte turns a file with checksums into one without.
RESERVED_BYTES = 8
MARK = int.from_bytes(b"MESH")
_HEADER_BYTES, _RESERVED_AT, _MARK_AT = 100, 20, 68
#: Who waits longer than this learns what for, and again each time that it passes.
TELL_S = 1.0
#: SQLite's own steps between two looks at the clock: some milliseconds.
_LOOK_STEPS = 100_000
DAMAGED = "storage_read_failed"
#: What SQLite raises where a page cannot be read.
DAMAGE = (apsw.CorruptError, apsw.IOError, apsw.NotADBError)


@functools.cache
def page_checksums() -> bool:
    """Whether this SQLite can checksum pages; from now on it does, in files that are made for it."""
    try:
        from apsw import sqlite_extra

        db = apsw.Connection(":memory:")
        sqlite_extra.load(db, "cksumvfs")
        db.close()
    except (ImportError, apsw.Error, LookupError, OSError, RuntimeError):
        return False
    return "cksmvfs" in apsw.vfs_names()


def connect(path: Path, tell: Callable[[str], object] = str) -> apsw.Connection:
    """Open for writing, with checksums on its pages: a new file gets them, an older one is rewritten once;
    ``tell`` hears of that, each second that it takes.

    Raises:
        StoreError: the file is read-only, its header is damaged, or it needs checksums that are missing here.
        apsw.Error: SQLite refuses.
    """
    checked = page_checksums()
    reserved, mark = header(path)
    if reserved and not checked:
        raise StoreError(
            "its pages have checksums, and this apsw comes without cksumvfs: install apsw's own wheel",
            code="migration_required",
        )
    make_private(path)
    db = apsw.Connection(str(path))
    try:
        db.set_busy_timeout(LOCK_WAIT_MS)
        if db.readonly("main"):
            raise StoreError("the file is read-only", code="storage_write_failed")
        db.execute("PRAGMA fullfsync = ON").fetchall()  # macOS: fsync alone leaves it in the disk's own cache
        if checked and not mark:
            what = f"{path.name} is rewritten with checksums on its pages"
            with telling(db, lambda seconds: tell(f"{what}: {seconds:.0f} s")):
                _add_checksums(db)
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def telling(db: apsw.Connection, tell: Callable[[float], object]) -> Iterator[None]:
    """Have ``tell`` called with the seconds so far while long statements are at work."""
    began_s = said_s = time.monotonic()

    def look() -> bool:
        nonlocal said_s
        now_s = time.monotonic()
        if now_s - said_s >= TELL_S:
            said_s = now_s
            tell(now_s - began_s)
        return False  # go on

    db.set_progress_handler(look, _LOOK_STEPS)
    try:
        yield
    finally:
        db.set_progress_handler(None)


def make_private(path: Path) -> None:
    """Make a file that only its owner reads: it will hold conversations. One that is there keeps its mode.
    What cannot be made is told by whoever opens it."""
    with suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def sync(descriptor: int) -> None:
    """Have a file, or a folder, on the disk itself."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with suppress(OSError):  # some file systems have none
            fcntl.fcntl(descriptor, full)
            return
    os.fsync(descriptor)


def header(path: Path) -> tuple[int, int]:
    """(reserved bytes per page, MARK or 0) of a file; both are 0 in a new one and in an older mesh's.

    Raises:
        StoreError: the header is damaged.
    """
    if not path.exists():
        return 0, 0
    if path.with_name(f"{path.name}-journal").exists():  # perhaps a rewriting that was cut short
        with closing(apsw.Connection(str(path))) as db:
            db.pragma("schema_version")
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES).ljust(_HEADER_BYTES, b"\0")
    found = head[_RESERVED_AT], int.from_bytes(head[_MARK_AT : _MARK_AT + 4])
    if found not in ((RESERVED_BYTES, MARK), (RESERVED_BYTES, 0), (0, 0)):
        raise StoreError("its header is damaged, or it is no database", code=DAMAGED)
    return found


def _add_checksums(db: apsw.Connection) -> None:
    """Rewrite the file with room in each page. Where a full disk forbids it, the file stays as it is."""
    db.execute("PRAGMA journal_mode = DELETE").fetchall()
    db.reserve_bytes(None, RESERVED_BYTES)
    try:
        if db.pragma("page_count"):
            db.execute("VACUUM")
        db.execute(f"PRAGMA application_id = {MARK}").fetchall()
    except apsw.FullError:
        db.reserve_bytes(None, 0)


def open_file(path: Path, tell: Callable[[str], object] = str) -> apsw.Connection:
    """Open with every pragma; the lock is taken by the first write. ``tell`` as for ``connect``."""
    db = connect(path, tell)
    for pragma in (
        "locking_mode = EXCLUSIVE", "journal_mode = WAL", "wal_autocheckpoint = 0", "synchronous = FULL",
        "temp_store = MEMORY", "cache_size = -16384", "journal_size_limit = 67108864",
    ):
        db.execute(f"PRAGMA {pragma}").fetchall()
    return db


def checksum(data: bytes) -> int:
    """What a row keeps of its blob, so that a flipped byte is found: 63 bits (integers there are signed)."""
    return xxh3_64_intdigest(data) >> 1


def readable_behind(db: apsw.Connection, sql: str, last: int) -> int | None:
    """The lowest number behind which a query reads a row again, or finds none; None: nowhere."""

    def reads(number: int) -> bool:
        try:
            db.execute(sql, (number,)).fetchone()
            return True
        except DAMAGE:
            return False

    step = 1
    while not reads(last + step):
        step *= 2
        if last + step >= 1 << 62:
            return None
    low, high = last + step // 2, last + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reads(middle) else (middle, high)
    return high


def guard(work: Callable[[], T], what: str, undo: Callable[[], None] | None = None) -> T:
    """Run database work; its exceptions become StoreError, once, here. ``undo`` follows any exception."""
    try:
        return work()
    except (apsw.Error, OSError, msgspec.MsgspecError) as exc:
        if undo is not None:
            undo()
        raise refused(f"cannot {what}", exc) from exc
    except Exception:
        if undo is not None:
            undo()
        raise


def refused(what: str, exc: Exception) -> StoreError:
    """An exception of the database as ours."""
    first = exc.__context__
    if isinstance(exc, apsw.SQLError) and isinstance(first, apsw.Error):
        exc = first  # SQLite had rolled back already; that the rollback found nothing is no news
    damaged = isinstance(exc, apsw.CorruptError | apsw.NotADBError | msgspec.MsgspecError)
    why = str(exc)
    if isinstance(exc, apsw.FullError):
        why = "the disk is full"
    elif getattr(exc, "extendedresult", 0) == apsw.SQLITE_IOERR_DATA:
        damaged, why = True, "a page of the file is damaged (its checksum is wrong)"
    code = DAMAGED if damaged else "store_unavailable"
    return StoreError(f"{what}: {why}", code=code, details={"reason": type(exc).__name__})


__all__ = [
    "DAMAGE", "DAMAGED", "LOCK_WAIT_MS", "checksum", "connect", "guard", "header", "make_private",
    "open_file", "page_checksums", "readable_behind", "refused", "sync", "telling",
]
