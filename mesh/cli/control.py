"""``mesh control``: runs, from outside."""

from __future__ import annotations

from typing import Any

import click

from mesh.cli import render
from mesh.cli.app import group, shell


@group()
def control() -> None:
    """Show, pause, resume, interrupt and cancel runs.

    \b
    Example:
      run=$(mesh session prompt build-42 "make all")
      mesh control show $run
      mesh control cancel $run
    """


def _show(run: Any) -> None:
    if shell().json:
        render.emit_json(run.to_map())
    else:
        render.say(f"{run.id}: {run.status}")


@control.command("show")
@click.argument("run_id", metavar="RUN")
def show(run_id: str) -> None:
    """Show one run: its session, status, input and output, what it used.

    Example: mesh control show $run -o json
    """
    with shell().client() as client:
        found = client.runs.get(run_id).to_map()
    if shell().json:
        return render.emit_json(found)
    times = {name: render.clock(found[name]) for name in ("created_at", "started_at", "ended_at")}
    return render.fields((found | times).items())


@control.command("pause")
@click.argument("run_id", metavar="RUN")
def pause(run_id: str) -> None:
    """Have an agent wait at its next step, when it can.

    Example: mesh control pause $run
    """
    with shell().client() as client:
        _show(client.runs.pause(run_id))


@control.command("resume")
@click.argument("run_id", metavar="RUN")
def resume(run_id: str) -> None:
    """Have a paused agent go on.

    Example: mesh control resume $run
    """
    with shell().client() as client:
        _show(client.runs.resume(run_id))


@control.command("interrupt")
@click.argument("run_id", metavar="RUN")
def interrupt(run_id: str) -> None:
    """Cancel a run that executes; its partial text stays.

    Example: mesh control interrupt $run
    """
    with shell().client() as client:
        client.runs.interrupt(run_id)
        _show(client.runs.get(run_id))


@control.command("cancel")
@click.argument("run_ids", metavar="RUN...", nargs=-1, required=True)
def cancel(run_ids: tuple[str, ...]) -> None:
    """Cancel runs, waiting or executing. Exit code 1 when one could not be.

    Example: mesh control cancel $first $second
    """
    with shell().client() as client:
        outcome = client.runs.cancel_many(run_ids)
    if shell().json:
        render.emit_json({run_id: error and error.to_map() for run_id, error in outcome.items()})
    else:
        render.table(("run", "outcome"), ((run_id, error or "over") for run_id, error in outcome.items()))
    if any(outcome.values()):
        raise click.exceptions.Exit(render.FAILED)


__all__ = ["control"]
