"""``mesh session transcript, run, fork, compact, pin``: what was said, and how it goes on."""

from __future__ import annotations

from typing import Any

import click

from mesh.cli import render, values
from mesh.cli.app import command, shell
from mesh.cli.follow import view_options, waiting_view

MODES = ("auto", "replay", "native", "off")


def _limits(decorated: Any) -> Any:
    options = (
        click.option("--max-messages", type=click.IntRange(min=0), help="The newest so many messages."),
        click.option(
            "--max-tokens", "max_tokens_approx", type=click.IntRange(min=0),
            help="The newest messages of about so many tokens, tool payloads included.",
        ),
        click.option("--max-chars", type=click.IntRange(min=0), help="The same in characters."),
    )
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


def _given(**limits: Any) -> dict[str, Any]:
    return {name: value for name, value in limits.items() if value is not None}


@command(name="transcript")
@click.argument("session_id", metavar="ID")
@_limits
@click.option("--run", "run_id", metavar="RUN", help="Only messages of this run.")
@click.option("--after", type=click.IntRange(min=0), help="Only messages behind this event.")
@click.option("--before", type=click.IntRange(min=1), help="Only messages before this event.")
def transcript(session_id: str, **options: Any) -> None:
    """Print a session's conversation, as an agent that continues it would get it.

    The first column is the seq by which `pin` and `fork --at` name a message.

    Example: mesh session transcript build-42 --max-tokens 2000
    """
    with shell().client() as client:
        found = client.sessions.transcript(session_id, **_given(**options))
    if shell().json:
        return render.emit_json(found.to_map())
    rows = ((m.metadata.get("sequence_number"), m.role, m.tool_name, _text(m)) for m in found.messages)
    render.table(("seq", "role", "tool", "text"), rows)
    if found.metadata.get("omitted"):
        render.say(f"{found.metadata['omitted']} older messages are left out")
    return None


def _text(message: Any) -> Any:
    if message.content is not None:
        return message.content
    return message.tool_input if message.role == "assistant" else message.tool_output


@command(name="run")
@click.argument("session_id", metavar="ID")
@click.argument("text", nargs=-1, required=True)
@click.option("--agent", metavar="NAME", help="Another agent executes this run; default: the session's.")
@click.option(
    "--continue", "mode", type=click.Choice(MODES),
    help="Give the agent what was said before: replay it, have its provider resume its own session (native), "
    "or whichever is possible (auto); default: as the agent's table says.",
)
@_limits
@click.option("--wait", is_flag=True, help="Stream the answer, as `mesh run` does.")
@view_options
def run(
    session_id: str,
    text: tuple[str, ...],
    agent: str | None,
    mode: str | None,
    wait: bool,
    renderer: str | None,
    tool_output: str | None,
    sinks: tuple[str, ...],
    **limits: Any,
) -> None:
    """Run a prompt in a session with options; print the run's id, or with --wait its answer.

    \b
    Example:
      mesh session run build-42 "and now?" --continue auto --agent reviewer --wait
    """
    words = values.prompt_text(text)
    view = waiting_view(wait, renderer, tool_output, sinks)
    with view as shown, shell().client() as client:
        after = client.sessions.get(session_id).seq if wait else 0
        submitted = client.runs.submit(
            session_id, words, agent=agent, continuation=False if mode == "off" else mode,
            continuation_opts=_given(**limits) or None,
        )
        if shown is not None:
            from mesh.cli.run import follow_run

            raise click.exceptions.Exit(follow_run(client, session_id, submitted.id, shown, after=after))
    if shell().json:
        return render.emit_json(submitted.to_map())
    click.echo(submitted.id)
    render.say(f"{submitted.status}; follow it with: mesh session attach {session_id}")
    return None


@command(name="fork")
@click.argument("session_id", metavar="ID")
@click.option("--at", "at_seq", type=click.IntRange(min=0), help="Up to this event; default: the newest.")
@click.option("--id", "new_id", metavar="ID", help="The fork's id; default: a new one.")
@click.option("--agent", metavar="NAME", help="Another agent for the fork.")
def fork(session_id: str, at_seq: int | None, new_id: str | None, agent: str | None) -> None:
    """Start a session that begins with the conversation of another one, and print its id.

    Example: mesh session fork build-42 --at 17
    """
    with shell().client() as client:
        session = client.sessions.fork(session_id, at_seq, new_id=new_id, agent=agent)
    if shell().json:
        return render.emit_json(session.to_map())
    click.echo(session.id)
    render.say(f"talk to it with: mesh session run {session.id} TEXT --continue auto --wait")
    return None


@command(name="compact")
@click.argument("session_id", metavar="ID")
@click.option("--summary", metavar="TEXT", help="The summary; default: an agent makes it.")
@click.option("--agent", metavar="NAME", help="Who makes it; default: the session's agent.")
@click.option("--instructions", metavar="TEXT", help="What that agent is asked.")
@click.option("--keep-last", type=click.IntRange(min=0), default=0, help="Leave so many messages alone.")
@click.option("--up-to", type=click.IntRange(min=0), help="Replace messages up to this event; default: all.")
def compact(session_id: str, **options: Any) -> None:
    """Let a summary stand for a session's old messages; pinned ones stay, and so does the log.

    Example: mesh session compact build-42 --agent summariser --keep-last 4
    """
    with shell().client() as client:
        event = client.sessions.compact(session_id, **options)
    if shell().json:
        return render.emit_json(event.to_map())
    render.echo(event.data["summary"])
    render.say(f"it stands for everything up to event {event.data['up_to']}")
    return None


@command(name="pin")
@click.argument("session_id", metavar="ID")
@click.argument("seq", type=click.IntRange(min=1))
@click.option("--off", is_flag=True, help="Take it back.")
def pin(session_id: str, seq: int, off: bool) -> None:
    """Have a message stay in every transcript, whatever is left out or compacted.

    Example: mesh session pin build-42 3
    """
    with shell().client() as client:
        client.sessions.pin(session_id, seq, pinned=not off)
    if shell().json:
        render.emit_json({"session_id": session_id, "seq": seq, "pinned": not off})
    else:
        render.say(f"message {seq} is {'not pinned any more' if off else 'pinned'}")


COMMANDS = (transcript, run, fork, compact, pin)

__all__ = ["COMMANDS", "MODES", "compact", "fork", "pin", "run", "transcript"]
