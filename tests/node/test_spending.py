"""Reservations of one run: what a human is asked about one holds for the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from mesh.core.policy import Policy
from mesh.core.policy_monitor import Monitor, Violation
from mesh.errors import RunError
from mesh.node.spending import Spending

Refuse = Callable[[list[Violation]], Awaitable[None]]


def spending(refuse: Refuse) -> Spending:
    policy = Policy.from_map({"limits": {"max_total_tokens": 10}, "on_violation": "pause"})
    return Spending(Monitor(policy), None, act=lambda _: None, refuse=refuse)


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
