"""What each command asks of the client and how it shows the answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from mesh.cli.verbs import VERBS
from mesh.core.notification import Notification
from mesh.core.records import (
    Event,
    Handle,
    Page,
    PartitionInfo,
    Prompted,
    PruneResult,
    QueuedPrompt,
    Resolution,
    RouteEntry,
    RouteRecord,
    Run,
    RunStatus,
    Session,
    SessionStatus,
    Source,
)
from mesh.errors import DeadlineExceeded, MeshError, NotFound, Unavailable

Cli = Callable[..., Result]
FakeClient = Any  # the fixture's class, tests/cli/conftest.py
SESSION = Session("s1", "echo", "echo", SessionStatus.ACTIVE, seq=2, handle=Handle("s1", 0, 42, 1))
RUN = "run_0" + "0" * 31


def event(seq: int, kind: str, run_id: str | None = RUN, **data: Any) -> Event:
    return Event(f"s1-{seq}", kind, "s1", run_id, seq, 1.0, data)


def test_route_set_makes_a_route_of_a_room_id(cli: Cli, fake: FakeClient) -> None:
    """If ROUTE is a plain text, then it is the external room's id; fields are added."""
    done = cli("route", "set", "a:b:c", "room9", "--field", "team=T1", "--field", "n:=3", "--ttl-ms", "500")
    assert done.exit_code == 0 and done.stdout == ""
    route = {"external_room_id": "room9", "team": "T1", "n": 3}
    assert fake.named("routes.set") == [(("a:b:c", route), {"ttl_ms": 500})]


def test_route_set_takes_a_json_map(cli: Cli, fake: FakeClient) -> None:
    """If ROUTE is a JSON map, then it is the route."""
    cli("route", "set", "a:b:c", '{"external_room_id": 5, "x": [1]}')
    assert fake.named("routes.set")[0][0] == ("a:b:c", {"external_room_id": 5, "x": [1]})


@pytest.mark.parametrize("arguments", [("{no",), ("r", "--field", "x"), ("r", "--field", "x:=no")])
def test_route_set_refuses_what_is_not_a_route(
    cli: Cli, fake: FakeClient, arguments: tuple[str, ...]
) -> None:
    """If the route cannot be read, then it is a usage error and nothing is sent."""
    assert cli("route", "set", "a:b:c", *arguments).exit_code == 2 and not fake.calls


def test_route_get_as_json(cli: Cli, fake: FakeClient) -> None:
    """If a route is read as JSON, then its record is one document."""
    fake.answers["routes.get"] = RouteRecord({"external_room_id": "r"}, 5, 7)
    assert json.loads(cli("route", "get", "a:b:c", "-o", "json").stdout) == {
        "route": {"external_room_id": "r"},
        "age_ms": 5,
        "ttl_left_ms": 7,
        "provenance": "learned",
        "session_key": "a:b:c",
    }


def test_route_resolve_in_a_pipe_is_the_room_alone(cli: Cli, fake: FakeClient) -> None:
    """If resolve is piped, then a script gets the room's id and nothing else."""
    fake.answers["routes.resolve"] = Resolution("r9", {}, 0, "a:b:c", Source.STATE_HIT, False, False)
    assert cli("route", "resolve", "a:b:c", "--fallback", "lobby").stdout == "r9\n"
    assert fake.named("routes.resolve")[0][0] == ("a:b:c", [{"external_room_id": "lobby"}])


def test_route_list_in_a_pipe_is_tab_separated(cli: Cli, fake: FakeClient) -> None:
    """If a list is piped, then it is rows without a header, and what is missing is on stderr."""
    fake.answers["routes.list"] = Page(
        [RouteEntry("a:b:c", {"external_room_id": "r"}, 1000, 61000)], "next", [1]
    )
    done = cli("route", "list", "--bridge", "b")
    assert done.stdout == "a:b:c\tr\t1s\t1m1s\tlearned\n"
    assert "--cursor next" in done.stderr and "partitions 1 did not answer" in done.stderr


