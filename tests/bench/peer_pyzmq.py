"""pyzmq alone: DEALER to ROUTER, ROUTER to DEALER, with frames as long as those of a ``routes.get``.

Router and echo are processes of their own, and do nothing but pass frames on: this is what ZeroMQ and Python
leave for mesh. One hop more than a client and a server would need, since mesh has it too.
"""

from __future__ import annotations

import os
import sys
import time

import zmq
from peer_base import KEYS, Peer, each_blocking

from mesh.cli import measure
from mesh.core import wire

ID_BYTES = 16
ACTOR = b"actor"
REQUEST = wire.encode_header(wire.Kind.READ, request_id=1) + wire.encode_body([["route.get", [KEYS[0]]]])
REPLY = wire.encode_header(wire.Kind.REPLY, request_id=1) + wire.pack(
    [[0, [measure.ROUTE, 1_000, 1_799_000, {"source": "set", "writer": None}]]]
)
IN_FLIGHT = 256


class BareRouter(Peer):
    """One client socket."""

    async def start(self) -> None:
        front, back = f"ipc://{self.folder}/front", f"ipc://{self.folder}/back"
        self.spawn(sys.executable, __file__, "router", front, back)
        self.spawn(sys.executable, __file__, "echo", back)
        self.wait_for((self.folder / "back").exists, "the router")
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.ROUTING_ID, b"\1" + os.urandom(ID_BYTES - 1))
        self.socket.connect(front)
        self.wait_for(self._answered, "the echo")

    async def stop(self) -> None:
        self.context.destroy(linger=0)

    def _answered(self) -> bool:
        """Whether a request comes back; the router drops those for which no echo is there yet."""
        self.socket.send(REQUEST)
        if not self.socket.poll(100):
            return False
        while self.socket.poll(50):
            self.socket.recv()
        return True

    def _call(self, _place: int) -> None:
        self.socket.send(REQUEST)
        self.socket.poll()
        self.socket.recv()

    async def one_blocking(self, count: int) -> list[float]:
        return each_blocking(self._call, count)

    async def one(self, count: int) -> list[float]:
        """The same again: asyncio would only slow it down."""
        return each_blocking(self._call, count)

    async def concurrent(self, count: int) -> float:
        """256 requests on their way, without any coroutine."""
        count = max(count, IN_FLIGHT)
        began_s = time.perf_counter()
        for _ in range(IN_FLIGHT):
            self.socket.send(REQUEST)
        for _ in range(count - IN_FLIGHT):
            self.socket.recv()
            self.socket.send(REQUEST)
        for _ in range(IN_FLIGHT):
            self.socket.recv()
        return count / (time.perf_counter() - began_s)


def _router(front: str, back: str) -> None:
    context = zmq.Context()
    clients, actors = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
    clients.bind(front)
    actors.bind(back)
    poller = zmq.Poller()
    poller.register(clients, zmq.POLLIN)
    poller.register(actors, zmq.POLLIN)
    while True:
        for socket, _ in poller.poll():
            (_to_actors if socket is clients else _to_clients)(clients, actors)


def _to_actors(clients: zmq.Socket[bytes], actors: zmq.Socket[bytes]) -> None:
    """All that waits, as mesh's router does it."""
    while True:
        try:
            client = clients.recv(zmq.NOBLOCK)
        except zmq.Again:
            return
        frame = clients.recv()
        actors.send(ACTOR, zmq.SNDMORE)
        actors.send(client + frame)


def _to_clients(clients: zmq.Socket[bytes], actors: zmq.Socket[bytes]) -> None:
    while True:
        try:
            actors.recv(zmq.NOBLOCK)
        except zmq.Again:
            return
        frame = actors.recv()
        clients.send(frame[:ID_BYTES], zmq.SNDMORE)
        clients.send(frame[ID_BYTES:])


def _echo(back: str) -> None:
    socket = zmq.Context().socket(zmq.DEALER)
    socket.setsockopt(zmq.ROUTING_ID, ACTOR)
    socket.connect(back)
    while True:
        socket.poll()
        socket.send(socket.recv()[:ID_BYTES] + REPLY)


if __name__ == "__main__":
    {"router": _router, "echo": _echo}[sys.argv[1]](*sys.argv[2:])
