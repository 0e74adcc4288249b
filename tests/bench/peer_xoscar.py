"""xoscar: an actor in a process of its own that holds the routes in a dict."""

from __future__ import annotations

from typing import Any

import xoscar
from peer_base import KEYS, Peer, each, key, rate
from xoscar.backends.allocate_strategy import ProcessIndex

from mesh.cli import measure


class Routes(xoscar.Actor):
    """The actor."""

    def __init__(self, routes: dict[str, Any]) -> None:
        super().__init__()
        self.routes = routes

    def get(self, name: str) -> Any:
        return self.routes[name]


class Xoscar(Peer):
    """A pool of one actor process beside ours, on loopback."""

    async def start(self) -> None:
        self.pool = await xoscar.create_actor_pool("127.0.0.1", n_process=1)
        self.actor = await xoscar.create_actor(
            Routes,
            dict.fromkeys(KEYS, measure.ROUTE),
            address=self.pool.external_address,
            uid="routes",
            allocate_strategy=ProcessIndex(1),
        )

    async def stop(self) -> None:
        await self.pool.stop()

    async def one(self, count: int) -> list[float]:
        return await each(lambda i: self.actor.get(key(i)), count)

    async def concurrent(self, count: int) -> float:
        return await rate(lambda i: self.actor.get(key(i)), count)
