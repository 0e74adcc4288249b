"""Live sessions and runs as a user meets them, through the blocking SDK."""

from __future__ import annotations

import threading

import pytest
from helpers import wait_for

import mesh


def types(events: list[mesh.Event]) -> list[str]:
    return [event.type for event in events]


def test_run_once_leaves_the_promised_log(client: mesh.Client) -> None:
    """If run_once succeeds, then its session's log holds the promised events in order, from seq 1."""
    result = client.run_once("echo", "hello mesh")
    assert result.output["content"] == "hello mesh"
    log = types(list(result.events))
    streamed = log.count("message_streamed")
    assert log == [
        "session_created",
        "session_started",
        "message_sent",
        "run_started",
        *["message_streamed"] * streamed,
        "message_received",
        "run_completed",
        "session_completed",
    ]
    assert [event.seq for event in result.events] == list(range(1, len(log) + 1))
    assert client.sessions.get(result.session_id).status == "completed"


def test_failing_agent_fails_run_and_session_with_its_error(client: mesh.Client) -> None:
    """If the agent raises, then run_once raises provider_error, and run and session are failed."""
    with pytest.raises(mesh.MeshError) as failure:
        client.run_once("exploding", "x", id="bad")
    assert failure.value.code == "provider_error"
    assert "boom" in failure.value.message
    assert client.sessions.get("bad").status == "failed"
    log = types(client.sessions.events("bad"))
    assert log[-2:] == ["run_failed", "session_failed"]
    assert log.count("run_failed") == 1


def test_prompts_while_busy_run_in_order(client: mesh.Client) -> None:
    """If prompts arrive while a run executes, then they are queued and run in order."""
    client.sessions.start("sleeper", id="fifo")
    first = client.sessions.prompt("fifo", "0.3")
    second = client.sessions.prompt("fifo", "0")
    third = client.sessions.prompt("fifo", "0")
    assert [first.queued, second.queued, third.queued] == [False, True, True]
    client.runs.wait(third.run_id)
    started = [event.run_id for event in client.sessions.events("fifo", type="run_started")]
    assert started == [first.run_id, second.run_id, third.run_id]


def test_stop_pauses_and_resume_brings_the_session_back(client: mesh.Client) -> None:
    """If a session is stopped, then it is paused, not live; resume gives a new incarnation with its log."""
    client.sessions.start("echo", id="s")
    handle = client.sessions.handle("s")
    assert client.sessions.id_of(handle) == "s"
    client.runs.wait(client.sessions.prompt("s", "one").run_id)
    client.sessions.stop("s")
    assert client.sessions.get("s").status == "paused"
    for call, code in (
        (lambda: client.sessions.handle("s"), "not_found"),
        (lambda: client.sessions.prompt("s", "two"), "session_paused"),
        (lambda: client.sessions.id_of(handle), "not_found"),
        (lambda: client.sessions.stop("s"), "not_found"),
    ):
        with pytest.raises(mesh.MeshError) as refused:
            call()
        assert refused.value.code == code
    client.sessions.resume("s")
    assert client.sessions.handle("s").incarnation == handle.incarnation + 1
    client.runs.wait(client.sessions.prompt("s", "two").run_id)
    sent = [event.data["content"] for event in client.sessions.events("s", type="message_sent")]
    assert sent == ["one", "two"]


@pytest.mark.parametrize("verb", ["stop", "cancel", "abort"])
def test_ending_a_busy_session_settles_its_run_first(client: mesh.Client, verb: str) -> None:
    """If a session with a running run is ended, then the call returns when the run is cancelled."""
    client.sessions.start("sleeper", id="busy")
    run = client.runs.submit("busy", "60")
    waiting = client.runs.submit("busy", "0")
    getattr(client.sessions, verb)("busy")
    assert client.runs.get(run.id).status == "cancelled"
    assert client.runs.get(waiting.id).status == "cancelled"
    log = types(client.sessions.events("busy"))
    assert log.count("run_cancelled") == 2


def test_complete_with_a_running_run_is_refused(client: mesh.Client) -> None:
    """If a run executes, then complete is invalid_transition and nothing is written."""
    client.sessions.start("sleeper", id="busy")
    run = client.runs.submit("busy", "60")
    before = len(client.sessions.events("busy", type="session_completed"))
    with pytest.raises(mesh.MeshError) as refused:
        client.sessions.complete("busy")
    assert refused.value.code == "invalid_transition"
    assert len(client.sessions.events("busy", type="session_completed")) == before
    client.runs.cancel(run.id)
    with pytest.raises(mesh.MeshError) as cancelled:
        client.runs.wait(run.id)
    assert cancelled.value.code == "cancelled"


