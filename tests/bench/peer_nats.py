"""NATS request/reply: nats-server on loopback, and a responder that holds the routes in a dict."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from importlib.util import find_spec
from typing import Any

import nats
from peer_base import KEYS, ROUTE_BYTES, Peer, each, key, rate

SUBJECT = "route.get"
TIMEOUT_S = 30.0


class Nats(Peer):
    """nats-py: one connection."""

    async def start(self) -> None:
        # It has no unix sockets; port -1 is a free one, which it writes to a file.
        self.spawn("nats-server", "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(self.folder))
        url = self.wait_for(self._url, "nats-server")
        self.spawn(sys.executable, __file__, url)
        self.client = await nats.connect(url, allow_reconnect=False)
        self.wait_for((self.folder / "ready").exists, "the responder")

    def _url(self) -> str | None:
        for path in self.folder.glob("nats-server_*.ports"):
            try:
                return str(json.loads(path.read_text())["nats"][0])
            except (ValueError, KeyError, IndexError):
                return None  # half written
        return None

    async def stop(self) -> None:
        await self.client.close()

    async def _call(self, place: int) -> Any:
        return await self.client.request(SUBJECT, key(place).encode(), timeout=TIMEOUT_S)

    async def one(self, count: int) -> list[float]:
        return await each(self._call, count)

    async def concurrent(self, count: int) -> float:
        return await rate(self._call, count)


async def _respond(url: str) -> None:
    routes = {name.encode(): ROUTE_BYTES for name in KEYS}
    client = await nats.connect(url)

    async def answer(message: Any) -> None:
        await message.respond(routes[message.data])

    await client.subscribe(SUBJECT, cb=answer)
    await client.flush()
    with open("ready", "w"):
        pass
    await asyncio.Event().wait()


if __name__ == "__main__":
    # The faster loop whenever it is there: this end must not be what is measured.
    factory = importlib.import_module("uvloop").new_event_loop if find_spec("uvloop") else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_respond(sys.argv[1]))
