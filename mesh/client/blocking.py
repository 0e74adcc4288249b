"""``Client``: the blocking SDK, for any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from types import TracebackType
from typing import Any, Self

from mesh.client import _surface_node as plans
from mesh.client import _surface_prompts as prompt_plans
from mesh.client import _surface_runs as run_plans
from mesh.client import _surface_sessions as session_plans
from mesh.client._blocking_approvals import Approvals
from mesh.client._blocking_attach import keyed
from mesh.client._blocking_link import BlockingLink
from mesh.client._blocking_listener import Listener
from mesh.client._blocking_queries import Audit, Events, Maintenance, Usage
from mesh.client._blocking_routes import Agents, Partitions, Routes
from mesh.client._blocking_runs import Runs
from mesh.client._blocking_sessions import Sessions
from mesh.client._protocol import PING
from mesh.client._surface import check_plain, failure
from mesh.core.records import Event, RunResult


class Client:
    """A client of one node, for any number of threads. Nothing is connected before the first call.

    ``address`` is ``tcp://host:port``, ``host:port`` or ``ipc://path``; None is ``$MESH_ADDRESS``, else the
    node of this user on this machine. ``timeout_s`` is the limit of each call that does not name its own.
    ``token`` and ``driver`` (``Claim.key``) are shown with every call about a session: it acts as whoever
    has them.

    Its calls stand in groups: ``routes``, ``sessions``, ``runs``, ``approvals``, ``agents``, ``events``,
    ``usage``, ``audit``, ``maintenance``, ``partitions``; ``run_once`` and ``listen`` are its own.
    Use it in a ``with`` block, or ``close`` it.
    What goes wrong is a ``MeshError`` (``.code``, ``.details``, ``.retryable``); ``NodeUnreachable``,
    ``DeadlineExceeded`` and ``InvalidArgument`` may come from each.
    """

    def __init__(
        self, address: str | None = None, *, timeout_s: float = 5.0, token: str | None = None,
        driver: str | None = None,
    ) -> None:
        self._link = BlockingLink(address, timeout_s)
        link = keyed(self._link, token, driver)
        self.routes = Routes(self._link)
        self.partitions = Partitions(self._link)
        self.sessions = Sessions(link)
        self.runs = Runs(link)
        self.agents = Agents(self._link)
        self.events = Events(link)
        self.usage = Usage(self._link)
        self.audit = Audit(self._link)
        self.approvals = Approvals(link)
        self.maintenance = Maintenance(self._link)

    def run_once(
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

        ``timeout_s`` None waits as long as the run takes. When it passes, or the caller is interrupted, the
        run goes on (its ids are in the error's details). The result's events are those of the session.

        Raises:
            MeshError: the run's error, or why it could not start; run and session are then failed.
        """
        check_plain(on_event, "on_event")
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
        result: RunResult = self._link.drive(
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

    def listen(self, *topics: str, after: str | None = None, timeout_s: float | None = None) -> Listener:
        """Follow the feed: each message of these topics (prefixes; none is everything) once and in order.

        Returns when the subscription is live in every partition. ``after`` is a notification's cursor: go
        on behind it. The listener is an iterator; ``close``, from any thread, ends it.

        Raises:
            InvalidArgument: ``invalid_cursor``, not a cursor, or history that is no longer kept.
        """
        return Listener.open(self._link, topics, after, timeout_s)

    def status(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        """The router's account of the node: endpoints, children, partitions, runners, counters."""
        status: dict[str, Any] = self._link.drive(plans.status(), timeout_s)
        return status

    def ping(self, *, timeout_s: float | None = None) -> float:
        """Seconds to the router and back."""
        began_s = monotonic()
        status, value = self._link.control(PING, 0, timeout_s)
        if status:
            raise failure(value)
        return monotonic() - began_s

    def backup(self, folder: str, *, timeout_s: float | None = None) -> list[str]:
        """Have every partition write a consistent copy of its store to a folder on the node's machine."""
        files: list[str] = self._link.drive(plans.backup(folder, timeout_s), timeout_s)
        return files

    def restart_runner(self, index: int, *, timeout_s: float | None = None) -> None:
        """Have the supervisor restart a runner, also one that is down. What it executes is cancelled.

        Returns when the request was passed on.
        """
        self._link.drive(plans.restart_runner(index), timeout_s)

    def drain(self, *, timeout_s: float | None = None) -> None:
        """Return when every partition was seen with no run executing or waiting. New work is not refused.

        Raises:
            DeadlineExceeded: there still was some, by default after 60 s; ``details`` count it.
        """
        self._link.drive(prompt_plans.drain_node(timeout_s), timeout_s)

    def close(self) -> None:
        """Close the connection; calls that are waiting end with ``client_closed``. Idempotent."""
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


__all__ = ["Client"]