def test_route_delete_of_nothing_is_not_found(cli: Cli, fake: FakeClient) -> None:
    """If there was no route, then the exit code is 4."""
    fake.answers["routes.delete"] = False
    assert cli("route", "delete", "a:b:c").exit_code == 4


def test_route_prune_prints_the_count(cli: Cli, fake: FakeClient) -> None:
    """If routes are pruned, then their number is printed."""
    fake.answers["routes.prune"] = PruneResult(3, 2)
    assert cli("route", "prune").stdout == "3\n"


@pytest.mark.parametrize("name", ["create", "start"])
def test_new_session_prints_its_id_alone(cli: Cli, fake: FakeClient, name: str) -> None:
    """If a session is made in a pipe, then its id is the whole output."""
    fake.answers[f"sessions.{name}"] = SESSION
    done = cli("session", name, "echo", "--id", "s1", "--tag", "a", "--tag", "b", "--context", "user=ann")
    assert done.stdout == "s1\n"
    (agent,), options = fake.named(f"sessions.{name}")[0]
    assert agent == "echo"
    assert options == {
        "id": "s1",
        "slots": None,
        "agent_id": None,
        "context": {"user": "ann"},
        "metadata": None,
        "tags": ("a", "b"),
        "parent_session_id": None,
        "token": None,
    }


def test_session_list_as_json(cli: Cli, fake: FakeClient) -> None:
    """If sessions are listed as JSON, then the page is one document."""
    fake.answers["sessions.list"] = Page([SESSION], None, [])
    listed = json.loads(cli("session", "list", "-o", "json").stdout)
    assert listed["items"][0]["id"] == "s1" and listed["items"][0]["handle"]["pid"] == 42
    assert listed["cursor"] is None and listed["missing"] == []


def test_session_show_has_its_runs(cli: Cli, fake: FakeClient) -> None:
    """If a session is shown as JSON, then its runs are in it."""
    fake.answers |= {"sessions.get": SESSION, "sessions.runs": [Run(RUN, "s1", RunStatus.COMPLETED)]}
    assert json.loads(cli("session", "show", "s1", "-o", "json").stdout)["runs"][0]["status"] == "completed"


def test_session_prompt_prints_the_run(cli: Cli, fake: FakeClient) -> None:
    """If a prompt is given, then the run's id is printed and the words are joined."""
    fake.answers["sessions.prompt"] = Prompted(RUN, True)
    assert cli("session", "prompt", "s1", "make", "test").stdout == f"{RUN}\n"
    given = {"queue": "follow_up", "on_busy": "enqueue"}
    assert fake.named("sessions.prompt") == [(("s1", "make test"), given)]


def test_session_prompt_says_what_to_do_while_busy(cli: Cli, fake: FakeClient) -> None:
    """If --queue and --on-busy are given, then they are asked for; what is no choice is a usage error."""
    fake.answers["sessions.prompt"] = Prompted(RUN, True, "steering")
    done = cli("session", "prompt", "s1", "x", "--queue", "steering", "--on-busy", "reject", "-o", "json")
    assert json.loads(done.stdout) == {"run_id": RUN, "queued": True, "queue": "steering"}
    assert fake.named("sessions.prompt")[0][1] == {"queue": "steering", "on_busy": "reject"}
    assert cli("session", "prompt", "s1", "x", "--on-busy", "panic").exit_code == 2


@pytest.mark.parametrize("what", ["queued", "recall"])
def test_what_waits_is_shown(cli: Cli, fake: FakeClient, what: str) -> None:
    """If prompts wait, then each is a row, or an item of the JSON list."""
    fake.answers[f"sessions.{what}"] = (QueuedPrompt(RUN, "steering", "say this", 1.0),)
    assert "say this" in cli("session", what, "s1").stdout
    assert json.loads(cli("session", what, "s1", "-o", "json").stdout)[0]["queue"] == "steering"


