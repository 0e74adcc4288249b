"""The report of ``mesh bench``: one map for programs, tables for people, markdown for a README."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from mesh.cli import render
from mesh.cli.bench_goals import Result
from mesh.cli.bench_lab import Absent, Pair, number
from mesh.cli.measure import Figure

SYNC_BYTES, SYNCS = 4096, 50
FIGURES = ("measured", "value", "unit", "details")
PAIRS = ("measured", "peer", "mesh", "theirs", "unit", "mesh/peer", "range of rounds", "CPU us a call")
GOALS = ("figure", "goal", "here", "reached")
RATIO = (
    "mesh/peer: above 1 is better for rates (/s), below 1 for times (us); "
    "CPU: of all processes, mesh's and theirs, which other work on the machine changes least"
)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "uvloop": find_spec("uvloop") is not None,
        "sync_us": round(sync_us()),
        "load": round(os.getloadavg()[0], 1),
    }


def sync_us() -> float:
    """What it takes to write 4 KiB to a temporary file and sync it: the floor of everything durable."""
    taken_us = []
    with tempfile.TemporaryFile() as file:
        for _ in range(SYNCS):
            began_s = time.perf_counter()
            file.write(bytes(SYNC_BYTES))
            file.flush()
            os.fsync(file.fileno())
            taken_us.append((time.perf_counter() - began_s) * 1e6)
    return sorted(taken_us)[SYNCS // 2]


def ratios(figures: Sequence[Figure]) -> dict[str, float]:
    """How the concurrent rates relate to one call at a time, from this run alone."""
    by_name = {figure.name: figure for figure in figures}
    single = by_name.get("routes.get, one by one, p50")
    if single is None:
        return {}
    alone = 1e6 / single.value
    return {
        f"{figure.name} / one by one": round(figure.value / alone, 1)
        for figure in figures
        if figure.unit == "/s" and figure.name.startswith("routes.")
    }


def show(
    report: dict[str, Any],
    figures: Sequence[Figure],
    pairs: Sequence[Pair],
    absent: Sequence[Absent],
    goals: Sequence[Result],
) -> None:
    """Print tables; what is not data only on a terminal."""
    facts = report["machine"]
    render.say(
        f"{facts['cpus']} CPUs, Python {facts['python']}, {facts['system']}, "
        f"load {facts['load']} before, a synced write takes {facts['sync_us']} us, {report['seconds']} s"
    )
    render.table(FIGURES, (_figure_row(figure) for figure in figures))
    if pairs:
        click.echo()
        render.say(RATIO)
        render.table(PAIRS, map(_pair_row, pairs))
    if pairs or absent:
        click.echo()
        render.table(GOALS, map(_goal_row, goals))
    for peer in absent:
        click.echo(f"{peer.peer}: {peer.why}" + (f". To have it: {peer.install}" if peer.install else ""))
    if sys.stdout.isatty():
        for name, ratio in report["ratios"].items():
            click.echo(f"{name}: {ratio:g}x")
        for path in report["plots"]:
            click.echo(f"plot: {path}")


def markdown(
    report: dict[str, Any],
    pairs: Sequence[Pair],
    absent: Sequence[Absent],
    goals: Sequence[Result],
) -> str:
    """The tables as a README shows them."""
    facts = report["machine"]
    parts = [
        f"{facts['cpus']} CPUs, {facts['system']}, Python {facts['python']}; a synced write of 4 KiB takes "
        f"{facts['sync_us']} us.",
        _markdown_table(GOALS, map(_goal_row, goals)),
    ]
    if pairs:
        parts += [f"{RATIO}.", _markdown_table(PAIRS, map(_pair_row, pairs))]
    if absent:
        parts.append("Not measured: " + "; ".join(f"{peer.peer} ({peer.why})" for peer in absent) + ".")
    return "\n\n".join(parts)


def save(report: dict[str, Any], file: Path) -> None:
    """Write the report as JSON."""
    file.write_text(render.to_json(report) + "\n", encoding="utf-8")


def _figure_row(figure: Figure) -> tuple[str, ...]:
    details = ", ".join(f"{name} {value}" for name, value in figure.details.items())
    return figure.name, number(figure.value), figure.unit, details


def _pair_row(pair: Pair) -> tuple[str, ...]:
    cpu = "mesh_cpu_us" in pair.details and "their_cpu_us" in pair.details
    return (
        pair.measured,
        pair.peer,
        number(pair.mesh),
        number(pair.theirs),
        pair.unit,
        f"{pair.ratio:.2f}x",
        f"{pair.low:.2f} - {pair.high:.2f}" if pair.rounds > 1 else "-",
        f"{pair.details['mesh_cpu_us']:g} / {pair.details['their_cpu_us']:g}" if cpu else "-",
    )


def _goal_row(goal: Result) -> tuple[str, ...]:
    reached = "-" if goal.reached is None else ("yes" if goal.reached else "no")
    return goal.figure, goal.goal, goal.here, reached


def _markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


__all__ = [
    "FIGURES",
    "GOALS",
    "PAIRS",
    "RATIO",
    "SYNCS",
    "SYNC_BYTES",
    "machine",
    "markdown",
    "ratios",
    "save",
    "show",
    "sync_us",
]
