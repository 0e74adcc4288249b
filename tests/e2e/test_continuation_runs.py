"""A conversation that goes on: with what was said, elsewhere, from the middle, and in short."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_for

import mesh

HERE = Path(__file__).parent


def table(name: str, **more: Any) -> dict[str, Any]:
    return {"provider": "python", "target": f"{HERE / 'continuing_agents.py'}:{name}", **more}


AGENTS = {
    "parrot": table("parrot"),
    "chatty": table("parrot", continuation="auto", continuation_opts={"max_messages": 2}),
    "worker": table("worker"),
    "resumer": table("resumer", capabilities=["session_resume"]),
    "summariser": table("summariser"),
    "broken": table("broken"),
    "echo": {"provider": "echo"},
}


@pytest.fixture(scope="module")
def node() -> Iterator[mesh.LocalNode]:
    with mesh.LocalNode(partitions=2, config={"agents": AGENTS}) as started:
        yield started


@pytest.fixture
def client(node: mesh.LocalNode) -> Iterator[mesh.Client]:
    with node.client() as made:
        yield made


def run(client: mesh.Client, session: str, prompt: str, **options: Any) -> dict[str, Any]:
    """One run, to its end; its output."""
    return client.runs.wait(client.runs.submit(session, prompt, **options).id).output


def contents(transcript: mesh.Transcript) -> list[str | None]:
    return [message.content for message in transcript.messages]


# --- replay ---


def test_the_second_run_sees_the_first_and_not_itself(client: mesh.Client) -> None:
    """If a run continues, then its agent sees what was said before, and its own input apart."""
    sid = client.sessions.start("parrot", context={"system_prompt": "be kind"}).id
    assert run(client, sid, "first")["seen"] == []
    second = run(client, sid, "second", continuation="auto")
    assert second["seen"] == ["user: first", "assistant: re first"]
    assert second["system"] == "be kind" and second["messages"] == [{"role": "user", "content": "second"}]
    assert run(client, sid, "third")["seen"] == []
    opts = {"max_messages": 2}
    assert run(client, sid, "4", continuation="replay", continuation_opts=opts)["seen"] == [
        "user: third", "assistant: re third"]
    started = client.sessions.events(sid, type="run_started")
    assert [e.data.get("continuation") for e in started] == [None, "replay", None, "replay"]


def test_an_agent_may_continue_by_itself(client: mesh.Client) -> None:
    """If the agent's table says so, then its prompts continue; a run that says False does not."""
    sid = client.sessions.start("chatty").id
    for text in ("one", "two"):
        client.runs.wait(client.sessions.prompt(sid, text).run_id)
    last = client.sessions.prompt(sid, "three").run_id
    assert client.runs.wait(last).output["seen"] == ["user: two", "assistant: re two"]
    assert run(client, sid, "four", continuation=False)["seen"] == []


def test_another_agent_goes_on_with_the_conversation(client: mesh.Client) -> None:
    """If a run names another agent, then that one executes it with the transcript, and its events say so."""
    sid = client.sessions.start("echo").id
    run(client, sid, "hello")
    there = run(client, sid, "and you?", agent="parrot", continuation="auto")
    assert there["seen"] == ["user: hello", "assistant: hello"]
    providers = {e.run_id: e.provider for e in client.sessions.events(sid) if e.run_id}
    assert list(providers.values()) == ["echo", "python"]
    sent = [e.provider for e in client.sessions.events(sid, type="message_sent")]
    assert sent == ["echo", "python"] and client.sessions.get(sid).agent == "echo"
    with pytest.raises(mesh.NotFound) as refused:
        client.runs.submit(sid, "x", agent="nobody")
    assert refused.value.code == "unknown_agent"


def test_tool_calls_come_in_pairs(client: mesh.Client) -> None:
    """If a run left a call open, then the transcript closes it, and no text is there twice."""
    sid = client.sessions.start("worker").id
    run(client, sid, "go")
    messages = client.sessions.transcript(sid).messages
    assert [(m.role, m.content, m.tool_call_id) for m in messages] == [
        ("user", "go", None), ("assistant", "looking", None), ("assistant", None, "1"), ("tool", None, "1"),
        ("assistant", None, "2"), ("tool", None, "2"), ("assistant", "done", None)]
    assert messages[5].metadata["marker"] is True


@pytest.mark.parametrize("options", [
    {"continuation": True}, {"continuation": "yes"}, {"continuation_opts": {"max_chars": -1}},
    {"continuation_opts": {"limit": 3}}, {"continuation_opts": 5}, {"agent": ""}])
def test_wrong_options_are_refused_and_store_nothing(client: mesh.Client, options: Any) -> None:
    """If an option of the continuation is wrong, then it is a validation_error and there is no run."""
    sid = client.sessions.start("parrot").id
    with pytest.raises(mesh.InvalidArgument) as refused:
        client.runs.submit(sid, "x", **options)
    assert refused.value.code == "validation_error" and client.sessions.runs(sid) == []


