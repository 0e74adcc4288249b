"""One process of load for the benches: ``python tests/bench/traffic.py ROLE JSON`` prints a JSON result.

Roles, each a process of its own so that no generator slows what another one measures:

    paced    an open loop: calls are issued at the moments of a Poisson schedule, whether or not the earlier
             ones were answered, and latency counts from the scheduled moment. So a stall is charged to every
             call that should have been made during it (no coordinated omission).
    closed   so many calls in flight, the next one when one is answered: the rate is the maximum.
    flood    takes all it can get: thousands of calls of one client in flight (``raw``: payloads of 1 000
             calls over the bare wire, as many in flight as the node takes).
    deaf     asks and never reads an answer.
    burn     a busy loop that knows nothing of mesh: what a flood costs the others by mere use of the CPU.

Every role works on the same keys: three reads to one write for ``paced`` and ``closed``.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import selectors
import subprocess
import sys
import time
from array import array
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import mesh
from mesh.core import slots, wire
from mesh.net import sockets

ROUTE = {"external_room_id": "!roomroom:server.example", "bridge": "bot1", "extra": "x" * 40}
KEYS = 2_000
#: Shares of all calls at which a curve has its points: dense where it is interesting.
SHARES = [1 - 10 ** (-step / 20) for step in range(1, 81)]
#: One call in so many is a write.
WRITE_EVERY = 4


def keys(count: int = KEYS) -> list[str]:
    """Keys that spread over all partitions."""
    return [f"load:bot{i % 7}:room{i}" for i in range(count)]


class Child:
    """A role in a process of its own. All of a run begin at one moment (``at``, CLOCK_MONOTONIC)."""

    def __init__(self, role: str, script: str = __file__, **spec: Any) -> None:
        root = Path(__file__).parents[2]
        env = {**os.environ, "PYTHONPATH": str(root)}
        self.role = role
        self.process = subprocess.Popen(
            [sys.executable, script, role, json.dumps(spec)], env=env,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )

    def ready(self) -> None:
        """Wait for the line that says so."""
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def begin(self, at_s: float) -> None:
        """Tell one that was started ``gated`` and is ready when to begin."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"%f\n" % at_s)
        self.process.stdin.flush()

    def result(self, limit_s: float = 120.0) -> dict[str, Any]:
        """Wait for its end."""
        try:
            out, _ = self.process.communicate(timeout=limit_s)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        if self.process.returncode:
            raise SystemExit(f"the process of load {self.role!r} failed")
        found: dict[str, Any] = json.loads(out)
        return found


def cpu_us(pid: int) -> tuple[float, float]:
    """(all threads, all but the main one): microseconds on a CPU since the process began."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    run = {thread.name: int((thread / "schedstat").read_text().split()[0]) / 1e3 for thread in threads}
    return sum(run.values()), sum(run.values()) - run[str(pid)]


def percentile(ordered: Any, share: float) -> float:
    """The value below which that share of the ordered values lies."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def summary(values_s: Any) -> dict[str, Any]:
    """Percentiles in ms, and the whole curve."""
    ordered = sorted(values_s)
    named = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    return {
        "count": len(ordered),
        **{name: round(percentile(ordered, share) * 1e3, 3) for name, share in named.items()},
        "curve": [round(percentile(ordered, share) * 1e3, 3) for share in SHARES],
    }


class Recorder:
    """The latencies of calls, by group, and what failed."""

    def __init__(self) -> None:
        self.taken: dict[str, array[float]] = {}
        self.late = array("d")  #: by how much a call was issued after its moment: the generator's fault
        self.errors: Counter[str] = Counter()

    def add(self, group: str, seconds: float) -> None:
        self.taken.setdefault(group, array("d")).append(seconds)

    def result(self, seconds: float) -> dict[str, Any]:
        total = array("d")
        for values in self.taken.values():
            total.extend(values)
        return {
            "all": summary(total),
            "groups": {group: summary(values) for group, values in sorted(self.taken.items())},
            "late": summary(self.late),
            "errors": dict(self.errors),
            "rate": round(len(total) / seconds, 1),
            "cpu_share": round(time.process_time() / max(time.perf_counter() - BEGAN, 1e-9), 3),
        }


