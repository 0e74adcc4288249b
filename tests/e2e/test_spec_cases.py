"""The cases of the sessions' specification, by their ids, against a real node.

A and B: records and execution; C: cancelling; D: the log; H: queues; I: continuation; K: checks. What differs
on purpose stands in the README's Decisions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_for

import mesh

AGENTS = '''
import asyncio
from mesh.providers.base import Output, ProviderFailure, provider_error

async def mock(run):
    yield {"type": "run_started", "data": {"provider_session_id": "p1", "model": "m"}}
    yield {"type": "message_received", "data": {"role": "assistant", "content": "reply to " + run.prompt}}
    yield Output(data={"content": "reply to " + run.prompt},
                 token_usage={"input_tokens": 10, "output_tokens": 20})

async def failing(run):
    yield "partial"
    raise ProviderFailure("boom", provider_error={
        "provider": "amp", "kind": "transport_exit", "message": "boom", "exit_code": 17,
        "stderr": "x" * 100, "truncated": None})

async def noisy(run):
    lines = "\\n".join("ä" * 100 for _ in range(500))
    said = provider_error("amp", "transport_exit", "boom", exit_code=1, stderr=lines)
    raise ProviderFailure("boom", provider_error=said)
    yield

async def slow(run):
    yield "begun "
    await asyncio.sleep(float(run.prompt))
    yield "done"

async def stamped(run):
    yield {"type": "turn_completed", "data": {}, "metadata": {"latency": 42}, "ts": 1_700_000_000.5}
    yield "x"

async def shapeless(run):
    yield {"type": "tool_call_started", "data": {"tool_call_id": "t1"}}
    yield {"type": "tool_call_completed", "data": {"tool_call_id": "t1", "tool_name": "x", "tool_output": 1}}
    yield "x"

async def streaming(run):
    yield "Hello"
    yield " world"

async def recalling(run):
    yield {"type": "output", "data": {
        "content": "second", "transcript": [[m.role, m.content] for m in run.transcript],
        "system": run.context.get("system_prompt")}}
'''
NAMES = re.findall(r"async def (\w+)", AGENTS)


@pytest.fixture(scope="module")
def module_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mesh.LocalNode]:
    folder: Path = tmp_path_factory.mktemp("spec")
    (folder / "agents.py").write_text(AGENTS)
    agents = {name: {"provider": "python", "target": f"{folder}/agents.py:{name}"} for name in NAMES}
    with mesh.LocalNode(folder / "data", config={"agents": agents, "sessions": {"queue_max": 2}}) as node:
        yield node


@pytest.fixture
def spec(module_node: mesh.LocalNode) -> Iterator[mesh.Client]:
    with module_node.client(timeout_s=20.0) as client:
        yield client


def types(events: Any) -> list[str]:
    return [event.type for event in events]


def run_types(client: mesh.Client, run: mesh.Run | mesh.RunResult) -> list[str]:
    run_id = run.run_id if isinstance(run, mesh.RunResult) else run.id
    return types(client.sessions.events(run.session_id, run_id=run_id))


def test_a01_new_session_is_pending_with_one_event(spec: mesh.Client) -> None:
    """If a session is created, then it is pending, stored, and its log holds session_created with seq 1."""
    session = spec.sessions.create("mock", agent_id="a")
    assert session.status == "pending"
    assert re.fullmatch("ses_[0-9a-f]{32}", session.id)
    assert spec.sessions.get(session.id) == session
    [event] = spec.sessions.events(session.id)
    assert (event.type, event.seq, event.provider, event.data["provider"]) == (
        "session_created", 1, "python", "python")


def test_a03_activate_and_complete_are_events_two_and_three(spec: mesh.Client) -> None:
    """If a session is activated and completed, then its log says so, without a hole."""
    session = spec.sessions.create("mock")
    assert spec.sessions.activate(session.id).status == "active"
    assert spec.sessions.complete(session.id).status == "completed"
    assert [(e.seq, e.type) for e in spec.sessions.events(session.id)] == [
        (1, "session_created"), (2, "session_started"), (3, "session_completed")]


def test_a05_failed_session_says_what_its_provider_said(spec: mesh.Client) -> None:
    """If a session is failed with an error of a provider, then session_failed holds it."""
    session = spec.sessions.create("mock")
    error = {"code": "provider_error", "message": "gone", "provider_error": {
        "provider": "amp", "kind": "transport_exit", "message": "gone", "exit_code": 17}}
    assert spec.sessions.fail(session.id, error).status == "failed"
    data = spec.sessions.events(session.id)[-1].data
    assert (data["error_code"], data["error_message"]) == ("provider_error", "gone")
    said = data["provider_error"]
    assert (said["provider"], said["kind"], said["exit_code"]) == ("amp", "transport_exit", 17)


@pytest.mark.parametrize("steps", [["complete"], ["activate", "complete", "activate"]])
def test_a07_illegal_steps_are_refused_and_write_nothing(spec: mesh.Client, steps: list[str]) -> None:
    """If a status does not allow a step, then it is invalid_transition and the log stays as it is."""
    session = spec.sessions.create("mock")
    *before, last = steps
    for step in before:
        getattr(spec.sessions, step)(session.id)
    log = types(spec.sessions.events(session.id))
    with pytest.raises(mesh.InvalidState) as caught:
        getattr(spec.sessions, last)(session.id)
    assert caught.value.code == "invalid_transition"
    assert types(spec.sessions.events(session.id)) == log


def test_a09_records_survive_their_maps(spec: mesh.Client) -> None:
    """If records are written as maps and read again, then they are equal, unknown nested keys too."""
    result = spec.run_once("mock", "x", metadata={"deep": [{"odd key": 1}]})
    session, run = spec.sessions.get(result.session_id), spec.runs.get(result.run_id)
    for record in (session, run, *result.events):
        assert type(record).from_map(record.to_map()) == record


def test_a11_datetimes_travel_as_iso_texts(spec: mesh.Client) -> None:
    """If a session's context holds a datetime, then it is stored and read as ISO-8601."""
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    session = spec.sessions.create("mock", context={"at": {"nested": [when]}})
    assert spec.sessions.get(session.id).context == {"at": {"nested": [when.isoformat()]}}


