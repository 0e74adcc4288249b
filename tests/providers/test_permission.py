"""What agents ask before they act: from coroutines and from threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from driving import python_agent
from driving import run as finished

from mesh.errors import InvalidArgument, RunError
from mesh.providers.base import RunContext, SessionInfo


class Guard:
    """Decides when it is told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.open = asyncio.Event()
        self.held: list[Mapping[str, float]] = []

    async def permit(self, tool: str, tool_input: Any, call_id: str | None) -> None:
        self.asked.set()
        await self.open.wait()

    async def reserve(self, amounts: Mapping[str, float]) -> None:
        self.held.append(amounts)

    def release(self, amounts: Mapping[str, float]) -> None:
        self.held.remove(amounts)


def context(guard: Guard | None = None) -> RunContext:
    run = RunContext("run_1", SessionInfo("s"), "x")
    if guard is not None:
        run.guard, run.budget = guard.permit, guard
    return run


def test_agent_is_told_the_rules_that_it_may_enforce_itself(tmp_path: Path) -> None:
    """If a run has a policy, then its agent finds tools and tokens in ``run.rules``; else nothing."""
    table = python_agent(tmp_path, "async def agent(run): return run.rules")
    policy = {"limits": {"max_total_tokens": 9}, "tool_rules": [["allow", ["a", "b"]], ["allow", ["a"]]]}
    result = finished(table, "x", policies=[policy])
    assert result.settle["error"] is None and result.output == {"allowed_tools": ["a"], "max_tokens": 9}
    assert not finished(table, "x").output


def test_agent_without_a_policy_may_do_everything() -> None:
    """If a run has no policy, then permit and reserve return at once, in threads and out of them."""
    run = context()
    run.permit_blocking("bash", {})
    with run.reserve(total_tokens=10**9):
        asyncio.run(run.permit("bash", {}))


@pytest.mark.parametrize("amounts", [{"tokens": 5}, {"total_tokens": -1}, {"total_tokens": "5"},
                                     {"cost_usd": float("nan")}, {"duration_ms": 5}, {"cost_usd": True}])
def test_reservation_of_nonsense_is_refused(amounts: dict[str, Any]) -> None:
    """If an amount is of nothing that is counted, or no number, then that is said at once."""
    with pytest.raises(InvalidArgument):
        context().reserve(**amounts)


def test_thread_that_waits_for_an_answer_learns_that_its_run_is_over() -> None:
    """If the run ends while a plain function asks, then its thread is not left waiting."""

    async def play() -> str:
        guard = Guard()
        run = context(guard)
        run.blocking.begin(asyncio.get_running_loop())
        found: list[str] = []

        def agent() -> None:
            try:
                run.permit_blocking("bash", {})
            except RunError as error:
                found.append(error.code)

        thread = threading.Thread(target=agent)
        thread.start()
        await guard.asked.wait()
        run.blocking.end()
        await asyncio.to_thread(thread.join)
        return found[0]

    assert asyncio.run(play()) == "cancelled"


def test_reservation_of_a_thread_is_given_back_at_the_end_of_its_block() -> None:
    """If a plain function leaves its block, by an exception too, then nothing is held."""

    async def play() -> list[Any]:
        guard = Guard()
        run = context(guard)
        run.blocking.begin(asyncio.get_running_loop())

        def agent() -> int:
            with pytest.raises(KeyError), run.reserve(total_tokens=5):
                count = len(guard.held)
                raise KeyError
            return count

        assert await asyncio.to_thread(agent) == 1
        await asyncio.sleep(0)
        return guard.held

    assert asyncio.run(play()) == []


def test_coroutine_that_would_block_its_runner_is_refused() -> None:
    """If an agent on the loop asks as if it was in a thread, then it is told to await."""
    with pytest.raises(InvalidArgument):
        context(Guard()).permit_blocking("bash", {})
