"""A runner process and, in the test, the router's end of its mailbox and the supervisor's end of its pipe."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from mesh.core import wire
from mesh.core.events import EVENT_TYPES
from mesh.core.slots import even_map, run_id_for
from mesh.net import sockets
from mesh.node.child import Control

LIMIT_S = 20.0
INCARNATION = 7
_START = """
import json, socket, sys
from pathlib import Path
from mesh import config
from mesh.node import reaper, runner
from mesh.node.child import Child, Control
from mesh.core.slots import even_map
given = json.loads(sys.argv[1])
reaper.become_subreaper()
runner.main(Child(
    name="runner-0", kind="runner", index=0, incarnation=given["incarnation"], node_boot=1,
    config=config.load(environ={}, overrides=given["config"]), data_dir=Path(given["dir"]),
    runtime_dir=Path(given["dir"]), slot_map=even_map(2), map_version=1,
    control=Control(socket.socket(fileno=given["fd"])),
))
"""


class RunnerBench:
    """Start with ``with``; at its end the runner is stopped and must be gone."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.folder = folder
        self.epochs = {0: 1, 1: 1}
        self.numbers = {0: 1, 1: 1}
        self.inbox: list[tuple[int, list[Any]]] = []
        self.ready: dict[str, Any] | None = None
        self._config = config

    def __enter__(self) -> Self:
        self._context = sockets.context()
        self.router = self._open_router()
        ours, theirs = socket.socketpair()
        self.control = Control(ours)
        given = {
            "incarnation": INCARNATION,
            "config": self._config,
            "dir": str(self.folder),
            "fd": theirs.fileno(),
        }
        self.log = (self.folder / "runner.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(given)],
            pass_fds=[theirs.fileno()],
            stdout=self.log,
            stderr=self.log,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self.identity = b"?"
        self.welcome(boot=1)
        return self

    def _open_router(self) -> Any:
        router = sockets.router_socket(self._context)
        router.bind(f"ipc://{self.folder}/back")
        return router

    def __exit__(self, *exc: object) -> None:
        self.control.close()
        try:
            self.process.wait(LIMIT_S)
        finally:
            self.process.kill()
            self.process.wait()
            self.router.close()
            self._context.term()
            self.log.close()

    def restart_router(self) -> None:
        """A new router that knows nobody."""
        self.router.close()
        self.inbox.clear()
        self.router = self._open_router()

    # --- sending ---

    def send(self, partition: int, message: list[Any]) -> None:
        self._send(wire.actor_id(b"P", partition, self.epochs[partition]), message)

    def _send(self, peer: bytes, message: list[Any]) -> None:
        self.router.send(self.identity, sockets.MORE)
        self.router.send(peer + bytes(8) + wire.pack(message), sockets.NOWAIT)

    def welcome(self, boot: int) -> None:
        self.expect("ready", partition=-1)
        self._send(wire.ROUTER_ID, ["welcome", boot, 1, even_map(2)])

    def command(self, *commands: list[Any], partition: int = 0) -> None:
        """Send numbered commands."""
        first = self.numbers[partition]
        self.numbers[partition] += len(commands)
        self.send(partition, ["commands", self.epochs[partition], first, list(commands)])

    def run(
        self,
        run_input: Any,
        *,
        agent: str = "echo",
        run_id: str | None = None,
        attempt: int = 1,
        session: str = "ses_1",
        partition: int = 0,
        **options: Any,
    ) -> str:
        """Send a run command and return the run's id."""
        run_id = run_id or run_id_for(session, os.urandom(16).hex())
        record = {
            "id": session,
            "agent": agent,
            "agent_id": agent,
            "incarnation": 1,
            "context": {},
            "metadata": {},
            "tags": ["a"],
        }
        self.command(["run", run_id, attempt, record, run_input, options], partition=partition)
        return run_id

    # --- receiving ---

    def _receive(self, until_s: float) -> None:
        try:
            self.identity = self.router.recv(sockets.NOWAIT)
            frame = self.router.recv()
        except sockets.Again:
            left_s = until_s - time.monotonic()
            last = repr(self.inbox)[-2000:]
            assert left_s > 0, f"nothing came; the log says: {self.printed()}; inbox ends with: {last}"
            self.router.poll(min(left_s, 0.5) * 1000)
            return
        kind, index, _ = wire.parse_actor_id(frame[:16])
        message = wire.unpack(frame[16:])
        for one in message[1] if message[0] == "many" else [message]:
            for said in one[2] if one[0] == "frame" else [one]:
                self.inbox.append((-1 if kind == b"X" else index, said))

    def expect(self, kind: str, *, partition: int = 0, where: Any = lambda message: True) -> list[Any]:
        """The next message of a kind, from what came already or what comes; it is taken out."""
        until_s = time.monotonic() + LIMIT_S
        while True:
            for i, (index, message) in enumerate(self.inbox):
                if index == partition and message[0] == kind and where(message):
                    del self.inbox[i]
                    return message
            self._receive(until_s)

    def batch(self, run_id: str, n: int | None = None, partition: int = 0) -> list[Any]:
        return self.expect("batch", partition=partition, where=lambda m: m[1] == run_id and n in (None, m[3]))

    def lines(self, run_id: str, count: int) -> tuple[list[str], int]:
        """What a run said until it had said so many lines, and the number of the batch that brought them."""
        text, n = "", 0
        while text.count("\n") < count:
            n += 1
            events = [decode(row) for row in self.batch(run_id, n)[4]]
            text += "".join(e["data"]["content"] for e in events if e["type"] == "message_streamed")
        return text.splitlines(), n

    def follow(
        self, run_id: str, partition: int = 0, attempt: int = 1
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Store every batch of a run to its end; (events, settlement)."""
        events: list[dict[str, Any]] = []
        n = 1
        while True:
            _, _, got, _, rows, settle = self.batch(run_id, n, partition)
            assert got == attempt
            events += [decode(row) for row in rows]
            self.send(partition, ["stored", run_id, attempt, n])
            n += 1
            if settle is not None:
                return events, settle

    def silent(self, kind: str) -> bool:
        """Whether no message of a kind comes over one repetition, which is a second."""
        self.expect("ready", partition=-1)
        self.inbox.clear()
        self.expect("ready", partition=-1)
        self.expect("catalogue", partition=1)
        return not [message for _, message in self.inbox if message[0] == kind]

    def heard(self, kind: str) -> dict[str, Any]:
        """The next message of a kind on the control pipe."""
        until_s = time.monotonic() + LIMIT_S
        while time.monotonic() < until_s:
            for message in self.control.receive():
                if message["t"] == kind:
                    return message
            select.select([self.control], [], [], 0.5)
        raise AssertionError(f"no {kind}")

    def printed(self) -> str:
        return (self.folder / "runner.log").read_text(errors="replace")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)


def decode(row: list[Any]) -> dict[str, Any]:
    """One event of a batch as its map; ts of the row must be the fragment's."""
    code, ts, fragment = row
    event = wire.unpack(wire.map_header(9) + fragment)
    assert event["ts"] == ts
    assert event["type"] == EVENT_TYPES[code]
    return event


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def gone(pid: int) -> bool:
    """Whether a process ended (a zombie did)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def wait_until(condition: Any, what: str = "the condition") -> None:
    until_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < until_s, f"{what} never came"
        time.sleep(0.01)
