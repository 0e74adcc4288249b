"""What the router decides: where a frame goes. Header only, never a body, no state per request.

Rules of this file:

1. A request goes to the incarnation that holds the partition now, or is answered at once: restarting
   (``AGAIN``: nothing was done, send again), down, overloaded, stale map, not our protocol.
2. In flight is counted per partition and client (``core/inflight.py``); a reply takes back what its request
   took (it carries the kind and the size it answers). A new incarnation starts at zero.
3. A reply goes to the client it names. What comes from an incarnation that is no longer the holder is
   counted and dropped: the new one answers the resent request from its receipts.
4. What ``partitions.*`` shows comes from the supervisor's roster and the actors' READY, so it is answered
   while a partition is dead.

The hot path returns tuples, not decision objects: this file runs twice for every request of the node.
"""

from __future__ import annotations

from typing import Any

from mesh.core import mailbox, wire
from mesh.core.credit import Credit
from mesh.core.inflight import InFlight
from mesh.core.mailbox import ChildState
from mesh.core.moved import heir
from mesh.core.pace import Pace
from mesh.core.slots import PARTITIONS_MAX, SLOT_COUNT
from mesh.errors import MeshError, Overloaded, RemoteProtocolError, RequestError, Unavailable

#: A client is told of a partition's death if it was heard within this time.
HEARD_S = 10.0
HEARD_MAX = 20_000
RETRY_AFTER_MS = 20
_LONG_WAIT = f"a WAIT payload has at most {wire.WAIT_BYTES_MAX} bytes"

READ, WRITE, WAIT = int(wire.Kind.READ), int(wire.Kind.WRITE), int(wire.Kind.WAIT)
#: What the supervisor says of a child that lives and was told to stop: with the node, or to be started again.
_TOLD_TO_STOP = (ChildState.STOPPED, ChildState.RESTARTING)
_REPLY, _MORE = int(wire.Kind.REPLY), int(wire.Flag.MORE)
_PARTITION_FLAG, _MOVED = int(wire.Flag.PARTITION), int(wire.Flag.MOVED)


class Actor:
    """The present holder of a place (partition or runner) as the router sees it."""

    __slots__ = ("credit", "dead_pid", "identity", "incarnation", "index", "inflight", "kind", "pid",
                 "roster", "stats", "welcomed")

    def __init__(self, kind: bytes, index: int, inflight: InFlight, credit: Credit) -> None:
        self.kind = kind
        self.index = index
        self.identity: bytes | None = None
        self.incarnation = 0
        self.pid: int | None = None
        self.dead_pid: int | None = None  #: by the supervisor's word; a late READY of it counts no more
        self.inflight = inflight
        self.credit = credit
        self.stats: dict[str, Any] = {}
        self.roster: dict[str, Any] = {"state": ChildState.STARTING.value, "restarts": 0, "cause": None}
        self.welcomed = False

    @property
    def peer(self) -> bytes:
        """The 16 bytes under which other actors know this incarnation."""
        return wire.actor_id(self.kind, self.index, self.incarnation)


