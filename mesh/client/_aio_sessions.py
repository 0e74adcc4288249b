"""The asyncio groups ``sessions`` and ``runs``. Every rule is in the plans; see there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from mesh.client import _surface_runs as run_plans
from mesh.client import _surface_sessions as plans
from mesh.client._aio_link import AsyncLink
from mesh.client._payload import Call
from mesh.client._protocol import READ, WRITE
from mesh.client._surface import check_function, failure
from mesh.core.records import Event, Handle, Page, Prompted, Run, RunResult, Session


class AsyncSessions:
    """Conversations: stored with their log, live while an actor hosts them."""

    def __init__(self, link: AsyncLink) -> None:
        self._link = link

    async def _one(self, kind: int, placed: tuple[int, Call], timeout_s: float | None) -> Any:
        status, value = await self._link.call(kind, placed[0], placed[1], timeout_s)
        if status:
            raise failure(value)
        return value

    async def create(
        self,
        agent: str,
        *,
        id: str | None = None,
        agent_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        parent_session_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Session:
        """Store a new session, ``pending``.

        Raises:
            NotFound: ``unknown_agent``.
            InvalidState: ``already_exists``.
        """
        given = plans.fields(agent_id, context, metadata, tags, parent_session_id)
        return Session.from_map(
            await self._one(WRITE, plans.new_session_call("session.create", agent, id, given), timeout_s)
        )

    async def start(
        self,
        agent: str,
        *,
        id: str | None = None,
        agent_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        parent_session_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Session:
        """Create a session and bring up its live actor: ``active``, with a handle.

        Raises:
            Unavailable: the agent cannot start; the message says why.
        """
        given = plans.fields(agent_id, context, metadata, tags, parent_session_id)
        return Session.from_map(
            await self._one(WRITE, plans.new_session_call("session.start", agent, id, given), timeout_s)
        )

    async def start_or_get(
        self,
        id: str,
        agent: str,
        *,
        agent_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        parent_session_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Session:
        """The session of that id, live; started when there is none. An existing one keeps its options."""
        given = plans.fields(agent_id, context, metadata, tags, parent_session_id)
        return Session.from_map(
            await self._one(
                WRITE, plans.new_session_call("session.start_or_get", agent, id, given), timeout_s
            )
        )

    async def activate(self, id: str, *, timeout_s: float | None = None) -> Session:
        """Make a pending session active and bring up its live actor."""
        return Session.from_map(await self._one(WRITE, plans.session_call("session.activate", id), timeout_s))

    async def pause(self, id: str, *, timeout_s: float | None = None) -> Session:
        """Refuse new prompts until ``resume``; what runs goes on."""
        return Session.from_map(await self._one(WRITE, plans.session_call("session.pause", id), timeout_s))

    async def resume(self, id: str, *, timeout_s: float | None = None) -> Session:
        """Make a paused session active again, live, with its transcript."""
        return Session.from_map(await self._one(WRITE, plans.session_call("session.resume", id), timeout_s))

    async def complete(self, id: str, *, timeout_s: float | None = None) -> Session:
        """End a session for good. Refused (``invalid_transition``) while it has a run."""
        return Session.from_map(await self._one(WRITE, plans.session_call("session.complete", id), timeout_s))

    async def cancel(self, id: str, *, timeout_s: float | None = None) -> Session:
        """Cancel its runs and end it for good; returns when they are settled."""
        placed = plans.session_call("session.cancel", id)
        return Session.from_map(await self._one(WRITE, placed, plans.settle_limit(self._link, timeout_s)))

    async def fail(
        self, id: str, error: str | Mapping[str, Any] | BaseException, *, timeout_s: float | None = None
    ) -> Session:
        """Cancel its runs and end it for good as failed, with this error."""
        placed = plans.session_call("session.fail", id, plans.error_form(error))
        return Session.from_map(await self._one(WRITE, placed, plans.settle_limit(self._link, timeout_s)))

    async def stop(self, id: str, *, timeout_s: float | None = None) -> None:
        """End the live actor; work in flight is cancelled, the session is left ``paused``.

        Raises:
            NotFound: it is not live.
        """
        await self._one(
            WRITE, plans.session_call("session.stop", id), plans.settle_limit(self._link, timeout_s)
        )

    async def abort(self, id: str, *, timeout_s: float | None = None) -> int:
        """Cancel its runs and keep the session; returns how many there were, when they are settled."""
        placed = plans.session_call("session.abort", id)
        count: int = await self._one(WRITE, placed, plans.settle_limit(self._link, timeout_s))
        return count

    async def prompt(
        self, id: str, text: str, *, queue: str = "follow_up", timeout_s: float | None = None
    ) -> Prompted:
        """Submit a text as a run. Does not wait: follow it with ``stream`` or ``runs.wait``.

        Raises:
            InvalidState: ``session_paused``, ``session_closed``, ``session_not_active``.
            Overloaded: ``queue_full``.
        """
        run_id, queued = await self._one(WRITE, plans.prompt_call(id, text, queue), timeout_s)
        return Prompted(run_id, queued)

    async def get(self, id: str, *, timeout_s: float | None = None) -> Session:
        """The session as stored, and its handle when it is live.

        Raises:
            NotFound: ``session_not_found``.
        """
        return Session.from_map(await self._one(READ, plans.session_call("session.get", id), timeout_s))

    async def list(
        self,
        status: str | None = None,
        agent_id: str | None = None,
        tags: Sequence[str] | None = None,
        limit: int = 100,
        cursor: str | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Page[Session]:
        """Sessions of all partitions by creation; go on with the page's ``cursor`` until it is None."""
        page: Page[Session] = await self._link.drive(
            plans.list_sessions(status, agent_id, tags, limit=limit, cursor=cursor, timeout_s=timeout_s),
            timeout_s,
        )
        return page

    async def handle(self, id: str, *, timeout_s: float | None = None) -> Handle:
        """The address of the live session.

        Raises:
            NotFound: it is not live.
        """
        return Handle(*await self._one(READ, plans.session_call("session.handle", id), timeout_s))

    async def id_of(self, handle: Handle | Mapping[str, Any], *, timeout_s: float | None = None) -> str:
        """The session of a handle.

        Raises:
            NotFound: that incarnation is not the live one.
        """
        sid, *more = plans.handle_fields(plans.handle_of(handle))
        found: str = await self._one(READ, plans.session_call("session.id_of", sid, *more), timeout_s)
        return found

    async def stop_by_handle(
        self, handle: Handle | Mapping[str, Any], *, timeout_s: float | None = None
    ) -> None:
        """Stop exactly this incarnation.

        Raises:
            NotFound: it is not the live one; nothing was stopped.
        """
        known = plans.handle_of(handle)
        placed = plans.session_call("session.stop", known.session_id, plans.handle_fields(known))
        await self._one(WRITE, placed, plans.settle_limit(self._link, timeout_s))

    async def runs(self, id: str, *, timeout_s: float | None = None) -> Sequence[Run]:
        """All its runs, oldest first."""
        runs: Sequence[Run] = await self._link.drive(plans.session_runs(id, timeout_s), timeout_s)
        return runs

    async def events(
        self,
        id: str,
        *,
        run_id: str | None = None,
        type: str | Sequence[str] | None = None,
        since: float | datetime | None = None,
        after: int | None = None,
        before: int | None = None,
        limit: int | None = None,
        timeout_s: float | None = None,
    ) -> Sequence[Event]:
        """The log: filters combine with AND; ``after`` and ``before`` are seqs, exclusive; limit comes last.

        All of it is fetched, in pages; ``timeout_s`` holds for each page.
        """
        filters = plans.event_filters(
            run_id=run_id, type=type, since=since, after=after, before=before, limit=limit
        )
        events: Sequence[Event] = await self._link.drive(
            plans.session_events(id, filters, timeout_s), timeout_s
        )
        return events

    async def stream(
        self,
        id: str,
        *,
        after: int = 0,
        run_id: str | None = None,
        type: str | Sequence[str] | None = None,
        stop_when: Callable[[Event], bool] | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Event]:
        """Follow the log, live and without end: each event once, in order, over restarts of anything.

        Ends behind the first event for which ``stop_when`` is true. ``timeout_s`` is the longest silence
        (None: any); then ``timeout`` is raised.
        """
        check_function(stop_when, "stop_when")
        follower = plans.EventStream(id, after, run_id, type, timeout_s)
        while True:
            for event in await self._link.drive(follower.page()):
                yield event
                if stop_when is not None and stop_when(event):
                    return