def test_drain_is_of_a_session_or_of_the_node(cli: Cli, fake: FakeClient) -> None:
    """If an id is given, then that session is drained, else the node."""
    assert cli("session", "drain", "s1", "--within", "5").exit_code == 0
    assert cli("session", "drain").exit_code == 0
    assert fake.named("sessions.drain") == [(("s1",), {"timeout_s": 5.0})]
    assert fake.named("drain") == [((), {"timeout_s": 60.0})]


def test_control_cancels_many_and_fails_when_one_fails(cli: Cli, fake: FakeClient) -> None:
    """If one of the runs could not be cancelled, then the others are, and the exit code is 1."""
    fake.answers["runs.cancel_many"] = {RUN: None, "run_x": NotFound("no run", code="run_not_found")}
    done = cli("control", "cancel", RUN, "run_x", "-o", "json")
    assert done.exit_code == 1 and json.loads(done.stdout)["run_x"]["code"] == "run_not_found"
    fake.answers["runs.pause"] = Run(RUN, "s1", RunStatus.PAUSED)
    assert json.loads(cli("control", "pause", RUN, "-o", "json").stdout)["status"] == "paused"


def test_prompt_from_standard_input(cli: Cli, fake: FakeClient) -> None:
    """If the prompt is -, then it is read from standard input."""
    fake.answers["sessions.prompt"] = Prompted(RUN, False)
    cli("session", "prompt", "s1", "-", input="from a pipe\n")
    assert fake.named("sessions.prompt")[0][0] == ("s1", "from a pipe\n")


def test_an_empty_prompt_is_a_usage_error(cli: Cli, fake: FakeClient) -> None:
    """If the prompt is empty, then nothing is sent."""
    assert cli("session", "prompt", "s1", " ").exit_code == 2 and not fake.calls


def test_session_events_are_json_lines(cli: Cli, fake: FakeClient) -> None:
    """If events are wanted as JSON, then each one is a line."""
    fake.answers["sessions.events"] = [event(1, "run_started"), event(2, "run_completed")]
    lines = cli("session", "events", "s1", "--type", "x", "--after", "0", "-o", "json").stdout.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [1, 2]
    assert fake.named("sessions.events")[0][1]["after"] == 0


def test_session_events_are_filtered_by_time_and_types(cli: Cli, fake: FakeClient) -> None:
    """If times and several types are given, then they are filters; a time that is none is a usage error."""
    fake.answers["sessions.events"] = [event(1, "run_started")]
    given = ("--since", "2026-01-31T12:00+00:00", "--until", "1769860801.5", "--type", "a", "--type", "b")
    assert cli("session", "events", "s1", *given).exit_code == 0
    filters = dict.fromkeys(("run_id", "after", "before", "limit"))
    assert fake.named("sessions.events") == [(("s1",), {
        **filters, "since": 1769860800.0, "until": 1769860801.5, "type": ("a", "b")})]
    assert cli("session", "events", "s1", "--until", "soon").exit_code == 2
    for day in ("2026-01-31", "20260131"):  # not a second of August 1970
        cli("session", "events", "s1", "--since", day)
    assert len({given["since"] for _, given in fake.named("sessions.events")[1:]}) == 1


def test_control_show_is_one_run_by_its_id(cli: Cli, fake: FakeClient) -> None:
    """If a run's id is known, then its record is shown, as JSON all of it."""
    fake.answers["runs.get"] = Run(RUN, "s1", RunStatus.COMPLETED, output={"content": "done"}, started_at=5.0)
    shown = json.loads(cli("control", "show", RUN, "-o", "json").stdout)
    assert shown == fake.answers["runs.get"].to_map()
    text = cli("control", "show", RUN).stdout
    assert "status\tcompleted" in text and "started_at\t19" in text
    assert fake.named("runs.get") == [((RUN,), {})] * 2


