"""Records that sum up: statistics of a session, usage, what maintenance did and found, who did what."""

from __future__ import annotations

from typing import Any

from mesh.core.records import Record


class SessionStats(Record, frozen=True):
    """What a session's log and runs add up to. ``first_seq`` is None when no event is kept; what is missing
    up to ``pruned_to`` was removed by retention, ``pruned`` events in all."""

    session_id: str
    event_count: int
    run_count: int
    token_totals: dict[str, int]
    providers_used: tuple[str, ...]
    first_event_at: float | None
    last_event_at: float | None
    status_counts: dict[str, int]
    first_seq: int | None = None
    last_seq: int = 0
    pruned: int = 0
    pruned_to: int = 0


class UsageTotals(Record, frozen=True):
    """Sums over some runs. ``cost_usd`` is what is known; ``unmapped_runs`` used tokens at a price that
    nobody knows."""

    run_count: int = 0
    token_totals: dict[str, int] = {}
    cost_usd: float = 0.0
    priced_runs: int = 0
    unmapped_runs: int = 0


class UsageSummary(Record, frozen=True):
    """Usage and cost, in all and by provider, model (``provider/model``) and status."""

    totals: UsageTotals
    by_provider: dict[str, UsageTotals]
    by_model: dict[str, UsageTotals]
    by_status: dict[str, int]


class AuditEntry(Record, frozen=True):
    """A control call and how it ended. ``client`` is the id of the connection that made it, in hex; None when
    the node did it by itself. ``outcome`` is ok, or the code of the error."""

    id: str
    ts: float
    client: str | None
    op: str
    target: str
    outcome: str


class Problem(Record, frozen=True):
    """What does not fit together. ``kind``: damaged, orphan_run, orphan_event, wrong_log (an event cannot be
    found by its session), hole (events that are missing and that retention did not remove), lost_run (it says
    that it executes, and nobody works on it)."""

    partition: int
    kind: str
    subject: str
    text: str


class CheckReport(Record, frozen=True):
    """What a check found; ``missing`` partitions did not answer. Not ``complete``: there are more."""

    problems: tuple[Problem, ...] = ()
    complete: bool = True
    missing: tuple[int, ...] = ()


class MaintenanceReport(Record, frozen=True):
    """What a sweep of retention did, over all partitions. ``missing`` partitions did not answer."""

    sessions_soft_deleted: int = 0
    sessions_hard_deleted: int = 0
    sessions_removed: int = 0
    events_pruned: int = 0
    events_removed: int = 0
    imports_given_up: int = 0
    duration_ms: int = 0
    errors: tuple[str, ...] = ()
    missing: tuple[int, ...] = ()


def swept(reports: dict[int, dict[str, Any]], missing: list[int]) -> MaintenanceReport:
    """Add up the reports of the partitions."""
    names = [name for name in MaintenanceReport.__struct_fields__ if name not in _NOT_SUMS]
    sums = {name: sum(report.get(name, 0) for report in reports.values()) for name in names}
    errors = [f"partition {p}: {error}" for p, report in reports.items() for error in report["errors"]]
    longest_ms = max((report["duration_ms"] for report in reports.values()), default=0)
    return MaintenanceReport(**sums, duration_ms=longest_ms, errors=tuple(errors), missing=tuple(missing))


_NOT_SUMS = ("duration_ms", "errors", "missing")


def summed(rows: list[list[Any]]) -> UsageSummary:
    """Add up the rows of ``usage.summary``: provider, model, status, runs, runs with a cost, cost, counts."""
    totals: list[list[Any]] = []
    by_provider: dict[str, list[list[Any]]] = {}
    by_model: dict[str, list[list[Any]]] = {}
    by_status: dict[str, int] = {}
    for row in rows:
        provider, model, status, *numbers = row
        name = provider or "unknown"
        totals.append(numbers)
        by_provider.setdefault(name, []).append(numbers)
        by_model.setdefault(f"{name}/{model or 'unknown'}", []).append(numbers)
        by_status[status] = by_status.get(status, 0) + numbers[0]
    return UsageSummary(
        _total(totals), {name: _total(some) for name, some in sorted(by_provider.items())},
        {name: _total(some) for name, some in sorted(by_model.items())}, by_status,
    )


def _total(rows: list[list[Any]]) -> UsageTotals:
    counts: dict[str, int] = {}
    runs = priced = unmapped = 0
    cost = 0.0
    for count, with_cost, spent, usage in rows:
        runs, priced, cost = runs + count, priced + with_cost, cost + spent
        if usage:
            unmapped += count - with_cost
        for name, number in usage.items():
            counts[name] = counts.get(name, 0) + number
    return UsageTotals(runs, counts, cost, priced, unmapped)


__all__ = [
    "AuditEntry", "CheckReport", "MaintenanceReport", "Problem", "SessionStats", "UsageSummary",
    "UsageTotals", "summed", "swept",
]