class AsyncRuns:
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
        continuation: Any = False,
        continuation_opts: Any = None,
        provider_opts: Mapping[str, Any] | None = None,
        policy: Any = None,
        policies: Any = None,
        workspace: Any = None,
        deadline_s: float | None = None,
        timeout_s: float | None = None,
    ) -> RunResult:
        """Start a pending run and wait for its end.

        ``on_event`` gets its events live and in order; what it raises ends the following, not the run.
        ``deadline_s`` is the run's own limit, kept by the node. ``timeout_s`` None waits as long as it
        takes; when it passes (or the caller is cancelled) the run goes on.

        Raises:
            MeshError: the run's error (``cancelled``, ``timeout``, ``provider_error`` ...), details name it.
        """
        options = plans.execute_options(
            continuation=continuation,
            continuation_opts=continuation_opts,
            provider_opts=provider_opts,
            policy=policy,
            policies=policies,
            workspace=workspace,
            deadline_s=deadline_s,
        )
        result: RunResult = await self._link.drive(
            run_plans.execute(self._link, run_id, options, on_event, timeout_s), timeout_s
        )
        return result

    async def submit(
        self,
        session_id: str,
        input: str | Mapping[str, Any],
        *,
        required_capabilities: Sequence[str] = (),
        optional_capabilities: Sequence[str] = (),
        continuation: Any = False,
        continuation_opts: Any = None,
        provider_opts: Mapping[str, Any] | None = None,
        policy: Any = None,
        policies: Any = None,
        workspace: Any = None,
        deadline_s: float | None = None,
        timeout_s: float | None = None,
    ) -> Run:
        """Create and dispatch in one step: queued or running. Does not wait for its end."""
        options = plans.create_options(required_capabilities, optional_capabilities) | plans.execute_options(
            continuation=continuation,
            continuation_opts=continuation_opts,
            provider_opts=provider_opts,
            policy=policy,
            policies=policies,
            workspace=workspace,
            deadline_s=deadline_s,
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

    async def cancel(self, run_id: str, *, timeout_s: float | None = None) -> str:
        """Cancel a run; returns its id when it is settled and its processes are gone."""
        placed = plans.run_call("run.cancel", run_id)
        found: str = await self._one(WRITE, placed, plans.settle_limit(self._link, timeout_s))
        return found


__all__ = ["AsyncRuns", "AsyncSessions"]
