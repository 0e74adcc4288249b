"""What a partition knows of the agents, and what it does while it knows nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mesh.core.agents import Agents
from mesh.core.live import NoRunner
from mesh.errors import InvalidArgument


def row(problem: str | None, *names: str) -> dict[str, Any]:
    capabilities = [{"name": name, "type": "tool", "enabled": True} for name in names]
    return {"name": "a", "provider": "python", "capabilities": capabilities, "problem": problem}


def agents(*rows: dict[str, Any]) -> Agents:
    state: Any = SimpleNamespace()
    known = Agents(state, {"a": {"provider": "python"}})
    if rows:
        known.on_catalogue(0, None, rows)
    return known


@pytest.mark.parametrize("rows", [(), (row("loading"),)])
def test_capability_that_nobody_told_of_yet_is_waited_for(rows: tuple[dict[str, Any], ...]) -> None:
    """If a partition just began, then it waits for the runners' word instead of denying a capability."""
    with pytest.raises(NoRunner):
        agents(*rows).check_named("a", "pause")


def test_capability_that_the_agent_has_passes() -> None:
    """If an agent declares the capability, then nothing is refused."""
    agents(row(None, "pause")).check_named("a", "pause")


def test_capability_that_the_agent_has_not_is_refused() -> None:
    """If an agent does not declare the capability, then it is capability_not_supported."""
    with pytest.raises(InvalidArgument) as caught:
        agents(row(None, "resume")).check_named("a", "pause")
    assert caught.value.code == "capability_not_supported"
