"""What grows with what: partitions, clients, routes, sessions, listeners, one table and one plot.

    python tests/bench/growth.py [--full] [--only routes,sessions] [--json FILE] [--png docs/growth.png]

``--full`` goes on to 1 000 000 sessions. Each panel, and why its curve bends:

partitions   256 reads in flight, of two clients. One partition answers as fast as its core lets it. More of
             them are more writers with files of their own, and help as long as there are cores for them, for
             the router and for the clients: on two cores the clients are the limit, and four partitions only
             split the same calls into smaller payloads and commits.
clients      256 reads in flight, or one of each client. Alone, calls share payloads: one header, one hop and
             one wake-up for many. A hundred clients with few calls each cannot share, so each call pays for
             its own frame through the router (the floor of ``floors.py``); from there the rate stays, and
             p50 grows with the calls in flight (Little's law): nothing is done for an idle client.
routes       Packed bytes in one dict of each partition: memory per route is a constant (the doubling of the
             dict shows as a saw), plus SQLite's page cache, at most 16 MiB of each partition: it weighs most
             where routes are few. ``get`` hardly changes; ``set`` costs more when the B-tree outgrows that
             cache, since the keys written are random. After a kill the partition fetches what is asked for
             and loads its routes in slices: that time grows with their number, the first answer's does not.
sessions     Creating is one insert into a few B-trees: flat but for their depth. What is not live is on disk
             (the memory is again the page cache, until it is full) and read from there, so a restart's time
             depends on what is live, not on what is stored.
listeners    A message is encoded once and copied by ZeroMQ to each subscriber, so deliveries per second grow
             with the listeners until the processes that listen (they decode each copy) fill the cores. The
             delay is that of one message at a time: a copy to 1 000 sockets takes longer than to one.

Beside each rate stands what the node's processes used of the CPU for one operation: that figure does not
depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from growth_plot import plot, table
from traffic import ROUTE, Child, keys

import mesh

SECONDS = 2.5
CROWDS = str(Path(__file__).with_name("crowds.py"))
PARTITIONS = (1, 2, 4)
CLIENTS = (1, 10, 100, 1_000)
ROUTES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
SESSIONS = (10_000, 30_000, 100_000)
FULL_SESSIONS = (300_000, 1_000_000)
LISTENERS = (1, 10, 100, 1_000)
#: Processes among which clients and listeners are spread; ZeroMQ opens 1 023 sockets in one.
PROCESSES = 4
INFLIGHT = 256
MANY = 1_000
#: Single reads and writes at each size.
PROBES = 10_000
#: Messages whose delay is measured, and at least so many deliveries for the rate.
SLOW, FAST = 20, 20_000
Row = dict[str, Any]


class Cpu:
    """CPU time of the node's router and partitions."""

    def __init__(self, status: dict[str, Any]) -> None:
        self.pids = [status["router"]["pid"], *(row["pid"] for row in status["partitions"])]
        self.begin = self.used()

    def used(self) -> float:
        total = 0
        for pid in self.pids:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")

    def us_each(self, count: float) -> float:
        """us for each of so many operations since it was made."""
        return round((self.used() - self.begin) / count * 1e6, 1)


