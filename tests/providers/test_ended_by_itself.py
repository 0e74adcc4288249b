"""A run that its own policy ends, from within its own task: what its agent cleans up is cleaned up."""

from __future__ import annotations

from pathlib import Path

import pytest
from driving import Bench, Result, drive, python_agent

AGENT = """
import asyncio
from contextlib import aclosing, asynccontextmanager
from mesh.providers.channel import Channel

CALL = {"type": "tool_call_started", "data": {"tool_name": "t"}}

@asynccontextmanager
async def cleaning(run, name):
    try:
        yield
    finally:
        for _ in range(10):
            await asyncio.sleep(0)
        run.state[name] = "cleaned up"

async def agent(run):
    async with cleaning(run, "own"):
        yield CALL
        yield CALL
        yield CALL

async def through(run):
    channel = Channel()

    async def work():
        async with cleaning(run, "work"):
            await channel.put(CALL, CALL, CALL)
            await asyncio.sleep(60)

    async with aclosing(channel.of(work())) as pieces:
        async for piece in pieces:
            yield piece

async def waiting(run):
    async with cleaning(run, "own"):
        yield CALL
        yield CALL
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            run.state["cancelled"] = True
        yield CALL

async def limited(run):
    try:
        yield CALL
        yield CALL
        yield CALL
    finally:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.sleep(60)
        except TimeoutError:
            run.state["own"] = "cleaned up"

async def refused(run):
    yield "hello"
    async with cleaning(run, "own"):
        await run.permit("rm", {})

async def spent(run):
    yield "hello"
    async with cleaning(run, "own"):
        async with run.reserve(tool_calls=2):
            run.state["called"] = True
"""
ONE_CALL = {"limits": {"max_tool_calls": 1}}
NO_RM = {"tool_rules": [["deny", ["rm"]]]}


def left(tmp_path: Path, function: str, policy: dict[str, object]) -> dict[str, object]:
    """What the agent wrote into its state when its run is over."""

    async def play(bench: Bench) -> tuple[Result, dict[str, object]]:
        result = await bench.result(bench.begin("agent", "x", policies=[policy]))
        return result, bench.states.get("ses_1", {})

    result, state = drive({"agent": python_agent(tmp_path, AGENT, function)}, play)
    assert (result.types[-1], result.error["code"]) == ("run_failed", "policy_violation")
    return dict(state)


@pytest.mark.parametrize(("function", "cleaned"), [("agent", "own"), ("through", "work"), ("limited", "own")])
def test_piece_that_ends_a_run_whose_next_one_needs_no_waiting_leaves_the_cleaning_alone(
    function: str, cleaned: str, tmp_path: Path
) -> None:
    """If a run is ended at a piece, and the next one is there, then the agent cleans up undisturbed."""
    assert left(tmp_path, function, ONE_CALL) == {cleaned: "cleaned up"}


def test_agent_that_waits_after_the_piece_that_ends_its_run_is_cancelled_there(tmp_path: Path) -> None:
    """If the agent waits after that piece, then it hears of the end there, and cleans up undisturbed."""
    assert left(tmp_path, "waiting", ONE_CALL) == {"cancelled": True, "own": "cleaned up"}


@pytest.mark.parametrize(("function", "policy"), [("refused", NO_RM), ("spent", ONE_CALL)])
def test_agent_whose_run_ends_with_a_refusal_cleans_up(
    function: str, policy: dict[str, object], tmp_path: Path
) -> None:
    """If a tool or a call that is refused ends the run, then the agent cleans up undisturbed."""
    assert left(tmp_path, function, policy) == {"own": "cleaned up"}