def test_lifecycle_feed_tells_the_whole_story_once(client: mesh.Client) -> None:
    """If sessions start and end, then a listener sees started, status and exactly one stopped of each."""
    with client.listen("lifecycle.") as feed:
        client.sessions.start("echo", id="a")
        client.sessions.stop("a")
        client.sessions.start("echo", id="b")
        client.sessions.complete("b")
        client.run_once("echo", "x", id="c")
        seen: list[tuple[str, str]] = []
        for note in feed:
            _, what, sid = note.topic.split(".")
            seen.append(
                (
                    sid,
                    what if what == "started" else f"{what}:{note.data.get('reason') or note.data['status']}",
                )
            )
            if [s for s, _ in seen].count("c") == 4:
                break
    assert [w for s, w in seen if s == "a"] == [
        "status:active",
        "started",
        "status:paused",
        "stopped:stopped",
    ]
    assert [w for s, w in seen if s == "b"] == [
        "status:active",
        "started",
        "status:completed",
        "stopped:normal",
    ]
    assert [w for s, w in seen if s == "c"] == [
        "status:active",
        "started",
        "status:completed",
        "stopped:normal",
    ]


def test_stream_delivers_live_events_gaplessly(client: mesh.Client) -> None:
    """If a session is followed from the start while a run executes, then each event comes once, in order."""
    client.sessions.start("counter", id="live")
    run_ids: list[str] = []
    thread = threading.Thread(target=lambda: run_ids.append(client.runs.submit("live", "200").id))
    thread.start()
    seen = [e.seq for e in client.sessions.stream("live", stop_when=lambda e: e.type == "run_completed")]
    thread.join()
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) > 200


def test_events_filters_select(client: mesh.Client) -> None:
    """If filters are given, then they combine with AND, and the limit comes last."""
    client.sessions.start("counter", id="f")
    first = client.runs.submit("f", "3")
    client.runs.wait(first.id)
    second = client.runs.submit("f", "3")
    client.runs.wait(second.id)
    every = client.sessions.events("f")
    streamed = client.sessions.events("f", run_id=second.id, type="message_streamed")
    assert [e.data["content"] for e in streamed] == ["0 ", "1 ", "2 "]
    assert client.sessions.events("f", after=every[3].seq, before=every[6].seq) == every[4:6]
    assert client.sessions.events("f", type="message_streamed", limit=2)[-1].data["content"] == "1 "
    until = client.sessions.events("f", since=every[1].ts, until=every[2].ts)
    assert until == [e for e in every if every[1].ts <= e.ts <= every[2].ts] and len(until) < len(every)
    assert client.sessions.events("f", since=every[-1].ts) == [e for e in every if e.ts >= every[-1].ts]


def test_shell_streams_both_pipes_and_its_exit_code_decides(client: mesh.Client) -> None:
    """If a command fails, then both pipes were streamed and the run is failed with command_failed."""
    with pytest.raises(mesh.MeshError) as failure:
        client.run_once("shell", "echo out; echo err >&2; exit 3", id="sh")
    assert failure.value.code == "command_failed"
    pieces = {
        e.data["stream"]: e.data["content"] for e in client.sessions.events("sh", type="message_streamed")
    }
    assert pieces == {"stdout": "out\n", "stderr": "err\n"}


def test_plain_function_runs_in_a_thread(client: mesh.Client) -> None:
    """If an agent is a plain function, then its result is the content."""
    assert client.run_once("plain", "loud").output["content"] == "LOUD"


def test_list_pages_through_every_session_once(client: mesh.Client) -> None:
    """If a list is read page by page, then each session is there once."""
    ids = [f"l{i}" for i in range(25)]
    for number, sid in enumerate(ids):
        client.sessions.create("echo", id=sid, tags=["odd"] if number % 2 else [], agent_id="lister")
    found: list[str] = []
    cursor = None
    while True:
        page = client.sessions.list(agent_id="lister", limit=7, cursor=cursor)
        found += [session.id for session in page]
        cursor = page.cursor
        if cursor is None:
            break
    assert sorted(found) == sorted(ids)
    assert len(client.sessions.list(tags=["odd"], agent_id="lister")) == 12
    assert client.sessions.list(status="active", agent_id="lister")[:] == ()


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda c: c.sessions.create("nobody", id="x1"), "unknown_agent"),
        (lambda c: c.sessions.create("echo", id="../x"), "invalid_id"),
        (lambda c: c.sessions.get("nothing"), "session_not_found"),
        (lambda c: c.runs.get("run_" + "0" * 32), "run_not_found"),
        (lambda c: c.runs.submit("nothing", "x"), "session_not_found"),
        (lambda c: c.routes.set("a:b:c", {"external_room_id": None}), "invalid_route"),
        (lambda c: c.routes.set("a:b:c", {"external_room_id": "1"}, ttl_ms=0), "invalid_ttl"),
        (lambda c: c.routes.set("a:b", {"external_room_id": "1"}), "invalid_format"),
        (lambda c: c.routes.get(("a", "b", 3, None)), "invalid_session_key"),
        (lambda c: c.routes.resolve("a:b:nothing"), "no_route"),
        (lambda c: c.sessions.list(status="sleepy"), "invalid_status"),
    ],
)
def test_bad_input_gets_its_code(client: mesh.Client, call: object, code: str) -> None:
    """If an argument is wrong, then the error has the promised code."""
    with pytest.raises(mesh.MeshError) as refused:
        call(client)  # type: ignore[operator]
    assert refused.value.code == code


