"""From an older schema to ours: columns and keys at once; the values of the columns, and the entries of the
table ``log`` (``by_session.BySession.copy``), in small steps while the partition serves.

A search waits for the last value; everything else does not notice.
"""

from __future__ import annotations

from typing import Any

import apsw
import msgspec

from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core import usage_row
from mesh.store.by_session import has_old_index
from mesh.store.file import checksum
from mesh.store.schema import ADDED

ROWS_PER_STEP = 300
_FILL = {
    "session": "UPDATE session SET created = ?, updated = ?, deleted = ? WHERE n = ?",
    "run": "UPDATE run SET started = ?, provider = ?, model = ?, tokens = ?, cost = ?, usage = ? WHERE n = ?",
}


def step(db: apsw.Connection, version: int) -> None:
    """From an older schema to ours; inside the transaction that raises its version."""
    if version < 3:
        add_columns(db)
    if version < 6 and has_old_index(db):  # from here on the index is not needed
        db.execute("INSERT OR REPLACE INTO meta SELECT 'filled', ifnull(max(pos), 0) FROM event")
    if version < 4 and db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'run'").fetchone():
        db.execute("UPDATE run SET id = substr(id, 8) || substr(id, 5, 3) WHERE id >= 'run_' AND id < 'run`'")


def add_columns(db: apsw.Connection) -> None:
    """Give a file of schema 1 or 2 the columns of schema 3."""
    for table, columns in ADDED.items():
        present = {row[1] for row in db.execute(f"PRAGMA table_info({table})")}
        if not present:
            continue
        for name, kind in columns:
            if name not in present:
                db.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")
        db.execute("INSERT OR REPLACE INTO meta VALUES (?, 0)", (f"filled_{table}",))


def unfilled(db: apsw.Connection) -> list[str]:
    """The tables whose new columns are not filled yet."""
    names = [f"filled_{table}" for table in _FILL]
    return [row[0].removeprefix("filled_") for row in db.execute(
        f"SELECT name FROM meta WHERE name IN ({', '.join('?' * len(names))})", names)]


def fill_step(db: apsw.Connection, table: str) -> bool:
    """Fill the columns of some rows; inside a transaction. True when the table is done."""
    [(after,)] = db.execute("SELECT value FROM meta WHERE name = ?", (f"filled_{table}",))
    some = f"SELECT n, record, sum FROM {table} WHERE n > ? ORDER BY n LIMIT ?"
    rows: list[Any] = db.execute(some, (after, ROWS_PER_STEP)).fetchall()
    db.executemany(_FILL[table], [(*_values(table, record, total), n) for n, record, total in rows])
    if len(rows) < ROWS_PER_STEP:
        db.execute("DELETE FROM meta WHERE name = ?", (f"filled_{table}",))
        return True
    db.execute("UPDATE meta SET value = ? WHERE name = ?", (rows[-1][0], f"filled_{table}"))
    return False


def _values(table: str, record: bytes, total: int) -> tuple[Any, ...]:
    """The values of one row. A damaged one is found by nobody: whoever asks for it by its id is told."""
    try:
        if checksum(record) != total:
            return (0.0, *[None] * (len(ADDED[table]) - 1))
        if table == "session":
            session = sessions.decode(record)
            return session.created_at, session.updated_at, session.deleted_at
        run = runs.decode(record)
        return usage_row.columns(run)
    except msgspec.MsgspecError:
        return (0.0, *[None] * (len(ADDED[table]) - 1))


__all__ = ["ROWS_PER_STEP", "add_columns", "fill_step", "step", "unfilled"]
