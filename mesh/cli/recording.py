"""``mesh run --record FILE``: the session of a run as ``mesh session export`` writes it, for ``replay``."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
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


def write_whole(file: Path, lines: Iterable[str]) -> int:
    """Write a file whole, or leave what stands there; what is no plain file (a pipe) is just written to.

    Raises:
        MeshError: ``storage_error``, it cannot be written.
    """
    part: Path | None = None
    count = 0
    try:
        special = file.exists() and not file.is_file()
        goal = file if special else file.resolve()
        part = None if special else goal.with_name(f"{goal.name}.part")
        with (part or goal).open("w", encoding="utf-8") as out:
            for line in lines:
                out.write(f"{line}\n")
                count += 1
        if part is not None:
            part.replace(goal)
    except OSError as exc:
        raise MeshError(f"cannot write {file}: {exc.strerror or exc}", code="storage_error") from exc
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink(missing_ok=True)
    return count


def save_recording(address: str | None, session_id: str, file: Path) -> bool:
    """Write the file, whole or not at all, by a client of its own: the run's may have stopped midway.

    What fails is said, and hides neither the run's exit code nor its error. Returns whether it is written.
    """
    try:
        with open_client(address, _TIMEOUT_S) as client:
            write_whole(file, client.sessions.export(session_id))
    except MeshError as exc:
        error = MeshError(f"--record {file}: {exc.message}", code=exc.code)
        render.report(error, as_json=shell().json)
        return False
    click.echo(render.to_json({"recorded": str(file)}) if shell().json else f"recorded: {file}", err=True)
    return True


__all__ = ["check_recording", "record_option", "save_recording", "write_whole"]