def test_idle_session_goes_down_and_the_next_prompt_revives_it(
    node_config: dict[str, dict[str, object]],
) -> None:
    """If a live session is idle for long, then it is stopped (idle) and revived by a prompt."""
    with (
        mesh.LocalNode(config={**node_config, "sessions": {"idle_timeout_s": 0.5}}) as node,
        node.client(timeout_s=20.0) as client,
        client.listen("lifecycle.stopped.") as feed,
    ):
        client.sessions.start("echo", id="lazy")
        assert next(iter(feed)).data["reason"] == "idle"
        assert client.sessions.get("lazy").status == "active"
        assert client.sessions.get("lazy").handle is None
        client.runs.wait(client.sessions.prompt("lazy", "wake up").run_id)
        assert client.sessions.handle("lazy").incarnation == 2


def test_a_session_with_a_native_process_is_idle_later(node_config: dict[str, dict[str, object]]) -> None:
    """If an agent declares a native process, then its sessions have an idle time of their own, also when they
    did nothing for longer than the others."""
    agents = {**node_config["agents"], "warm": {"provider": "echo", "native_process": True}}
    limits = {"idle_timeout_s": 0.4, "native_idle_timeout_s": 600.0}
    with (
        mesh.LocalNode(config={**node_config, "agents": agents, "sessions": limits}) as node,
        node.client(timeout_s=20.0) as client,
        client.listen("lifecycle.stopped.") as feed,
    ):
        client.sessions.start("warm", id="warm")
        client.sessions.start("echo", id="lazy")
        assert next(iter(feed)).data["session_id"] == "lazy"
        assert client.sessions.get("warm").handle is not None and client.sessions.get("lazy").handle is None


def test_node_restart_keeps_everything_and_tells_who_was_lost(tmp_path, node_config) -> None:  # type: ignore[no-untyped-def]
    """If a node is stopped in order, then live sessions get one stopped (shutdown), and all state is kept."""
    with mesh.LocalNode(tmp_path / "d", config=node_config) as node, node.client() as client:
        client.sessions.start("echo", id="kept")
        client.routes.set("a:b:c", {"external_room_id": "1"})
        client.runs.wait(client.sessions.prompt("kept", "before").run_id)
        before = client.sessions.events("kept")
    with mesh.LocalNode(tmp_path / "d", partitions=3, config=node_config) as node, node.client() as client:
        assert client.partitions.count() == 3
        assert client.sessions.events("kept")[: len(before)] == before
        assert client.routes.get("a:b:c").route == {"external_room_id": "1"}
        client.runs.wait(client.sessions.prompt("kept", "after").run_id)
        reasons = wait_for(lambda: client.sessions.get("kept").handle, "the revived session")
        assert reasons.incarnation == 2


def test_agent_reload_takes_a_changed_file(client: mesh.Client, agents_file) -> None:  # type: ignore[no-untyped-def]
    """If an agent's file changes, then reload makes the next run use it; a broken one is named at start."""
    assert client.run_once("plain", "loud").output["content"] == "LOUD"
    agents_file.write_text(agents_file.read_text().replace("run.prompt.upper()", "run.prompt.title()"))
    assert client.run_once("plain", "loud").output["content"] == "LOUD"
    client.agents.reload()
    assert client.run_once("plain", "loud").output["content"] == "Loud"
    agents_file.write_text("def broken(:\n")
    client.agents.reload()
    with pytest.raises(mesh.MeshError) as failure:
        client.sessions.start("plain")
    assert failure.value.code == "provider_unavailable"
    assert "SyntaxError" in failure.value.message
