"""Recordings: what is read of their lines, and which run answers which question."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import recording
from mesh.errors import InvalidArgument


def line(**value: Any) -> str:
    return json.dumps(value)


def run(run_id: str, asks: Any = "hi", **more: Any) -> str:
    return line(run={"id": run_id, "input": asks, "status": "completed", "output": {"content": "x"}, **more})


def event(run_id: str, kind: str, ts: float, **data: Any) -> str:
    return line(event={"run_id": run_id, "type": kind, "ts": ts, "data": data, "metadata": {}})


def said(run_id: str, ts: float, *texts: str) -> list[str]:
    middle = [event(run_id, "message_streamed", ts + n, content=text) for n, text in enumerate(texts, 1)]
    return [event(run_id, "run_started", ts, model="m"), *middle,
            event(run_id, "run_completed", ts + len(texts) + 1, stop_reason="end_turn")]


def test_runs_come_in_the_order_in_which_they_began() -> None:
    """If lines of two runs are mixed, then each run has its own pieces, at their times, first begun first."""
    first, second = said("a", 100.0, "x", "y"), said("b", 50.0, "z")
    mixed = [part for pair in zip(first, second, strict=False) for part in pair] + first[3:]
    found = recording.read([line(mesh_recording=1), run("a"), *mixed, run("b")])
    assert [recorded.id for recorded in found] == ["b", "a"]
    assert [(at, piece["data"]["content"]) for at, piece in found[1].pieces] == [(1.0, "x"), (2.0, "y")]
    assert found[1].ended_s == 3.0
    assert found[1].model == "m"


def test_only_what_an_agent_says_is_said_again() -> None:
    """If the node wrote an event, then the recording leaves it to the node of the replay."""
    lines = [
        run("a"), event("a", "run_started", 1), event("a", "message_sent", 1, content="hi", role="user"),
        event("a", "tool_call_failed", 2, error="aborted"), event("a", "tool_call_failed", 2, error="broken"),
        event("a", "policy_violation", 2), event("a", "turn_completed", 2),
        line(event={"run_id": "a", "type": "message_received", "ts": 2.0, "data": {"content": "ha"},
                    "metadata": {"partial": True}}),
        event("a", "run_failed", 3),
    ]
    [found] = recording.read(lines)
    assert [piece["type"] for _, piece in found.pieces] == ["tool_call_failed", "turn_completed"]


def test_last_attempt_counts() -> None:
    """If a run was tried twice, then what its first attempt said is not said again."""
    [found] = recording.read([run("a"), *said("a", 1.0, "lost")[:-1], *said("a", 9.0, "kept")])
    assert [piece["data"]["content"] for _, piece in found.pieces] == ["kept"]


def test_run_that_was_cut_off_has_no_end() -> None:
    """If a recording stops in the middle of a run, then that run has no end, and its later line wins."""
    [found] = recording.read([run("a", status="running"), *said("a", 1.0, "x")[:-1]])
    assert found.ended_s is None


@pytest.mark.parametrize("bad", [
    "x", "[]", '{"run": 3}', '{"run": {}}', '{"event": {"run_id": "a"}}',
    '{"event": {"run_id": 3, "type": "x", "ts": 1}}',
    '{"mesh_recording": 2}', '{"mesh_recording": ', '{"mesh_export": 9, "session": {}}', '{"other": {}}',
])
def test_line_that_is_none_is_named(bad: str) -> None:
    """If a line is no line of a recording, then the error says which."""
    with pytest.raises(InvalidArgument, match="line 2"):
        recording.read([line(mesh_recording=1), bad])


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    """If a file holds anything, then reading it gives runs or a clear refusal."""
    try:
        recording.read([text])
    except InvalidArgument as exc:
        assert "line 1" in exc.message


def test_question_asked_again_gets_the_next_answer_and_then_the_last_again() -> None:
    """If one input is asked three times and was recorded twice, then the answers are first, last, last."""
    runs = recording.read([run("a"), *said("a", 1.0, "1"), run("b", {"prompt": "hi"}), *said("b", 2.0, "2")])
    played: dict[str, int] = {}
    answers = []
    for _ in range(3):
        found = recording.chosen(runs, {"messages": [{"role": "user", "content": "hi"}]}, played, "input")
        assert found is not None
        answers.append(found[0].id)
        played[found[1]] = played.get(found[1], 0) + 1
    assert answers == ["a", "b", "b"]
    assert recording.chosen(runs, "other", {}, "input") is None


def test_by_order_the_nth_run_gets_the_nth_and_none_comes_twice() -> None:
    """If runs are matched by order, then what they ask does not matter, and their number is bounded."""
    runs = recording.read([run("a"), *said("a", 1.0, "1")])
    assert recording.chosen(runs, "whatever", {}, "order") == (runs[0], "")
    assert recording.chosen(runs, "whatever", {"": 1}, "order") is None


@pytest.mark.parametrize(("counts", "final", "mode"), [
    ([3, 4], 7, "delta"), ([3, 4], 4, "total"), ([5], 5, "total"), ([], 0, "total"),
])
def test_how_usage_was_counted_is_told_from_its_sum(counts: list[int], final: int, mode: str) -> None:
    """If counts add up to the run's, then they were deltas; if the largest is the run's, totals."""
    events = [event("a", "token_usage_updated", 2.0, output_tokens=count) for count in counts]
    usage = {"output_tokens": final} if counts else {}
    [found] = recording.read([run("a", token_usage=usage), event("a", "run_started", 1.0), *events])
    assert found.usage_mode == mode
