"""A router and partitions as forked processes, and a client that speaks raw wire protocol to them."""

from __future__ import annotations

import importlib
import os
import select
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from mesh.config import NodeConfig, load
from mesh.core import mailbox, slots, wire
from mesh.net import sockets
from mesh.node.child import Child, Control

LIMIT_S = 20.0
CATALOGUE = [{"name": "echo", "provider": "echo", "problem": None, "idempotent": False, "capabilities": []}]


class Process:
    """A forked child and the supervisor's end of its pipe."""

    def __init__(self, pid: int, control: Control) -> None:
        self.pid = pid
        self.control = control
        self.status: int | None = None

    def kill(self) -> None:
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def stop(self) -> int:
        """Ask it to stop; its exit status."""
        self.control.send("stop")
        return self.wait()

    def wait(self) -> int:
        until = time.monotonic() + LIMIT_S
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"process {self.pid} did not end")
            else:
                select.select([self.control], [], [], 0.01)
        self.control.close()
        return self.status

    def ready(self) -> dict[str, Any]:
        """Wait for its READY."""
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            select.select([self.control], [], [], 0.2)
            for message in self.control.receive():
                if message["t"] == "ready":
                    return message
            assert not self.control.closed, "it died before it was ready"
        raise AssertionError("not ready in time")


