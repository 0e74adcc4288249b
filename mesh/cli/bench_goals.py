"""The goals of mesh's speed, and whether a run reached them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mesh.cli.bench_lab import Pair, number
from mesh.cli.measure import Figure


class Goal(NamedTuple):
    """A bound for a figure. Of several sources that were measured the best one counts."""

    row: str
    sources: tuple[str, ...]  #: names of figures; "peer / figure" for a ratio; "name > detail" for a detail
    bound: float
    at_least: bool
    unit: str


class Result(NamedTuple):
    """What became of a goal. ``value`` and ``reached`` are None when it was not measured."""

    figure: str
    goal: str
    value: float | None
    here: str
    reached: bool | None


_GETS = "concurrent routes.get, one AsyncClient, 256 coroutines"
_SETS = "concurrent routes.set, acknowledged, synced to disk"
_LIST = "routes.get_many of 100, keys"
_ONE = "one call at a time through the router"
_EVENTS = "session events, synced to disk and delivered to a listener"
_STREAMS = "1,000 runs stream at once, 30 events/s each, stored and delivered"
_RESTART = "killed partition (10 000 routes, 1 000 sessions)"


def _least(row: str, bound: float, unit: str, *sources: str) -> Goal:
    return Goal(row, sources, bound, True, unit)


def _most(row: str, bound: float, unit: str, *sources: str) -> Goal:
    return Goal(row, sources, bound, False, unit)


GOALS = (
    _least(_GETS, 250_000, "/s", "routes.get, concurrent", "routes.get, concurrent (uvloop)"),
    _least(_GETS, 15, "x redis.asyncio", "redis.asyncio / concurrent", "redis.asyncio (uvloop) / concurrent"),
    _least(_GETS, 25, "x xoscar", "xoscar / concurrent"),
    _least(_SETS, 110_000, "/s", "routes.set, concurrent (fsync)", "routes.set, concurrent (fsync) (uvloop)"),
    _least(
        _SETS,
        7,
        "x redis.asyncio, appendfsync always",
        "redis.asyncio / durable",
        "redis.asyncio (uvloop) / durable",
    ),
    _least(_LIST, 1_000_000, "/s", "routes.get_many of 100, keys"),
    _least(_LIST, 1.4, "x redis-py mget", "redis-py / list_of_100"),
    _least(
        "uncoalesced single-call requests, 4 processes with 64 in flight each",
        90_000,
        "/s",
        "route.get on the bare wire, one call per payload",
    ),
    _most(_ONE + ", p50", 1.15, "x raw pyzmq", "pyzmq / one", "pyzmq / one_blocking"),
    _most(
        _ONE + ", p99",
        3,
        "x p50",
        "routes.get, one by one, p50 > p99_over_p50",
        "routes.get, one by one, blocking client, p50 > p99_over_p50",
    ),
    _least(_EVENTS, 30_000, "/s", "session events, stored and delivered"),
    _most(_EVENTS + ", p50 at 10 000/s", 5, "ms", "session events at 10,000/s, delay p50"),
    _least("run_once of a scripted agent, 256 in flight, synced to disk", 5_000, "/s", "run_once with echo"),
    _most("a routed run beyond a direct one, p50", 1, "ms", "a routed run beyond a direct one, p50"),
    _most("approval by a client until its run goes on, p50", 20, "ms", "approval until its run goes on, p50"),
    _most("a policy, for each event of its run, CPU", 3, "us", "a policy, for each event of its run"),
    _most("snapshot and diff of a workspace of 10 000 files, CPU", 1.5, "x git status + git diff",
          "snapshot and diff of a workspace, CPU"),
    _least("events of a session, read by cursor", 200_000, "/s", "events of a session, read by cursor"),
    _least(_STREAMS, 29_000, "/s", "1,000 runs stream at once, delivered"),
    _most(_STREAMS + ", p99", 100, "ms", "1,000 runs stream at once, delay p99"),
    _most("node with 10,000 live idle sessions", 300, "MiB", "node with 10,000 live idle sessions"),
    _most("memory per route", 450, "bytes", "memory per route"),
    _most(_RESTART + ", first answer", 300, "ms", "restart of a killed partition, first answer"),
    _most(
        _RESTART + ", longest gap of another one",
        50,
        "ms",
        "restart of a killed partition, longest gap of another",
    ),
    _most("start of a node until the first answer", 1_000, "ms", "start of a node, first answer"),
)


def results(figures: Sequence[Figure], pairs: Sequence[Pair]) -> list[Result]:
    """Every goal, in the order of the table."""
    values = {figure.name: figure.value for figure in figures}
    for figure in figures:
        ratio = figure.details.get("p99_over_p50")
        if ratio is not None:
            values[f"{figure.name} > p99_over_p50"] = float(ratio)
    values.update({f"{pair.peer} / {pair.figure}": pair.ratio for pair in pairs})
    return [_result(goal, values) for goal in GOALS]


def _result(goal: Goal, values: dict[str, float]) -> Result:
    text = f"{'>=' if goal.at_least else '<='} {_amount(goal.bound, goal.unit)}"
    there = [source for source in goal.sources if source in values]
    if not there:
        return Result(goal.row, text, None, "not measured", None)
    best = (max if goal.at_least else min)(there, key=values.__getitem__)
    value = values[best]
    reached = value >= goal.bound if goal.at_least else value <= goal.bound
    here = _amount(value, goal.unit)
    for mark, word in (("(uvloop)", "with uvloop"), ("blocking", "blocking client")):
        if mark in best:
            here += f" ({word})"
    return Result(goal.row, text, value, here, reached)


def _amount(value: float, unit: str) -> str:
    text = f"{value:g}" if value < 100 and value == round(value, 2) else number(value)
    return f"{text}{unit}" if unit[0] in "/x" else f"{text} {unit}"


__all__ = ["GOALS", "Goal", "Result", "results"]
