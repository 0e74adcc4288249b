"""``mesh session delete|undelete|stats|export|import``: what stays of sessions, and what leaves the node."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mesh.cli import render
from mesh.cli.app import command, shell
from mesh.cli.recording import write_whole
from mesh.errors import NotFound


@command()
@click.argument("session_id", metavar="ID")
@click.option("--hard", is_flag=True, help="Forget it, with its runs and events, instead of hiding it.")
def delete(session_id: str, hard: bool) -> None:
    """Hide a session until `undelete`, or forget it. One that is live or has a run is refused: stop it first.
    Exit code 4 when there was none.

    Example: mesh session delete build-42 --hard
    """
    with shell().client() as client:
        found = client.sessions.delete(session_id, hard=hard)
    if not found:
        raise NotFound(f"no session {session_id!r}", code="session_not_found")
    if shell().json:
        return render.emit_json({"session_id": session_id, "deleted": True, "hard": hard})
    return render.say(f"{session_id}: {'forgotten' if hard else 'deleted; undelete brings it back'}")


@command()
@click.argument("session_id", metavar="ID")
def undelete(session_id: str) -> None:
    """Take back a delete that was not --hard.

    Example: mesh session undelete build-42
    """
    with shell().client() as client:
        record = client.sessions.undelete(session_id)
    if shell().json:
        return render.emit_json(record.to_map())
    return render.say(f"{session_id}: {record.status}")


@command()
@click.argument("session_id", metavar="ID")
def stats(session_id: str) -> None:
    """What a session's log and runs add up to.

    Example: mesh session stats build-42 -o json
    """
    with shell().client() as client:
        found = client.sessions.stats(session_id).to_map()
    if shell().json:
        return render.emit_json(found)
    for name in ("first_event_at", "last_event_at"):
        found[name] = render.clock(found[name])
    return render.fields(found.items())


@command()
@click.argument("session_id", metavar="ID")
@click.argument("file", default="-", metavar="[FILE]")
def export(session_id: str, file: str) -> None:
    """Write a session as JSON lines to FILE, or to standard output: itself, its runs, its events, an end.

    Example: mesh session export build-42 build-42.jsonl
    """
    with shell().client() as client:
        lines = client.sessions.export(session_id)
        if file == "-":
            for line in lines:
                click.echo(line)
            return
        count = write_whole(Path(file), lines)
    _said({"session_id": session_id, "file": file, "lines": count}, f"{count} lines in {file}")


@command(name="import")
@click.argument("file", default="-", metavar="[FILE]")
@click.option("--id", "new_id", metavar="ID", help="Another id for it; `new` picks one.")
def import_(file: str, new_id: str | None) -> None:
    """Take in an exported session from FILE, or from standard input, and print its id.

    It appears whole or not at all. An id that is taken is refused: give another one.

    Example: mesh session import build-42.jsonl --id build-42-copy
    """
    source: Any = sys.stdin if file == "-" else file
    with shell().client() as client:
        record = client.sessions.import_(source, new_id=True if new_id == "new" else new_id)
    if shell().json:
        return render.emit_json(record.to_map())
    click.echo(record.id)
    return render.say(f"{record.seq} events; see it with: mesh session show {record.id}")


def _said(values: dict[str, Any], text: str) -> None:
    if shell().json:
        render.emit_json(values)
    else:
        render.say(text)


COMMANDS = (delete, undelete, stats, export, import_)

__all__ = ["COMMANDS"]
