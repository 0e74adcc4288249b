"""Compact, summarise, pin and fork as a partition decides them: events, in the transaction they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Runner, new_run_id

from mesh.core import events as ev
from mesh.core import wire

RUN, RUN2 = new_run_id("s", 1), new_run_id("s", 2)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.call("session.start", "s", "echo", None)
    yield made
    made.store.connection.close()
    assert not made.bugs, made.bugs


def runner_of(bench: Bench) -> Runner:
    runner = bench.runners[0]
    assert runner is not None
    return runner


def said(bench: Bench, kind: str) -> list[dict[str, Any]]:
    """The data of the events of a type in session ``s``."""
    rows = bench.rows(
        "SELECT e.fragment FROM event e JOIN session s ON s.n = e.session WHERE s.id = 's' AND e.type = ?"
        " ORDER BY e.seq", ev.TYPE_CODE[kind])
    return [wire.unpack(wire.map_header(ev.FRAGMENT_PAIRS) + row[0])["data"] for row in rows]


def prompted(bench: Bench, run_id: str = RUN) -> None:
    """A run with one prompt, completed."""
    bench.call("run.submit", run_id, "s", "hello", None)
    bench.deliver()
    bench.progress(runner_of(bench), run_id, "completed")


def command(bench: Bench, run_id: str) -> list[Any]:
    """The command by which a run was dispatched."""
    commands = [c for message in bench.sent[0] for c in message[3] if c[:2] == ["run", run_id]]
    return commands[-1]


def test_a_compaction_is_one_event(bench: Bench) -> None:
    """If a summary is given, then it is written with its limit, the newest event unless said."""
    assert bench.call("session.compact", "s", "short", None) == 3
    assert bench.call("session.compact", "s", "shorter", 1) == 4
    assert said(bench, "transcript_compacted") == [
        {"summary": "short", "up_to": 2}, {"summary": "shorter", "up_to": 1}]


@pytest.mark.parametrize("args", [
    ["", None], ["  ", None], [3, None], [None, None], ["x", -1], ["x", 99], ["x", True], ["x", "1"],
    ["x", 1.0], ["x" * (1 << 20), None]])
def test_a_compaction_with_wrong_arguments_writes_nothing(bench: Bench, args: list[Any]) -> None:
    """If there is no summary, or the seq is not one of the session's, then nothing is written."""
    refused = bench.code("session.compact", "s", *args)
    assert refused in ("validation_error", "invalid_cursor", "limit_exceeded")
    assert bench.events("s") == ["session_created", "session_started"]


def test_a_run_that_summarises_compacts_when_it_completes(bench: Bench) -> None:
    """If an agent makes the summary, then it is written in the transaction that settles its run."""
    prompted(bench)
    up_to = bench.state.session("s").seq
    bench.call("run.summarise", RUN2, "s", None, None, None)
    run = command(bench, RUN2)
    assert run[5]["continuation"] == "replay" and run[5]["continuation_opts"] == {"before": up_to + 1}
    assert (run[5]["compact"], run[3]["seq"]) == (up_to, up_to + 1)
    bench.deliver()
    bench.progress(runner_of(bench), RUN2, "completed")
    assert said(bench, "transcript_compacted") == [{"summary": "x", "up_to": up_to, "run_id": RUN2}]
    assert bench.events("s")[-2:] == ["run_completed", "transcript_compacted"]


@pytest.mark.parametrize("status", ["failed", "cancelled", "timeout"])
def test_a_summary_that_does_not_complete_replaces_nothing(bench: Bench, status: str) -> None:
    """If the run ends otherwise, then there is no compaction."""
    bench.call("run.summarise", RUN, "s", None, "briefly", {"agent": "again"})
    assert command(bench, RUN)[3]["agent"] == "again" and command(bench, RUN)[4] == {"prompt": "briefly"}
    bench.deliver()
    bench.progress(runner_of(bench), RUN, status)
    assert said(bench, "transcript_compacted") == []


def test_a_summary_survives_a_kill_with_its_run_or_not_at_all(bench: Bench) -> None:
    """If the partition dies in the commit that settles, then run and summary are both there later."""
    bench.call("run.summarise", RUN, "s", None, None, None)
    bench.deliver()
    runner = runner_of(bench)
    batch = runner.batch(RUN, "completed")
    bench.store.fail_next = True
    bench.say(runner, batch)
    assert bench.status(RUN) == "running" and said(bench, "transcript_compacted") == []
    bench.kill()
    bench.say(runner, batch)
    assert bench.status(RUN) == "completed" and len(said(bench, "transcript_compacted")) == 1
    bench.say(runner, batch)
    assert len(said(bench, "transcript_compacted")) == 1


