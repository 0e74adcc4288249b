"""One suite for every provider: what any agent's run leaves, however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from driving import Bench, Result, cancelled, drive, python_agent, run

from mesh.node.drive import CANCEL_S

ASYNC_GENERATOR = """
import asyncio
async def agent(run):
    if run.input == "fail":
        yield "some"
        raise ValueError("broken on purpose")
    for word in run.prompt.split(" "):
        if word == "wait":
            await asyncio.sleep(1000)
        yield word
"""
COROUTINE = """
import asyncio
async def agent(run):
    if run.input == "fail":
        raise ValueError("broken on purpose")
    if "wait" in run.prompt:
        await asyncio.sleep(1000)
    return run.prompt.replace(" ", "")
"""
FUNCTION = """
import time
def agent(run):
    if run.input == "fail":
        raise ValueError("broken on purpose")
    while "wait" in run.prompt and not run.cancelled:
        time.sleep(0.01)
    return run.prompt.replace(" ", "")
"""
GENERATOR = """
import time
def agent(run):
    if run.input == "fail":
        yield "some"
        raise ValueError("broken on purpose")
    for word in run.prompt.split(" "):
        while word == "wait" and not run.cancelled:
            time.sleep(0.01)
        yield word
"""


class Case:
    """How one provider is made to succeed, to fail and to wait."""

    def __init__(
        self,
        table: Callable[[Path], dict[str, Any]],
        *,
        good: Any,
        bad: Any,
        slow: Any,
        code: str = "provider_error",
        text: str = "hello",
        streams: bool = True,
    ) -> None:
        self.table, self.good, self.bad, self.slow = table, good, bad, slow
        self.code, self.text, self.streams = code, text, streams


def python(source: str, *, streams: bool) -> Case:
    return Case(
        lambda folder: python_agent(folder, source), good="hel lo", bad="fail", slow="a wait", streams=streams
    )


CASES = {
    "echo": Case(lambda _: {"provider": "echo"}, good="hello", bad=None, slow="a"),
    "shell": Case(
        lambda _: {"provider": "shell"},
        good="printf hello",
        bad="echo some; exit 3",
        slow="echo a; sleep 1000",
        code="command_failed",
    ),
    "async generator": python(ASYNC_GENERATOR, streams=True),
    "coroutine": python(COROUTINE, streams=False),
    "function": python(FUNCTION, streams=False),
    "generator": python(GENERATOR, streams=True),
}


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def options(name: str, how: str) -> dict[str, Any]:
    """``echo`` is scripted, the others do what the input says."""
    script = {"bad": {"fail": "broken on purpose"}, "slow": {"delay_s": 0.2, "pieces": 10_000}}
    return {"provider_opts": script[how]} if name == "echo" and how in script else {}


def test_good_run_leaves_its_events_in_order(name: str, tmp_path: Path) -> None:
    """If a run goes well, then its events are the contract's, in order, and name their provider and run."""
    case = CASES[name]
    result = run(case.table(tmp_path), case.good)
    middle = [t for t in result.types if t != "message_streamed"]
    assert middle == ["run_started", "message_received", "run_completed"]
    assert result.types[0] == "run_started"
    assert result.types[-2:] == ["message_received", "run_completed"]
    assert "".join(data["content"] for data in result.data("message_streamed")) == case.text
    assert result.data("message_received") == [{"role": "assistant", "content": case.text}]
    assert result.output["content"] == case.text
    assert result.settle["status"] == "completed"
    assert result.settle["error"] is None
    [started] = result.data("run_started")
    assert {event["provider"] for event in result.events} == {started["provider"]}
    assert started["agent"] == "agent"
    assert {event["session_id"] for event in result.events} == {"ses_1"}


def test_failed_run_has_one_terminal_event_and_its_code(name: str, tmp_path: Path) -> None:
    """If a run fails, then its last event is run_failed, and event and settlement say the same."""
    case = CASES[name]
    result = run(case.table(tmp_path), case.bad, **options(name, "bad"))
    assert result.settle["status"] == "failed"
    assert result.error["code"] == case.code
    assert result.error["message"]
    [failed] = result.data("run_failed")
    assert result.types[0] == "run_started"
    assert result.types[-1] == "run_failed"
    assert (failed["error_code"], failed["error_message"]) == (case.code, result.error["message"])
    assert "run_completed" not in result.types


