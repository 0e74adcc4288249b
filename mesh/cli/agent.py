"""``mesh agent``: what the node can run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mesh.cli import render
from mesh.cli.app import group, shell


@group()
def agent() -> None:
    """What the node can run.

    \b
    Example:
      mesh agent list
    """


@agent.command("list")
def list_agents() -> None:
    """List the agents with their provider, capabilities, and what is wrong with them.

    Of a router also the agents that it chooses from, each with its circuit: closed, half open (one run probes
    it), or open for some seconds because it failed too often. Every runner has its own.

    Example: mesh agent list -o json
    """
    with shell().client() as client:
        _show(client.agents.list())


@agent.command("reload")
def reload() -> None:
    """Load the agents anew after a change of the config or of an agent's file; nothing is restarted.

    Example: mesh agent reload
    """
    with shell().client() as client:
        _show(client.agents.reload())


def _show(agents: Iterable[Any]) -> None:
    found = [entry if isinstance(entry, dict) else entry.to_map() for entry in agents]
    if shell().json:
        return render.emit_json({"items": found})
    columns = ("agent", "provider", "capabilities", "routes to", "problem")
    return render.table(columns, map(_row, found))


def _row(entry: dict[str, Any]) -> tuple[Any, ...]:
    names, circuits = _names(entry.get("capabilities")), _circuits(entry.get("routing"))
    return entry.get("name"), entry.get("provider"), names, circuits, _problem(entry)


def _names(capabilities: Any) -> str:
    names = (c.get("name", "?") if isinstance(c, dict) else str(c) for c in capabilities or ())
    return ", ".join(names) or "-"


def _circuits(runners: Any) -> str:
    """Each agent of a router with its circuit; where runners differ, with how many say so."""
    seen: dict[str, list[str]] = {}
    for runner in runners or ():
        for row in runner["agents"]:
            state = str(row["state"]).replace("_", " ")
            more = f" {row['open_ms'] / 1000:.0f} s" if state == "open" else ""
            seen.setdefault(row["agent"], []).append(state + more)
    return ", ".join(f"{agent} {_together(states)}" for agent, states in seen.items()) or "-"


def _together(states: list[str]) -> str:
    kinds = list(dict.fromkeys(states))
    if len(kinds) == 1:
        return kinds[0]
    return " / ".join(f"{kind} ({states.count(kind)} of {len(states)})" for kind in kinds)


def _problem(entry: dict[str, Any]) -> str:
    problem = entry.get("problem")
    if isinstance(problem, dict):
        problem = problem.get("message")
    return str(problem).strip().splitlines()[-1] if problem else "-"


__all__ = ["agent"]
