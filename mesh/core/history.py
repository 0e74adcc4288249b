"""How the log is read for a transcript: pages of the session, after those of the sessions it was forked from.

No sockets here: a reading yields ``(op, args)``, the reads it needs one after the other, and is sent their
values. Whoever drives it awaits, blocks, or has them at hand.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from mesh.core.transcript import CHARS_MAX, TYPES, Fold
from mesh.errors import InvalidArgument, NotFound

#: Events of a page: a partition reads so many in about 5 ms.
PAGE_EVENTS = 1_000
#: Forks of forks: a transcript is read through so many sessions.
FORKS_MAX = 64

Reading = Generator[tuple[str, list[Any]], Any, Any]


def read_on(fold: Fold, up_to: int) -> Reading:
    """Read the fold's session further, up to a seq."""
    while fold.seq < up_to:
        asked = {"after": fold.seq, "before": up_to + 1, "type": list(TYPES), "limit": PAGE_EVENTS}
        rows, complete, *pruned_to = yield "session.events", [fold.session_id, asked]
        fold.pruned_to = max(fold.pruned_to, *pruned_to[:1], 0)
        fold.add(rows)
        if not rows or (complete and len(rows) < PAGE_EVENTS):
            fold.reached(up_to)


def begin(session_id: str, fork: Any, *, chars_max: int = CHARS_MAX) -> Reading:
    """The fold with which a session begins: empty, or what it was forked from (``[session id, seq]``).

    Raises:
        NotFound: what it was forked from is gone.
        InvalidArgument: that never had this seq, or the forks are too many.
    """
    line = yield from ancestors(session_id, fork)
    fold = Fold(line[-1][0] if line else session_id, chars_max=chars_max)
    heirs = [session_id, *(ancestor for ancestor, _ in line)]
    for (_, at_seq), heir in reversed(list(zip(line, heirs, strict=False))):
        yield from read_on(fold, at_seq)
        fold.fork(heir)
    return fold


def ancestors(session_id: str, fork: Any) -> Reading:
    """``[(session id, seq), ...]`` from the parent to the first one."""
    line: list[tuple[str, int]] = []
    child = session_id
    while fork is not None:
        parent, at_seq = fork
        if len(line) == FORKS_MAX:
            raise InvalidArgument(f"{FORKS_MAX} forks of forks are too many", code="limit_exceeded")
        try:
            found = yield "session.get", [parent]
        except NotFound as exc:
            raise NotFound(
                f"session {child} was forked from {parent}, which is gone",
                code="session_not_found", details={"session_id": parent},
            ) from exc
        if found["seq"] < at_seq:
            raise InvalidArgument(
                f"session {child} was forked from {parent} at {at_seq}, but that has {found['seq']} events",
                code="invalid_cursor", details={"session_id": parent},
            )
        line.append((parent, at_seq))
        child, fork = parent, fork_of(found)
    return line


def fork_of(session: Any) -> Any:
    """Where a session (its wire map) was forked, ``[session id, seq]``, or None."""
    seq = session.get("fork_seq")
    return None if seq is None else [session["parent_session_id"], seq]


__all__ = ["FORKS_MAX", "PAGE_EVENTS", "Reading", "ancestors", "begin", "fork_of", "read_on"]
