"""``mesh listen``: what happens on the node, as it happens."""

from __future__ import annotations

import click

from mesh.cli import render
from mesh.cli.app import command, shell


@command()
@click.argument("topics", nargs=-1, required=True, metavar="TOPIC...")
@click.option(
    "--after", metavar="CURSOR", help="Go on behind a message that was seen earlier; nothing is missed."
)
@click.option("-n", "--count", type=click.IntRange(min=1), help="End after so many messages.")
def listen(topics: tuple[str, ...], after: str | None, count: int | None) -> None:
    """Print what happens on the node, live.

    Every message whose topic begins with one of TOPIC, without gaps, until Ctrl-C. Topics begin with
    lifecycle., session.ID., node. or route.

    Example: mesh listen lifecycle. node. -o json
    """
    cursor, seen = after, 0
    with shell().client() as client, client.listen(*topics, after=after) as listener:
        render.say(f"listening to {' '.join(topics)}; Ctrl-C ends")
        try:
            for note in listener:
                cursor, seen = note.cursor, seen + 1
                if shell().json:
                    render.emit_json({"topic": note.topic, "data": note.data, "cursor": note.cursor})
                else:
                    render.echo(f"{note.topic}\t{render.to_json(note.data)}")
                if seen == count:
                    break
        except KeyboardInterrupt:
            if cursor:
                render.say(f"go on with: mesh listen {' '.join(topics)} --after '{cursor}'")


__all__ = ["listen"]
