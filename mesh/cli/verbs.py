"""``mesh session activate|pause|resume|stop|abort|complete|cancel|fail``: the steps of a session's life."""

from __future__ import annotations

from typing import Any, NamedTuple

import click

from mesh.cli import render
from mesh.cli.app import command, shell


class Verb(NamedTuple):
    """A method of ``client.sessions`` that takes a session's id."""

    name: str
    done: str
    help: str


VERBS = (
    Verb("activate", "active", "Make a created session active, with a live actor."),
    Verb("pause", "paused", "Take no more work; what executes goes on, what waits stays."),
    Verb("resume", "resumed", "Bring a paused or stopped session back, with its transcript."),
    Verb("abort", "aborted", "Cancel what a session does now and what waits there; the session stays."),
    Verb("stop", "stopped", "End a session's live actor; its log stays and `resume` brings it back."),
    Verb("complete", "completed", "End a session for good, as completed. One with a run is refused."),
    Verb("cancel", "cancelled", "End a session for good, with its runs, as cancelled."),
)
_SESSION = click.argument("session_id", metavar="ID")
_IF_VERSION = click.option(
    "--if-version", type=click.IntRange(min=1), metavar="N",
    help="Refuse when the session changed since you saw this version.",
)


def _do(session_id: str, name: str, done: str, if_version: int | None, *error: str) -> None:
    given: dict[str, Any] = {} if if_version is None else {"if_version": if_version}
    with shell().client() as client:
        getattr(client.sessions, name)(session_id, *error, **given)
    if shell().json:
        render.emit_json({"session_id": session_id, "done": done})
    else:
        render.say(f"{session_id}: {done}")


def _command(verb: Verb) -> click.Command:
    @command(name=verb.name, help=f"{verb.help}\n\nExample: mesh session {verb.name} build-42")
    @_SESSION
    @_IF_VERSION
    def step(session_id: str, if_version: int | None) -> None:
        _do(session_id, verb.name, verb.done, if_version)

    return step


@command()
@_SESSION
@click.argument("reason", metavar="REASON")
@_IF_VERSION
def fail(session_id: str, reason: str, if_version: int | None) -> None:
    """End a session for good, with its runs, as failed for a reason.

    Example: mesh session fail build-42 "the repository is gone"
    """
    _do(session_id, "fail", "failed", if_version, reason)


COMMANDS = (*map(_command, VERBS), fail)

__all__ = ["COMMANDS", "VERBS", "Verb"]
