"""What a partition knows of the agents, and what it does while it knows nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mesh.core.agents import Agents
from mesh.core.hosting import Hosting
from mesh.core.live import NoRunner
from mesh.errors import InvalidArgument


def row(problem: str | None, *names: str) -> dict[str, Any]:
    capabilities = [{"name": name, "type": "tool", "enabled": True} for name in names]
    return {"name": "a", "provider": "python", "capabilities": capabilities, "problem": problem}


def agents(*rows: dict[str, Any]) -> Agents:
    state: Any = SimpleNamespace(runners={}, hosting=Hosting())
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


def test_router_whose_agents_are_loading_denies_no_capability_yet() -> None:
    """If some agents of a router are still being loaded, then a run that requires more waits for them."""
    wanted = {"required_capabilities": ["file_access"]}
    with pytest.raises(NoRunner):
        agents({**row(None, "x"), "partial": True}).check_capabilities("a", wanted)
    with pytest.raises(InvalidArgument) as caught:
        agents({**row(None, "x"), "partial": False}).check_capabilities("a", wanted)
    assert caught.value.details == {"missing": ["file_access"], "has": ["tool"]}


def test_circuits_are_shown_by_runner_and_are_no_news_to_calls_that_wait() -> None:
    """If a runner's view of a router's agents changes, then the list shows it, and nobody is woken for it."""
    known = agents()
    known.state.ready_runners = lambda: [1, 0]  # type: ignore[method-assign]

    def tell(runner: int, state: str) -> bool:
        seen = [{"agent": "b", "state": state}]
        return known.on_catalogue(runner, None, [{**row(None), "provider": "router", "routing": seen}])

    assert tell(0, "closed")
    assert not tell(1, "closed") and not tell(1, "open")
    [shown] = known.rows()
    assert [(seen["runner"], seen["agents"][0]["state"]) for seen in shown["routing"]] == [
        (0, "closed"), (1, "open")]
    known.state.ready_runners = lambda: [0]  # type: ignore[method-assign]
    assert [seen["runner"] for seen in known.rows()[0]["routing"]] == [0]
