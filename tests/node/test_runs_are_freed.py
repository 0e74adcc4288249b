"""A run that is over leaves nothing to the collector: forty objects of each would be a sixth of the time."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from mesh.core.prices import Prices
from mesh.core.redact import Redactor
from mesh.core.runner import Outbox, RunLog
from mesh.node.drive import Drive
from mesh.node.ending import cancelled
from mesh.providers.base import Output, capabilities_of

SESSION = {"id": "s", "agent": "a", "agent_id": "a", "incarnation": 1, "seq": 3}


class Agent:
    """Says a word, and what it used."""

    name = "own"
    capabilities = capabilities_of({}, ())
    enforces: frozenset[str] = frozenset()
    idempotent = False
    usage_mode = "total"

    def started(self, run: Any) -> dict[str, Any]:
        return {}

    async def run(self, run: Any) -> Any:
        yield "word"
        yield {"type": "token_usage_updated", "data": {"input_tokens": 3}}
        if run.input == "wait":
            await asyncio.get_running_loop().create_future()
        yield Output(data={"content": "word"})


class Registry:
    """Knows one agent."""

    def __init__(self) -> None:
        self.agent = Agent()

    def ready(self, agent: str) -> Agent:
        return self.agent

    def provider_name(self, agent: str) -> str:
        return agent

    def continuation(self, agent: str) -> tuple[None, dict[str, Any]]:
        return None, {}


def host() -> Any:
    """What a drive needs of its runner."""
    return SimpleNamespace(
        outbox=Outbox(1 << 30), registry=Registry(), redactor=Redactor(), prices=Prices({}), states={},
        output_bytes_max=1 << 20, event_bytes_max=1 << 20, workspaces=None, transcripts=None, read=None,
        late=0, changed=lambda log: None, ended=lambda drive: None, holds=lambda run: None,
    )


async def executed(runner: Any, run_input: str) -> None:
    """Execute one run to its end, and have the partition store it."""
    drive = Drive(runner, ("run_1", 1), partition=0, session=SESSION, run_input=run_input, options={})
    drive.start()
    if run_input == "wait":
        await asyncio.sleep(0)
        drive.stop(cancelled())
    assert drive.task is not None
    await asyncio.wait([drive.task])
    await asyncio.sleep(0)
    log: RunLog = runner.outbox.logs["run_1", 1]
    runner.outbox.close(log, 0.0)
    assert runner.outbox.stored(log.key, 1)


@pytest.mark.parametrize("run_input", ["hello", "wait"])
def test_a_run_that_is_over_is_freed_without_the_collector(run_input: str) -> None:
    """If a run is over and stored, then no part of it still lives, though nothing was collected."""
    runner = host()
    asyncio.run(executed(runner, run_input))
    gc.collect()
    gc.disable()
    try:
        before = living()
        asyncio.run(executed(runner, run_input))
        after = living()
    finally:
        gc.enable()
    assert after == before


def living() -> Counter[str]:
    """How many objects of mesh there are, by type."""
    kinds = (type(found) for found in gc.get_objects())
    return Counter(kind.__name__ for kind in kinds if str(kind.__module__).startswith("mesh."))
