"""The SDK's protocol as a pure machine: calls in, frames out; frames in, completions out; time comes in too.

Rules of this file (design 3 and 4; the shells have no rule of their own):

1. Calls of one turn with the same kind, partition and time limit travel in one payload; those of several
   turns while such a payload is on its way (``_lanes.py``). Before the node's map is known they
   wait for HELLO, which is sent every 50 ms while anybody waits.
2. A payload is sent again, with the same numbers, when what it was sent to is gone: another boot id of the
   router, GONE or a higher epoch of its partition. A refusal with AGAIN is repeated after 20 .. 200 ms.
   Silence alone leads to a PING after 1 s, then to a resend at 2, 4, 8 s: that repairs what ZeroMQ lost.
3. A stale map means HELLO first; then calls are placed anew by their slots.
4. ``client_expired`` moves what the node refused to a new identity (new client id, numbers from 1). What is
   open elsewhere stays with the old one: sent under a new number it could happen twice. So could a write
   that only overtook an earlier one, which was lost: it is repeated until that one has arrived.
5. Past its deadline a call fails: ``node_unreachable`` when nothing of it was ever sent, else ``timeout``.
   The number of a write that was given up is settled, so that it cannot land after a later call.
6. A completion is (tokens, pairs). A token is the shell's own; a pair is (0, value) or (1, error map).

A shell does three things: ``flush`` once per turn, send what ``next_frame`` gives until it would block, and
hand in received frames and the time (``due_s`` says when at the latest).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any, NamedTuple

from mesh.client._facts import AGAIN_S, Facts, again_s, facts_of, pairs_of, parts_of, refusal_of, unreachable
from mesh.client._lanes import Batch, Lanes
from mesh.client._payload import LOCAL_ERROR, STALE, Call, Payload, error_pair, split, told_and_rest
from mesh.client._traffic import (
    BLOCKED_RETRY_S,
    FOREVER,
    HELLO,
    NOTE,
    NOTE_S,
    PING,
    READ,
    RESTART,
    STATUS,
    WAIT,
    WRITE,
    Completion,
    Traffic,
)
from mesh.core import wire
from mesh.core.wire import Flag, Kind
from mesh.errors import ClientClosed, RemoteProtocolError

HELLO_EVERY_S = 0.05
RENEWALS_MAX = 3
KINDS = max(READ, WRITE, WAIT) + 1
#: Calls whose arguments name keys of many slots: at a stale map their plan places them anew.
MANY_OPS = frozenset(("route.set_many", "route.get_many", "route.resolve_many"))

_REPLY, _GONE = int(Kind.REPLY), int(Kind.GONE)
#: As plain numbers: an operation on IntFlag takes a microsecond, and each frame needs some.
_REFUSED, _STALE_MAP = int(Flag.REFUSED), int(Flag.STALE_MAP)
_AGAIN, _MORE = int(Flag.AGAIN), int(Flag.MORE)


class Early(NamedTuple):
    """A call that waits for HELLO. A slot below 0 is ~partition; kind HELLO waits for the facts alone."""

    kind: int
    slot: int
    call: Call | None
    token: Any
    deadline_s: float


class Protocol(Traffic):
    """One client's conversation with one node. Not thread-safe, no IO, no clock."""

    def __init__(self, new_id: Callable[[], bytes], address: str, timeout_s: float) -> None:
        super().__init__(new_id, address)
        self._timeout_s = timeout_s
        self.answered = 0  #: payloads that got their reply
        self.stray = 0  #: replies to nothing, and bytes that were no reply
        self._map: bytes | None = None
        self._turn: list[Batch] = []  #: those with calls, in the order of their first ones
        self._lanes = Lanes()
        self._unplaced: list[tuple[int, int, Call | None, Any, float | None]] = []
        self._early: list[Early] = []
        self._hello: Payload | None = None

    # --- calls in ---

    def add(self, kind: int, slot: int, call: Call, token: Any, timeout_s: float | None) -> None:
        """Queue a call for the next flush. ``timeout_s`` None is the client's own limit."""
        try:
            if timeout_s is None and slot >= 0:
                batch = self._lanes.by_slot[kind][slot]
            else:
                batch = self._lanes.find(kind, slot, timeout_s)
        except IndexError:  # nobody said yet who has which slot
            self._unplaced.append((kind, slot, call, token, timeout_s))
            return
        calls = batch.calls
        if not calls:
            self._turn.append(batch)
        calls.append(call)
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
                    kind=NOTE, partition=partition, request_id=self._id(), deadline_s=now_s + NOTE_S,
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
        turn, self._turn = self._turn, []
        for batch in turn:
            if batch.since_s is None:
                batch.since_s = now_s
            held_until_s = batch.held_until_s(now_s)
            if held_until_s > now_s:
                self._turn.append(batch)
                self._look_at(held_until_s)
                continue
            limit_s = self._timeout_s if batch.timeout_s is None else batch.timeout_s
            self._open_batch((batch.kind, batch.partition, batch.since_s + limit_s), batch, now_s, done)
        return done

    @property
    def gathering(self) -> bool:
        """Whether calls wait to be placed, or for others: flush again after an answer."""
        return bool(self._turn or self._unplaced)

    def _accept(self, early: Early, now_s: float, done: list[Completion]) -> None:
        """Place a call that was added without a map, or keep it for the HELLO that is on its way."""
        if early.call is None and early.kind != HELLO:
            self._open_payload(
                Payload(
                    kind=early.kind, partition=~early.slot, request_id=self._id(),
                    deadline_s=early.deadline_s, now_s=now_s, tokens=(early.token,),
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
            batch = groups.setdefault((kind, partition, deadline_s), Batch(kind, partition))
            batch.calls.append(call)
            batch.slots.append(slot)
            batch.tokens.append(token)
        for (kind, partition, deadline_s), batch in groups.items():
            self._open_batch((kind, partition, deadline_s), batch, now_s, done)

    def _open_batch(
        self, place: tuple[int, int, float], batch: Batch, now_s: float, done: list[Completion]
    ) -> None:
        """Make payloads of calls of one (kind, partition, deadline)."""
        kind, partition, deadline_s = place
        calls, slots, tokens = batch.take()
        facts = self.facts
        frame_bytes, map_version = (
            (facts.frame_bytes, facts.map_version) if facts else (wire.FRAME_BYTES_MAX, 0))
        if kind == WAIT:
            frame_bytes = min(frame_bytes, wire.WAIT_BYTES_MAX)
        bodies, bad = split(calls, frame_bytes)
        for index, error in bad:
            done.append(((tokens[index],), ((LOCAL_ERROR, error),)))
        for first, end, body, spans, op in bodies:
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
                spans=spans,
                op=op,
                map_version=map_version,
            )
            if kind == WRITE:
                payload.number = self._identity.numbering(partition).take()
            batch.opened(payload)
            self._open_payload(payload, now_s)

    # --- frames out ---

    def reconnected(self, now_s: float) -> None:
        """The link came back: it may be another router, so ask for its boot id if anything is open."""
        if any(payload.sends for payload in self._open.values()):
            self._say_hello(now_s)

    def _say_hello(self, now_s: float) -> None:
        if self._hello is None:
            self._hello = Payload(
                kind=HELLO, partition=0, request_id=self._id(), deadline_s=FOREVER, now_s=now_s
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
        if header.number != self._boot and self._on_boot(header.number, now_s):
            self._say_hello(now_s)
        if header.kind == _GONE:
            self._on_gone(header.address, header.done_below, now_s)
            return []
        if self._hello is not None and header.request_id == self._hello.request_id:
            return self._on_hello(frame, now_s)
        payload = self._open.get(header.request_id)
        if payload is None or header.kind != _REPLY:
            self.stray += 1
            return []
        if header.done_below:
            self._on_epoch(header.address, header.done_below, now_s)
        if header.flags & _REFUSED:
            return self._on_refusal(payload, header, frame, now_s)
        self.answered += 1
        if payload.waiting is not None:
            return self._on_parts(payload, frame)
        self._close_payload(payload)
        if not header.flags & _MORE or not payload.calls:
            return [(payload.tokens, pairs_of(payload, frame))]
        told, rest = told_and_rest(payload, pairs_of(payload, frame))
        done: list[Completion] = [told]
        self._place_again([Early(payload.kind, *row, payload.deadline_s) for row in rest], now_s, done)
        return done

    def _on_parts(self, payload: Payload, frame: bytes) -> list[Completion]:
        """Some of several waiting reads are answered; the others go on waiting."""
        done = payload.take(parts_of(payload, frame))
        if not payload.waiting:
            self._close_payload(payload)
        return [done]

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

    def _on_hello(self, frame: bytes, now_s: float) -> list[Completion]:
        try:
            facts = facts_of(frame)
        except RemoteProtocolError as error:
            return self._on_garbage(error)
        self._drop_hello()
        if self.facts is not None and facts.map_version != self.facts.map_version:
            self._epochs.clear()
        self._unplace_turn()
        self.facts = facts
        self._map, self._lanes = facts.slot_map, Lanes(facts.slot_map, KINDS)
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
        payload.declined += bool(header.flags & _AGAIN)
        if header.flags & _STALE_MAP and payload.calls:
            return self._on_stale(payload, header.map_version, now_s)
        delay_s = again_s(payload, error, header.flags)
        if error["code"] == "client_expired" and payload.renewals < RENEWALS_MAX and payload.number:
            if not self._overtook(payload):
                self._renew(payload, now_s)
                return []
            delay_s = AGAIN_S
        if delay_s is not None and (now_s + delay_s < payload.deadline_s or error["code"] != "overloaded"):
            payload.due_s = min(now_s + delay_s, payload.deadline_s)
            payload.sends = 0
            self._look_at(payload.due_s)
            return []
        self._close_payload(payload)
        return [(payload.tokens, repeat((1, error), len(payload.tokens)))]

    def _on_stale(self, payload: Payload, version: int, now_s: float) -> list[Completion]:
        """Ask for the map; then place the calls anew. Those on many slots go back to their plan.

        A write that may have happened keeps its number and its partition: only there is its receipt.
        """
        same = self.facts is not None and self.facts.map_version == version
        if payload.kind == WRITE and not payload.untouched:
            payload.moved, payload.sends, payload.due_s = True, 0, now_s + AGAIN_S
            self._look_at(payload.due_s)
            if not same:
                self._say_hello(now_s)
            return []
        self._close_payload(payload)
        known = same and payload.map_version != version  # another answer brought the map meanwhile
        if not known:
            self._map, self._lanes = None, Lanes()
            self._say_hello(now_s)
        if same and not known and self._hello is not None:  # the router itself is in between: do not spin
            self._hello.done = True
            self._hello = None
            self._look_at(now_s + BLOCKED_RETRY_S)
        done: list[Completion] = [((row[2],), (STALE,)) for row in payload.rows() if row[1][0] in MANY_OPS]
        again = [row for row in payload.rows() if row[1][0] not in MANY_OPS]
        self._place_again([Early(payload.kind, *row, payload.deadline_s) for row in again], now_s, done)
        self._unplace_turn()
        return done

    def _place_again(self, calls: list[Early], now_s: float, done: list[Completion]) -> None:
        """Place calls by the present map, or by the one that is on its way."""
        if self._map is not None:
            self._place(calls, now_s, done)
            return
        self._early += calls
        for early in calls:
            self._look_at(early.deadline_s)

    def _unplace_turn(self) -> None:
        """What this turn has gathered so far is placed at the flush, by the map that holds then."""
        if self._turn:
            self._look_at(0.0)  # nobody may be about to flush: these may have gathered since former turns
        for batch in self._turn:
            self._unplaced.extend(
                (batch.kind, slot, call, token, batch.timeout_s)
                for call, slot, token in zip(*batch.take(), strict=True)
            )
        self._turn = []

    # --- time ---

    def tick(self, now_s: float) -> list[Completion]:
        """Give up what is past its deadline, send again what was silent for too long."""
        if now_s < self.due_s:
            return []
        done: list[Completion] = []
        if not self._rests(now_s):
            self.due_s = FOREVER
            self._tick_early(now_s, done)
            self._tick_open(now_s, done)
        if self.gathering:
            done += self.flush(now_s)
        return done

    def _tick_early(self, now_s: float, done: list[Completion]) -> None:
        late = [early for early in self._early if early.deadline_s <= now_s]
        if late:
            self._early = [early for early in self._early if early.deadline_s > now_s]
            pair = error_pair(unreachable(self._address))
            done.append(([early.token for early in late], repeat(pair, len(late))))
        for early in self._early:
            self._look_at(early.deadline_s)
        if self._hello is None:
            if self._early:
                self._say_hello(now_s)
        elif not self._early and not self._open:
            self._drop_hello()  # nobody waits for it; the next call says it again if it has to
        elif self._hello.due_s <= now_s:
            self._say_hello(now_s)
        else:
            self._look_at(self._hello.due_s)

    def close(self) -> list[Completion]:
        """End everything that is open with ``client_closed``."""
        tokens = [row[3] for row in self._unplaced] + [early.token for early in self._early]
        tokens += [token for batch in self._turn for token in batch.take()[2]]
        tokens += [token for payload in self._open.values() for token in payload.tokens]
        self._unplaced, self._early, self._turn = [], [], []
        self._open.clear()
        self._outbox.clear()
        self._drop_hello()
        self.due_s = FOREVER
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
