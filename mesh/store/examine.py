"""Is a file sound? For ``mesh doctor``, on a node that is down. Nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw

from mesh.errors import StoreError
from mesh.store import wal
from mesh.store.file import checksum, header, page_checksums, refused

#: table -> (what names a row, its blob), where each row has a checksum of its own.
_SUMMED = {
    "route": ("key", "record"),
    "session": ("id", "record"),
    "run": ("id", "record"),
    "event": ("pos", "fragment"),
}
FINDINGS_MAX = 20


def examine(path: Path) -> list[str]:
    """What is wrong with a database of mesh, at most FINDINGS_MAX sentences; an empty list: it is sound.

    Reads the whole file, with its WAL, and compares each index with its table.
    """
    checked = page_checksums()
    found: list[str] = []
    try:
        header(path)
        log = wal.look(path)
        with closing(apsw.Connection(f"{path.absolute().as_uri()}?mode=ro", _FLAGS)) as db:
            db.set_busy_timeout(0)
            if checked and not db.reserve_bytes(None):
                found.append("its pages have no checksums yet: the next start adds them")
            found += _structure(db)
            lost = wal.lost(log, db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)[0])
            if lost:
                found.append("its log (-wal) is damaged: what was committed behind that place is lost")
            for sentence in _rows(db):
                found.append(sentence)
                if len(found) >= FINDINGS_MAX:
                    break
    except StoreError as error:
        found.append(error.message)
    except apsw.Error as exc:
        found.append(refused("it cannot be read", exc).message)
    return found


def _structure(db: apsw.Connection) -> list[str]:
    """What SQLite itself finds: pages, trees, and each index against its table."""
    try:
        return [str(line) for (line,) in db.execute("PRAGMA integrity_check(20)") if line != "ok"]
    except apsw.BusyError:
        raise
    except apsw.Error as exc:
        return [refused("not all of it can be read", exc).message]


def _rows(db: apsw.Connection) -> Iterator[str]:
    """Rows whose own checksum is wrong, each table as far as it can be read."""
    present = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for table, (key, blob) in _SUMMED.items():
        if table not in present:
            continue
        try:
            for name, data, total in db.execute(f"SELECT {key}, {blob}, sum FROM {table}"):
                if checksum(data) != total:
                    yield f"{table} {name}: its checksum is wrong"
        except apsw.Error as exc:
            error: StoreError = refused(f"table {table} cannot be read whole", exc)
            yield error.message


_FLAGS = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI

__all__ = ["FINDINGS_MAX", "examine"]
