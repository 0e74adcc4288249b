"""The asyncio groups that find and keep: stored sessions and runs, ``events`` and ``usage``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from os import PathLike

from mesh.client import _surface_export as exports
from mesh.client import _surface_queries as plans
from mesh.client._aio_link import AsyncLink
from mesh.client._protocol import WRITE
from mesh.client._surface import failure
from mesh.client._surface_sessions import session_call
from mesh.core.records import Event, Page, Run, Session
from mesh.core.reports import AuditEntry, CheckReport, MaintenanceReport, SessionStats, UsageSummary

Time = float | datetime
Some = str | Sequence[str]


class AsyncStoredSessions:
    """What ``client.sessions`` knows of stored sessions: finding them, and what they add up to."""

    _link: AsyncLink

    async def search(
        self,
        *,
        agent_id: str | None = None,
        status: Some | None = None,
        provider: str | None = None,
        tags: Sequence[str] | None = None,
        created_after: Time | None = None,
        created_before: Time | None = None,
        include_deleted: bool = False,
        order: str = "updated_at_desc",
        limit: int = 50,
        cursor: str | None = None,
        timeout_s: float | None = None,
    ) -> Page[Session]:
        """Sessions that match all filters, over all partitions; go on with the page's ``cursor`` until None.

        ``order``: updated_at_desc, updated_at_asc, created_at_asc, created_at_desc. A page may be shorter
        than ``limit`` and still have a cursor: then the time was over before enough were found.

        Raises:
            InvalidArgument: ``validation_error``, ``invalid_status``, ``invalid_cursor``.
        """
        filters = {
            "agent_id": agent_id, "status": status, "provider": provider, "tags": tags,
            "created_after": created_after, "created_before": created_before,
            "include_deleted": include_deleted,
        }
        page: Page[Session] = await self._link.drive(
            plans.search(self._link, "sessions", filters, order, limit, cursor, timeout_s), timeout_s
        )
        return page

    async def stats(self, id: str, *, timeout_s: float | None = None) -> SessionStats:
        """What its log and its runs add up to.

        Raises:
            NotFound: ``session_not_found``.
        """
        stats: SessionStats = await self._link.drive(
            plans.session_stats(self._link, id, timeout_s), timeout_s
        )
        return stats


    async def delete(self, id: str, *, hard: bool = False, timeout_s: float | None = None) -> bool:
        """Hide a session from lists and searches until ``undelete``; ``hard`` forgets it and its runs.

        Returns whether it was there. What was hidden is forgotten after ``retention.hard_delete_after_days``.
        After a hard delete the id is free; the rows go in the background.

        Raises:
            InvalidState: ``session_busy``, it is live or has a run: stop it first.
        """
        placed = session_call("session.delete", id, bool(hard))
        status, value = await self._link.call(WRITE, placed[0], placed[1], timeout_s)
        if status:
            raise failure(value)
        return bool(value)

    async def undelete(self, id: str, *, timeout_s: float | None = None) -> Session:
        """Take back a soft delete; nothing happens to a session that is not deleted.

        Raises:
            NotFound: ``session_not_found``, it was deleted hard, or never there.
        """
        placed = session_call("session.undelete", id)
        status, value = await self._link.call(WRITE, placed[0], placed[1], timeout_s)
        if status:
            raise failure(value)
        return Session.from_map(value)


    async def export(self, id: str, *, timeout_s: float | None = None) -> AsyncIterator[str]:
        """The session as JSON lines: itself, its runs, its events, an end; in pages, however long its log is.

        What is appended meanwhile is left out. ``timeout_s`` holds for each page.

        Raises:
            NotFound: ``session_not_found``.
        """
        exporter = exports.Export(id, timeout_s)
        while not exporter.done:
            for line in await self._link.drive(exporter.page(), timeout_s):
                yield line

    async def import_(
        self,
        lines: Iterable[str] | str | PathLike[str],
        *,
        new_id: str | bool | None = None,
        timeout_s: float | None = None,
    ) -> Session:
        """Take in an export: its lines, or the path of a file of them. It appears whole, or not at all.

        ``new_id``: another id, or True for a new one; runs get new ids too then. A run that executed when it
        was exported is failed (``outcome_unknown``). An import that was cut off may simply be repeated.

        Raises:
            InvalidState: ``already_exists``, there is a session of that id.
            InvalidArgument: ``validation_error``, names the line that is wrong.
        """
        plan = exports.import_session(lines, new_id, timeout_s)
        session: Session = await self._link.drive(plan, timeout_s)
        return session


class AsyncStoredRuns:
    """What ``client.runs`` knows of stored runs."""

    _link: AsyncLink

    async def search(
        self,
        *,
        session_id: str | None = None,
        provider: str | None = None,
        status: Some | None = None,
        started_after: Time | None = None,
        started_before: Time | None = None,
        min_tokens: int | None = None,
        order: str = "started_at_desc",
        limit: int = 50,
        cursor: str | None = None,
        timeout_s: float | None = None,
    ) -> Page[Run]:
        """Runs that match all filters. ``order``: started_at_desc, started_at_asc, token_usage_desc.

        A run that has not started counts as of its creation.

        Raises:
            InvalidArgument: ``validation_error``, ``invalid_status``, ``invalid_cursor``.
            DeadlineExceeded: ``token_usage_desc`` looks at every run, and there was no time for that.
        """
        filters = {
            "session_id": session_id, "provider": provider, "status": status, "min_tokens": min_tokens,
            "started_after": started_after, "started_before": started_before,
        }
        page: Page[Run] = await self._link.drive(
            plans.search(self._link, "runs", filters, order, limit, cursor, timeout_s), timeout_s
        )
        return page


class AsyncEvents:
    """The logs of all sessions together."""

    def __init__(self, link: AsyncLink) -> None:
        self._link = link

    async def search(
        self,
        *,
        session_ids: Some | None = None,
        run_ids: Some | None = None,
        types: Some | None = None,
        providers: Some | None = None,
        since: Time | None = None,
        until: Time | None = None,
        correlation_id: str | None = None,
        order: str = "sequence_asc",
        limit: int = 100,
        cursor: str | None = None,
        timeout_s: float | None = None,
    ) -> Page[Event]:
        """Events that match all filters; ``since`` and ``until`` are inclusive.

        ``order``: sequence_asc (named sessions or runs one after another, else as they were stored),
        timestamp_asc, timestamp_desc. The last two look at everything: name sessions, or give them time.

        Raises:
            InvalidArgument: ``validation_error``, ``invalid_event_type``, ``invalid_cursor``.
            DeadlineExceeded: an order by time, and not everything could be looked at.
        """
        filters = {
            "session_ids": session_ids, "run_ids": run_ids, "types": types, "providers": providers,
            "since": since, "until": until, "correlation_id": correlation_id,
        }
        page: Page[Event] = await self._link.drive(
            plans.search(self._link, "events", filters, order, limit, cursor, timeout_s), timeout_s
        )
        return page

    async def count(
        self,
        *,
        session_ids: Some | None = None,
        run_ids: Some | None = None,
        types: Some | None = None,
        providers: Some | None = None,
        since: Time | None = None,
        until: Time | None = None,
        correlation_id: str | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """How many events match all filters. Looks at each of them: ``timeout`` when time is short."""
        filters = {
            "session_ids": session_ids, "run_ids": run_ids, "types": types, "providers": providers,
            "since": since, "until": until, "correlation_id": correlation_id,
        }
        number: int = await self._link.drive(plans.count_events(self._link, filters, timeout_s), timeout_s)
        return number


class AsyncUsage:
    """What the runs used and cost."""

    def __init__(self, link: AsyncLink) -> None:
        self._link = link

    async def summary(
        self,
        *,
        session_id: str | None = None,
        agent_id: str | None = None,
        provider: str | None = None,
        since: Time | None = None,
        until: Time | None = None,
        timeout_s: float | None = None,
    ) -> UsageSummary:
        """Tokens and cost of the runs that match, in all and by provider, model and status.

        ``since`` and ``until`` are about the start of a run. Runs that used tokens at an unknown price are
        counted in ``unmapped_runs``, not guessed.

        Raises:
            NotFound: ``session_not_found``.
            DeadlineExceeded: not everything could be added up in time.
        """
        filters = {
            "session_id": session_id, "agent_id": agent_id, "provider": provider, "since": since,
            "until": until,
        }
        summary: UsageSummary = await self._link.drive(
            plans.usage_summary(self._link, filters, timeout_s), timeout_s
        )
        return summary

    async def spent(
        self, *, session_id: str | None = None, tag: str | None = None, timeout_s: float | None = None
    ) -> dict[str, float]:
        """What limits over a session or a tag are held against: metric -> what its runs used, and hold now.

        Raises:
            NotFound: ``session_not_found``.
            Unavailable: of a tag, when a partition does not answer: the others do not know all of it.
        """
        sums: dict[str, float] = await self._link.drive(plans.spent(session_id, tag, timeout_s), timeout_s)
        return sums


class AsyncMaintenance:
    """What the node does to stay small and sound."""

    def __init__(self, link: AsyncLink) -> None:
        self._link = link

    async def run(self, *, timeout_s: float | None = None) -> MaintenanceReport:
        """Do now what ``[retention]`` does in the background, and wait for it, an hour at most by default."""
        report: MaintenanceReport = await self._link.drive(plans.maintenance_run(timeout_s), timeout_s)
        return report

    async def check(self, *, timeout_s: float | None = None) -> CheckReport:
        """Look at everything that is stored, window by window, while the node serves: does it fit together?

        Raises:
            DeadlineExceeded: not everything could be looked at in time; an hour by default.
        """
        report: CheckReport = await self._link.drive(plans.maintenance_check(timeout_s), timeout_s)
        return report


class AsyncAudit:
    """Who did what: control calls, with their outcome."""

    def __init__(self, link: AsyncLink) -> None:
        self._link = link

    async def list(
        self,
        *,
        op: str | None = None,
        target: str | None = None,
        client: str | None = None,
        outcome: str | None = None,
        since: Time | None = None,
        until: Time | None = None,
        limit: int = 100,
        cursor: str | None = None,
        timeout_s: float | None = None,
    ) -> Page[AuditEntry]:
        """Entries that match all filters, newest first.

        Raises:
            InvalidArgument: ``validation_error``, ``invalid_cursor``.
        """
        filters = {
            "op": op, "target": target, "client": client, "outcome": outcome, "since": since, "until": until,
        }
        page: Page[AuditEntry] = await self._link.drive(
            plans.search(self._link, "audit", filters, "newest_first", limit, cursor, timeout_s), timeout_s
        )
        return page


__all__ = [
    "AsyncAudit", "AsyncEvents", "AsyncMaintenance", "AsyncStoredRuns", "AsyncStoredSessions", "AsyncUsage",
]
