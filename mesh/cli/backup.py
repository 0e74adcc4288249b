"""``mesh backup``: copy a running node's databases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mesh.cli import render
from mesh.cli.app import command, shell


@command()
@click.argument("folder", type=click.Path(file_okay=False))
def backup(folder: str) -> None:
    """Copy a running node's databases.

    Each one is consistent; FOLDER is on the node's machine. To restore: stop the node, put the files into its data folder, start it.

    Example: mesh backup /var/backups/mesh-monday
    """
    target = Path(folder).expanduser().absolute()
    with shell().client() as client:
        files: Any = client.backup(str(target))
    names = [str(name) for name in (files if isinstance(files, list | tuple) else [files])]
    if shell().json:
        return render.emit_json({"folder": str(target), "files": names})
    return click.echo("\n".join(names))


__all__ = ["backup"]