def resident(pid: int) -> int:
    """Bytes of memory of its own that a process has."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


@contextlib.asynccontextmanager
async def node_of(
    partitions: int = 2, folder: str | None = None, **config: Any
) -> AsyncIterator[tuple[mesh.LocalNode, mesh.AsyncClient]]:
    """A node and one client to it."""
    with mesh.LocalNode(folder, partitions=partitions, config=config) as node:
        async with mesh.AsyncClient(node.address, timeout_s=60.0) as client:
            await client.routes.set_many([(key, ROUTE) for key in keys()])
            yield node, client


async def rate(count: int, call: Callable[[int], Awaitable[Any]], inflight: int = INFLIGHT) -> float:
    """Calls per second with so many in flight."""
    places = iter(range(count))

    async def work() -> None:
        for place in places:
            await call(place)

    began_s = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(inflight)))
    return count / (time.perf_counter() - began_s)


async def _crowd(node: mesh.LocalNode, client: mesh.AsyncClient, total: int, processes: int) -> Row:
    """So many clients in so many processes."""
    at = time.monotonic() + 1.5 + total / 300
    spec = {
        "address": node.address, "at": at, "seconds": SECONDS, "count": total // processes,
        "inflight": max(INFLIGHT, total) // processes,
    }
    children = [Child("clients", CROWDS, **spec) for _ in range(processes)]
    status = await client.status()
    await asyncio.sleep(max(0.0, at - time.monotonic()))
    cpu = Cpu(status)
    found = [await asyncio.to_thread(child.result) for child in children]
    calls = sum(one["count"] for one in found)
    return {
        "rate": round(sum(one["rate"] for one in found)), "p50_ms": max(one["p50"] for one in found),
        "p99_ms": max(one["p99"] for one in found), "cpu_us": cpu.us_each(calls),
    }


def _set(client: mesh.AsyncClient, names: list[str]) -> Callable[[int], Awaitable[None]]:
    return lambda n: client.routes.set(names[n % len(names)], ROUTE)


async def partitions(say: Callable[[str], None], _: bool) -> list[Row]:
    """Reads by two clients, and writes by one."""
    rows = []
    for count in PARTITIONS:
        say(f"{count} partitions")
        async with node_of(count) as (node, client):
            found = await _crowd(node, client, 2, 2)
            names = keys()
            cpu = Cpu(await client.status())
            sets = await rate(3 * PROBES, _set(client, names))
            rows.append({
                "n": count, **found, "sets": round(sets), "set_cpu_us": cpu.us_each(3 * PROBES),
            })
    return rows


async def clients(say: Callable[[str], None], _: bool) -> list[Row]:
    """Reads by many clients."""
    rows = []
    async with node_of() as (node, client):
        for count in CLIENTS:
            say(f"{count} clients")
            processes = min(2 if count < 100 else PROCESSES, count)
            rows.append({"n": count, **await _crowd(node, client, count, processes)})
    return rows


async def routes(say: Callable[[str], None], _: bool) -> list[Row]:
    """Fill up to each size, then look at it."""
    rows: list[Row] = []
    have = 0
    room = {"max_entries_per_partition": max(ROUTES), "ttl_ms": 24 * 3_600_000}
    async with node_of(routes=room) as (_node, client):
        pids = [row.pid for row in await client.partitions.list()]
        empty = sum(resident(pid) for pid in pids)
        for size in ROUTES:
            say(f"{size:,} routes")
            begin, cpu = time.perf_counter(), Cpu(await client.status())
            first, chunks = have, (size - have) // MANY

            async def fill(place: int, first: int = first) -> None:
                start = first + place * MANY
                await client.routes.set_many([(_key(n), ROUTE) for n in range(start, start + MANY)])

            await rate(chunks, fill, inflight=4)
            filled, have = time.perf_counter() - begin, size
            row = {"n": size, "fill": round(chunks * MANY / filled)}
            row["fill_cpu_us"] = cpu.us_each(chunks * MANY)
            row["bytes"] = round((sum(resident(pid) for pid in pids) - empty) / size)
            row |= await _probe_routes(client, size)
            row |= await _restart(client, lambda size=size: client.routes.get(_of_partition_0(size)))
            pids = [one.pid for one in await client.partitions.list()]
            rows.append(row)
    return rows


def _key(n: int) -> str:
    return f"grow:bot{n % 97}:room-{n}"


def _of_partition_0(size: int) -> str:
    from mesh.core.slots import even_map, route_slot

    owners = even_map(2)
    return next(_key(n) for n in range(size - 1, -1, -1) if owners[route_slot(_key(n))] == 0)


async def _probe_routes(client: mesh.AsyncClient, size: int) -> Row:
    chance = random.Random(size)
    names = [_key(chance.randrange(size)) for _ in range(PROBES)]
    cpu = Cpu(await client.status())
    gets = await rate(PROBES, lambda n: client.routes.get(names[n]))
    row = {"gets": round(gets), "get_cpu_us": cpu.us_each(PROBES)}
    cpu = Cpu(await client.status())
    sets = await rate(PROBES, lambda n: client.routes.set(names[n], ROUTE))
    return row | {"sets": round(sets), "set_cpu_us": cpu.us_each(PROBES)}


async def _restart(client: mesh.AsyncClient, ask: Callable[[], Awaitable[Any]]) -> Row:
    """Kill partition 0; seconds until it answers again, and until all is in memory."""
    [pid] = [row.pid for row in await client.partitions.list() if row.index == 0]
    begin = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    await ask()
    answered = time.perf_counter() - begin
    while (await client.routes.list(limit=1)).missing:
        pass
    return {"restart_s": round(answered, 3), "loaded_s": round(time.perf_counter() - begin, 3)}


async def sessions(say: Callable[[str], None], full: bool) -> list[Row]:
    """Create up to each size; every session is stored durably, none is live. Then start the node anew."""
    rows: list[Row] = []
    have = 0
    config = {"agents": {"echo": {"provider": "echo"}}}
    with tempfile.TemporaryDirectory(prefix="mesh-grow-") as folder:
        for size in (*SESSIONS, *(FULL_SESSIONS if full else ())):
            say(f"{size:,} sessions")
            async with node_of(folder=folder, **config) as (_node, client):
                rows.append({"n": size, **await _grow(client, have, size)})
            have = size
            rows[-1] |= await _cold(folder, config)
    return rows


async def _grow(client: mesh.AsyncClient, have: int, size: int) -> Row:
    """Create the sessions that are missing, look at some, and kill a partition."""
    pids = [row.pid for row in await client.partitions.list()]
    empty = sum(resident(pid) for pid in pids)
    cpu = Cpu(await client.status())
    creates = await rate(size - have, lambda n: client.sessions.create("echo", id=f"grow-{have + n}"))
    row = {"creates": round(creates), "create_cpu_us": cpu.us_each(size - have)}
    row["bytes"] = round((sum(resident(pid) for pid in pids) - empty) / size)
    chance, cpu = random.Random(size), Cpu(await client.status())
    names = [f"grow-{chance.randrange(size)}" for _ in range(PROBES)]
    row["gets"] = round(await rate(PROBES, lambda n: client.sessions.get(names[n])))
    row["get_cpu_us"] = cpu.us_each(PROBES)
    return row | await _restart(client, lambda: _first_page(client))


async def _cold(folder: str, config: dict[str, Any]) -> Row:
    """A start of the node over what is stored (the kernel may have its files in memory): until it has
    answered a page of sessions and one by its id, and what router and partitions used until then."""
    begin = time.perf_counter()
    with mesh.LocalNode(folder, config=config) as node:
        async with node.async_client(timeout_s=60.0) as client:
            await _first_page(client)
            await client.sessions.get("grow-1")
            seconds = time.perf_counter() - begin
            cpu = Cpu(await client.status())
            return {"start_s": round(seconds, 3), "start_cpu_s": round(cpu.begin, 3)}


async def _first_page(client: mesh.AsyncClient) -> None:
    """A page of every partition."""
    while (await client.sessions.list(limit=10)).missing:
        pass


async def listeners(say: Callable[[str], None], _: bool) -> list[Row]:
    """Messages of created sessions, heard by all."""
    rows = []
    async with node_of(agents={"echo": {"provider": "echo"}}) as (node, client):
        for count in LISTENERS:
            say(f"{count} listeners")
            fast = max(50, FAST // count) if count > 1 else FAST // 2
            processes = min(PROCESSES // 2, count)
            spec = {"address": node.address, "count": count // processes, "slow": SLOW, "fast": fast}
            children = [Child("listeners", CROWDS, **spec) for _ in range(processes)]
            for child in children:
                await asyncio.to_thread(child.ready)
            for _ in range(SLOW):
                await client.sessions.create("echo")
                await asyncio.sleep(0.02 + count / 5_000)
            cpu = Cpu(await client.status())
            await rate(fast, lambda _: client.sessions.create("echo"), inflight=64)
            found = [await asyncio.to_thread(child.result) for child in children]
            taken = max(one["ended"] for one in found) - min(one["begun"] for one in found)
            rows.append({
                "n": count, "delivered": round(count * fast / taken), "messages": round(fast / taken),
                "p50_ms": max(one["p50"] for one in found), "p99_ms": max(one["p99"] for one in found),
                "cpu_us": cpu.us_each(count * fast),
            })
    return rows


PANELS = {"partitions": partitions, "clients": clients, "routes": routes, "sessions": sessions,
          "listeners": listeners}


def main() -> None:
    parser = argparse.ArgumentParser(description="what grows with what; see the module's text")
    parser.add_argument("--full", action="store_true", help="1 000 000 sessions too: some minutes more")
    parser.add_argument("--only", default=",".join(PANELS), help="some of: " + ",".join(PANELS))
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--png", type=Path, help="write the plot here")
    parser.add_argument("--from-json", type=Path, help="measure nothing: table and plot of an earlier result")
    options = parser.parse_args()
    if options.from_json:
        found = json.loads(options.from_json.read_text())
    else:
        found = {"cores": os.cpu_count()}
        for name in options.only.split(","):
            found[name] = asyncio.run(
                PANELS[name](lambda what: print("...", what, flush=True), options.full)
            )
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found) + "\n")
    if options.png:
        plot(found, options.png)


if __name__ == "__main__":
    main()
