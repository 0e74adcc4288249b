"""Approvals, blocking: what ``_surface_approvals`` plans, done here."""

from __future__ import annotations

from mesh.client import _surface_approvals as plans
from mesh.client._blocking_link import BlockingLink
from mesh.client._payload import Call
from mesh.client._protocol import WRITE
from mesh.client._surface import failure
from mesh.core.approval import Approval
from mesh.core.records import Page


class Approvals:
    """What runs ask humans, and the answers. A run is told at once, and survives whoever decides."""

    def __init__(self, link: BlockingLink) -> None:
        self._link = link

    def _decide(self, placed: tuple[int, Call], timeout_s: float | None) -> Approval:
        status, value = self._link.call(WRITE, placed[0], placed[1], timeout_s)
        if status:
            raise failure(value)
        return Approval.from_map(value)

    def list(
        self, session_id: str | None = None, *, limit: int = 100, cursor: str | None = None,
        timeout_s: float | None = None,
    ) -> Page[Approval]:
        """What is open, oldest first, of all sessions or of one.

        Raises:
            NotFound: ``session_not_found``.
            NotAllowed: ``unauthorized``, the session is protected.
            InvalidArgument: ``invalid_cursor``, ``invalid_id``.
        """
        page: Page[Approval] = self._link.drive(
            plans.list_approvals(session_id, limit, cursor, timeout_s), timeout_s
        )
        return page

    def approve(
        self, run_id: str, tool_call_id: str, *, scope: str = "once", by: str | None = None,
        reason: str | None = None, timeout_s: float | None = None,
    ) -> Approval:
        """Let the run go on: with this call (``once``), with this tool for the rest of the run (``turn``), or
        also in the session's later runs (``session``). Approving again gives the stored answer.

        Raises:
            NotFound: ``approval_not_found``, nothing was asked under that name.
            InvalidState: ``invalid_transition``, it was denied before, or the run is over; details say who.
        """
        placed = plans.decide_call(run_id, tool_call_id, approved=True, scope=scope, reason=reason, by=by)
        return self._decide(placed, timeout_s)

    def deny(
        self, run_id: str, tool_call_id: str, reason: str | None = None, *, by: str | None = None,
        timeout_s: float | None = None,
    ) -> Approval:
        """Refuse: the agent gets ``tool_permission_denied``; of a budget, its run ends ``policy_violation``.

        Raises:
            NotFound: ``approval_not_found``.
            InvalidState: ``invalid_transition``, it was approved before; details say who.
        """
        placed = plans.decide_call(run_id, tool_call_id, approved=False, reason=reason, by=by)
        return self._decide(placed, timeout_s)


__all__ = ["Approvals"]