@pytest.mark.parametrize("name", [*(verb.name for verb in VERBS), "fail"])
def test_session_steps_are_quiet_in_a_pipe(cli: Cli, fake: FakeClient, name: str) -> None:
    """If a step succeeds in a pipe, then nothing is printed; the version that was seen goes along."""
    words = ["s1", "why"] if name == "fail" else ["s1"]
    for more, given in (([], {}), (["--if-version", "3"], {"if_version": 3})):
        done = cli("session", name, *words, *more)
        assert (done.exit_code, done.output) == (0, "")
        assert fake.named(f"sessions.{name}")[-1] == (tuple(words), given)


def _stream(*events: Event, interrupted: bool = False) -> Callable[..., Any]:
    def stream(*_: Any, after: int = 0, **__: Any) -> Any:
        yield from (one for one in events if one.seq > after)
        if interrupted:
            raise KeyboardInterrupt

    return stream


def test_attach_ends_with_the_session(cli: Cli, fake: FakeClient) -> None:
    """If the session is over, then attach has shown everything and ends with 0."""
    fake.answers |= {
        "sessions.get": SESSION,
        "sessions.stream": _stream(
            event(1, "run_started"),
            event(2, "message_streamed", content="he"),
            event(3, "message_streamed", content="llo"),
            event(4, "run_completed"),
            event(5, "session_completed", None),
        ),
    }
    done = cli("session", "attach", "s1", "--after", "1")
    assert done.exit_code == 0
    lines = ["hello", "[run_completed] seq=4", "[session_completed] seq=5", "--- 4 events, 0 tools ---"]
    assert done.stdout.splitlines() == lines


def test_attach_detaches_at_ctrl_c_and_says_how_to_go_on(cli: Cli, fake: FakeClient) -> None:
    """If Ctrl-C comes, then nothing is cancelled and the resume line has the last event seen."""
    fake.answers |= {
        "sessions.get": SESSION,
        "sessions.stream": _stream(event(7, "run_started"), interrupted=True),
    }
    done = cli("session", "attach", "s1", "--after", "0")
    assert done.exit_code == 0 and "mesh session attach s1 --after 7" in done.stderr
    assert {name for name, _, _ in fake.calls} == {"sessions.get", "sessions.stream"}


