"""Ids that were never used: the shortcut and the store must agree."""

from __future__ import annotations

import pytest
from bench import Bench, new_run_id
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.newest import SCOPE, Newest
from mesh.core.state import State

#: Few ids, so that they meet: of two scopes, and one that is shorter than a scope.
IDS = st.sampled_from([f"run_{scope}{n:03d}" for scope in ("abc", "abd") for n in range(6)] + ["run_"])


@given(st.lists(st.tuples(st.sampled_from(["use", "leave", "ask", "restart"]), IDS), max_size=40))
def test_a_used_id_is_never_called_new(steps: list[tuple[str, str]]) -> None:
    """If an id is stored or in memory, then it is not taken for a new one, whatever memory let go before."""
    stored: set[str] = set()
    memory: set[str] = set()

    def load(scope: str) -> str:
        return max((i for i in stored if i[:SCOPE] == scope), default="")

    newest = Newest(load)
    for what, identifier in steps:
        if what == "use":
            stored.add(identifier)
            memory.add(identifier)
        elif what == "leave" and identifier in memory:
            memory.discard(identifier)
            newest.left(identifier)
        elif what == "restart":
            memory.clear()
            newest = Newest(load)
        elif what == "ask" and identifier not in memory:
            assert not (newest.precedes(identifier) and identifier in stored)


def test_a_newer_id_is_seen_without_the_store(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """If sessions and runs are made as mesh mints them, then the store is asked for their scopes alone."""
    monkeypatch.setattr(bench.store, "has_run", _asked)
    monkeypatch.setattr(bench.store, "has_session", _asked)
    for n in range(3):
        bench.call("session.create", f"ses_{n:032x}", "echo", {})
        bench.call("run.create", new_run_id(f"ses_{n:032x}", n), f"ses_{n:032x}", "x")


def test_ids_that_memory_let_go_are_still_taken(bench: Bench) -> None:
    """If a session and its run left memory, then their ids are refused for new ones."""
    sid, run_id = f"ses_{5:032x}", new_run_id(f"ses_{5:032x}", 7)
    bench.call("session.create", sid, "echo", {})
    bench.call("run.create", run_id, sid, "x")
    _forget_all(bench.state)
    assert bench.code("session.create", sid, "echo", {}) == "already_exists"
    assert bench.code("run.create", run_id, sid, "x") == "already_exists"
    bench.kill()
    assert bench.code("session.create", sid, "echo", {}) == "already_exists"
    assert bench.code("run.create", run_id, sid, "x") == "already_exists"


def test_a_run_of_an_erased_session_is_taken_until_its_row_is_gone(bench: Bench) -> None:
    """If a session was deleted hard, then the ids of its runs are not free while their rows are there."""
    sid, run_id = f"ses_{5:032x}", new_run_id(f"ses_{5:032x}", 7)
    bench.call("session.create", sid, "echo", {})
    bench.call("run.create", run_id, sid, "x")
    bench.call("session.delete", sid, True)
    bench.call("session.create", sid, "echo", {})
    assert bench.code("run.create", run_id, sid, "x") == "already_exists"


def _forget_all(state: State) -> None:
    state.trim(0, 1_000)
    assert not state.runs and not state.sessions


def _asked(identifier: str) -> bool:
    raise AssertionError(f"the store was asked for {identifier}")
