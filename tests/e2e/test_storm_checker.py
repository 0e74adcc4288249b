"""The storm's checker itself: each lie of a node that it is there to find, told to it once."""

from __future__ import annotations

import os
import subprocess
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import storm_check as check
from helpers import wait_for
from storm_history import History, Story
from storm_register import Read, Register, Write
from storm_service import Service

import mesh
from mesh.launch import data_hash

KEY = "t:b:r"
OK = SimpleNamespace(id="run_1", status="active")
LATE = mesh.DeadlineExceeded("no answer", code="timeout")


def reads(*given: str | None, writes: list[Write]) -> list[str]:
    """What the checker says of reads at 10, 11 ... after these writes."""
    found = [Read(10.0 + n, 10.5 + n, value, "get") for n, value in enumerate(given)]
    return Register(writes, found).problems(KEY)


@pytest.mark.parametrize(("given", "writes"), [
    (("a",), [Write(1, 2, "a", "w")]),
    ((None, None), []),
    ((None,), [Write(1, inf, "a", "w")]),
    ((None, "a", "a"), [Write(1, inf, "a", "w")]),
    (("b", "b"), [Write(1, 4, "a", "v"), Write(2, 3, "b", "w")]),
    (("a",), [Write(1, inf, "a", "v"), Write(2, 3, "b", "w")]),
    (("b", "b", None), [Write(1, inf, "a", "w"), Write(3, 4, "b", "w"), Write(5, inf, None, "v")]),
    ((None,), [Write(1, 2, "a", "w"), Write(3, 4, None, "w")]),
    (("a", "b"), [Write(1, 2, "a", "w"), Write(9, 12, "b", "v")]),
])
def test_reads_that_an_order_explains_are_no_problem(given: Any, writes: list[Write]) -> None:
    """If some order of the writes explains the reads, then nothing is said."""
    assert reads(*given, writes=writes) == []


@pytest.mark.parametrize(("given", "writes"), [
    ((None,), [Write(1, 2, "a", "w")]),
    (("a",), [Write(1, 2, "a", "w"), Write(3, 4, "b", "w")]),
    (("a",), [Write(1, inf, "a", "w"), Write(3, 4, "b", "w")]),
    (("a",), [Write(1, 2, "a", "w"), Write(3, 4, None, "w")]),
    (("b",), [Write(1, 2, "a", "w")]),
    (("b",), [Write(1, 2, "a", "w"), Write(20, 21, "b", "w")]),
    (("b", "a"), [Write(1, 2, "a", "w"), Write(3, inf, "b", "v")]),
])
def test_reads_that_no_order_explains_are_told(given: Any, writes: list[Write]) -> None:
    """If a write is lost, comes back, or was never made, then it is told."""
    assert reads(*given, writes=writes)


def event(seq: int, kind: str, run_id: str | None = None) -> Any:
    return SimpleNamespace(id=f"e{seq}", seq=seq, type=kind, run_id=run_id, data={"content": "x"})


def world(kinds: str, session_status: str = "active", **run: Any) -> tuple[check.Stored, History]:
    """A session ``s`` that two clients created, started and prompted, with a log of these events."""
    short = {"c": "session_created", "s": "session_started", "p": "session_paused", "m": "message_sent",
             "r": "run_started", "t": "message_streamed", "d": "run_completed", "f": "run_failed",
             "q": "prompt_queued"}
    events = [
        event(seq, short[kind], "run_1" if kind in "qmrtdf" else None)
        for seq, kind in enumerate(kinds.replace(" ", ""), 1)
    ]
    if events and " " in kinds:
        del events[kinds.index(" ")]
    stored_run = {"id": "run_1", "status": "completed", "terminal": True, "attempt": 1, "error": None,
                  "output": {"content": "x"}, **run}
    session = SimpleNamespace(id="s", agent="counter", status=session_status, error=None, handle=None,
                              seq=len(kinds.replace(" ", "")))
    stored = check.Stored({"s": session}, {"s": {"run_1": SimpleNamespace(**stored_run)}}, {"s": events})  # type: ignore[dict-item]
    history = History({"counter": "x"})
    story = history.story("s", "counter")
    story.begun(OK)
    story.submitted(OK)
    history.fates["run_1"] = "completed"
    return stored, history


