"""The plot of ``mesh bench --peers``: three panels in one PNG, readable on a white and on a dark page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from mesh.cli.bench_lab import Pair, note

FILE = "bench-peers.png"
MESH_COLOR, PEER_COLOR, TEXT, GRID = "#0f766e", "#7b8aa0", "#1f2937", "#e5e7eb"
TITLE = "mesh and its peers: the same 100-byte route, out of process, measured in turns on one machine"
COLUMNS, PANEL_WIDTH_IN, PANEL_IN, ROW_IN, TITLE_IN, PAD_IN, DPI = 2, 5.4, 0.8, 0.235, 0.5, 0.1, 100
#: pyzmq has no asyncio in it: both of its latencies are the same measurement.
TWICE = ("pyzmq", "one_blocking")
#: Room right of the last dot for its number, as a factor on a log axis.
ROOM = 4.0
#: A dot keeps at least this factor away from the left end.
CLOSE = 1.3


class Panel(NamedTuple):
    """Which figures of the pairs are in one panel, and how each is called."""

    title: str
    unit: str
    figures: dict[str, str]  #: figure -> what is added to the peer's name
    ours: dict[str, str]  #: figure -> what is added to "mesh"
    best_first: bool


PANELS = (
    Panel(
        "One read at a time: p50, us (less is better)",
        "us",
        {"one": "", "one_blocking": ", blocking"},
        {"one": "", "one_blocking": ", blocking"},
        False,
    ),
    Panel(
        "256 reads in flight: reads/s (more is better)",
        "/s",
        {"concurrent": ""},
        {"concurrent": ""},
        True,
    ),
    Panel(
        "256 writes in flight, each synced to disk: writes/s",
        "/s",
        {"durable": ""},
        {"durable": ""},
        True,
    ),
    Panel(
        "Reads in batches: keys/s (more is better)",
        "/s",
        {"list_of_100": " mget 100", "pipeline_of_256": " pipeline 256"},
        {"list_of_100": " get_many 100"},
        True,
    ),
)


def draw(pairs: Sequence[Pair], folder: Path) -> list[str]:
    """Write the plot; its path. Without matplotlib there is none, and that is said."""
    if find_spec("matplotlib") is None:
        note("no plot: matplotlib is not installed (pip install matplotlib)")
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [(panel, rows) for panel in PANELS if (rows := bars(panel, pairs))]
    columns = min(len(panels), COLUMNS)
    lines = [panels[begin : begin + columns] for begin in range(0, len(panels), columns)]
    heights = [PANEL_IN + ROW_IN * max(len(rows) for _, rows in line) for line in lines]
    figure, axes = pyplot.subplots(
        len(lines),
        columns,
        figsize=(PANEL_WIDTH_IN * columns, sum(heights) + TITLE_IN),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for place, axis in enumerate(axes.flat):
        if place < len(panels):
            _panel(axis, *panels[place])
        else:
            axis.set_visible(False)
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=PAD_IN, h_pad=PAD_IN)
    figure.suptitle(TITLE, color=TEXT, size=12, weight="bold")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    figure.savefig(path, dpi=DPI, facecolor="white")
    pyplot.close(figure)
    return [str(path)]


def bars(panel: Panel, pairs: Sequence[Pair]) -> list[tuple[str, float, bool]]:
    """(name, value, whether it is mesh) of each dot, the best one first."""
    rows: dict[str, tuple[float, bool]] = {}
    own: dict[str, list[float]] = {}
    for pair in pairs:
        if pair.figure in panel.figures and (pair.peer, pair.figure) != TWICE:
            loop = " (uvloop)" if pair.peer.endswith(" (uvloop)") else ""
            peer = pair.peer.removesuffix(" (uvloop)") + panel.figures[pair.figure] + loop
            rows[peer] = (pair.theirs, False)
            if pair.figure in panel.ours:
                own.setdefault(f"mesh{panel.ours[pair.figure]}{loop}", []).append(pair.mesh)
    for name, values in own.items():
        rows[name] = (sorted(values)[len(values) // 2], True)
    found = [(name, value, ours) for name, (value, ours) in rows.items()]
    return sorted(found, key=lambda row: row[1], reverse=panel.best_first)


def _panel(axis: Any, panel: Panel, rows: list[tuple[str, float, bool]]) -> None:
    """Dots on a log axis: the length of a bar would say nothing there."""
    from matplotlib.ticker import NullLocator

    values = [value for _, value, _ in rows]
    left = 10 ** math.floor(math.log10(min(values) / CLOSE))
    for place, (_, value, ours) in enumerate(rows):
        color = MESH_COLOR if ours else PEER_COLOR
        axis.plot((left, value), (place, place), color=color, linewidth=1.6 if ours else 1.0, alpha=0.6)
        axis.plot(value, place, "o", color=color, markersize=7)
        axis.annotate(
            f"{value:,.0f}",
            (value, place),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=TEXT,
            size=8.5,
            weight="bold" if ours else "normal",
        )
    axis.set_xscale("log")
    axis.set_xlim(left, max(values) * ROOM)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_title(panel.title, loc="left", color=TEXT, size=10)
    axis.tick_params(colors=TEXT, labelsize=8.5, length=0)
    axis.grid(axis="x", color=GRID, which="major")
    axis.set_axisbelow(True)
    axis.spines[:].set_visible(False)
    for label, (_, _, ours) in zip(axis.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if ours else "normal")


__all__ = ["FILE", "PANELS", "Panel", "bars", "draw"]
