"""Many clients, or many listeners, in one process of their own: ``python tests/bench/crowds.py ROLE JSON``.

    clients     ``count`` clients, each with a socket of its own, share ``inflight`` calls in flight
    listeners   ``count`` listeners to every session message; each counts ``events`` of them, and their delay
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from array import array
from typing import Any

from traffic import KEYS, keys, summary

import mesh

#: A listener that got nothing for so long gives up: the bench failed.
PATIENCE_S = 60.0


async def clients(spec: dict[str, Any]) -> dict[str, Any]:
    """Reads of one route each, for ``seconds``; at least one call of every client is in flight."""
    each = max(1, spec["inflight"] // spec["count"])
    crowd = [mesh.AsyncClient(spec["address"], timeout_s=30.0) for _ in range(spec["count"])]
    names, taken = keys(), array("d")
    for first in range(0, len(crowd), 50):
        await asyncio.gather(*(one.routes.get(names[0]) for one in crowd[first : first + 50]))
    await asyncio.sleep(max(0.0, spec["at"] - time.monotonic()))
    begin = time.perf_counter()
    until_s = begin + spec["seconds"]

    async def work(one: mesh.AsyncClient, n: int) -> None:
        while (began_s := time.perf_counter()) < until_s:
            n += 7
            await one.routes.get(names[n % KEYS])
            taken.append(time.perf_counter() - began_s)

    places = [(one, n * each + m) for n, one in enumerate(crowd) for m in range(each)]
    await asyncio.gather(*(work(one, n) for one, n in places))
    rate = len(taken) / (time.perf_counter() - begin)
    for one in crowd:
        await one.close()
    return {"rate": rate, **summary(taken)}


async def listeners(spec: dict[str, Any]) -> dict[str, Any]:
    """Say ``ready`` when all are live; then hear ``slow`` messages one by one, which tell the delay,
    and ``fast`` ones, which tell the rate."""
    async with mesh.AsyncClient(spec["address"], timeout_s=30.0) as client:
        crowd = [await client.listen("session.") for _ in range(spec["count"])]
        print("ready", flush=True)
        delays = array("d")
        begun, ended = [], []

        async def hear(listener: Any) -> None:
            heard = 0
            async for note in listener:
                heard += 1
                if heard <= spec["slow"]:
                    delays.append(time.time() - note.data["ts"])
                elif heard == spec["slow"] + 1:
                    begun.append(time.time())
                if heard == spec["slow"] + spec["fast"]:
                    ended.append(time.time())
                    return

        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(hear(listener) for listener in crowd))
        for listener in crowd:
            await listener.aclose()
    return {"begun": min(begun), "ended": max(ended), **summary(delays)}


def main() -> None:
    work = {"clients": clients, "listeners": listeners}[sys.argv[1]]
    print(json.dumps(asyncio.run(work(json.loads(sys.argv[2])))))


if __name__ == "__main__":
    main()
