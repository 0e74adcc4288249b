"""The table and the plot of ``growth.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pictures import COLOURS, finish, panels, plain

#: For each panel: its title, and (key, label, on the right-hand axis) of each curve.
CURVES: dict[str, tuple[str, list[tuple[str, str, bool]]]] = {
    "partitions": ("Partitions", [("rate", "get /s", False), ("sets", "set /s", False)]),
    "clients": ("Clients", [("rate", "get /s", False), ("p50_ms", "p50, ms", True)]),
    "routes": ("Routes", [("gets", "get /s", False), ("sets", "set /s", False),
                          ("fill", "set_many /s", False)]),
    "memory": ("Memory", [("bytes", "bytes for each route", False)]),
    "sessions": ("Sessions, synced to disk", [("creates", "create /s", False), ("gets", "get /s", False)]),
    "restart": ("Restart of a killed partition", []),
    "listeners": ("Listeners", [("delivered", "delivered /s", False), ("p50_ms", "delay p50, ms", True)]),
    "cpu": ("CPU of the node for one operation, us", []),
}

#: Panels whose values span decades.
LOGARITHMIC = {"clients", "restart", "listeners", "cpu"}


def table(found: dict[str, Any]) -> str:
    """One block for each question."""
    lines = []
    for name, rows in found.items():
        if not isinstance(rows, list):
            continue
        columns = list(rows[0])
        lines.append(f"{name:12}" + "".join(f"{column:>13}" for column in columns[1:]))
        lines += [f"{row['n']:>12,}" + "".join(f"{row[c]:>13,}" for c in columns[1:]) for row in rows]
        lines.append("")
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """Eight panels; one that was not measured stays empty."""
    figure, grid = panels(4, 2, "What grows with what", height=2.9)
    for axes, (name, (title, curves)) in zip(grid.flat, CURVES.items(), strict=True):
        axes.set_title(title)
        axes.set_xscale("log")
        axes.set_yscale("log" if name in LOGARITHMIC else "linear")
        if name == "restart":
            _restart(axes, found)
        elif name == "cpu":
            _cpu(axes, found)
        else:
            _rows(axes, found.get("routes" if name == "memory" else name) or [], curves)
        axes.xaxis.set_major_formatter(lambda value, _: plain(value))
        axes.minorticks_off()
        if name not in LOGARITHMIC:
            axes.set_ylim(bottom=0)
    finish(figure, path)


def _rows(axes: Any, rows: list[dict[str, Any]], curves: list[tuple[str, str, bool]]) -> None:
    if not rows:
        return
    sizes = [row["n"] for row in rows]
    axes.set_xticks(sizes if len(sizes) < 5 else sizes[::2])
    right = None
    for place, (key, label, beside) in enumerate(curves):
        target = axes
        if beside:
            target = right = axes.twinx()
            right.set_yscale(axes.get_yscale())
            right.minorticks_off()
            right.yaxis.set_major_formatter(lambda value, _: plain(value))
            right.grid(visible=False)
            right.spines["right"].set_visible(True)
        target.plot(sizes, [row[key] for row in rows], "o--" if beside else "o-", markersize=4,
                    color=COLOURS[place], label=label)
    axes.yaxis.set_major_formatter(lambda value, _: plain(value))
    if right is not None:
        both = [axes.get_legend_handles_labels(), right.get_legend_handles_labels()]
        right.legend(both[0][0] + both[1][0], both[0][1] + both[1][1], loc="upper center")


def _restart(axes: Any, found: dict[str, Any]) -> None:
    for place, name in enumerate(("routes", "sessions")):
        rows = found.get(name) or []
        sizes = [row["n"] for row in rows]
        axes.plot(sizes, [row["restart_s"] for row in rows], "o-", markersize=4, color=COLOURS[place],
                  label=f"{name}: first answer, s")
    rows = found.get("routes") or []
    axes.plot([row["n"] for row in rows], [row["loaded_s"] for row in rows], "o--", markersize=4,
              color=COLOURS[0], label="routes: all loaded, s")


def _cpu(axes: Any, found: dict[str, Any]) -> None:
    curves = [("routes", "get_cpu_us", "get, by routes"), ("routes", "set_cpu_us", "set, by routes"),
              ("sessions", "create_cpu_us", "create, by sessions"), ("clients", "cpu_us", "get, by clients"),
              ("listeners", "cpu_us", "delivery, by listeners")]
    for name, key, label in curves:
        rows = found.get(name) or []
        axes.plot([row["n"] for row in rows], [row[key] for row in rows], "o-", markersize=4, label=label)


__all__ = ["plot", "table"]
