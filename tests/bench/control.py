"""The control of a flood: the same work in as many processes, and none of it asks mesh for anything.

    flood    asks a bare star of ZeroMQ sockets, as fast as it answers, so many payloads in flight.
    star     a ROUTER that passes payloads to two DEALERs and their answers back, each a process of its own.

Payloads, answers and windows are as large as those of the flood of mesh that is compared, and each process
uses the CPU that its likeness used there for each payload (``us``: what its own work leaves of it is burnt).
So what a client of mesh feels beside it is what the use of the CPU alone costs; the rest is mesh's doing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any

from traffic import gate

from mesh.net import sockets

WORKERS = 2
#: As the router of mesh: so many payloads of clients before the answers are looked at.
FRONT_MAX = 32
#: The star outlives the flood by so much.
AFTER_S = 1.0


class Burner:
    """Brings the CPU that this process uses up to so much for each payload."""

    def __init__(self, us: float) -> None:
        self._each_s = us / 1e6
        self._due_s = time.process_time()

    def payload(self) -> None:
        """One more was handled."""
        self._due_s = max(self._due_s, time.process_time() - 0.01) + self._each_s
        while time.process_time() < self._due_s:
            pass


def flood(spec: dict[str, Any]) -> dict[str, Any]:
    """``inflight`` payloads open, for ``seconds``."""
    socket = sockets.dealer_socket(sockets.context(), spec["endpoint"] + "front", b"\1" + os.urandom(15))
    socket.poll(2_000, sockets.POLLOUT)
    gate(spec)
    time.sleep(max(0.0, spec["at"] - time.monotonic()))
    burner, body = Burner(spec["us"]["load"]), bytes(spec["bytes"])
    sent = answered = 0
    until_s = time.perf_counter() + spec["seconds"]
    while time.perf_counter() < until_s:
        while sent - answered < spec["inflight"]:
            socket.send(body)
            sent += 1
        if socket.poll(100):
            socket.recv()
            answered += 1
            burner.payload()
    return {"payloads": answered}


def star(spec: dict[str, Any]) -> dict[str, Any]:
    """Serve until the flood is over. A session of its own, as a node is."""
    os.setsid()
    workers = []
    for index in range(WORKERS):
        workers.append(os.fork())
        if not workers[-1]:
            _worker(spec, b"w%d" % index)
    context = sockets.context(patient=True)
    front, back = (sockets.router_socket(context) for _ in range(2))
    front.bind(spec["endpoint"] + "front")
    back.bind(spec["endpoint"] + "back")
    poller = sockets.Poller()
    for socket in (front, back):
        poller.register(socket, sockets.POLLIN)
    for _ in workers:
        back.recv_multipart()
    gate(spec)
    burner, number = Burner(spec["us"]["router"]), 0
    until_s = spec["at"] + spec["seconds"] + AFTER_S
    while time.monotonic() < until_s:
        ready = dict(poller.poll(100))
        if back in ready:
            _pass(back, front, 1_024)
        if front in ready:
            for _ in range(FRONT_MAX):
                try:
                    client = front.recv(sockets.NOWAIT)
                except sockets.Again:
                    break
                number += 1
                back.send(b"w%d" % (number % WORKERS), sockets.MORE)
                back.send(client + front.recv(sockets.NOWAIT), sockets.NOWAIT)
                burner.payload()
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return {}


def _pass(back: Any, front: Any, most: int) -> None:
    for _ in range(most):
        try:
            back.recv(sockets.NOWAIT)
        except sockets.Again:
            return
        frame = back.recv(sockets.NOWAIT)
        with suppress(sockets.ZMQError):  # the flood is over
            front.send(frame[:16], sockets.MORE)
            front.send(frame[16:], sockets.NOWAIT)


def _worker(spec: dict[str, Any], name: bytes) -> None:
    socket = sockets.dealer_socket(sockets.context(patient=True), spec["endpoint"] + "back", name)
    socket.poll(2_000, sockets.POLLOUT)
    socket.send(b"ready")
    burner, answer = Burner(spec["us"]["worker"]), bytes(spec["reply_bytes"])
    while True:  # until the star ends it
        frame = socket.recv()
        burner.payload()
        socket.send(frame[:16] + answer)


def main() -> None:
    role, spec = sys.argv[1], json.loads(sys.argv[2])
    print(json.dumps({"flood": flood, "star": star}[role](spec)))


if __name__ == "__main__":
    main()