def test_attach_says_what_it_waits_for(
    cli: Cli, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If nothing is heard since nobody answers, then that is said once, and the session is followed on as
    soon as somebody does."""
    monkeypatch.setattr("mesh.cli.driving.AGAIN_S", 0.0)
    answers = iter([SESSION, Unavailable("the node is gone"), Unavailable("it still is"), SESSION])
    pages = iter([[event(4, "run_completed")], [event(5, "session_completed", None)]])

    def get(*_: Any) -> Any:
        answer = next(answers)
        if isinstance(answer, MeshError):
            raise answer
        return answer

    def stream(*_: Any, after: int, **__: Any) -> Any:
        found = next(pages)
        assert found[0].seq == after + 1
        yield from found
        raise DeadlineExceeded("silence")

    fake.answers |= {"sessions.get": get, "sessions.stream": stream}
    done = cli("session", "attach", "s1", "--after", "3")
    assert done.exit_code == 0 and "[session_completed] seq=5" in done.stdout
    assert done.stderr == "waiting: the node is gone (Ctrl-C detaches)\nit answers again\n"


def test_partition_list_shows_the_cause_of_death(cli: Cli, fake: FakeClient) -> None:
    """If a partition died, then its row says of what."""
    cause = {"exit_status": None, "signal": "SIGKILL", "stderr": "a\nlast line", "at": 1.0}
    fake.answers["partitions.list"] = [PartitionInfo(0, "ready", 9, 3, 1, 10, 2, cause=cause)]
    done = cli("partition", "list")
    assert done.stdout == "0\tready\t9\t3\t1\t10\t2\t0\t0\tkilled by SIGKILL: last line\n"


def test_status_joins_roster_and_counters(cli: Cli, fake: FakeClient) -> None:
    """If the node is asked, then each process is one row, with what it counts."""
    fake.answers["status"] = {
        "node": "mesh",
        "pid": 1,
        "uptime_s": 5.0,
        "data_dir": "/d",
        "children": [
            {
                "name": "router",
                "kind": "router",
                "index": 0,
                "state": "ready",
                "pid": 2,
                "incarnation": 1,
                "restarts": 0,
            },
            {
                "name": "partition-0",
                "kind": "partition",
                "index": 0,
                "state": "ready",
                "pid": 3,
                "incarnation": 2,
                "restarts": 1,
                "cause": {"exit_status": 1, "signal": None, "stderr": ""},
            },
        ],
        "partitions": [
            {"index": 0, "state": "ready", "pid": 3, "epoch": 4, "routes": 8, "sessions": 2, "live": 1}
        ],
        "runners": [],
    }
    assert cli("status").stdout.splitlines() == [
        "router\tready\t2\t1\t0\t-\t-\t-\t-\t-\t-",
        "partition-0\tready\t3\t4\t1\t8\t2\t1\t-\t-\texit 1",
    ]
    assert json.loads(cli("status", "-o", "json").stdout)["partitions"][0]["epoch"] == 4


def test_agent_list_names_the_problem(cli: Cli, fake: FakeClient) -> None:
    """If an agent cannot be loaded, then its row ends with the reason."""
    fake.answers["agents.list"] = [
        {
            "name": "a",
            "provider": "python",
            "capabilities": [{"name": "chat"}],
            "problem": "Traceback\nSyntaxError: x",
        },
        {"name": "echo", "provider": "echo", "capabilities": ["chat"], "problem": None},
    ]
    assert cli("agent", "list").stdout == "a\tpython\tchat\t-\tSyntaxError: x\necho\techo\tchat\t-\t-\n"


def test_agent_list_says_how_a_routers_agents_are(cli: Cli, fake: FakeClient) -> None:
    """If an agent is a router, then its row names its agents, each with its circuit, as runners see it."""
    closed, half = {"state": "closed", "open_ms": 0}, {"state": "half_open", "open_ms": 0}
    opened = {"state": "open", "open_ms": 12_400}
    fake.answers["agents.list"] = [{
        "name": "r", "provider": "router", "capabilities": [], "problem": None, "routing": [
            {"runner": 0, "agents": [{"agent": "a", **closed}, {"agent": "b", **opened}]},
            {"runner": 1, "agents": [{"agent": "a", **closed}, {"agent": "b", **half}]},
        ],
    }]
    told = "a closed, b open 12 s (1 of 2) / half open (1 of 2)"
    assert cli("agent", "list").stdout == f"r\trouter\t-\t{told}\t-\n"


def test_listen_prints_json_lines_with_cursors(cli: Cli, fake: FakeClient) -> None:
    """If messages come, then each is a line that holds the cursor to go on behind it."""

    class Listener(list[Notification]):
        def __enter__(self) -> Listener:
            return self

        def __exit__(self, *_: object) -> None:
            return None

    fake.answers["listen"] = Listener(Notification("node.head", {"n": i}, f"c{i}") for i in range(3))
    lines = cli("listen", "node.", "-n", "2", "-o", "json").stdout.splitlines()
    assert [json.loads(line)["cursor"] for line in lines] == ["c0", "c1"]


def test_backup_prints_the_files_and_copies_the_map(cli: Cli, fake: FakeClient, tmp_path: Path) -> None:
    """If a backup is made, then each file is a line, the placement map's included."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "node.db").write_text("map")
    (tmp_path / "b").mkdir()
    fake.answers |= {"status": {"data_dir": str(tmp_path / "data")}, "backup": ["/b/partition-0.db"]}
    assert cli("backup", str(tmp_path / "b")).stdout == f"/b/partition-0.db\n{tmp_path}/b/node.db\n"
    assert (tmp_path / "b" / "node.db").read_text() == "map"


def test_backup_of_another_machine_warns(cli: Cli, fake: FakeClient, tmp_path: Path) -> None:
    """If the node's folder is not here, then the one file that is missing is named."""
    fake.answers |= {"status": {"data_dir": "/not/here"}, "backup": ["/b/partition-0.db"]}
    done = cli("backup", str(tmp_path))
    assert done.exit_code == 0 and "node.db" in done.stderr


def test_run_streams_pieces_and_completes_its_session(cli: Cli, fake: FakeClient) -> None:
    """If a run succeeds, then its pieces are the output, stderr apart, and its session is completed."""
    _a_run(
        fake,
        RunStatus.COMPLETED,
        event(4, "message_sent", content="x"),
        event(5, "message_streamed", content="out\n", stream="stdout"),
        event(6, "message_streamed", content="err\n", stream="stderr"),
        event(7, "message_received", content="out\nerr\n"),
        event(8, "run_completed"),
    )
    done = cli("run", "shell", "ls", "--address", "tcp://h:1", "--context", "cwd=/")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "out\n", "err\n")
    assert fake.named("sessions.start") == [(("shell",), {"context": {"cwd": "/"}, "tags": ()})]
    assert fake.named("sessions.complete") == [(("s1",), {})]