def test_only_the_node_marks_a_run_as_a_summary(bench: Bench) -> None:
    """If a caller gives the node's own option, then it is unknown."""
    assert bench.code("run.submit", RUN, "s", "x", {"compact": 3}) == "validation_error"
    assert bench.code("run.summarise", RUN, "s", None, "", None) == "validation_error"
    assert bench.code("run.summarise", RUN, "s", None, None, {"nonsense": 1}) == "validation_error"
    assert bench.code("run.summarise", RUN, "s", 99, None, None) == "invalid_cursor"


def test_only_messages_of_the_log_are_pinned(bench: Bench) -> None:
    """If the event is a message, then its pin is an event; else there is nothing to pin."""
    prompted(bench)
    sent = bench.events("s").index("message_sent") + 1
    bench.call("session.pin", "s", sent, None)
    bench.call("session.pin", "s", sent, False)
    assert said(bench, "message_pinned") == [{"seq": sent, "pinned": True}, {"seq": sent, "pinned": False}]
    for seq in (1, 0, -3, 1 << 63, 999):
        assert bench.code("session.pin", "s", seq, None) == "not_found"
    for wrong in ("1", None, 1.0, True):
        assert bench.code("session.pin", "s", wrong, None) == "invalid_cursor"
    assert bench.code("session.pin", "s", sent, "yes") == "invalid_cursor"


def test_what_is_over_is_not_changed(bench: Bench) -> None:
    """If the session is closed, then its transcript is as it is."""
    prompted(bench)
    bench.call("session.complete", "s", None)
    assert bench.code("session.compact", "s", "x", None) == "session_closed"
    assert bench.code("session.pin", "s", 3, None) == "session_closed"
    assert bench.code("run.summarise", RUN2, "s", None, None, None) == "session_closed"


def test_a_fork_is_one_write_that_says_where_it_comes_from(bench: Bench) -> None:
    """If a session is a fork, then record, first event and run command name the original and the seq."""
    fields = {"parent_session_id": "s", "fork_seq": 2}
    made = bench.call("session.start", "f", "echo", fields)
    assert (made["parent_session_id"], made["fork_seq"]) == ("s", 2)
    run_id = new_run_id("f", 1)
    bench.call("run.submit", run_id, "f", "x", None)
    assert command(bench, run_id)[3]["fork"] == ["s", 2]
    bench.kill()
    assert bench.state.session("f").fork_seq == 2


@pytest.mark.parametrize("fields", [
    {"fork_seq": 1}, {"fork_seq": -1, "parent_session_id": "s"}, {"fork_seq": "1", "parent_session_id": "s"},
    {"fork_seq": True, "parent_session_id": "s"}, {"fork_seq": 1, "parent_session_id": "f"}])
def test_a_fork_of_nothing_or_itself_is_refused(bench: Bench, fields: dict[str, Any]) -> None:
    """If there is no seq of another session, then nothing is created."""
    assert bench.code("session.create", "f", "echo", fields) == "invalid_cursor"
    assert not bench.state.has_session("f")


def test_another_agent_executes_one_run(bench: Bench) -> None:
    """If a run names an agent, then it is checked and executes this run; the session's stays."""
    assert bench.code("run.submit", RUN, "s", "x", {"agent": "nobody"}) == "unknown_agent"
    bench.call("run.submit", RUN, "s", "x", {"agent": "again"})
    assert command(bench, RUN)[3]["agent"] == "again" and bench.state.session("s").agent == "echo"


def test_the_log_of_many_model_calls_stays_linear(bench: Bench) -> None:
    """If a session has twice the runs, then its file has twice the events and twice the bytes, not more."""
    def grown(first: int, count: int) -> tuple[int, int]:
        for n in range(first, first + count):
            run_id = new_run_id("s", n)
            bench.call("run.submit", run_id, "s", f"{n:06}", {"continuation": "replay"})
            bench.deliver()
            bench.progress(runner_of(bench), run_id, "completed")
        [(events, size)] = bench.rows("SELECT count(*), sum(length(fragment)) FROM event")
        [(runs,)] = bench.rows("SELECT sum(length(record)) FROM run")
        return events, size + runs

    events, size = grown(10, 100)
    more_events, more_size = grown(110, 100)
    assert more_events - 2 == 2 * (events - 2) and more_size < 2.02 * size
