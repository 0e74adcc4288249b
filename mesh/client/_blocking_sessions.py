"""The blocking group ``sessions``. Every rule is in the plans; see there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from mesh.client import _surface_prompts as prompt_plans
from mesh.client import _surface_sessions as plans
from mesh.client._blocking_attach import Attaching
from mesh.client._blocking_link import BlockingLink
from mesh.client._blocking_queries import StoredSessions
from mesh.client._blocking_transcripts import Transcripts
from mesh.client._payload import Call
from mesh.client._protocol import READ, WRITE
from mesh.client._surface import check_function, failure
from mesh.core.records import Event, Handle, Page, Prompted, QueuedPrompt, Run, Session


class Sessions(StoredSessions, Transcripts, Attaching):
    """Conversations: stored with their log, live while an actor hosts them."""

    def __init__(self, link: BlockingLink) -> None:
        self._link = link

    def _one(self, kind: int, placed: tuple[int, Call], timeout_s: float | None) -> Any:
        status, value = self._link.call(kind, placed[0], placed[1], timeout_s)
        if status:
            raise failure(value)
        return value

    def _verb(self, name: str, id: str, if_version: int | None, timeout_s: float | None) -> Session:
        placed = plans.session_call(f"session.{name}", id, if_version)
        return Session.from_map(self._one(WRITE, placed, timeout_s))

    def create(
        self,
        agent: str,
        *,
        id: str | None = None,
        agent_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        parent_session_id: str | None = None,
        slots: int | None = None,
        token: str | None = None,
        timeout_s: float | None = None,
    ) -> Session:
        """Store a new session, ``pending``. With a ``token`` (``mesh.new_token()``) it opens to that alone.

        Raises:
            NotFound: ``unknown_agent``.
            InvalidState: ``already_exists``.
        """
        given = plans.fields(agent_id, context, metadata, tags, parent_session_id, slots, token)
        return Session.from_map(
            self._one(WRITE, plans.new_session_call("session.create", agent, id, given), timeout_s)
        )

    def start(
        self,
        agent: str,
        *,
        id: str | None = None,
        agent_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        parent_session_id: str | None = None,
        slots: int | None = None,
        token: str | None = None,
        timeout_s: float | None = None,
    ) -> Session:
        """Create a session and bring up its live actor: ``active``, with a handle.

        Raises:
            Unavailable: the agent cannot start; the message says why.
        """
        given = plans.fields(agent_id, context, metadata, tags, parent_session_id, slots, token)
        return Session.from_map(
            self._one(WRITE, plans.new_session_call("session.start", agent, id, given), timeout_s)
        )

    def start_or_get(
        self,
        id: str,
        agent: str,
        *,
        agent_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        parent_session_id: str | None = None,
        slots: int | None = None,
        token: str | None = None,
        timeout_s: float | None = None,
    ) -> Session:
        """The session of that id, live; started when there is none. An existing one keeps its options."""
        given = plans.fields(agent_id, context, metadata, tags, parent_session_id, slots, token)
        return Session.from_map(
            self._one(WRITE, plans.new_session_call("session.start_or_get", agent, id, given), timeout_s)
        )

    def activate(
        self, id: str, *, if_version: int | None = None, timeout_s: float | None = None
    ) -> Session:
        """Make a pending session active and bring up its live actor."""
        return self._verb("activate", id, if_version, timeout_s)

    def pause(
        self, id: str, *, if_version: int | None = None, timeout_s: float | None = None
    ) -> Session:
        """Refuse new prompts until ``resume``; what runs goes on."""
        return self._verb("pause", id, if_version, timeout_s)

    def resume(
        self, id: str, *, if_version: int | None = None, timeout_s: float | None = None
    ) -> Session:
        """Make a paused session active again, live, with its transcript."""
        return self._verb("resume", id, if_version, timeout_s)

    def complete(
        self, id: str, *, if_version: int | None = None, timeout_s: float | None = None
    ) -> Session:
        """End a session for good. Refused (``invalid_transition``) while it has a run."""
        return self._verb("complete", id, if_version, timeout_s)

    def cancel(
        self, id: str, *, if_version: int | None = None, timeout_s: float | None = None
    ) -> Session:
        """Cancel its runs and end it for good; returns when they are settled."""
        return self._verb("cancel", id, if_version, plans.settle_limit(self._link, timeout_s))

    def fail(
        self, id: str, error: str | Mapping[str, Any] | BaseException, *, if_version: int | None = None,
        timeout_s: float | None = None
    ) -> Session:
        """Cancel its runs and end it for good as failed, with this error."""
        placed = plans.session_call("session.fail", id, plans.error_form(error), if_version)
        return Session.from_map(self._one(WRITE, placed, plans.settle_limit(self._link, timeout_s)))

    def stop(self, id: str, *, if_version: int | None = None, timeout_s: float | None = None) -> None:
        """End the live actor; work in flight is cancelled, the session is left ``paused``.

        Raises:
            NotFound: it is not live.
        """
        placed = plans.session_call("session.stop", id, None, if_version)
        self._one(WRITE, placed, plans.settle_limit(self._link, timeout_s))

    def abort(self, id: str, *, if_version: int | None = None, timeout_s: float | None = None) -> int:
        """Cancel its runs and keep the session; returns how many there were, when they are settled."""
        placed = plans.session_call("session.abort", id, if_version)
        count: int = self._one(WRITE, placed, plans.settle_limit(self._link, timeout_s))
        return count

    def prompt(
        self,
        id: str,
        text: str,
        *,
        queue: str = "follow_up",
        on_busy: str = "enqueue",
        timeout_s: float | None = None,
    ) -> Prompted:
        """Say something to a session; the prompt is a run. Does not wait: follow it with ``stream`` or
        ``runs.wait``.

        While the session is busy, ``on_busy`` decides. ``enqueue``: a ``follow_up`` waits for its turn; a
        ``steering`` prompt goes into the run that executes when its agent takes it, and is the next turn,
        joined with the others of its kind, when none did. ``reject``: ``session_busy``. ``interrupt`` and
        ``rollback``: what executes is cancelled, and this is the next turn; after a rollback the transcript
        has nothing of what was cancelled.

        Raises:
            InvalidState: ``session_busy``, ``session_paused``, ``session_closed``, ``session_not_active``.
            Overloaded: ``max_runs_exceeded``, or ``queue_full`` when too many steer.
        """
        placed = prompt_plans.prompt_call(id, text, queue, on_busy)
        return prompt_plans.prompted(self._one(WRITE, placed, timeout_s))

    def queued(self, id: str, *, timeout_s: float | None = None) -> Sequence[QueuedPrompt]:
        """The prompts that wait, the steering ones first; they go on waiting."""
        placed = plans.session_call("session.queued", id)
        return prompt_plans.queued_prompts(self._one(READ, placed, timeout_s))

    def recall(self, id: str, *, timeout_s: float | None = None) -> Sequence[QueuedPrompt]:
        """Take back the prompts that wait: they are cancelled, and returned for the user to edit."""
        placed = plans.session_call("session.recall", id)
        return prompt_plans.queued_prompts(self._one(WRITE, placed, timeout_s))

    def clear(self, id: str, *, timeout_s: float | None = None) -> int:
        """Cancel the prompts that wait; how many there were."""
        count: int = self._one(WRITE, plans.session_call("session.clear", id), timeout_s)
        return count

    def interrupt(
        self, id: str, *, if_version: int | None = None, timeout_s: float | None = None
    ) -> Sequence[str]:
        """Cancel what executes, keep what waits; the runs' ids, when they are settled."""
        ids: Sequence[str] = self._link.drive(
            prompt_plans.interrupt_session(self._link, id, if_version, timeout_s), timeout_s
        )
        return ids

    def drain(self, id: str, *, timeout_s: float | None = None) -> None:
        """Return when the session has nothing to do, running or waiting. New work is not refused meanwhile.

        Raises:
            DeadlineExceeded: it still had, by default after 60 s; ``details`` count it.
        """
        self._link.drive(prompt_plans.drain_session(id, timeout_s), timeout_s)

    def get(self, id: str, *, timeout_s: float | None = None) -> Session:
        """The session as stored, and its handle when it is live.

        Raises:
            NotFound: ``session_not_found``.
        """
        return Session.from_map(self._one(READ, plans.session_call("session.get", id), timeout_s))

    def list(
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
        page: Page[Session] = self._link.drive(
            plans.list_sessions(status, agent_id, tags, limit=limit, cursor=cursor, timeout_s=timeout_s),
            timeout_s,
        )
        return page

    def handle(self, id: str, *, timeout_s: float | None = None) -> Handle:
        """The address of the live session.

        Raises:
            NotFound: it is not live.
        """
        return Handle(*self._one(READ, plans.session_call("session.handle", id), timeout_s))

    def id_of(self, handle: Handle | Mapping[str, Any], *, timeout_s: float | None = None) -> str:
        """The session of a handle.

        Raises:
            NotFound: that incarnation is not the live one.
        """
        sid, *more = plans.handle_fields(plans.handle_of(handle))
        found: str = self._one(READ, plans.session_call("session.id_of", sid, *more), timeout_s)
        return found

    def stop_by_handle(self, handle: Handle | Mapping[str, Any], *, timeout_s: float | None = None) -> None:
        """Stop exactly this incarnation.

        Raises:
            NotFound: it is not the live one; nothing was stopped.
        """
        known = plans.handle_of(handle)
        placed = plans.session_call("session.stop", known.session_id, plans.handle_fields(known))
        self._one(WRITE, placed, plans.settle_limit(self._link, timeout_s))

    def runs(self, id: str, *, timeout_s: float | None = None) -> Sequence[Run]:
        """All its runs, oldest first."""
        runs: Sequence[Run] = self._link.drive(plans.session_runs(id, timeout_s), timeout_s)
        return runs

    def events(
        self,
        id: str,
        *,
        run_id: str | None = None,
        type: str | Sequence[str] | None = None,
        since: float | datetime | None = None,
        until: float | datetime | None = None,
        after: int | None = None,
        before: int | None = None,
        limit: int | None = None,
        timeout_s: float | None = None,
    ) -> Sequence[Event]:
        """The log: filters combine with AND; ``after`` and ``before`` are seqs, exclusive; ``since`` and
        ``until`` are times, inclusive; limit comes last.

        All of it is fetched, in pages; ``timeout_s`` holds for each page.
        """
        filters = plans.event_filters(
            run_id=run_id, type=type, since=since, until=until, after=after, before=before, limit=limit
        )
        events: Sequence[Event] = self._link.drive(plans.session_events(id, filters, timeout_s), timeout_s)
        return events

    def stream(
        self,
        id: str,
        *,
        after: int = 0,
        run_id: str | None = None,
        type: str | Sequence[str] | None = None,
        stop_when: Callable[[Event], bool] | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Event]:
        """Follow the log, live and without end: each event once, in order, over restarts of anything.

        Ends behind the first event for which ``stop_when`` is true. ``timeout_s`` is the longest silence
        (None: any); then ``timeout`` is raised.
        """
        check_function(stop_when, "stop_when")
        follower = plans.EventStream(id, after, run_id, type, timeout_s)
        while True:
            for event in self._link.drive(follower.page()):
                yield event
                if stop_when is not None and stop_when(event):
                    return


__all__ = ["Sessions"]
