"""A partition's end of the feed. PUB is a doorbell, the log is the door: what is lost is fetched there."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from mesh.config import LimitsSection
from mesh.core import events as ev
from mesh.core import wire
from mesh.core.access import NOBODY, opens
from mesh.core.announced import topic, topic_id
from mesh.core.routes import RouteTable
from mesh.core.runner import groups
from mesh.core.state import EventRow, State
from mesh.core.topics import PACKED_ALL, PACKED_ONE, Topics
from mesh.net import sockets
from mesh.node.reads import STAMP_PAIRS, event_topic

#: Subscriptions taken in one turn of the loop: a flood of them holds up nobody.
TAKE_MAX = 1_000
#: A message of several events is cut at this size: of it, as many may wait for a slow listener as of others.
PACK_BYTES = 8 * 1024
_PACK = wire.map_header(5) + wire.pack("ts")
_EVENTS = wire.pack("events")


class Publisher:
    """Knows what is subscribed, so that nothing is encoded for nobody."""

    def __init__(self, socket: Any, state: State, limits: LimitsSection) -> None:
        self.socket = socket
        self._put = sockets.sender(socket)
        self.state = state
        self.topics = Topics(limits.feed_topics)
        self._message_bytes_max = limits.feed_message_bytes
        self.lost = 0  #: messages that listeners have to fetch from the log
        self._skipped = False  #: one of this batch was too large to publish

    def take_subscriptions(self) -> bool:
        """Read what listeners subscribed and unsubscribed (the proxy passes each topic once).

        Returns whether that was all of it.
        """
        recv = self.socket.recv
        try:
            for _ in range(TAKE_MAX):
                message = recv(sockets.NOWAIT)
                if message[:1] == b"\x01":
                    self.topics.add(message[1:])
                elif message[:1] == b"\x00":
                    self.topics.discard(message[1:])
        except sockets.Again:
            return True
        return False

    def publish_batch(self, routes: RouteTable) -> None:
        """Everything that the committed batch announces."""
        state = self.state
        for what, said in state.lifecycle if self.topics.lifecycle else ():
            self._send(topic(what, said.session_id).encode(), wire.repack(said))
        topics = self.topics
        if state.events and (topics.every_session or topics.sessions or topics.packed):
            events = self._public(state.events)
            if topics.every_session or topics.sessions:
                self._publish_events(events)
            if topics.packed or topics.over:
                self._publish_packed(events)
        routes.watched = self.topics.routes
        if routes.notes:
            notes, routes.notes = routes.notes, []
            stamp = {"ts": state.now, "epoch": state.epoch, "node": state.node, "partition": state.partition}
            for what, fields in notes:
                self._send(f"route.{what}".encode(), wire.pack({**stamp, **fields}))
        if self._skipped:
            self._skipped = False
            self._send(b"node.head", self._stand())

    def _public(self, events: list[EventRow]) -> list[EventRow]:
        """What is shown to everybody: the feed knows no tokens. A past that was imported is no news."""
        quiet, known = self.state.quiet, self.state.sessions
        if not quiet and all(known[event.session_id].access is None for event in events):
            return events
        shown = []
        for event in events:
            if event.session_id in quiet:
                continue
            if (access := known[event.session_id].access) and not opens(access, event.session_id, NOBODY):
                event = replace(event, fragment=ev.masked(event.fragment))
            shown.append(event)
        return shown

    def _publish_events(self, events: list[EventRow]) -> None:
        everything, sessions = self.topics.every_session, self.topics.sessions
        for event in events:
            if everything or f"session.{topic_id(event.session_id)}.".encode() in sessions:
                self._send(
                    event_topic(event.session_id, event.type).encode(),
                    ev.encode_published(
                        event.fragment, event.session_id, event.seq, event.pos, self.state.stamp, STAMP_PAIRS
                    ),
                )

    def _publish_packed(self, events: list[EventRow]) -> None:
        """The same, many in a message: for who follows everything, and for who follows one session."""
        encoded, packed, over = ev.encode_packed(events), self.topics.packed, self.topics.over
        if over or PACKED_ALL in packed:
            self._pack(PACKED_ALL, encoded)
        if not over and packed <= {PACKED_ALL}:
            return
        by_session: dict[str, list[bytes]] = {}
        for event, event_map in zip(events, encoded, strict=True):
            by_session.setdefault(event.session_id, []).append(event_map)
        for session_id, maps in by_session.items():
            one = PACKED_ONE + f"{topic_id(session_id)}.".encode()
            if over or one in packed:
                self._pack(one, maps)

    def _pack(self, topic: bytes, events: list[bytes]) -> None:
        head = b"".join((_PACK, wire.repack(self.state.now), self.state.stamp, _EVENTS))
        for group in groups(events, PACK_BYTES):
            self._send(topic, b"".join((head, wire.array_header(len(group)), *group)))

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
        """Show a new listener that its subscriptions reached this partition; he asks until he hears it."""
        if not self.take_subscriptions():
            return
        self._send(f"node.echo.{token}".encode(), self._stand())

    def _stand(self) -> bytes:
        state = self.state
        return wire.pack({"ts": state.now, "partition": state.partition, "epoch": state.epoch,
                          "node": state.node, "lseq": state.lseq, "pos": state.pos})

    def _send(self, topic: bytes, payload: bytes) -> None:
        if len(payload) > self._message_bytes_max:
            self.lost += 1  # thousands of them may wait for one listener: the head says that there is more
            self._skipped = True
            return
        try:
            self._put(topic, sockets.MORE)
            self._put(payload, sockets.NOWAIT)
        except sockets.Again:
            self.lost += 1  # listeners see the hole in the counters and fetch it


__all__ = ["PACK_BYTES", "TAKE_MAX", "Publisher"]
