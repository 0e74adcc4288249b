"""A question behind another one: both travel at once, and their caller is woken once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mesh.client._aio_link import AsyncLink
from mesh.client._protocol import WAIT, WRITE
from mesh.client._surface import Ask
from mesh.errors import MeshError

FAILED = (1, {"code": "already_exists", "message": "session s exists", "details": {}})
FIRST, SECOND = Ask(WRITE, 1, ("run.once", ()), gate=True), Ask(WAIT, 1, ("run.wait", ()))


async def answers(*steps: tuple[str, Any]) -> tuple[list[Any], int]:
    """What a caller gets when these answers come in this order, and how many of them had to come."""
    tokens: dict[str, Any] = {}
    behind: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    protocol = SimpleNamespace(add=lambda kind, slot, call, token, timeout_s: tokens.update(first=token))
    link = SimpleNamespace(_flushing=True, _protocol=protocol, _ask=lambda ask, limit_s: behind)
    tokens["second"] = behind
    asking = asyncio.ensure_future(AsyncLink._ask_behind(link, FIRST, SECOND, None))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    for count, (name, pair) in enumerate(steps):
        if asking.done():
            return asking.result(), count
        tokens[name].set_result(pair)
        for _ in range(3):
            await asyncio.sleep(0)
    return await asking, len(steps)


@pytest.mark.parametrize("order", [("first", "second"), ("second", "first")])
def test_two_good_answers_are_given_in_the_order_of_the_questions(order: tuple[str, str]) -> None:
    """If both are good, then the caller gets both, whichever came first, and not before both are there."""
    found = {"first": (0, "accepted"), "second": (0, "ended")}
    assert asyncio.run(answers(*((name, found[name]) for name in order))) == (["accepted", "ended"], 2)


def test_a_gate_that_fails_ends_the_waiting() -> None:
    """If the first one is an error, then the caller gets it at once and alone."""
    [error], count = asyncio.run(answers(("first", FAILED), ("never", None)))
    assert isinstance(error, MeshError) and (error.code, count) == ("already_exists", 1)


def test_a_gate_that_fails_behind_its_second_answer_is_the_answer() -> None:
    """If the second question overtook a write that is refused, then the refusal counts, not what it found."""
    [error], _ = asyncio.run(answers(("second", (0, None)), ("first", FAILED)))
    assert isinstance(error, MeshError) and error.code == "already_exists"
