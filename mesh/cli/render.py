"""What the command line prints: JSON for programs, tables for people, errors as one line.

On a terminal a table has a header and colours; in a pipe it is tab-separated rows alone, and remarks
(``say``) are not made.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import click

from mesh.cli.calling import as_called
from mesh.errors import (
    ConfigError,
    DeadlineExceeded,
    InvalidArgument,
    MeshError,
    NodeUnreachable,
    NotFound,
)

OK, FAILED, USAGE, NO_NODE, NOT_FOUND, TIMEOUT, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

#: A table may be so wide; a row beyond it would be somebody's mistake.
TABLE_COLUMNS_MAX = 10_000
#: How Python begins to tell where.
TRACE = "Traceback (most recent call last):"
#: Blanks between two columns.
GAP = 2

#: code -> what to do about it; ``{...}`` is filled from the error's details when they are there.
HINTS = {
    "config_error": "every key with its default: mesh config show --defaults",
    "degraded": "is the disk full? ask: mesh doctor",
    "node_unreachable": "start one with: mesh up",
    "no_route": "see the routes with: mesh route list",
    "outcome_unknown": "the process ended while the agent worked; check what it did before you run it again",
    "overloaded": "too much at once; try again in a moment",
    "partition_unavailable": "see why with: mesh status",
    "protocol_error": "is this the address of a mesh node of the same version?",
    "restart_exhausted": "see why with: mesh logs",
    "session_not_found": "see the sessions with: mesh session list",
    "session_paused": "wake it with: mesh session resume ID",
    "store_unavailable": "is the disk full? ask: mesh doctor",
    "timeout": "allow more time with: --timeout SECONDS",
    "unknown_agent": "an agent is a table [agents.NAME] of the config; mesh agent reload reads it anew",
}


class Options(Protocol):
    """What errors need to know of the command line."""

    traceback: bool

    @property
    def json(self) -> bool:
        """Whether the answer goes to a program."""


def exit_code(error: MeshError) -> int:
    """The exit code of an error; the numbers are part of the command line's contract."""
    if isinstance(error, NodeUnreachable):
        return NO_NODE
    if isinstance(error, NotFound):
        return NOT_FOUND
    if isinstance(error, DeadlineExceeded):
        return TIMEOUT
    return USAGE if isinstance(error, ConfigError | InvalidArgument) else FAILED


@contextmanager
def errors_reported(options: Options) -> Iterator[None]:
    """Turn what a command raises into one line on stderr and the exit code; never a traceback."""
    try:
        yield
        sys.stdout.flush()  # what cannot be written is said here, not by Python behind our back
    except MeshError as exc:
        if options.traceback:
            raise
        report(exc, as_json=options.json)
        raise click.exceptions.Exit(exit_code(exc)) from exc
    except KeyboardInterrupt as exc:
        raise click.exceptions.Exit(INTERRUPTED) from exc
    except (click.exceptions.Exit, click.ClickException, click.Abort, BrokenPipeError):
        raise
    except OSError as exc:
        _let_go_of_output()
        if options.traceback:
            raise
        where = f"{exc.filename}: " if exc.filename else ""
        report(MeshError(f"{where}{exc.strerror or exc}", code="internal_error"), as_json=options.json)
        raise click.exceptions.Exit(FAILED) from exc
    except Exception as exc:
        if options.traceback:
            raise
        text = f"unexpected {type(exc).__name__}: {exc} (please report it; mesh --traceback shows where)"
        report(MeshError(text, code="internal_error"), as_json=options.json)
        raise click.exceptions.Exit(FAILED) from exc


def _one_place() -> bool:
    """Whether stdout and stderr are the same terminal, file or pipe."""
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError):
        return False


