"""The driver of a session: claimed with a lease, renewed, taken over, released; and the check of every call.

Rules of this file:

1. At most one driver. Who claims is stored with his claim, so a restart knows him; how long he still has is
   not: it is counted on the partition's monotonic clock, and a new incarnation of the partition gives him his
   whole time again, since nobody could renew while there was none. No clock of a caller matters.
2. Every change of the driver, vacancy included, is one ``driver_changed`` in the session's log, in the
   transaction that makes it. So whoever follows the session learns it, the former driver too.
3. A caller who shows a key is the driver or is refused, also where nobody drives: whoever lost his right
   learns it from his next call. One who shows none may do as he likes with a session that nobody drives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from mesh.core import access as ac
from mesh.core import session as sessions
from mesh.core import wire
from mesh.core.access import AS, ENDS, NEEDS, NOBODY, Credentials, Lease, Need
from mesh.core.agents import Part
from mesh.core.approval import TEXT_CHARS_MAX
from mesh.core.run_ops import take
from mesh.core.session import CLOSED, SessionState
from mesh.core.state import State
from mesh.errors import InvalidArgument, InvalidState, NotAllowed, NotFound, Overloaded, shown

#: How long a claim lasts when its driver does not say, and may last. The tick looks once a second.
TTL_S, TTL_MIN_S, TTL_MAX_S = 30.0, 1.0, 86_400.0
#: Sessions of one partition that have a driver at a time.
DRIVEN_MAX = 65_536
#: The ops whose second argument is the session; all others of ``NEEDS`` name it, or a run of it, first.
_NEW_RUNS = frozenset(("run.create", "run.submit", "run.summarise"))
#: Those that have an answer for an id which is nobody's yet.
_OF_ANY_ID = frozenset(("session.delete", "session.start_or_get"))

Write = Callable[[list[Any], Part], "bytes | None"]
Read = Callable[[list[Any], int], bytes]


class Driving:
    """Drivers and tokens of a partition's sessions."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.writes: dict[str, Write] = {
            "session.claim": self.claim,
            "session.renew": self.renew,
            "session.release": self.release,
            "session.set_token": self.set_token,
        }

    # --- the driver ---

    def claim(self, args: list[Any], part: Part) -> bytes | None:
        session_id, key, options = take(args, 2, 3)
        session = self.state.session(session_id)
        if session.status in CLOSED or session.deleted_at is not None:
            sessions.require_active(session)
        lease, takeover = self._wanted(ac.checked_key(key), options)
        present = self._present(session)
        if present is not None and ac.holds(present, key):
            lease = msgspec.structs.replace(lease, since=present.since)
            self._put(session, lease)
        else:
            if present is not None and not takeover:
                raise _taken(session, present)
            if session.id not in self.state.leases and len(self.state.leases) >= DRIVEN_MAX:
                raise Overloaded(f"{DRIVEN_MAX} sessions of this partition have a driver",
                                 details={"retry_after_ms": 1_000})
            self._change(self._vacated(session), lease, "claimed" if present is None else "takeover", present)
        return self._answer(session.id, lease)

    def _answer(self, session_id: str, lease: Lease) -> bytes:
        """The map of a ``Claim``, without its key."""
        seq = self.state.sessions[session_id].seq
        return wire.ok({"session_id": session_id, **msgspec.structs.asdict(lease), "seq": seq})

    def _wanted(self, key: bytes, options: Any) -> tuple[Lease, bool]:
        options = {} if options is None else options
        if type(options) is not dict or set(options) - {"by", "takeover", "ttl_s"}:
            raise InvalidArgument("the options of a claim are a map of by, takeover and ttl_s")
        by, ttl_s, takeover = options.get("by"), options.get("ttl_s"), options.get("takeover", False)
        if by is not None and (type(by) is not str or len(by) > TEXT_CHARS_MAX):
            raise InvalidArgument(f"by must be a str of at most {TEXT_CHARS_MAX} characters, not {shown(by)}")
        ttl_s = TTL_S if ttl_s is None else ttl_s
        if type(ttl_s) not in (int, float) or not TTL_MIN_S <= ttl_s <= TTL_MAX_S:
            raise InvalidArgument(
                f"ttl_s must be a number of seconds from {TTL_MIN_S:g} to {TTL_MAX_S:g}, "
                f"not {shown(ttl_s, 40)}"
            )
        if type(takeover) is not bool:
            raise InvalidArgument(f"takeover must be true or false, not {shown(takeover, 40)}")
        by = None if by is None else self.state.redactor.text(by)
        return Lease(ac.claim_of(key), by, self.state.now, float(ttl_s)), takeover

    def renew(self, args: list[Any], part: Part) -> bytes | None:
        session_id, key = take(args, 2)
        session = self.state.session(session_id)
        lease = self._present(session)
        if not ac.holds(lease, ac.checked_key(key)):
            raise not_driver(session, lease)
        assert lease is not None
        self._extend(session.id, lease)
        return self._answer(session.id, lease)

    def release(self, args: list[Any], part: Part) -> bytes | None:
        session_id, key = take(args, 2)
        session = self.state.session(session_id)
        lease = self._present(session)
        if not ac.holds(lease, ac.checked_key(key)):
            return wire.OK_FALSE
        self._change(session, None, "released", lease)
        return wire.OK_TRUE

    def _present(self, session: SessionState) -> Lease | None:
        """The driver, unless his time is over."""
        lease = session.access.lease if session.access is not None else None
        return lease if lease is not None and self._left_s(session.id) > 0 else None

    def _left_s(self, session_id: str) -> float:
        return self.state.leases.get(session_id, 0.0) - self.state.mono

    def _vacated(self, session: SessionState) -> SessionState:
        """Without a driver whose time is over: he is told before the next one is named."""
        if session.access is None or session.access.lease is None or self._present(session) is not None:
            return session
        return self._change(session, None, "expired", session.access.lease)

    def _change(
        self, session: SessionState, lease: Lease | None, reason: str, former: Lease | None
    ) -> SessionState:
        session = self._put(session, lease)
        if session.status in CLOSED or session.deleted_at is not None:
            return session  # its log is over
        self.state.append(session.id, "driver_changed", {
            "driver": lease.by if lease else None, "claim": lease.claim if lease else None, "reason": reason,
            "former": former.by if former else None, "former_claim": former.claim if former else None,
        })
        return self.state.sessions[session.id]

    def _put(self, session: SessionState, lease: Lease | None) -> SessionState:
        if session.access is None or session.access.lease != lease:
            access = ac.with_lease(session.access, lease)
            session = self.state.put_session(msgspec.structs.replace(session, access=access))
        if lease is not None:
            self._extend(session.id, lease)
        elif session.id in self.state.leases:
            self.state.undo.append((self.state.leases, session.id, self.state.leases.pop(session.id)))
        return session

    def _extend(self, session_id: str, lease: Lease) -> None:
        leases = self.state.leases
        self.state.undo.append((leases, session_id, leases.get(session_id)))
        leases[session_id] = self.state.mono + lease.ttl_s

    def recover(self, session: SessionState) -> None:
        """A session as it was stored: its driver has his whole time again."""
        if session.access is not None and session.access.lease is not None:
            self.state.leases[session.id] = self.state.mono + session.access.lease.ttl_s

    def tick(self) -> None:
        """Announce the vacancy of sessions whose driver did not renew."""
        for session_id in [sid for sid, until_s in self.state.leases.items() if until_s <= self.state.mono]:
            try:
                self._vacated(self.state.session(session_id))
            except NotFound:  # it was deleted for good
                del self.state.leases[session_id]
                continue
            self.state.leases.pop(session_id, None)

    # --- the token ---

    def set_token(self, args: list[Any], part: Part) -> bytes | None:
        session_id, token = take(args, 1, 2)
        session = self.state.session(session_id)
        sessions.refuse_deleted(session)
        hashed = None if ac.checked_token(token) is None else ac.token_hash(session.id, token)
        access = ac.with_token(session.access, hashed)
        session = self.state.put_session(msgspec.structs.replace(session, access=access))
        if session.status not in CLOSED:
            self.state.append(session.id, "access_changed", {"protected": token is not None})
        return wire.OK_NIL

    # --- every call ---

    def check(self, op: str, args: list[Any]) -> None:
        """Refuse a call whose caller may not make it.

        Raises:
            NotAllowed: ``unauthorized`` or ``not_driver``.
            NotFound: its session is being imported, and nobody's yet.
        """
        need = NEEDS.get(op)
        if need is None or self._is_everybodys(op, args):
            return
        session, shown_by = self._subject(op, args), self.state.presented
        if session is None:
            return
        if session.deleted_at == sessions.IMPORTING and op not in _OF_ANY_ID:
            raise _half_there(op, args)
        if shown_by.node:
            return
        if session.access is not None:
            if op == "session.start_or_get":
                shown_by = _or_field(shown_by, args)
            if not ac.opens(session.access, session.id, shown_by):
                raise unauthorized(session)
        if need is Need.DRIVER:
            self._check_driver(session, shown_by)
        elif shown_by.viewer and op in ENDS:
            raise not_driver(session, self._present(session))

    def _is_everybodys(self, op: str, args: list[Any]) -> bool:
        """The usual case, for a third of the price: in memory, nothing asked, nothing shown. False: look."""
        state = self.state
        try:
            name = args[1 if op in _NEW_RUNS else 0]
            if op[0] == "r" and op not in _NEW_RUNS:
                name = state.runs[name].session_id
            session = state.sessions[name]
            return session.access is None and session.deleted_at is None and state.presented is NOBODY
        except (LookupError, TypeError):
            return False

    def _check_driver(self, session: SessionState, shown_by: Credentials) -> None:
        if session.access is None and shown_by.key is None and not shown_by.viewer:
            return
        lease = self._present(session)
        if ac.holds(lease, shown_by.key):
            assert lease is not None
            self._extend(session.id, lease)
        elif lease is not None or shown_by.key is not None or shown_by.viewer:
            raise not_driver(session, lease)

    def _subject(self, op: str, args: list[Any]) -> SessionState | None:
        """The session that a call is about; None where there is none, which its handler says."""
        place = 1 if op in _NEW_RUNS else 0
        name = args[place] if len(args) > place else None
        if type(name) is not str:
            return None
        try:
            if place == 0 and op.startswith("run."):
                name = self.state.run(name).session_id
            return self.state.session(name)
        except NotFound:
            return None

    def guarded_writes(self, table: dict[str, Write]) -> dict[str, Write]:
        """The same table; what ``NEEDS`` names is checked first."""
        return {op: self._checked_write(op, write) if op in NEEDS else write for op, write in table.items()}

    def _checked_write(self, op: str, write: Write) -> Write:
        def checked(args: list[Any], part: Part) -> bytes | None:
            self.check(op, args)
            return write(args, part)

        return checked

    def guarded_reads(self, table: dict[str, Read]) -> dict[str, Read]:
        """The same for reads."""
        return {op: self._checked_read(op, read) if op in NEEDS else read for op, read in table.items()}

    def _checked_read(self, op: str, read: Read) -> Read:
        def checked(args: list[Any], now: int) -> bytes:
            self.check(op, args)
            return read(args, now)

        return checked

    @contextmanager
    def presenting(self, credentials: Credentials) -> Iterator[None]:
        """What is decided inside is asked for by somebody who shows these."""
        self.state.presented = credentials
        try:
            yield
        finally:
            self.state.presented = NOBODY


