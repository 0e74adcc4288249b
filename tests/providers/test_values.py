"""What agents yield of Python's own values, times and ids, and how it stands in the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from driving import Bench, drive, python_agent, run

from mesh.core.events import RUN_TERMINAL_EVENT

HEAD = """
import dataclasses, datetime, decimal, uuid
import mesh
NOON = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)

@dataclasses.dataclass
class Found:
    path: str
    when: datetime.datetime
"""
TEXT = "2026-11-21T12:00:00+00:00"


def result_of(folder: Path, body: str, **more: Any) -> Any:
    return run(python_agent(folder, f"{HEAD}\nasync def agent(run):\n    {body}"), "go", **more)


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("{'when': NOON}", {"when": TEXT}),
        (
            "{'all': [{1, 2}, (NOON,), uuid.UUID(int=1), decimal.Decimal('1.5')]}",
            {"all": [[1, 2], [TEXT], "00000000-0000-0000-0000-000000000001", "1.5"]},
        ),
        ("{'raw': b'\\xff', 'more': bytearray(b'x')}", {"raw": b"\xff", "more": b"x"}),
        ("Found('a', NOON)", {"path": "a", "when": TEXT}),
        ("{'found': [Found('a', NOON)], 3: None}", {"found": [{"path": "a", "when": TEXT}], "3": None}),
        ("{'half': 'a\\ud800'}", {"half": "a?"}),
    ],
)
def test_values_of_an_agent_are_stored_as_the_table_says(tmp_path: Path, value: str, stored: Any) -> None:
    """If an agent yields values that are not plain, then events and output hold their plain form."""
    body = (
        f"found = {value}\n"
        "    yield {'type': 'turn_completed', 'data': found, 'metadata': {'m': found}}\n"
        "    yield {'type': 'output', 'data': found}"
    )
    event = result_of(tmp_path, body)
    assert event.settle["error"] is None
    assert event.data("turn_completed") == [stored]
    assert event.events[1]["metadata"] == {"m": stored}
    assert event.output == stored


def test_unknown_object_fails_the_run_and_is_named(tmp_path: Path) -> None:
    """If an agent yields an object that cannot travel, then the error says which and where."""
    result = result_of(tmp_path, "yield {'type': 'turn_completed', 'data': {'items': [1, object()]}}")
    assert (result.error["code"], result.error["details"]["path"]) == ("validation_error", "data.items[1]")
    assert result.types == ["run_started", "run_failed"]


def test_details_that_cannot_be_kept_do_not_hide_the_error(tmp_path: Path) -> None:
    """If an agent's error has details that cannot travel, then its code and message are still there."""
    result = result_of(tmp_path, "raise mesh.RunError('m', code='tool_error', details={'x': object()})")
    assert (result.error["code"], result.error["message"]) == ("tool_error", "m")
    assert "details.x" in result.error["details"]["not_kept"]


@pytest.mark.parametrize("ts", ["NOON", "NOON.replace(tzinfo=None)", "NOON.timestamp()"])
def test_an_agent_may_say_when_it_happened(tmp_path: Path, ts: str) -> None:
    """If an event has a time of its own, then that is stored, with its metadata."""
    piece = f"{{'type': 'turn_completed', 'ts': {ts}, 'metadata': {{'latency': 42}}}}"
    event = result_of(tmp_path, f"yield {piece}").events[1]
    assert (event["ts"], event["metadata"]) == (1795262400.0, {"latency": 42})


def test_each_event_of_a_run_has_its_session_s_correlation_id(tmp_path: Path) -> None:
    """If a session's metadata names a correlation id, then its runs' events carry it, or one of their own."""
    source = (
        "async def agent(run):\n    yield 'a'\n"
        "    yield {'type': 'turn_completed', 'correlation_id': 'own'}\n"
        "    yield {'type': 'turn_completed', 'metadata': {'a': 1}}"
    )

    async def play(bench: Bench) -> Any:
        return await bench.result(bench.begin("agent", "go", metadata={"correlation_id": "c"}))

    events = drive({"agent": python_agent(tmp_path, source)}, play).events
    assert [event["correlation_id"] for event in events] == ["c", "c", "own", "c", "c", "c"]


def test_events_of_an_agent_that_cannot_load_name_its_provider(tmp_path: Path) -> None:
    """If no provider could be built, then its events still say which it is."""
    broken = {"provider": "python", "target": f"{tmp_path}/missing.py:agent"}
    result = run(broken, "go")
    assert [event["provider"] for event in result.events] == ["python", "python"]


@pytest.mark.parametrize(
    "body",
    ["raise ValueError('x')", "yield 3", "yield {'type': 'error_occurred'}; raise ValueError('x')"],
)
def test_a_failed_run_has_one_run_failed(tmp_path: Path, body: str) -> None:
    """If a run fails, whatever the way, then exactly one event says so, the last."""
    result = result_of(tmp_path, body)
    terminal = [event_type for event_type in result.types if event_type in RUN_TERMINAL_EVENT.values()]
    assert terminal == ["run_failed"] == result.types[-1:]


@pytest.mark.parametrize(
    ("piece", "warnings"),
    [
        (
            "{'type': 'message_received', 'data': {'content': 7}}",
            ["content must be str, not int", "role is missing"],
        ),
        ("{'type': 'message_streamed', 'data': {'content': None}}", ["content must be str, not NoneType"]),
        ("{'type': 'tool_call_started', 'data': {}}", ["tool_name is missing"]),
        (
            "{'type': 'token_usage_updated', 'data': {'input_tokens': True, 'output_tokens': 1.5}}",
            ["input_tokens must be int, not bool", "output_tokens must be int, not float"],
        ),
        ("{'type': 'turn_completed'}", None),
    ],
)
def test_a_wrong_shape_is_a_warning(tmp_path: Path, piece: str, warnings: Any) -> None:
    """If an event is not of its type's shape, then it is kept, with warnings in its metadata."""
    result = result_of(tmp_path, f"yield {piece}")
    assert result.types[-1] == "run_completed"
    assert result.events[1]["metadata"].get("_validation_warnings") == warnings


def test_the_node_s_own_events_are_of_their_shape(tmp_path: Path) -> None:
    """If the node itself wrote an event of a wrong shape, then its warnings would mean nothing."""
    for body in ("yield 'a'", "return {'x': 1}", "raise ValueError('x')"):
        for event in result_of(tmp_path, body).events:
            assert "_validation_warnings" not in event["metadata"]
