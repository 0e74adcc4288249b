"""The agents of the storm. Each leaves a line per execution, so that a doubled one is seen."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import mesh

WITNESS = "STORM_WITNESS"


def witness(run: mesh.RunContext) -> None:
    """Say outside of the node that this attempt began: one write, whole or not at all."""
    file = os.open(os.environ[WITNESS], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, f"{run.run_id} {run.attempt}\n".encode())
    finally:
        os.close(file)


async def counter(run: mesh.RunContext) -> AsyncIterator[str]:
    """Count, in as many pieces."""
    witness(run)
    for number in range(int(run.prompt)):
        yield f"{number} "


async def sleeper(run: mesh.RunContext) -> AsyncIterator[str]:
    """Be found in the middle of the work."""
    witness(run)
    yield "started "
    await asyncio.sleep(float(run.prompt))
    yield "done"


async def streamer(run: mesh.RunContext) -> AsyncIterator[str]:
    """Give many pieces, each of which travels alone."""
    witness(run)
    for number in range(int(run.prompt.split()[0])):  # a joined prompt has several
        yield f"{number} "
        await asyncio.sleep(0.01)
        await run.steering()


def plain(run: mesh.RunContext) -> str:
    """Work in a thread."""
    witness(run)
    return run.prompt.upper()


async def safe(run: mesh.RunContext) -> str:
    """May be executed again."""
    witness(run)
    await asyncio.sleep(float(run.prompt))
    return "safe"
