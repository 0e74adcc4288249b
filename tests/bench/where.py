"""Where a call spends its CPU time, per process: ``PYTHONPATH=. python tests/bench/where.py`` (Linux).

Each row is one way to call; each column the microseconds of CPU that one call takes there, all threads of
the process together, by ``/proc/PID/task/TID/schedstat``; ``io`` is the share of ZeroMQ's threads. The first
column is asyncio alone: coroutine, future and wake-up with nothing behind them. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import mesh
from mesh.cli.measure import COROUTINES, MANY, ROUTE, concurrent, fill, keys
from tests.bench.floors import asyncio_floor
from tests.bench.traffic import cpu_us

KEYS = 2_000
Call = Callable[[int], Awaitable[Any]]


class Shape(NamedTuple):
    """One way to call."""

    name: str
    make: Callable[[mesh.AsyncClient, list[str]], Call]
    count: int
    coroutines: int = COROUTINES
    per_call: int = 1


def get(client: mesh.AsyncClient, names: list[str]) -> Call:
    return lambda i: client.routes.get(names[i * 31 % KEYS])


def put(client: mesh.AsyncClient, names: list[str]) -> Call:
    return lambda i: client.routes.set(names[i * 31 % KEYS], ROUTE)


def get_many(client: mesh.AsyncClient, names: list[str]) -> Call:
    pages = [names[i : i + MANY] for i in range(0, KEYS, MANY)]
    return lambda i: client.routes.get_many(pages[i % len(pages)])


def run_once(client: mesh.AsyncClient, names: list[str]) -> Call:
    return lambda _: client.run_once("echo", "hello", timeout_s=60.0)


SHAPES = (
    Shape("`routes.get`, 256 at a time", get, 100_000),
    Shape("`routes.get`, one at a time", get, 3_000, 1),
    Shape("`routes.set`, 256 at a time, synced", put, 50_000),
    Shape("a key of `routes.get_many` of 100, 8 lists at a time", get_many, 3_000, 8, MANY),
    Shape("`run_once`, 256 at a time, synced", run_once, 4_000),
)


async def row(client: mesh.AsyncClient, names: list[str], shape: Shape, floor_us: float) -> str:
    """Measure one shape; its line of the table."""
    status = await client.status()
    pids = {"client": [os.getpid()], "router": [status["router"]["pid"]]}
    for what in ("partitions", "runners"):
        pids[what] = [child["pid"] for child in status[what]]
    call = shape.make(client, names)
    await concurrent("warm up", call, max(shape.count // 10, 100), coroutines=shape.coroutines)
    before = {pid: cpu_us(pid) for group in pids.values() for pid in group}
    began_s = time.perf_counter()
    await concurrent(shape.name, call, shape.count, coroutines=shape.coroutines)
    rate = shape.count * shape.per_call / (time.perf_counter() - began_s)
    used = {pid: [b - a for a, b in zip(before[pid], cpu_us(pid), strict=True)] for pid in before}
    cells, total = [], 0.0
    for group in pids.values():
        whole, io = (sum(used[pid][k] for pid in group) / (shape.count * shape.per_call) for k in (0, 1))
        total += whole
        cells.append(f"{whole:.1f} ({io:.1f} io)")
    return f"| {shape.name} | {rate:,.0f}/s | {floor_us:.1f} | {' | '.join(cells)} | {total:.1f} |"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.parse_args()
    names = keys(KEYS)
    print("| calls | rate | asyncio | client | router | partitions | runner | all |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with mesh.LocalNode(config={"routes": {"durability": "power"}}) as node:
        async with node.async_client() as client:
            await fill(client, names)
            for shape in SHAPES:
                floor_us = await asyncio_floor()
                print(await row(client, names, shape, floor_us), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
