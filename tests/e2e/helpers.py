"""What the e2e tests share: waiting for a condition, finding processes."""

from __future__ import annotations

from conditions import wait_for

import mesh


def pids(client: mesh.Client, kind: str) -> dict[int, int]:
    """index -> pid of the ready children of a kind."""
    return {
        child["index"]: child["pid"]
        for child in client.status()["children"]
        if child["kind"] == kind and child["state"] == "ready"
    }


__all__ = ["pids", "wait_for"]
