"""The measurements of routes for ``mesh bench``, each one a small coroutine over an ``AsyncClient``.

Every figure comes from calls that were made and answered; nothing is extrapolated.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from mesh.errors import MeshError

if TYPE_CHECKING:
    import mesh

#: The same 100-byte route everywhere, so that figures can be compared.
ROUTE = {
    "external_room_id": "!roomroom:server.example",
    "bridge": "bot1",
    "thread": "t-000001",
    "extra": "x" * 20,
}
COROUTINES = 256
MANY = 100
LISTS_IN_FLIGHT = 8
#: One call at a time is measured after so many calls that nobody counts.
WARM_UP = 200


class Figure(NamedTuple):
    """One measured value. ``details`` holds what belongs to it: counts, percentiles."""

    name: str
    value: float
    unit: str
    details: dict[str, Any]


def keys(count: int) -> list[str]:
    """Keys that spread over all partitions."""
    return [f"bench:bot{i % 7}:room{i}" for i in range(count)]


def percentile(sorted_values: list[float], share: float) -> float:
    """The value below which ``share`` of the sorted values lie."""
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * share))]


async def fill(client: mesh.AsyncClient, names: list[str]) -> None:
    """Store a route under every name."""
    for begin in range(0, len(names), MANY):
        results: Any = await client.routes.set_many([(name, ROUTE) for name in names[begin : begin + MANY]])
        for result in results:
            if isinstance(result, MeshError):
                raise result


async def one_by_one(client: mesh.AsyncClient, names: list[str], count: int, what: str = "get") -> Figure:
    """``routes.get``, ``set`` or ``resolve``: the next call after the last answer."""
    method: Callable[..., Awaitable[Any]] = getattr(client.routes, what)
    more = (ROUTE,) if what == "set" else ()
    for i in range(WARM_UP):
        await method(names[i % len(names)], *more)
    taken_us = []
    for i in range(count):
        began_s = time.perf_counter()
        await method(names[i % len(names)], *more)
        taken_us.append((time.perf_counter() - began_s) * 1e6)
    return latency(f"routes.{what}, one by one, p50", taken_us)


def one_by_one_blocking(client: mesh.Client, names: list[str], count: int) -> Figure:
    """``routes.get`` of the blocking client, the next call after the last answer."""
    for i in range(WARM_UP):
        client.routes.get(names[i % len(names)])
    taken_us = []
    for i in range(count):
        began_s = time.perf_counter()
        client.routes.get(names[i % len(names)])
        taken_us.append((time.perf_counter() - began_s) * 1e6)
    return latency("routes.get, one by one, blocking client, p50", taken_us)


def latency(name: str, taken_us: list[float]) -> Figure:
    """The p50 of what each call took; the rest is in the details."""
    taken_us.sort()
    p50, p99 = percentile(taken_us, 0.5), percentile(taken_us, 0.99)
    details = {
        "calls": len(taken_us),
        "p50_us": round(p50, 1),
        "p99_us": round(p99, 1),
        "p99_over_p50": round(p99 / p50, 2),
    }
    return Figure(name, p50, "us", details)


async def concurrent(
    name: str,
    call: Callable[[int], Awaitable[Any]],
    count: int,
    *,
    coroutines: int = COROUTINES,
    per_call: int = 1,
) -> Figure:
    """``count`` calls, shared out among so many coroutines; the rate of what they did."""
    places = iter(range(count))

    async def work() -> None:
        for place in places:
            await call(place)

    began_s, cpu_s = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(coroutines):
            group.create_task(work())
    taken_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    details = {
        "calls": count,
        "coroutines": coroutines,
        "seconds": round(taken_s, 3),
        "client_cpu_us": round(cpu_s / (count * per_call) * 1e6, 2),
    }
    return Figure(name, count * per_call / taken_s, "/s", details)


async def gets(client: mesh.AsyncClient, names: list[str], count: int, note: str = "") -> Figure:
    """Concurrent reads of one route each."""
    return await concurrent(
        f"routes.get, concurrent{note}", lambda i: client.routes.get(names[i % len(names)]), count
    )


async def sets(client: mesh.AsyncClient, names: list[str], count: int, note: str = "") -> Figure:
    """Concurrent acknowledged writes of one route each."""
    return await concurrent(
        f"routes.set, concurrent{note}", lambda i: client.routes.set(names[i % len(names)], ROUTE), count
    )


async def resolves(client: mesh.AsyncClient, names: list[str], count: int, note: str = "") -> Figure:
    """Concurrent answers to where one room's replies go."""
    return await concurrent(
        f"routes.resolve, concurrent{note}", lambda i: client.routes.resolve(names[i % len(names)]), count
    )


async def get_many(client: mesh.AsyncClient, names: list[str], count: int) -> Figure:
    """Lists of 100 keys, eight lists in flight; keys per second."""
    return await _many("get", client.routes.get_many, _lists(names), count)


async def set_many(client: mesh.AsyncClient, names: list[str], count: int) -> Figure:
    """Writes in lists of 100, eight lists in flight; keys per second."""
    lists = [[(name, ROUTE) for name in some] for some in _lists(names)]
    return await _many("set", client.routes.set_many, lists, count)


def _lists(names: list[str]) -> list[list[str]]:
    return [names[begin : begin + MANY] for begin in range(0, len(names) - MANY + 1, MANY)]


async def _many(name: str, method: Callable[..., Awaitable[Any]], lists: list[Any], count: int) -> Figure:
    async def call(place: int) -> None:
        found = await method(lists[place % len(lists)])
        failed = next((item for item in found if isinstance(item, MeshError)), None)
        if failed is not None:
            raise failed

    label = f"routes.{name}_many of {MANY}, keys"
    return await concurrent(label, call, count, coroutines=LISTS_IN_FLIGHT, per_call=MANY)


__all__ = [
    "COROUTINES",
    "LISTS_IN_FLIGHT",
    "MANY",
    "ROUTE",
    "WARM_UP",
    "Figure",
    "concurrent",
    "fill",
    "get_many",
    "gets",
    "keys",
    "latency",
    "one_by_one",
    "one_by_one_blocking",
    "percentile",
    "resolves",
    "set_many",
    "sets",
]
