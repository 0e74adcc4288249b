"""``mesh backup``: copy a running node's databases."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from mesh.cli import render
from mesh.cli.app import command, shell

#: A large database takes minutes: it is copied a few pages at a time, so that nobody waits for it.
BACKUP_TIMEOUT_S = 3600.0


@command()
@click.argument("folder", type=click.Path(file_okay=False))
def backup(folder: str) -> None:
    """Copy a running node's databases into an empty folder.

    Each copy is consistent; FOLDER is on the node's machine. To restore: stop the node, put the files into
    its data folder (without the -wal and -shm files of the old ones), start it.

    Example: mesh backup /var/backups/mesh-monday
    """
    target = Path(folder).expanduser().absolute()
    with shell().client() as client:
        data_dir = client.status().get("data_dir")
        files = [str(file) for file in client.backup(str(target), timeout_s=BACKUP_TIMEOUT_S)]
    node_db = _copy_node_db(data_dir, target)
    if node_db is None:
        click.echo(
            "warning: node.db (which partition owns what) is on another machine; copy it too", err=True
        )
    else:
        files.append(node_db)
    if shell().json:
        return render.emit_json({"folder": str(target), "files": files})
    return click.echo("\n".join(files))


def _copy_node_db(data_dir: str | None, target: Path) -> str | None:
    """The placement map changes only while the node starts, so a plain copy of its file is consistent."""
    source = Path(data_dir or "/nowhere") / "node.db"
    if not source.is_file() or not target.is_dir():
        return None
    return str(shutil.copyfile(source, target / source.name))


__all__ = ["BACKUP_TIMEOUT_S", "backup"]
