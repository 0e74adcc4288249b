"""Every provider behind a router: its run is the one that it would have been without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from contract import Subject
from driving import Result, run_of


def essence(result: Result) -> dict[str, Any]:
    """What of a run must not depend on who was asked."""
    error = result.settle["error"] or {}
    return {
        "types": result.types, "providers": {event["provider"] for event in result.events},
        "status": result.settle["status"], "content": (result.settle["output"] or {}).get("content"),
        "code": error.get("code"), "usage": result.settle["token_usage"],
        "model": result.settle["provider_metadata"].get("model"),
        "said": "".join(data["content"] for data in result.data("message_streamed")),
    }


@pytest.mark.parametrize("scene", ["good", "bad"])
def test_routed_run_is_what_the_direct_one_is(subject: Subject, tmp_path: Path, scene: str) -> None:
    """If an agent is asked through a router, then its run ends and reads as if it had been asked itself."""
    agent = subject.agent(scene, tmp_path)
    direct = run_of(agent, {"agent": agent.table})
    agent = subject.agent(scene, tmp_path)
    routed = run_of(agent, {"behind": agent.table, "agent": {"provider": "router", "agents": ["behind"]}})
    found, wanted = essence(routed), essence(direct)
    if scene == "bad":  # what is said before the first word of a run that fails is dropped
        assert set(found.pop("types")) <= set(wanted.pop("types"))
    else:
        quiet = ("message_streamed",)  # how a text is cut is the provider's, and time's
        for one in (found, wanted):
            one["types"] = [kind for kind in one["types"] if kind not in quiet]
    assert found == wanted
    [started] = routed.data("run_started")
    assert (started["agent"], started["routed_to"]) == ("agent", "behind")


def test_provider_takes_over_from_one_that_failed(subject: Subject, tmp_path: Path) -> None:
    """If another agent failed, then the run is the provider's, and whole."""
    agent = subject.agent("good", tmp_path)
    result = run_of(agent, {
        "down": {"provider": "python", "target": "/nowhere.py:agent"}, "behind": agent.table,
        "agent": {"provider": "router", "agents": ["down", "behind"]}})
    assert (result.settle["status"], result.output["content"]) == ("completed", subject.text)
    assert result.types[0] == "run_started" and result.types[-1] == "run_completed"
    [started] = result.data("run_started")
    assert started["routing"]["tried"][0]["agent"] == "down"
    assert {event["provider"] for event in result.events} == {started["provider"]}
