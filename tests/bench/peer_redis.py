"""Redis: a real redis-server on a unix socket, once without persistence and once with ``appendfsync always``.

hiredis parses the answers. redis.asyncio needs a connection per command in flight; of pools of 1, 4, 16, 64
and 256 connections, 64 was the fastest one here for reads, and 256 where each write waits for the disk.
"""

from __future__ import annotations

from pathlib import Path

import redis
import redis.asyncio
from peer_base import KEYS, ROUTE_BYTES, Peer, each, each_blocking, key, rate, rate_blocking, some_keys

LIST, PIPELINE = 100, 256
LISTS_IN_FLIGHT = 8
CONNECTIONS, CONNECTIONS_DURABLE = 64, 256


class _Servers(Peer):
    def serve(self, name: str, *options: str) -> str:
        """Start a server with all routes in it; its socket."""
        path = str(self.folder / f"{name}.sock")
        folder = self.folder / name
        folder.mkdir()
        self.spawn("redis-server", "--port", "0", "--unixsocket", path, "--dir", str(folder), "--save", "",
                   *options)  # fmt: skip
        self.wait_for(Path(path).exists, "redis-server")
        with redis.Redis(unix_socket_path=path) as client:
            client.mset(dict.fromkeys(KEYS, ROUTE_BYTES))
        return path


class Blocking(_Servers):
    """redis-py, from one thread."""

    async def start(self) -> None:
        self.client = redis.Redis(unix_socket_path=self.serve("plain", "--appendonly", "no"))

    async def stop(self) -> None:
        self.client.close()

    async def one_blocking(self, count: int) -> list[float]:
        return each_blocking(lambda i: self.client.get(key(i)), count)

    async def list_of_100(self, count: int) -> float:
        return rate_blocking(lambda i: self.client.mget(some_keys(i, LIST)), count, per_call=LIST)

    async def pipeline_of_256(self, count: int) -> float:
        def call(place: int) -> None:
            pipeline = self.client.pipeline(transaction=False)
            for name in some_keys(place, PIPELINE):
                pipeline.get(name)
            pipeline.execute()

        return rate_blocking(call, count, per_call=PIPELINE)


class Asyncio(_Servers):
    """redis.asyncio: one client, its pool."""

    async def start(self) -> None:
        self.client = _pooled(self.serve("plain", "--appendonly", "no"), CONNECTIONS)
        always = self.serve("always", "--appendonly", "yes", "--appendfsync", "always")
        self.durable_client = _pooled(always, CONNECTIONS_DURABLE)

    async def stop(self) -> None:
        await self.client.aclose()
        await self.durable_client.aclose()

    async def one(self, count: int) -> list[float]:
        return await each(lambda i: self.client.get(key(i)), count)

    async def concurrent(self, count: int) -> float:
        return await rate(lambda i: self.client.get(key(i)), count)

    async def set_concurrent(self, count: int) -> float:
        return await rate(lambda i: self.client.set(key(i), ROUTE_BYTES), count)

    async def durable(self, count: int) -> float:
        return await rate(lambda i: self.durable_client.set(key(i), ROUTE_BYTES), count)

    async def list_of_100(self, count: int) -> float:
        return await rate(
            lambda i: self.client.mget(some_keys(i, LIST)), count, coroutines=LISTS_IN_FLIGHT, per_call=LIST
        )


def _pooled(path: str, connections: int) -> redis.asyncio.Redis:
    pool = redis.asyncio.BlockingConnectionPool(
        connection_class=redis.asyncio.UnixDomainSocketConnection,
        max_connections=connections,
        timeout=None,
        path=path,
    )
    return redis.asyncio.Redis.from_pool(pool)