def test_run_of_an_agent_that_does_not_stream_prints_its_message(cli: Cli, fake: FakeClient) -> None:
    """If there are no pieces, then the whole message is the output."""
    _a_run(fake, RunStatus.COMPLETED, event(5, "message_received", content="all"), event(6, "run_completed"))
    assert cli("run", "echo", "x", "--address", "a").stdout == "all"


@pytest.mark.parametrize("words", [(), ("--session", "s1")])
def test_run_gives_the_session_that_it_makes_its_tags(
    cli: Cli, fake: FakeClient, words: tuple[str, ...]
) -> None:
    """If --tag is given, then a session that is made has it, and so the run counts in the tag's budgets."""
    _a_run(fake, RunStatus.COMPLETED, event(5, "run_completed"))
    cli("run", "echo", "x", "--address", "a", "--tag", "team-a", "--tag", "b", *words)
    [(_, options)] = fake.named("sessions.start_or_get" if words else "sessions.start")
    assert options["tags"] == ("team-a", "b")


def test_a_recording_that_fails_hides_nothing_and_leaves_nothing(
    cli: Cli, fake: FakeClient, tmp_path: Path
) -> None:
    """If the recording cannot be written, then that is said beside the run's own error, whose exit code
    holds; a run that went well is not ok without it. No half file is left."""
    fake.answers["sessions.export"] = Unavailable("no partition")
    for kind, status, error, code in (
        ("run_timeout", RunStatus.TIMEOUT, {"code": "timeout", "message": "too slow"}, 5),
        ("run_completed", RunStatus.COMPLETED, None, 1),
    ):
        _a_run(fake, status, event(5, kind), error=error)
        done = cli("run", "echo", "x", "--address", "a", "--record", str(tmp_path / "r.jsonl"))
        assert done.exit_code == code and list(tmp_path.iterdir()) == []
        assert "r.jsonl: no partition" in done.stderr and ("too slow" in done.stderr) == (code == 5)


def test_run_as_json_lines(cli: Cli, fake: FakeClient) -> None:
    """If JSON is wanted, then every event is a line."""
    _a_run(fake, RunStatus.COMPLETED, event(5, "message_sent", content="x"), event(6, "run_completed"))
    lines = cli("run", "echo", "x", "--address", "a", "-o", "json").stdout.splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["message_sent", "run_completed"]


@pytest.mark.parametrize(
    ("kind", "status", "code", "exit_code"),
    [
        ("run_failed", RunStatus.FAILED, "command_failed", 1),
        ("run_timeout", RunStatus.TIMEOUT, "timeout", 5),
        ("run_cancelled", RunStatus.CANCELLED, "cancelled", 1),
    ],
)
def test_run_that_ends_badly(
    cli: Cli, fake: FakeClient, kind: str, status: RunStatus, code: str, exit_code: int
) -> None:
    """If the run fails, then its error is on stderr and the exit code says so."""
    _a_run(fake, status, event(5, kind), error={"code": code, "message": "no luck"})
    done = cli("run", "shell", "x", "--address", "a")
    assert done.exit_code == exit_code and f"error: no luck ({code})" in done.stderr


