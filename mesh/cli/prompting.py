"""The commands of ``mesh session`` about prompts: what is said to it, what waits, and stopping."""

from __future__ import annotations

from typing import Any

import click

from mesh.cli import render, values
from mesh.cli.app import command, shell
from mesh.cli.follow import view_options, waiting_view

QUEUES = ("follow_up", "steering")
ON_BUSY = ("enqueue", "reject", "interrupt", "rollback")


@command()
@click.argument("session_id", metavar="ID")
@click.argument("text", nargs=-1, required=True)
@click.option(
    "--queue", type=click.Choice(QUEUES), default="follow_up", show_default=True,
    help="While a run executes: wait for a turn, or go into that run when its agent takes it.",
)
@click.option(
    "--on-busy", type=click.Choice(ON_BUSY), default="enqueue", show_default=True,
    help="While a run executes: wait, be refused, or cancel it and be next (rollback: and forget it).",
)
@click.option("--wait", is_flag=True, help="Stream the answer, as `mesh run` does.")
@view_options
def prompt(
    session_id: str, text: tuple[str, ...], queue: str, on_busy: str, wait: bool, **view: Any
) -> None:
    """Give a session work; print the run's id, or with --wait its answer. TEXT `-` reads standard input.

    Example: mesh session prompt build-42 "make test" --wait
    """
    words = values.prompt_text(text)
    with waiting_view(wait, **view) as shown, shell().client() as client:
        after = client.sessions.get(session_id).seq if wait else 0
        given = client.sessions.prompt(session_id, words, queue=queue, on_busy=on_busy)
        if shown is not None:
            from mesh.cli.run import follow_run

            raise click.exceptions.Exit(follow_run(client, session_id, given.run_id, shown, after=after))
    if shell().json:
        return render.emit_json(given.to_map())
    click.echo(given.run_id)
    waiting = {"steering": "the run that executes may take it", "follow_up": "queued behind another run"}
    render.say(waiting.get(given.queue or "", f"follow it with: mesh session attach {session_id}"))
    return None


def _show(prompts: Any) -> None:
    if shell().json:
        return render.emit_json([item.to_map() for item in prompts])
    render.table(
        ("run", "queue", "since", "text"),
        ((item.run_id, item.queue, render.clock(item.queued_at), item.text) for item in prompts),
    )
    return None


@command()
@click.argument("session_id", metavar="ID")
def queued(session_id: str) -> None:
    """Show the prompts that wait in a session.

    Example: mesh session queued build-42
    """
    with shell().client() as client:
        _show(client.sessions.queued(session_id))


@command()
@click.argument("session_id", metavar="ID")
def recall(session_id: str) -> None:
    """Take back the prompts that wait in a session: they are cancelled, and printed.

    Example: mesh session recall build-42 -o json
    """
    with shell().client() as client:
        _show(client.sessions.recall(session_id))


@command()
@click.argument("session_id", metavar="ID")
def clear(session_id: str) -> None:
    """Cancel the prompts that wait in a session.

    Example: mesh session clear build-42
    """
    with shell().client() as client:
        count = client.sessions.clear(session_id)
    if shell().json:
        render.emit_json({"session_id": session_id, "cancelled": count})
    else:
        render.say(f"{session_id}: {count} cancelled")


@command()
@click.argument("session_id", metavar="ID")
def interrupt(session_id: str) -> None:
    """Cancel what a session executes now; what waits there is next.

    Example: mesh session interrupt build-42
    """
    with shell().client() as client:
        ids = client.sessions.interrupt(session_id)
    if shell().json:
        return render.emit_json({"session_id": session_id, "interrupted": list(ids)})
    for run_id in ids:
        click.echo(run_id)
    return None


@command()
@click.argument("session_id", metavar="[ID]", required=False)
@click.option(
    "--within", "limit_s", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", default=60.0,
    show_default=True, help="Give up after this time; exit code 5. Nothing is cancelled.",
)
def drain(session_id: str | None, limit_s: float) -> None:
    """Wait until a session (without ID: the whole node) has nothing to do.

    Example: mesh session drain --within 600 && mesh down
    """
    with shell().client() as client:
        if session_id is None:
            client.drain(timeout_s=limit_s)
        else:
            client.sessions.drain(session_id, timeout_s=limit_s)
    if shell().json:
        render.emit_json({"session_id": session_id, "done": "drained"})


COMMANDS = (prompt, queued, recall, clear, interrupt, drain)

__all__ = ["COMMANDS"]
