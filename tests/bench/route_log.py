"""What the log of routes saves: ``PYTHONPATH=. python tests/bench/route_log.py``.

A store commits batches of routes under random keys, synced to disk, as a partition does: ``table`` upserts
them into their table, ``log`` is the store as it is (``store/route_log.py``), folding and checkpoints
included. Prints microseconds of CPU per route, and the bytes written to the disk; the two take turns.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

from mesh.core.route_record import encode_record, encode_route
from mesh.core.slots import route_slot
from mesh.core.state import State
from mesh.store.file import checksum
from mesh.store.route_log import PUT_ROUTE, Records, RouteLog
from mesh.store.sqlite import WAL_BYTES_MAX, Store

BODY = encode_route({"external_room_id": "C0123456789", "text": "x" * 70}, 9_999)


class Table(RouteLog):
    """A log that is none: each batch goes into the table at once."""

    def append(self, db: object, boot: int, routes: Records) -> None:
        db.executemany(PUT_ROUTE, [  # type: ignore[attr-defined]
            (key, route_slot(key), boot, record, checksum(record or b"")) for key, record in routes.items()])

    def appended(self, routes: Records) -> None:
        pass


class Bench:
    """One store with its routes, and the CPU time that its turns took."""

    def __init__(self, folder: str, log: RouteLog, count: int) -> None:
        self.store = Store(Path(folder) / "partition-0.db")
        self.store.acquire(boot_id="bench", offset_ms=0)
        self.store.route_log = log
        self.state = State(self.store, partition=0, epoch=self.store.epoch, node="bench")
        self.keys = [f"telegram:bot_{i % 7}:room_{i}" for i in range(count)]
        self.written, self.cpu_s = 0, 0.0
        for i in range(0, count, 500):
            self.turn(self.keys[i : i + 500])
        self.store.fold_all_routes()
        self.store.checkpoint(truncate=True)
        self.cpu_s = 0.0

    def turn(self, keys: list[str]) -> None:
        routes: Records = {}
        for key in keys:
            self.written += 1
            routes[key] = encode_record(self.written, 10**9, 0, 0, BODY)
        began_s = time.process_time()
        self.store.commit(self.state, routes, {}, {}, power=True)
        self.store.route_log.turn(len(self.keys))
        if self.store.route_log.due(len(self.keys)):
            self.store.fold_routes()
        if self.store.wal_bytes_estimate() > WAL_BYTES_MAX:
            self.store.checkpoint()
        self.cpu_s += time.process_time() - began_s


def measure(log: RouteLog, count: int, batch: int, writes: int) -> tuple[float, float]:
    """(microseconds of CPU, bytes written) per route."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder, log, count)
        dice = random.Random(count)
        before = _written()
        for _ in range(writes // batch):
            bench.turn([dice.choice(bench.keys) for _ in range(batch)])
        written = _written() - before
        bench.store.close()
        return 1e6 * bench.cpu_s / writes, written / writes


def _written() -> int:
    """Bytes that this process gave to write calls."""
    lines = Path(f"/proc/{os.getpid()}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=60, help="routes of a commit")
    parser.add_argument("--writes", type=int, default=60_000)
    asked = parser.parse_args()
    for count in (1_000, 2_500, 10_000, 100_000):
        found: dict[type[RouteLog], list[tuple[float, float]]] = {Table: [], RouteLog: []}
        for _ in range(2):
            for shape, taken in found.items():
                taken.append(measure(shape(), count, asked.batch, asked.writes))
        (table_us, table_bytes), (log_us, log_bytes) = min(found[Table]), min(found[RouteLog])
        print(f"{count:>7,} routes: table {table_us:.1f} us, {table_bytes:,.0f} bytes; log {log_us:.1f} us,"
              f" {log_bytes:,.0f} bytes: {table_us / log_us:.1f}x", flush=True)


if __name__ == "__main__":
    main()