def test_run_in_a_named_session_leaves_it_open(cli: Cli, fake: FakeClient) -> None:
    """If --session names one, then it is used and stays."""
    _a_run(fake, RunStatus.COMPLETED, event(5, "run_completed"))
    cli("run", "echo", "x", "--session", "s1", "--address", "a", "--timeout", "3", "--idle", "2")
    assert fake.named("sessions.start_or_get")[0][0] == ("s1", "echo")
    assert fake.named("runs.submit") == [
        (("s1", {"prompt": "x"}), {
            "deadline_s": 3.0, "idle_s": 2.0, "policies": [], "workspace": None, "provider_opts": None,
        })
    ]
    assert not fake.named("sessions.complete")


@pytest.mark.parametrize(("facts", "said"), [
    ({"rollback": {"done": True}}, "workspace: 2 files changed (+3 -1); rolled back\n"),
    ({"rollback": {"done": False}}, "workspace: 2 files changed (+3 -1); NOT rolled back\n"),
    ({"worktree_ref": "refs/mesh/r"}, "workspace: 2 files changed (+3 -1); git merge refs/mesh/r\n"),
    ({"diff": None}, "workspace: what changed is not known\n"),
])
def test_run_in_a_workspace_says_what_changed(
    cli: Cli, fake: FakeClient, facts: dict[str, Any], said: str
) -> None:
    """If --workspace is given, then the run gets it, and one line on stderr says what became of it."""
    diff = {"files_changed": 2, "insertions": 3, "deletions": 1, "patch_truncated": False}
    workspace = {"backend": "git", "diff": diff, **facts}
    _a_run(fake, RunStatus.COMPLETED, event(5, "run_completed"))
    fake.answers["runs.get"] = Run(RUN, "s1", RunStatus.COMPLETED, metadata={"workspace": workspace})
    done = cli("run", "shell", "x", "--workspace", "w", "--rollback", "--worktree")
    option = {"path": "w", "rollback_on_failure": True, "worktree": True}
    given = fake.named("runs.submit")[0][1]
    assert given["workspace"] == option and given["provider_opts"] is None
    assert done.stderr == said and done.exit_code == 0


def test_run_without_a_workspace_takes_no_flag_of_one(cli: Cli, fake: FakeClient) -> None:
    """If --rollback or --worktree come without --workspace, then the usage is wrong and nothing is asked."""
    for flag in ("--rollback", "--worktree"):
        done = cli("run", "shell", "x", flag)
        assert done.exit_code == 2 and "--workspace" in done.stderr
    assert not fake.named("runs.submit")


def test_patch_of_a_run_is_written_byte_for_byte(cli: Cli, fake: FakeClient) -> None:
    """If a run left a patch, then it is what stdout has; one without a patch or workspace is not found."""
    fake.answers["runs.patch"] = b"--- a\n+++ b\n"
    assert cli("workspace", "patch", RUN).stdout == "--- a\n+++ b\n"
    fake.answers["runs.patch"] = None
    assert cli("workspace", "patch", RUN).exit_code == 4
    diff = {"files_changed": 1, "insertions": 3, "deletions": 1, "patch_truncated": False,
            "changed_paths": ["a"]}
    facts = {"backend": "git", "path": "/w", "before_ref": "1", "after_ref": "2", "diff": diff}
    fake.answers["runs.get"] = Run(RUN, "s1", RunStatus.COMPLETED, metadata={"workspace": facts})
    assert cli("workspace", "show", RUN).stdout == "/w: 1 file changed (+3 -1)\ngit 1 -> 2\n  a\n"
    assert json.loads(cli("-o", "json", "workspace", "show", RUN).stdout) == facts
    fake.answers["runs.get"] = Run(RUN, "s1", RunStatus.COMPLETED)
    assert cli("workspace", "show", RUN).exit_code == 4