class Calls:
    """The n-th call of the mix, recorded under its kind and partition."""

    def __init__(
        self, client: mesh.AsyncClient, partitions: int, seed: int, only: int | None = None
    ) -> None:
        self.client = client
        self.record = Recorder()
        names, owners = keys(), slots.even_map(partitions)
        chance = random.Random(seed)
        chance.shuffle(names)
        placed = [(name, owners[slots.route_slot(name)]) for name in names]
        self.keys = [(name, owner) for name, owner in placed if only in (None, owner)]

    async def one(self, n: int, due_s: float) -> None:
        key, partition = self.keys[n % len(self.keys)]
        write = n % WRITE_EVERY == 0
        try:
            if write:
                await self.client.routes.set(key, ROUTE)
            else:
                await self.client.routes.get(key)
        except mesh.MeshError as error:
            self.record.errors[error.code] += 1
        self.record.add(f"{'set' if write else 'get'} {partition}", time.perf_counter() - due_s)


async def _warm(client: mesh.AsyncClient) -> None:
    """The map is known, every path was walked once, and the collector has nothing old to look at."""
    for key in keys(200):
        await client.routes.get(key)
    gc.collect()
    gc.freeze()


async def paced(spec: dict[str, Any]) -> dict[str, Any]:
    """Issue calls on schedule for ``seconds``. ``nice`` puts the instrument before what it measures."""
    with suppress(OSError):
        os.nice(spec.get("nice", 0))
    chance = random.Random(spec["seed"])
    async with mesh.AsyncClient(spec["address"], timeout_s=spec.get("timeout_s", 20.0)) as client:
        calls = Calls(client, spec["partitions"], spec["seed"], spec.get("only"))
        await _warm(client)
        await _at(spec)
        tasks: set[asyncio.Task[None]] = set()
        loop, late, n = asyncio.get_running_loop(), calls.record.late, 0
        begin = due_s = time.perf_counter()
        until_s = begin + spec["seconds"]
        while due_s < until_s:
            now_s = time.perf_counter()
            while due_s <= now_s:
                task = loop.create_task(calls.one(n, due_s))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                late.append(now_s - due_s)
                n += 1
                due_s += chance.expovariate(spec["rate"])
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        if tasks:
            await asyncio.wait(tasks)
        return calls.record.result(time.perf_counter() - begin)


async def closed(spec: dict[str, Any]) -> dict[str, Any]:
    """Keep ``inflight`` calls open for ``seconds``; every call is a task, as in ``paced``."""
    async with mesh.AsyncClient(spec["address"], timeout_s=20.0) as client:
        calls = Calls(client, spec["partitions"], spec["seed"])
        await _warm(client)
        await _at(spec)
        loop, n = asyncio.get_running_loop(), 0
        begin = time.perf_counter()
        until_s, over = begin + spec["seconds"], loop.create_future()
        left = spec.get("inflight", 64)

        def again(_: Any = None) -> None:
            nonlocal n, left
            now_s = time.perf_counter()
            if now_s < until_s:
                n += 1
                loop.create_task(calls.one(n, now_s)).add_done_callback(again)
            else:
                left -= 1
                if not left:
                    over.set_result(None)

        for _ in range(left):
            again()
        await over
        return calls.record.result(time.perf_counter() - begin)


