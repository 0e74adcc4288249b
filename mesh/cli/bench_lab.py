"""What all parts of ``mesh bench`` share: its nodes, its event loops, what was measured so far.

A loop runs only while something is measured on it, so that a client is silent while a peer has its turn.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from mesh.cli.measure import Figure
from mesh.proc import process_table

if TYPE_CHECKING:
    import mesh

T = TypeVar("T")
AGENT, GATE, ROUTED = "bench_burst", "bench_gate", "bench_routed"
TIMEOUT_S = 30.0
#: Enough for every measurement; nothing is evicted while something else is measured.
ENTRIES_MAX = 1_000_000


class Pair(NamedTuple):
    """One figure of a peer and the same of mesh, measured in turns. Values and ratio are medians."""

    peer: str
    figure: str
    measured: str
    unit: str
    mesh: float
    theirs: float
    ratio: float
    low: float
    high: float
    rounds: int
    details: dict[str, Any]


class Absent(NamedTuple):
    """A peer that was not measured, and what would change that."""

    peer: str
    why: str
    install: str


@dataclass(slots=True)
class Lab:
    """One run of ``mesh bench``: how much it measures, and what it found."""

    calls: dict[str, int]
    rounds: int
    figures: list[Figure] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    absent: list[Absent] = field(default_factory=list)

    def add(self, *found: Figure) -> None:
        """Keep figures, and show them to who waits."""
        for figure in found:
            self.figures.append(figure)
            note(f"  {figure.name}: {number(figure.value)} {figure.unit}")


class Stage(NamedTuple):
    """One step of a run. ``node`` names the kind of node it needs; steps of one kind share a node."""

    node: str
    title: str
    measure: Callable[[Lab, str], None]


def note(text: str) -> None:
    """Show a person who waits what happens now."""
    if sys.stderr.isatty():
        click.echo(text, err=True)


def number(value: float) -> str:
    """A figure as people read it."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


@contextmanager
def started_node(lab: Lab, partitions: int, durability: str) -> Iterator[mesh.LocalNode]:
    """A node for some stages; the time until its first answer is a figure."""
    import mesh
    from mesh.cli import bench_agent

    source = Path(bench_agent.__file__).resolve()
    settings = {
        "routes": {"durability": durability, "max_entries_per_partition": ENTRIES_MAX},
        "agents": {
            name: {"provider": "python", "target": f"{source}:{function}"}
            for name, function in ((AGENT, "burst"), (GATE, "gate"))
        } | {ROUTED: {"provider": "router", "agents": ["echo", AGENT]}},
    }
    note(f"starting a node of {partitions} partitions (routes durable against: {durability})")
    began_s = time.perf_counter()
    with mesh.LocalNode(partitions=partitions, config=settings) as node:
        with node.client() as client:
            client.ping()
        taken_ms = (time.perf_counter() - began_s) * 1000
        lab.add(Figure("start of a node, first answer", taken_ms, "ms", {"partitions": partitions}))
        yield node


class Session:
    """An AsyncClient and the loop that it lives on."""

    def __init__(self, address: str | None, runner: asyncio.Runner) -> None:
        import mesh

        self._runner = runner
        self.client = mesh.AsyncClient(address, timeout_s=TIMEOUT_S)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the loop until this is done."""
        return self._runner.run(work)


@contextmanager
def session(address: str | None, *, uvloop: bool = False) -> Iterator[Session]:
    """A client of the node at that address on a loop of its own."""
    factory = None
    if uvloop:
        import uvloop as fast

        factory = fast.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        opened = Session(address, runner)
        try:
            yield opened
        finally:
            runner.run(opened.client.close())


def cpu_s(root: int) -> float | None:
    """What a process and all below it have used of the processors; None where there is no /proc.

    On a machine with other work the time a call takes says more about that work than this does.
    """
    below: dict[int, list[int]] = {}
    for stat in process_table():
        below.setdefault(stat.ppid, []).append(stat.pid)
    total, todo = 0.0, [root]
    while todo:
        pid = todo.pop()
        todo += below.get(pid, [])
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            if pid == root:
                return None
            continue  # it ended
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def merged(figures: list[Figure]) -> list[Figure]:
    """One figure per name: the median of its rounds, and what they ranged over."""
    by_name: dict[str, list[Figure]] = {}
    for figure in figures:
        by_name.setdefault(figure.name, []).append(figure)
    return [_median(rounds) for rounds in by_name.values()]


def _median(rounds: list[Figure]) -> Figure:
    if len(rounds) == 1:
        return rounds[0]
    rounds = sorted(rounds, key=lambda figure: figure.value)
    middle = rounds[len(rounds) // 2]
    spread = {
        "low": round(rounds[0].value, 2),
        "high": round(rounds[-1].value, 2),
        "rounds": len(rounds),
    }
    value = statistics.median(figure.value for figure in rounds)
    return middle._replace(value=value, details=middle.details | spread)


__all__ = [
    "AGENT",
    "ENTRIES_MAX",
    "GATE",
    "ROUTED",
    "TIMEOUT_S",
    "Absent",
    "Lab",
    "Pair",
    "Session",
    "Stage",
    "cpu_s",
    "merged",
    "note",
    "number",
    "session",
    "started_node",
]
