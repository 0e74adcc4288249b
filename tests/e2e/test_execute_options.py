"""The options of a run as a user meets them: callbacks, limits, usage, cost, and what an abort keeps."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers import pids, wait_for

import mesh

RUN_AGENTS = """
import asyncio

async def counted(run):
    yield {"type": "run_started", "data": {"provider_session_id": "p1", "model": "small-2"}}
    yield {"type": "token_usage_updated", "data": {"input_tokens": 600, "output_tokens": 10}}
    yield "hello"
    yield {"type": "token_usage_updated", "data": {"input_tokens": 1000, "output_tokens": 20}}
    yield {"type": "turn_completed", "data": {}}

async def working(run):
    yield "partial "
    yield {"type": "tool_call_started", "data": {"tool_call_id": "t1", "tool_name": "bash"}}
    yield "answer"
    await asyncio.sleep(1000)

async def dies(run):
    import os
    yield {"type": "token_usage_updated", "data": {"input_tokens": 5, "output_tokens": 1}}
    while not os.path.exists(run.prompt):
        await asyncio.sleep(0.01)
    os._exit(3)

async def wrong(run):
    yield "before"
    yield {"type": "turn_completed", "data": {"x": object()}}
"""


@pytest.fixture
def node_config(tmp_path: Path) -> dict[str, Any]:
    """Agents of this file, and prices for one of them."""
    path = tmp_path / "run_agents.py"
    path.write_text(RUN_AGENTS)
    names = ("counted", "working", "dies", "wrong")
    return {
        "agents": {name: {"provider": "python", "target": f"{path}:{name}"} for name in names},
        "prices": {"python": {"models": {"small": {"input": 1e-6, "output": 1e-5}}}},
    }


def test_run_once_says_what_it_used_and_cost(client: mesh.Client) -> None:
    """If an agent tells its tokens, model and session, then result, run and session say so, with the cost."""
    result = client.run_once("counted", "x")
    assert result.token_usage == {"input_tokens": 1000, "output_tokens": 20}
    assert result.cost_usd == pytest.approx(0.0012)
    assert (result.cost_state, result.turn_count) == (mesh.CostState.COMPUTED, 1)
    about = {"provider": "python", "provider_session_id": "p1", "model": "small-2"}
    assert result.metadata == about
    run = client.runs.get(result.run_id)
    assert (run.cost_usd, run.turn_count, run.metadata) == (result.cost_usd, 1, about)
    kept = client.sessions.get(result.session_id).metadata["provider_sessions"]
    assert kept == {"python": {"provider_session_id": "p1", "model": "small-2"}}
    seen: list[mesh.Event] = []
    plain = client.run_once("echo", "x", on_event=seen.append)
    assert plain.cost_state == mesh.CostState.NO_USAGE
    assert seen == list(plain.events)


def test_each_event_reaches_the_callback_once_and_in_order(client: mesh.Client) -> None:
    """If on_event is given, then it gets each event of the run once, in order, while the run executes."""
    seen: list[mesh.Event] = []
    status: list[str] = []

    def look(event: mesh.Event) -> None:
        seen.append(event)
        if event.type == "run_started":
            status.append(client.runs.get(event.run_id or "").status)

    session = client.sessions.start("echo")
    run = client.runs.create(session.id, "a b c")
    result = client.runs.execute(run.id, on_event=look, provider_opts={"delay_s": 0.1})
    assert [event.seq for event in seen] == [event.seq for event in result.events]
    assert [event.type for event in seen][-1] == "run_completed"
    assert status == ["running"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_callback_that_raises_leaves_the_run_alone(
    node: mesh.LocalNode, client: mesh.Client, asynchronous: bool
) -> None:
    """If on_event raises, then the caller gets the exception with a note, and the run goes on to its end."""
    session = client.sessions.start("echo")
    run = client.runs.create(session.id, "a b c")

    def explode(event: mesh.Event) -> None:
        raise ZeroDivisionError(event.type)

    async def explode_later(event: mesh.Event) -> None:
        explode(event)

    async def execute() -> None:
        async with node.async_client() as other:
            await other.runs.execute(run.id, on_event=explode_later)

    with pytest.raises(ZeroDivisionError) as raised:
        asyncio.run(execute()) if asynchronous else client.runs.execute(run.id, on_event=explode)
    assert run.id in raised.value.__notes__[0]
    assert client.runs.wait(run.id).output == {"content": "a b c"}


def test_each_event_comes_once_over_the_death_of_the_partition(client: mesh.Client) -> None:
    """If the partition is killed while the run executes, then on_event gets each event once, in order."""
    seen: list[mesh.Event] = []

    def look(event: mesh.Event) -> None:
        seen.append(event)
        if event.type == "message_streamed" and event.data["content"].strip() == "b":
            os.kill(pids(client, "partition")[client.partitions.of(session.id)], signal.SIGKILL)

    session = client.sessions.start("echo")
    run = client.runs.create(session.id, "a b c d e f")
    result = client.runs.execute(run.id, on_event=look, provider_opts={"delay_s": 0.1})
    assert result.output == {"content": "a b c d e f"}
    assert seen == list(result.events)


def test_what_a_run_used_outlives_its_runner(client: mesh.Client, tmp_path: Path) -> None:
    """If an agent's process dies between two events, then the run is outcome_unknown, its log has no hole,
    and what it used until then is known."""
    session = client.sessions.start("dies")
    run = client.runs.submit(session.id, str(tmp_path / "now"))
    wait_for(lambda: client.runs.get(run.id).token_usage, "its usage")
    (tmp_path / "now").touch()
    with pytest.raises(mesh.RunError) as lost:
        client.runs.wait(run.id)
    assert lost.value.code == "outcome_unknown"
    assert client.runs.get(run.id).token_usage == {"input_tokens": 5, "output_tokens": 1}
    seqs = [event.seq for event in client.sessions.events(session.id)]
    assert seqs == list(range(1, len(seqs) + 1))


@pytest.mark.parametrize("limit", ["idle_s", "deadline_s"])
def test_a_limit_of_the_run_stops_its_agent(client: mesh.Client, limit: str) -> None:
    """If a run passes its idle or total time, then its processes are gone, it is ``timeout``, nothing follows
    the terminal event, and the session takes the next run."""
    session = client.sessions.start("shell")
    run = client.runs.create(session.id, "echo $$; exec sleep 1000")
    with pytest.raises(mesh.DeadlineExceeded) as stopped:
        client.runs.execute(run.id, **{limit: 0.5})  # type: ignore[arg-type]
    assert stopped.value.details[limit] == 0.5
    record = client.runs.get(run.id)
    assert (record.status, (record.error or {})["code"]) == ("timeout", "timeout")
    events = client.sessions.events(session.id, run_id=run.id)
    assert [event.type for event in events][-2:] == ["message_received", "run_timeout"]
    pid = int(next(event.data["content"] for event in events if event.type == "message_streamed"))
    assert not Path(f"/proc/{pid}").exists()
    assert client.runs.wait(client.runs.submit(session.id, "echo next").id).output["content"] == "next\n"


def test_an_abort_keeps_the_partial_text_and_closes_the_tools(client: mesh.Client) -> None:
    """If a session is aborted, then what was said is a partial message, the open tool call failed as aborted,
    run_cancelled says why, and the session is idle and active."""
    session = client.sessions.start("working")
    run = client.runs.submit(session.id, "x")
    wait_for(lambda: len(client.sessions.events(session.id, type="message_streamed")) == 2, "its words")
    assert client.sessions.abort(session.id) == 1
    *_, received, failed, cancelled = client.sessions.events(session.id)
    assert (received.data["content"], received.metadata) == ("partial answer", {"partial": True})
    assert failed.data == {"tool_call_id": "t1", "tool_name": "bash", "error": "aborted"}
    assert (cancelled.type, cancelled.data) == ("run_cancelled", {"reason": "abort"})
    assert client.sessions.get(session.id).status == "active"
    assert (client.runs.get(run.id).error or {})["code"] == "cancelled"


def test_an_event_that_cannot_be_stored_fails_the_run(client: mesh.Client) -> None:
    """If an agent yields what cannot be encoded, then the run fails with a typed error instead of a hole."""
    with pytest.raises(mesh.MeshError) as failure:
        client.run_once("wrong", "x", id="w")
    assert failure.value.code == "validation_error"
    types = [event.type for event in client.sessions.events("w")]
    assert types[-2:] == ["run_failed", "session_failed"]


def test_a_wrong_option_is_refused_and_nothing_changes(client: mesh.Client) -> None:
    """If an option is wrong, then the refusal names it, and the run is still pending."""
    session = client.sessions.start("echo")
    run = client.runs.create(session.id, "x")
    for options in (
        {"deadline_s": 0}, {"idle_s": -1}, {"idle_s": "1"}, {"deadline_s": True}, {"idle_s": float("nan")},
        {"provider_opts": 7}, {"provider_opts": {"x": object()}}, {"on_event": 7},
        {"on_event": asyncio.sleep},
    ):
        with pytest.raises(mesh.InvalidArgument) as refused:
            client.runs.execute(run.id, **options)  # type: ignore[arg-type]
        assert next(iter(options)) in refused.value.message
    assert client.runs.get(run.id).status == "pending"


def test_unknown_provider_option_fails_the_run_with_its_name(client: mesh.Client) -> None:
    """If a provider does not know an option of the call, then the run fails and names it."""
    with pytest.raises(mesh.MeshError) as failure:
        client.run_once("echo", "x", provider_opts={"delay": 1})
    assert failure.value.code == "validation_error"
    assert "delay_s" in failure.value.message


def test_run_that_cannot_be_stored_is_stopped_and_says_so(tmp_path: Path) -> None:
    """If its partition takes nothing for limits.unstored_s, then the agent is stopped meanwhile, and the run
    is failed with a typed error as soon as that can be written."""
    config = {"limits": {"unstored_s": 1.0}, "supervision": {"hang_timeout_s": 60.0}}
    started = mesh.LocalNode(tmp_path / "data", partitions=1, config=config)
    with started as node, node.client(timeout_s=20.0) as client:
        session = client.sessions.start("shell")
        line = "echo $$; while :; do echo more; sleep 0.05; done"
        run = client.runs.submit(session.id, line)
        streamed = {"type": "message_streamed"}
        wait_for(lambda: client.sessions.events(session.id, **streamed), "its pid")
        pid = int(client.sessions.events(session.id, **streamed)[0].data["content"].split()[0])
        partition = pids(client, "partition")[0]
        os.kill(partition, signal.SIGSTOP)
        try:
            wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the end of its agent")
        finally:
            os.kill(partition, signal.SIGCONT)
        with pytest.raises(mesh.StoreError) as lost:
            client.runs.wait(run.id)
        assert lost.value.code == "storage_write_failed"
        seqs = [event.seq for event in client.sessions.events(session.id)]
        assert seqs == list(range(1, len(seqs) + 1))


def test_cancelled_command_is_gone_within_a_second(client: mesh.Client) -> None:
    """If a run of a sleeping command is cancelled, then its group is gone when cancel returns."""
    session = client.sessions.start("shell")
    run = client.runs.submit(session.id, "echo $$; sleep 1000 & wait")
    wait_for(lambda: client.sessions.events(session.id, type="message_streamed"), "its pid")
    pid = int(client.sessions.events(session.id, type="message_streamed")[0].data["content"])
    client.runs.cancel(run.id)
    assert not Path(f"/proc/{pid}").exists()
    events = client.sessions.events(session.id, type="run_cancelled")
    assert [event.data for event in events] == [{"reason": "cancel"}]


def test_a_command_that_fails_is_a_failed_run_everywhere(client: mesh.Client) -> None:
    """If a command exits with 3, then run, error and terminal event agree that it failed."""
    with pytest.raises(mesh.RunError) as failure:
        client.run_once("shell", "echo out; exit 3", id="three")
    assert failure.value.code == "command_failed"
    assert failure.value.details["exit_code"] == 3
    run = client.sessions.runs("three")[0]
    assert (run.status, (run.output or {})["exit_code"]) == ("failed", 3)
    types = [event.type for event in client.sessions.events("three", run_id=run.id)]
    assert types.count("run_failed") == 1 and "run_completed" not in types