def test_world_as_it_was_told_is_no_problem() -> None:
    """If the node kept its word, then nothing is said."""
    assert check.sessions(*world("csmrtd")) == []


def test_prompt_that_waited_is_no_problem() -> None:
    """If a run had to wait, then its log begins with that."""
    assert check.sessions(*world("csqmrtd")) == []


@pytest.mark.parametrize(("kinds", "changes", "what"), [
    ("csmqrtd", {}, "it was queued twice"),
    ("csqqmrtd", {}, "it was queued twice"),
    ("csmrt d", {}, "has the seqs"),
    ("csmrtdd", {}, "terminal events"),
    ("csmrtdt", {}, "follows its end"),
    ("csmmrtd", {}, "messages were sent"),
    ("csmrrtd", {}, "started more often"),
    ("csmd", {}, "never started"),
    ("csmrt", {}, "terminal events are []"),
    ("csmrttd", {}, "'xx' was streamed"),
    ("csmrtf", {"status": "failed"}, "was said to be completed"),
    ("csmrtd", {"output": {"content": "xx"}}, "gave {'content': 'xx'}"),
    ("csmrtd", {"id": "run_2"}, "has events of a run"),
    ("cssmrtd", {}, "session_started at 3 while"),
    ("csmrtdp", {}, "by its log paused"),
])
def test_lie_of_a_log_is_told(kinds: str, changes: dict[str, Any], what: str) -> None:
    """If a log has a hole, or more or less than what happened, then it is told."""
    stored, history = world(kinds, **changes)
    stored.runs["s"] = {run.id: run for run in stored.runs["s"].values()}
    assert any(what in problem for problem in check.sessions(stored, history))


def test_lost_and_doubled_are_told() -> None:
    """If a session or run is lost, or one is there that nobody asked for, then it is told."""
    stored, history = world("csmrtd")
    history.story("lost", "counter").begun(OK)
    history.stories["s"].runs.add("run_0")
    stored.sessions["strange"] = stored.sessions["s"]
    problems = check.sessions(stored, history)
    for what in ("session lost was ack", "run run_0 of s was ack", "session strange was never asked"):
        assert any(problem.startswith(what) for problem in problems)
    stored, history = world("csmrtd")
    history.stories["s"].runs.clear()
    assert any("has 1 runs: 0 ack" in problem for problem in check.sessions(stored, history))


def test_verb_without_its_event_or_with_two_is_told() -> None:
    """If an acknowledged pause left no event, or an unacknowledged one two, then it is told."""
    stored, history = world("csmrtdp", "paused")
    story = history.stories["s"]
    story.told("pause", LATE)
    assert check.sessions(stored, history) == []
    story.told("pause", OK)
    assert check.sessions(stored, history) == []
    story.done["pause"] = 2
    assert any("session_paused" in problem for problem in check.sessions(stored, history))


def test_status_that_nobody_asked_for_is_told() -> None:
    """If an acknowledged verb was undone, then it is told; what was not acknowledged may be so or so."""
    story = Story("s", "counter")
    story.begun(OK)
    story.told("pause", LATE)
    assert story.status == {"active", "paused"}
    story.told("cancel", OK)
    assert story.status == {"cancelled"}


@pytest.mark.parametrize(("lines", "what"), [
    ("run_1 1\nrun_1 1\n", "executed 2 times"),
    ("run_1 1\nrun_1 2\n", "in 2 attempts"),
    ("run_1 1\nrun_9 1\n", "is not stored"),
    ("", "was not executed"),
])
def test_doubled_execution_is_told(tmp_path: Path, lines: str, what: str) -> None:
    """If an agent was executed again, or never, then it is told."""
    witness = tmp_path / "witness.txt"
    stored, _ = world("csmrtd")
    witness.write_text("run_1 1\n")
    assert check.executions(witness, stored) == []
    witness.write_text(lines)
    assert any(what in problem for problem in check.executions(witness, stored))


