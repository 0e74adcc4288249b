"""Plans of attaching: credentials around calls, claims and their renewal, a snapshot and the tail behind it.

Rules of this file:

1. Credentials belong to a seat, not to a client: two attachments of one client have rights of their own.
2. A seat is the driver's from its claim until an event of the log, or an answer of the node, says otherwise.
   Events up to the claim's own place in the log are history and say nothing about it.
"""

from __future__ import annotations

import secrets
from collections import deque
from typing import Any

from mesh.client._payload import Call
from mesh.client._protocol import READ, WRITE
from mesh.client._surface import Ask, Meanwhile, Plan, Request, value_of
from mesh.client._surface_sessions import EventStream, session_call
from mesh.core.access import AS, NEEDS, SHOWING, checked_token
from mesh.core.attached import DRIVER, VIEWER, Claim, Snapshot, checked_role
from mesh.core.records import Event
from mesh.errors import ClientClosed, InvalidArgument, InvalidState, MeshError, NotAllowed, NotFound, shown

#: A driver renews when a third of his time is over: two renewals may be lost.
RENEWALS_PER_TTL = 3
KEY_BYTES = 16
#: What travels with credentials; ``session.start`` may be a fork's.
_KEYED = frozenset(NEEDS) | SHOWING | {"session.start"}


def new_token() -> str:
    """A token for a session: 256 random bits, 43 characters. Keep it: the node stores a hash only."""
    return secrets.token_urlsafe(32)


# --- credentials ---


class Shown:
    """What goes with every call of a seat."""

    def __init__(self, token: Any = None, driver: Any = None) -> None:
        self.token = checked_token(token)
        self.key = None if driver is None else key_of(driver)
        self.viewer = False
        self.refresh()

    def refresh(self) -> None:
        """Make the map that travels."""
        found = {"token": self.token, "driver": self.key, "viewer": self.viewer or None}
        self.credentials = {name: value for name, value in found.items() if value is not None}

    def call(self, call: Call) -> Call:
        """The call, with credentials where they matter."""
        op, args = call
        return (AS, (self.credentials, op, args)) if self.credentials and op in _KEYED else call

    def plan(self, plan: Plan) -> Plan:
        """The plan, each of its calls with credentials."""
        try:
            request = next(plan)
            while True:
                try:
                    answer = yield self._request(request)
                except MeshError as error:
                    request = plan.throw(error)
                else:
                    request = plan.send(answer)
        except StopIteration as stop:
            return stop.value
        finally:
            plan.close()

    def _request(self, request: Request) -> Request:
        if isinstance(request, list):
            return [self._ask(ask) for ask in request]
        if isinstance(request, Meanwhile):
            return request._replace(asks=[self._ask(ask) for ask in request.asks])
        return request

    def _ask(self, ask: Ask) -> Ask:
        return ask if ask.call is None else ask._replace(call=self.call(ask.call))


def key_of(text: Any) -> bytes:
    """A driver's key from its text.

    Raises:
        InvalidArgument: it is none.
    """
    try:
        return bytes.fromhex(text)
    except (TypeError, ValueError) as exc:
        raise InvalidArgument("a driver's key is the hexadecimal text of Claim.key") from exc


# --- claims ---


def claim(
    session_id: Any, key: Any, *, by: Any, ttl_s: Any, takeover: Any, timeout_s: float | None
) -> Plan:
    """``sessions.claim``."""
    raw = secrets.token_bytes(KEY_BYTES) if key is None else key_of(key)
    options = {name: value for name, value in (("by", by), ("ttl_s", ttl_s)) if value is not None}
    if takeover:
        options["takeover"] = takeover
    slot, call = session_call("session.claim", session_id, raw, options)
    [answer] = yield [Ask(WRITE, slot, call, timeout_s)]
    return Claim.from_map({**value_of(answer), "key": raw.hex()})


def renew(session_id: Any, key: Any, timeout_s: float | None) -> Plan:
    """``sessions.renew``."""
    slot, call = session_call("session.renew", session_id, key_of(key))
    [answer] = yield [Ask(WRITE, slot, call, timeout_s)]
    return Claim.from_map({**value_of(answer), "key": key})


def release(session_id: Any, key: Any, timeout_s: float | None) -> Plan:
    """``sessions.release``."""
    slot, call = session_call("session.release", session_id, key_of(key))
    [answer] = yield [Ask(WRITE, slot, call, timeout_s)]
    return bool(value_of(answer))


def set_token(session_id: Any, token: Any, timeout_s: float | None) -> Plan:
    """``sessions.set_token``."""
    slot, call = session_call("session.set_token", session_id, checked_token(token))
    [answer] = yield [Ask(WRITE, slot, call, timeout_s)]
    value_of(answer)


def snapshot(session_id: Any, timeout_s: float | None) -> Plan:
    """How a session stands, in one read."""
    slot, call = session_call("session.snapshot", session_id)
    [answer] = yield [Ask(READ, slot, call, timeout_s)]
    return Snapshot.from_map(value_of(answer))