def test_a_conversation_survives_the_death_of_everything(client: mesh.Client) -> None:
    """If partition and runner are killed between two runs, then the second still sees the first."""
    sid = client.sessions.start("parrot").id
    run(client, sid, "first")
    handle = client.sessions.handle(sid)
    os.kill(client.partitions.pid(sid) or 0, signal.SIGKILL)
    os.kill(handle.pid, signal.SIGKILL)
    wait_for(lambda: client.sessions.get(sid).handle not in (None, handle), "the session is elsewhere")
    assert run(client, sid, "second", continuation="auto")["seen"] == ["user: first", "assistant: re first"]


# --- native ---


def resumed(client: mesh.Client, sid: str, prompt: str, mode: str | None = "auto") -> dict[str, Any]:
    return run(client, sid, prompt, continuation=mode)


def test_a_provider_goes_on_with_its_own_session(client: mesh.Client) -> None:
    """If the provider can resume and its session knows everything, then auto and native resume it."""
    sid = client.sessions.start("resumer").id
    first = client.runs.submit(sid, "one").id
    client.runs.wait(first)
    assert resumed(client, sid, "two")["resumed"] == f"own-{first}"
    assert resumed(client, sid, "three", "native")["resumed"] == f"own-{first}"
    assert resumed(client, sid, "four", "replay")["resumed"] is None
    started = client.sessions.events(sid, type="run_started")
    assert [e.data.get("continuation") for e in started] == [None, "native", "native", "replay"]
    assert started[0].data["model"] == "m1" and not client.sessions.events(sid, type="error_recovered")


@pytest.mark.parametrize(("how", "why"), [
    ("lost", "RuntimeError: no rollout found"), ("other", "named 'another'"), ("silent", "named none")])
def test_what_cannot_be_resumed_is_replayed_and_an_event_says_so(
    client: mesh.Client, how: str, why: str
) -> None:
    """If resuming fails, or the provider names another session or none, then it begins anew with the past."""
    sid = client.sessions.start("resumer").id
    resumed(client, sid, "one", None)
    again = resumed(client, sid, how, "native")
    assert (again["resumed"], again["seen"]) == (None, ["user: one", "assistant: re one"])
    [recovered] = client.sessions.events(sid, type="error_recovered")
    assert why in recovered.data["error_message"] and recovered.data["recovered_by"] == "replay"
    streamed = client.sessions.events(sid, type="message_streamed")
    assert not any("no word" in e.data["content"] for e in streamed)


def test_a_session_that_missed_something_is_not_resumed(client: mesh.Client) -> None:
    """If another agent spoke meanwhile, then native is a replay, and an event says so."""
    sid = client.sessions.start("resumer").id
    resumed(client, sid, "one", None)
    run(client, sid, "two", agent="parrot")
    assert len(resumed(client, sid, "three", "native")["seen"]) == 4
    [recovered] = client.sessions.events(sid, type="error_recovered")
    assert "does not know all" in recovered.data["error_message"]


# --- forks ---


def test_a_fork_begins_with_the_original_and_goes_its_own_way(client: mesh.Client) -> None:
    """If a session is forked in the middle, then it has the beginning, and neither sees the other's end."""
    sid = client.sessions.start("parrot", tags=["t"], context={"k": 1}, metadata={"m": 2}).id
    run(client, sid, "one")
    at_seq = client.sessions.get(sid).seq
    run(client, sid, "two", continuation="auto")
    for number in range(3):  # ids of other slots, so partly in the other partition
        fork = client.sessions.fork(sid, at_seq, new_id=f"{sid}.{number}")
        assert (fork.parent_session_id, fork.fork_seq) == (sid, at_seq)
        assert (fork.tags, fork.context, fork.metadata.get("m")) == (("t",), {"k": 1}, 2)
        seen = run(client, fork.id, "other", continuation="auto")["seen"]
        assert seen == ["user: one", "assistant: re one"]
        both = client.sessions.transcript(fork.id)
        assert contents(both) == ["one", "re one", "other", "re other"]
        assert [m.metadata.get("session_id") for m in both.messages] == [sid, sid, None, None]
    assert contents(client.sessions.transcript(sid)) == ["one", "re one", "two", "re two"]
    deeper = client.sessions.fork(f"{sid}.0")
    assert len(run(client, deeper.id, "x", continuation="replay")["seen"]) == 4
    client.sessions.complete(sid)
    assert contents(client.sessions.transcript(client.sessions.fork(sid, 0).id)) == []


def test_a_fork_of_what_is_not_there_is_refused(client: mesh.Client) -> None:
    """If the session, or the seq, does not exist, then nothing is created."""
    sid = client.sessions.start("parrot").id
    for wrong in (99, -1, "x", True):
        with pytest.raises(mesh.InvalidArgument) as refused:
            client.sessions.fork(sid, wrong, new_id="f-none")  # type: ignore[arg-type]
        assert refused.value.code == "invalid_cursor"
    with pytest.raises(mesh.NotFound):
        client.sessions.fork("nobody", new_id="f-none")
    with pytest.raises(mesh.NotFound):
        client.sessions.get("f-none")


# --- compaction ---


