"""What listeners subscribed to, as a publisher needs it: each answer is a field, however many topics there
are.

Rules of this file: a topic counts once until it is taken back; what it means for the families is counted as
it comes and goes, never looked for. Beyond the bound topics are only counted: then everything is wanted, and
the event proxy, which knows them all, drops what nobody asked for.
"""

from __future__ import annotations

_SESSIONS, _ROUTES, _LIFECYCLE = b"session.", b"route.", b"lifecycle."
#: Events of one commit in a message: of all sessions, and of one (``packed.one.<sid>.``).
PACKED_ALL, PACKED_ONE = b"packed.all", b"packed.one."


class Topics:
    """The subscriptions of all listeners together."""

    __slots__ = (
        "_all", "_finer", "_lifecycle", "_most", "_routes", "_topics", "over", "packed", "sessions",
    )

    def __init__(self, most: int) -> None:
        self._most = most
        self._topics: set[bytes] = set()
        self._all = self._finer = self._routes = self._lifecycle = 0
        self.sessions: set[bytes] = set()  #: ``session.<sid>.``: whole sessions that somebody follows
        self.packed: set[bytes] = set()  #: ``packed.all`` and ``packed.one.<sid>.``, as subscribed
        self.over = 0  #: topics that are not kept

    def __len__(self) -> int:
        return len(self._topics) + self.over

    @property
    def every_session(self) -> bool:
        """Whether each session's events are to be published; finer topics are left to the proxy."""
        return bool(self._all or self._finer or self.over)

    @property
    def routes(self) -> bool:
        """Whether somebody wants ``route.*`` messages."""
        return bool(self._routes or self.over)

    @property
    def lifecycle(self) -> bool:
        """Whether somebody wants ``lifecycle.*`` messages."""
        return bool(self._lifecycle or self.over)

    def add(self, topic: bytes) -> None:
        """Somebody subscribed."""
        if topic in self._topics:
            return
        if len(self._topics) >= self._most:
            self.over += 1
            return
        self._topics.add(topic)
        self._count(topic, 1)

    def discard(self, topic: bytes) -> None:
        """Nobody is subscribed any more."""
        if topic in self._topics:
            self._topics.remove(topic)
            self._count(topic, -1)
        elif self.over:
            self.over -= 1

    def _count(self, topic: bytes, one: int) -> None:
        if _SESSIONS.startswith(topic):
            self._all += one
        elif topic.startswith(_SESSIONS):
            if topic.count(b".") != 2 or not topic.endswith(b"."):
                self._finer += one
            elif one > 0:
                self.sessions.add(topic)
            else:
                self.sessions.discard(topic)
        elif topic == PACKED_ALL or topic.startswith(PACKED_ONE):
            if one > 0:
                self.packed.add(topic)
            else:
                self.packed.discard(topic)
        if topic.startswith(_ROUTES) or _ROUTES.startswith(topic):
            self._routes += one
        if topic.startswith(_LIFECYCLE) or _LIFECYCLE.startswith(topic):
            self._lifecycle += one


__all__ = ["PACKED_ALL", "PACKED_ONE", "Topics"]
