"""The channel between a library's tasks and the run that yields their pieces."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from mesh.providers.channel import Channel


def test_work_of_a_run_that_is_cancelled_at_the_end_is_over_when_the_run_is() -> None:
    """If a run stops itself with a piece in its hand, then its work has cleaned up before it ends."""
    left: list[str] = []

    async def work(channel: Channel) -> None:
        try:
            await channel.put("a piece")
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            left.append("closed")

    async def run() -> None:
        channel = Channel()
        task: asyncio.Task[Any] | None = asyncio.current_task()
        assert task is not None
        async with aclosing(channel.of(work(channel))) as pieces:
            async for _ in pieces:
                task.cancel()
                break

    async def main() -> list[str]:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(run())
        return list(left)

    assert asyncio.run(main()) == ["closed"]
