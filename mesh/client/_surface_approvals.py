"""Plans of approvals: the inbox of all partitions, and the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mesh.client._payload import Call
from mesh.client._surface import Plan
from mesh.client._surface_routes import list_pages
from mesh.client._surface_sessions import run_call
from mesh.core.approval import Approval
from mesh.core.plain import plain_map
from mesh.core.slots import check_id, session_slot


def list_approvals(session_id: Any, limit: Any, cursor: str | None, timeout_s: float | None) -> Plan:
    """``approvals.list``: oldest first."""
    sid = None if session_id is None else check_id(session_id)
    return (
        yield from list_pages(
            "approvals", "approval.list", (sid,), limit=limit, cursor=cursor, timeout_s=timeout_s,
            order=_place, after_of=_place, parse=Approval.from_map,
            slot=None if sid is None else session_slot(sid),
        )
    )


def _place(row: Any) -> list[Any]:
    return [row["asked_at"], row["run_id"], row["tool_call_id"]]


def decide_call(
    run_id: Any, tool_call_id: Any, *, approved: bool, scope: Any = None, reason: Any = None, by: Any = None
) -> tuple[int, Call]:
    """(slot, call) of an answer."""
    return run_call("run.decide", run_id, tool_call_id, approved, scope, reason, by)


def cancel_call(
    run_id: Any, approval: Approval | Mapping[str, Any] | None, if_version: Any
) -> tuple[int, Call]:
    """(slot, call) of ``runs.cancel_for_approval``."""
    given = approval.to_map() if isinstance(approval, Approval) else plain_map(approval or {}, "approval")
    if isinstance(approval, Approval):
        given = {name: given[name] for name in _SAID}
    return run_call("run.cancel_for_approval", run_id, given, if_version)


_SAID = ("tool_name", "tool_call_id", "tool_input", "policy_name", "violation_kind")


__all__ = ["cancel_call", "decide_call", "list_approvals"]