def play_slow(name: str, how: Callable[[Bench, Any], Any], folder: Path) -> Result:
    async def play(bench: Bench) -> Any:
        running = bench.begin("agent", CASES[name].slow, **options(name, "slow"))
        await bench.until(running, lambda result: bool(result.events))
        return await how(bench, running)

    result = drive({"agent": CASES[name].table(folder)}, play)
    assert isinstance(result, Result)
    return result


def test_cancelled_run_is_settled_soon_and_once(name: str, tmp_path: Path) -> None:
    """If a run is cancelled, then its provider ends by itself, and run_cancelled is its last event."""

    async def how(bench: Bench, running: Any) -> Result:
        async with asyncio.timeout(CANCEL_S / 2):  # else it was only abandoned
            return await cancelled(bench, running)

    result = play_slow(name, how, tmp_path)
    assert result.settle["status"] == "cancelled"
    assert result.error["code"] == "cancelled"
    assert result.types.count("run_cancelled") == 1
    assert result.types[-1] == "run_cancelled"
    assert result.data("run_cancelled") == [{"reason": "cancel"}]


def test_cancel_before_the_first_step_leaves_a_whole_story(name: str, tmp_path: Path) -> None:
    """If a run is cancelled in the turn it was begun, then it still starts, and ends, in the log."""

    async def play(bench: Bench) -> Result:
        return await cancelled(bench, bench.begin("agent", CASES[name].slow, **options(name, "slow")))

    result = drive({"agent": CASES[name].table(tmp_path)}, play)
    assert result.types == ["run_started", "run_cancelled"]
    assert result.settle["status"] == "cancelled"


def test_deadline_ends_a_run_as_timeout(name: str, tmp_path: Path) -> None:
    """If a run takes longer than deadline_s, then it is stopped, and its status is timeout."""

    async def play(bench: Bench) -> Result:
        return await bench.result(
            bench.begin("agent", CASES[name].slow, deadline_s=0.3, **options(name, "slow"))
        )

    result = drive({"agent": CASES[name].table(tmp_path)}, play)
    assert (result.settle["status"], result.error["code"]) == ("timeout", "timeout")
    assert result.types[-1] == "run_timeout"
    assert result.data("run_timeout") == [{"deadline_s": 0.3}]


def test_capabilities_are_honest(name: str, tmp_path: Path) -> None:
    """If a provider says that it streams, then it does, and one that cannot does not say so."""

    async def play(bench: Bench) -> Any:
        return bench.registry.catalogue()

    [entry] = drive({"agent": CASES[name].table(tmp_path)}, play)
    names = [capability["name"] for capability in entry["capabilities"]]
    assert ("streaming" in names) == CASES[name].streams
    assert entry["problem"] is None
    assert entry["provider"] == CASES[name].table(tmp_path)["provider"]


def test_one_failing_run_leaves_its_neighbours_alone(name: str, tmp_path: Path) -> None:
    """If one of several runs of an agent fails, then the others end well."""
    case = CASES[name]

    async def play(bench: Bench) -> Any:
        good = [bench.begin("agent", case.good) for _ in range(3)]
        bad = bench.begin("agent", case.bad, **options(name, "bad"))
        return [(await bench.result(one)).settle["status"] for one in (*good, bad)]

    assert drive({"agent": case.table(tmp_path)}, play) == ["completed"] * 3 + ["failed"]


def test_full_outbox_stops_the_provider_and_loses_nothing(name: str, tmp_path: Path) -> None:
    """If nothing is stored for a while, then the provider waits, and every piece arrives in the end."""
    case = CASES[name]
    result = run(case.table(tmp_path), case.good, settings={"bytes_max": 1})
    assert "".join(data["content"] for data in result.data("message_streamed")) == case.text
