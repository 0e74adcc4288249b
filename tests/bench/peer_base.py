"""What the peers share: their servers as processes that end with them, and the loops that measure a client.

The loops are those of ``mesh bench`` itself, so that nobody is measured with another one.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgpack

from mesh.cli import measure

#: The route as bytes, for systems that store bytes. Nobody decodes them: mesh does when they are looked at.
ROUTE_BYTES: bytes = msgpack.packb(measure.ROUTE)
KEYS = measure.keys(5_000)
START_S = 30.0
STOP_S = 5.0


class Peer:
    """One system: its servers and one client of it.

    A subclass has those of the measurements (``FIGURES`` in peers.py) that its system can do: ``one`` and
    ``one_blocking`` return us of each call, the others calls (keys) per second.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._servers: list[subprocess.Popen[bytes]] = []

    async def start(self) -> None:
        """Start the servers, store a route under each of ``KEYS``, connect the client."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Close the client. The servers are ended by ``end_servers``, whatever happens here."""

    def spawn(self, *command: str, **environ: str) -> subprocess.Popen[bytes]:
        """Start a server; what it prints goes to a file in the folder."""
        with (self.folder / "servers.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **environ},
            )
        self._servers.append(process)
        return process

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until a server is there; fails at once when one of them has ended."""
        until_s = time.monotonic() + START_S
        while True:
            value = condition()
            if value:
                return value
            ended = next((server for server in self._servers if server.poll() is not None), None)
            if ended is not None or time.monotonic() > until_s:
                log = (self.folder / "servers.log").read_text(errors="replace").strip().splitlines()
                how = f"ended ({ended.returncode})" if ended else f"is not there after {START_S} s"
                raise RuntimeError(f"{what} {how}: {log[-1] if log else 'it printed nothing'}")
            time.sleep(0.01)

    def end_servers(self) -> None:
        """End every server that was started, the last one first."""
        for server in reversed(self._servers):
            server.terminate()
        for server in reversed(self._servers):
            try:
                server.wait(STOP_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


async def each(call: Callable[[int], Awaitable[Any]], count: int) -> list[float]:
    """us of each of ``count`` calls, the next one after the last answer."""
    taken_us = []
    for place in range(count):
        began_s = time.perf_counter()
        await call(place)
        taken_us.append((time.perf_counter() - began_s) * 1e6)
    return taken_us


def each_blocking(call: Callable[[int], Any], count: int) -> list[float]:
    """The same for a call that blocks."""
    taken_us = []
    for place in range(count):
        began_s = time.perf_counter()
        call(place)
        taken_us.append((time.perf_counter() - began_s) * 1e6)
    return taken_us


async def rate(
    call: Callable[[int], Awaitable[Any]],
    count: int,
    *,
    coroutines: int = measure.COROUTINES,
    per_call: int = 1,
) -> float:
    """Calls per second when so many coroutines share them out."""
    calls = max(count // per_call, coroutines)
    return (await measure.concurrent("", call, calls, coroutines=coroutines, per_call=per_call)).value


def rate_blocking(call: Callable[[int], Any], count: int, *, per_call: int) -> float:
    """Keys per second of calls that take ``per_call`` keys each, one after the other."""
    calls = max(count // per_call, 1)
    began_s = time.perf_counter()
    for place in range(calls):
        call(place)
    return calls * per_call / (time.perf_counter() - began_s)


def key(place: int) -> str:
    """The key of the n-th call."""
    return KEYS[place % len(KEYS)]


def some_keys(place: int, count: int) -> list[str]:
    """``count`` keys for the n-th list."""
    begin = place * count % (len(KEYS) - count)
    return KEYS[begin : begin + count]
