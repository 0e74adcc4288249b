"""What agent frameworks keep their conversations with, doing the same appends as a ``run_once``.

One conversation is a new thread (session), seven items appended one after another, and the log read back.

LangGraph's ``InMemorySaver`` lives in the caller's process and keeps nothing when that ends: it is the floor
of what a checkpointer costs, without a disk, a process or a runner. openai-agents' ``SQLiteSession`` writes
to a file, each ``add_items`` a transaction of its own in a thread; it has no server and executes nothing.
"""

from __future__ import annotations

from typing import Any

from peer_base import Peer, rate

ITEMS = 7
ITEM = {"role": "assistant", "content": "x" * 64}


class LangGraph(Peer):
    """langgraph-checkpoint: each append is a checkpoint with the messages so far, as after a graph's step."""

    async def start(self) -> None:
        from langgraph.checkpoint.memory import InMemorySaver

        self.saver = InMemorySaver()
        self.serial = 0

    async def conversations(self, count: int) -> float:
        from langgraph.checkpoint.base import empty_checkpoint

        async def one(_: int) -> None:
            self.serial += 1
            config: Any = {"configurable": {"thread_id": f"t{self.serial}", "checkpoint_ns": ""}}
            messages: list[Any] = []
            for step in range(ITEMS):
                messages = [*messages, ITEM]
                checkpoint = {
                    **empty_checkpoint(),
                    "channel_values": {"messages": messages},
                    "channel_versions": {"messages": step + 1},
                }
                config = await self.saver.aput(
                    config, checkpoint, {"source": "loop", "step": step}, {"messages": step + 1}
                )
            found = await self.saver.aget_tuple(config)
            assert found is not None and len(found.checkpoint["channel_values"]["messages"]) == ITEMS

        return await rate(one, count)


class OpenAIAgents(Peer):
    """openai-agents: an SQLiteSession per conversation, all in one file."""

    async def start(self) -> None:
        self.serial = 0

    async def conversations(self, count: int) -> float:
        from agents import SQLiteSession

        async def one(_: int) -> None:
            self.serial += 1
            session = SQLiteSession(f"s{self.serial}", self.folder / "sessions.db")
            for _item in range(ITEMS):
                await session.add_items([ITEM])
            assert len(await session.get_items()) == ITEMS
            session.close()

        return await rate(one, count, coroutines=8)
