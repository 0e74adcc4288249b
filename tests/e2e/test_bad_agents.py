"""Agents that yield what is no event: the run fails with the code and the place, the log is intact, and the
session and its neighbours go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mesh
from mesh.core.events import RUN_TERMINAL_EVENT

#: What is yielded -> the code of the run's error; None: it is kept.
GARBAGE: dict[str, tuple[str, str | None]] = {
    "number": ("7", "validation_error"),
    "bytes": ("b'x'", "validation_error"),
    "nothing": ("{}", "validation_error"),
    "unknown": ("{'type': 'coffee_brewed'}", "invalid_event_type"),
    "promise": ("{'type': 'session_completed'}", "invalid_event_type"),
    "strange": ("{'type': 'turn_completed', 'dta': 1}", "validation_error"),
    "list": ("{'type': 'turn_completed', 'data': [1]}", "validation_error"),
    "object": ("{'type': 'turn_completed', 'data': {'x': [object()]}}", "validation_error"),
    "ring": ("{'type': 'turn_completed', 'data': RING}", "limit_exceeded"),
    "time": ("{'type': 'turn_completed', 'ts': 'noon'}", "validation_error"),
    "large": ("{'type': 'tool_call_completed', 'data': {'tool_name': 'x', 'tool_output': 'y' * 4**11}}",
              None),
    "huge": ("{'type': 'tool_call_completed', 'data': {'tool_name': 'x', 'tool_output': 'y' * 10**7}}", None),
    "monstrous": ("{'type': 'tool_call_completed', 'data': {'tool_name': 'x', 'tool_output': 'y' * 2**24}}",
                  "limit_exceeded"),
    "shape": ("{'type': 'tool_call_started', 'data': {'tool_name': 7}}", None),
}  # fmt: skip


@pytest.fixture
def node_config(agents_file: Path) -> dict[str, Any]:
    """One agent: its prompt says what it yields."""
    lines = ["RING = {}", "RING['x'] = RING", "async def agent(run):", "    yield 'before'"]
    for name, (source, _) in GARBAGE.items():
        lines += [f"    if run.prompt == {name!r}:", f"        yield {source}"]
    agents_file.write_text("\n".join([*lines, "    yield 'after'\n"]))
    return {"agents": {"bad": {"provider": "python", "target": f"{agents_file}:agent"}}}


def test_garbage_of_an_agent_fails_its_run_and_nothing_else(client: mesh.Client) -> None:
    """If an agent yields garbage, then its run fails with the specified code; the log has no hole, each run
    one end, and the same session executes the next run."""
    client.sessions.start("bad", id="s")
    outcome: dict[str, str | None] = {}
    for name in GARBAGE:
        run = client.runs.submit("s", name)
        try:
            client.runs.wait(run.id, timeout_s=30)
            outcome[name] = None
        except mesh.MeshError as error:
            outcome[name] = error.code
    assert outcome == {name: code for name, (_, code) in GARBAGE.items()}
    events = client.sessions.events("s")
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    ends = [event.run_id for event in events if event.type in RUN_TERMINAL_EVENT.values()]
    assert len(ends) == len(set(ends)) == len(GARBAGE)
    assert [bool(event.metadata.get("_validation_warnings")) for event in events].count(True) == 1
