"""Perform what the workers of a storm choose: threads share blocking clients, tasks an asyncio one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from time import monotonic
from typing import Any

from storm import LAST_S, Worker, expected
from storm_history import History
from storm_service import Killer, Service

import mesh

CALL_S = 8.0
THREADS = TASKS = 4


def rage(service: Service, killer: Killer, history: History, seed: str, duration_s: float) -> None:
    """Workers work while the killer kills; returns when all of them have said their last words."""
    over = threading.Event()
    crashed: list[BaseException] = []
    former, threading.excepthook = threading.excepthook, lambda args: crashed.append(args.exc_value)
    with ExitStack() as stack:
        clients = [
            stack.enter_context(mesh.Client(address, timeout_s=CALL_S))
            for address in (service.ipc, service.tcp)
        ]
        threads = [
            threading.Thread(target=work, args=(Worker(f"w{n}", seed, history), clients[n % 2], over))
            for n in range(THREADS)
        ]
        threads += [
            threading.Thread(target=asyncio.run, args=(work_async(address, who, seed, history, over),))
            for address, who in ((service.ipc, "a"), (service.tcp, "b"))
        ]
        for thread in threads:
            thread.start()
        try:
            killer.run(monotonic() + duration_s)
        finally:
            over.set()
            until_s = monotonic() + 3 * LAST_S
            for thread in threads:
                thread.join(max(0.1, until_s - monotonic()))
            threading.excepthook = former
    history.problems += [f"thread {thread.name} did not end" for thread in threads if thread.is_alive()]
    history.problems += [f"a worker crashed: {error!r}" for error in crashed]


def work(worker: Worker, client: mesh.Client, over: threading.Event) -> None:
    """Let a worker work with a blocking client."""
    for steps in _life(worker, over):
        outcome: Any = None
        while (request := _next(steps, outcome)) is not None:
            begin = monotonic()
            try:
                outcome = _ask(client, request)
            except mesh.MeshError as error:
                outcome = error
            _told(worker, begin, request, outcome)


async def work_async(address: str, who: str, seed: str, history: History, over: threading.Event) -> None:
    """Let workers work with one asyncio client."""
    async with mesh.AsyncClient(address, timeout_s=CALL_S) as client:
        await asyncio.gather(*(
            _work_async(Worker(f"{who}{n}", seed, history), client, over) for n in range(TASKS)
        ))


async def _work_async(worker: Worker, client: mesh.AsyncClient, over: threading.Event) -> None:
    for steps in _life(worker, over):
        outcome: Any = None
        while (request := _next(steps, outcome)) is not None:
            begin = monotonic()
            try:
                outcome = await _ask(client, request)
            except mesh.MeshError as error:
                outcome = error
            _told(worker, begin, request, outcome)
        await asyncio.sleep(0)


def _life(worker: Worker, over: threading.Event) -> Iterator[Any]:
    while not over.is_set():
        yield worker.step()
    yield worker.last_words()


def _next(steps: Any, outcome: Any) -> Any:
    try:
        return steps.send(outcome)
    except StopIteration:
        return None


def _ask(client: Any, request: tuple[Any, ...]) -> Any:
    name, args, *options = request
    found: Callable[..., Any] = client
    for part in name.split("."):
        found = getattr(found, part)
    return found(*args, **{"timeout_s": CALL_S, **(options[0] if options else {})})


def _told(worker: Worker, begin: float, request: Any, outcome: Any) -> None:
    fine = not isinstance(outcome, mesh.MeshError) or expected(request[0], outcome.code)
    worker.history.called(worker.name, begin, request, outcome, fine)


__all__ = ["CALL_S", "rage"]
