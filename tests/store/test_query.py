"""Searches against what a plain loop over all rows finds, whatever the filter, the order and the step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_sqlite import commit, opened, state_of

from mesh.core import query as q
from mesh.core import session as sessions
from mesh.core.events import TYPE_CODE
from mesh.core.records import RunStatus, SessionStatus
from mesh.core.run import RunState
from mesh.core.session import SessionState
from mesh.errors import MeshError
from mesh.store import query as store_query
from mesh.store.query import Search

TYPES = ["session_created", "run_started", "message_streamed", "run_completed"]


class World:
    """Some sessions, runs and events, in a file and as lists."""

    def __init__(self, path: Path) -> None:
        dice = random.Random(5)
        self.store = opened(path)
        state = state_of(self.store)
        self.sessions: list[SessionState] = []
        self.runs: list[RunState] = []
        self.events: list[Any] = []
        for n in range(60):
            tags = {"tags": dice.sample("abc", n % 3)}
            session = msgspec.structs.replace(
                sessions.new_session(state.next_session, f"s{n}", "echo", tags, 0.0),
                status=dice.choice([SessionStatus.ACTIVE, SessionStatus.COMPLETED]),
                agent_id=dice.choice(["x", "y"]), created_at=float(dice.randrange(9)),
                updated_at=float(dice.randrange(9)), deleted_at=dice.choice([None, None, None, 5.0, -1.0]),
            )
            state.next_session += 1
            state.put_session(session)
            self.sessions.append(session)
            for _ in range(dice.randrange(4)):
                run = RunState(
                    n=state.next_run, id=f"run_{state.next_run:032x}", session_id=session.id, input="x",
                    options={},
                    status=dice.choice([RunStatus.COMPLETED, RunStatus.FAILED]), created_at=1.0,
                    started_at=float(dice.randrange(9)), ended_at=2.0, provider=dice.choice(["p", "q"]),
                    token_usage={"input_tokens": dice.randrange(5), "output_tokens": 1}, attempt=1,
                )
                state.next_run += 1
                self.runs.append(state.put_run(run))
                for _ in range(dice.randrange(4)):
                    state.now = float(dice.randrange(9))
                    author = dice.choice(["p", "q"])
                    state.append(session.id, dice.choice(TYPES), {}, run=run, provider=author)
        self.events = list(state.events)
        commit(self.store, state)
        self.search = Search(self.store, lambda _: True, bytes_max=10**6, clock=self.clock)
        self.now = 0.0

    def clock(self) -> float:
        self.now += 0.001  # a step is over after a few rows
        return self.now

    def session(self, session_id: str) -> SessionState:
        return self.sessions[int(session_id[1:])]

    def shown(self, session_id: str, *, named: bool) -> bool:
        deleted = self.session(session_id).deleted_at
        return deleted is None or (named and deleted > 0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    patch = pytest.MonkeyPatch()
    patch.setattr(store_query, "STEP_ROWS", 7)
    made = World(tmp_path_factory.mktemp("w") / "p.db")
    yield made
    made.store.close()
    patch.undo()


def indexed(call: Callable[[q.Query], Any], query: q.Query) -> list[int]:
    """All row numbers, step by step, in pages of the query's limit."""
    found: list[int] = []
    while True:
        step = call(query)
        found += [row for _, row, _ in step.rows]
        if step.next is None:
            return found
        query = query._replace(after=step.next)


def best_of(call: Callable[[q.Query], Any], query: q.Query) -> list[int]:
    """The same for the best of everything: one page per look at all of it."""
    found: list[int] = []
    while True:
        best: list[tuple[float, int]] = []
        reached: Any = 0
        while reached is not None:
            worst = best[-1] if len(best) == query.limit else None
            step = call(query._replace(reached=reached, worst=worst))
            best += [(sort, row) for sort, row, _ in step.rows]
            best = sorted(best, reverse=query.descending)[: query.limit]
            reached = step.next
        found += [row for _, row in best]
        if len(best) < query.limit:
            return found
        query = query._replace(after=best[-1])


