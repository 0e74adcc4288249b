"""Those who listen to a storm: each in a thread of its own, each in another way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from storm_history import PASSING

import mesh

END_S = 10.0
CLOSING = ("session_cancelled", "session_completed", "session_failed")


class Ear(threading.Thread):
    """A listener in a thread of its own; ``seen`` grows."""

    def __init__(self, address: str, topic: str) -> None:
        super().__init__(name=f"{type(self).__name__} of {topic} by {address[:3]}", daemon=True)
        self.address = address
        self.client = mesh.Client(address)
        self.topic = topic
        self.seen: list[mesh.Notification] = []
        self.failure: BaseException | None = None
        self.over = False

    def open(self) -> None:
        """Be live when this returns: before anything happens."""
        self.feed = self.client.listen(self.topic)
        self.start()

    def run(self) -> None:
        try:
            self.listen()
        except BaseException as error:
            self.failure = error

    def listen(self) -> None:
        """Hear everything until ``end``."""
        self.seen.extend(self.feed)

    def end(self) -> None:
        """Listen no more."""
        self.over = True
        self.client.close()


class Hopper(Ear):
    """A listener that leaves after so many messages, again and again, and comes back with its cursor."""

    def __init__(self, address: str, topic: str, hop: int) -> None:
        super().__init__(address, topic)
        self.hop = hop

    def listen(self) -> None:
        while not self.over:
            for notification in self.feed:
                self.seen.append(notification)
                if len(self.seen) % self.hop == 0:
                    break
            self.feed.close()
            try:
                self.feed = self.client.listen(self.topic, after=self.seen[-1].cursor if self.seen else None)
            except mesh.MeshError as error:
                if error.code not in PASSING and not self.over:
                    raise


class AsyncEar(Ear):
    """A listener of an asyncio client, in a loop of its own."""

    def open(self) -> None:
        self.live = threading.Event()
        self.start()
        assert self.live.wait(END_S), self.failure

    def listen(self) -> None:
        asyncio.run(self._listen())

    async def _listen(self) -> None:
        self.loop = asyncio.get_running_loop()
        async with mesh.AsyncClient(self.address) as client:
            self.feed = await client.listen(self.topic)  # type: ignore[assignment]
            self.live.set()
            async for notification in self.feed:  # type: ignore[attr-defined]
                self.seen.append(notification)

    def end(self) -> None:
        super().end()
        if not self.loop.is_closed():  # else it failed, and says how
            self.loop.call_soon_threadsafe(self.feed.close)


class Follower(Ear):
    """One session by ``sessions.stream``, to its end; with a hop, begun anew again and again."""

    def __init__(self, address: str, sid: str, hop: int = 0) -> None:
        super().__init__(address, sid)
        self.hop = hop

    def open(self) -> None:
        self.start()

    def listen(self) -> None:
        after, ended = 0, False
        while not ended:
            for event in self.client.sessions.stream(self.topic, after=after, stop_when=self._stops):
                after, ended = event.seq, event.type in CLOSING
                self.seen.append(mesh.Notification("", event.to_map(), ""))

    def _stops(self, event: mesh.Event) -> bool:
        return event.type in CLOSING or (self.hop > 0 and event.seq % self.hop == 0)

    def end(self) -> None:
        """It ended by itself, with the session."""
        self.join(END_S)
        super().end()


@contextmanager
def ears(*listening: Ear) -> Iterator[None]:
    """Listeners that listen, and are closed at the end."""
    for ear in listening:
        ear.open()
    try:
        yield
    finally:
        for ear in listening:
            ear.end()
        for ear in listening:
            ear.join(END_S)


__all__ = ["AsyncEar", "Ear", "Follower", "Hopper", "ears"]
