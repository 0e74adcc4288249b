"""What a run reports beside its events: usage, turns, its provider's own names; and how it breaks off."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from driving import Bench, Result, drive, python_agent, run

from mesh.node.ending import cancelled

USED = '    yield {"type": "token_usage_updated", "data": {"input_tokens": %d, "output_tokens": %d%s}}\n'


def said(folder: Path, *pieces: str, **table: Any) -> Result:
    """What a run of these pieces leaves."""
    source = "async def agent(run):\n    if False:\n        yield\n" + "".join(pieces)
    return run(python_agent(folder, source, **table), "go")


def events(*maps: dict[str, Any]) -> list[str]:
    return [f"    yield {piece!r}\n" for piece in maps]


@pytest.mark.parametrize(
    ("table", "more", "expected"),
    [
        ({}, "", (30, 3)),
        ({"usage_mode": "total"}, "", (30, 3)),
        ({"usage_mode": "delta"}, "", (60, 6)),
        ({}, ', "mode": "delta"', (60, 6)),
        ({"usage_mode": "delta"}, ', "mode": "total"', (30, 3)),
    ],
)
def test_usage_is_counted_as_the_agent_declares(
    tmp_path: Path, table: dict[str, Any], more: str, expected: tuple[int, int]
) -> None:
    """If an agent says totals, the last holds; if it says deltas, they are added; the event says it best."""
    result = said(tmp_path, *(USED % (10 * n, n, more) for n in (1, 2, 3)), **table)
    used = {"input_tokens": expected[0], "output_tokens": expected[1]}
    assert result.settle["token_usage"] == used
    assert result.data("run_completed")[0]["token_usage"] == used


def test_turns_are_counted(tmp_path: Path) -> None:
    """If an agent completes turns, then the run knows how many."""
    assert said(tmp_path, *events(*[{"type": "turn_completed"}] * 3)).settle["turn_count"] == 3


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"provider_session_id": "p1", "session_id": "s", "model": "m"}, ("p1", "m")),
        ({"session_id": "s", "thread_id": "t"}, ("s", None)),
        ({"thread_id": "t", "model": ""}, ("t", None)),
        ({"provider_session_id": 5, "model": ["m"]}, (None, None)),
        ({"provider_session_id": "x" * 600}, (None, None)),
    ],
)
def test_how_the_provider_calls_itself_is_kept(
    tmp_path: Path, data: dict[str, Any], told: tuple[str | None, str | None]
) -> None:
    """If an agent says run_started, then its id is the first of three, and there is one run_started."""
    result = said(tmp_path, *events({"type": "run_started", "data": data}, {"type": "turn_completed"}))
    about = result.settle["provider_metadata"]
    assert (about.get("provider_session_id"), about.get("model")) == told
    assert result.types.count("run_started") == 1


def test_a_scripted_adapter_of_the_reference_can_say_all_it_says(tmp_path: Path) -> None:
    """If an agent says its own run_started and run_completed, then what they hold is kept, each is written
    once, and the usage and the cost are the run's."""
    result = said(tmp_path, *events(
        {"type": "run_started", "data": {"provider_session_id": "p1", "model": "m"}},
        {"type": "message_received", "data": {"role": "assistant", "content": "hi"}},
        {"type": "run_completed", "data": {
            "stop_reason": "stop", "total_cost_usd": 0.5,
            "token_usage": {"input_tokens": 10, "output_tokens": 20},
        }},
    ))
    assert result.types == ["run_started", "message_received", "run_completed"]
    assert result.data("run_completed")[0]["stop_reason"] == "stop"
    assert result.settle["token_usage"] == {"input_tokens": 10, "output_tokens": 20, "total_cost_usd": 0.5}


def test_events_after_the_end_are_refused_and_counted(tmp_path: Path) -> None:
    """If an agent goes on after its run_completed, then nothing more is written, the agent is closed, and
    somebody counts it; its output is still taken."""
    source = """
async def agent(run):
    yield {"type": "run_completed", "data": {"stop_reason": "stop"}}
    yield {"type": "output", "data": {"content": "whole"}}
    while True:
        yield "more"
"""

    async def play(bench: Bench) -> tuple[Result, int]:
        return await bench.result(bench.begin("agent", "go")), bench.late

    result, late = drive({"agent": python_agent(tmp_path, source)}, play)
    assert result.types == ["run_started", "message_streamed", "message_received", "run_completed"]
    assert (result.output, late) == ({"content": "whole"}, 1)


def test_report_travels_with_the_events_it_is_about(tmp_path: Path) -> None:
    """If an agent uses tokens and goes on, then the next batch says how many: a crash does not lose them."""
    source = "import asyncio\nasync def agent(run):\n" + USED % (1, 2, "") + "    await asyncio.sleep(1000)\n"

    async def play(bench: Bench) -> list[Any]:
        running = bench.begin("agent", "go")
        await bench.until(running, lambda result: "token_usage_updated" in result.types)
        reports = [batch[5] for batch in bench.stored[running.key[0]]]
        running.stop(cancelled())
        await bench.result(running)
        return reports

    reports = drive({"agent": python_agent(tmp_path, source)}, play)
    assert reports[-1]["token_usage"] == {"input_tokens": 1, "output_tokens": 2}
    assert "status" not in reports[-1]


# --- breaking off ---

