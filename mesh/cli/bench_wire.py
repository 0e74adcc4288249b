"""Clients on the bare wire: one call per payload, nothing coalesced, no SDK.

    python -m mesh.cli.bench_wire ADDRESS CALLS IN_FLIGHT

is one of several client processes: it prints a line when it is connected, begins at a line on stdin, and
prints when it began and ended (CLOCK_MONOTONIC, which all processes of a machine share).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from mesh.cli.measure import WARM_UP, Figure, keys, latency
from mesh.core import slots, wire
from mesh.errors import RemoteProtocolError
from mesh.net import sockets

PROCESSES, IN_FLIGHT = 4, 64
ANSWER_MS = 30_000
_REFUSED = int(wire.Flag.REFUSED)
_FLAGS = 4  #: the place of the flags in a header


class WireClient:
    """A DEALER that reads routes, one call per payload."""

    def __init__(self, address: str, names: list[str]) -> None:
        self._ctx = sockets.context()
        self._socket = sockets.dealer_socket(self._ctx, address, b"\1" + os.urandom(15))
        bodies = (wire.encode_body([["route.get", [name]]]) for name in names)
        self._requests = list(zip(map(slots.route_slot, names), bodies, strict=True))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close(0)
        self._ctx.term()

    def connect(self) -> None:
        """Return when an answer came: the socket queues nothing before it is connected."""
        self._socket.poll(ANSWER_MS, sockets.POLLOUT)
        self.send(0)
        self.receive()

    def send(self, place: int) -> None:
        """Ask for one route."""
        slot, body = self._requests[place % len(self._requests)]
        header = wire.encode_header(
            wire.Kind.READ, address=slot, remaining_ms=ANSWER_MS, request_id=place + 1
        )
        self._socket.send(header + body)

    def receive(self) -> int:
        """Take all answers that are there, at least one; how many.

        Raises:
            RemoteProtocolError: the node refused, or did not answer.
        """
        taken, recv, nowait = 0, self._socket.recv, sockets.NOWAIT
        while True:
            try:
                frame = recv(nowait)
            except sockets.Again:
                if taken:
                    return taken
                if not self._socket.poll(ANSWER_MS):
                    raise RemoteProtocolError("no answer on the bare wire") from None
                continue
            taken += 1
            if frame[_FLAGS] & _REFUSED:
                raise RemoteProtocolError(f"refused on the bare wire: {wire.unpack_reply(frame)}")

    def flood(self, calls: int, in_flight: int) -> tuple[float, float]:
        """Make so many calls, so many of them on their way at once; when it began and ended."""
        begin_s = time.monotonic()
        sent = answered = 0
        while answered < calls:
            while sent < calls and sent - answered < in_flight:
                self.send(sent)
                sent += 1
            answered += self.receive()
        return begin_s, time.monotonic()


def one_by_one(address: str, names: list[str], count: int) -> Figure:
    """One call at a time without the SDK: what the node alone takes."""
    client = WireClient(address, names)
    try:
        client.connect()
        client.flood(WARM_UP, 1)
        taken_us = []
        for place in range(count):
            began_s = time.perf_counter()
            client.send(place)
            client.receive()
            taken_us.append((time.perf_counter() - began_s) * 1e6)
        return latency("route.get on the bare wire, one by one, p50", taken_us)
    finally:
        client.close()


def uncoalesced(address: str, calls: int) -> Figure:
    """Four processes with 64 single-call payloads on their way each; calls per second of all."""
    each = max(calls // PROCESSES, IN_FLIGHT)
    command = [sys.executable, "-m", "mesh.cli.bench_wire", address, str(each), str(IN_FLIGHT)]
    path = os.pathsep.join((str(Path(__file__).resolve().parents[2]), *sys.path))
    crew = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        for _ in range(PROCESSES)
    ]
    try:
        times = _times(crew)
    finally:
        for process in crew:
            process.kill()
            process.communicate()
    taken_s = max(end for _, end in times) - min(begin for begin, _ in times)
    calls = each * PROCESSES
    details = {"calls": calls, "processes": PROCESSES, "in_flight_each": IN_FLIGHT}
    return Figure("route.get on the bare wire, one call per payload", calls / taken_s, "/s", details)


def _times(crew: list[subprocess.Popen[str]]) -> list[tuple[float, float]]:
    """When each of them began and ended, once all had been connected."""
    found = []
    for process in crew:
        assert process.stdout is not None
        process.stdout.readline()
    for process in crew:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in crew:
        assert process.stdout is not None
        begin, _, end = process.stdout.readline().partition(" ")
        if not end:
            raise RemoteProtocolError("a client process of the benchmark ended early; see its error above")
        found.append((float(begin), float(end)))
    return found


def _main(address: str, calls: int, in_flight: int) -> None:
    client = WireClient(address, keys(1_000))
    client.connect()
    print("ready", flush=True)
    sys.stdin.readline()
    begin_s, end_s = client.flood(calls, in_flight)
    print(begin_s, end_s, flush=True)
    client.close()


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))


__all__ = ["IN_FLIGHT", "PROCESSES", "WireClient", "one_by_one", "uncoalesced"]
