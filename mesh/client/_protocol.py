"""The SDK's protocol as a pure machine: calls in, frames out; frames in, completions out; time is an argument.

Rules of this file (design 3 and 4; the shells have no rule of their own):

1. Calls of one turn with the same kind, partition and time limit travel in one payload. Before the node's
   map is known they wait for HELLO, which is sent every 50 ms while anybody waits.
2. A payload is sent again, with the same numbers, when what it was sent to is gone: another boot id of the
   router, GONE or a higher epoch of its partition. A refusal with AGAIN is repeated after 20 .. 200 ms.
   Silence alone leads to a PING after 1 s, then to a resend at 2, 4, 8 s: that repairs what ZeroMQ lost.
3. A stale map means HELLO first; then calls are placed anew by their slots.
4. ``client_expired`` moves what the node refused to a new identity (new client id, numbers from 1). What is
   open elsewhere stays with the old one: sent under a new number it could happen twice.
5. Past its deadline a call fails: ``node_unreachable`` when nothing of it was ever sent, else ``timeout``.
   The number of a write that was given up is settled, so that it cannot land after a later call.
6. A completion is (tokens, pairs). A token is whatever the shell gave; a pair is (0, value) or (1, error map).

A shell does three things: ``flush`` once per turn, send what ``next_frame`` gives until it would block, and
hand in received frames and the time (``due_s`` says when at the latest).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple

from mesh.client._facts import Facts, again_s, body_of, facts_of, refusal_of, too_late, unreachable
from mesh.client._payload import LOCAL_ERROR, STALE, Batch, Call, Identity, Pair, Payload, error_pair, split
from mesh.core import wire
from mesh.core.wire import Flag, Kind
from mesh.errors import ClientClosed, RemoteProtocolError

HELLO_EVERY_S = 0.05
#: The first look at a payload that got no answer; doubled each time.
SILENCE_S = 1.0
WAIT_PING_S = 2.0
BLOCKED_RETRY_S = 0.02
RENEWALS_MAX = 3
#: Notes to the router wait no longer than this for a connection.
NOTE_S = 1.0
FOREVER = float("inf")
#: Calls whose arguments name keys of many slots: at a stale map their plan places them anew.
MANY_OPS = frozenset(("route.set_many", "route.get_many", "route.resolve_many"))

READ, WRITE, WAIT = int(Kind.READ), int(Kind.WRITE), int(Kind.WAIT)
HELLO, STATUS, RESTART, PING, NOTE = (
    int(Kind.HELLO),
    int(Kind.STATUS),
    int(Kind.RESTART),
    int(Kind.PING),
    int(Kind.NOTE),
)

_LISTS, _TWO = {list}, {2}

Completion = tuple[Sequence[Any], Iterable[Pair]]


class Early(NamedTuple):
    """A call that waits for HELLO. A slot below 0 is ~partition; kind HELLO waits for the facts alone."""

    kind: int
    slot: int
    call: Call | None
    token: Any
    deadline_s: float


class Protocol:
    """One client's conversation with one node. Not thread-safe, no IO, no clock."""

    def __init__(self, new_id: Callable[[], bytes], address: str, timeout_s: float) -> None:
        self._new_id = new_id
        self._address = address
        self._timeout_s = timeout_s
        self.facts: Facts | None = None
        self.due_s = FOREVER  #: the next moment at which ``tick`` has something to do
        self.stray = 0  #: replies to nothing, and bytes that were no reply
        self.retired: list[Identity] = []  #: their links may be closed; the shell empties the list
        self._map: bytes | None = None
        self._batches: dict[tuple[int, int, float | None], Batch] = {}
        self._unplaced: list[tuple[int, int, Call | None, Any, float | None]] = []
        self._early: list[Early] = []
        self._open: dict[int, Payload] = {}
        self._outbox: deque[Payload] = deque()
        self._identity = Identity(new_id())
        self._hello: Payload | None = None
        self._boot = 0
        self._epochs: dict[int, int] = {}
        self._next_id = 0
        self._closed = False

    # --- calls in ---

    def add(self, kind: int, slot: int, call: Call, token: Any, timeout_s: float | None) -> None:
        """Queue a call for the next flush. ``timeout_s`` None is the client's own limit."""
        if self._map is None:
            self._unplaced.append((kind, slot, call, token, timeout_s))
            return
        key = (kind, self._map[slot] if slot >= 0 else ~slot, timeout_s)
        batch = self._batches.get(key)
        if batch is None:
            batch = self._batches[key] = Batch()
        batch.calls.append(call)
        batch.slots.append(slot)
        batch.tokens.append(token)

    def add_control(self, kind: int, partition: int, token: Any, timeout_s: float | None) -> None:
        """Queue a request that the router answers itself; HELLO is answered from what is known."""
        self._unplaced.append((kind, ~partition, None, token, timeout_s))

    @property
    def known(self) -> Facts | None:
        """What HELLO said, unless the placement map is being asked for anew."""
        return self.facts if self._map is not None else None

    @property
    def unsent(self) -> bool:
        """Whether ``next_frame`` may have something."""
        return bool(self._outbox)

    def note(self, partition: int, now_s: float) -> None:
        """Tell the router that a caller was served from his own fallback. Nobody waits for the answer."""
        if self._map is not None:
            self._queue(
                Payload(
                    kind=NOTE,
                    partition=partition,
                    request_id=self._id(),
                    deadline_s=now_s + NOTE_S,
                    now_s=now_s,
                )
            )

    def flush(self, now_s: float) -> list[Completion]:
        """Turn what was added into payloads; what cannot travel is completed at once."""
        done: list[Completion] = []
        if self._unplaced:
            unplaced, self._unplaced = self._unplaced, []
            for kind, slot, call, token, timeout_s in unplaced:
                deadline_s = now_s + (self._timeout_s if timeout_s is None else timeout_s)
                self._accept(Early(kind, slot, call, token, deadline_s), now_s, done)
        if self._batches:
            batches, self._batches = self._batches, {}
            for (kind, partition, timeout_s), batch in batches.items():
                deadline_s = now_s + (self._timeout_s if timeout_s is None else timeout_s)
                self._open_batch(kind, partition, deadline_s, batch, now_s, done)
        return done

    def _accept(self, early: Early, now_s: float, done: list[Completion]) -> None:
        """Place a call that was added without a map, or keep it for the HELLO that is on its way."""
        if early.call is None and early.kind != HELLO:
            self._open_payload(
                Payload(
                    kind=early.kind,
                    partition=~early.slot,
                    request_id=self._id(),
                    deadline_s=early.deadline_s,
                    now_s=now_s,
                    tokens=(early.token,),
                ),
                now_s,
            )
        elif self._map is None:
            self._early.append(early)
            self._look_at(early.deadline_s)
            if self._hello is None:
                self._say_hello(now_s)
        else:
            self._place((early,), now_s, done)

    def _place(self, early: Iterable[Early], now_s: float, done: list[Completion]) -> None:
        assert self._map is not None
        groups: dict[tuple[int, int, float], Batch] = {}
        for kind, slot, call, token, deadline_s in early:
            if call is None:
                done.append(((token,), ((0, self.facts),)))
                continue
            partition = self._map[slot] if slot >= 0 else ~slot
            batch = groups.setdefault((kind, partition, deadline_s), Batch())
            batch.calls.append(call)
            batch.slots.append(slot)
            batch.tokens.append(token)
        for (kind, partition, deadline_s), batch in groups.items():
            self._open_batch(kind, partition, deadline_s, batch, now_s, done)

    def _open_batch(
        self, kind: int, partition: int, deadline_s: float, batch: Batch, now_s: float, done: list[Completion]
    ) -> None:
        calls, slots, tokens = batch.calls, batch.slots, batch.tokens
        if kind == WAIT and len(calls) > 1:
            for index in range(len(calls)):
                single = Batch()
                single.calls, single.slots, single.tokens = [calls[index]], [slots[index]], [tokens[index]]
                self._open_batch(kind, partition, deadline_s, single, now_s, done)
            return
        frame_bytes = self.facts.frame_bytes if self.facts else wire.FRAME_BYTES_MAX
        bodies, bad = split(calls, frame_bytes)
        for index, error in bad:
            done.append(((tokens[index],), ((LOCAL_ERROR, error),)))
        for first, end, body in bodies:
            payload = Payload(
                kind=kind,
                partition=partition,
                request_id=self._id(),
                deadline_s=deadline_s,
                now_s=now_s,
                body=body,
                calls=calls[first:end],
                slots=slots[first:end],
                tokens=tokens[first:end],
            )
            if kind == WRITE:
                payload.number = self._identity.numbering(partition).take()
            self._open_payload(payload, now_s)

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
        if due_s < self.due_s:
            self.due_s = due_s

    # --- frames out ---

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
        payload.tried = True
        payload.boot = self._boot
        payload.epoch = self._epochs.get(payload.partition, 0)

    def blocked(self, now_s: float) -> None:
        """Nobody took the frame: the link is down or full. Try again soon."""
        self._look_at(now_s + BLOCKED_RETRY_S)

    def reconnected(self, now_s: float) -> None:
        """The link came back: it may be another router, so ask for its boot id if anything is open."""
        if any(payload.sends for payload in self._open.values()):
            self._say_hello(now_s)

    def _say_hello(self, now_s: float) -> None:
        if self._hello is None:
            self._hello = Payload(
                kind=HELLO,
                partition=0,
                request_id=self._id(),
                deadline_s=FOREVER,
                now_s=now_s,
            )
        self._hello.due_s = now_s + HELLO_EVERY_S
        self._look_at(self._hello.due_s)
        self._queue(self._hello)

    # --- frames in ---

    def on_frame(self, frame: bytes, now_s: float) -> list[Completion]:
        """Take one frame from the node; returns what it completes."""
        try:
            header = wire.decode_header(frame)
        except RemoteProtocolError as error:
            return self._on_garbage(error)
        if header.number != self._boot:
            self._on_boot(header.number, now_s)
        if header.kind == Kind.GONE:
            self._on_gone(header.address, header.done_below, now_s)
            return []
        if self._hello is not None and header.request_id == self._hello.request_id:
            return self._on_hello(frame, header.flags, now_s)
        payload = self._open.get(header.request_id)
        if payload is None or header.kind != Kind.REPLY:
            self.stray += 1
            return []
        if header.done_below:
            self._on_epoch(header.address, header.done_below, now_s)
        if header.flags & Flag.REFUSED:
            return self._on_refusal(payload, header, frame, now_s)
        self._close_payload(payload)
        return [(payload.tokens, self._pairs(payload, frame))]

    def _pairs(self, payload: Payload, frame: bytes) -> Iterable[Pair]:
        try:
            if not payload.calls:
                return ((0, body_of(frame)),)
            pairs: Sequence[Pair] = body_of(frame)
            if (
                type(pairs) is not list
                or len(pairs) != len(payload.calls)
                or set(map(type, pairs)) != _LISTS
                or set(map(len, pairs)) != _TWO
            ):
                raise RemoteProtocolError(f"not the answers to {len(payload.calls)} calls")
        except RemoteProtocolError as error:
            return repeat(error_pair(error), len(payload.tokens))
        return pairs

    def _on_garbage(self, error: RemoteProtocolError) -> list[Completion]:
        """Bytes of something else. Before HELLO was answered it is the peer; later it is one bad frame."""
        self.stray += 1
        if self.facts is not None:
            return []
        early, self._early = self._early, []
        self._drop_hello()
        opened = list(self._open.values())
        for payload in opened:
            self._close_payload(payload)
        tokens = [e.token for e in early] + [t for p in opened for t in p.tokens]
        told = type(error)(f"{self._address}: {error.message}", details=error.details)
        return [(tokens, repeat(error_pair(told), len(tokens)))] if tokens else []

    def _on_boot(self, boot: int, now_s: float) -> None:
        former, self._boot = self._boot, boot
        for payload in self._open.values():
            if payload.sends and payload.boot != boot and former:
                self._resend(payload, now_s)
            elif not former:
                payload.boot = boot
        if former:
            self._say_hello(now_s)

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

    def _on_hello(self, frame: bytes, flags: int, now_s: float) -> list[Completion]:
        try:
            facts = facts_of(frame)
        except RemoteProtocolError as error:
            return self._on_garbage(error)
        self._drop_hello()
        if self.facts is not None and facts.map_version != self.facts.map_version:
            self._epochs.clear()
        self.facts = facts
        self._map = facts.slot_map
        early, self._early = self._early, []
        done: list[Completion] = []
        self._place(early, now_s, done)
        return done

    def _drop_hello(self) -> None:
        if self._hello is not None:
            self._hello.done = True
            self._hello = None

    # --- refusals ---

    def _on_refusal(
        self, payload: Payload, header: wire.Header, frame: bytes, now_s: float
    ) -> list[Completion]:
        payload.refusal = error = refusal_of(frame)
        payload.refusals += 1
        if header.flags & Flag.STALE_MAP:
            return self._on_stale(payload, header.map_version, now_s)
        if error["code"] == "client_expired" and payload.renewals < RENEWALS_MAX and payload.number:
            self._renew(payload, now_s)
            return []
        delay_s = again_s(payload, error, header.flags)
        if delay_s is not None and now_s + delay_s < payload.deadline_s:
            payload.due_s = now_s + delay_s
            payload.sends = 0
            self._look_at(payload.due_s)
            return []
        self._close_payload(payload, unexecuted=bool(header.flags & Flag.AGAIN))
        return [(payload.tokens, repeat((1, error), len(payload.tokens)))]

    def _on_stale(self, payload: Payload, version: int, now_s: float) -> list[Completion]:
        """Ask for the map; then place the calls anew. Those on many slots go back to their plan."""
        self._close_payload(payload, unexecuted=True)
        same = self.facts is not None and self.facts.map_version == version
        self._map = None
        self._say_hello(now_s)
        if same and self._hello is not None:  # the router itself is in between: do not spin
            self._hello.done = True
            self._hello = None
            self._look_at(now_s + BLOCKED_RETRY_S)
        done: list[Completion] = []
        rows = zip(payload.slots, payload.calls, payload.tokens, strict=True)
        for slot, call, token in rows:
            if call[0] in MANY_OPS:
                done.append(((token,), (STALE,)))
            else:
                self._early.append(Early(payload.kind, slot, call, token, payload.deadline_s))
                self._look_at(payload.deadline_s)
        for (kind, partition, timeout_s), batch in self._batches.items():
            self._unplaced.extend(
                (kind, slot, call, token, timeout_s)
                for slot, call, token in zip(batch.slots, batch.calls, batch.tokens, strict=True)
            )
        self._batches = {}
        return done

    def _renew(self, payload: Payload, now_s: float) -> None:
        """Go on under an identity that the node does not think it has forgotten."""
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

    def _close_payload(self, payload: Payload, *, unexecuted: bool = False) -> None:
        self._open.pop(payload.request_id, None)
        payload.done = True
        identity = payload.identity
        assert identity is not None
        if payload.number:
            numbering = identity.numbering(payload.partition)
            (numbering.release if unexecuted else numbering.settle)(payload.number)
        self._leave(identity)

    def _leave(self, identity: Identity) -> None:
        identity.open -= 1
        if not identity.open and identity is not self._identity:
            self.retired.append(identity)

    # --- time ---

    def tick(self, now_s: float) -> list[Completion]:
        """Give up what is past its deadline, send again what was silent for too long."""
        if now_s < self.due_s:
            return []
        self.due_s = FOREVER
        done: list[Completion] = []
        self._tick_early(now_s, done)
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
        return done

    def _tick_early(self, now_s: float, done: list[Completion]) -> None:
        late = [early for early in self._early if early.deadline_s <= now_s]
        if late:
            self._early = [early for early in self._early if early.deadline_s > now_s]
            pair = error_pair(unreachable(self._address))
            done.append(([early.token for early in late], repeat(pair, len(late))))
        for early in self._early:
            self._look_at(early.deadline_s)
        if self._early and (self._hello is None or self._hello.due_s <= now_s):
            self._say_hello(now_s)
        elif not self._early and self._hello is not None and self.facts is None:
            self._drop_hello()
        elif self._hello is not None:
            if self._hello.due_s <= now_s and self._open:
                self._say_hello(now_s)
            self._look_at(max(self._hello.due_s, now_s + HELLO_EVERY_S))

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

    def close(self) -> list[Completion]:
        """End everything that is open with ``client_closed``."""
        tokens = [row[3] for row in self._unplaced] + [early.token for early in self._early]
        tokens += [token for batch in self._batches.values() for token in batch.tokens]
        tokens += [token for payload in self._open.values() for token in payload.tokens]
        self._unplaced, self._early, self._batches = [], [], {}
        self._open.clear()
        self._outbox.clear()
        self._drop_hello()
        self.due_s = FOREVER
        self._closed = True
        pair = error_pair(ClientClosed("the client was closed while the call was waiting"))
        return [(tokens, repeat(pair, len(tokens)))] if tokens else []


__all__ = [
    "HELLO",
    "NOTE",
    "PING",
    "READ",
    "RESTART",
    "STATUS",
    "WAIT",
    "WRITE",
    "Completion",
    "Early",
    "Facts",
    "Protocol",
]
