"""``AsyncClient``: the SDK for asyncio."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from types import TracebackType
from typing import Any, Self

from mesh.client import _surface_node as plans
from mesh.client import _surface_prompts as prompt_plans
from mesh.client import _surface_runs as run_plans
from mesh.client import _surface_sessions as session_plans
from mesh.client._aio_approvals import AsyncApprovals
from mesh.client._aio_attach import keyed
from mesh.client._aio_link import AsyncLink
from mesh.client._aio_listener import AsyncListener
from mesh.client._aio_queries import AsyncAudit, AsyncEvents, AsyncMaintenance, AsyncUsage
from mesh.client._aio_routes import AsyncAgents, AsyncPartitions, AsyncRoutes
from mesh.client._aio_runs import AsyncRuns
from mesh.client._aio_sessions import AsyncSessions
from mesh.client._protocol import PING
from mesh.client._surface import failure
from mesh.core.records import Event, RunResult


class AsyncClient:
    """A client of one node, for one event loop. Nothing is connected before the first call.

    ``address`` is ``tcp://host:port``, ``host:port`` or ``ipc://path``; None is ``$MESH_ADDRESS``, else the
    node of this user on this machine. ``timeout_s`` is the limit of each call that does not name its own.
    ``token`` and ``driver`` (``Claim.key``) are shown with every call about a session: it acts as whoever
    has them.

    Its calls stand in groups: ``routes``, ``sessions``, ``runs``, ``approvals``, ``agents``, ``events``,
    ``usage``, ``audit``, ``maintenance``, ``partitions``; ``run_once`` and ``listen`` are its own.
    Calls are coroutines, streams and listeners async iterators. Use it in an ``async with`` block, or await
    ``close``.
    What goes wrong is a ``MeshError`` (``.code``, ``.details``, ``.retryable``); ``NodeUnreachable``,
    ``DeadlineExceeded`` and ``InvalidArgument`` may come from each.
    """

    def __init__(
        self, address: str | None = None, *, timeout_s: float = 5.0, token: str | None = None,
        driver: str | None = None,
    ) -> None:
        self._link = AsyncLink(address, timeout_s)
        link = keyed(self._link, token, driver)
        self.routes = AsyncRoutes(self._link)
        self.partitions = AsyncPartitions(self._link)
        self.sessions = AsyncSessions(link)
        self.runs = AsyncRuns(link)
        self.agents = AsyncAgents(self._link)
        self.events = AsyncEvents(link)
        self.usage = AsyncUsage(self._link)
        self.audit = AsyncAudit(self._link)
        self.approvals = AsyncApprovals(link)
        self.maintenance = AsyncMaintenance(self._link)

    async def run_once(
        self,
        agent: str,
        input: str | Mapping[str, Any],
        *,
        id: str | None = None,
        agent_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        parent_session_id: str | None = None,
        required_capabilities: Sequence[str] = (),
        optional_capabilities: Sequence[str] = (),
        on_event: Callable[[Event], Any] | None = None,
        continuation: str | bool | None = None,
        continuation_opts: Mapping[str, Any] | None = None,
        provider_opts: Mapping[str, Any] | None = None,
        policy: Any = None,
        policies: Any = None,
        workspace: Any = None,
        deadline_s: float | None = None,
        idle_s: float | None = None,
        timeout_s: float | None = None,
    ) -> RunResult:
        """Run an agent once in a session of its own: created, started, run and completed.

        ``timeout_s`` None waits as long as the run takes. When it passes, or the caller is cancelled, the
        run goes on (its ids are in the error's details). The result's events are those of the session.

        Raises:
            MeshError: the run's error, or why it could not start; run and session are then failed.
        """
        given = session_plans.fields(agent_id, context, metadata, tags, parent_session_id)
        options = session_plans.create_options(required_capabilities, optional_capabilities)
        options |= session_plans.execute_options(
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
            run_plans.run_once(
                self._link,
                agent,
                input,
                session_id=id,
                given=given,
                options=options,
                on_event=on_event,
                timeout_s=timeout_s,
            ),
            timeout_s,
        )
        return result

    async def listen(
        self, *topics: str, after: str | None = None, timeout_s: float | None = None
    ) -> AsyncListener:
        """Follow the feed: each message of these topics (prefixes; none is everything) once and in order.

        Returns when the subscription is live in every partition. ``after`` is a notification's cursor: go
        on behind it. The listener is an async iterator; ``aclose`` ends it.

        Raises:
            InvalidArgument: ``invalid_cursor``, not a cursor, or history that is no longer kept.
        """
        return await AsyncListener.open(self._link, topics, after, timeout_s)

    async def status(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        """The router's account of the node: endpoints, children, partitions, runners, counters."""
        status: dict[str, Any] = await self._link.drive(plans.status(), timeout_s)
        return status

    async def ping(self, *, timeout_s: float | None = None) -> float:
        """Seconds to the router and back."""
        began_s = monotonic()
        status, value = await self._link.control(PING, 0, timeout_s)
        if status:
            raise failure(value)
        return monotonic() - began_s

    async def backup(self, folder: str, *, timeout_s: float | None = None) -> list[str]:
        """Have every partition write a consistent copy of its store to a folder on the node's machine."""
        files: list[str] = await self._link.drive(plans.backup(folder, timeout_s), timeout_s)
        return files

    async def restart_runner(self, index: int, *, timeout_s: float | None = None) -> None:
        """Have the supervisor restart a runner, also one that is down. What it executes is cancelled.

        Returns when the request was passed on.
        """
        await self._link.drive(plans.restart_runner(index), timeout_s)

    async def drain(self, *, timeout_s: float | None = None) -> None:
        """Return when every partition was seen with no run executing or waiting. New work is not refused.

        Raises:
            DeadlineExceeded: there still was some, by default after 60 s; ``details`` count it.
        """
        await self._link.drive(prompt_plans.drain_node(timeout_s), timeout_s)

    async def close(self) -> None:
        """Close the connection; calls that are waiting end with ``client_closed``. Idempotent."""
        self._link.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


__all__ = ["AsyncClient"]
