"""``mesh partition``: the single writers behind the endpoint."""

from __future__ import annotations

from typing import Any

import click

from mesh.cli import render
from mesh.cli.app import group, shell

COLUMNS = (
    "partition",
    "state",
    "pid",
    "epoch",
    "restarts",
    "routes",
    "sessions",
    "live",
    "queue",
    "last death",
)


@group()
def partition() -> None:
    """The single writers behind the endpoint.

    \b
    Example:
      mesh partition list
      mesh partition of telegram:bot1:room42
    """


def row(info: Any) -> tuple[Any, ...]:
    """A partition as a table's row."""
    return (
        info.index,
        render.state({"state": info.state, "degraded": info.degraded}),
        info.pid,
        info.epoch,
        info.restarts,
        info.routes,
        info.sessions,
        info.live,
        info.queue_depth,
        render.cause(info.cause),
    )


@partition.command("list")
def list_partitions() -> None:
    """List the partitions, dead ones too.

    Example: mesh partition list -o json
    """
    with shell().client() as client:
        infos = client.partitions.list()
    if shell().json:
        return render.emit_json({"items": [info.to_map() for info in infos]})
    return render.table(COLUMNS, (row(info) for info in infos))


@partition.command("of")
@click.argument("key")
def of(key: str) -> None:
    """Print which partition owns a route key or a session id.

    Example: mesh partition of telegram:bot1:room42
    """
    with shell().client() as client:
        index = client.partitions.of(key)
    if shell().json:
        return render.emit_json({"key": key, "partition": index})
    return click.echo(index)


@partition.command("restart")
@click.argument("index", type=click.IntRange(min=0))
def restart(index: int) -> None:
    """Restart a partition, also one that is down; its state comes back from its database.

    Example: mesh partition restart 0
    """
    with shell().client() as client:
        client.partitions.restart(index)
    if shell().json:
        return render.emit_json({"partition": index, "restarted": True})
    return render.say(f"partition {index} restarts")


__all__ = ["COLUMNS", "partition", "row"]
