"""The memory of a partition: undo restores everything, caches stay small, ids are texts."""

from __future__ import annotations

import random
from copy import copy
from typing import Any

import msgspec
import pytest

from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core.announced import topic_id
from mesh.core.records import RunStatus
from mesh.core.run import RunState
from mesh.core.session import SessionState
from mesh.core.state import State, Work
from mesh.errors import InvalidArgument, NotFound


class Shelf:
    """A loader over plain dicts."""

    def __init__(self) -> None:
        self.sessions: dict[str, SessionState] = {}
        self.runs: dict[str, RunState] = {}

    def session(self, session_id: str) -> SessionState | None:
        return self.sessions.get(session_id)

    def run(self, run_id: str) -> RunState | None:
        return self.runs.get(run_id)

    def event_type(self, session: int, seq: int) -> int | None:
        return None

    def has_session(self, session_id: str) -> bool:
        return session_id in self.sessions

    def runs_of(self, session: int) -> list[RunState]:
        return []

    def spent_by_tag(self, tag: str) -> list[dict[str, float]]:
        return []

    def newest_session(self, scope: str) -> str:
        return "\U0010ffff"

    def newest_run(self, scope: str) -> str:
        return "\U0010ffff"

    def has_run(self, run_id: str) -> bool:
        return run_id in self.runs


def fresh(shelf: Shelf | None = None) -> State:
    return State(shelf or Shelf(), partition=0, epoch=1, node="mesh")


def session(n: int, **changes: Any) -> SessionState:
    return msgspec.structs.replace(sessions.new_session(n, f"s{n}", "echo", None, 1.0), **changes)


def run(n: int, sid: str, **changes: Any) -> RunState:
    return RunState(**{"n": n, "id": f"r{n}", "session_id": sid, "status": RunStatus.QUEUED, "input": "x",
                       "options": {}, "created_at": 0.0, **changes})


def image(state: State) -> Any:
    """Everything that a batch may change."""
    return (
        {key: copy(session) for key, session in state.sessions.items()},
        {key: copy(run) for key, run in state.runs.items()},
        dict(state.work),
        dict(state.live),
        dict(state.idle),
        state.pos,
        state.lseq,
        state.next_session,
        state.next_run,
        state.session_count,
        list(state.events),
        list(state.lifecycle),
        dict(state.dirty_sessions),
        dict(state.dirty_runs),
        copy(state.progress),
        list(state.commands),
        list(state.settled),
        list(state.resolutions),
    )


def change(state: State, chance: random.Random) -> None:
    """One random change through the state's own methods."""
    what = chance.randrange(10)
    known = list(state.sessions)
    if what == 0 or not known:
        state.put_session(session(state.next_session))
        state.next_session += 1
        state.session_count += 1
        return
    one = state.sessions[chance.choice(known)]
    if what == 1:
        state.put_session(msgspec.structs.replace(one, runner=chance.choice([None, 0, 1])))
    elif what == 2:
        state.append(one.id, "error_occurred", {"x": 1})
    elif what == 3:
        state.put_run(run(state.next_run, one.id))
        state.next_run += 1
    elif what == 4 and state.runs:
        mine = state.runs[chance.choice(list(state.runs))]
        state.put_progress(mine, mine.batch + 1)
    elif what == 5:
        state.put_work(one.id, Work(chance.choice([(), ("r1",)]), tuple("ab"[: chance.randrange(3)])))
    elif what == 6:
        state.announce("started", one)
    elif what == 7:
        state.commands.append((0, ["close", one.id]))
        state.settled.append("r")
    elif what == 8 and state.runs:
        mine = state.runs[chance.choice(list(state.runs))]
        state.put_run(msgspec.structs.replace(mine, attempt=mine.attempt + 1))
    elif what == 9 and state.runs:
        mine = state.runs[chance.choice(list(state.runs))]
        state.stream(mine, [[1, 1.0, b"x"]] * chance.randrange(1, 3), mine.batch + 1)


@pytest.mark.parametrize("seed", range(200))
def test_going_back_to_a_mark_restores_everything(seed: int) -> None:
    """If a call, and later the batch, are undone, nothing differs from the mark, dirty marks included."""
    chance = random.Random(seed)
    state = fresh()
    for _ in range(chance.randrange(20)):
        change(state, chance)
    if chance.random() < 0.5:
        state.end_batch()
    images = []
    for _ in range(3):
        images.append((state.mark(), image(state)))
        for _ in range(chance.randrange(15)):
            change(state, chance)
    for mark, before in reversed(images):
        state.back_to(mark)
        assert _unordered(image(state)) == _unordered(before)


def _unordered(values: Any) -> Any:
    """Without the times of last use, which an undo does not turn back."""
    return [sorted(v) if i == 3 else v for i, v in enumerate(values)]


