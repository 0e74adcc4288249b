"""Is a file sound? For ``mesh doctor``, on a node that is down. Nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import apsw

from mesh.errors import StoreError
from mesh.store import consistency, wal
from mesh.store.by_session import has_old_index, view
from mesh.store.file import DAMAGED, header, page_checksums, refused

FINDINGS_MAX = 20


def examine(path: Path) -> list[str]:
    """What is damaged in a database of mesh, at most FINDINGS_MAX sentences; an empty list: it is sound.

    Reads the whole file, with its log, and compares each index with its table.

    Raises:
        StoreError: ``store_unavailable``, it cannot be examined: it is in use, or the disk refuses.
    """
    try:
        page_checksums()  # from now on each page that is read is checked
        log = wal.look(path)
        header(path)
        with closing(apsw.Connection(str(path), apsw.SQLITE_OPEN_READWRITE)) as db:
            db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            db.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()  # so it needs no file beside the log
            return list(islice(_findings(db, log), FINDINGS_MAX))
    except (apsw.Error, OSError) as exc:
        error = refused(f"{path.name} cannot be examined", exc)
        if error.code != DAMAGED:
            raise error from exc
        return [error.message]
    except StoreError as error:
        return [error.message]


def _findings(db: apsw.Connection, log: wal.Log | None) -> Iterator[str]:
    try:
        for (line,) in db.execute(f"PRAGMA integrity_check({FINDINGS_MAX})"):
            if line != "ok":
                yield " ".join(str(line).split())
    except apsw.Error as exc:
        yield _damage("not all of it can be read", exc)
    if wal.lost(log, db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)[0]):
        yield "its log (-wal) is damaged: what was committed behind that place is lost"
    yield from _rows(db)


def _damage(what: str, exc: apsw.Error) -> str:
    """The sentence for damage; anything else goes on as it came."""
    error = refused(what, exc)
    if error.code != DAMAGED:
        raise exc
    return error.message


def _rows(db: apsw.Connection) -> Iterator[str]:
    """Rows whose own checksum is wrong, and what does not fit together, as far as it can be read."""
    if has_old_index(db):
        view(db, 0)
    present = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for phase, table in enumerate(consistency.PHASES):
        if {"log": "event"}.get(table, table) not in present:
            continue
        try:
            for problem in consistency.of_phase(db, phase):
                yield f"{problem.subject}: {problem.text}"
        except apsw.Error as exc:
            yield _damage(f"table {table} cannot be read whole", exc)


__all__ = ["FINDINGS_MAX", "examine"]