SESSION_FILTERS = st.fixed_dictionaries({}, optional={
    "status": st.sampled_from([["active"], ["active", "completed"], ["failed"]]),
    "agent_id": st.sampled_from("xyz"),
    "tags": st.lists(st.sampled_from("abc"), max_size=2), "provider": st.sampled_from("pqr"),
    "created_after": st.integers(0, 9).map(float), "created_before": st.integers(0, 9).map(float),
    "include_deleted": st.booleans(),
})
FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FAST
@given(filters=SESSION_FILTERS, order=st.sampled_from(q.SESSION_ORDERS), limit=st.integers(1, 20))
def test_a_search_for_sessions_finds_what_a_loop_finds(
    world: World, filters: dict[str, Any], order: str, limit: int
) -> None:
    """If sessions are searched page by page, then exactly those that match come, once, in order."""
    def match(s: SessionState) -> bool:
        providers = {run.provider for run in world.runs if run.session_id == s.id}
        return (
            world.shown(s.id, named=filters.get("include_deleted", False))
            and s.status in filters.get("status", list(SessionStatus))
            and s.agent_id == filters.get("agent_id", s.agent_id)
            and set(filters.get("tags", ())) <= set(s.tags)
            and ("provider" not in filters or filters["provider"] in providers)
            and filters.get("created_after", 0) <= s.created_at <= filters.get("created_before", 99)
        )

    def key(s: SessionState) -> Any:
        return (s.updated_at if order.startswith("updated") else s.created_at), s.n

    expected = sorted(filter(match, world.sessions), key=key, reverse=order.endswith("desc"))
    assert indexed(world.search.sessions, q.Query(order, filters, limit)) == [s.n for s in expected]


RUN_FILTERS = st.fixed_dictionaries({}, optional={
    "session_id": st.integers(0, 59).map(lambda n: f"s{n}"), "provider": st.sampled_from("pqr"),
    "status": st.sampled_from([["completed"], ["failed", "running"]]), "min_tokens": st.integers(0, 6),
    "started_after": st.integers(0, 9).map(float), "started_before": st.integers(0, 9).map(float),
})


@FAST
@given(filters=RUN_FILTERS, order=st.sampled_from(q.RUN_ORDERS), limit=st.integers(1, 20))
def test_a_search_for_runs_finds_what_a_loop_finds(
    world: World, filters: dict[str, Any], order: str, limit: int
) -> None:
    """If runs are searched page by page, with an index or without, then the same holds."""
    def match(r: RunState) -> bool:
        assert r.started_at is not None
        return (
            world.shown(r.session_id, named="session_id" in filters)
            and r.session_id == filters.get("session_id", r.session_id)
            and r.provider == filters.get("provider", r.provider)
            and r.status in filters.get("status", list(RunStatus))
            and tokens(r) >= filters.get("min_tokens", 0)
            and filters.get("started_after", 0) <= r.started_at <= filters.get("started_before", 99)
        )

    def tokens(r: RunState) -> int:
        return sum(r.token_usage.values())

    def key(r: RunState) -> Any:
        return (tokens(r) if order.startswith("token") else r.started_at), r.n

    expected = sorted(filter(match, world.runs), key=key, reverse=order.endswith("desc"))
    scanned = order != "token_usage_desc" and "session_id" not in filters
    pages = indexed if scanned else best_of
    assert pages(world.search.runs, q.Query(order, filters, limit)) == [r.n for r in expected]


EVENT_FILTERS = st.fixed_dictionaries({}, optional={
    "session_ids": st.integers(0, 59).map(lambda n: [f"s{n}"]),
    "providers": st.sampled_from([["p"], ["p", "q"], ["r"]]),
    "types": st.lists(st.sampled_from(TYPES), min_size=1, max_size=2),
    "since": st.integers(0, 9).map(float), "until": st.integers(0, 9).map(float),
    "correlation_id": st.just("none"),
})