def is_lost(error: MeshError) -> bool:
    """Whether a renewal that failed with it says that the right is gone; else it is tried again."""
    return isinstance(error, NotAllowed | NotFound | InvalidState | ClientClosed)


# --- a seat ---


class Seat(Shown):
    """One attachment: who it is, where it reads, and whether it drives."""

    def __init__(
        self, session_id: Any, role: Any, *, token: Any, by: Any, ttl_s: Any, lent: bytes | None = None
    ) -> None:
        super().__init__(token)
        self.lent = None if lent is None else lent.hex()  #: its client's own key: used here, and kept there
        self.id: str = session_call("session.get", session_id)[1][1][0]
        self.wanted = checked_role(role)
        self.by = by
        self.ttl_s = ttl_s
        self.claimed: Claim | None = None
        self.seq = 0  #: of the last event that was given out
        self.ready: deque[Event] = deque()  #: at most one page
        self._tail: EventStream | None = None
        self._set(None)

    @property
    def role(self) -> str:
        """``driver`` or ``viewer``, as far as this seat knows."""
        return VIEWER if self.claimed is None else DRIVER

    def _set(self, claimed: Claim | None) -> None:
        self.claimed = claimed
        self.viewer, self.key = claimed is None, None if claimed is None else key_of(claimed.key)
        self.refresh()

    def open(self, after: Any, takeover: bool, timeout_s: float | None) -> Plan:
        """Claim, when this seat wants to drive; then the snapshot, and the place where the tail begins."""
        tail = EventStream(self.id, after, None, None, None)  # refuses a wrong cursor before anything is done
        if self.wanted == DRIVER:
            yield from self.claim(takeover, timeout_s)
        try:
            found: Snapshot = yield from self.plan(snapshot(self.id, timeout_s))
            if after is not None and after > found.session.seq:
                raise InvalidArgument(
                    f"session {self.id} has {found.session.seq} events, not {shown(after, 40)}",
                    code="invalid_cursor",
                )
        except MeshError:
            if self.claimed is not None:
                yield from self.leave(timeout_s)
            raise
        self.seq = tail.filters["after"] = found.session.seq if after is None else after
        self._tail = tail
        return found

    def claim(self, takeover: bool, timeout_s: float | None) -> Plan:
        """Become the driver. Who lent his key may drive already: then he goes on as he is."""
        mine = self.claimed
        key = self.lent if mine is None else mine.key
        if mine is None and key is not None:
            try:
                self._set((yield from self.plan(renew(self.id, key, timeout_s))))
                return
            except NotAllowed as error:
                if error.code != "not_driver":
                    raise
        plan = claim(self.id, key, by=self.by, ttl_s=self.ttl_s, takeover=takeover, timeout_s=timeout_s)
        self._set((yield from self.plan(plan)))

    def renew(self, timeout_s: float | None) -> Plan:
        """Renew once. Returns whether this seat still drives; what may pass is tried again next time."""
        mine = self.claimed
        if mine is None:
            return False
        try:
            yield from self.plan(renew(self.id, mine.key, timeout_s))
        except MeshError as error:
            if is_lost(error) and self.claimed is mine:  # not one that was made meanwhile
                self._set(None)
        return self.claimed is not None

    def leave(self, timeout_s: float | None) -> Plan:
        """Give the right back; whether there was one. Where nobody answers, the lease ends by itself."""
        mine = self.claimed
        if mine is None or mine.key == self.lent:
            self._set(None)
            return mine is not None
        plan = self.plan(release(self.id, mine.key, timeout_s))
        try:
            had = yield from plan
        finally:
            self._set(None)
        return had

    def change_token(self, token: Any, timeout_s: float | None) -> Plan:
        """Give the session another token, or none, and show that one from now on."""
        yield from self.plan(set_token(self.id, token, timeout_s))
        self.token = token
        self.refresh()

    def page(self, timeout_s: float | None) -> Plan:
        """Wait for what is said next; it is put into ``ready``."""
        assert self._tail is not None
        self._tail.timeout_s = timeout_s
        self.ready.extend((yield from self.plan(self._tail.page())))

    def heard(self, event: Event) -> None:
        """An event is given out. One of them may say that somebody else drives."""
        self.seq = max(self.seq, event.seq)
        mine = self.claimed
        if mine is None or event.type != "driver_changed" or event.seq <= mine.seq:
            return
        if event.data.get("claim") != mine.claim:
            self._set(None)

    @property
    def renew_every_s(self) -> float:
        """The pause between two renewals."""
        return 1.0 if self.claimed is None else self.claimed.ttl_s / RENEWALS_PER_TTL


__all__ = [
    "KEY_BYTES", "RENEWALS_PER_TTL", "Seat", "Shown", "claim", "is_lost", "key_of", "new_token", "release",
    "renew", "set_token", "snapshot",
]
