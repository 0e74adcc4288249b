"""What the shape alone can do here: a client, a router and two partitions with nothing of mesh in them.

    python tests/bench/prototype.py

An asyncio client coalesces the reads of a loop turn, a bare ROUTER passes frames on, two processes look keys
up in a dict. No limits, no time, no errors, no fairness, no expiry, no records: what ``routes.get`` takes
beyond this is what mesh adds. Prints reads/s of this shape and of ``routes.get`` in turns, so that the load
of the machine is the same for both, and the price of an asyncio wake-up alone and beside a busy process.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import tempfile
import time
from contextlib import contextmanager
from typing import Any

import msgpack
from floors import asyncio_floor, bare_router

import mesh
from mesh.net import sockets

ROUTE = {"external_room_id": "ext-12345", "channel_type": "telegram", "bridge_id": "bot_1", "extra": "x" * 30}
KEYS = [f"telegram:bot_1:room_{number}" for number in range(5_000)]
PARTITIONS = 2
COROUTINES = 256
ROUNDS = 5
SECONDS = 2.0


def _home(frame: bytes) -> bytes:
    return b"p" + frame[:1]


def _partition(back: str, index: int) -> None:
    socket = sockets.dealer_socket(sockets.context(), back, b"p" + bytes((index,)))
    entries = dict.fromkeys(KEYS, msgpack.packb(ROUTE))
    while True:
        socket.poll()
        frame = socket.recv()
        keys = msgpack.unpackb(frame[17:])
        socket.send(frame[:17] + msgpack.packb([entries[key] for key in keys]))


class Bare:
    """The client: one dealer, calls of one turn in one frame per partition, answers in order."""

    def __init__(self, front: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.socket = sockets.dealer_socket(sockets.context(), front, b"c" * 16)
        self.loop.add_reader(self.socket.fileno(), self.receive)
        self.calls: list[list[tuple[str, asyncio.Future[Any]]]] = [[] for _ in range(PARTITIONS)]
        self.sent: list[list[list[asyncio.Future[Any]]]] = [[] for _ in range(PARTITIONS)]
        self.flushing = False

    async def get(self, key: str) -> bytes:
        if not self.flushing:
            self.flushing = True
            self.loop.call_soon(self.flush)
        future = self.loop.create_future()
        self.calls[hash(key) % PARTITIONS].append((key, future))
        return await future

    def flush(self) -> None:
        self.flushing = False
        for partition, calls in enumerate(self.calls):
            if calls:
                self.calls[partition] = []
                self.sent[partition].append([future for _, future in calls])
                self.socket.send(bytes((partition,)) + msgpack.packb([key for key, _ in calls]))
        self.receive()

    def receive(self) -> None:
        while self.socket.getsockopt(sockets.EVENTS) & sockets.POLLIN:
            frame = self.socket.recv()
            futures = self.sent[frame[0]].pop(0)
            for future, value in zip(futures, msgpack.unpackb(frame[1:]), strict=True):
                future.set_result(value)


@contextmanager
def bare_node() -> Any:
    """Yields the address of the router."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        front, back = f"ipc://{folder}/f", f"ipc://{folder}/b"
        fork = multiprocessing.get_context("fork")
        ends: list[Any] = [
            (bare_router, (front, back, _home)),
            *((_partition, (back, n)) for n in range(PARTITIONS)),
        ]
        children = [fork.Process(target=target, args=args) for target, args in ends]
        for child in children:
            child.start()
        try:
            time.sleep(0.5)  # the dealers connect; a bare ROUTER drops what comes before
            yield front
        finally:
            for child in children:
                child.kill()
                child.join()


async def rate(get: Any) -> float:
    """Calls per second of 256 coroutines."""
    done, until = 0, time.perf_counter() + SECONDS

    async def work(first: int) -> None:
        nonlocal done
        number = first
        while time.perf_counter() < until:
            await get(KEYS[number % len(KEYS)])
            number += 31
            done += 1

    await asyncio.gather(*(work(first) for first in range(COROUTINES)))
    return done / SECONDS


async def compare(front: str, node: mesh.LocalNode) -> list[tuple[float, float]]:
    """(bare, mesh) rates, taken in turns."""
    bare = Bare(front)
    async with node.async_client() as client:
        await client.routes.set_many([(key, ROUTE) for key in KEYS])
        return [(await rate(bare.get), await rate(client.routes.get)) for _ in range(ROUNDS)]


def _burn() -> None:
    while True:
        pass


def wake_ups() -> tuple[float, float]:
    """us of a coroutine's call on asyncio: with the other CPUs idle, and with all of them busy."""
    alone = asyncio.run(asyncio_floor())
    fork = multiprocessing.get_context("fork")
    others = [fork.Process(target=_burn) for _ in range((os.cpu_count() or 2) - 1)]
    for other in others:
        other.start()
    try:
        return alone, asyncio.run(asyncio_floor())
    finally:
        for other in others:
            other.kill()
            other.join()


if __name__ == "__main__":
    alone, crowded = wake_ups()
    print(f"asyncio: coroutine, future, wake-up  {alone:.2f} us; with the other CPUs busy {crowded:.2f} us")
    with bare_node() as address, mesh.LocalNode(partitions=PARTITIONS) as started:
        found = asyncio.run(compare(address, started))
    bare, ours = (statistics.median(column) for column in zip(*found, strict=True))
    ratio = statistics.median(ours / bare for bare, ours in found)
    print(f"the bare shape                       {bare:,.0f} reads/s")
    print(f"routes.get                           {ours:,.0f} reads/s, {ratio:.2f} of it")
