"""What is open: payloads on their way, sent again when what they were sent to is gone, given up in time.

Rules of this file:

1. A payload keeps its request id and its number however often it is sent; so does what it may have done.
2. It is sent again at once when the router has another boot id, or its partition died (GONE) or has a
   higher epoch than when it was sent; after a refusal with AGAIN at its moment; after silence with a PING at
   1 s and itself at 2, 4, 8 s. A waiting read is silent by nature: there only the router is asked.
3. A number is used again only if every frame that carried it was refused with AGAIN.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any

from mesh.client._facts import Facts, too_late
from mesh.client._payload import Identity, Pair, Payload, error_pair
from mesh.core.wire import Kind

#: The first look at a payload that got no answer; doubled each time.
SILENCE_S = 1.0
WAIT_PING_S = 2.0
#: A tick looks at all that is open, and the next one comes so much later for each of them: thousands of
#: payloads that a frozen partition does not answer must not slow the calls to the others.
LOOK_S = 10e-6
BLOCKED_RETRY_S = 0.02
#: Notes and pings wait no longer than this for a connection.
NOTE_S = 1.0
FOREVER = float("inf")

READ, WRITE, WAIT = int(Kind.READ), int(Kind.WRITE), int(Kind.WAIT)
HELLO, STATUS, RESTART = int(Kind.HELLO), int(Kind.STATUS), int(Kind.RESTART)
PING, NOTE, RESTART_RUNNER = int(Kind.PING), int(Kind.NOTE), int(Kind.RESTART_RUNNER)

Completion = tuple[Sequence[Any], Iterable[Pair]]


class Traffic:
    """The open payloads of one client, the order in which they leave, and its identities."""

    def __init__(self, new_id: Callable[[], bytes], address: str) -> None:
        self._new_id = new_id
        self._address = address
        self.facts: Facts | None = None
        self.due_s = FOREVER  #: the next moment at which ``tick`` has something to do
        self.retired: list[Identity] = []  #: their links may be closed; the shell empties the list
        self._open: dict[int, Payload] = {}
        self._outbox: deque[Payload] = deque()
        self._identity = Identity(new_id())
        self._boot = 0
        self._epochs: dict[int, int] = {}
        self._next_id = 0
        self._rests_until_s = 0.0

    def _id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _open_payload(self, payload: Payload, now_s: float) -> None:
        payload.identity = self._identity
        payload.identity.open += 1
        self._open[payload.request_id] = payload
        payload.due_s = min(payload.deadline_s, now_s + (WAIT_PING_S if payload.kind == WAIT else SILENCE_S))
        self._look_at(payload.due_s)
        self._queue(payload)

    def _queue(self, payload: Payload) -> None:
        if not payload.queued:
            payload.queued = True
            self._outbox.append(payload)

    def _look_at(self, due_s: float) -> None:
        self.due_s = min(self.due_s, due_s)

    def next_frame(self, now_s: float) -> tuple[bytes, bytes] | None:
        """(client id, frame) that should leave now, or None. Call ``sent`` or ``blocked`` after trying."""
        outbox = self._outbox
        while outbox:
            payload = outbox[0]
            if payload.done or payload.deadline_s <= now_s:
                payload.queued = False
                outbox.popleft()
                continue
            version = self.facts.map_version if self.facts is not None else 0
            return (payload.identity or self._identity).client_id, payload.encode(now_s, version)
        return None

    def sent(self) -> None:
        """The frame of ``next_frame`` is on its way."""
        payload = self._outbox.popleft()
        payload.queued = False
        payload.sends += 1
        payload.attempts += 1
        payload.boot = self._boot
        payload.epoch = self._epochs.get(payload.partition, 0)

    def blocked(self, now_s: float) -> None:
        """Nobody took the frame: the link is down or full. Try again soon."""
        self._look_at(now_s + BLOCKED_RETRY_S)

    def _on_boot(self, boot: int, now_s: float) -> bool:
        """Another boot id; True when another router than before has it."""
        former, self._boot = self._boot, boot
        for payload in self._open.values():
            if payload.sends and payload.boot != boot and former:
                self._resend(payload, now_s)
            elif not former:
                payload.boot = boot
        return bool(former)

    def _on_gone(self, partition: int, epoch: int, now_s: float) -> None:
        for payload in self._open.values():
            if payload.partition == partition and payload.sends and payload.epoch <= epoch:
                self._resend(payload, now_s)

    def _on_epoch(self, partition: int, epoch: int, now_s: float) -> None:
        known = self._epochs.get(partition, 0)
        if epoch <= known:
            return
        self._epochs[partition] = epoch
        for payload in self._open.values():
            if payload.partition == partition and payload.sends and payload.epoch < epoch:
                if known:
                    self._resend(payload, now_s)
                else:
                    payload.epoch = epoch

    def _resend(self, payload: Payload, now_s: float) -> None:
        """What it was sent to is gone. The next sign of silence is counted from here."""
        if payload.kind in (HELLO, NOTE):
            return
        payload.due_s = min(payload.deadline_s, now_s + SILENCE_S)
        self._look_at(payload.due_s)
        self._queue(payload)

    def _overtook(self, payload: Payload) -> bool:
        """Whether an earlier write is open: the node may know us as soon as that one arrives."""
        assert payload.identity is not None
        return payload.identity.numbering(payload.partition).opened_before(payload.number)

    def _renew(self, payload: Payload, now_s: float) -> None:
        """Go on under an identity that the node does not think it has forgotten.

        The request id is another one too: copies that are refused later must not renew it once more, when it
        may be done already.
        """
        del self._open[payload.request_id]
        payload.request_id = self._id()
        self._open[payload.request_id] = payload
        if payload.identity is self._identity:
            self._identity = Identity(self._new_id())
        former, payload.identity = payload.identity, self._identity
        assert former is not None
        former.numbering(payload.partition).settle(payload.number)
        payload.identity.open += 1
        payload.renewals += 1
        payload.number = self._identity.numbering(payload.partition).take()
        payload.sends = 0
        self._leave(former)
        self._resend(payload, now_s)

    def _close_payload(self, payload: Payload) -> None:
        """It is answered or given up. Its number may be used again only if the node surely never had it."""
        self._open.pop(payload.request_id, None)
        payload.done = True
        identity = payload.identity
        assert identity is not None
        if payload.number:
            numbering = identity.numbering(payload.partition)
            (numbering.release if payload.untouched else numbering.settle)(payload.number)
        self._leave(identity)

    def _leave(self, identity: Identity) -> None:
        identity.open -= 1
        if not identity.open and identity is not self._identity:
            self.retired.append(identity)

    def _rests(self, now_s: float) -> bool:
        """Whether it is too early to look at everything again."""
        if now_s < self._rests_until_s:
            self.due_s = self._rests_until_s
            return True
        self._rests_until_s = now_s + len(self._open) * LOOK_S
        return False

    def _tick_open(self, now_s: float, done: list[Completion]) -> None:
        for payload in list(self._open.values()):
            if payload.deadline_s <= now_s:
                self._close_payload(payload)
                pair = error_pair(too_late(payload, self._address, now_s))
                done.append((payload.tokens, repeat(pair, len(payload.tokens))))
                continue
            if payload.due_s <= now_s:
                self._awake(payload, now_s)
            self._look_at(payload.due_s)
        if self._outbox:
            self._look_at(now_s + BLOCKED_RETRY_S)

    def _awake(self, payload: Payload, now_s: float) -> None:
        """A payload's moment: repeat after a refusal, or look after one that got no answer."""
        if not payload.sends:
            payload.due_s = min(payload.deadline_s, now_s + SILENCE_S)
            self._queue(payload)
            return
        if payload.kind == WAIT:  # silence is its nature: only make sure that the router is still the same
            self._ping(payload, now_s)
            payload.due_s = min(payload.deadline_s, now_s + WAIT_PING_S)
            return
        age_s = now_s - payload.opened_s
        if payload.sends == 1 and age_s < 2 * SILENCE_S:
            self._ping(payload, now_s)
        else:
            self._queue(payload)
        payload.due_s = min(payload.deadline_s, now_s + max(SILENCE_S, age_s))

    def _ping(self, payload: Payload, now_s: float) -> None:
        """Ask for the router's boot id; its answer is a stray reply whose header is all we want."""
        if any(queued.kind == PING and not queued.tokens for queued in self._outbox):
            return
        ping = Payload(
            kind=PING, partition=payload.partition, request_id=0, deadline_s=now_s + NOTE_S, now_s=now_s
        )
        ping.identity = payload.identity
        self._queue(ping)


__all__ = [
    "BLOCKED_RETRY_S",
    "FOREVER",
    "HELLO",
    "NOTE",
    "NOTE_S",
    "PING",
    "READ",
    "RESTART",
    "RESTART_RUNNER",
    "SILENCE_S",
    "STATUS",
    "WAIT",
    "WAIT_PING_S",
    "WRITE",
    "Completion",
    "Traffic",
]
