"""The measurements of a whole node for ``mesh bench``: runs, events, threads, memory, a killed partition."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.cli.measure import COROUTINES, MANY, Figure, concurrent, fill, percentile

if TYPE_CHECKING:
    import mesh

#: A killed partition answers again within this time, or the measurement fails.
RESTART_WAIT_S = 30.0
#: So long the other partition is watched before the kill, to know what is usual. Partitions tell what they
#: hold once a second, so that is known afterwards too.
USUAL_S = 1.5
THREADS = 16


async def run_once(client: mesh.AsyncClient, count: int) -> Figure:
    """Whole conversations with the echo agent: create, start, message, run, complete; durable."""
    return await concurrent(
        "run_once with echo", lambda _: client.run_once("echo", "hello", timeout_s=60.0), count
    )


async def routed(client: mesh.AsyncClient, agent: str, count: int) -> Figure:
    """How much longer a run takes through a router that chooses echo, than asked of echo itself.

    Pairs of both, each first in turns: the median of their differences.
    """
    taken_ms: dict[str, list[float]] = {"echo": [], agent: []}
    for turn in range(count):
        for name in ("echo", agent) if turn % 2 else (agent, "echo"):
            began_s = time.perf_counter()
            await client.run_once(name, "hello", timeout_s=60.0)
            taken_ms[name].append((time.perf_counter() - began_s) * 1000)
    more = sorted(routed - direct for direct, routed in zip(*taken_ms.values(), strict=True))
    direct, through = (percentile(sorted(taken), 0.5) for taken in taken_ms.values())
    details = {"runs": count, "direct_p50_ms": round(direct, 2), "routed_p50_ms": round(through, 2)}
    return Figure("a routed run beyond a direct one, p50", percentile(more, 0.5), "ms", details)


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


async def approved(client: mesh.AsyncClient, agent: str, count: int) -> Figure:
    """How long after the call of ``approve`` its run goes on; one question after the other."""
    session = await client.sessions.start(agent)
    policy = {"tool_rules": [["ask", ["gate"]]]}
    run = await client.runs.submit(session.id, str(count), policy=policy)
    said, after = [], 0
    for _ in range(count):
        asked = ""
        async for event in client.sessions.stream(session.id, after=after, type="tool_approval_requested"):
            asked, after = event.data["tool_call_id"], event.seq
            break
        said.append(time.time())
        await client.approvals.approve(run.id, asked)
    result = await client.runs.wait(run.id)
    went_on = [float(text) for text in result.output["content"].split()]
    late_ms = sorted((on - at) * 1000 for at, on in zip(said, went_on, strict=True))
    await client.sessions.complete(session.id)
    details = {"approvals": count, "p99_ms": round(percentile(late_ms, 0.99), 2)}
    return Figure("approval until its run goes on, p50", percentile(late_ms, 0.5), "ms", details)


async def restart(client: mesh.AsyncClient, names: list[str]) -> list[Figure]:
    """Kill the partition of the first key with SIGKILL; the time until that key is answered again.

    Meanwhile a key of another partition is asked for without a pause: the longest time between two of its
    answers is the second figure.
    """
    index = await client.partitions.of(names[0])
    others = [name for name in names if await client.partitions.of(name) != index][:1]
    pulse = _Pulse(client, others[0] if others else names[0])
    watching = asyncio.create_task(pulse.watch())
    try:
        await asyncio.sleep(USUAL_S)
        info = await client.partitions.info(index)
        usual_ms, pulse.longest_ms = pulse.longest_ms, 0.0
        taken_ms = await _kill(client, names[0], index)
    finally:
        pulse.over = True
        await watching
    held = {"routes": info.routes, "sessions": info.sessions}
    found = [Figure("restart of a killed partition, first answer", taken_ms, "ms", held)]
    if others:
        gap = {"usual_ms": round(usual_ms, 2), "during_ms": round(taken_ms, 1)}
        found.append(
            Figure("restart of a killed partition, longest gap of another", pulse.longest_ms, "ms", gap)
        )
    return found


class _Pulse:
    """Asks for one key again and again, and remembers the longest time between two answers."""

    def __init__(self, client: mesh.AsyncClient, name: str) -> None:
        self._client, self._name = client, name
        self.longest_ms = 0.0
        self.over = False

    async def watch(self) -> None:
        last_s = time.perf_counter()
        while not self.over:
            await self._client.routes.get(self._name)
            now_s = time.perf_counter()
            self.longest_ms = max(self.longest_ms, (now_s - last_s) * 1000)
            last_s = now_s


async def _kill(client: mesh.AsyncClient, name: str, index: int) -> float:
    """ms from the SIGKILL of a partition to its successor's answer."""
    pid = await client.partitions.pid(index)
    assert pid is not None
    began_s = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    await client.routes.get(name, timeout_s=RESTART_WAIT_S)
    taken_ms = (time.perf_counter() - began_s) * 1000
    # The kill may have been answered by the dying process: then its successor's answer is what counts.
    while await client.partitions.pid(index) in (pid, None):
        await asyncio.sleep(0.001)
        await client.routes.get(name, timeout_s=RESTART_WAIT_S)
        taken_ms = (time.perf_counter() - began_s) * 1000
    return taken_ms


