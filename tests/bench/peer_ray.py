"""Ray: a local cluster without dashboard, and an asyncio actor that holds the routes in a dict."""

from __future__ import annotations

import os
from typing import Any

from peer_base import KEYS, Peer, each, each_blocking, key, rate

from mesh.cli import measure

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray


class Routes:
    """The actor."""

    def __init__(self, routes: dict[str, Any]) -> None:
        self.routes = routes

    async def get(self, name: str) -> Any:
        return self.routes[name]


class Ray(Peer):
    """One driver."""

    async def start(self) -> None:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=str(self.folder),
            _node_ip_address="127.0.0.1",
        )
        self.actor = ray.remote(Routes).remote(dict.fromkeys(KEYS, measure.ROUTE))
        ray.get(self.actor.get.remote(KEYS[0]))

    async def stop(self) -> None:
        ray.shutdown()

    async def _call(self, place: int) -> Any:
        return await self.actor.get.remote(key(place))

    async def one_blocking(self, count: int) -> list[float]:
        return each_blocking(lambda i: ray.get(self.actor.get.remote(key(i))), count)

    async def one(self, count: int) -> list[float]:
        return await each(self._call, count)

    async def concurrent(self, count: int) -> float:
        return await rate(self._call, count)
