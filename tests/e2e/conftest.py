"""A real node for each test: real processes, real sockets, a temporary folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mesh

FAST = {"supervision": {"hang_timeout_s": 2.0, "heartbeat_s": 0.2}}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is an e2e test."""
    for item in items:
        if Path(__file__).parent in Path(item.fspath).parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture
def agents_file(tmp_path: Path) -> Path:
    """Agents that the tests need, as a user would write them."""
    path = tmp_path / "agents.py"
    path.write_text(AGENTS)
    return path


@pytest.fixture
def node_config(agents_file: Path) -> dict[str, Any]:
    """The node's settings."""
    names = ("counter", "sleeper", "exploding", "plain", "thrice", "safe")
    agents = {name: {"provider": "python", "target": f"{agents_file}:{name}"} for name in names}
    agents["safe"]["idempotent"] = True
    return {**FAST, "agents": agents}


@pytest.fixture
def node(tmp_path: Path, node_config: dict[str, Any]) -> Iterator[mesh.LocalNode]:
    """A node with two partitions and one runner."""
    with mesh.LocalNode(tmp_path / "data", config=node_config) as started:
        yield started


@pytest.fixture
def client(node: mesh.LocalNode) -> Iterator[mesh.Client]:
    """A blocking client of the node."""
    with node.client(timeout_s=20.0) as opened:
        yield opened


AGENTS = """
import asyncio, time

async def counter(run):
    for i in range(int(run.prompt)):
        yield f"{i} "

async def sleeper(run):
    yield "started"
    await asyncio.sleep(float(run.prompt))
    yield "done"

async def exploding(run):
    yield "a piece"
    raise ValueError("boom")

def plain(run):
    return run.prompt.upper()

async def thrice(run):
    for _ in range(3):
        yield {"type": "tool_call_started", "data": {"tool_call_id": "t", "tool_name": "x", "tool_input": {}}}
    yield "end"

async def safe(run):
    yield "again"
    await asyncio.sleep(float(run.prompt) if run.attempt == 1 else 0)
"""
