"""An import with a wrong value anywhere: refused by a code of its own, or a session that can be read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, new_run_id, opened
from hypothesis import given
from hypothesis import strategies as st

import mesh
from mesh.core import events as ev
from mesh.core import run as runs
from mesh.core import session as sessions
from mesh.core import wire
from mesh.core.access import NODE

NUMBERS = itertools.count(1)
CODES = {"validation_error", "invalid_status", "invalid_event_type", "invalid_id", "run_not_found",
         "limit_exceeded", "already_exists", "session_mismatch"}  # fmt: skip
WRONG: st.SearchStrategy[Any] = st.sampled_from([
    None, True, -1, 7, 2**62, 2**64 - 1, 0.5, 1e300, -1e12, float("nan"), float("inf"), "", "x", b"x",
    [], ["x"], [[1]], {}, {"code": 5}, "../x", "x" * 200,
])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One partition for all examples."""
    path: Path = tmp_path_factory.mktemp("importing")
    yield from opened(path)


@pytest.fixture(scope="module")
def told(bench: Bench) -> dict[str, Any]:
    """The pieces of an export: a session that failed, a run, the log."""
    run = new_run_id("told", 1)
    bench.call("session.start", "told", "echo", {"tags": ["t"]})
    bench.call("session.prompt", "told", run, "hi", "follow_up")
    bench.deliver()
    runner = bench.runners[0]
    assert runner is not None
    bench.progress(runner, run, "completed")
    bench.call("session.fail", "told", {"code": "provider_error", "message": "gone"})
    session = bench.state.session("told")
    header = wire.map_header(ev.FRAGMENT_PAIRS)
    rows = bench.rows("SELECT seq, fragment FROM event WHERE session = ? ORDER BY seq", session.n)
    log = [{**wire.unpack(header + fragment), "seq": seq} for seq, fragment in rows]
    return {
        "session": sessions.to_wire(session, None),
        "runs": [runs.to_wire(bench.state.run(run), bench.state.redactor)],
        "events": log,
        "end": {"runs": 1, "events": len(log), "seq": len(log), "lost": []},
    }


def moved(told: dict[str, Any], sid: str) -> list[dict[str, Any]]:
    """The same pieces for another session."""
    run = new_run_id(sid, 1)
    events = [{**one, "session_id": sid, "run_id": one["run_id"] and run} for one in told["events"]]
    return [{"session": dict(told["session"])}, {"runs": [{**told["runs"][0], "id": run}]},
            {"events": events}, {"end": dict(told["end"])}]


def imported(bench: Bench, sid: str, pieces: list[dict[str, Any]]) -> str:
    """The code of the first refusal, else ok."""
    answers = (bench.code("session.import", sid, piece) for piece in pieces)
    return next((code for code in answers if code != "ok"), "ok")


def test_what_was_exported_is_imported(bench: Bench, told: dict[str, Any]) -> None:
    """If nothing is wrong, then the copy is there, with its error, its run and its log."""
    assert imported(bench, "copy", moved(told, "copy")) == "ok"
    copy, session = bench.state.session("copy"), bench.state.session("told")
    assert (copy.status, copy.error, copy.seq) == (session.status, session.error, session.seq)


def test_what_belongs_to_half_an_import_is_not_there(bench: Bench, told: dict[str, Any]) -> None:
    """If an import is not complete, then no call finds its session or a run of it by id; then all do."""
    header, run, log, end = moved(told, "half")
    run_id = run["runs"][0]["id"]
    check = bench.ops.driving.check
    for piece in (header, run, log):
        assert bench.code("session.import", "half", piece) == "ok"
    for op, args in [("run.get", [run_id]), ("run.wait", [run_id]), ("run.patch", [run_id])]:
        with pytest.raises(mesh.NotFound) as missing:
            check(op, args)
        assert missing.value.code == "run_not_found"
        with pytest.raises(mesh.NotFound), bench.ops.driving.presenting(NODE):
            check(op, args)
    for op, rest in [("execute", []), ("cancel", []), ("interrupt", [])]:
        assert bench.code(f"run.{op}", run_id, *rest) == "run_not_found"
    for op, args in [("session.activate", ["half"]), ("session.undelete", ["half"]),
                     ("run.create", [new_run_id("half", 2), "half", "x"])]:
        assert bench.code(op, *args) == "session_not_found"
    assert bench.code("session.start_or_get", "half", "echo", None) == "already_exists"
    assert [bench.call("session.delete", "half", hard) for hard in (False, True)] == [False, False]
    assert bench.code("session.import", "half", end) == "ok"
    check("run.get", [run_id])
    assert bench.code("run.cancel", run_id) == "ok"


