"""The systems that ``mesh bench --peers`` compares with. Each is measured by a process of its own.

    python tests/bench/peers.py list                    what there is and what is missing, as JSON
    python tests/bench/peers.py show redis-py           measure one by hand
    python tests/bench/peers.py serve redis-py [uvloop] for mesh bench: requests on stdin, answers on stdout

``serve`` starts the servers and one client, then says which figures it can measure. Each line of stdin is
``{"figure", "count"}``, each answer ``{"value", "details"}`` or ``{"error"}``. The end of stdin ends it and
its servers; so they end with ``mesh bench``, however that ends.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, NamedTuple

from peer_base import Peer

from mesh.cli import measure

FIGURES = (
    "one", "one_blocking", "concurrent", "set_concurrent", "list_of_100", "pipeline_of_256", "durable",
    "conversations",
)  # fmt: skip
LATENCIES = ("one", "one_blocking")
SHOW_CALLS = 2_000


class Entry(NamedTuple):
    """A peer and what it takes to have it."""

    name: str
    target: str
    modules: tuple[str, ...]
    programs: tuple[str, ...]
    install: str
    uvloop: bool = False  #: measured a second time with uvloop on both sides


REDIS = "pip install redis hiredis; apt install redis-server (macOS: brew install redis)"
PEERS = (
    Entry("pyzmq", "peer_pyzmq:BareRouter", ("zmq",), (), "pip install pyzmq"),
    Entry("redis-py", "peer_redis:Blocking", ("redis", "hiredis"), ("redis-server",), REDIS),
    Entry("redis.asyncio", "peer_redis:Asyncio", ("redis", "hiredis"), ("redis-server",), REDIS, uvloop=True),
    Entry(
        "NATS",
        "peer_nats:Nats",
        ("nats",),
        ("nats-server",),
        "pip install nats-py; apt install nats-server (macOS: brew install nats-server)",
        uvloop=True,
    ),
    Entry("gRPC", "peer_grpc:Grpc", ("grpc",), (), "pip install grpcio"),
    Entry("xoscar", "peer_xoscar:Xoscar", ("xoscar",), (), "pip install xoscar"),
    Entry("Ray", "peer_ray:Ray", ("ray",), (), "pip install ray"),
    Entry(
        "LangGraph memory", "peer_memory:LangGraph", ("langgraph",), (), "pip install langgraph-checkpoint"
    ),
    Entry("openai-agents", "peer_memory:OpenAIAgents", ("agents",), (), "pip install openai-agents"),
)


def missing(entry: Entry) -> list[str]:
    """The modules and programs that are not here."""
    modules = [name for name in entry.modules if find_spec(name) is None]
    return modules + [name for name in entry.programs if shutil.which(name) is None]


def build(name: str, folder: Path) -> Peer:
    """The peer of that name; its module is imported only now."""
    entry = next(entry for entry in PEERS if entry.name == name)
    module, _, class_name = entry.target.partition(":")
    peer: Peer = getattr(importlib.import_module(module), class_name)(folder)
    return peer


async def answer(peer: Peer, figure: str, count: int) -> dict[str, Any]:
    """Measure one figure."""
    found = await getattr(peer, figure)(count)
    if figure not in LATENCIES:
        return {"value": found, "details": {}}
    found.sort()
    p50, p99 = measure.percentile(found, 0.5), measure.percentile(found, 0.99)
    return {"value": p50, "details": {"calls": count, "p99_us": round(p99, 1)}}


async def serve(peer: Peer, requests: IO[str], answers: IO[str]) -> None:
    """Answer until the requests end."""

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        try:
            await peer.start()
            say({"figures": [name for name in FIGURES if hasattr(peer, name)]})
            while line := await asyncio.to_thread(requests.readline):
                request = json.loads(line)
                say(await answer(peer, request["figure"], request["count"]))
        except Exception as exc:
            say({"error": f"{type(exc).__name__}: {exc}"})
        await peer.stop()
    finally:
        peer.end_servers()


async def show(peer: Peer) -> None:
    """Print each figure once."""
    try:
        await peer.start()
        for figure in FIGURES:
            if hasattr(peer, figure):
                await answer(peer, figure, SHOW_CALLS // 10)
                print(figure, await answer(peer, figure, SHOW_CALLS), flush=True)
        await peer.stop()
    finally:
        peer.end_servers()


def listed() -> list[dict[str, Any]]:
    """What there is, for ``list``."""
    return [
        {"name": entry.name, "missing": missing(entry), "install": entry.install, "uvloop": entry.uvloop}
        for entry in PEERS
    ]


def _terminated(*_: object) -> None:
    raise SystemExit(1)


def main(what: str, name: str = "", loop: str = "") -> None:
    """See the module's docstring."""
    if what == "list":
        print(json.dumps(listed()))
        return
    signal.signal(signal.SIGTERM, _terminated)
    # Their servers import what we import, from where we have it.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    # What libraries print on stdout is no answer: it goes where their errors go.
    answers = os.fdopen(os.dup(1), "w")
    if what == "serve":
        os.dup2(2, 1)
    with (
        tempfile.TemporaryDirectory(prefix="mb-", ignore_cleanup_errors=True) as folder,
        asyncio.Runner(loop_factory=factory) as runner,
    ):
        peer = build(name, Path(folder))
        runner.run(serve(peer, sys.stdin, answers) if what == "serve" else show(peer))


if __name__ == "__main__":
    main(*sys.argv[1:])
