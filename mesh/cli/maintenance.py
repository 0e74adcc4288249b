"""``mesh maintenance``, ``mesh audit`` and ``mesh repair``: staying small, sound and accountable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mesh.cli import render
from mesh.cli.app import command, group, shell
from mesh.cli.settings import config_option, load

#: A sweep or a check of a large node takes minutes; it goes on in small steps meanwhile.
PATIENCE_S = 3_600.0


@group()
def maintenance() -> None:
    """What the node does to stay small and sound.

    \b
    Example:
      mesh maintenance run
      mesh maintenance check
    """


@maintenance.command("run")
def run() -> None:
    """Do now what [retention] does in the background, and print what it did.

    Example: mesh maintenance run -o json
    """
    with shell().client() as client:
        report = client.maintenance.run(timeout_s=PATIENCE_S)
    if shell().json:
        render.emit_json(report.to_map())
    else:
        shown = report.to_map().items()
        render.fields((name, value) for name, value in shown if value or name == "duration_ms")
    if report.errors or report.missing:
        raise click.exceptions.Exit(render.FAILED)


@maintenance.command("check")
def check() -> None:
    """Look at everything that is stored while the node serves. Exit code 1 when something does not fit.

    Example: mesh maintenance check
    """
    with shell().client() as client:
        report = client.maintenance.check(timeout_s=PATIENCE_S)
    if shell().json:
        render.emit_json(report.to_map())
    else:
        rows = ((p.partition, p.kind, p.subject, p.text) for p in report.problems)
        render.table(("partition", "problem", "what", "why"), rows)
        if not report.complete:
            click.echo("more problems follow", err=True)
        if not report.problems and not report.missing:
            render.say("all is well")
    if report.missing:
        click.echo(f"warning: partitions {', '.join(map(str, report.missing))} did not answer", err=True)
    if report.problems or report.missing:
        raise click.exceptions.Exit(render.FAILED)


@command()
@click.option("--op", metavar="OP", help="Only this operation, such as session.delete.")
@click.option("--target", metavar="ID", help="Only what was done to this session or run.")
@click.option("--client", "client_id", metavar="HEX", help="Only what this client did.")
@click.option("--outcome", metavar="CODE", help="Only with this outcome: ok, or an error's code.")
@click.option(
    "--limit", type=click.IntRange(1, 1_000), default=100, show_default=True, help="At most so many."
)
@click.option("--cursor", help="Go on behind an earlier page.")
def audit(client_id: str | None, **options: Any) -> None:
    """Who controlled what, newest first.

    Example: mesh audit --op session.delete
    """
    with shell().client() as client:
        page = client.audit.list(client=client_id, **options)
    if shell().json:
        return render.emit_json(page.to_map())
    rows = ((render.clock(e.ts), e.client or "the node", e.op, e.target, e.outcome) for e in page)
    render.table(("time", "client", "op", "target", "outcome"), rows)
    return render.page_rest(page)


@command(local=True)
@config_option
@click.option("--data-dir", metavar="FOLDER", help="The node's data folder, or a copy of it.")
@click.option("--force", is_flag=True, help="Rewrite also files in which nothing wrong is found.")
def repair(config_file: str | None, data_dir: str | None, force: bool) -> None:
    """Save what can be read of damaged databases. The node must be down.

    Each damaged file is rewritten without the rows that cannot be read; it is kept beside the new one. What
    was lost is printed. Where there is a backup, restoring it may lose less.

    Example: mesh repair --data-dir ./copy-of-data
    """
    from mesh.config import data_dir as folder_of
    from mesh.errors import InvalidState
    from mesh.launch import find_node, runtime_dir
    from mesh.store.examine import examine
    from mesh.store.repair import repair as repair_file

    folder = Path(data_dir).expanduser().resolve() if data_dir else folder_of(load(config_file))
    if find_node(runtime_dir(folder)) is not None:
        raise InvalidState(f"a node uses {folder}: stop it first (mesh down)", code="invalid_operation")
    done = []
    for file in sorted(folder.glob("partition-*.db")):
        if force or examine(file):
            done.append(repair_file(file)._asdict())
            if not shell().json:
                _show(done[-1])
    if shell().json:
        return render.emit_json({"folder": str(folder), "repaired": done})
    return None if done else render.say(f"nothing wrong in {folder}")


def _show(done: dict[str, Any]) -> None:
    click.echo(f"{done['file']}: rewritten; the damaged one is {done['kept_as']}")
    for name in ("saved", "lost"):
        click.echo(f"  {name}: {', '.join(f'{count} {table}' for table, count in done[name].items()) or '-'}")
    for gap in done["gaps"]:
        click.echo(f"  {gap}")


__all__ = ["PATIENCE_S", "audit", "maintenance", "repair"]