def ear(*rows: tuple[str, dict[str, Any]]) -> Any:
    """A listener that heard this."""
    return SimpleNamespace(name="ear", seen=[mesh.Notification(topic, data, "") for topic, data in rows])


@pytest.mark.parametrize(("heard", "fine"), [
    ("123456", True), ("12345", False), ("12356", False), ("1233456", False), ("123465", False),
    ("3456", False),
])
def test_listener_that_missed_or_repeated_is_told(heard: str, fine: bool) -> None:
    """If a listener heard something else than the log, then it is told."""
    stored, _ = world("csmrtd")
    log = {e.seq: e for e in stored.events["s"]}
    listener = ear(*(
        ("session.s.x", {"session_id": "s", "seq": int(n), "type": log[int(n)].type, "id": f"e{n}"})
        for n in heard
    ))
    assert (check.session_feed(stored, listener, []) == []) is fine


@pytest.mark.parametrize(("heard", "former", "missed"), [
    ("12345", {}, ["s"]), ("123456", {}, []), ("", {}, ["s"]), ("", {"s": 5}, ["s"]), ("", {"s": 6}, []),
])
def test_end_that_nobody_heard_is_told(heard: str, former: dict[str, int], missed: list[str]) -> None:
    """If a log ends behind what a listener heard, or behind its beginning, then it is told."""
    stored, _ = world("csmrtd")
    listener = ear(*(("session.s.x", {"session_id": "s", "seq": int(n)}) for n in heard))
    assert check.missed_by(stored, listener, ["s"], former) == missed


def life(*words: str) -> Any:
    """A listener of the lifecycle; a word is what, with lseq and incarnation: ``started/1/1``."""
    rows = []
    for word in words:
        what, lseq, incarnation = word.split("/")
        rows.append((f"lifecycle.{what}.s", {"session_id": "s", "partition": 0, "lseq": int(lseq),
                                             "handle": {"incarnation": int(incarnation)}}))
    return ear(*rows)


@pytest.mark.parametrize(("words", "fine"), [
    (("started/1/1", "stopped/2/1"), True),
    (("started/1/1", "restarted/2/2", "stopped/3/2", "started/4/3", "stopped/5/3"), True),
    (("started/1/1",), False),
    (("started/1/1", "stopped/2/1", "stopped/3/1"), False),
    (("started/1/1", "started/2/2", "stopped/3/2"), False),
    (("started/1/1", "stopped/3/1"), False),
    (("started/1/1", "restarted/2/3", "stopped/3/3"), False),
    (("restarted/1/2", "stopped/2/2"), False),
])
def test_lifecycle_that_makes_no_sense_is_told(words: tuple[str, ...], fine: bool) -> None:
    """If lives overlap, end twice, or a message is missing, then it is told. The session is not live."""
    stored, _ = world("csmrtd")
    assert (check.lifecycle_feed(stored, life(*words), []) == []) is fine


def test_process_that_is_left_is_told(tmp_path: Path) -> None:
    """If a process of the node outlives it, then it is told; when it is gone, nothing is."""
    service = Service(tmp_path, "seed")
    env = {**os.environ, "MESH_MARK": f"{data_hash(service.data_dir)}:life"}
    with subprocess.Popen(["sleep", "60"], env=env) as left:
        wait_for(lambda: left.pid in service.processes(), "its environment")
        service.await_gone("the test", 0.0)
        assert [problem.split(":")[0] for problem in service.problems] == [
            f"process {left.pid} outlived the test"
        ]
        left.kill()
    service.problems.clear()
    service.await_gone("the test")
    assert service.problems == []


def test_traceback_in_a_log_is_told(tmp_path: Path) -> None:
    """If a process wrote of a bug of its own, then it is told."""
    (tmp_path / "partition-0.log").write_text("fine\n")
    assert check.logs(tmp_path) == []
    (tmp_path / "runner-0.log").write_text("Traceback (most recent call last):\n")
    assert check.logs(tmp_path) == ["runner-0.log: Traceback (most recent call last):"]
