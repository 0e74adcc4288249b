"""The plot of ``mesh bench --peers``: three panels in one PNG, readable on a white and on a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from mesh.cli.bench_lab import Pair, note, number

FILE = "bench-peers.png"
MESH_COLOR, PEER_COLOR, TEXT, GRID = "#0f766e", "#a3b1c2", "#1f2937", "#e5e7eb"
WIDTH_IN, BAR_IN, PANEL_IN, DPI = 10.0, 0.32, 0.95, 110
#: Room right of the longest bar for its number, as a factor on a log axis.
ROOM = 3.0


class Panel(NamedTuple):
    """Which figures of the pairs are bars of one panel, and how a bar is called."""

    title: str
    unit: str
    figures: dict[str, str]  #: figure -> what is added to the peer's name
    ours: dict[str, str]  #: figure -> what is added to "mesh"
    best_first: bool


PANELS = (
    Panel(
        "One read at a time: p50 in us (shorter is better)",
        "us",
        {"one": "", "one_blocking": ", blocking"},
        {"one": "", "one_blocking": ", blocking"},
        False,
    ),
    Panel(
        "256 reads in flight from one client: reads per second (longer is better)",
        "/s",
        {"concurrent": ""},
        {"concurrent": ""},
        True,
    ),
    Panel(
        "256 writes in flight, each on disk before its answer: writes per second (longer is better)",
        "/s",
        {"durable": ", appendfsync always"},
        {"durable": ""},
        True,
    ),
    Panel(
        "Reads in batches: keys per second (longer is better)",
        "/s",
        {"list_of_100": " mget of 100", "pipeline_of_256": " pipeline of 256"},
        {"list_of_100": " get_many of 100"},
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
    heights = [PANEL_IN + BAR_IN * len(rows) for _, rows in panels]
    figure, axes = pyplot.subplots(
        len(panels),
        1,
        figsize=(WIDTH_IN, sum(heights) + 0.6),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for axis, (panel, rows) in zip(axes[:, 0], panels, strict=True):
        _panel(axis, panel, rows)
    figure.suptitle("mesh and its peers, the same 100-byte route, one machine, one run", color=TEXT, size=13)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    figure.savefig(path, dpi=DPI, facecolor="white")
    pyplot.close(figure)
    return [str(path)]


def bars(panel: Panel, pairs: Sequence[Pair]) -> list[tuple[str, float, bool]]:
    """(name, value, whether it is mesh) of each bar, the best one first."""
    rows: dict[str, tuple[float, bool]] = {}
    own: dict[str, list[float]] = {}
    for pair in pairs:
        if pair.figure in panel.figures:
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
    names = [name for name, _, _ in rows]
    values = [value for _, value, _ in rows]
    axis.barh(names, values, color=[MESH_COLOR if ours else PEER_COLOR for _, _, ours in rows], height=0.72)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlim(min(values) / ROOM, max(values) * ROOM)
    axis.set_title(panel.title, loc="left", color=TEXT, size=11)
    axis.tick_params(colors=TEXT, labelsize=9, length=0)
    axis.grid(axis="x", color=GRID, which="major")
    axis.set_axisbelow(True)
    for side in axis.spines.values():
        side.set_visible(False)
    for label, (_, _, ours) in zip(axis.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if ours else "normal")
    for place, value in enumerate(values):
        axis.annotate(
            f"{number(value)}{'/s' if panel.unit == '/s' else ' us'}",
            (value, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=TEXT,
            size=9,
        )


__all__ = ["FILE", "PANELS", "Panel", "bars", "draw"]