def _or_field(shown_by: Credentials, args: list[Any]) -> Credentials:
    """``start_or_get`` brings the token as a field of the session that it may have to make."""
    fields = args[2] if len(args) > 2 else None
    token = fields.get("token") if type(fields) is dict else None
    return shown_by if type(token) is not str else shown_by._replace(token=token)


def _half_there(op: str, args: list[Any]) -> NotFound:
    """What a call is told whose session is not whole yet: that what it names is not there."""
    what = "run" if op.startswith("run.") and op not in _NEW_RUNS else "session"
    name = args[1 if op in _NEW_RUNS else 0]
    return NotFound(f"no {what} {shown(name, 140)}", code=f"{what}_not_found")


def unauthorized(session: SessionState) -> NotAllowed:
    """The token of the session was not shown, or another one."""
    return NotAllowed(
        f"session {session.id} is protected: its token is missing or wrong", code="unauthorized",
        details={"session_id": session.id},
    )


def not_driver(session: SessionState, lease: Lease | None) -> NotAllowed:
    """The caller does not drive the session."""
    by = "nobody" if lease is None else lease.by or "another client"
    return NotAllowed(
        f"this is for the driver of session {session.id}; {by} drives it now", code="not_driver",
        details={"session_id": session.id, "driver": lease.by if lease else None,
                 "claim": lease.claim if lease else None},
    )


def _taken(session: SessionState, lease: Lease) -> InvalidState:
    return InvalidState(
        f"{lease.by or 'another client'} drives session {session.id}: wait, or take it over",
        code="driver_taken",
        details={"session_id": session.id, "driver": lease.by, "claim": lease.claim, "since": lease.since},
    )


__all__ = ["AS", "DRIVEN_MAX", "TTL_MAX_S", "TTL_MIN_S", "TTL_S", "Driving", "not_driver", "unauthorized"]
