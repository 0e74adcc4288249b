"""``mesh run --record FILE``: the session of a run as ``mesh session export`` writes it, for ``replay``."""

from __future__ import annotations

from pathlib import Path

import click

from mesh.cli import render
from mesh.cli.app import open_client, shell
from mesh.errors import ConfigError, MeshError

_TIMEOUT_S = 60.0

record_option = click.option(
    "--record",
    "recording",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the session to FILE at the end, also of a run that failed: an agent with "
    '`provider = "replay"` says it again.',
)


def check_recording(file: Path | None) -> None:
    """Refuse a file that cannot be written, before anything runs.

    Raises:
        ConfigError: names it.
    """
    if file is not None and not file.absolute().parent.is_dir():
        raise ConfigError(f"--record {file}: its folder does not exist")


def save_recording(address: str | None, session_id: str, file: Path) -> bool:
    """Write the file, whole or not at all, by a client of its own: the run's may have stopped midway.

    What fails is said, and hides neither the run's exit code nor its error. Returns whether it is written.
    """
    part = file.with_name(file.name + ".part")
    try:
        with open_client(address, _TIMEOUT_S) as client, part.open("w", encoding="utf-8") as lines:
            for line in client.sessions.export(session_id):
                lines.write(line + "\n")
        part.replace(file)
    except (MeshError, OSError) as exc:
        what = exc.message if isinstance(exc, MeshError) else exc.strerror or str(exc)
        error = MeshError(f"--record {file}: {what}", code=getattr(exc, "code", "storage_error"))
        render.report(error, as_json=shell().json)
        return False
    finally:
        part.unlink(missing_ok=True)
    click.echo(render.to_json({"recorded": str(file)}) if shell().json else f"recorded: {file}", err=True)
    return True


__all__ = ["check_recording", "record_option", "save_recording"]
