"""What a child of the supervisor is given, and its end of the control pipe.

A child's ``main(child)`` serves until it is told to stop or the supervisor is gone.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.config import NodeConfig


class Control:
    """One end of the pipe between supervisor and child: JSON lines (``core/mailbox.py`` lists them)."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._in = bytearray()
        self.closed = False

    def fileno(self) -> int:
        """For a poller; readable means messages or the other side's death."""
        return self._sock.fileno()

    def send(self, t: str, **fields: Any) -> None:
        """Send one message. A full pipe means that the other side hangs: its supervisor will notice, so
        the message is dropped; a closed one sets ``closed``."""
        try:
            self._sock.send(json.dumps({"t": t, **fields}).encode() + b"\n")
        except BlockingIOError:
            return
        except OSError:
            self.closed = True

    def receive(self) -> list[dict[str, Any]]:
        """All messages that are there, without waiting; at the other side's death ``closed`` is set."""
        while not self.closed:
            try:
                chunk = self._sock.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            if not chunk:
                self.closed = True
            self._in += chunk
        *lines, rest = bytes(self._in).split(b"\n")
        self._in = bytearray(rest)
        return [json.loads(line) for line in lines if line]

    def close(self) -> None:
        """Close this end; the other side sees it at once."""
        self.closed = True
        self._sock.close()


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


__all__ = ["Child", "Control"]
