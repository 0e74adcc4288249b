"""Transcripts of logs with a hundred thousand events: whole, paired, and the newest under a budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from transcript_cases import event

from mesh.core.continuation import checked_budget, transcript_of
from mesh.core.history import read_on
from mesh.core.transcript import Fold

EVENTS = 100_000
TURN = 10  #: events of one turn


@pytest.fixture(scope="module")
def turns() -> Fold:
    """Ten thousand turns, each with two tool calls, read on in pages."""
    made = Fold("s")
    page: list[dict[str, Any]] = []
    for one in log_of_turns():
        page.append(one)
        if len(page) == 5_000:
            made.add(page)
            page.clear()
    made.add(page)
    return made


def log_of_turns() -> Iterator[dict[str, Any]]:
    for turn in range(EVENTS // TURN):
        run = f"run_{turn}"
        steps: list[tuple[str, dict[str, Any]]] = [
            ("message_sent", {"role": "user", "content": f"ask {turn}"}),
            ("run_started", {"agent": "x"}),
            ("tool_call_started", {"tool_name": "t", "tool_call_id": "a", "tool_input": {"n": turn}}),
            ("tool_call_started", {"tool_name": "t", "tool_call_id": "b", "tool_input": {}}),
            ("tool_call_completed", {"tool_name": "t", "tool_call_id": "b", "tool_output": "of b"}),
            ("tool_call_completed", {"tool_name": "t", "tool_call_id": "a", "tool_output": turn}),
            ("message_streamed", {"content": "answer "}),
            ("message_streamed", {"content": str(turn)}),
            ("message_received", {"role": "assistant", "content": f"answer {turn}"}),
            ("run_completed", {"stop_reason": "end_turn"}),
        ]
        for place, (kind, data) in enumerate(steps, 1):
            yield event(turn * TURN + place, kind, run, data)


def test_a_transcript_of_a_hundred_thousand_events_has_each_turn_once(turns: Fold) -> None:
    """If a session has a hundred thousand events, then each question, call, result and answer stands once."""
    messages = transcript_of(turns).messages
    assert turns.seq == EVENTS
    asked = [m.content for m in messages if m.role == "user"]
    assert asked == [f"ask {turn}" for turn in range(EVENTS // TURN)]
    answers = [m.content for m in messages if m.role == "assistant" and m.content]
    assert answers == [f"answer {turn}" for turn in range(EVENTS // TURN)]
    outputs = [m.tool_output for m in messages if m.tool_call_id == "a" and m.tool_output is not None]
    assert outputs == list(range(EVENTS // TURN))


@pytest.mark.parametrize("budget", [{"max_messages": 7}, {"max_chars": 200}, {"max_tokens_approx": 50}])
def test_a_budget_keeps_the_newest_of_a_long_one(turns: Fold, budget: dict[str, int]) -> None:
    """If such a transcript has a budget, then its end is kept, and no call loses its result."""
    messages = transcript_of(turns, checked_budget(budget)).messages
    assert 0 < len(messages) <= 60
    assert messages[-1].content == f"answer {EVENTS // TURN - 1}"
    calls = [m for m in messages if m.tool_call_id == "a"]
    assert len([m for m in calls if m.tool_output is not None]) * 2 == len(calls)


def test_an_answer_in_a_hundred_thousand_pieces_is_one_message() -> None:
    """If a run streams a hundred thousand pieces and then says the whole, then the transcript has it once."""
    fold = Fold("s")
    fold.add([
        event(1, "message_sent", "r", {"role": "user", "content": "go"}), event(2, "run_started", "r", {}),
        *(event(n + 3, "message_streamed", "r", {"content": f"{n} "}) for n in range(EVENTS)),
    ])
    text = "".join(f"{n} " for n in range(EVENTS))
    fold.add([
        event(EVENTS + 3, "message_received", "r", {"role": "assistant", "content": text}),
        event(EVENTS + 4, "run_completed", "r", {"stop_reason": "end_turn"}),
    ])
    assert [m.content for m in transcript_of(fold).messages] == ["go", text]


def test_a_page_that_says_where_the_log_goes_on_has_lost_nothing() -> None:
    """If a log is longer than a page, then its transcript is whole and says of none that it was removed."""
    log = [event(n, "message_received", None, {"role": "assistant", "content": f"s{n}"}) for n in range(1, 8)]
    fold = Fold("s")
    reading = read_on(fold, 7)
    _, [_, asked] = next(reading)
    with pytest.raises(StopIteration):
        while True:
            rows = [one for one in log if one["seq"] > asked["after"]][:3]
            more = rows[-1]["seq"] < 7
            _, [_, asked] = reading.send([rows, False, 0, rows[-1]["seq"]] if more else [rows, True])
    assert len(transcript_of(fold).messages) == 7 and fold.pruned_to == 0
