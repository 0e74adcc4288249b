"""Those who listen to a storm: each in a thread of its own, each in another way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from storm import EXPECTED

import mesh


class Ear(threading.Thread):
    """A listener in a thread of its own; ``seen`` grows."""

    def __init__(self, client: mesh.Client, topic: str) -> None:
        super().__init__(name=f"ear {topic}", daemon=True)
        self.topic = topic
        self.feed = client.listen(topic)
        self.seen: list[mesh.Notification] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            for notification in self.feed:
                self.seen.append(notification)
                self.heard()
        except BaseException as error:
            self.failure = error

    def heard(self) -> None:
        """Something more was heard."""

    def end(self) -> None:
        """Listen no more."""
        self.feed.close()


class Hopper(Ear):
    """A listener that leaves again and again and comes back with its cursor."""

    def __init__(self, client: mesh.Client, topic: str) -> None:
        super().__init__(client, topic)
        self.client = client
        self.over = False

    def run(self) -> None:
        while not self.over:
            super().run()
            cursor = self.seen[-1].cursor if self.seen else None
            try:
                self.feed = self.client.listen(self.topic, after=cursor)
            except mesh.MeshError as error:
                if error.code not in EXPECTED:
                    self.failure = error
                    return
        self.feed.close()

    def heard(self) -> None:
        if len(self.seen) % 10 == 0 and not self.over:
            self.feed.close()

    def end(self) -> None:
        self.over = True
        super().end()


class Follower(Ear):
    """The same for one session, by ``sessions.stream``; ends with the session."""

    def __init__(self, client: mesh.Client, sid: str) -> None:
        threading.Thread.__init__(self, name=f"stream {sid}", daemon=True)
        self.client, self.topic, self.seen, self.failure = client, sid, [], None

    def run(self) -> None:
        try:
            for event in self.client.sessions.stream(
                self.topic, stop_when=lambda event: event.type in ("session_cancelled", "session_failed")
            ):
                self.seen.append(mesh.Notification("", event.to_map(), ""))
        except BaseException as error:
            self.failure = error

    def end(self) -> None:
        """It ends by itself."""


@contextmanager
def ears(*listening: Ear) -> Iterator[None]:
    """Listeners that listen, and are closed at the end."""
    for ear in listening:
        ear.start()
    try:
        yield
    finally:
        for ear in listening:
            ear.end()
        for ear in listening:
            ear.join(10)
