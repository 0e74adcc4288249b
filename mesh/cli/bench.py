"""``mesh bench``: how fast this node is on this machine, and beside its peers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mesh.cli import render
from mesh.cli.app import command, shell
from mesh.errors import ConfigError

if TYPE_CHECKING:
    from mesh.cli.bench_lab import Lab, Stage

GROUPS = ("routes", "sessions", "node")
ROUNDS_MAX = 100
#: kind of node -> what its routes are durable against
DURABILITY = {"process": "process", "power": "power", "fresh": "process"}


@command()
@click.option("--quick", is_flag=True, help="A tenth of the calls, each measured once.")
@click.option(
    "--partitions", type=click.IntRange(1, 64), default=2, show_default=True, help="Of the node it starts."
)
@click.option(
    "--only", type=click.Choice((*GROUPS, "peers")), multiple=True, help="Measure only this; repeatable."
)
@click.option("--peers", is_flag=True, help="Beside Redis, NATS, gRPC, ... as far as they are installed.")
@click.option("--peer", "chosen", metavar="NAME", multiple=True, help="Only this peer; repeatable.")
@click.option(
    "--rounds",
    type=click.IntRange(1, ROUNDS_MAX),
    help="How often each is measured (1; with --peers 3). The median counts.",
)
@click.option("--markdown", is_flag=True, help="Print tables for a README.")
@click.option(
    "--save",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE.json",
    help="Also write the report to a file.",
)
@click.option(
    "--plots",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where plots of --peers go (default: docs/ of the checkout, for a whole run).",
)
def bench(
    quick: bool,
    partitions: int,
    only: tuple[str, ...],
    peers: bool,
    chosen: tuple[str, ...],
    rounds: int | None,
    markdown: bool,
    save: Path | None,
    plots: Path | None,
) -> None:
    """Measure latency, rates, delivery, restart.

    Starts a node of its own unless --address is given.

    With --address only calls are measured; nothing is killed there, and routes named bench:* stay until
    their TTL is over. Ratios are printed only between figures of this same run.

    With --peers mesh and each peer are measured in turns, and the goals are shown. Peers are part of the
    source, so this needs a checkout (bin/mesh installs what it needs, except redis-server and nats-server).

    Example: mesh bench --quick -o json
    """
    from mesh.cli import bench_own, bench_peers, bench_report
    from mesh.cli.bench_lab import Lab

    peers = peers or bool(chosen) or "peers" in only
    if peers and shell().address:
        raise ConfigError("--peers measures a node of its own: it cannot be used with --address")
    calls = dict(bench_own.CALLS)
    if quick:
        calls = {name: max(count // 10, 100) for name, count in calls.items()}
    lab = Lab(calls, rounds or (3 if peers and not quick else 1))
    stages = bench_own.stages(only or GROUPS, remote=bool(shell().address))
    if peers:
        seconds = bench_peers.SECONDS_QUICK if quick else bench_peers.SECONDS
        stages += bench_peers.stages(lab, chosen, seconds)
    whole = peers and not (quick or only or chosen)
    began_s = time.perf_counter()
    about: dict[str, Any] = {
        "machine": bench_report.machine(),
        "partitions": partitions if not shell().address else None,
    }
    _measure(lab, stages, partitions)
    about["seconds"] = round(time.perf_counter() - began_s, 1)
    _report(lab, about, markdown, save, _folder(plots, whole))


def _measure(lab: Lab, stages: list[Stage], partitions: int) -> None:
    """Go through the stages; those that need the same kind of node follow each other."""
    from mesh.cli.bench_lab import note

    kinds = list(DURABILITY)
    ordered = sorted(stages, key=lambda stage: kinds.index(stage.node))
    numbered = list(enumerate(ordered, 1))
    for kind, some in groupby(numbered, key=lambda item: item[1].node):
        with _address(lab, partitions, DURABILITY[kind]) as address:
            for place, stage in some:
                note(f"[{place}/{len(stages)}] {stage.title}")
                stage.measure(lab, address)


@contextmanager
def _address(lab: Lab, partitions: int, durability: str) -> Iterator[str]:
    """Where to measure: the node that was named, or one of our own."""
    from mesh.cli.bench_lab import started_node

    named = shell().address
    if named:
        yield named
        return
    with started_node(lab, partitions, durability) as node:
        yield node.address


def _folder(plots: Path | None, whole: bool) -> Path | None:
    """Where plots go. A part of a run does not replace those of a whole one unless it is told to."""
    from mesh.cli import bench_rivals

    return plots or (bench_rivals.CHECKOUT / "docs" if whole else None)


def _report(
    lab: Lab, about: dict[str, Any], as_markdown: bool, file: Path | None, plots: Path | None
) -> None:
    from mesh.cli import bench_goals, bench_plot, bench_report
    from mesh.cli.bench_lab import merged

    figures = merged(lab.figures)
    goals = bench_goals.results(figures, lab.pairs)
    report: dict[str, Any] = {
        **about,
        "figures": [figure._asdict() for figure in figures],
        "ratios": bench_report.ratios(figures),
        "peers": [pair._asdict() for pair in lab.pairs],
        "absent": [peer._asdict() for peer in lab.absent],
        "goals": [goal._asdict() for goal in goals],
        "plots": bench_plot.draw(lab.pairs, plots) if plots and lab.pairs else [],
    }
    if file is not None:
        bench_report.save(report, file)
    if shell().json:
        render.emit_json(report)
    elif as_markdown:
        click.echo(bench_report.markdown(report, lab.pairs, lab.absent, goals))
    else:
        bench_report.show(report, figures, lab.pairs, lab.absent, goals)


__all__ = ["DURABILITY", "GROUPS", "ROUNDS_MAX", "bench"]
