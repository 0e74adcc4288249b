"""gRPC over a unix socket, without generated code: bytes in and out, asyncio at both ends."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import grpc.aio
from peer_base import KEYS, ROUTE_BYTES, START_S, Peer, each, key, rate

SERVICE, METHOD = "bench.Routes", "Get"


class Grpc(Peer):
    """grpc.aio: one channel."""

    async def start(self) -> None:
        address = f"unix:{self.folder}/grpc.sock"
        self.spawn(sys.executable, __file__, address)
        self.wait_for((self.folder / "grpc.sock").exists, "the gRPC server")
        self.channel = grpc.aio.insecure_channel(address)
        await asyncio.wait_for(self.channel.channel_ready(), START_S)
        self.get = self.channel.unary_unary(f"/{SERVICE}/{METHOD}")

    async def stop(self) -> None:
        await self.channel.close()

    async def _call(self, place: int) -> Any:
        return await self.get(key(place).encode())

    async def one(self, count: int) -> list[float]:
        return await each(self._call, count)

    async def concurrent(self, count: int) -> float:
        return await rate(self._call, count)


async def _serve(address: str) -> None:
    routes = {name.encode(): ROUTE_BYTES for name in KEYS}

    async def get(request: bytes, _context: Any) -> bytes:
        return routes[request]

    server = grpc.aio.server()
    handlers = {METHOD: grpc.unary_unary_rpc_method_handler(get)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
