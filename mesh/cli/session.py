"""``mesh session``: conversations that the node keeps."""

from __future__ import annotations

from typing import Any

import click

from mesh.cli import driving, keep, prompting, render, transcript, values, verbs
from mesh.cli.app import group, shell
from mesh.cli.calling import as_called
from mesh.cli.follow import view_options

STATUSES = ("pending", "active", "paused", "completed", "cancelled", "failed")


@group()
def session() -> None:
    """Conversations that the node keeps.

    \b
    Example:
      id=$(mesh session start shell)
      mesh session prompt $id "uname -a" --wait
    """


def _creation(command: Any) -> Any:
    options = (
        click.option("--id", "session_id", metavar="ID", help="The id to use; default: a new one."),
        click.option(
            "--agent-id", metavar="NAME", help="The name under which `session list --agent-id` finds it."
        ),
        click.option(
            "--context",
            multiple=True,
            callback=values.pairs,
            metavar="NAME=VALUE",
            help="What the agent is told; may be repeated.",
        ),
        click.option(
            "--metadata",
            multiple=True,
            callback=values.pairs,
            metavar="NAME=VALUE",
            help="Stored with the session; may be repeated.",
        ),
        click.option("--tag", "tags", multiple=True, metavar="TAG", help="May be repeated."),
        click.option(
            "--slots", type=click.IntRange(min=1), help="Runs it executes at a time; default: sessions.slots."
        ),
        click.option("--parent", "parent_session_id", metavar="ID", help="The session this one belongs to."),
        click.option("--protect", is_flag=True, help="Give it a token; it is printed below the id."),
    )
    for option in reversed(options):
        command = option(command)
    return click.argument("agent")(command)


def _fields(options: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": options["session_id"],
        "agent_id": options["agent_id"],
        "context": options["context"] or None,
        "metadata": options["metadata"] or None,
        "tags": options["tags"],
        "parent_session_id": options["parent_session_id"],
        "slots": options["slots"],
        "token": options["token"],
    }


def _token(options: dict[str, Any]) -> None:
    """Mint the token that ``--protect`` wants."""
    import mesh

    options["token"] = mesh.new_token() if options["protect"] else None


def _show_new(record: Any, token: str | None) -> None:
    if shell().json:
        return render.emit_json(record.to_map() | ({"token": token} if token else {}))
    click.echo(record.id)
    if token:
        click.echo(token)
    render.say(f"{record.status}; talk to it with: mesh session prompt {record.id} TEXT")
    return None


@session.command("create")
@_creation
def create(agent: str, **options: Any) -> None:
    """Store a session for AGENT, pending, and print its id.

    Example: mesh session create echo --tag demo --context user=ann
    """
    _token(options)
    with shell().client() as client:
        _show_new(client.sessions.create(agent, **_fields(options)), options["token"])


@session.command("start")
@_creation
def start(agent: str, **options: Any) -> None:
    """Store a session for AGENT, active and live, and print its id.

    Example: mesh session start shell --id build-42
    """
    _token(options)
    with shell().client() as client:
        _show_new(client.sessions.start(agent, **_fields(options)), options["token"])


@session.command("list")
@click.option("--status", type=click.Choice(STATUSES), help="Only sessions in this status.")
@click.option("--agent-id", metavar="NAME", help="Only sessions under this name.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Only sessions with all these tags.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="At most so many."
)
@click.option("--cursor", help="Go on behind an earlier page.")
def list_sessions(
    status: str | None, agent_id: str | None, tags: tuple[str, ...], limit: int, cursor: str | None
) -> None:
    """List sessions.

    Example: mesh session list --status active -o json
    """
    with shell().client() as client:
        page = client.sessions.list(
            status=status, agent_id=agent_id, tags=tags or None, limit=limit, cursor=cursor
        )
    if shell().json:
        return render.emit_json(page.to_map())
    rows = (
        (s.id, s.agent, s.status, s.handle.pid if s.handle else None, s.seq, render.clock(s.updated_at))
        for s in page
    )
    render.table(("session", "agent", "status", "pid", "events", "updated"), rows)
    render.page_rest(page)
    return None


