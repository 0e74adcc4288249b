"""Finding sessions, runs, events and usage over all partitions, as a user does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import mesh

SESSIONS = 24


@pytest.fixture
def filled(client: mesh.Client) -> list[str]:
    """Sessions over both partitions, each with one run."""
    ids = [f"f{number:02}" for number in range(SESSIONS)]
    for number, sid in enumerate(ids):
        client.sessions.start("echo", id=sid, agent_id="odd" if number % 2 else "even", tags=["t"])
        client.runs.wait(client.runs.submit(sid, f"hello {number}").id)
    client.sessions.complete(ids[0])
    assert {client.partitions.of(sid) for sid in ids} == {0, 1}
    return ids


def pages(ask: Callable[..., Any], **filters: Any) -> list[Any]:
    """All pages of a search."""
    found: list[Any] = []
    cursor = None
    while True:
        page = ask(cursor=cursor, **filters)
        assert not page.missing and len(page) <= filters["limit"]
        found += page
        cursor = page.cursor
        if cursor is None:
            return found


@pytest.mark.parametrize("order", ["updated_at_desc", "updated_at_asc", "created_at_asc", "created_at_desc"])
def test_sessions_of_all_partitions_come_once_and_in_order(
    client: mesh.Client, filled: list[str], order: str
) -> None:
    """If sessions are searched page by page, then each comes once, in one order over all partitions."""
    found = pages(client.sessions.search, order=order, limit=5)
    assert sorted(s.id for s in found) == filled
    times = [s.updated_at if order.startswith("updated") else s.created_at for s in found]
    assert times == sorted(times, reverse=order.endswith("desc"))
    odd = pages(client.sessions.search, order=order, limit=5, agent_id="odd", tags=["t"], provider="echo")
    assert sorted(s.id for s in odd) == filled[1::2]
    assert [s.id for s in client.sessions.search(status="completed")] == [filled[0]]


def test_runs_events_and_usage_are_found_over_all_partitions(client: mesh.Client, filled: list[str]) -> None:
    """If runs and events are searched, counted and added up, then nothing is missing and nothing twice."""
    runs = pages(client.runs.search, limit=7)
    assert sorted(run.session_id for run in runs) == filled
    starts = [run.started_at for run in runs]
    assert starts == sorted(starts, reverse=True)
    assert len(pages(client.runs.search, limit=7, order="token_usage_desc")) == SESSIONS
    assert [r.session_id for r in client.runs.search(session_id="f03", status=["completed"])] == ["f03"]

    every = pages(client.events.search, limit=50)
    assert client.events.count() == len(every) == len({(e.session_id, e.seq) for e in every})
    for sid in filled[:2]:
        assert [e.seq for e in every if e.session_id == sid] == [
            e.seq for e in client.sessions.events(sid)]
    sent = pages(client.events.search, limit=5, types="message_sent", session_ids=filled[:9])
    assert [(e.session_id, e.data["content"]) for e in sent] == [
        (sid, f"hello {n}") for n, sid in enumerate(filled[:9])]
    latest = pages(client.events.search, limit=9, order="timestamp_desc", types=["run_completed"])
    assert [e.ts for e in latest] == sorted((e.ts for e in latest), reverse=True) and len(latest) == SESSIONS
    assert client.events.count(run_ids=[runs[0].id]) == len(client.events.search(run_ids=runs[0].id)) > 3
    assert client.events.count(since=latest[0].ts, types="run_completed") >= 1

    usage = client.usage.summary(provider="echo")
    assert usage.totals.run_count == SESSIONS and usage.by_status == {"completed": SESSIONS}
    stats = client.sessions.stats("f05")
    assert (stats.run_count, stats.event_count, stats.providers_used) == (1, stats.last_seq, ("echo",))
    assert stats.first_seq == 1 and stats.status_counts == {"completed": 1}


def test_wrong_limits_and_foreign_cursors_are_refused(client: mesh.Client, filled: list[str]) -> None:
    """If a limit is out of bounds, or a cursor broken or of another order or kind, then nothing is asked."""
    cursor = client.sessions.search(limit=2).cursor
    assert cursor is not None
    for call, code in [
        (lambda: client.sessions.search(limit=0), "validation_error"),
        (lambda: client.sessions.search(limit=1001), "validation_error"),
        (lambda: client.sessions.search(order="by_name"), "validation_error"),
        (lambda: client.sessions.search(cursor="nonsense"), "invalid_cursor"),
        (lambda: client.sessions.search(cursor=cursor, order="created_at_asc"), "invalid_cursor"),
        (lambda: client.runs.search(cursor=cursor), "invalid_cursor"),
        (lambda: client.events.search(types=["nothing"]), "invalid_event_type"),
        (lambda: client.sessions.stats("nobody"), "session_not_found"),
        (lambda: client.events.search(session_ids=["nobody"]), "session_not_found"),
        (lambda: client.usage.summary(session_id="nobody"), "session_not_found"),
    ]:
        with pytest.raises(mesh.MeshError) as refused:
            call()
        assert refused.value.code == code