class MiniNode:
    """Router and partitions, without supervisor and runners."""

    def __init__(
        self, folder: Path, *, partitions: int = 1, config: dict[str, Any] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.folder = folder
        self.partitions = partitions
        self.config: NodeConfig = load(
            environ={},
            overrides={
                "node": {"port": 0, "partitions": partitions},
                "agents": {"echo": {"provider": "echo"}},
                **(config or {}),
            },
        )
        self.runtime = Path(tempfile.mkdtemp(prefix="n", dir=os.environ["MESH_RUNTIME_DIR"]))
        self.before = before
        self.spawned = 0
        self.children: dict[str, Process] = {}

    def __enter__(self) -> Self:
        try:
            self.start("router", "router", 0).ready()
            for index in range(self.partitions):
                self.start_partition(index)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children.values():
            child.kill()

    def start_partition(self, index: int = 0) -> dict[str, Any]:
        ready = self.start(f"partition-{index}", "partition", index).ready()
        self.tell_router()
        with RawClient(self) as client:
            client.read(
                ["feed.head", []], address=index
            )  # slot i belongs to partition i: the router knows it
        return ready

    def start(self, name: str, kind: str, index: int) -> Process:
        ours, theirs = socket.socketpair()
        self.spawned += 1
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                log = os.open(self.folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(log, 2)
                if self.before is not None and kind == "partition":
                    self.before()
                importlib.import_module(f"mesh.node.{kind}").main(Child(
                    name=name, kind=kind, index=index, incarnation=1_000_000 + self.spawned, node_boot=1,
                    config=self.config, data_dir=self.folder, runtime_dir=self.runtime,
                    slot_map=slots.even_map(self.partitions), map_version=1, control=Control(theirs)))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        theirs.close()
        self.children[name] = Process(pid, Control(ours))
        return self.children[name]

    def tell_router(self) -> None:
        """What the supervisor says of its children."""
        rows = []
        for name, child in self.children.items():
            kind, _, index = name.partition("-")
            alive = child.status is None
            rows.append(
                {
                    "name": name,
                    "kind": kind,
                    "index": int(index or 0),
                    "incarnation": 1,
                    "restarts": 0,
                    "state": "ready" if alive else "restarting",
                    "pid": child.pid if alive else None,
                    "cause": None,
                }
            )
        self.children["router"].control.send("roster", children=rows)

    def kill_partition(self, index: int = 0) -> None:
        self.children[f"partition-{index}"].kill()
        self.tell_router()

    def log(self, index: int = 0) -> str:
        return (self.folder / f"partition-{index}.log").read_text()


class Answer:
    """A reply: its header, and the calls' answers or the error that refused the payload."""

    def __init__(self, frame: bytes) -> None:
        self.header = wire.decode_header(frame)
        self.body = wire.unpack(frame[wire.HEADER_BYTES:]) if len(frame) > wire.HEADER_BYTES else None
        self.refused = bool(self.header.flags & wire.Flag.REFUSED)

    @property
    def codes(self) -> list[str]:
        """``ok`` or the error code of each call; of the whole payload when it was refused."""
        if self.refused:
            return [self.body["code"]]
        return ["ok" if status == 0 else value["code"] for status, value in self.body]

    @property
    def value(self) -> Any:
        assert self.codes == ["ok"], self.body
        return self.body[0][1]


class RawClient:
    """One client id, numbering its writes to partition 0 by hand."""

    def __init__(self, node: MiniNode, client_id: bytes | None = None) -> None:
        self.id = client_id or b"\x01" + os.urandom(15)
        self.context = sockets.context()
        self.socket = sockets.dealer_socket(self.context, f"ipc://{node.runtime}/front", self.id)
        self.request = 0
        self.number = 0
        self.waiting: dict[int, Answer] = {}
        self.gone: list[wire.Header] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.context.term()

    def send(self, kind: int, body: bytes, *, address: int = 0, remaining_ms: int = 10_000, number: int = 0,
             done_below: int = 1) -> int:
        self.request += 1
        assert self.socket.poll(int(LIMIT_S * 1000), sockets.POLLOUT), "no router"
        self.socket.send(wire.encode_header(
            kind, address=address, remaining_ms=remaining_ms, request_id=self.request, number=number,
            done_below=done_below) + body)
        return self.request

    def take(self, request: int, limit_s: float = LIMIT_S) -> Answer:
        """The reply to a request; others that come meanwhile are kept."""
        until = time.monotonic() + limit_s
        while request not in self.waiting:
            left = until - time.monotonic()
            assert left > 0 and self.socket.poll(int(left * 1000) + 1), f"no reply to {request}"
            frame = self.socket.recv()
            header = wire.decode_header(frame)
            if header.kind == wire.Kind.GONE:
                self.gone.append(header)
            else:
                self.waiting[header.request_id] = Answer(frame)
        return self.waiting.pop(request)

    def again(self, send: Callable[[], int]) -> Answer:
        """Send, and send again while the partition is only restarting."""
        until = time.monotonic() + LIMIT_S
        while True:
            answer = self.take(send())
            if not (answer.refused and answer.header.flags & wire.Flag.AGAIN) or time.monotonic() > until:
                return answer
            self.socket.poll(20)

    def read(self, *calls: list[Any], **fields: Any) -> Answer:
        return self.again(lambda: self.send(wire.Kind.READ, wire.pack(list(calls)), **fields))

    def write(self, *calls: list[Any], number: int | None = None, **fields: Any) -> Answer:
        if number is None:
            self.number += 1
            number = self.number
        return self.again(lambda: self.send(wire.Kind.WRITE, wire.pack(list(calls)), number=number, **fields))

    def wait(self, op: str, *args: Any, remaining_ms: int = 20_000) -> int:
        return self.send(wire.Kind.WAIT, wire.pack([[op, list(args)]]), remaining_ms=remaining_ms)


class FakeRunner:
    """A runner's mailbox in the test: says READY and its catalogue, keeps what partitions command."""

    def __init__(self, node: MiniNode, index: int = 0, incarnation: int = 1_000_900) -> None:
        self.index, self.incarnation = index, incarnation
        self.context = sockets.context()
        identity = mailbox.identity(mailbox.RUNNER, index, incarnation)
        self.socket = sockets.dealer_socket(self.context, f"ipc://{node.runtime}/back", identity)
        self.commands: list[list[Any]] = []
        self._done: dict[int, int] = {}

    def __enter__(self) -> Self:
        self.tell(wire.ROUTER_ID, ["ready", "R", self.index, self.incarnation, os.getpid(), {}])
        self.wait_for("known")
        self.tell(wire.actor_id(b"P", 0), ["catalogue", None, CATALOGUE])
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.context.term()

    def tell(self, peer: bytes, message: list[Any]) -> None:
        assert self.socket.poll(int(LIMIT_S * 1000), sockets.POLLOUT)
        self.socket.send(peer + wire.pack(message))

    def wait_for(self, name: str) -> list[Any]:
        """The next command of that name."""
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            for at, command in enumerate(self.commands):
                if command[0] == name:
                    return self.commands.pop(at)
            if self.socket.poll(100):
                self._take(self.socket.recv())
        raise AssertionError(f"no command {name!r}")

    def _take(self, frame: bytes) -> None:
        message = wire.unpack(frame[wire.ACTOR_PREFIX_BYTES:])
        if message[0] == "commands":
            _, epoch, first, commands = message
            done = self._done.get(epoch, 0)
            fresh = commands[max(0, done + 1 - first):]
            self._done[epoch] = done + len(fresh)
            self.commands.extend(fresh)
            self.tell(wire.actor_id(b"P", 0), ["acks", epoch, self._done[epoch]])

    def batch(
        self, run_id: str, attempt: int, n: int, types: list[int], settle: dict[str, Any] | None
    ) -> None:
        rows = [[code, 1.0, _fragment(code, run_id)] for code in types]
        self.tell(wire.actor_id(b"P", 0), ["batch", run_id, attempt, n, rows, settle])


def _fragment(code: int, run_id: str) -> bytes:
    from mesh.core.events import EVENT_TYPES, encode_fragment

    return encode_fragment(EVENT_TYPES[code], "s", run_id, {"x": 1}, ts=1.0)


COMPLETED = {
    "status": "completed",
    "output": {"content": "x"},
    "error": None,
    "token_usage": {},
    "cost_usd": None,
    "provider_metadata": {},
}