def _let_go_of_output() -> None:
    """Drop what stdout does not take: Python would try it again at the end, complain, and exit with 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report(error: MeshError, *, as_json: bool, hint: str | None = None, told: str = "") -> None:
    """Say what went wrong on stderr: one line, then a hint when there is one. The line is left out where
    stdout, which goes to the same place, had it in ``told``."""
    hint = hint or str(error.details.get("hint") or HINTS.get(error.code, ""))
    if hint and hint.rpartition(": ")[2] in error.message:
        hint = ""  # it was said already
    if as_json:
        click.echo(to_json({"error": error.to_map() | ({"hint": as_called(hint)} if hint else {})}), err=True)
        return
    first, _, rest = error.message.strip().partition("\n")
    if first.endswith(TRACE) and rest:  # of an agent's file: its last line says what happened
        first, rest = first.removesuffix(TRACE) + rest.splitlines()[-1], f"{TRACE}\n{rest}"
    if not (first and first in told and _one_place()):
        echo(as_called(f"error: {first} ({error.code})"), err=True)
    trace = error.details.get("traceback") or (rest if "Traceback" in rest or "  File " in rest else "")
    if isinstance(trace, list):
        trace = "\n".join(f"  at {place}" for place in trace)
    if trace:  # of the user's own agent: without it they cannot mend their file
        echo(str(trace).rstrip(), err=True)
    if hint:
        echo(as_called(f"hint: {hint}"), err=True)


def to_json(value: Any) -> str:
    """One line of JSON; records become their maps, bytes base64."""
    from mesh.rendering.text import json_line

    return json_line(value)


def echo(text: str, *, err: bool = False) -> None:
    """Print a line that may hold words of agents and other people: on a terminal without control."""
    click.echo(_fit(text, sys.stderr if err else sys.stdout), err=err)


def _fit(text: str, stream: Any) -> str:
    from mesh.rendering.text import clean

    return clean(text) if stream.isatty() else text


def emit_json(value: Any) -> None:
    """Print one JSON document on one line, at once."""
    click.echo(to_json(value))
    sys.stdout.flush()


def say(text: str) -> None:
    """A remark for a person: on a terminal only, and never between the data."""
    if sys.stdout.isatty() and sys.stderr.isatty():
        click.echo(as_called(text), err=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows: a table on a terminal, tab-separated lines in a pipe."""
    texts = [[_cell(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in texts:
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns, texts, gap = _fitted(columns, texts)
    drawn = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for column, width in zip(columns, _widths(columns, texts), strict=True):
        drawn.add_column(column, no_wrap=True, overflow="ignore", min_width=width)
    for row in texts:
        drawn.add_row(*(Text(_fit(cell, sys.stdout)) for cell in row))
    # Where the terminal is too narrow it wraps the lines itself: an id that is cut cannot be copied.
    console = Console(width=TABLE_COLUMNS_MAX)
    with console.capture() as lines:
        console.print(drawn, crop=False, soft_wrap=True)
    click.echo("\n".join(line.rstrip() for line in lines.get().splitlines()))


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(column), *(len(row[i]) for row in rows), 0) for i, column in enumerate(columns)]


def _fitted(
    columns: Sequence[str], rows: list[list[str]]
) -> tuple[Sequence[str], list[list[str]], int]:
    """What is wider than the terminal, without columns that say nothing and with smaller gaps."""
    wide = shutil.get_terminal_size().columns
    widths = _widths(columns, rows)
    if not rows or sum(widths) + GAP * (len(widths) - 1) <= wide:
        return columns, rows, GAP
    told = [place for place in range(len(columns)) if any(row[place] != "-" for row in rows)]
    return [columns[place] for place in told], [[row[place] for place in told] for row in rows], 1


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict | list | tuple):
        return to_json(value)
    return " ".join(str(value).split()) if isinstance(value, str) else str(value)


def fields(pairs: Iterable[tuple[str, Any]]) -> None:
    """Print names and values, one pair a line."""
    shown = [(name, _cell(value)) for name, value in pairs]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        echo(f"{name:<{width}}  {value}" if sys.stdout.isatty() else f"{name}\t{value}")


def page_rest(page: Any) -> None:
    """Say on stderr that a page is not the whole: rows may follow, or partitions did not answer."""
    if page.missing:
        late = ", ".join(map(str, page.missing))
        click.echo(as_called(f"warning: partitions {late} did not answer; see: mesh status"), err=True)
    if page.cursor:
        click.echo(f"more: --cursor {page.cursor}", err=True)


def clock(seconds: float | None) -> str:
    """A moment in local time, to the second."""
    from datetime import datetime

    if not seconds:
        return "-"
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    """A length of time in its two largest units."""
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s")]
    first = next((i for i, (count, _) in enumerate(parts) if count), 3)
    return "".join(f"{count}{unit}" for count, unit in parts[first : first + 2])


def state(child: dict[str, Any]) -> str:
    """The state of a child: one that serves, but not everything, is degraded, and says why."""
    why = child.get("degraded") if child.get("state") == "ready" else None
    return f"degraded: {why}" if why else str(child.get("state"))


def cause(death: dict[str, Any] | None) -> str:
    """The cause of a child's last death in a few words."""
    if not death:
        return "-"
    if death.get("signal"):
        how = f"killed by {death['signal']}"
    else:
        how = f"exit {death.get('exit_status')}"
    if death.get("reason"):
        return f"{how}: {death['reason']}"
    stderr = death.get("stderr") or ""
    lines = stderr if isinstance(stderr, list) else str(stderr).strip().splitlines()
    return f"{how}: {lines[-1]}" if lines else how


__all__ = [
    "FAILED",
    "GAP",
    "HINTS",
    "INTERRUPTED",
    "NOT_FOUND",
    "NO_NODE",
    "OK",
    "TABLE_COLUMNS_MAX",
    "TIMEOUT",
    "TRACE",
    "USAGE",
    "Options",
    "cause",
    "clock",
    "duration",
    "echo",
    "emit_json",
    "errors_reported",
    "exit_code",
    "fields",
    "page_rest",
    "report",
    "say",
    "state",
    "table",
    "to_json",
]
