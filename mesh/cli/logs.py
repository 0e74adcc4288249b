"""``mesh logs``: what the node's processes and its agents wrote."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from mesh.cli import render
from mesh.cli.app import command, shell
from mesh.errors import NotFound

#: How often a followed file is looked at. A log is for people; they do not see the difference.
LOOK_S = 0.2
#: How mesh's own lines begin.
_STAMP = re.compile(r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z")


@command(local=True)
@click.argument("name", required=False)
@click.option("--session", "session_id", metavar="ID", help="What the agent of this session printed.")
@click.option("-f", "--follow", is_flag=True, help="Go on as lines are written, until Ctrl-C.")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=100, show_default=True, help="Lines to begin with."
)
@click.option(
    "--data-dir", type=click.Path(file_okay=False), help="Read here; default: the local node's data folder."
)
def logs(name: str | None, session_id: str | None, follow: bool, lines: int, data_dir: str | None) -> None:
    """Show what the node's processes wrote.

    Of all processes, of one (router, partition-0, runner-0), or of a session's agent.

    Example: mesh logs runner-0 -n 20 -f
    """
    folder = _folder(data_dir)
    files = _files(folder, name, session_id)
    mark = f"[{session_id} " if session_id else ""
    for file, line in _last_lines(files, mark, lines):
        _print(file, line, many=len(files) > 1)
    if follow:
        _follow(files, mark)


def _folder(data_dir: str | None) -> Path:
    if data_dir:
        return Path(data_dir).expanduser() / "logs"
    from mesh.cli.node import local_node
    from mesh.cli.settings import load
    from mesh.config import data_dir as configured

    found = local_node()
    return (Path(found["data_dir"]) if found else configured(load(None))) / "logs"


def _files(folder: Path, name: str | None, session_id: str | None) -> list[Path]:
    if session_id is not None:
        # Runners mark each line that an agent prints with its session and run.
        wanted = sorted(folder.glob("runner-*.log"))
    elif name is not None:
        wanted = [folder / f"{name}.log"]
    else:
        wanted = sorted(folder.glob("*.log"))
    files = [file for file in wanted if file.is_file()]
    if not files:
        there = ", ".join(file.stem for file in sorted(folder.glob("*.log"))) or "none"
        what = repr(name) if name else "the runners" if session_id else "the node"
        raise NotFound(f"no log of {what} in {folder} (there: {there})")
    return files


def _last_lines(files: list[Path], mark: str, count: int) -> list[tuple[Path, str]]:
    """The latest lines of all files together, in the order of their times."""
    found: list[tuple[str, Path, str]] = []
    for file in files:
        own: deque[tuple[str, Path, str]] = deque(maxlen=count)
        # A line without a time of its own goes with the one before it, the first ones with the newest.
        at = datetime.fromtimestamp(file.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        for line in _lines(file):
            stamp = _STAMP.match(line)
            at = stamp[0] if stamp else at
            if line.startswith(mark):
                own.append((at, file, line))
        found += own
    found.sort(key=lambda line: line[0])
    return [(file, line) for _, file, line in found[max(0, len(found) - count) :]]


def _lines(file: Path) -> Iterator[str]:
    for part in (file.with_name(file.name + ".1"), file):
        if part.is_file():
            with part.open(encoding="utf-8", errors="replace") as lines:
                yield from (line.rstrip("\n") for line in lines)


def _print(file: Path, line: str, *, many: bool) -> None:
    if shell().json:
        render.emit_json({"log": file.stem, "line": line})
    else:
        render.echo(f"{file.stem}: {line}" if many else line)


def _follow(files: list[Path], mark: str) -> None:
    places = {file: file.stat().st_size for file in files}
    rests = dict.fromkeys(files, "")
    try:
        while True:
            for file in files:
                text, places[file] = _new_text(file, places[file])
                *lines, rests[file] = (rests[file] + text).split("\n")
                for line in lines:
                    if line.startswith(mark):
                        _print(file, line, many=len(files) > 1)
            time.sleep(LOOK_S)
    except KeyboardInterrupt:
        return


def _new_text(file: Path, place: int) -> tuple[str, int]:
    """What was written behind ``place``. A file that became shorter was begun anew."""
    try:
        with file.open("rb") as data:
            size = data.seek(0, 2)
            data.seek(place if place <= size else 0)
            read = data.read()
            return read.decode(errors="replace"), data.tell()
    except FileNotFoundError:
        return "", 0


__all__ = ["LOOK_S", "logs"]
