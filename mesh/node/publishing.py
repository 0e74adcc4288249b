"""A partition's end of the feed. PUB is a doorbell, the log is the door: what is lost is fetched there."""

from __future__ import annotations

from typing import Any

from mesh.core import events as ev
from mesh.core import wire
from mesh.core.routes import RouteTable
from mesh.core.state import State, topic_id
from mesh.net import sockets
from mesh.node.reads import STAMP_PAIRS, event_topic


class Publisher:
    """Knows what is subscribed, so that nothing is encoded for nobody."""

    def __init__(self, socket: Any, state: State) -> None:
        self.socket = socket
        self.state = state
        self.topics: set[bytes] = set()
        self.all_sessions = False
        self.sessions: set[bytes] = set()
        self.odd = False
        self.lost = 0

    def take_subscriptions(self) -> None:
        """Read what listeners subscribed and unsubscribed (the proxy passes each topic once)."""
        try:
            while True:
                message = self.socket.recv(sockets.NOWAIT)
                if message[:1] == b"\x01":
                    self.topics.add(message[1:])
                elif message[:1] == b"\x00":
                    self.topics.discard(message[1:])
        except sockets.Again:
            pass
        interesting = [t for t in self.topics if t.startswith(b"session.") or b"session.".startswith(t)]
        self.all_sessions = any(b"session.".startswith(t) for t in interesting)
        self.sessions = {t for t in interesting if t.count(b".") == 2 and t.endswith(b".")}
        self.odd = len(self.sessions) + self.all_sessions < len(interesting)

    def wants(self, prefix: bytes) -> bool:
        """Whether somebody subscribed to something at or below a prefix, or to all of it."""
        return any(t.startswith(prefix) or prefix.startswith(t) for t in self.topics)

    def publish_batch(self, routes: RouteTable) -> None:
        """Everything that the committed batch announces."""
        state = self.state
        for _, topic, payload in state.lifecycle:
            self._send(topic.encode(), payload)
        if state.events and (self.all_sessions or self.sessions or self.odd):
            self._publish_events()
        routes.watched = bool(self.topics) and self.wants(b"route.")
        if routes.notes:
            notes, routes.notes = routes.notes, []
            stamp = {"ts": state.now, "epoch": state.epoch, "node": state.node, "partition": state.partition}
            for what, fields in notes:
                self._send(f"route.{what}".encode(), wire.pack({**stamp, **fields}))

    def _publish_events(self) -> None:
        everything = self.all_sessions or self.odd
        for event in self.state.events:
            if everything or f"session.{topic_id(event.session_id)}.".encode() in self.sessions:
                self._send(
                    event_topic(event.session_id, event.type).encode(),
                    ev.encode_published(
                        event.fragment, event.session_id, event.seq, event.pos, self.state.stamp, STAMP_PAIRS
                    ),
                )

    def head(self, counters: dict[str, Any]) -> None:
        """The counters, once a second: the loss of the last message shows too."""
        if self.topics:
            self._send(b"node.head", wire.pack({"ts": self.state.now, **counters}))

    def tell(self, what: str, **fields: Any) -> None:
        """Publish news of this partition itself on ``node.``."""
        if self.topics:
            state = self.state
            stamp = {"ts": state.now, "epoch": state.epoch, "node": state.node, "partition": state.partition}
            self._send(f"node.{what}".encode(), wire.pack({**stamp, "index": state.partition, **fields}))

    def echo(self, token: str) -> None:
        """Show a new listener that its subscriptions reached this partition."""
        self.take_subscriptions()
        self._send(f"node.echo.{token}".encode(), wire.pack({
            "ts": self.state.now, "partition": self.state.partition, "epoch": self.state.epoch,
            "node": self.state.node, "lseq": self.state.lseq, "pos": self.state.pos}))

    def _send(self, topic: bytes, payload: bytes) -> None:
        try:
            self.socket.send(topic, sockets.MORE)
            self.socket.send(payload, sockets.NOWAIT)
        except sockets.Again:
            self.lost += 1  # listeners see the hole in the counters and fetch it


__all__ = ["Publisher"]
