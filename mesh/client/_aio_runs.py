"""Runs, on asyncio: what ``_surface_runs`` plans, done here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mesh.client import _surface_approvals as approval_plans
from mesh.client import _surface_prompts as prompt_plans
from mesh.client import _surface_runs as run_plans
from mesh.client import _surface_sessions as plans
from mesh.client._aio_link import AsyncLink
from mesh.client._aio_queries import AsyncStoredRuns
from mesh.client._payload import Call
from mesh.client._protocol import READ, WRITE
from mesh.client._surface import failure
from mesh.core.approval import Approval
from mesh.core.records import Event, Run, RunResult
from mesh.errors import MeshError


class AsyncRuns(AsyncStoredRuns):
    """Executions of an agent in a session."""

    def __init__(self, link: AsyncLink) -> None:
        self._link = link

    async def _one(self, kind: int, placed: tuple[int, Call], timeout_s: float | None) -> Any:
        status, value = await self._link.call(kind, placed[0], placed[1], timeout_s)
        if status:
            raise failure(value)
        return value

    async def create(
        self,
        session_id: str,
        input: str | Mapping[str, Any],
        *,
        required_capabilities: Sequence[str] = (),
        optional_capabilities: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> Run:
        """Store a run, ``pending``; ``execute`` starts it."""
        run_id = plans.new_run_id(session_id)
        options = plans.create_options(required_capabilities, optional_capabilities)
        placed = plans.run_call("run.create", run_id, session_id, plans.check_input(input), options)
        return Run.from_map(await self._one(WRITE, placed, timeout_s))

    async def execute(
        self,
        run_id: str,
        *,
        on_event: Callable[[Event], Any] | None = None,
        agent: str | None = None,
        continuation: str | bool | None = None,
        continuation_opts: Mapping[str, Any] | None = None,
        provider_opts: Mapping[str, Any] | None = None,
        policy: Any = None,
        policies: Any = None,
        workspace: Any = None,
        deadline_s: float | None = None,
        idle_s: float | None = None,
        if_version: int | None = None,
        timeout_s: float | None = None,
    ) -> RunResult:
        """Start a pending run and wait for its end.

        ``on_event`` gets its events live and in order; what it raises is raised here, and the run goes on.
        ``agent`` executes this run in place of the session's. ``continuation`` gives the agent what was said
        before: "auto", "replay" or "native" (see README), within the limits of ``continuation_opts``.
        ``deadline_s`` (in all) and ``idle_s`` (without a word of the agent) are the run's own limits, kept
        by the node. ``timeout_s`` None waits as long as it takes; when it passes (or the caller is
        cancelled) the run goes on.

        Raises:
            MeshError: the run's error (``cancelled``, ``timeout``, ``provider_error`` ...), details name it.
        """
        options = plans.execute_options(
            agent=agent,
            continuation=continuation,
            continuation_opts=continuation_opts,
            provider_opts=provider_opts,
            policy=policy,
            policies=policies,
            workspace=workspace,
            deadline_s=deadline_s,
            idle_s=idle_s,
        )
        result: RunResult = await self._link.drive(
            run_plans.execute(self._link, run_id, options, on_event, timeout_s, if_version=if_version),
            timeout_s,
        )
        return result

    async def submit(
        self,
        session_id: str,
        input: str | Mapping[str, Any],
        *,
        required_capabilities: Sequence[str] = (),
        optional_capabilities: Sequence[str] = (),
        agent: str | None = None,
        continuation: str | bool | None = None,
        continuation_opts: Mapping[str, Any] | None = None,
        provider_opts: Mapping[str, Any] | None = None,
        policy: Any = None,
        policies: Any = None,
        workspace: Any = None,
        deadline_s: float | None = None,
        idle_s: float | None = None,
        timeout_s: float | None = None,
    ) -> Run:
        """Create and dispatch in one step: queued or running. Does not wait for its end."""
        options = plans.create_options(required_capabilities, optional_capabilities) | plans.execute_options(
            agent=agent,
            continuation=continuation,
            continuation_opts=continuation_opts,
            provider_opts=provider_opts,
            policy=policy,
            policies=policies,
            workspace=workspace,
            deadline_s=deadline_s,
            idle_s=idle_s,
        )
        run_id = plans.new_run_id(session_id)
        placed = plans.run_call("run.submit", run_id, session_id, plans.check_input(input), options)
        return Run.from_map(await self._one(WRITE, placed, timeout_s))

    async def wait(self, run_id: str, *, timeout_s: float | None = None) -> RunResult:
        """Wait for a run's end. ``timeout_s`` None waits as long as it takes; passing it cancels nothing.

        Raises:
            MeshError: the run's error, or ``timeout`` when the caller's limit passed.
        """
        result: RunResult = await self._link.drive(run_plans.wait(run_id, timeout_s), timeout_s)
        return result

    async def get(self, run_id: str, *, timeout_s: float | None = None) -> Run:
        """The run as stored.

        Raises:
            NotFound: ``run_not_found``.
        """
        return Run.from_map(await self._one(READ, plans.run_call("run.get", run_id), timeout_s))

    async def patch(self, run_id: str, *, timeout_s: float | None = None) -> bytes | None:
        """What a run changed in its workspace, as a patch for ``git apply``; from its record, or from the
        artifact store that has it. None where none was kept: no git, too large, or nothing changed.

        Raises:
            NotFound: ``run_not_found``; ``not_found``: the artifact is gone.
        """
        found: bytes | None = await self._one(READ, plans.run_call("run.patch", run_id), timeout_s)
        return found

    async def cancel(
        self, run_id: str, *, if_version: int | None = None, timeout_s: float | None = None
    ) -> str:
        """Cancel a run; returns its id when it is settled and its processes are gone. One that is over stays.
        """
        placed = plans.run_call("run.cancel", run_id, if_version)
        found: str = await self._one(WRITE, placed, plans.settle_limit(self._link, timeout_s))
        return found

    async def cancel_for_approval(
        self, run_id: str, approval: Approval | Mapping[str, Any] | None = None, *,
        if_version: int | None = None, timeout_s: float | None = None,
    ) -> str:
        """Cancel a run because a human has to decide first, reason ``approval_requested``; what is asked is
        in its log, before its end. For runs that need not be cancelled for it: see ``approvals``.

        Raises:
            InvalidState: ``invalid_transition``, the run is over.
        """
        placed = approval_plans.cancel_call(run_id, approval, if_version)
        found: str = await self._one(WRITE, placed, plans.settle_limit(self._link, timeout_s))
        return found

    async def approve(
        self, run_id: str, tool_call_id: str, *, scope: str = "once", by: str | None = None,
        reason: str | None = None, timeout_s: float | None = None,
    ) -> Approval:
        """The same as ``approvals.approve``."""
        placed = approval_plans.decide_call(
            run_id, tool_call_id, approved=True, scope=scope, reason=reason, by=by)
        return Approval.from_map(await self._one(WRITE, placed, timeout_s))

    async def deny(
        self, run_id: str, tool_call_id: str, reason: str | None = None, *, by: str | None = None,
        timeout_s: float | None = None,
    ) -> Approval:
        """The same as ``approvals.deny``."""
        placed = approval_plans.decide_call(run_id, tool_call_id, approved=False, reason=reason, by=by)
        return Approval.from_map(await self._one(WRITE, placed, timeout_s))

    async def cancel_many(
        self, ids: Sequence[str], *, timeout_s: float | None = None
    ) -> dict[str, MeshError | None]:
        """Cancel several runs at once; id -> None when it is over, or the error."""
        outcome: dict[str, MeshError | None] = await self._link.drive(
            prompt_plans.cancel_many(self._link, ids, timeout_s), timeout_s
        )
        return outcome

    async def interrupt(
        self, run_id: str, *, if_version: int | None = None, timeout_s: float | None = None
    ) -> str:
        """Cancel a run that executes, reason ``interrupt``; its id, when it is settled. Again is the same.

        Raises:
            NotFound: ``run_not_found``, also when it waits or has ended otherwise.
        """
        placed = plans.run_call("run.interrupt", run_id, if_version)
        found: str = await self._one(WRITE, placed, plans.settle_limit(self._link, timeout_s))
        return found

    async def pause(
        self, run_id: str, *, if_version: int | None = None, timeout_s: float | None = None
    ) -> Run:
        """Have a running agent wait at its next step; it must have the capability ``pause``.

        Raises:
            InvalidArgument: ``capability_not_supported``.
            InvalidState: ``invalid_operation``, it does not run.
        """
        placed = plans.run_call("run.pause", run_id, if_version)
        return Run.from_map(await self._one(WRITE, placed, timeout_s))

    async def resume(
        self, run_id: str, *, if_version: int | None = None, timeout_s: float | None = None
    ) -> Run:
        """Have a paused agent go on; it must have the capability ``resume``.

        Raises:
            InvalidArgument: ``capability_not_supported``.
            InvalidState: ``invalid_operation``, it is neither paused nor running.
        """
        placed = plans.run_call("run.resume", run_id, if_version)
        return Run.from_map(await self._one(WRITE, placed, timeout_s))


__all__ = ["AsyncRuns"]
