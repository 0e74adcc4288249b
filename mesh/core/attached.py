"""What whoever attaches to a session is given: how it stands at one point of its log; and a claim on it."""

from __future__ import annotations

from typing import Any

from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core import wire
from mesh.core.approval import Approval
from mesh.core.record import Record, Text
from mesh.core.records import QueuedPrompt, Run, Session
from mesh.core.session import SessionState
from mesh.core.state import State
from mesh.errors import InvalidArgument, shown

VIEWER, DRIVER = ROLES = ("viewer", "driver")


class Claim(Record, frozen=True):
    """The right to drive a session. ``key`` is its secret: whoever has it may act; ``claim`` is its public
    name, as events and ``Session.driver`` show it."""

    session_id: Text
    key: str  #: hexadecimal; for ``Client(driver=...)`` and ``sessions.release``
    claim: str
    by: str | None
    since: float
    ttl_s: float
    seq: int = 0  #: of the session's last event then: a ``driver_changed`` behind it is news

    def __repr__(self) -> str:
        return f"Claim(session_id={self.session_id!r}, claim={self.claim!r}, by={self.by!r}, ...)"


class Snapshot(Record, frozen=True):
    """How a session stands, all of it at one moment: behind event ``session.seq`` and before the next."""

    session: Session
    runs: tuple[Run, ...] = ()  #: those that execute
    approvals: tuple[Approval, ...] = ()  #: what they ask, oldest first
    queued: tuple[QueuedPrompt, ...] = ()  #: the prompts that wait, the steering ones first
    omitted: int = 0  #: of all these, how many are left out because they are too much for one answer


def snapshot_of(
    state: State, session: SessionState, approvals: list[Any], queued: list[list[Any]], bytes_max: int
) -> dict[str, Any]:
    """The map of a ``Snapshot``, bounded."""
    executing = [runs.to_wire(state.run(name), state.redactor) for name in state.work_of(session.id).running]
    prompts = [dict(zip(QueuedPrompt.__struct_fields__, row, strict=True)) for row in queued]
    found: dict[str, Any] = {"session": sessions.to_wire(session, state.pid_of(session)), "omitted": 0}
    for name, rows in (("runs", executing), ("approvals", approvals), ("queued", prompts)):
        found[name] = []
        for row in rows:
            bytes_max -= len(wire.repack(row))
            if bytes_max < 0:
                found["omitted"] += 1
            else:
                found[name].append(row)
    return found


def checked_role(role: Any) -> str:
    """``viewer`` or ``driver``.

    Raises:
        InvalidArgument: ``invalid_role``.
    """
    if role not in ROLES:
        raise InvalidArgument(f"role must be viewer or driver, not {shown(role, 40)}", code="invalid_role")
    return str(role)


__all__ = ["DRIVER", "ROLES", "VIEWER", "Claim", "Snapshot", "checked_role", "snapshot_of"]
