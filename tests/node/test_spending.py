"""Reservations of one run: what a human is asked about one holds for the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from mesh.core.policy import Policy
from mesh.core.policy_monitor import Monitor, Violation
from mesh.core.prices import Prices
from mesh.errors import RunError
from mesh.node.by_hand import Questions
from mesh.node.guard import Guard
from mesh.node.spending import Spending

Refuse = Callable[[list[Violation]], Awaitable[None]]


def spending(refuse: Refuse) -> Spending:
    policy = Policy.from_map({"limits": {"max_total_tokens": 10}, "on_violation": "pause"})
    async def free() -> None:
        return None

    return Spending(Monitor(policy), None, act=lambda _: None, refuse=refuse, free=free)


@pytest.mark.parametrize("allowed", [True, False])
def test_no_call_is_made_while_a_human_is_asked_whether_the_run_may_go_on(allowed: bool) -> None:
    """If a limit was broken and the run is held for it, then a reservation, also within another limit, and a
    tool wait for the answer, and are refused when it is no."""
    made, results = asyncio.run(held(allowed))
    assert sorted(made) == (["reserve", "tool"] if allowed else [])
    assert [getattr(result, "code", None) for result in results] == [
        None if allowed else "policy_violation"] * 2


async def held(allowed: bool) -> tuple[list[str], list[Any]]:
    limits = {"max_tool_calls": 1, "max_total_tokens": 10}
    policy = Policy.from_map({"limits": limits, "on_violation": "pause"})
    asked: list[Callable[[dict[str, Any]], None]] = []
    questions = Questions(lambda name, request, answered: asked.append(answered))
    guard = Guard(policy, Prices(()), questions, emit=lambda *_: None, stop=lambda _: None)
    made: list[str] = []

    async def reserve() -> None:
        await guard.spending.reserve({"total_tokens": 1})
        made.append("reserve")

    async def tool() -> None:
        await guard.permit("bash", {}, None)
        made.append("tool")

    for _ in range(2):
        guard.on_event("tool_call_started", {"tool_name": "bash"})
    calls = [asyncio.create_task(reserve()), asyncio.create_task(tool())]
    for _ in range(5):
        await asyncio.sleep(0)
    assert made == [] and len(asked) == 1
    asked[0]({"approved": allowed, "scope": "once", "by": None, "reason": None})
    return made, await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize("allowed", [True, False])
def test_second_call_over_a_budget_waits_for_what_a_human_says_of_the_first(allowed: bool) -> None:
    """If a human is asked whether a budget may be exceeded, then no other call of the run is made before he
    said so, and none when he denies it."""
    made, results = asyncio.run(two_calls(allowed))
    assert made == (["first", "second"] if allowed else [])
    assert [getattr(result, "code", None) for result in results] == [
        None if allowed else "policy_violation"] * 2


async def two_calls(allowed: bool) -> tuple[list[str], list[Any]]:
    asked, said = asyncio.Event(), asyncio.Event()
    made: list[str] = []

    async def refuse(broken: list[Violation]) -> None:
        asked.set()
        await said.wait()
        if not allowed:
            raise RunError("denied", code="policy_violation")

    budget = spending(refuse)

    async def call(name: str) -> None:
        await budget.reserve({"total_tokens": 11})
        made.append(name)
        budget.release({"total_tokens": 11})

    first = asyncio.create_task(call("first"))
    await asked.wait()
    second = asyncio.create_task(call("second"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert made == []
    said.set()
    return made, await asyncio.gather(first, second, return_exceptions=True)
