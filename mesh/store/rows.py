"""How a session and a run become a row: what searches need stands in columns, the whole in ``record``."""

from __future__ import annotations

from typing import Any

from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core import usage_row
from mesh.core.run import RunState
from mesh.core.session import SessionState
from mesh.core.slots import run_key, session_slot
from mesh.store.file import checksum

#: Not INSERT OR REPLACE, which deletes and inserts, in every index too.
PUT_SESSION = (
    "INSERT INTO session(n, id, slot, status, agent_id, live, created, updated, deleted, record, sum)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(n) DO UPDATE SET status = excluded.status,"
    " live = excluded.live, updated = excluded.updated, deleted = excluded.deleted, record = excluded.record,"
    " sum = excluded.sum"
)
PUT_RUN = (
    "INSERT INTO run(n, id, session, status, started, provider, model, tokens, cost, usage, record, sum)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(n) DO UPDATE SET status = excluded.status,"
    " started = excluded.started, provider = excluded.provider, model = excluded.model,"
    " tokens = excluded.tokens, cost = excluded.cost, usage = excluded.usage, record = excluded.record,"
    " sum = excluded.sum"
)


def session_row(state: SessionState) -> tuple[Any, ...]:
    """The values of ``PUT_SESSION``."""
    record = sessions.encode(state)
    driven = state.access is not None and state.access.lease is not None
    return (
        state.n, state.id, session_slot(state.id), sessions.STATUS_CODE[state.status], state.agent_id,
        int(state.live or driven), state.created_at, state.updated_at, state.deleted_at, record,
        checksum(record),
    )


def run_row(run: RunState, session: int) -> tuple[Any, ...]:
    """The values of ``PUT_RUN``; ``session`` is the row number of its session."""
    record = runs.encode(run)
    return (
        run.n, run_key(run.id), session, runs.STATUS_CODE[run.status], *usage_row.columns(run), record,
        checksum(record),
    )


__all__ = ["PUT_RUN", "PUT_SESSION", "run_row", "session_row"]
