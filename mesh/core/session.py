"""What a session is inside its partition, and which steps its status allows.

Rules of this file:

1. State is immutable: a step gives a new ``SessionState``, so undoing a batch is putting back the old one.
2. Live and stored are two things. ``status`` is stored and changes by verbs; ``live`` says that an actor
   hosts the session now (runner, its incarnation), and ``incarnation`` grows whenever it becomes live again.
3. ``version`` grows with every step of the status machine and every change of what a user gave; going live
   or idle is no such change. A caller who names the version he saw is refused when it is another now.
4. ``seq`` is not written with every event: the log itself knows it (the highest seq of the session).
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from mesh.core.access import Access, Credentials, checked_token, driver_map, opens, token_hash, with_token
from mesh.core.records import SessionStatus
from mesh.core.slots import check_id
from mesh.core.wire import check_depth
from mesh.errors import InvalidArgument, InvalidState, shown

TAGS_MAX = 64
#: ``deleted_at`` of what nobody may see: a session whose rows are being removed, one that is being imported.
ERASED, IMPORTING = 0.0, -1.0
#: Runs that one session may execute at a time, whatever was asked for.
SLOTS_MAX = 1_000
_PENDING, _ACTIVE, _PAUSED = SessionStatus.PENDING, SessionStatus.ACTIVE, SessionStatus.PAUSED
CLOSED = frozenset((SessionStatus.COMPLETED, SessionStatus.CANCELLED, SessionStatus.FAILED))

#: verb -> (statuses it may start from, status it leads to, event it leaves)
VERBS: dict[str, tuple[frozenset[SessionStatus], SessionStatus, str]] = {
    "activate": (frozenset((_PENDING,)), _ACTIVE, "session_started"),
    "pause": (frozenset((_ACTIVE,)), _PAUSED, "session_paused"),
    "resume": (frozenset((_PAUSED,)), _ACTIVE, "session_resumed"),
    "complete": (frozenset((_ACTIVE, _PAUSED)), SessionStatus.COMPLETED, "session_completed"),
    "cancel": (frozenset((_PENDING, _ACTIVE, _PAUSED)), SessionStatus.CANCELLED, "session_cancelled"),
    "fail": (frozenset((_PENDING, _ACTIVE, _PAUSED)), SessionStatus.FAILED, "session_failed"),
}

_FIELDS = {"agent_id", "context", "metadata", "tags", "parent_session_id", "slots", "fork_seq", "token"}
#: Order is the code in the store: append only.
STATUS_CODE = {status: code for code, status in enumerate(SessionStatus)}


class SessionState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A session as its partition stores it. New fields go to the end and have a default.

    The collector does not look at it: decoded data cannot point back to the session.
    """

    n: int  #: row number in the partition: the order of creation, and the cursor of lists
    id: str
    agent: str
    agent_id: str
    status: SessionStatus
    created_at: float
    updated_at: float
    parent_session_id: str | None = None
    metadata: dict[str, Any] = {}
    context: dict[str, Any] = {}
    tags: tuple[str, ...] = ()
    error: dict[str, Any] | None = None
    incarnation: int = 0
    runner: int | None = None  #: None when not live
    runner_incarnation: int = 0
    crashes: tuple[float, ...] = ()  #: monotonic times at which it was executing when its runner died
    seq: int = 0
    deleted_at: float | None = None  #: hidden from lists since then; ERASED or IMPORTING
    pruned: int = 0  #: events of its log that were removed
    pruned_to: int = 0  #: the highest seq of those: up to there, what is missing is no loss
    version: int = 1
    slots: int = 0  #: runs at a time; 0: the node's setting
    fork_seq: int | None = None  #: its transcript begins with that of ``parent_session_id`` up to here
    access: Access | None = None  #: its token and its driver; None: it is everybody's
    past: int = 0  #: up to this seq its log was imported: no news for who listens to all sessions

    @property
    def live(self) -> bool:
        """Whether an actor hosts it now."""
        return self.runner is not None


