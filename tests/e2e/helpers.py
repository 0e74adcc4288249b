"""What the e2e tests share: waiting for a condition, finding processes and ports."""

from __future__ import annotations

import random
import socket

from conditions import wait_for

import mesh


def pids(client: mesh.Client, kind: str) -> dict[int, int]:
    """index -> pid of the ready children of a kind."""
    return {
        child["index"]: child["pid"]
        for child in client.status()["children"]
        if child["kind"] == kind and child["state"] == "ready"
    }


def free_ports() -> int:
    """A port that is free together with the next one, below those that the kernel gives to connections."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        try:
            for number in (port, port + 1):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port


__all__ = ["free_ports", "pids", "wait_for"]
