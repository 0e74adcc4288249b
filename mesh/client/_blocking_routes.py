"""The blocking groups ``routes``, ``partitions`` and ``agents``. Every rule is in the plans; see there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mesh.client import _surface_node as node_plans
from mesh.client import _surface_routes as plans
from mesh.client._blocking_link import BlockingLink
from mesh.client._protocol import READ, WRITE
from mesh.client._surface import GETS, Key, Route, failure, get_call, place_route, resolution, route_record
from mesh.core.records import Page, PartitionInfo, PruneResult, Resolution, RouteEntry, RouteRecord
from mesh.errors import MeshError

List = list  #: the groups have a method of that name


class Routes:
    """Where replies of a conversation go. A key is a ``SessionKey``, a 4-sequence or the key's text."""

    def __init__(self, link: BlockingLink) -> None:
        self._link = link

    def set(
        self, key: Key, route: Route, *, ttl_ms: int | None = None, timeout_s: float | None = None
    ) -> None:
        """Learn a route: a mapping with ``external_room_id``. It lives ``ttl_ms`` (None: the node's setting).

        Raises:
            InvalidArgument: ``invalid_session_key``, ``invalid_route``, ``invalid_ttl``; nothing was sent.
        """
        slot, call = plans.set_call(key, route, ttl_ms)
        status, value = self._link.call(WRITE, slot, call, timeout_s)
        if status:
            raise failure(value)

    def get(self, key: Key, *, timeout_s: float | None = None) -> RouteRecord:
        """The route under exactly this key; never a fallback.

        Raises:
            NotFound: ``not_found``, or ``expired`` at the first look after its end.
        """
        try:
            slot, call = GETS[key]
        except TypeError:  # a list: fine as a key of a route, not of a dict
            slot, call = get_call(key)
        status, value = self._link.call(READ, slot, call, timeout_s)
        if status:
            raise failure(value)
        return value if type(value) is RouteRecord else route_record(value)

    def resolve(
        self, key: Key, fallbacks: Route | Iterable[Route] = (), *, timeout_s: float | None = None
    ) -> Resolution:
        """Where to send: the key's route, else its room's, else the first usable fallback.

        With fallbacks it waits at most the node's ``fallback_after_ms``, then answers from them
        (``fallback_reason`` is ``session_unavailable``).

        Raises:
            NotFound: ``no_route``.
        """
        if fallbacks:
            found: Resolution = self._link.drive(
                plans.resolve(self._link, key, fallbacks, timeout_s), timeout_s
            )
            return found
        text, slot = place_route(key)
        status, value = self._link.call(READ, slot, ("route.resolve", (text,)), timeout_s)
        if status:
            raise failure(value)
        return resolution(value, self._link.slot_map[slot], text)

    def delete(self, key: Key, *, timeout_s: float | None = None) -> bool:
        """Forget a route; says whether there was one."""
        text, slot = place_route(key)
        status, value = self._link.call(WRITE, slot, ("route.delete", (text,)), timeout_s)
        if status:
            raise failure(value)
        return bool(value)

    def list(
        self,
        bridge_id: str | None = None,
        room_id: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Page[RouteEntry]:
        """Live routes of all partitions, by key; go on with the page's ``cursor`` until it is None."""
        page: Page[RouteEntry] = self._link.drive(
            plans.list_routes(bridge_id, room_id, limit, cursor, timeout_s), timeout_s
        )
        return page

    def prune(self, *, timeout_s: float | None = None) -> PruneResult:
        """Remove expired routes now, in all partitions that answer."""
        result: PruneResult = self._link.drive(plans.prune(timeout_s), timeout_s)
        return result

    def config(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        """The node's route settings."""
        status, value = self._link.call(READ, 0, ("route.config", ()), timeout_s)
        if status:
            raise failure(value)
        return dict(value)

    def set_many(self, pairs: Iterable[Any], *, timeout_s: float | None = None) -> List[MeshError | None]:
        """Set many: items are (key, route) or (key, route, ttl_ms). Per item None, or what went wrong."""
        results: List[MeshError | None] = self._link.drive(plans.set_many(pairs, timeout_s), timeout_s)
        return results

    def get_many(
        self, keys: Iterable[Key], *, timeout_s: float | None = None
    ) -> List[RouteRecord | MeshError]:
        """Get many, in order; a MeshError instance stands where one failed."""
        results: List[RouteRecord | MeshError] = self._link.drive(plans.get_many(keys, timeout_s), timeout_s)
        return results

    def resolve_many(
        self, keys: Iterable[Key], fallbacks: Route | Iterable[Route] = (), *, timeout_s: float | None = None
    ) -> List[Resolution | MeshError]:
        """Resolve many, in order; a MeshError instance stands where one failed."""
        results: List[Resolution | MeshError] = self._link.drive(
            plans.resolve_many(self._link, keys, fallbacks, timeout_s), timeout_s
        )
        return results


class Partitions:
    """The node's partitions; answered by the router, so also while a partition is dead."""

    def __init__(self, link: BlockingLink) -> None:
        self._link = link

    def count(self, *, timeout_s: float | None = None) -> int:
        """How many there are."""
        number: int = self._link.drive(node_plans.count(), timeout_s)
        return number

    def of(self, key_or_session_id: Key, *, timeout_s: float | None = None) -> int:
        """The index of the partition that a route key, a session id or a run id belongs to."""
        index: int = self._link.drive(node_plans.partition_of(key_or_session_id), timeout_s)
        return index

    def pid(self, key_or_index: Key | int, *, timeout_s: float | None = None) -> int | None:
        """The process that serves it now; None while there is none."""
        pid: int | None = self._link.drive(node_plans.partition_pid(key_or_index), timeout_s)
        return pid

    def info(self, index: int, *, timeout_s: float | None = None) -> PartitionInfo:
        """What is known of one partition, dead or alive."""
        info: PartitionInfo = self._link.drive(node_plans.partition_info(index), timeout_s)
        return info

    def list(self, *, timeout_s: float | None = None) -> List[PartitionInfo]:
        """All of them, by index."""
        infos: List[PartitionInfo] = self._link.drive(node_plans.partition_infos(), timeout_s)
        return infos

    def restart(self, index: int, *, timeout_s: float | None = None) -> None:
        """Have the supervisor restart one, also one that is down. Returns when the request was passed on."""
        self._link.drive(node_plans.restart(index), timeout_s)

    def prune(self, index: int, *, timeout_s: float | None = None) -> PruneResult:
        """Remove the expired routes of one partition now."""
        result: PruneResult = self._link.drive(node_plans.prune_one(index, timeout_s), timeout_s)
        return result


class Agents:
    """The agents that this node can run."""

    def __init__(self, link: BlockingLink) -> None:
        self._link = link

    def list(self, *, timeout_s: float | None = None) -> List[dict[str, Any]]:
        """Name, provider, capabilities and problem (None, or why it cannot start) of each."""
        status, value = self._link.call(READ, 0, ("agent.list", ()), timeout_s)
        if status:
            raise failure(value)
        agents: List[dict[str, Any]] = value
        return agents

    def reload(self, *, timeout_s: float | None = None) -> List[dict[str, Any]]:
        """Load config and agents' files anew in every runner; the same list afterwards."""
        status, value = self._link.call(WRITE, 0, ("agent.reload", ()), timeout_s)
        if status:
            raise failure(value)
        agents: List[dict[str, Any]] = value
        return agents


__all__ = ["Agents", "Partitions", "Routes"]
