"""What a runner has for a partition gathers while a frame of it is being stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from mesh.core.runner import RunLog
from mesh.node import holding
from mesh.node.holding import Holding


def held(test: Callable[[Holding, list[int]], Coroutine[None, None, None]]) -> None:
    async def run() -> None:
        woken: list[int] = []
        await test(Holding(lambda: woken.append(1)), woken)

    asyncio.run(run())


def keys(due: list[tuple[int, dict[RunLog, None], bool]]) -> list[tuple[int, list[str], bool]]:
    return sorted((partition, [log.key[0] for log in logs], acks) for partition, logs, acks in due)


def test_the_first_news_leaves_at_once_and_the_next_when_the_partition_answered() -> None:
    """If a frame is on its way to a partition, then more for it waits for the answer, and others do not."""

    async def test(made: Holding, woken: list[int]) -> None:
        made.changed(RunLog(("a", 1), 0))
        assert keys(made.due()) == [(0, ["a"], False)]
        made.changed(RunLog(("b", 1), 0))
        made.changed(RunLog(("c", 1), 1))
        made.acknowledge(0)
        assert keys(made.due()) == [(1, ["c"], False)]
        woken.clear()
        made.answered(0)
        assert woken and keys(made.due()) == [(0, ["b"], True)]

    held(test)


def test_news_leave_without_an_answer_after_a_while() -> None:
    """If a partition does not answer, then what gathered leaves after HOLD_S, and is woken for."""

    async def test(made: Holding, woken: list[int]) -> None:
        made.changed(RunLog(("a", 1), 0))
        made.due()
        made.changed(RunLog(("b", 1), 0))
        assert made.due() == []
        woken.clear()
        async with asyncio.timeout(20):
            while not woken:
                await asyncio.sleep(holding.HOLD_S / 4)
        assert keys(made.due()) == [(0, ["b"], False)]

    held(test)


def test_what_gathers_leaves_at_once_when_it_is_released() -> None:
    """If something has to follow what a run said, then that does not wait for an answer."""

    async def test(made: Holding, woken: list[int]) -> None:
        made.changed(RunLog(("a", 1), 0))
        made.due()
        made.changed(RunLog(("b", 1), 0))
        made.release(0)
        assert keys(made.due()) == [(0, ["b"], False)]

    held(test)


def test_an_acknowledgement_alone_holds_nothing() -> None:
    """If only commands are acknowledged, then no answer is expected, and the next news leaves at once."""

    async def test(made: Holding, woken: list[int]) -> None:
        made.acknowledge(0)
        assert keys(made.due()) == [(0, [], True)]
        made.changed(RunLog(("a", 1), 0))
        assert keys(made.due()) == [(0, ["a"], False)]
        made.answered(0)
        made.answered(0)
        assert made.due() == [] and len(woken) == 2

    held(test)