def test_b02_happy_run_leaves_its_events_in_order(spec: mesh.Client) -> None:
    """If a run completes, then its events are in order and the run holds output, usage and its end."""
    session = spec.sessions.start("mock")
    result = spec.runs.execute(spec.runs.create(session.id, {"prompt": "x"}).id)
    assert run_types(spec, result) == ["message_sent", "run_started", "message_received", "run_completed"]
    run = spec.runs.get(result.run_id)
    assert (run.status, run.output) == ("completed", {"content": "reply to x"})
    assert {"input_tokens": 10, "output_tokens": 20}.items() <= run.token_usage.items()
    assert run.ended_at is not None


def test_b04_failing_run_raises_its_error_and_run_failed_is_last(spec: mesh.Client) -> None:
    """If a provider fails, then its error is raised, stored, and run_failed is the one last event."""
    session = spec.sessions.start("failing")
    run = spec.runs.create(session.id, "x")
    with pytest.raises(mesh.RunError, match="boom") as caught:
        spec.runs.execute(run.id)
    assert caught.value.code == "provider_error"
    found = spec.runs.get(run.id)
    assert found.status == "failed"
    assert found.error is not None
    assert (found.error["code"], found.error["message"]) == ("provider_error", "boom")
    log = run_types(spec, found)
    assert log[-1] == "run_failed"
    assert log.count("run_failed") == 1


def test_b06_long_stderr_is_cut(spec: mesh.Client) -> None:
    """If a provider's stderr is long, then 200 lines and 16 384 bytes of it are kept, and that is said."""
    with pytest.raises(mesh.RunError):
        spec.run_once("noisy", "x", id="noisy-1")
    said = next(e.data for e in spec.sessions.events("noisy-1") if e.type == "run_failed")["provider_error"]
    assert len(said["stderr"].encode()) <= 16_384
    assert len(said["stderr"].splitlines()) <= 200
    assert said["truncated"] is True