def test_a_summary_stands_for_what_is_old(client: mesh.Client) -> None:
    """If a session is compacted, then runs see the summary, what is pinned and what is newer."""
    sid = client.sessions.start("parrot").id
    for text in ("one", "two", "three"):
        run(client, sid, text)
    before = client.sessions.events(sid)
    first = client.sessions.transcript(sid).messages[1]
    client.sessions.pin(sid, first.metadata["sequence_number"])
    event = client.sessions.compact(sid, "they counted", keep_last=2)
    assert event.type == "transcript_compacted" and event.data["summary"] == "they counted"
    assert run(client, sid, "four", continuation="auto")["seen"] == [
        "system: they counted", "assistant: re one", "user: three", "assistant: re three"]
    assert client.sessions.events(sid)[: len(before)] == before


def test_an_agent_makes_the_summary_outside_of_the_conversation(client: mesh.Client) -> None:
    """If an agent summarises, then its run is in the log, and no message."""
    sid = client.sessions.start("parrot").id
    run(client, sid, "one")
    event = client.sessions.compact(sid, agent="summariser")
    assert event.data["summary"] == "summary of 2"
    assert client.runs.get(event.data["run_id"]).status == "completed"
    run(client, sid, "two")
    assert contents(client.sessions.transcript(sid)) == ["summary of 2", "two", "re two"]


def test_a_summary_that_fails_replaces_nothing(client: mesh.Client) -> None:
    """If the agent fails or says nothing, then the caller is told, and the transcript is as it was."""
    sid = client.sessions.start("parrot").id
    run(client, sid, "one")
    for agent, instructions in (("broken", None), ("summariser", "say nothing")):
        with pytest.raises(mesh.RunError) as failed:
            client.sessions.compact(sid, agent=agent, instructions=instructions)
        assert failed.value.code == "provider_error"
    assert contents(client.sessions.transcript(sid)) == ["one", "re one"]
    for wrong in ({"summary": ""}, {"summary": "x", "up_to": 10_000}, {"summary": "x", "keep_last": 50},
                  {"summary": "x", "agent": "broken"}, {"keep_last": 1, "up_to": 3}):
        with pytest.raises(mesh.InvalidArgument):
            client.sessions.compact(sid, **wrong)  # type: ignore[arg-type]


def test_only_messages_are_pinned(client: mesh.Client) -> None:
    """If an event is no message, or not there, then it cannot be pinned."""
    sid = client.sessions.start("parrot").id
    for seq in (1, 99, -1):
        with pytest.raises(mesh.NotFound):
            client.sessions.pin(sid, seq)
    with pytest.raises(mesh.InvalidArgument):
        client.sessions.pin(sid, "x")  # type: ignore[arg-type]


# --- long ---


def test_a_long_log_is_read_in_pages_and_only_once(client: mesh.Client) -> None:
    """If a session has thousands of events, then the transcript is whole, also at the next run."""
    sid = client.sessions.start("echo").id
    run(client, sid, "word " * 2_500)
    seen = run(client, sid, "x", agent="parrot", continuation="auto")["seen"]
    assert [len(line) for line in seen] == [len("user: ") + 12_500, len("assistant: ") + 12_500]
    assert len(run(client, sid, "y", agent="parrot", continuation="auto")["seen"]) == 4
    limited = client.sessions.transcript(sid, max_chars=100)
    assert contents(limited) == ["x", "re x", "y", "re y"] and limited.metadata == {"omitted": 2}


def test_a_fork_of_what_was_deleted_says_so(client: mesh.Client) -> None:
    """If the original is hidden, then its forks go on; if it is gone for good, then they say so."""
    sid = client.sessions.start("parrot").id
    run(client, sid, "one")
    fork = client.sessions.fork(sid).id
    client.sessions.complete(sid)
    client.sessions.delete(sid)
    assert contents(client.sessions.transcript(fork)) == ["one", "re one"]
    client.sessions.delete(sid, hard=True)
    with pytest.raises(mesh.NotFound) as gone:
        client.sessions.transcript(fork)
    assert gone.value.code == "session_not_found" and gone.value.details["session_id"] == sid
    with pytest.raises(mesh.NotFound):
        run(client, fork, "two", continuation="auto")
    assert run(client, fork, "three")["seen"] == []


def test_a_rollback_leaves_nothing_and_an_abort_what_was_said(client: mesh.Client) -> None:
    """If a run is rolled back, then it was never said; if it is aborted, its words are marked partial."""
    sid = client.sessions.start("echo").id
    run(client, sid, "keep")
    client.runs.submit(sid, "never said", provider_opts={"delay_s": 60.0})
    client.runs.wait(client.sessions.prompt(sid, "instead", on_busy="rollback").run_id)
    assert contents(client.sessions.transcript(sid)) == ["keep", "keep", "instead", "instead"]
    cut = client.runs.submit(sid, "a b", provider_opts={"delay_s": 0.5, "pieces": 100})
    for _ in client.sessions.stream(sid, run_id=cut.id, stop_when=lambda e: e.type == "message_streamed"):
        pass
    client.sessions.abort(sid)
    last = client.sessions.transcript(sid).messages[-1]
    assert last.role == "assistant" and last.metadata["partial"] is True