@FAST
@given(filters=EVENT_FILTERS, order=st.sampled_from(q.EVENT_ORDERS), limit=st.integers(1, 20))
def test_a_search_for_events_finds_what_a_loop_finds(
    world: World, filters: dict[str, Any], order: str, limit: int
) -> None:
    """If events are searched in the order of the log or of time, or counted, then the same holds."""
    def match(e: Any) -> bool:
        return (
            world.shown(e.session_id, named="session_ids" in filters)
            and [e.session_id] == filters.get("session_ids", [e.session_id])
            and e.type in {TYPE_CODE[name] for name in filters.get("types", TYPES)}
            and "correlation_id" not in filters
            and any(b"\xa8provider\xa1" + p.encode() in e.fragment for p in filters.get("providers", "pq"))
            and filters.get("since", 0) <= e.ts <= filters.get("until", 99)
        )

    expected = sorted(
        filter(match, world.events), key=lambda e: (e.pos if order == "sequence_asc" else e.ts, e.pos),
        reverse=order.endswith("desc"),
    )
    query = q.Query(order, filters, limit)
    if order == "sequence_asc":
        found: list[int] = []
        reached: Any = 0
        while reached is not None:
            step = world.search.events(query._replace(reached=reached))
            found += [row for _, row, _ in step.rows]
            reached = step.next
    else:
        found = best_of(world.search.events, query)
    assert found == [e.pos for e in expected]
    count, reached = 0, 0
    while reached is not None:
        more, reached = world.search.count(query._replace(reached=reached))
        count += more
    assert count == len(expected)


def test_usage_is_the_sum_over_all_runs(world: World) -> None:
    """If usage is added up step by step, then it is what the runs of shown sessions used."""
    shown = [run for run in world.runs if world.shown(run.session_id, named=False)]
    counts, inputs, reached = 0, 0, 0
    while reached is not None:
        rows, reached = world.search.usage(q.Query("started_at_asc", {}, 1, None, reached))
        for *_, runs, priced, cost, usage in rows:
            assert (priced, cost) == (0, 0.0)
            counts += runs
            inputs += usage["input_tokens"]
    assert (counts, inputs) == (len(shown), sum(run.token_usage["input_tokens"] for run in shown))


@pytest.mark.parametrize(("kind", "args", "code"), [
    ("sessions", [{}, "updated_at_desc", 0], "validation_error"),
    ("sessions", [{}, "updated_at_desc", 1001], "validation_error"),
    ("sessions", [{}, "started_at_desc", 5], "validation_error"),
    ("sessions", [{"nme": 1}, "updated_at_desc", 5], "validation_error"),
    ("sessions", [{"status": "sleepy"}, "updated_at_desc", 5], "invalid_status"),
    ("sessions", [{"include_deleted": 1}, "updated_at_desc", 5], "validation_error"),
    ("sessions", [{}, "updated_at_desc", 5, "x"], "invalid_cursor"),
    ("sessions", [{}, "updated_at_desc", 5, [float("nan"), "x"]], "invalid_cursor"),
    ("sessions", [{}, "updated_at_desc", 5, [1.0, 1 << 70]], "invalid_cursor"),
    ("runs", [{}, "started_at_desc", 5, None, -1], "invalid_cursor"),
    ("runs", [{"min_tokens": -1}, "started_at_desc", 5], "validation_error"),
    ("runs", [{"session_id": "../x"}, "started_at_desc", 5], "invalid_id"),
    ("events", [{"types": ["nothing"]}, "sequence_asc", 5], "invalid_event_type"),
    ("events", [{"since": "yesterday"}, "sequence_asc", 5], "validation_error"),
    ("events", [{"session_ids": ["a"] * 1001}, "sequence_asc", 5], "validation_error"),
    ("events", [{}, "sequence_asc"], "validation_error"),
])
def test_a_wrong_question_is_refused_by_name(kind: str, args: list[Any], code: str) -> None:
    """If a filter, an order, a limit or a place is wrong, then nothing is looked at."""
    with pytest.raises(MeshError) as refused:
        q.check_query(kind, args)
    assert refused.value.code == code
