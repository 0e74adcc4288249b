"""A scripted node: one ROUTER in a thread that answers HELLO and routes, and whatever a test tells it to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from mesh.core import wire
from mesh.core.route_record import encode_record, encode_route
from mesh.core.slots import even_map
from mesh.core.wire import Flag, Header, Kind
from mesh.errors import MeshError, NotFound
from mesh.net import sockets
from mesh.net.feed import bind

BOOT = 77
#: What a script returns: a finished frame, a list of [status, value], None for the normal answer, or SILENCE.
SILENCE = object()
Script = Callable[[Header, list[Any]], Any]


class FakeNode:
    """Answers like a node with two partitions whose routes live in one dict."""

    def __init__(self, endpoint: str = "tcp://127.0.0.1:0", *, boot: int = BOOT, partitions: int = 2) -> None:
        self.boot = boot
        self.partitions = partitions
        self.map_version = 1
        self.epoch = 1
        self.script: Script | None = None
        self.received: list[tuple[bytes, Header, list[Any]]] = []
        self.routes: dict[str, Any] = {}
        self._context = sockets.context()
        self._socket = sockets.router_socket(self._context)
        self.address = bind(self._socket, endpoint)
        self._stop = threading.Event()
        self._out: list[tuple[bytes, bytes]] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> FakeNode:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Vanish, as a killed router does."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            self._socket.close(0)
            self._context.term()

    def push(self, client: bytes, frame: bytes) -> None:
        """Send a frame that nobody asked for, with the next turn of the loop."""
        self._out.append((client, frame))

    def kinds(self) -> list[int]:
        """The kinds of the payloads received so far."""
        return [header.kind for _, header, _ in self.received]

    def ops(self) -> list[str]:
        """The names of all calls received so far."""
        return [call[0] for _, _, calls in self.received for call in calls]

    def _serve(self) -> None:
        poller = sockets.Poller()
        poller.register(self._socket, sockets.POLLIN)
        while not self._stop.is_set():
            for _ in range(64 if poller.poll(5) else 0):
                try:
                    client, frame = self._socket.recv_multipart(sockets.NOWAIT)
                except sockets.Again:
                    break
                self._answer(client, frame)
            while self._out:
                self._send(*self._out.pop(0))

    def _send(self, client: bytes, frame: bytes) -> None:
        try:
            self._socket.send_multipart([client, frame], sockets.NOWAIT)
        except sockets.ZMQError:
            pass  # the client left

    def _answer(self, client: bytes, frame: bytes) -> None:
        header = wire.decode_header(frame)
        calls = wire.decode_calls(frame[wire.HEADER_BYTES :]) if len(frame) > wire.HEADER_BYTES else []
        self.received.append((client, header, calls))
        answer = self.script(header, calls) if self.script is not None else None
        if answer is SILENCE:
            return
        if answer is None:
            answer = self.normal(header, calls)
        if isinstance(answer, list):
            answer = self.reply(header, wire.pack(_placed(header, answer)))
        self._send(client, answer)

    def normal(self, header: Header, calls: list[Any]) -> bytes:
        """The answer of a node that is well."""
        if header.kind == Kind.HELLO:
            return self.reply(header, wire.pack(self.hello()))
        if header.kind == Kind.STATUS:
            rows = [
                {"index": i, "state": "ready", "pid": 100 + i, "epoch": 1} for i in range(self.partitions)
            ]
            return self.reply(header, wire.pack({"node": "fake", "partitions": rows}))
        if not calls:
            return self.reply(header, b"")
        return self.reply(header, wire.pack(_placed(header, [self._call(op, args) for op, args in calls])))

    def hello(self) -> dict[str, Any]:
        """The facts of this node."""
        return {
            "node": "fake",
            "boot": self.boot,
            "map_version": self.map_version,
            "slots": even_map(self.partitions),
            "partitions": self.partitions,
            "runners": 1,
            "address": self.address,
            "feed": self.address,
            "feed_ipc": "",
            "fallback_after_ms": 100,
            "frame_bytes": wire.FRAME_BYTES_MAX,
            "version": "0",
        }

    def reply(self, header: Header, body: bytes, *, flags: int = 0, partition: int | None = None) -> bytes:
        """A REPLY frame to a request."""
        return (
            wire.encode_header(
                Kind.REPLY,
                flags=flags,
                answers=header.kind,
                address=header.address if partition is None else partition,
                map_version=self.map_version,
                request_id=header.request_id,
                number=self.boot,
                done_below=self.epoch,
            )
            + body
        )

    def refuse(self, header: Header, error: MeshError, flags: int = 0) -> bytes:
        """A refusal of a whole payload."""
        return self.reply(header, wire.pack(error.to_wire()), flags=Flag.REFUSED | flags)

    def _call(self, op: str, args: list[Any]) -> list[Any]:
        if op == "route.set":
            self.routes[args[0]] = args[1]
            return [0, None]
        if op == "route.get":
            return self._get(args[0])
        if op == "route.get_many":
            return [0, self._get_many(args[0])]
        if op == "route.set_many":
            self.routes.update({item[0]: item[1] for item in args[0]})
            return [0, [[0, None] for _ in args[0]]]
        if op == "route.resolve":
            status, value = self._get(args[0])
            return (
                [0, [value[0]["external_room_id"], value[0], "state_hit", False, False, None]]
                if not status
                else [1, NotFound(code="no_route").to_map()]
            )
        return [0, None]

    def _get_many(self, keys: list[str]) -> list[Any]:
        records: list[bytes | None] = []
        errors: list[Any] = []
        for place, key in enumerate(keys):
            if key in self.routes:
                record = encode_record(0, 1001, 0, 0, encode_route(self.routes[key], 1 << 20))
                records.append(wire.unpack(record))
            else:
                records.append(None)
                errors.append([place, self._get(key)[1]])
        return [1, records, errors]

    def _get(self, key: str) -> list[Any]:
        if key in self.routes:
            return [0, [self.routes[key], 1, 1000, "learned"]]
        return [1, NotFound(f"no route {key}").to_map()]


__all__ = ["BOOT", "SILENCE", "FakeNode", "Script"]


def _placed(header: Header, pairs: list[Any]) -> list[Any]:
    """Several waiting reads are answered with the place of each."""
    several = header.kind == Kind.WAIT and len(pairs) > 1
    return [[place, *pair] for place, pair in enumerate(pairs)] if several else pairs
