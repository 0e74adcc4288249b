"""``mesh search`` and ``mesh usage``: finding sessions, runs and events, and what they used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from mesh.cli import render, values
from mesh.cli.app import command, group, shell


def _options(*names: tuple[str, str]) -> Callable[[Any], Any]:
    """Decorator: text filters, with their help."""

    def add(function: Any) -> Any:
        for name, text in reversed(names):
            function = click.option(*_named(name), help=text)(function)
        return function

    return add


def _many(name: str, text: str) -> Callable[[Any], Any]:
    return click.option(*_named(name), multiple=True, help=f"{text} May be repeated.")


def _named(name: str) -> Any:
    """The option's names. A session is ``--session`` everywhere; some commands said ``--session-id``."""
    return ("--session", "--session-id", "session_id") if name == "session-id" else (f"--{name}",)


def _page(default: int, orders: tuple[str, ...]) -> Callable[[Any], Any]:
    def add(function: Any) -> Any:
        function = click.option("--cursor", help="Go on behind an earlier page.")(function)
        limit = click.IntRange(1, 1_000)
        most = click.option(
            "--limit", type=limit, default=default, show_default=True, help="At most so many."
        )
        order = click.option(
            "--order", type=click.Choice(orders), default=orders[0], show_default=True,
            help="Which come first.",
        )
        return order(most(function))

    return add


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """What was said: 0 and an empty text are something, no value of an option that may be repeated is not."""
    return {name: list(value) if type(value) is tuple else value for name, value in options.items()
            if value is not None and value != ()}


def _show(page: Any, columns: tuple[str, ...], row: Callable[[Any], tuple[Any, ...]]) -> None:
    if shell().json:
        return render.emit_json(page.to_map())
    render.table(columns, (row(item) for item in page))
    return render.page_rest(page)


@group()
def search() -> None:
    """Find sessions, runs and events over all partitions.

    A TIME is 2026-01-31, 2026-01-31T12:00 (local, or with +01:00), or seconds since 1970.

    \b
    Example:
      mesh search sessions --tag demo --status failed
      mesh search events --type error_occurred --since 2026-01-31
    """


@search.command("sessions")
@_options(("agent-id", "Only of this name."), ("provider", "Only with runs of this provider."))
@_many("status", "Only in this status.")
@_many("tag", "Only with this tag.")
@values.time_option("created-after", "Only created then or later.")
@values.time_option("created-before", "Only created then or earlier.")
@click.option("--include-deleted", is_flag=True, help="Also those that are deleted and not yet forgotten.")
@_page(50, ("updated_at_desc", "updated_at_asc", "created_at_asc", "created_at_desc"))
def sessions(tag: tuple[str, ...], **options: Any) -> None:
    """Find sessions.

    \b
    Example:
      mesh search sessions --agent-id builder --order created_at_desc -o json
    """
    with shell().client() as client:
        page = client.sessions.search(**_given({**options, "tags": tag}))
    _show(page, ("session", "agent", "status", "events", "created", "updated"), lambda s: (
        s.id, s.agent, "deleted" if s.deleted_at else s.status, s.seq, render.clock(s.created_at),
        render.clock(s.updated_at)))


@search.command("runs")
@_options(("session-id", "Only of this session."), ("provider", "Only of this provider."))
@_many("status", "Only in this status.")
@values.time_option("started-after", "Only started then or later.")
@values.time_option("started-before", "Only started then or earlier.")
@click.option("--min-tokens", type=click.IntRange(min=0), help="Only those that used so many.")
@_page(50, ("started_at_desc", "started_at_asc", "token_usage_desc"))
def runs(**options: Any) -> None:
    """Find runs.

    Example: mesh search runs --status failed --started-after 2026-01-31
    """
    with shell().client() as client:
        page = client.runs.search(**_given(options))
    _show(page, ("run", "session", "status", "provider", "started", "cost"), lambda r: (
        r.id, r.session_id, r.status, r.provider, render.clock(r.started_at), r.cost_usd))


@search.command("events")
@_many("session", "Only of this session.")
@_many("run", "Only of this run.")
@_many("type", "Only of this type.")
@_many("provider", "Only of this provider.")
@values.time_option("since", "Only then or later.")
@values.time_option("until", "Only then or earlier.")
@_options(("correlation-id", "Only with this one."))
@click.option("--count", is_flag=True, help="Only how many.")
@_page(100, ("sequence_asc", "timestamp_asc", "timestamp_desc"))
def events(count: bool, **options: Any) -> None:
    """Find events in the logs of all sessions.

    Example: mesh search events --type run_failed --count
    """
    named = {"session": "session_ids", "run": "run_ids", "type": "types", "provider": "providers"}
    filters = _given({named.get(name, name): value for name, value in options.items()})
    with shell().client() as client:
        if count:
            for name in ("order", "limit", "cursor"):
                filters.pop(name, None)
            number = client.events.count(**filters)
            return render.emit_json({"count": number}) if shell().json else click.echo(number)
        page = client.events.search(**filters)
    return _show(page, ("session", "seq", "time", "type", "run", "data"), lambda e: (
        e.session_id, e.seq, render.clock(e.ts), e.type, e.run_id, e.data))


@command()
@_options(
    ("session-id", "Only of this session."), ("agent-id", "Only of sessions of this name."),
    ("provider", "Only of this provider."),
)
@values.time_option("since", "Only runs that started then or later.")
@values.time_option("until", "Only runs that started then or earlier.")
@click.option("--tag", metavar="TAG", help="What limits over this tag count; all other filters are left out.")
def usage(tag: str | None, **options: Any) -> None:
    """Tokens and cost of the runs, in all and by model; or what was spent of the budgets of a tag.

    \b
    Example:
      mesh usage --since 2026-01-01 -o json
      mesh usage --tag acme
    """
    with shell().client() as client:
        if tag is not None:
            spent = client.usage.spent(tag=tag)
            if shell().json:
                return render.emit_json(spent)
            return render.table(("spent", "of the tag"), sorted(spent.items()))
        found = client.usage.summary(**_given(options))
    if shell().json:
        return render.emit_json(found.to_map())
    rows = [("all", found.totals), *found.by_model.items()]
    return render.table(("model", "runs", "input", "output", "cost USD", "unknown price"), (
        (name, t.run_count, t.token_totals.get("input_tokens", 0), t.token_totals.get("output_tokens", 0),
         f"{t.cost_usd:.6f}", t.unmapped_runs) for name, t in rows))


__all__ = ["search", "usage"]
