"""The measurements of ``mesh bench``, each one a small coroutine over an ``AsyncClient``.

Every figure comes from calls that were made and answered; nothing is extrapolated.
"""

from __future__ import annotations

import asyncio
import os
import signal
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
#: One call at a time is measured after so many calls that nobody counts.
WARM_UP = 200
#: A killed partition answers again within this time, or the measurement fails.
RESTART_WAIT_S = 30.0


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


async def one_by_one(client: mesh.AsyncClient, names: list[str], count: int) -> Figure:
    """``routes.get``, the next call after the last answer."""
    for i in range(WARM_UP):
        await client.routes.get(names[i % len(names)])
    taken_us = []
    for i in range(count):
        began_s = time.perf_counter()
        await client.routes.get(names[i % len(names)])
        taken_us.append((time.perf_counter() - began_s) * 1e6)
    taken_us.sort()
    p50, p99 = percentile(taken_us, 0.5), percentile(taken_us, 0.99)
    details = {
        "calls": count,
        "p50_us": round(p50, 1),
        "p99_us": round(p99, 1),
        "p99_over_p50": round(p99 / p50, 2),
    }
    return Figure("routes.get, one by one, p50", p50, "us", details)


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

    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(coroutines):
            group.create_task(work())
    taken_s = time.perf_counter() - began_s
    details = {"calls": count, "coroutines": coroutines, "seconds": round(taken_s, 3)}
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


async def get_many(client: mesh.AsyncClient, names: list[str], count: int) -> Figure:
    """Lists of 100 keys, eight lists in flight; keys per second."""
    lists = [names[begin : begin + MANY] for begin in range(0, len(names) - MANY + 1, MANY)]

    async def call(place: int) -> None:
        found = await client.routes.get_many(lists[place % len(lists)])
        failed = next((item for item in found if isinstance(item, MeshError)), None)
        if failed is not None:
            raise failed

    return await concurrent(f"routes.get_many of {MANY}, keys", call, count, coroutines=8, per_call=MANY)


async def run_once(client: mesh.AsyncClient, count: int) -> Figure:
    """Whole conversations with the echo agent: create, start, message, run, complete; durable."""
    return await concurrent(
        "run_once with echo", lambda _: client.run_once("echo", "hello", timeout_s=60.0), count
    )


async def delivered_events(
    client: mesh.AsyncClient, agent: str, count: int, rate: int | None = None
) -> Figure:
    """Events of one run, stored and then received by a listener in order and without a gap.

    Without ``rate`` as many as go through; with it so many a second, and the figure is their delay.
    """
    session = await client.sessions.start(agent)
    listener = await client.listen(f"session.{session.id}.")
    seen, first_s, last_s, late_ms = 0, 0.0, 0.0, []
    try:
        await client.runs.submit(session.id, {"prompt": f"{count} {rate}" if rate else str(count)})
        async for note in listener:
            last_s = time.perf_counter()
            if note.data["type"] == "message_streamed":
                first_s = first_s or last_s
                seen += 1
                late_ms.append((time.time() - note.data["ts"]) * 1000)
            elif note.data["type"] in ("run_completed", "run_failed"):
                break
    finally:
        await listener.aclose()
    await client.sessions.complete(session.id)
    late_ms.sort()
    details = {
        "events": seen,
        "seconds": round(last_s - first_s, 3),
        "delay_p50_ms": round(percentile(late_ms, 0.5), 2),
        "delay_p99_ms": round(percentile(late_ms, 0.99), 2),
    }
    if rate:
        return Figure(f"session events at {rate:,}/s, delay p50", percentile(late_ms, 0.5), "ms", details)
    return Figure("session events, stored and delivered", seen / max(last_s - first_s, 1e-9), "/s", details)


async def restart(client: mesh.AsyncClient, names: list[str], sessions: int) -> Figure:
    """Kill the partition of the first key with SIGKILL; the time until that key is answered again."""
    for place in range(0, sessions, COROUTINES):
        await asyncio.gather(
            *(client.sessions.create("echo") for _ in range(min(COROUTINES, sessions - place)))
        )
    index = await client.partitions.of(names[0])
    pid = await client.partitions.pid(index)
    assert pid is not None
    began_s = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    await client.routes.get(names[0], timeout_s=RESTART_WAIT_S)
    taken_ms = (time.perf_counter() - began_s) * 1000
    # The kill may have been answered by the dying process: then its successor's answer is what counts.
    while await client.partitions.pid(index) in (pid, None):
        await asyncio.sleep(0.001)
        await client.routes.get(names[0], timeout_s=RESTART_WAIT_S)
        taken_ms = (time.perf_counter() - began_s) * 1000
    return Figure(
        "restart of a killed partition, first answer",
        taken_ms,
        "ms",
        {"routes": len(names), "sessions": sessions},
    )


__all__ = [
    "COROUTINES",
    "MANY",
    "ROUTE",
    "Figure",
    "concurrent",
    "delivered_events",
    "fill",
    "get_many",
    "gets",
    "keys",
    "one_by_one",
    "percentile",
    "restart",
    "run_once",
    "sets",
]
