"""``mesh runner``: the processes that host agents."""

from __future__ import annotations

import click

from mesh.cli import render
from mesh.cli.app import group, shell

COLUMNS = ("runner", "agent", "state", "pid", "restarts", "last death")


@group()
def runner() -> None:
    """The processes that host agents.

    \b
    Example:
      mesh runner list
      mesh runner restart 0
    """


@runner.command("list")
def list_runners() -> None:
    """List the runners, dead ones too: first those that agents share, then the isolated agents' own.

    Example: mesh runner list -o json
    """
    with shell().client() as client:
        found = [child for child in client.status()["children"] if child["kind"] == "runner"]
    if shell().json:
        return render.emit_json({"items": found})
    rows = (
        (c["index"], c.get("agent"), c["state"], c["pid"], c["restarts"], render.cause(c["cause"]))
        for c in found
    )
    return render.table(COLUMNS, rows)


@runner.command("restart")
@click.argument("index", type=click.IntRange(min=0))
def restart(index: int) -> None:
    """Restart a runner, also one that is down. What it executes is cancelled, its sessions stay.

    Example: mesh runner restart 0
    """
    with shell().client() as client:
        client.restart_runner(index)
    if shell().json:
        return render.emit_json({"runner": index, "restarted": True})
    return render.say(f"runner {index} restarts")


__all__ = ["COLUMNS", "runner"]