BROKEN_OFF = """
import asyncio
async def agent(run):
    yield "a"
    yield {"type": "message_received", "data": {"role": "assistant", "content": "a"}}
    for call in ("1", "2"):
        yield {"type": "tool_call_started", "data": {"tool_call_id": call, "tool_name": "bash"}}
    yield {"type": "tool_call_completed", "data": {"tool_call_id": "1", "tool_name": "bash"}}
    yield "h"
    yield "c"
    if run.prompt == "fail":
        raise ValueError("x")
    await asyncio.sleep(1000)
"""


def broken_off(folder: Path, prompt: str = "go", **options: Any) -> Result:
    async def play(bench: Bench) -> Result:
        running = bench.begin("agent", prompt, **options)
        if not options and prompt == "go":
            await bench.until(running, lambda result: result.types.count("message_streamed") == 3)
            running.stop(cancelled("abort"))
        return await bench.result(running)

    result = drive({"agent": python_agent(folder, BROKEN_OFF)}, play)
    assert isinstance(result, Result)
    return result


@pytest.mark.parametrize(
    ("prompt", "options", "last", "data"),
    [
        ("go", {}, "run_cancelled", {"reason": "abort"}),
        ("go", {"idle_s": 0.05}, "run_timeout", {"idle_s": 0.05}),
        ("go", {"deadline_s": 0.2}, "run_timeout", {"deadline_s": 0.2}),
        ("fail", {}, "run_failed", None),
    ],
)
def test_what_breaks_off_keeps_its_words_and_closes_its_tools(
    tmp_path: Path, prompt: str, options: dict[str, Any], last: str, data: dict[str, Any] | None
) -> None:
    """If a run is aborted, runs out of time or fails, then what it said since its last message is one
    partial message, open tool calls are failed as aborted, and one terminal event comes last."""
    result = broken_off(tmp_path, prompt, **options)
    assert result.types[-3:] == ["message_received", "tool_call_failed", last]
    received = [event for event in result.events if event["type"] == "message_received"]
    assert [(event["data"]["content"], event["metadata"]) for event in received] == [
        ("a", {}), ("hc", {"partial": True}),
    ]
    failed = result.data("tool_call_failed")
    assert failed == [{"tool_call_id": "2", "tool_name": "bash", "error": "aborted"}]
    if data is not None:
        assert result.data(last) == [data]


def test_only_what_was_not_received_is_received_at_the_end(tmp_path: Path) -> None:
    """If an agent says a message itself and then more, then the node adds a message of what came after."""
    source = BROKEN_OFF.replace("    await asyncio.sleep(1000)\n", "")
    result = run(python_agent(tmp_path, source), "go")
    assert [data["content"] for data in result.data("message_received")] == ["a", "hc"]
    assert result.output == {"content": "ahc"}


# --- limits ---


def test_an_agent_that_speaks_is_not_idle(tmp_path: Path) -> None:
    """If an agent says something within its idle time again and again, then it is not stopped."""
    source = """
import asyncio
async def agent(run):
    for n in range(6):
        await asyncio.sleep(0.1)
        yield str(n)
"""
    result = run(python_agent(tmp_path, source), "go", idle_s=0.4)
    assert (result.settle["status"], result.output) == ("completed", {"content": "012345"})


def test_an_agent_that_the_node_holds_up_is_not_idle(tmp_path: Path) -> None:
    """If the agent waits because nothing is stored, then its idle time does not pass."""

    async def play(bench: Bench) -> Result:
        full = asyncio.Event()

        async def room(_log: object) -> None:
            full.set()
            await asyncio.sleep(0.3)
            bench.store()

        bench.room = room  # type: ignore[method-assign]
        running = bench.begin("agent", "go", idle_s=0.1)
        await full.wait()
        return await bench.result(running)

    source = "async def agent(run):\n    yield 'x' * 1000\n    yield 'y'\n"
    result = drive({"agent": python_agent(tmp_path, source)}, play, bytes_max=500)
    assert result.settle["status"] == "completed"


def test_too_many_open_tool_calls_fail_the_run(tmp_path: Path) -> None:
    """If an agent opens more tool calls than anybody can mean, then its run fails with a typed error."""
    source = """
async def agent(run):
    for n in range(20_000):
        yield {"type": "tool_call_started", "data": {"tool_call_id": str(n), "tool_name": "t"}}
"""
    result = run(python_agent(tmp_path, source), "go")
    assert (result.settle["status"], result.error["code"]) == ("failed", "limit_exceeded")
    assert result.types[-1] == "run_failed"


def test_what_a_thread_says_too_late_is_counted(tmp_path: Path) -> None:
    """If a plain function goes on after its run was cancelled, then its words are refused and counted."""
    source = """
import time
def agent(run):
    yield "a"
    while not run.cancelled:
        time.sleep(0.01)
    yield "late"
"""

    async def play(bench: Bench) -> tuple[Result, int]:
        running = bench.begin("agent", "go")
        await bench.until(running, lambda result: "message_streamed" in result.types)
        running.stop(cancelled())
        result = await bench.result(running)
        async with asyncio.timeout(20):
            while not bench.late:
                await asyncio.sleep(0.01)
        return result, bench.late

    result, late = drive({"agent": python_agent(tmp_path, source)}, play)
    assert result.types[-2:] == ["message_received", "run_cancelled"]
    assert "late" not in [data["content"] for data in result.data("message_received")]
    assert late >= 1
