"""The runner's mailbox at its end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mesh.core import wire
from mesh.log import Log
from mesh.node.runner_link import RETRY_S, Link


def lonely(tmp_path: Path) -> Link:
    """The link of a runner whose router is not there."""
    limits = SimpleNamespace(frame_bytes=1_000_000)
    child: Any = SimpleNamespace(
        index=0, incarnation=1, back_endpoint=f"ipc://{tmp_path}/b", config=SimpleNamespace(limits=limits)
    )
    return Link(child, Log("test"), on_message=lambda *_: None, on_turn=int, on_wake=int)


def test_message_that_is_posted_in_the_last_turn_harms_nobody(tmp_path: Path) -> None:
    """If the link closes in the turn in which something was posted, then that is not sent, in silence."""
    trouble: list[dict[str, Any]] = []

    async def play() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: trouble.append(context))
        link = lonely(tmp_path)
        link.post(0, wire.pack(["batch"]))
        link.close()
        await asyncio.sleep(0)

    asyncio.run(play())
    assert trouble == []


def test_link_that_could_not_send_for_several_turns_ends_without_a_retry(tmp_path: Path) -> None:
    """If messages of several turns could not leave before the link closes, then nothing sends afterwards."""
    trouble: list[dict[str, Any]] = []

    async def play() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: trouble.append(context))
        link = lonely(tmp_path)
        for _ in range(3):
            link.post(0, wire.pack(["batch"]))
            await asyncio.sleep(0)
        assert link.blocked
        link.close()
        await asyncio.sleep(2 * RETRY_S)  # when a retry would come

    asyncio.run(play())
    assert trouble == []


def test_router_is_told_nothing_through_a_link_that_closed(tmp_path: Path) -> None:
    """If a timer comes behind the end of the link, then it sends nothing and fails nobody."""

    async def play() -> bool:
        link = lonely(tmp_path)
        link.close()
        return link.tell_router(["ready"])

    assert asyncio.run(play()) is False