def test_a_batch_that_changed_nothing_has_nothing_to_write() -> None:
    """If every call of a batch was undone, then there is nothing to commit."""
    shelf = Shelf()
    shelf.sessions["s1"] = session(1)
    state = fresh(shelf)
    mark = state.mark()
    state.put_session(msgspec.structs.replace(state.session("s1"), runner=0))
    state.back_to(mark)
    assert not state.changed and not state.live


def test_counters_are_contiguous() -> None:
    """If events of several sessions are appended, then pos counts all and seq each."""
    state = fresh()
    for n in (1, 2):
        state.put_session(session(n))
    for sid in ("s1", "s2", "s1", "s1"):
        state.append(sid, "error_occurred", {})
    assert [(e.pos, e.session_id, e.seq) for e in state.events] == [
        (1, "s1", 1), (2, "s2", 1), (3, "s1", 2), (4, "s1", 3)]


@pytest.mark.parametrize("bad", [None, 5, b"s", ["s"], {"s": 1}, 1.5, True])
def test_an_id_that_is_no_text_is_refused(bad: Any) -> None:
    """If an id is of another type, then it is a typed refusal, also when it cannot be hashed."""
    for read in (fresh().session, fresh().run):
        with pytest.raises(InvalidArgument):
            read(bad)


def test_an_unknown_id_is_not_found_by_its_own_code() -> None:
    """If nothing is stored, then the code says what was looked for."""
    with pytest.raises(NotFound) as no_session:
        fresh().session("x")
    with pytest.raises(NotFound) as no_run:
        fresh().run("x")
    assert (no_session.value.code, no_run.value.code) == ("session_not_found", "run_not_found")


def test_caches_are_trimmed_to_what_is_needed() -> None:
    """If many sessions and runs were touched, then only those in use and the newest stay."""
    state = fresh()
    for n in range(1, 501):
        state.put_session(session(n, runner=0 if n <= 5 else None))
        over = n > 5
        state.put_run(run(n, f"s{n}", ended_at=1.0 if over else None,
                          status=RunStatus.COMPLETED if over else RunStatus.RUNNING))
        if n <= 5:
            state.put_work(f"s{n}", Work((f"r{n}",)))
    state.end_batch()
    for _ in range(50):
        state.trim(20, 64)
    assert len(state.sessions) == len(state.runs) == 20
    assert all(f"s{n}" in state.sessions and f"r{n}" in state.runs for n in range(1, 6))


def test_trimming_stops_when_everything_is_in_use() -> None:
    """If more is in use than should be kept, then trimming ends after its step and loses nothing."""
    state = fresh()
    for n in range(1, 101):
        state.put_session(session(n, runner=0))
    state.end_batch()
    state.trim(10, 64)
    assert len(state.sessions) == 100


def test_idle_sessions_are_in_order_of_last_use_and_busy_ones_are_none() -> None:
    """If a live session has work, then it is not idle; once it has none, it is the last that was used."""
    state = fresh()
    for n in (1, 2, 3):
        state.put_session(session(n, runner=0))
    for sid in ("s1", "s9"):
        state.put_work(sid, Work(("r1",)))
    assert list(state.idle) == ["s2", "s3"]
    state.mono = 5.0
    for sid in ("s1", "s9"):
        state.put_work(sid, Work())
    assert list(state.idle) == ["s2", "s3", "s1"] and state.idle["s1"] == 5.0
    state.put_session(session(2, runner=None))
    assert list(state.idle) == ["s3", "s1"] and list(state.live) == ["s1", "s3"]


def test_what_an_undo_makes_idle_again_is_as_long_idle_as_before() -> None:
    """If work of the longest idle session is undone, then it is still the first whose actor ends."""
    state = fresh()
    for n in (1, 2, 3):
        state.mono = float(n)
        state.put_session(session(n, runner=0))
    state.end_batch()
    before = list(state.idlest())
    mark = state.mark()
    for sid in ("s2", "s1"):
        state.put_work(sid, Work(("r1",)))
    state.put_work("s2", Work())
    assert [sid for sid, _ in state.idlest()] == ["s3", "s2"]
    state.back_to(mark)
    assert list(state.idlest()) == before == [("s1", 1.0), ("s2", 2.0), ("s3", 3.0)]


def test_a_dot_in_an_id_is_no_topic_separator() -> None:
    """If an id holds dots, then its topic has the same number of parts as any other."""
    assert topic_id("a.b.c") == "a%2Eb%2Ec"


def test_stored_forms_are_stable() -> None:
    """If a session or run of an older version is read, then fields that it has not get their default."""
    assert sessions.decode(msgspec.msgpack.encode([1, "s", "a", "a", "active", 0.0, 0.0])).incarnation == 0
    assert runs.decode(msgspec.msgpack.encode([1, "r", "s", "queued", None, {}, 0.0])).attempt == 0
