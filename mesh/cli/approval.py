"""``mesh approval``: what runs ask humans, and the answers."""

from __future__ import annotations

import getpass
import json
from typing import Any

import click

from mesh.cli import render
from mesh.cli.app import group, shell

#: How much of an input is shown in the table; ``-o json`` shows all.
INPUT_CHARS = 60


@group()
def approval() -> None:
    """See what runs ask before they go on, and answer.

    \b
    Example:
      mesh approval list
      mesh approval approve RUN CALL --scope turn
      mesh approval deny RUN CALL "not on production"
    """


def who() -> str | None:
    """The name in the log when ``--by`` is not given."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without an entry
        return None


@approval.command("list")
@click.option("--session", "session_id", metavar="ID", help="Of one session only.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="How many.")
@click.option("--cursor", metavar="CURSOR", help="Go on where the last page ended.")
def list_(session_id: str | None, limit: int, cursor: str | None) -> None:
    """What is open, oldest first.

    Example: mesh approval list --session build-42
    """
    with shell().client() as client:
        page = client.approvals.list(session_id, limit=limit, cursor=cursor)
    if shell().json:
        render.emit_json(page.to_map())
        return
    render.table(("run", "call", "tool", "why", "asked", "input"), (
        (a.run_id, a.tool_call_id, a.tool_name or "-", a.violation_kind, render.clock(a.asked_at),
         json.dumps(a.tool_input, ensure_ascii=False)[:INPUT_CHARS])
        for a in page
    ))
    render.page_rest(page)


def _show(decided: Any) -> None:
    if shell().json:
        render.emit_json(decided.to_map())
    else:
        word = "approved" if decided.approved else "denied"
        render.say(f"{decided.tool_call_id}: {word} by {decided.by or 'a client'}")


@approval.command("approve")
@click.argument("run_id", metavar="RUN")
@click.argument("tool_call_id", metavar="CALL")
@click.option("--scope", type=click.Choice(("once", "turn", "session")), default="once", show_default=True,
              help="This call, this tool in this run, or this tool in the session's later runs too.")
@click.option("--by", metavar="NAME", help="Who decides; default: your user name.")
def approve(run_id: str, tool_call_id: str, scope: str, by: str | None) -> None:
    """Let a run go on.

    Example: mesh approval approve $run t1 --scope turn
    """
    with shell().client() as client:
        _show(client.approvals.approve(run_id, tool_call_id, scope=scope, by=by or who()))


@approval.command("deny")
@click.argument("run_id", metavar="RUN")
@click.argument("tool_call_id", metavar="CALL")
@click.argument("reason", required=False)
@click.option("--by", metavar="NAME", help="Who decides; default: your user name.")
def deny(run_id: str, tool_call_id: str, reason: str | None, by: str | None) -> None:
    """Refuse; the agent is told, with the reason.

    Example: mesh approval deny $run t1 "not on production"
    """
    with shell().client() as client:
        _show(client.approvals.deny(run_id, tool_call_id, reason, by=by or who()))


__all__ = ["approval", "who"]
