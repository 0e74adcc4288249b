"""The commands of ``mesh session`` about rights: who drives a session, and its token."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from mesh.cli import render
from mesh.cli.app import command, shell
from mesh.cli.approval import who

if TYPE_CHECKING:
    import mesh

#: After so long without an event it is asked whether anybody is there, and so often while nobody is.
SILENCE_S, AGAIN_S = 5.0, 0.5
TAKEOVER_HELP = "Take the right from whoever has it; he is told."
BY_HELP = "The name others see; default: your user name."


@command()
@click.argument("session_id", metavar="ID")
@click.option("--ttl", "ttl_s", type=click.FloatRange(1, 86_400), default=600.0, show_default=True,
              metavar="SECONDS", help="How long it lasts after the last command that used it.")
@click.option("--takeover", is_flag=True, help=TAKEOVER_HELP)
@click.option("--by", metavar="NAME", help=BY_HELP)
def claim(session_id: str, ttl_s: float, takeover: bool, by: str | None) -> None:
    """Drive a session: nobody else may prompt it, stop what it does or answer what it asks. Prints the key.

    Commands that find the key in $MESH_DRIVER act with it.

    Example: export MESH_DRIVER=$(mesh session claim build-42 --by ann)
    """
    with shell().client() as client:
        claimed = client.sessions.claim(session_id, by=by or who(), ttl_s=ttl_s, takeover=takeover)
    if shell().json:
        return render.emit_json(claimed.to_map())
    click.echo(claimed.key)
    render.say(f"export MESH_DRIVER={claimed.key} has your commands act with it")
    return None


@command()
@click.argument("session_id", metavar="ID")
@click.option(
    "--key", envvar="MESH_DRIVER", required=True, help="What `claim` printed; default: $MESH_DRIVER."
)
def release(session_id: str, key: str) -> None:
    """Give the right to drive a session back.

    Example: mesh session release build-42
    """
    with shell().client() as client:
        had = client.sessions.release(session_id, key)
    if shell().json:
        render.emit_json({"session_id": session_id, "released": had})
    else:
        render.say(f"{session_id}: {'released' if had else 'the key was not the driver'}")


@command()
@click.argument("session_id", metavar="ID")
def protect(session_id: str) -> None:
    """Give a session a new token and print it, this once; a former one is void ($MESH_TOKEN says that).

    Example: export MESH_TOKEN=$(mesh session protect build-42)
    """
    import mesh

    token = mesh.new_token()
    with shell().client() as client:
        client.sessions.set_token(session_id, token)
    show_token(session_id, token)


@command()
@click.argument("session_id", metavar="ID")
def unprotect(session_id: str) -> None:
    """Take a session's token away: it is everybody's again.

    Example: mesh session unprotect build-42
    """
    with shell().client() as client:
        client.sessions.set_token(session_id, None)
    if shell().json:
        render.emit_json({"session_id": session_id, "protected": False})
    else:
        render.say(f"{session_id}: everybody's")


def show_token(session_id: str, token: str) -> None:
    """Print a token; there is no other chance."""
    if shell().json:
        return render.emit_json({"session_id": session_id, "token": token})
    click.echo(token)
    render.say(f"kept nowhere else; export MESH_TOKEN={token} has your commands show it")
    return None


def tail(
    client: mesh.Client, session_id: str, after: int, *, drive: bool, takeover: bool, by: str | None
) -> Iterator[mesh.Event]:
    """The events behind ``after``. As driver, each line of standard input is a prompt meanwhile."""
    if not drive:
        yield from _outliving(client, session_id, after, None)
        return
    with client.sessions.attach(
        session_id, role="driver", after=after, by=by or who(), takeover=takeover
    ) as seat:
        threading.Thread(target=_say, args=(seat,), name="stdin", daemon=True).start()
        yield from _outliving(client, session_id, after, seat)


def _outliving(client: mesh.Client, session_id: str, after: int, seat: Any) -> Iterator[mesh.Event]:
    """What is said, over any silence. When nothing comes because nobody answers, that is told, once."""
    from mesh.errors import DeadlineExceeded

    while True:
        try:
            for event in (
                client.sessions.stream(session_id, after=after, timeout_s=SILENCE_S)
                if seat is None else seat.stream(timeout_s=SILENCE_S)
            ):
                after = event.seq
                yield event
            return
        except DeadlineExceeded:
            _await_answer(client, session_id)


def _await_answer(client: mesh.Client, session_id: str) -> None:
    """Return as soon as the node answers for the session; until then, and not for ever unsaid, wait."""
    from mesh.errors import DeadlineExceeded, NodeUnreachable, Unavailable

    told = False
    while True:
        try:
            client.sessions.get(session_id)
        except (DeadlineExceeded, NodeUnreachable, Unavailable) as error:
            if not told:
                render.echo(f"waiting: {error.message} (Ctrl-C detaches)", err=True)
            told = True
            time.sleep(AGAIN_S)
        else:
            if told:
                click.echo("it answers again", err=True)
            return


def _say(seat: Any) -> None:
    """Prompt with what is typed, until it ends. A line that is refused is told and is not lost in silence."""
    from mesh.errors import ClientClosed, MeshError

    for line in sys.stdin:
        try:
            if line.strip():
                seat.prompt(line.rstrip("\n"))
        except ClientClosed:
            return
        except MeshError as error:
            render.echo(f"not said: {error}", err=True)


COMMANDS = (claim, release, protect, unprotect)

__all__ = ["BY_HELP", "COMMANDS", "TAKEOVER_HELP", "show_token", "tail"]
