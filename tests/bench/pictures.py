"""How the plots of the benches look: one place for sizes, colours and grids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot

COLOURS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#787774", "#cb912f")


def panels(rows: int, columns: int, title: str, height: float = 3.9) -> tuple[Any, Any]:
    """A figure and its axes."""
    mpl.rcParams.update({
        "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.alpha": 0.25, "lines.linewidth": 1.6, "legend.frameon": False,
        "legend.fontsize": 8, "legend.handlelength": 3, "axes.prop_cycle": mpl.cycler(color=COLOURS),
    })
    size = (5.4 * columns, height * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=12, fontweight="bold")
    return figure, axes


def plain(value: float) -> str:
    """10000 -> 10k, for ticks."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


def finish(figure: Any, path: Path) -> None:
    """Legends, plain ticks, and the file."""
    for axes in figure.axes:
        twin = any(other is not axes and other.bbox.bounds == axes.bbox.bounds for other in figure.axes)
        if axes.get_legend_handles_labels()[1] and not twin:
            axes.legend()
        if axes.get_yscale() == "log":
            axes.yaxis.set_major_formatter(lambda value, _: plain(value))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


__all__ = ["finish", "panels", "plain"]