async def flood(spec: dict[str, Any]) -> dict[str, Any]:
    """``inflight`` coroutines of one client that call without a pause."""
    async with mesh.AsyncClient(spec["address"], timeout_s=20.0) as client:
        await _warm(client)
        await _at(spec)
        names, done, until_s = keys(), 0, time.perf_counter() + spec["seconds"]

        async def work(n: int) -> None:
            nonlocal done
            while time.perf_counter() < until_s:
                n += 7
                try:
                    await client.routes.get(names[n % KEYS])
                    done += 1
                except mesh.MeshError:
                    await asyncio.sleep(0.01)

        await asyncio.gather(*(work(n) for n in range(spec.get("inflight", 4_000))))
        return {"calls": done, "rate": round(done / spec["seconds"], 1), "cpu_us": _cpu_us()}


def raw(spec: dict[str, Any]) -> dict[str, Any]:
    """Payloads of ``calls`` calls, ``inflight`` of them open, to all partitions, as fast as they go."""
    count, window = spec.get("calls", 1_000), spec.get("inflight", 400)
    owners = slots.even_map(spec["partitions"])
    groups: list[list[str]] = [[] for _ in range(spec["partitions"])]
    for name in keys():
        groups[owners[slots.route_slot(name)]].append(name)
    bodies = [wire.encode_body([["route.get", [g[i % len(g)]]] for i in range(count)]) for g in groups]
    socket = sockets.dealer_socket(sockets.context(), spec["address"], b"\1" + os.urandom(15))
    done = refused = sent = 0
    answered = 0
    socket.poll(2_000, sockets.POLLOUT)
    _sleep_until(spec)
    until_s = time.perf_counter() + spec["seconds"]
    while time.perf_counter() < until_s:
        while sent - answered < window:
            partition = sent % len(bodies)
            header = wire.encode_header(
                wire.Kind.READ, flags=wire.Flag.PARTITION, address=partition, map_version=1,
                remaining_ms=60_000, request_id=sent + 1,
            )
            socket.send(header + bodies[partition])
            sent += 1
        if spec.get("deaf"):
            time.sleep(0.01)
            answered += max(1, window // 100)
        elif socket.poll(100):
            flags = wire.decode_header(socket.recv()).flags
            answered += 1
            if flags & wire.Flag.REFUSED:
                refused += 1
            else:
                done += count
    return {"calls": done, "refused": refused, "rate": round(done / spec["seconds"], 1), "cpu_us": _cpu_us()}


def burn(spec: dict[str, Any]) -> dict[str, Any]:
    """Use one core."""
    _sleep_until(spec)
    until_s = time.perf_counter() + spec["seconds"]
    while time.perf_counter() < until_s:
        pass
    return {}


def _cpu_us() -> float:
    """What this process used since it was warm."""
    return (time.process_time() - warm_s) * 1e6


def gate(spec: dict[str, Any]) -> None:
    """If started ``gated``, say that all is warm and hear when to begin."""
    if spec.get("gated"):
        print("ready", flush=True)
        spec["at"] = float(sys.stdin.readline())


def _sleep_until(spec: dict[str, Any]) -> None:
    global warm_s
    gate(spec)
    time.sleep(max(0.0, spec.get("at", 0.0) - time.monotonic()))
    warm_s = time.process_time()


async def _at(spec: dict[str, Any]) -> None:
    global warm_s
    await asyncio.to_thread(gate, spec)
    await asyncio.sleep(max(0.0, spec.get("at", 0.0) - time.monotonic()))
    warm_s = time.process_time()


def main() -> None:
    role, spec = sys.argv[1], json.loads(sys.argv[2])
    if role in ("raw", "burn"):
        result = {"raw": raw, "burn": burn}[role](spec)
    else:
        work = {"paced": paced, "closed": closed, "flood": flood}[role]

        def loop() -> asyncio.AbstractEventLoop:
            # select() waits in microseconds, epoll() in milliseconds: most of what is measured here.
            return asyncio.SelectorEventLoop(selectors.SelectSelector())

        with asyncio.Runner(loop_factory=loop) as runner:
            result = runner.run(work(spec))
    print(json.dumps(result))


BEGAN = time.perf_counter()
warm_s = 0.0
if __name__ == "__main__":
    main()
