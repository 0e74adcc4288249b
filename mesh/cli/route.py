"""``mesh route``: where a conversation's replies go."""

from __future__ import annotations

from typing import Any

import click

from mesh.cli import render, values
from mesh.cli.app import group, shell
from mesh.errors import NotFound


@group()
def route() -> None:
    """Where a conversation's replies go. A KEY is channel:bridge:room or channel:bridge:room:thread.

    \b
    Example:
      mesh route set telegram:bot1:room42 -- -100123
      mesh route resolve telegram:bot1:room42:thread7 --fallback lobby
    """


@route.command("set")
@click.argument("key")
@click.argument("value", metavar="ROUTE", callback=values.route)
@click.option(
    "--field",
    "extra",
    multiple=True,
    callback=values.pairs,
    metavar="NAME=VALUE",
    help="A further field of the route; may be repeated.",
)
@click.option("--ttl-ms", type=int, help="How long it is kept; default: the node's [routes] ttl_ms.")
def set_route(key: str, value: dict[str, Any], extra: dict[str, Any], ttl_ms: int | None) -> None:
    """Store where replies go. ROUTE is the external room's id, or a JSON map with external_room_id.

    \b
    Example:
      mesh route set slack:acme:C012 '{"external_room_id": "C012", "team": "T1"}'
    """
    with shell().client() as client:
        client.routes.set(key, value | extra, ttl_ms=ttl_ms)
    if shell().json:
        return render.emit_json({"session_key": key, "route": value | extra})
    return render.say("stored")


@route.command("get")
@click.argument("key")
def get(key: str) -> None:
    """Show the route stored under exactly this key.

    Example: mesh route get telegram:bot1:room42 -o json
    """
    with shell().client() as client:
        record = client.routes.get(key)
    if shell().json:
        return render.emit_json(record.to_map() | {"session_key": key})
    return render.fields([*record.route.items(), *_ages(record)])


@route.command("resolve")
@click.argument("key")
@click.option(
    "--fallback",
    "fallbacks",
    multiple=True,
    callback=values.routes,
    metavar="ROUTE",
    help="A route to use if there is none; in order.",
)
def resolve(key: str, fallbacks: list[dict[str, Any]]) -> None:
    """Find where a reply goes, and say how it was found. In a pipe: the external room's id alone.

    Example: mesh route resolve telegram:bot1:room42:thread7 --fallback lobby
    """
    import sys

    with shell().client() as client:
        found = client.routes.resolve(key, fallbacks)
    if shell().json:
        return render.emit_json(found.to_map())
    if not sys.stdout.isatty():
        return click.echo(str(found.external_room_id))
    return render.fields(found.to_map().items())


@route.command("list")
@click.option("--bridge", "bridge_id", metavar="ID", help="Only routes of this bridge.")
@click.option("--room", "room_id", metavar="ID", help="Only routes of this room, threads included.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="At most so many."
)
@click.option("--cursor", help="Go on behind an earlier page.")
def list_routes(bridge_id: str | None, room_id: str | None, limit: int, cursor: str | None) -> None:
    """List routes.

    Example: mesh route list --bridge bot1
    """
    with shell().client() as client:
        page = client.routes.list(bridge_id=bridge_id, room_id=room_id, limit=limit, cursor=cursor)
    if shell().json:
        return render.emit_json(page.to_map())
    rows = (
        (entry.session_key, entry.route.get("external_room_id"), *(value for _, value in _ages(entry)))
        for entry in page
    )
    render.table(("key", "external room", "age", "left", "provenance"), rows)
    return render.page_rest(page)


@route.command("delete")
@click.argument("key")
def delete(key: str) -> None:
    """Remove the route stored under exactly this key; exit code 4 when there was none.

    Example: mesh route delete telegram:bot1:room42
    """
    with shell().client() as client:
        there = client.routes.delete(key)
    if not there:
        raise NotFound(f"no route under {key!r}")
    if shell().json:
        return render.emit_json({"session_key": key, "deleted": True})
    return render.say("deleted")


@route.command("prune")
def prune() -> None:
    """Remove expired routes now, and print how many they were.

    Example: mesh route prune
    """
    with shell().client() as client:
        result = client.routes.prune()
    if shell().json:
        return render.emit_json(result.to_map())
    click.echo(result.pruned)
    return render.say(f"expired routes removed in {result.partitions} partitions")


def _ages(record: Any) -> tuple[tuple[str, str], ...]:
    return (
        ("age", render.duration(record.age_ms / 1000)),
        ("left", render.duration(record.ttl_left_ms / 1000)),
        ("provenance", str(record.provenance)),
    )


__all__ = ["route"]
