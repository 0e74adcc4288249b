"""The feed without holes, as a pure machine: live messages in, notifications and holes out.

PUB is a doorbell, the log is the door (design 3). Three counters make holes visible: ``lseq`` (lifecycle
messages of a partition), ``pos`` (session messages of a partition), ``seq`` (events of one session).

Rules of this file:

1. We subscribe at least to a unit that has a counter (``lifecycle.``, ``session.``, ``session.<sid>.``) and
   filter finer here. ``node.*`` and ``route.*`` have none: they are best effort.
2. A message with the next number is delivered, one with an older number is a duplicate and dropped, a later
   one is not delivered but names a hole: what is missing, and the message itself, are fetched by cursor.
3. ``node.head`` carries the counters each second, so the loss of the LAST message shows too.
4. The log is the truth: a number that the log no longer has is passed over at the end of a fetch.
5. Nothing is buffered here. A hole that could not be fetched shows again with the next message.
6. Session events come many in a message (``packed.``); each of them is delivered by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mesh.core.notification import Notification
from mesh.core.slots import check_id, session_slot
from mesh.errors import InvalidArgument, shown

FAMILIES = ("lifecycle.", "session.", "node.", "route.")
#: Rows asked for in one fetch.
FETCH_ROWS = 1_000
#: A filter has at most this many topics; each is a subscription.
TOPICS_MAX = 1_000
#: The feed ends the connection of who subscribes to a topic of 4 KiB; no real one is half as long as this.
TOPIC_LENGTH_MAX = 1_024
CURSOR = "feed"
_ALL = "packed.all"
#: Where these counters stand in a cursor.
_POS, _SEQ = 3, 4


class Hole(NamedTuple):
    """Numbers above ``after``, up to ``target``, that the log has and we have not."""

    unit: str  #: "lifecycle", "session" (all of a partition) or "events" (one session)
    partition: int
    session_id: str
    after: int
    target: int


class _Stand:
    """Where a listener stood; its text is made when somebody asks, since few do."""

    __slots__ = ("_encode", "_key", "_name", "_stand")

    def __init__(
        self, encode: Callable[[Any], str], stand: list[Any], name: int = 0, key: Any = None
    ) -> None:
        self._encode = encode
        self._stand = stand
        self._name = name  #: the counter that a message's number belongs to
        self._key = key

    def cursor(self, number: int) -> str:
        """The opaque text of a cursor."""
        stand = self._stand
        if self._name:
            stand = list(stand)
            stand[self._name] = {**stand[self._name], self._key: number}
        return self._encode(stand)


class FeedCursor:
    """Where a listener stands. ``encode`` turns positions into the opaque text of a cursor."""

    def __init__(
        self,
        topics: Sequence[str],
        slot_map: bytes,
        partitions: int,
        encode: Any,
        after: list[Any] | None = None,
        map_version: int = 1,
    ) -> None:
        self.topics = _checked(topics)
        self.partitions = partitions
        self.map_version = map_version  #: of the slots: another one has counters of its own
        self._encode = encode
        self.lifecycle = any(_covers(topic, "lifecycle.") for topic in self.topics)
        self.all_sessions = any(_whole_sessions(topic) for topic in self.topics)
        ids = (
            ()
            if self.all_sessions
            else sorted({sid for t in self.topics if (sid := _session_of(t)) is not None})
        )
        self.sessions = {sid: slot_map[session_slot(sid)] for sid in ids}
        self.live: set[int] = set()
        self.holes: list[Hole] = []
        self.stray = 0  #: what came through the feed and was no message of it
        self._lseq: dict[int, int] = {}
        self._pos: dict[int, int] = {}
        self._seq: dict[str, int] = {}
        self._meta: dict[int, dict[str, Any]] = {}
        self._resumed = after is not None
        if after is not None:
            self._resume(after)

    def subscriptions(self, token: str) -> list[bytes]:
        """The prefixes to subscribe, with our own echo."""
        wanted = {"node.head", f"node.echo.{token}"}
        wanted |= {"lifecycle."} if self.lifecycle else set()
        wanted |= (
            {_ALL} if self.all_sessions else {f"packed.one.{topic_id(sid)}." for sid in self.sessions}
        )
        for topic in self.topics:
            for family in ("node.", "route."):
                if _covers(topic, family):
                    wanted.add(topic if topic.startswith(family) else family)
        return sorted(prefix.encode() for prefix in wanted)

    # --- opening ---

    def _resume(self, after: list[Any]) -> None:
        try:
            _, version, lseq, pos, seq = after
            kept = (lseq is not None or not self.lifecycle) and (pos is not None or not self.all_sessions)
            if version != self.map_version or not kept or not set(seq) >= set(self.sessions):
                raise ValueError("other topics")
            lseq, pos = lseq or {}, pos or {}
            numbers = [*lseq.values(), *pos.values(), *seq.values()]
            if not all(type(n) is int and n >= 0 for n in numbers):
                raise ValueError("not numbers")
        except (ValueError, TypeError, AttributeError) as exc:
            raise InvalidArgument(
                "this cursor belongs to other topics, or to a time when the node had another number of "
                "partitions",
                code="invalid_cursor",
            ) from exc
        self._lseq, self._pos = dict(lseq) if self.lifecycle else {}, dict(pos) if self.all_sessions else {}
        self._seq = {sid: seq[sid] for sid in self.sessions}

    def check_map(self, version: Any) -> None:
        """Refuse to go on when slots moved: what was said meanwhile is counted elsewhere.

        Raises:
            InvalidArgument: ``invalid_cursor``.
        """
        if version != self.map_version:
            raise InvalidArgument(
                "the node has another number of partitions than when this listener began: begin anew; what "
                "was said meanwhile is in the logs of the sessions", code="invalid_cursor",
            )

    def check_history(self, head: dict[str, Any]) -> None:
        """Refuse to go on behind a cursor when what follows it is no longer kept, or never was here.

        Raises:
            InvalidArgument: ``invalid_cursor``.
        """
        if not self._resumed:
            return
        p = head["partition"]
        lseq, pos = self._lseq.get(p), self._pos.get(p)
        lost = lseq is not None and lseq < head["lseq"] and lseq + 1 < (head.get("lseq_kept") or 0)
        strange = (lseq is not None and lseq > head["lseq"]) or (
            self.all_sessions and pos is not None and pos > head["pos"]
        )
        if lost or strange:
            why = "is no longer kept" if lost else "is not of this node"
            raise InvalidArgument(
                f"the history behind this cursor {why} (partition {p})", code="invalid_cursor"
            )

    def on_opening(self, topic: str, data: dict[str, Any], token: str) -> None:
        """While opening only echoes count: from there on nothing of that partition is missed."""
        if topic != f"node.echo.{token}" or data["partition"] in self.live:
            return
        self.live.add(data["partition"])
        self._note(data)
        self._on_head(data, first=True)

    def absent(self, partition: int) -> None:
        """That partition is down: there is nothing to miss until it comes back."""
        self.live.add(partition)

    def missing(self) -> list[int]:
        """Partitions whose echo has not come back."""
        return [p for p in range(self.partitions) if p not in self.live]

    def session_at(self, session_id: str, seq: int) -> None:
        """Where a session's log ends now; a listener without a cursor begins behind it."""
        if self._resumed:
            if seq > self._seq[session_id]:
                self._hole("events", self.sessions[session_id], session_id, self._seq[session_id], seq)
        else:
            self._seq[session_id] = seq

    # --- live ---

    def on_message(self, topic: str, data: dict[str, Any]) -> list[Notification]:
        """Take a live message. What it completes is returned; what it shows to be missing is in ``holes``.

        Raises:
            InvalidArgument: ``invalid_cursor``, slots moved.
        """
        if topic.startswith("packed."):
            return self._on_packed(data)
        if topic.startswith("session."):
            return self._on_session(topic, data)
        if topic.startswith("lifecycle."):
            if not self.lifecycle:
                return []
            partition, number = data["partition"], data["lseq"]
            last = self._lseq.setdefault(partition, number - 1)
            if number > last + 1:
                self._hole("lifecycle", partition, "", last, number)
            if number != last + 1:
                return []
            self._lseq[partition] = number
        elif topic == "node.head":
            self.check_map(data.get("map_version", self.map_version))
            self._note(data)
            self._on_head(data)
        elif topic.startswith("node.echo."):
            return []
        return self._deliver(topic, data)

    def _on_session(self, topic: str, data: dict[str, Any]) -> list[Notification]:
        if self.all_sessions:
            partition, number = data["partition"], data["pos"]
            last = self._pos.setdefault(partition, number - 1)
            if number > last + 1:
                self._hole("session", partition, "", last, number)
            if number != last + 1:
                return []
            self._pos[partition] = number
            return self._deliver(topic, data)
        session_id, number = data["session_id"], data["seq"]
        if session_id not in self.sessions:
            return []
        last = self._seq.setdefault(session_id, 0)
        if number > last + 1:
            self._hole("events", self.sessions[session_id], session_id, last, number)
        if number != last + 1:
            return []
        self._seq[session_id] = number
        return self._deliver(topic, data)

    def _on_packed(self, packed: dict[str, Any]) -> list[Notification]:
        """The events of a commit: of a partition, or of one session."""
        out: list[Notification] = []
        try:
            events = packed["events"]
            stamp = {name: packed[name] for name in ("partition", "epoch", "node")}
            session_id = "" if self.all_sessions else events[0]["session_id"]
            if self.all_sessions:
                hole = Hole("session", packed["partition"], "", 0, events[-1]["pos"])
                name, place = "pos", _Stand(self._encode, self._stand_now(), _POS, hole.partition)
                last = self._pos.setdefault(hole.partition, events[0]["pos"] - 1)
            elif session_id in self.sessions:
                hole = Hole("events", self.sessions[session_id], session_id, 0, events[-1]["seq"])
                name, place = "seq", _Stand(self._encode, self._stand_now(), _SEQ, session_id)
                last = self._seq.setdefault(session_id, 0)
            else:
                return out
            for event in events:
                number = event[name]
                if number > last + 1:
                    self._hole(*hole._replace(after=last))
                    break
                if number == last + 1:
                    topic = f"session.{topic_id(event['session_id'])}.{event['type']}"
                    event.update(stamp)
                    self._advance(hole, number)
                    last = number
                    if topic.startswith(self.topics):
                        out.append(Notification(topic, event, place, number))
        except (AttributeError, LookupError, TypeError):
            self.stray += 1
        return out

    def _on_head(self, head: dict[str, Any], first: bool = False) -> None:
        partition = head["partition"]
        if self.lifecycle:
            last = self._lseq.setdefault(partition, head["lseq"])
            if head["lseq"] > last:
                self._hole("lifecycle", partition, "", last, head["lseq"])
        known = self._pos.setdefault(partition, head["pos"])
        if self.all_sessions:
            if head["pos"] > known:
                self._hole("session", partition, "", known, head["pos"])
        elif not first and head["pos"] > known:
            self._pos[partition] = head["pos"]
            for session_id, home in self.sessions.items():
                if home == partition:
                    self._hole("events", partition, session_id, self._seq.get(session_id, 0), 0)

    def _hole(self, unit: str, partition: int, session_id: str, after: int, target: int) -> None:
        if not any(
            h.unit == unit and h.partition == partition and h.session_id == session_id for h in self.holes
        ):
            self.holes.append(Hole(unit, partition, session_id, after, target))

    # --- fetched ---

    def fetched(self, hole: Hole, rows: Sequence[Any], complete: bool = True) -> list[Notification]:
        """Take a page of the log; the hole stays in ``holes`` while there is more of it (``complete`` False,
        or its target was not reached).

        Raises:
            InvalidArgument: ``invalid_cursor``, the log no longer holds what is missing.
        """
        self.holes.remove(hole)
        out: list[Notification] = []
        last = hole.after
        for row in rows:
            topic, data = row if hole.unit != "events" else self._as_message(hole, row)
            number = data[{"lifecycle": "lseq", "session": "pos", "events": "seq"}[hole.unit]]
            if hole.unit == "lifecycle" and last == hole.after and number > last + 1:
                raise InvalidArgument(
                    f"lifecycle messages {last + 1} to {number - 1} of partition {hole.partition} are gone",
                    code="invalid_cursor",
                    details={"partition": hole.partition},
                )
            if number > self._stand(hole):
                self._advance(hole, number)
                out += self._deliver(topic, data) if topic else []  # else passed over: an imported past
            last = max(last, number)
        if rows and (last < hole.target or not complete):
            self.holes.insert(0, hole._replace(after=last))
        elif hole.target > self._stand(hole):
            self._advance(hole, hole.target)
        return out

    def unfetched(self, hole: Hole) -> None:
        """The log could not be read now. The hole shows again, with the next message or head."""
        self.holes.remove(hole)
        if hole.unit == "events":
            self._pos[hole.partition] = -1

    def _as_message(self, hole: Hole, row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        topic = f"session.{topic_id(hole.session_id)}.{row['type']}"
        return topic, {**row, "partition": hole.partition, **self._meta.get(hole.partition, {})}

    def _stand(self, hole: Hole) -> int:
        if hole.unit == "events":
            return self._seq.get(hole.session_id, 0)
        return (self._lseq if hole.unit == "lifecycle" else self._pos).get(hole.partition, hole.after)

    def _advance(self, hole: Hole, number: int) -> None:
        if hole.unit == "events":
            self._seq[hole.session_id] = number
        else:
            (self._lseq if hole.unit == "lifecycle" else self._pos)[hole.partition] = number

    def _note(self, head: dict[str, Any]) -> None:
        self._meta[head["partition"]] = {name: head[name] for name in ("epoch", "node") if name in head}

    def _deliver(self, topic: str, data: dict[str, Any]) -> list[Notification]:
        if not topic.startswith(self.topics):
            return []
        return [Notification(topic, data, _Stand(self._encode, self._stand_now()))]

    def _stand_now(self) -> list[Any]:
        return [
            CURSOR, self.map_version, dict(self._lseq) if self.lifecycle else None,
            dict(self._pos) if self.all_sessions else None, dict(self._seq),
        ]

    def cursor(self) -> str:
        """The opaque text of where we stand."""
        return _Stand(self._encode, self._stand_now()).cursor(0)


def is_message(topic: str, data: dict[str, Any]) -> bool:
    """Whether a decoded message has what tells its place in the feed."""
    get = data.get
    if topic.startswith("session."):
        return (
            type(get("partition")) is type(get("pos")) is type(get("seq")) is int
            and type(get("session_id")) is str
        )
    if topic.startswith("packed."):
        return type(get("partition")) is int and type(get("events")) is list
    if topic.startswith("lifecycle."):
        return type(get("partition")) is type(get("lseq")) is int
    if topic.startswith(("node.head", "node.echo.")):
        return type(get("partition")) is type(get("lseq")) is type(get("pos")) is int
    return True


def topic_id(session_id: str) -> str:
    """How an id stands in a topic."""
    return session_id.replace(".", "%2E")


def _checked(topics: Sequence[str]) -> tuple[str, ...]:
    """The topics, or everything.

    Raises:
        InvalidArgument: nothing is ever published under such a topic.
    """
    if len(topics) > TOPICS_MAX:
        raise InvalidArgument(f"{len(topics)} topics; at most {TOPICS_MAX}", code="limit_exceeded")
    for topic in topics:
        if not isinstance(topic, str) or not any(_covers(topic, family) for family in FAMILIES):
            raise InvalidArgument(
                f"no such topic: {shown(topic, 80)}; topics begin with {', '.join(FAMILIES)}",
                code="invalid_argument",
            )
        if len(topic) > TOPIC_LENGTH_MAX or not topic.isprintable():
            raise InvalidArgument(
                f"a topic has at most {TOPIC_LENGTH_MAX} printable characters", code="invalid_argument"
            )
    return tuple(topics) or ("",)


def _covers(topic: str, family: str) -> bool:
    return topic.startswith(family) or family.startswith(topic)


def _whole_sessions(topic: str) -> bool:
    return _covers(topic, "session.") and _session_of(topic) is None


def _session_of(topic: str) -> str | None:
    """The session of ``session.<sid>.<...>``; None when the topic is not about a single one."""
    parts = topic.split(".", 2)
    if len(parts) < 3 or parts[0] != "session" or not parts[1]:
        return None
    return check_id(parts[1].replace("%2E", "."))


__all__ = [
    "CURSOR", "FAMILIES", "FETCH_ROWS", "TOPICS_MAX", "TOPIC_LENGTH_MAX", "FeedCursor", "Hole", "is_message",
    "topic_id",
]