def test_b08_provider_session_is_kept_with_the_session(spec: mesh.Client) -> None:
    """If run_started names a session of the provider's, then session and run remember it."""
    session = spec.sessions.start("mock")
    run = spec.runs.submit(session.id, "x")
    spec.runs.wait(run.id)
    assert spec.sessions.get(session.id).metadata["provider_sessions"] == {
        "python": {"provider_session_id": "p1", "model": "m"}}
    assert spec.runs.get(run.id).metadata["provider_session_id"] == "p1"


def test_b10_time_and_metadata_of_an_event_are_kept(spec: mesh.Client) -> None:
    """If an agent says when something was, then the event says so too, with its metadata."""
    result = spec.run_once("stamped", "x")
    [event] = [e for e in result.events if e.type == "turn_completed"]
    assert (event.ts, event.metadata["latency"]) == (1_700_000_000.5, 42)


def test_b16_run_past_its_deadline_ends_timeout(spec: mesh.Client) -> None:
    """If a run takes longer than its deadline, then it ends timeout, and run_once's session failed."""
    with pytest.raises(mesh.MeshError) as caught:
        spec.run_once("slow", "30", id="b16", deadline_s=0.2)
    assert caught.value.code == "timeout"
    [run] = spec.sessions.runs("b16")
    assert (run.status, spec.sessions.get("b16").status) == ("timeout", "failed")


def test_b20_run_once_names_session_and_run(spec: mesh.Client) -> None:
    """If run_once succeeds, then its session is completed, and the agent's name is the default agent_id."""
    result = spec.run_once("mock", "x")
    session = spec.sessions.get(result.session_id)
    assert (session.status, session.agent_id) == ("completed", "mock")
    assert spec.runs.get(result.run_id).session_id == session.id


def test_b22_concurrent_creates_give_distinct_runs(spec: mesh.Client) -> None:
    """If ten runs are created at once, then there are ten."""
    session = spec.sessions.start("mock")
    with ThreadPoolExecutor(10) as pool:
        made = list(pool.map(lambda _: spec.runs.create(session.id, "x").id, range(10)))
    assert len(set(made)) == 10
    assert {run.id for run in spec.sessions.runs(session.id)} == set(made)


def test_c03_cancelled_run_has_one_end_and_stays_cancelled(spec: mesh.Client) -> None:
    """If a run in flight is cancelled, then it has one run_cancelled, and who waits is told."""
    session = spec.sessions.start("slow")
    run = spec.runs.submit(session.id, "30")
    wait_for(lambda: "message_streamed" in run_types(spec, run), "the run has begun")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(spec.runs.wait, run.id)
        assert spec.runs.cancel(run.id) == run.id
        with pytest.raises(mesh.RunError) as caught:
            waiting.result(10)
    assert caught.value.code == "cancelled"
    log = run_types(spec, run)
    assert [t for t in log if t.startswith("run_")] == ["run_started", "run_cancelled"]
    assert spec.runs.get(run.id).status == "cancelled"


def test_d08_filters_of_events_apply_together(spec: mesh.Client) -> None:
    """If events are filtered by run, type, cursor and limit, then the first matches come in order."""
    session = spec.sessions.start("streaming")
    runs = [spec.runs.submit(session.id, "x") for _ in range(3)]
    for run in runs:
        spec.runs.wait(run.id)
    every = [e for e in spec.sessions.events(session.id) if e.run_id == runs[1].id]
    found = spec.sessions.events(
        session.id, run_id=runs[1].id, type="message_streamed", after=every[0].seq, limit=1)
    assert list(found) == [e for e in every if e.type == "message_streamed"][:1]


