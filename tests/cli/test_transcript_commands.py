"""``mesh session transcript, run, fork, compact, pin``: what they ask and how they show it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

from mesh.core.message import Message, Role, Transcript
from mesh.core.records import Event, Run, RunStatus, Session, SessionStatus

Cli = Callable[..., Result]
FakeClient = Any  # the fixture's class, tests/cli/conftest.py
SAID = Transcript("s1", (
    Message(Role.USER, "hi", metadata={"sequence_number": 3}),
    Message(Role.ASSISTANT, None, "c", "ls", {"path": "/"}, metadata={"sequence_number": 5}),
    Message(Role.TOOL, None, "c", "ls", None, ["a"], metadata={"sequence_number": 6}),
), 9, 1.0, {"omitted": 4})


def test_a_transcript_is_a_table_of_what_was_said(cli: Cli, fake: FakeClient) -> None:
    """If a transcript is printed, then each message is a row with the seq that names it."""
    fake.answers["sessions.transcript"] = SAID
    shown = cli("session", "transcript", "s1", "--max-tokens", "50", "--before", "7")
    rows = [line.split("\t") for line in shown.stdout.splitlines()]
    assert [row[:2] for row in rows[-3:]] == [["3", "user"], ["5", "assistant"], ["6", "tool"]]
    assert fake.named("sessions.transcript") == [(("s1",), {"max_tokens_approx": 50, "before": 7})]
    whole = json.loads(cli("session", "transcript", "s1", "-o", "json").stdout)
    assert whole["messages"][1]["tool_input"] == {"path": "/"} and whole["metadata"] == {"omitted": 4}


@pytest.mark.parametrize(("given", "mode"), [((), None), (("--continue", "off"), False),
                                             (("--continue", "native"), "native")])
def test_a_run_in_a_session_takes_its_options(
    cli: Cli, fake: FakeClient, given: tuple[str, ...], mode: Any
) -> None:
    """If a run is given another agent and a continuation, then that is what is asked for."""
    fake.answers["runs.submit"] = Run("run_1", "s1", RunStatus.QUEUED)
    done = cli("session", "run", "s1", "go", "on", "--agent", "b", "--max-messages", "3", *given)
    assert (done.exit_code, done.stdout) == (0, "run_1\n")
    assert fake.named("runs.submit") == [(("s1", "go on"), {
        "agent": "b", "continuation": mode, "continuation_opts": {"max_messages": 3}})]


def test_a_fork_prints_its_id(cli: Cli, fake: FakeClient) -> None:
    """If a session is forked, then the id of the fork alone is on standard output."""
    fake.answers["sessions.fork"] = Session("s2", "echo", "echo", SessionStatus.ACTIVE)
    assert cli("session", "fork", "s1", "--at", "7", "--id", "s2").stdout == "s2\n"
    assert fake.named("sessions.fork") == [(("s1", 7), {"new_id": "s2", "agent": None})]


def test_a_compaction_prints_the_summary(cli: Cli, fake: FakeClient) -> None:
    """If a session is compacted, then the summary is on standard output."""
    data = {"summary": "short", "up_to": 8}
    fake.answers["sessions.compact"] = Event("e", "transcript_compacted", "s1", None, 9, 1.0, data)
    assert cli("session", "compact", "s1", "--summary", "short", "--keep-last", "2").stdout == "short\n"
    [(args, options)] = fake.named("sessions.compact")
    assert args == ("s1",) and (options["summary"], options["keep_last"]) == ("short", 2)


def test_a_pin_and_its_end(cli: Cli, fake: FakeClient) -> None:
    """If a message is pinned and unpinned, then both are asked by its seq."""
    assert cli("session", "pin", "s1", "3").exit_code == 0
    assert json.loads(cli("session", "pin", "s1", "3", "--off", "-o", "json").stdout)["pinned"] is False
    assert [options["pinned"] for _, options in fake.named("sessions.pin")] == [True, False]
