"""``mesh bench``: how fast this node is on this machine."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mesh.cli import render
from mesh.cli.app import command, shell

if TYPE_CHECKING:
    import mesh
    from mesh.cli.measure import Figure

AGENT = "bench_burst"
#: Events a second at which their delay is measured.
PACE = 10_000
#: How many calls each measurement makes; --quick makes a tenth.
CALLS = {
    "one_by_one": 5_000,
    "gets": 400_000,
    "sets": 200_000,
    "get_many": 10_000,
    "durable": 150_000,
    "run_once": 5_000,
    "events": 60_000,
    "routes": 10_000,
    "sessions": 1_000,
}


@command()
@click.option("--quick", is_flag=True, help="A tenth of the calls: seconds instead of half a minute.")
@click.option(
    "--partitions", type=click.IntRange(1, 64), default=2, show_default=True, help="Of the node it starts."
)
def bench(quick: bool, partitions: int) -> None:
    """Measure latency, rates, delivery, restart.

    Starts a node of its own unless --address is given.

    With --address only calls are measured; nothing is killed there, and routes named bench:* stay until
    their TTL is over. Ratios are printed only between figures of this same run.

    Example: mesh bench --quick -o json
    """
    calls = {name: max(count // 10, 100) for name, count in CALLS.items()} if quick else dict(CALLS)
    began_s = time.perf_counter()
    if shell().address:
        figures = _run(lambda: _measure_calls(_connect(shell().address), calls, own=False))
    else:
        figures = _measure_own(partitions, calls)
    report = {
        "machine": machine(),
        "partitions": partitions if not shell().address else None,
        "seconds": round(time.perf_counter() - began_s, 1),
        "figures": [figure._asdict() for figure in figures],
        "ratios": ratios(figures),
    }
    if shell().json:
        return render.emit_json(report)
    return _show(report, figures)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "uvloop": find_spec("uvloop") is not None,
    }


def ratios(figures: list[Figure]) -> dict[str, float]:
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


def _measure_own(partitions: int, calls: dict[str, int]) -> list[Figure]:
    figures = []
    with _node(partitions, "process") as (node, started):
        figures.append(started)
        figures += _run(lambda: _measure_calls(node.async_client(), calls, own=True))
        if find_spec("uvloop") is not None:
            figures += _run(lambda: _measure_rates(node.async_client(), calls, " (uvloop)"), uvloop=True)
        figures += _run(lambda: _measure_restart(node.async_client(), calls))
    with _node(partitions, "power") as (node, _):
        figures += _run(lambda: _measure_durable(node.async_client(), calls))
    return figures


@contextmanager
def _node(partitions: int, durability: str) -> Iterator[tuple[mesh.LocalNode, Figure]]:
    import mesh
    from mesh.cli import bench_agent
    from mesh.cli.measure import Figure

    target = f"{Path(bench_agent.__file__).resolve()}:burst"
    settings = {
        "routes": {"durability": durability},
        "agents": {AGENT: {"provider": "python", "target": target}},
    }
    _progress(f"starting a node of {partitions} partitions (routes durable against: {durability})")
    began_s = time.perf_counter()
    with mesh.LocalNode(partitions=partitions, config=settings) as node:
        with node.client() as client:
            client.ping()
        taken_ms = (time.perf_counter() - began_s) * 1000
        yield node, Figure("start of a node, first answer", taken_ms, "ms", {"partitions": partitions})


def _connect(address: str | None) -> mesh.AsyncClient:
    import mesh

    return mesh.AsyncClient(address, timeout_s=30.0)


def _run(measure: Callable[[], Awaitable[list[Figure]]], *, uvloop: bool = False) -> list[Figure]:
    import asyncio

    async def main() -> list[Figure]:
        return await measure()

    factory = None
    if uvloop:
        import uvloop as fast

        factory = fast.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main())


async def _measure_calls(opened: mesh.AsyncClient, calls: dict[str, int], *, own: bool) -> list[Figure]:
    from mesh.cli import measure

    names = measure.keys(5_000)
    async with opened as client:
        await measure.fill(client, names)
        figures = [await _noted(measure.one_by_one(client, names, calls["one_by_one"]))]
        figures.append(await _noted(measure.gets(client, names, calls["gets"])))
        figures.append(await _noted(measure.sets(client, names, calls["sets"])))
        figures.append(await _noted(measure.get_many(client, names, calls["get_many"])))
        figures.append(await _noted(measure.run_once(client, calls["run_once"])))
        if own:
            figures.append(await _noted(measure.delivered_events(client, AGENT, calls["events"])))
            figures.append(await _noted(measure.delivered_events(client, AGENT, calls["events"] // 2, PACE)))
    return figures


async def _measure_rates(opened: mesh.AsyncClient, calls: dict[str, int], note: str) -> list[Figure]:
    from mesh.cli import measure

    names = measure.keys(5_000)
    async with opened as client:
        await measure.fill(client, names)
        return [
            await _noted(measure.gets(client, names, calls["gets"], note)),
            await _noted(measure.sets(client, names, calls["sets"], note)),
        ]


async def _measure_durable(opened: mesh.AsyncClient, calls: dict[str, int]) -> list[Figure]:
    from mesh.cli import measure

    async with opened as client:
        return [await _noted(measure.sets(client, measure.keys(5_000), calls["durable"], " (fsync)"))]


async def _measure_restart(opened: mesh.AsyncClient, calls: dict[str, int]) -> list[Figure]:
    from mesh.cli import measure

    names = measure.keys(calls["routes"])
    async with opened as client:
        await measure.fill(client, names)
        return [await _noted(measure.restart(client, names, calls["sessions"]))]


async def _noted(measured: Awaitable[Figure]) -> Figure:
    figure = await measured
    _progress(f"{figure.name}: {number(figure.value)} {figure.unit}")
    return figure


def number(value: float) -> str:
    """A figure as people read it."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(text, err=True)


def _show(report: dict[str, Any], figures: list[Figure]) -> None:
    facts = report["machine"]
    render.say(f"{facts['cpus']} CPUs, Python {facts['python']}, {facts['system']}, {report['seconds']} s")
    rows = (
        (
            figure.name,
            number(figure.value),
            figure.unit,
            ", ".join(f"{k} {v}" for k, v in figure.details.items()),
        )
        for figure in figures
    )
    render.table(("measured", "value", "unit", "details"), rows)
    if sys.stdout.isatty():
        for name, ratio in report["ratios"].items():
            click.echo(f"{name}: {ratio:g}x")


__all__ = ["AGENT", "CALLS", "PACE", "bench", "machine", "number", "ratios"]
