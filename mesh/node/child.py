"""What a child of the supervisor is given, and its end of the control pipe.

A child's ``main(child)`` serves until it is told to stop or the supervisor is gone.
"""

from __future__ import annotations

import json
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.config import NodeConfig

#: What may wait on either side of the pipe. More means that the other side hangs, or is not one of us.
WAITING_BYTES_MAX = 4 * 1024 * 1024


class Control:
    """One end of the pipe between supervisor and child: JSON lines (``core/mailbox.py`` lists them).

    Sending is safe from several threads, receiving is for one. A forked child makes no use of an end that
    it inherited from its parent.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._in = bytearray()
        self._out = bytearray()
        self._lock = threading.Lock()
        self._ended = False  #: nothing more will come in
        self.closed = False

    def fileno(self) -> int:
        """For a poller; readable means messages or the other side's death."""
        return self._sock.fileno()

    def send(self, t: str, **fields: Any) -> bool:
        """Send one message; what the pipe cannot take now waits for the next ``send`` or ``flush``.

        False when it was not taken: the other side is gone (``closed`` is set), or so much waits already
        that it must be hanging, which its supervisor notices by other means.
        """
        line = json.dumps({"t": t, **fields}).encode() + b"\n"
        with self._lock:
            if self.closed or len(self._out) + len(line) > WAITING_BYTES_MAX:
                return False
            self._out += line
            self._drain()
            return not self.closed

    def flush(self) -> None:
        """Send what waits, as far as the pipe takes it without blocking."""
        with self._lock:
            self._drain()

    def receive(self) -> list[dict[str, Any]]:
        """All messages that are there, without waiting; at the other side's death ``closed`` is set.

        Raises:
            ValueError: the other side sent what is not a message.
        """
        while not self._ended:
            try:
                chunk = self._sock.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            if not chunk:
                self._ended = self.closed = True
            self._in += chunk
        *lines, rest = bytes(self._in).split(b"\n")
        self._in = bytearray(rest)
        if len(rest) > WAITING_BYTES_MAX:
            raise ValueError(f"a message of more than {WAITING_BYTES_MAX} bytes")
        return [json.loads(line) for line in lines if line]

    def close(self) -> None:
        """Close this end; the other side sees it at once."""
        self._ended = self.closed = True
        self._sock.close()

    def _drain(self) -> None:
        while self._out and not self.closed:
            try:
                del self._out[: self._sock.send(self._out)]
            except BlockingIOError:
                return
            except OSError:
                self.closed = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """Everything a child's ``main`` needs. Made by the supervisor, before it forks."""

    name: str
    kind: str
    index: int
    incarnation: int  #: grows with every start of this child, over restarts of the node too
    node_boot: int  #: number of this life of the node, from 1
    config: NodeConfig
    data_dir: Path
    runtime_dir: Path
    slot_map: bytes
    map_version: int
    control: Control
    address: str = ""  #: (router) the tcp endpoint of its predecessor in this life: bind there again,
    feed: str = ""  #: and the feed's, so that remote clients find the new one where the old one was
    agent: str | None = None  #: of a runner: whose alone it is

    @property
    def title(self) -> str:
        """What people call it."""
        return self.name if self.agent is None else f"{self.name} (agent {self.agent})"

    @property
    def back_endpoint(self) -> str:
        """Where actors connect their mailbox."""
        return f"ipc://{self.runtime_dir}/back"

    @property
    def front_endpoint(self) -> str:
        """Where local clients connect."""
        return f"ipc://{self.runtime_dir}/front"

    @property
    def feed_in_endpoint(self) -> str:
        """Where partitions publish."""
        return f"ipc://{self.runtime_dir}/pub"

    @property
    def feed_endpoint(self) -> str:
        """Where local listeners subscribe."""
        return f"ipc://{self.runtime_dir}/feed"


__all__ = ["WAITING_BYTES_MAX", "Child", "Control"]