USED: dict[str, Any] = {"token_usage": {"input_tokens": 1234, "output_tokens": 5}, "turn_count": 2}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (USED | {"cost_usd": 0.00123, "cost_state": "computed"},
         "tokens: 1,234 in, 5 out; turns: 2; cost: $0.00123 (computed)\n"),
        (USED | {"cost_state": "unknown_price"}, "tokens: 1,234 in, 5 out; turns: 2; cost: unknown price\n"),
        ({}, "no usage was reported\n"),
    ],
)
def test_run_says_what_it_used(cli: Cli, fake: FakeClient, more: dict[str, Any], said: str) -> None:
    """If --usage is given, then tokens and cost are one line on stderr; in a pipe nothing is said unasked."""
    _a_run(fake, RunStatus.COMPLETED, event(5, "run_completed"))
    values = fake.answers["runs.get"].to_map() | more
    fake.answers["runs.get"] = Run.from_map(values)
    assert cli("run", "echo", "x", "--address", "a", "--usage").stderr == said
    fake.answers["sessions.stream"] = _stream(event(5, "run_completed"))
    assert cli("run", "echo", "x", "--address", "a").stderr == ""
    fake.answers["sessions.stream"] = _stream(event(5, "run_completed"))
    as_json = cli("run", "echo", "x", "--address", "a", "--usage", "-o", "json")
    assert json.loads(as_json.stderr)["turn_count"] == values["turn_count"]


def test_ctrl_c_cancels_the_run_and_its_session(cli: Cli, fake: FakeClient) -> None:
    """If Ctrl-C comes, then the run is cancelled, its session ends, the exit code is 130."""
    _a_run(fake, RunStatus.CANCELLED)
    fake.answers["sessions.stream"] = _stream(event(5, "run_started"), interrupted=True)
    done = cli("run", "shell", "sleep 9", "--address", "a")
    assert done.exit_code == 130
    assert fake.named("runs.cancel") == [((RUN,), {})] and fake.named("sessions.cancel") == [(("s1",), {})]


def _a_run(fake: FakeClient, status: RunStatus, *events: Event, error: dict[str, Any] | None = None) -> None:
    fake.answers |= {
        "sessions.start": SESSION,
        "sessions.start_or_get": SESSION,
        "runs.submit": Run(RUN, "s1", RunStatus.RUNNING),
        "sessions.stream": _stream(*events),
        "runs.get": Run(RUN, "s1", status, error=error),
    }


@pytest.mark.parametrize("words", [("prompt", "s1", "hi"), ("run", "s1", "hi")])
def test_how_an_answer_looks_needs_one(cli: Cli, fake: FakeClient, words: tuple[str, ...]) -> None:
    """If --render or --sink is given and nothing is waited for, then it is refused and nothing is sent."""
    for option in (("--render", "compact"), ("--sink", "file:x"), ("--tool-output", "full")):
        done = cli("session", *words, *option)
        assert done.exit_code == 2 and "--wait" in done.stderr and not fake.calls


def test_a_prompt_that_is_waited_for_is_shown_as_asked(cli: Cli, fake: FakeClient, tmp_path: Path) -> None:
    """If --wait has a renderer and a sink, then the answer looks so, there and in the file."""
    fake.answers |= {
        "sessions.get": SESSION,
        "sessions.prompt": Prompted(RUN, False),
        "sessions.stream": _stream(event(5, "message_streamed", content="yes"), event(6, "run_completed")),
        "runs.get": Run(RUN, "s1", RunStatus.COMPLETED),
    }
    view = ("--render", "compact", "--sink", f"file:{tmp_path}/f")
    shown = cli("session", "prompt", "s1", "hi", "--wait", *view)
    assert shown.exit_code == 0 and shown.stdout == ">> yes\nr-\n2 events, 0 tools\n"
    assert (tmp_path / "f").read_text() == shown.stdout