async def add_sessions(client: mesh.AsyncClient, count: int) -> None:
    """Store so many idle sessions."""
    for place in range(0, count, COROUTINES):
        await asyncio.gather(*(client.sessions.create("echo") for _ in range(min(COROUTINES, count - place))))


async def memory(client: mesh.AsyncClient, counts: list[int]) -> list[Figure]:
    """What all partitions together grow by from the smallest to the largest of these numbers of routes."""
    pids = [row.pid for row in await client.partitions.list() if row.pid]
    sizes: list[int] = []
    stored = 0
    for count in counts:
        for begin in range(stored, count, MANY):
            await fill(client, [f"memory:bot{i % 7}:room{i}" for i in range(begin, min(begin + MANY, count))])
        stored = count
        sizes.append(sum(map(resident_bytes, pids)))
    each = (sizes[-1] - sizes[0]) / (counts[-1] - counts[0])
    details = {
        f"{count} routes": f"{size / 2**20:.0f} MiB" for count, size in zip(counts, sizes, strict=True)
    }
    return [Figure("memory per route", each, "bytes", details)]


def resident_bytes(pid: int) -> int:
    """The memory of a process, without what it shares with its parent (where the kernel tells)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024
    except OSError:
        shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, check=True)
        return int(shown.stdout) * 1024


def threads(client: mesh.Client, names: list[str], count: int) -> Figure:
    """``routes.get`` from 16 threads that share one blocking client, beside one thread alone."""
    alone = _threads_rate(client, names, count // 8, 1)
    before = _requests(client)
    shared = _threads_rate(client, names, count, THREADS)
    payloads = _requests(client) - before
    details = {
        "calls": count,
        "one_thread": round(alone),
        "times_one_thread": round(shared / alone, 1),
        "calls_per_payload": round(count / max(payloads, 1), 1),
    }
    return Figure(f"routes.get, {THREADS} threads share a blocking client", shared, "/s", details)


def _threads_rate(client: mesh.Client, names: list[str], count: int, workers: int) -> float:
    failed: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for place in range(first, count, workers):
                client.routes.get(names[place % len(names)])
        except BaseException as exc:  # noqa: BLE001 (raised again by the caller's thread)
            failed.append(exc)

    crew = [threading.Thread(target=work, args=(first,)) for first in range(workers)]
    began_s = time.perf_counter()
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    taken_s = time.perf_counter() - began_s
    if failed:
        raise failed[0]
    return count / taken_s


def _requests(client: mesh.Client) -> int:
    """The payloads that the router took in so far."""
    return int(client.status()["router"]["requests"])


__all__ = [
    "RESTART_WAIT_S",
    "THREADS",
    "USUAL_S",
    "add_sessions",
    "approved",
    "delivered_events",
    "memory",
    "resident_bytes",
    "restart",
    "routed",
    "run_once",
    "threads",
]