@session.command("show")
@click.argument("session_id", metavar="ID")
def show(session_id: str) -> None:
    """Show a session and its runs.

    Example: mesh session show build-42
    """
    from mesh.cli.follow import used

    with shell().client() as client:
        record, runs = client.sessions.get(session_id), client.sessions.runs(session_id)
    if shell().json:
        return render.emit_json(record.to_map() | {"runs": [run.to_map() for run in runs]})
    shown = record.to_map() | {
        "created_at": render.clock(record.created_at),
        "updated_at": render.clock(record.updated_at),
    }
    render.fields(shown.items())
    for run in runs:
        error = f"  {run.error.get('message', '')}" if run.error else ""
        told = f"  {used(run)}" if used(run) else ""
        render.echo(f"run {run.id}  {run.status}  {render.clock(run.created_at)}{told}{error}")
    return None


@session.command("attach")
@click.argument("session_id", metavar="ID")
@click.option(
    "--after", type=click.IntRange(min=0), help="Begin behind this event; default: now. 0 is the beginning."
)
@click.option("--drive", is_flag=True, help="Claim it meanwhile; each line you type is a prompt.")
@click.option("--takeover", is_flag=True, help=driving.TAKEOVER_HELP)
@click.option("--by", metavar="NAME", help=driving.BY_HELP)
@view_options
def attach(
    session_id: str,
    after: int | None,
    drive: bool,
    takeover: bool,
    by: str | None,
    renderer: str | None,
    tool_output: str | None,
    sinks: tuple[str, ...],
) -> None:
    """Follow a session, live. Ctrl-C detaches and cancels nothing; the line it prints goes on where you were.

    \b
    Example:
      mesh session attach build-42 --after 0
      mesh session attach build-42 --drive
      mesh session attach build-42 --render compact --sink file:build.log
    """
    from mesh.cli.follow import ENDED, open_view, show

    with shell().client() as client:
        record = client.sessions.get(session_id)
        seen = record.seq if after is None else after
        over = record.status in ("completed", "cancelled", "failed")
        if over and seen >= record.seq:
            return render.say(f"the session is {record.status}; see it all with --after 0")
        view = open_view(("studio", "verbose"), renderer, tool_output, sinks)
        try:
            for event in driving.tail(
                client, session_id, seen, drive=drive or takeover, takeover=takeover, by=by
            ):
                show(view, event)
                seen = event.seq
                if event.type in ENDED and (not over or event.seq >= record.seq):
                    break
        except KeyboardInterrupt:
            view.finish()
            on = f"detached; go on with: mesh session attach {session_id} --after {seen}"
            click.echo(as_called(on), err=True)
        finally:
            view.finish()
    return None


@session.command("events")
@click.argument("session_id", metavar="ID")
@click.option("--run", "run_id", metavar="RUN", help="Only events of this run.")
@click.option(
    "--type", "types", multiple=True, metavar="TYPE",
    help="Only events of this type, such as run_completed; may be repeated.",
)
@values.time_option("since", "Only then or later: 2026-01-31, 2026-01-31T12:00, or seconds since 1970.")
@values.time_option("until", "Only then or earlier.")
@click.option("--after", type=click.IntRange(min=0), help="Only events behind this one.")
@click.option("--before", type=click.IntRange(min=1), help="Only events before this one.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many; default: all.")
def events(session_id: str, types: tuple[str, ...], **filters: Any) -> None:
    """Print a session's log. With -o json: one event per line.

    \b
    Example:
      mesh session events build-42 --type run_failed -o json
      mesh session events build-42 --since 2026-01-31T12:00 --until 2026-01-31T13:00
    """
    with shell().client() as client:
        found = client.sessions.events(session_id, type=types or None, **filters)
    if shell().json:
        for event in found:
            render.emit_json(event.to_map())
        return
    rows = ((e.seq, render.clock(e.ts), e.type, e.run_id, e.data) for e in found)
    render.table(("seq", "time", "type", "run", "data"), rows)


for _command in (
    *verbs.COMMANDS, *prompting.COMMANDS, *driving.COMMANDS, *transcript.COMMANDS, *keep.COMMANDS
):
    session.add_command(_command)

__all__ = ["session"]
