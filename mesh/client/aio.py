"""``AsyncClient``: the SDK for asyncio."""

from __future__ import annotations

from time import monotonic
from types import TracebackType
from typing import Any, Self

from mesh.client import _surface_routes as plans
from mesh.client._aio_link import AsyncLink
from mesh.client._aio_routes import AsyncAgents, AsyncPartitions, AsyncRoutes


class AsyncClient:
    """A client of one node, for one event loop. Nothing is connected before the first call.

    ``address`` is ``tcp://host:port``, ``host:port`` or ``ipc://path``; None is ``$MESH_ADDRESS``, else the
    node of this user on this machine. ``timeout_s`` is the limit of each call that does not name its own.
    """

    def __init__(self, address: str | None = None, *, timeout_s: float = 5.0) -> None:
        self._link = AsyncLink(address, timeout_s)
        self.routes = AsyncRoutes(self._link)
        self.partitions = AsyncPartitions(self._link)
        self.agents = AsyncAgents(self._link)

    async def status(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        """The router's account of the node: endpoints, children, partitions, runners, counters."""
        status: dict[str, Any] = await self._link.drive(plans.status(), timeout_s)
        return status

    async def close(self) -> None:
        """Close the connection; calls that are waiting end with ``client_closed``. Idempotent."""
        self._link.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


__all__ = ["AsyncClient", "monotonic"]