def test_h02_runs_of_one_session_execute_one_after_another(spec: mesh.Client) -> None:
    """If a session has one slot, then run 2 begins when run 1 is over, in order."""
    session = spec.sessions.start("streaming")
    runs = [spec.runs.submit(session.id, str(i)) for i in range(3)]
    for run in runs:
        spec.runs.wait(run.id)
    marks = [(e.type, e.run_id) for e in spec.sessions.events(session.id)
             if e.type in ("run_started", "run_completed")]
    assert marks == [(what, run.id) for run in runs for what in ("run_started", "run_completed")]


def test_h04_full_queue_refuses_and_stores_nothing(spec: mesh.Client) -> None:
    """If slot and queue are full, then the next run is refused and not stored."""
    session = spec.sessions.start("slow")
    runs = [spec.runs.submit(session.id, "30") for _ in range(3)]
    with pytest.raises(mesh.Overloaded) as caught:
        spec.runs.submit(session.id, "30")
    assert caught.value.code in ("queue_full", "max_runs_exceeded")
    assert {run.id for run in spec.sessions.runs(session.id)} == {run.id for run in runs}
    spec.sessions.cancel(session.id)


def test_h06_cancel_of_unknown_and_of_finished(spec: mesh.Client) -> None:
    """If a run is unknown, then cancelling it is run_not_found; if it is over, then nothing happens."""
    result = spec.run_once("mock", "x")
    assert spec.runs.cancel(result.run_id) == result.run_id
    unknown = result.run_id[:-6] + "ffffff"
    for call in (spec.runs.cancel, spec.runs.wait, spec.runs.get):
        with pytest.raises(mesh.NotFound) as caught:
            call(unknown)
        assert caught.value.code == "run_not_found"


def test_i01_next_run_sees_the_conversation_so_far(spec: mesh.Client) -> None:
    """If a run continues, then its agent sees what was said before, not its own input, and the context."""
    session = spec.sessions.start("recalling", context={"system_prompt": "be brief"})
    spec.runs.wait(spec.runs.submit(session.id, "first").id)
    result = spec.runs.wait(spec.runs.submit(session.id, "next", continuation="auto").id)
    assert result.output["transcript"] == [["user", "first"], ["assistant", "second"]]
    assert result.output["system"] == "be brief"


def test_i03_streamed_and_received_text_is_one_message(spec: mesh.Client) -> None:
    """If a text was streamed and then received whole, then the transcript holds it once."""
    session = spec.sessions.start("streaming")
    spec.runs.wait(spec.runs.submit(session.id, "x").id)
    said = [(m.role, m.content) for m in spec.sessions.transcript(session.id)]
    assert said == [("user", "x"), ("assistant", "Hello world")]


def test_k01_event_of_a_wrong_shape_is_kept_with_warnings(spec: mesh.Client) -> None:
    """If an event lacks what its type should hold, then it is stored, with warnings."""
    result = spec.run_once("shapeless", "x")
    [event] = [e for e in result.events if e.type == "tool_call_started"]
    assert event.metadata["_validation_warnings"]


@pytest.mark.parametrize(("asked", "code"), [
    ({"limit": 0}, "validation_error"),
    ({"limit": 1001}, "validation_error"),
    ({"cursor": "junk"}, "invalid_cursor"),
])
def test_k03_wrong_limit_or_cursor_is_refused(spec: mesh.Client, asked: dict[str, Any], code: str) -> None:
    """If a search is asked for with a wrong limit or cursor, then its code says which."""
    with pytest.raises(mesh.InvalidArgument) as caught:
        spec.sessions.search(**asked)
    assert caught.value.code == code


def test_k05_command_that_fails_fails_its_run(spec: mesh.Client) -> None:
    """If a shell command exits with 3, then its run failed, with one run_failed and no run_completed."""
    with pytest.raises(mesh.RunError):
        spec.run_once("shell", "exit 3", id="k05")
    [run] = spec.sessions.runs("k05")
    log = run_types(spec, run)
    assert run.status == "failed"
    assert (log.count("run_failed"), log.count("run_completed")) == (1, 0)
