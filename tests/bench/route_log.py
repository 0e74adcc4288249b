"""Is a log of batches cheaper than writing routes into their table? ``python tests/bench/route_log.py``.

``table`` is what a partition does: a commit upserts its rows. ``log`` commits each batch as one row, and
folds what gathered into the table, sorted by key, at every ``--fold`` rows. Both with the partition's own
pragmas and page checksums, checkpoints included. Prints CPU time per route; the two take turns.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import apsw
import msgpack

from mesh.store.file import checksum, open_file
from mesh.store.sqlite import PAGE_BYTES, WAL_BYTES_MAX

RECORD = os.urandom(130)
TABLES = """
CREATE TABLE route (key TEXT PRIMARY KEY, slot INTEGER, boot INTEGER, record BLOB, sum INTEGER) WITHOUT ROWID;
CREATE TABLE log (n INTEGER PRIMARY KEY, batch BLOB, sum INTEGER);
"""
PUT = (
    "INSERT INTO route VALUES (?, 1, 1, ?, ?) ON CONFLICT(key) "
    "DO UPDATE SET boot = excluded.boot, record = excluded.record, sum = excluded.sum"
)
Row = tuple[str, bytes, int]


class Bench:
    """One database with its keys, and the CPU time that its commits took."""

    def __init__(self, folder: str, keys: int, fold: int) -> None:
        self.path = Path(folder) / "routes.db"
        self.db: apsw.Connection = open_file(self.path)
        self.db.execute("PRAGMA synchronous = NORMAL").fetchall()
        self.db.execute(TABLES)
        self.keys = [f"telegram:bot_{i % 7}:room_{i}" for i in range(keys)]
        self.fold_rows = fold
        self.gathered: dict[str, Row] = {}
        self.cpu_s = 0.0
        self.wal_pages = 0
        self.db.set_wal_hook(self.on_commit)
        self.commit(lambda: self.db.executemany(PUT, map(self.row, self.keys)))
        self.cpu_s = 0.0

    @staticmethod
    def row(key: str) -> Row:
        return key, RECORD, checksum(RECORD)

    def on_commit(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        self.wal_pages = pages
        return apsw.SQLITE_OK

    def commit(self, work: Callable[[], object]) -> None:
        began_s = time.process_time()
        self.db.execute("BEGIN IMMEDIATE")
        work()
        self.db.execute("COMMIT")
        if self.wal_pages * PAGE_BYTES > WAL_BYTES_MAX:
            self.db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        self.cpu_s += time.process_time() - began_s

    def table(self, rows: list[Row]) -> None:
        self.commit(lambda: self.db.executemany(PUT, rows))

    def log(self, rows: list[Row]) -> None:
        def write() -> None:
            batch = msgpack.packb([row[:2] for row in rows])
            self.db.execute("INSERT INTO log (batch, sum) VALUES (?, ?)", (batch, checksum(batch)))

        self.commit(write)
        self.gathered.update((row[0], row) for row in rows)
        if len(self.gathered) >= self.fold_rows:
            self.fold()

    def fold(self) -> None:
        def write() -> None:
            self.db.executemany(PUT, sorted(self.gathered.values()))
            self.db.execute("DELETE FROM log")

        self.commit(write)
        self.gathered.clear()


def measure(shape: str, keys: int, asked: argparse.Namespace) -> float:
    """Microseconds of CPU per route."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder, keys, asked.fold)
        dice = random.Random(keys)
        for _ in range(asked.commits):
            rows = [bench.row(dice.choice(bench.keys)) for _ in range(asked.batch)]
            (bench.table if shape == "table" else bench.log)(rows)
        bench.fold()
        bench.db.close()
        return 1e6 * bench.cpu_s / (asked.commits * asked.batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=60, help="rows of a commit")
    parser.add_argument("--commits", type=int, default=800)
    parser.add_argument("--fold", type=int, default=6_000, help="rows after which the log is folded")
    asked = parser.parse_args()
    for keys in (1_000, 10_000, 100_000):
        turns = [(measure("table", keys, asked), measure("log", keys, asked)) for _ in range(3)]
        table, log = (min(column) for column in zip(*turns, strict=True))
        print(f"{keys:>7,} keys: table {table:.2f} us, log {log:.2f} us of CPU per route: {log / table:.2f}x")


if __name__ == "__main__":
    main()