class Router:
    """Placement, counters and refusals of one router process."""

    def __init__(
        self, *, slot_map: bytes, map_version: int, boot: int, runners: int, inflight_max: int,
        inflight_bytes_max: int, waits_max: int,
    ) -> None:
        self.slot_map = slot_map
        self.map_version = map_version
        self.boot = boot
        self.pace = Pace()

        def actor(kind: bytes, index: int) -> Actor:
            counts = InFlight(payloads_max=inflight_max, bytes_max=inflight_bytes_max, waits_max=waits_max)
            credit = Credit(self.pace, frames_max=inflight_max + waits_max, bytes_max=inflight_bytes_max)
            return Actor(kind, index, counts, credit)

        self.partitions = [actor(mailbox.PARTITION, i) for i in range(max(slot_map) + 1)]
        self.runners = [actor(mailbox.RUNNER, i) for i in range(runners)]
        self.owed: list[tuple[bytes, bytes]] = []  #: (client, answer) that the shell is to send
        self.by_identity: dict[bytes, Actor] = {}
        self.heard: dict[bytes, float] = {}
        self.counters = dict.fromkeys(
            (
                "requests",
                "replies",
                "refused",
                "overloaded",
                "late_replies",
                "unknown_actors",
                "undeliverable",
                "malformed",
                "slow_clients",
            ),
            0,
        )

    # --- requests ---

    def on_client(
        self, client: bytes, payload: bytes, now_ms: int
    ) -> tuple[bytes | None, bytes, Actor | None]:
        """Where a READ, WRITE or WAIT goes: (identity of the actor, frame, actor), or (None, answer, None),
        or (None, nothing, actor): it waits for its turn.

        Raises:
            RemoteProtocolError: not a payload of this protocol; answer with ``refusal``.
        """
        if len(payload) < wire.HEADER_BYTES or payload[:3] != b"MH\x01":
            wire.decode_header(payload)
        _, _, kind, flags, _, address, map_version, remaining_ms, _, _, _ = wire.HEADER.unpack_from(payload)
        if flags & _PARTITION_FLAG:
            if map_version != self.map_version:
                return None, self.stale_map(payload), None
            partition = address
        else:
            partition = self.slot_map[address] if address < SLOT_COUNT else SLOT_COUNT
        if kind == WRITE and flags & _MOVED and len(self.partitions) <= partition < PARTITIONS_MAX:
            partition = heir(partition, len(self.partitions))
        if partition >= len(self.partitions):
            return None, self.refusal(payload, RemoteProtocolError(f"no slot or partition {address}")), None
        actor = self.partitions[partition]
        if actor.identity is None:
            return None, self.unavailable(payload, actor), None
        if kind == WAIT and len(payload) > wire.WAIT_BYTES_MAX:
            return None, self.refusal(payload, RequestError(_LONG_WAIT, code="limit_exceeded")), None
        if not actor.inflight.admit(client, kind, len(payload)):
            return None, self.overloaded(client, payload, actor), None
        frame = client + wire.DEADLINE.pack(now_ms + remaining_ms) + payload
        if actor.credit.send(frame, actor.inflight):
            return actor.identity, frame, actor
        return None, b"", actor

    def undelivered(self, actor: Actor, frame: bytes, *, full: bool) -> bytes:
        """The answer when ZeroMQ could not take a forwarded request; what it counted is taken back."""
        client, payload = frame[: wire.CLIENT_ID_BYTES], frame[wire.ACTOR_PREFIX_BYTES :]
        actor.inflight.release(client, payload[3], len(payload))
        actor.credit.unsent(frame)
        return self.overloaded(client, payload, actor) if full else self.unavailable(payload, actor)

    def refusal(self, payload: bytes, error: MeshError, flags: int = 0) -> bytes:
        """A reply that refuses a whole payload (its header may be unreadable)."""
        self.counters["refused"] += 1
        self.counters["malformed"] += isinstance(error, RemoteProtocolError)
        request_id, kind, address = 0, 0, 0
        if len(payload) >= wire.HEADER_BYTES:
            _, _, kind, _, _, address, _, _, request_id, _, _ = wire.HEADER.unpack_from(payload)
        header = wire.encode_header(
            wire.Kind.REPLY, flags=wire.Flag.REFUSED | flags, answers=kind, address=address,
            map_version=self.map_version, request_id=request_id, number=self.boot,
        )
        return header + wire.pack(error.to_wire())

    def stale_map(self, payload: bytes) -> bytes:
        """The client's placement map is an old one."""
        error = RequestError("the placement map has changed: say HELLO again", code="invalid_argument")
        return self.refusal(payload, error, wire.Flag.STALE_MAP | wire.Flag.AGAIN)

    def unavailable(self, payload: bytes, actor: Actor) -> bytes:
        """Nobody holds the partition: for the moment (AGAIN), or for good (down)."""
        down = actor.roster["state"] == ChildState.DOWN  # one that stops with its node may be back with it
        how = "is down; see: mesh status, mesh partition restart" if down else "is restarting"
        error = Unavailable(
            f"partition {actor.index} {how}", details={"partition": actor.index, "down": down}
        )
        return self.refusal(payload, error, 0 if down else wire.Flag.AGAIN)

    def overloaded(self, client: bytes, payload: bytes, actor: Actor) -> bytes:
        """A bound in front of the partition was reached, or this client's share of it."""
        self.counters["overloaded"] += 1
        counts = actor.inflight
        error = Overloaded(
            f"partition {actor.index} has {counts.payloads} requests in flight, of this client "
            f"{counts.of(client)}, which may have no more than are free (limits.inflight_per_partition)",
            details={"retry_after_ms": RETRY_AFTER_MS, "partition": actor.index},
        )
        return self.refusal(payload, error, wire.Flag.AGAIN)

    def unread(self, reply: bytes | memoryview, waiting: int) -> bytes | None:
        """What is sent instead of a reply to a client that does not read: ask again. Nothing for a write:
        it would look undone, and its repetition is answered from the receipt."""
        self.counters["slow_clients"] += 1
        _, _, _, _, kind, address, _, _, request_id, _, _ = wire.HEADER.unpack_from(reply)
        if kind == WRITE:
            return None
        error = Overloaded(
            f"{waiting} bytes of replies wait to be read (limits.unread_bytes_per_client)",
            details={"retry_after_ms": 10 * RETRY_AFTER_MS},
        )
        header = wire.encode_header(
            wire.Kind.REPLY, flags=wire.Flag.REFUSED | wire.Flag.AGAIN, answers=kind, address=address,
            map_version=self.map_version, request_id=request_id, number=self.boot,
        )
        return header + wire.pack(error.to_wire())

    def answer(self, payload: bytes, body: bytes) -> bytes:
        """The router's own reply to HELLO, STATUS, PING and the like."""
        header = wire.decode_header(payload)
        return wire.encode_header(
            wire.Kind.REPLY, answers=header.kind, address=header.address, map_version=self.map_version,
            request_id=header.request_id, number=self.boot,
        ) + body

    # --- replies and the actors' own traffic ---

    def on_reply(self, identity: bytes, frame: bytes) -> bool:
        """Account for a reply to a client; False when it comes from nobody we know (drop it)."""
        actor = self.by_identity.get(identity)
        if actor is None or actor.identity != identity:
            self.counters["late_replies"] += 1
            return False
        if frame[19] == _REPLY and not (frame[20] & _MORE and frame[21] == WAIT):  # of a WAIT, more comes
            actor.inflight.release(frame[:16], frame[21], int.from_bytes(frame[28:32], "big"))
        return True

    def on_actor(self, identity: bytes, frame: bytes) -> tuple[bytes, bytes] | None:
        """Where an actor's message to another actor goes: (identity, frame), or None (counted)."""
        sender = self.by_identity.get(identity)
        if sender is None or sender.identity != identity:
            self.counters["unknown_actors"] += 1
            return None
        kind, index, incarnation = wire.parse_actor_id(frame[:16])
        group = self.partitions if kind == mailbox.PARTITION else self.runners
        target = group[index] if index < len(group) else None
        if target is None or target.identity is None or incarnation not in (0, target.incarnation):
            self.counters["undeliverable"] += 1
            return None
        return target.identity, sender.peer + bytes(8) + frame[16:]

    def on_own(self, identity: bytes, body: bytes) -> list[Any] | None:
        """An actor's word to the router itself, checked: READY, TOOK or BYE. None (counted) when it is none
        of them, or when a READY does not come under the identity that it names."""
        try:
            message = wire.unpack(body)
        except RemoteProtocolError:
            message = None
        if message == ["bye"] or _is_ready(identity, message) or _is_took(message):
            return message  # type: ignore[no-any-return]
        self.counters["malformed"] += 1
        return None

    def on_ready(self, identity: bytes, message: list[Any]) -> Actor | None:
        """Take an actor's READY: who holds a place is the highest incarnation heard."""
        _, kind, index, incarnation, pid, stats = message
        group = self.partitions if kind.encode() == mailbox.PARTITION else self.runners
        if index >= len(group):
            return None
        actor: Actor = group[index]
        if incarnation < actor.incarnation or pid == actor.dead_pid:
            self.counters["unknown_actors"] += 1
            return None
        if incarnation > actor.incarnation or actor.identity is None:
            if actor.identity is not None:
                self.by_identity.pop(actor.identity, None)
            self._forget(actor)
            actor.identity, actor.incarnation, actor.pid = identity, incarnation, pid
            actor.welcomed = False
            self.by_identity[identity] = actor
        actor.stats = stats
        taken = stats.get("taken")
        if type(taken) is int:
            actor.credit.ready(taken)
        return actor

    def on_gone(self, actor: Actor) -> None:
        """Forget the holder of a place: the supervisor saw its process end."""
        if actor.identity is not None:
            self.by_identity.pop(actor.identity, None)
        actor.identity = None
        actor.pid = None
        self._forget(actor)

    def _forget(self, actor: Actor) -> None:
        """A new incarnation begins with nothing; who waited for the old one is told to ask again."""
        actor.inflight.clear()
        for frame in actor.credit.clear():
            client, payload = frame[: wire.CLIENT_ID_BYTES], frame[wire.ACTOR_PREFIX_BYTES :]
            self.owed.append((client, self.unavailable(payload, actor)))

    def on_roster(self, children: list[dict[str, Any]]) -> list[tuple[Actor, dict[str, Any]]]:
        """Take the supervisor's word; returns the actors whose entry changed, with their former entry."""
        changed = []
        for child in children:
            group = {"partition": self.partitions, "runner": self.runners}.get(child["kind"])
            if group is None or child["index"] >= len(group):
                continue
            actor = group[child["index"]]
            former, actor.roster = actor.roster, child
            if child["pid"] is not None and child["pid"] == actor.dead_pid:
                actor.dead_pid = None  # the number is used again
            elif former.get("pid") not in (None, child["pid"]):
                actor.dead_pid = former["pid"]
            if actor.identity is not None and self._says_dead(actor, former, child):
                self.on_gone(actor)
                changed.append((actor, former))
            elif (former["state"], former.get("pid")) != (child["state"], child["pid"]):
                changed.append((actor, former))
        return changed

    @staticmethod
    def _says_dead(actor: Actor, former: dict[str, Any], child: dict[str, Any]) -> bool:
        """Whether the supervisor's word is about the present holder. Its READY may be faster than the word
        of its birth: what is said before that is about its predecessor."""
        if child["pid"] == actor.pid and child["kind"] == "runner" and child["state"] in _TOLD_TO_STOP:
            return False  # told to stop, and alive: what it ends now is still to be stored
        if child["pid"] == actor.pid or child["state"] in (ChildState.DOWN, ChildState.STOPPED):
            return child["state"] not in (ChildState.READY, ChildState.STARTING)
        return actor.pid in (former.get("pid"), actor.dead_pid)

    def check_partition(self, index: int) -> None:
        """Refuse what is no partition.

        Raises:
            RequestError: ``not_found``.
        """
        if index >= len(self.partitions):
            raise RequestError(f"no partition {index}; there are {len(self.partitions)}", code="not_found")

    def restarts(self, index: int) -> None:
        """Somebody restarts a partition by hand: from now on calls to one that was down wait for it.

        Raises:
            RequestError: ``not_found``, there is no such partition.
        """
        self.check_partition(index)
        self._up_again(self.partitions[index])

    def restarts_runner(self, index: int) -> None:
        """The same of a runner; the partitions are to be told, since calls on its agents wait then.

        Raises:
            RequestError: ``not_found``.
        """
        if index >= len(self.runners):
            raise RequestError(f"no runner {index}; there are {len(self.runners)}", code="not_found")
        self._up_again(self.runners[index])

    @staticmethod
    def _up_again(actor: Actor) -> None:
        if actor.roster["state"] == ChildState.DOWN:
            actor.roster = {**actor.roster, "state": ChildState.RESTARTING.value}

    def gone_frame(self, actor: Actor) -> bytes:
        """What recently heard clients are told when a partition lost its holder."""
        return wire.encode_header(
            wire.Kind.GONE, address=actor.index, map_version=self.map_version, number=self.boot,
            done_below=actor.incarnation,
        )

    def runner_roster(self) -> list[list[Any]]:
        """The runners as partitions need them: [index, incarnation, pid, state, reachable].

        The first four are the supervisor's word: only it knows of a death. A new router has heard nobody
        yet, and must not make the partitions believe that their runners died.
        """
        return [
            [a.index, max(a.incarnation, a.roster.get("incarnation", 0)), a.roster.get("pid") or a.pid,
             self._runner_state(a), a.identity is not None]
            for a in self.runners
        ]

    @staticmethod
    def _runner_state(actor: Actor) -> str:
        """``stopping`` takes no more work, and is still heard."""
        if actor.identity is None:
            return str(actor.roster["state"])
        ends = actor.roster["state"] in _TOLD_TO_STOP and actor.roster.get("pid") == actor.pid
        return mailbox.STOPPING if ends else ChildState.READY.value

    def forget_silent(self, now_s: float) -> None:
        """Drop clients not heard for a while from the list of those to be told."""
        if len(self.heard) > HEARD_MAX:
            self.heard = dict(sorted(self.heard.items(), key=lambda item: item[1])[-HEARD_MAX // 2 :])
        for client in [c for c, at in self.heard.items() if now_s - at > HEARD_S]:
            del self.heard[client]

    def partition_rows(self) -> list[dict[str, Any]]:
        """What is known of each partition, dead or alive."""
        rows = []
        for actor in self.partitions:
            state = actor.roster["state"]
            if actor.identity is not None:
                state = ChildState.READY.value
            elif state == ChildState.READY:
                state = ChildState.STARTING.value
            rows.append(
                {
                    **actor.stats,
                    "index": actor.index,
                    "state": state,
                    "pid": actor.pid,
                    "epoch": actor.incarnation,
                    "restarts": actor.roster["restarts"],
                    "cause": actor.roster["cause"],
                    "inflight": actor.inflight.payloads,
                }
            )
        return rows

    def runner_rows(self) -> list[dict[str, Any]]:
        """The same for the runners."""
        return [
            {**a.stats, "index": a.index, "agent": a.roster.get("agent"),
             "state": "ready" if a.identity is not None else a.roster["state"], "pid": a.pid,
             "incarnation": a.incarnation, "restarts": a.roster["restarts"], "cause": a.roster["cause"]}
            for a in self.runners
        ]


def _is_took(message: Any) -> bool:
    """Whether a message says how much work a partition took."""
    return type(message) is list and len(message) == 2 and message[0] == "took" and (
        type(message[1]) is int and message[1] >= 0)


def _is_ready(identity: bytes, message: Any) -> bool:
    """Whether a message is a READY of the actor that the identity names."""
    if type(message) is not list or len(message) != 6 or message[0] != "ready":
        return False
    _, kind, index, incarnation, pid, stats = message
    numbers = type(index) is type(incarnation) is type(pid) is int
    if kind not in ("P", "R") or not numbers or type(stats) is not dict:
        return False
    return identity == mailbox.identity(kind.encode(), index, incarnation)


__all__ = ["HEARD_MAX", "HEARD_S", "RETRY_AFTER_MS", "Actor", "Router"]