def step(state: SessionState, verb: str, now: float, **changes: Any) -> SessionState:
    """The session after a verb.

    Raises:
        InvalidState: ``invalid_transition``; details hold the status and the verb.
    """
    if state.deleted_at is not None:
        refuse_deleted(state)
    allowed, target, _ = VERBS[verb]
    if state.status not in allowed:
        raise InvalidState(
            f"cannot {verb} session {state.id}: it is {state.status}", code="invalid_transition",
            details={"status": state.status.value, "verb": verb, "session_id": state.id},
        )
    return msgspec.structs.replace(
        state, status=target, updated_at=now, version=state.version + 1, **changes
    )


def refuse_deleted(state: SessionState) -> None:
    """Refuse to do anything with a deleted session.

    Raises:
        InvalidState: ``session_closed``; ``already_exists``, it is being imported.
    """
    if state.deleted_at == IMPORTING:
        raise InvalidState(f"session {state.id} is being imported", code="already_exists",
                           details={"session_id": state.id})
    if state.deleted_at is not None:
        raise InvalidState(
            f"session {state.id} is deleted: undelete it first", code="session_closed",
            details={"session_id": state.id, "deleted_at": state.deleted_at},
        )


class Versioned(Protocol):
    """A session or a run."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def version(self) -> int:
        """Its present version."""


def check_version(state: Versioned, if_version: Any) -> None:
    """Refuse a change by a caller who saw another version of the record; None is any.

    Raises:
        InvalidState: ``version_conflict``; details hold the present version.
    """
    if if_version is None or if_version == state.version:
        return
    if type(if_version) is not int:
        raise InvalidArgument(f"if_version must be a whole number, not {shown(if_version, 60)}")
    raise InvalidState(
        f"{state.id} has version {state.version}, not {if_version}: read it again and decide anew",
        code="version_conflict", details={"id": state.id, "version": state.version},
    )


def require_active(state: SessionState) -> None:
    """Refuse work for a session that cannot take it.

    Raises:
        InvalidState: ``session_paused``, ``session_closed`` or ``session_not_active``.
    """
    if state.deleted_at is not None:
        refuse_deleted(state)
    if state.status == _ACTIVE:
        return
    details = {"status": state.status.value, "session_id": state.id}
    if state.status == _PAUSED:
        raise InvalidState(
            f"session {state.id} is paused: resume it first", code="session_paused", details=details
        )
    if state.status in CLOSED:
        raise InvalidState(f"session {state.id} is {state.status}", code="session_closed", details=details)
    raise InvalidState(f"session {state.id} is pending: activate it first", code="session_not_active",
                       details=details)


def new_session(n: int, session_id: Any, agent: Any, fields: Any, now: float) -> SessionState:
    """Check the arguments of ``session.create`` and build the pending session.

    Raises:
        InvalidArgument: names the argument.
    """
    fields = {} if fields is None else fields
    if type(fields) is not dict:
        raise InvalidArgument(f"fields must be a map, not {type(fields).__name__}")
    if not fields.keys() <= _FIELDS:
        unknown = set(fields) - _FIELDS
        raise InvalidArgument(f"unknown session field {shown(min(map(str, unknown)))}")
    if type(agent) is not str or not agent:
        raise InvalidArgument(f"agent must be a non-empty str, not {shown(agent, 60)}")
    if not fields:
        return SessionState(n=n, id=check_id(session_id), agent=agent, agent_id=agent, status=_PENDING,
                            created_at=now, updated_at=now)
    agent_id = fields.get("agent_id")
    if agent_id is None:
        agent_id = agent
    if type(agent_id) is not str or not agent_id:
        raise InvalidArgument(f"agent_id must be a non-empty str, not {shown(agent_id, 60)}")
    tags = fields.get("tags") or ()
    if type(tags) not in (list, tuple) or len(tags) > TAGS_MAX or not all(type(t) is str and t for t in tags):
        raise InvalidArgument(f"tags must be at most {TAGS_MAX} non-empty strs, not {shown(tags, 60)}")
    slots = fields.get("slots")
    if slots is not None and (type(slots) is not int or not 1 <= slots <= SLOTS_MAX):
        raise InvalidArgument(f"slots must be a whole number from 1 to {SLOTS_MAX}, not {shown(slots, 60)}")
    parent, fork_seq = fields.get("parent_session_id"), fields.get("fork_seq")
    if fork_seq is not None and (type(fork_seq) is not int or fork_seq < 0 or parent in (None, session_id)):
        raise InvalidArgument(
            f"fork_seq must be a seq of another session, parent_session_id, not {shown(fork_seq, 40)}",
            code="invalid_cursor",
        )
    token = checked_token(fields.get("token"))
    return SessionState(
        n=n, id=check_id(session_id), agent=agent, agent_id=agent_id, status=_PENDING, created_at=now,
        updated_at=now, parent_session_id=None if parent is None else check_id(parent, "parent_session_id"),
        metadata=checked_map(fields.get("metadata"), "metadata"),
        context=checked_map(fields.get("context"), "context"), tags=tuple(tags), slots=slots or 0,
        fork_seq=fork_seq,
        access=None if token is None else with_token(None, token_hash(session_id, token)),
    )


def checked_map(value: Any, name: str) -> dict[str, Any]:
    """A map with str keys, not nested too deeply; None gives an empty one."""
    if value is None:
        return {}
    if type(value) is not dict or not all(type(key) is str for key in value):
        raise InvalidArgument(f"{name} must be a map with str keys, not {shown(value, 60)}")
    check_depth(value)
    return value


def handle_map(state: SessionState, pid: int | None) -> dict[str, Any] | None:
    """The handle of the live incarnation, None when there is none."""
    if state.runner is None:
        return None
    return {"session_id": state.id, "runner": state.runner, "pid": pid or 0, "incarnation": state.incarnation}


def listed(state: SessionState, pid: int | None, shown_by: Credentials) -> dict[str, Any]:
    """The session map of a list of many: of one whose token was not shown, without what it is about."""
    found = to_wire(state, pid)
    return found if opens(state.access, state.id, shown_by) else {**found, **_UNSEEN}


_UNSEEN: dict[str, Any] = {"metadata": {}, "context": {}, "error": None}


def to_wire(state: SessionState, pid: int | None) -> dict[str, Any]:
    """The session map that travels; ``row`` is the cursor of lists."""
    return {
        "id": state.id, "agent": state.agent, "agent_id": state.agent_id, "status": str(state.status),
        "parent_session_id": state.parent_session_id, "metadata": state.metadata, "context": state.context,
        "tags": state.tags, "created_at": state.created_at, "updated_at": state.updated_at, "seq": state.seq,
        "error": state.error, "handle": handle_map(state, pid), "row": state.n,
        "deleted_at": state.deleted_at, "pruned": state.pruned, "pruned_to": state.pruned_to,
        "version": state.version, "slots": state.slots or None, "fork_seq": state.fork_seq,
        "driver": driver_map(state.access),
        "protected": state.access is not None and state.access.token is not None,
    }


_DECODER = msgspec.msgpack.Decoder(SessionState)
_ENCODER = msgspec.msgpack.Encoder()


def encode(state: SessionState) -> bytes:
    """The stored form."""
    return _ENCODER.encode(state)


def decode(data: bytes) -> SessionState:
    """The inverse of ``encode``."""
    return _DECODER.decode(data)


__all__ = [
    "CLOSED", "ERASED", "IMPORTING", "SLOTS_MAX", "STATUS_CODE", "VERBS", "SessionState",
    "check_version", "checked_map", "decode", "encode", "handle_map", "listed", "new_session",
    "refuse_deleted", "require_active", "step", "to_wire",
]
