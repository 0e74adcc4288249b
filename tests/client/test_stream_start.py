"""A stream with a node of its own that is given up while that node starts."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from mesh.streams import AsyncStreamSession


class SlowNode:
    """A node whose start takes until somebody lets it; knows whether it is up."""

    def __init__(self, **_: Any) -> None:
        self.up = False
        self.begun, self.go = threading.Event(), threading.Event()

    def start(self) -> SlowNode:
        self.begun.set()
        assert self.go.wait(10)
        self.up = True
        return self

    def close(self) -> None:
        self.up = False


def test_a_node_that_starts_while_its_stream_is_cancelled_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a stream is cancelled while its own node starts, then the node is ended as soon as it is there."""
    nodes: list[SlowNode] = []

    def made(**options: Any) -> SlowNode:
        nodes.append(SlowNode(**options))
        return nodes[-1]

    monkeypatch.setattr("mesh.streams.LocalNode", made)

    async def scene() -> None:
        async def use() -> None:
            async with AsyncStreamSession("echo", "x"):
                raise AssertionError("it was cancelled before")

        using = asyncio.create_task(use())
        await asyncio.sleep(0)  # it makes its node
        await asyncio.to_thread(nodes[0].begun.wait)
        using.cancel()
        await asyncio.sleep(0)
        nodes[0].go.set()
        with pytest.raises(asyncio.CancelledError):
            await using
        assert not nodes[0].up

    asyncio.run(scene())
