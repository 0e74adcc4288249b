"""What the node and the SDK stand on: run it to see the figures that README's "Speed" compares with.

    python tests/bench/floors.py

Prints: coroutine + future + wake-up per call on asyncio; the latency of a bare ROUTER between two DEALERs;
reads and writes per second of a node when payloads of 128 calls arrive over the raw wire.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import mesh
from mesh.core import slots, wire
from mesh.net import sockets

CALLS = 128
ROUTE = {"external_room_id": "ext-12345", "channel_type": "telegram", "bridge_id": "bot_1", "extra": "x" * 30}


async def asyncio_floor(coroutines: int = 256, calls: int = 1_000) -> float:
    """us per call when 256 coroutines wait for futures that one callback resolves."""
    loop = asyncio.get_running_loop()
    waiting: list[asyncio.Future[int]] = []

    def flush() -> None:
        ready, waiting[:] = waiting[:], []
        for future in ready:
            future.set_result(1)

    async def call() -> int:
        future = loop.create_future()
        waiting.append(future)
        if len(waiting) == 1:
            loop.call_soon(flush)
        return await future

    async def work() -> None:
        for _ in range(calls):
            await call()

    begin = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(coroutines)))
    return (time.perf_counter() - begin) / (coroutines * calls) * 1e6


def bare_router(front: str, back: str, actor_of: Callable[[bytes], bytes]) -> None:
    """Passes frames on, for ever: ``actor_of`` names the dealer behind that a client's frame goes to."""
    ctx = sockets.context()
    clients, actors = sockets.router_socket(ctx), sockets.router_socket(ctx)
    clients.bind(front)
    actors.bind(back)
    poller = sockets.Poller()
    poller.register(clients, sockets.POLLIN)
    poller.register(actors, sockets.POLLIN)
    while True:
        ready = dict(poller.poll())
        if clients in ready:
            client, frame = clients.recv(), clients.recv()
            actors.send(actor_of(frame), sockets.MORE)
            actors.send(client + frame)
        if actors in ready:
            actors.recv()
            frame = actors.recv()
            clients.send(frame[:16], sockets.MORE)
            clients.send(frame[16:])


def _echo(back: str) -> None:
    socket = sockets.dealer_socket(sockets.context(), back, b"actor")
    while True:
        socket.poll()
        socket.send(socket.recv())


def router_latency(calls: int = 3_000) -> tuple[float, float]:
    """(p50, p99) in us of one call at a time through a bare router."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        front, back = f"ipc://{folder}/f", f"ipc://{folder}/b"
        fork = multiprocessing.get_context("fork")
        ends: list[Any] = [(bare_router, (front, back, lambda _: b"actor")), (_echo, (back,))]
        children = [fork.Process(target=target, args=args) for target, args in ends]
        for child in children:
            child.start()
        try:
            socket = sockets.dealer_socket(sockets.context(), front, b"c" * 16)
            time.sleep(0.5)
            taken = []
            for _ in range(calls):
                begin = time.perf_counter()
                socket.send(b"x" * 100)
                socket.poll()
                socket.recv()
                taken.append((time.perf_counter() - begin) * 1e6)
        finally:
            for child in children:
                child.kill()
                child.join()
    taken.sort()
    return taken[calls // 2], taken[calls * 99 // 100]


def raw_rate(kind: wire.Kind, payloads: int = 2_000) -> float:
    """Calls per second over the raw wire, two payloads of 128 calls on their way to each partition."""
    with mesh.LocalNode() as node, node.client() as client:
        owners, sent = slots.even_map(2), [0, 0]
        keys: list[list[str]] = [[], []]
        for number in range(2_000):
            text = f"telegram:bot_1:room_{number}"
            keys[owners[slots.route_slot(text)]].append(text)
        client.routes.set_many([(key, ROUTE) for group in keys for key in group[:CALLS]])
        op = "route.get" if kind == wire.Kind.READ else "route.set"
        more = [] if kind == wire.Kind.READ else [ROUTE]
        bodies = [wire.encode_body([[op, [key, *more]] for key in group[:CALLS]]) for group in keys]
        socket = sockets.dealer_socket(sockets.context(), node.address, b"\1" + os.urandom(15))

        def post(partition: int) -> None:
            sent[partition] += 1
            number = sent[partition] if kind == wire.Kind.WRITE else 0
            header = wire.encode_header(
                kind, flags=wire.Flag.PARTITION, address=partition, map_version=1, remaining_ms=10_000,
                request_id=sum(sent), number=number, done_below=max(0, number - 4),
            )
            socket.send(header + bodies[partition])

        begin = time.perf_counter()
        for partition in (0, 1, 0, 1):
            post(partition)
        for _ in range(payloads):
            header = wire.decode_header(socket.recv())
            assert not header.flags, "refused"
            post(header.address)
        return payloads * CALLS / (time.perf_counter() - begin)


if __name__ == "__main__":
    print(f"asyncio: coroutine, future and wake-up   {asyncio.run(asyncio_floor()):.2f} us per call")
    p50, p99 = router_latency()
    print(f"bare ROUTER between two DEALERs          p50 {p50:.0f} us, p99 {p99:.0f} us")
    print(f"node, raw wire, 128 reads a payload      {raw_rate(wire.Kind.READ):,.0f} calls/s")
    print(f"node, raw wire, 128 writes a payload     {raw_rate(wire.Kind.WRITE):,.0f} calls/s")
