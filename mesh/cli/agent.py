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
    rows = ((a.get("name"), a.get("provider"), _names(a.get("capabilities")), _problem(a)) for a in found)
    return render.table(("agent", "provider", "capabilities", "problem"), rows)


def _names(capabilities: Any) -> str:
    names = (c.get("name", "?") if isinstance(c, dict) else str(c) for c in capabilities or ())
    return ", ".join(names) or "-"


def _problem(entry: dict[str, Any]) -> str:
    problem = entry.get("problem")
    if isinstance(problem, dict):
        problem = problem.get("message")
    return str(problem).strip().splitlines()[-1] if problem else "-"


__all__ = ["agent"]