def test_a_run_of_a_session_that_is_being_removed_is_not_there(bench: Bench, told: dict[str, Any]) -> None:
    """If a session was deleted hard, then its runs are not found while their rows are still being removed."""
    assert imported(bench, "gone", moved(told, "gone")) == "ok"
    run_id = new_run_id("gone", 1)
    assert bench.state.run(run_id).session_id == "gone" and bench.call("session.delete", "gone", True)
    assert bench.code("run.cancel", run_id) == "run_not_found"
    assert bench.code("run.create", run_id, "gone", "x") == "session_not_found"


@pytest.mark.parametrize("wrong", [
    {"token_usage": {"input_tokens": -1}}, {"token_usage": {"input_tokens": 5, "x": float("nan")}},
    {"token_usage": {"input_tokens": "5"}}, {"cost_usd": -0.01}, {"turn_count": -1}, {"attempt": -1},
])
def test_a_count_less_than_nothing_is_refused_by_its_place(
    bench: Bench, told: dict[str, Any], wrong: dict[str, Any]
) -> None:
    """If a run of an import counts less than nothing, then it is named, and nothing is imported."""
    sid = f"n{next(NUMBERS)}"
    header, run, _, _ = moved(told, sid)
    assert bench.code("session.import", sid, header) == "ok"
    other = {**run["runs"][0], "id": new_run_id(sid, 2), **wrong}
    [[status, error]] = bench.replies[bench.post(["session.import", [sid, {"runs": [*run["runs"], other]}]])]
    assert status and error["code"] == "validation_error" and error["details"]["item"] == 1
    assert not any(bench.state.has_run(new_run_id(sid, n)) for n in (1, 2))


@given(data=st.data())
def test_a_wrong_value_anywhere_is_refused_or_can_be_read(
    bench: Bench, told: dict[str, Any], data: st.DataObject
) -> None:
    """If a field of any piece holds anything, or is missing, then the import is refused by a code and nobody
    sees it, or session, run and events can be read as records."""
    sid = f"n{next(NUMBERS)}"
    pieces = moved(told, sid)
    piece = data.draw(st.sampled_from(pieces))
    [values] = piece.values()
    target = data.draw(st.sampled_from(values)) if type(values) is list else values
    name = data.draw(st.sampled_from(sorted(target)))
    if data.draw(st.booleans(), label="missing"):
        del target[name]
    else:
        target[name] = data.draw(WRONG)
    code = imported(bench, sid, pieces)
    assert not bench.bugs, bench.bugs
    if code != "ok":
        assert code in CODES
        assert not bench.state.has_session(sid) or bench.state.session(sid).deleted_at == sessions.IMPORTING
        return
    session = bench.state.session(sid)
    assert sessions.decode(sessions.encode(session)) == session
    assert mesh.Session.from_map(sessions.to_wire(session, None)).created is not None
    for run in bench.store.runs_of(session.n):
        read = mesh.Run.from_map(runs.to_wire(run, bench.state.redactor))
        assert all(at is None or at.tzinfo for at in (read.created, read.started, read.ended))
    for seq, fragment in bench.rows("SELECT seq, fragment FROM event WHERE session = ?", session.n):
        assert mesh.Event.from_map(wire.unpack(ev.encode_stored(fragment, sid, seq))).time is not None
