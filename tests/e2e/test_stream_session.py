"""A run as a stream: its agent's events in order, a typed last item when it fails, nothing left behind."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mesh
from mesh.core.records import Event
from mesh.errors import InvalidArgument
from mesh.streams import AsyncStreamSession, StreamSession

pytestmark = pytest.mark.e2e
HERE = Path(__file__).parent
AGENTS = {
    name: {"provider": "python", "target": f"{HERE}/stream_agents.py:{name}"}
    for name in ("speaker", "failing", "silent", "asking")
}
Take = Callable[..., list[Event]]


@pytest.fixture(scope="module")
def node() -> Iterator[mesh.LocalNode]:
    """A node with the agents."""
    with mesh.LocalNode(partitions=1, config={"agents": AGENTS}) as started:
        yield started


@pytest.fixture
def client(node: mesh.LocalNode) -> Iterator[mesh.Client]:
    """A client of it."""
    with node.client() as opened:
        yield opened


@pytest.fixture(params=["blocking", "asyncio"])
def take(request: pytest.FixtureRequest, node: mesh.LocalNode) -> Take:
    """All events of a stream, in either colour."""

    def blocking(*arguments: Any, **options: Any) -> list[Event]:
        with node.client() as client, StreamSession(*arguments, client=client, **options) as stream:
            return list(stream)

    async def on_asyncio(*arguments: Any, **options: Any) -> list[Event]:
        async with (
            node.async_client() as client, AsyncStreamSession(*arguments, client=client, **options) as stream
        ):
            return [event async for event in stream]

    if request.param == "blocking":
        return blocking
    return lambda *arguments, **options: asyncio.run(on_asyncio(*arguments, **options))


def types(events: list[Event]) -> list[str]:
    """Their types, without usage."""
    return [event.type for event in events]


def test_a_stream_has_the_agents_events_and_ends(take: Take) -> None:
    """If a run completes, then its agent's events are the stream, without session, policy and prompt."""
    events = take("speaker", "x", run_opts={"policy": {"limits": {"max_tool_calls": 9}}, "tags": ["t"]})
    assert types(events) == [
        "run_started", "message_streamed", "tool_call_started", "tool_call_completed", "message_streamed",
        "message_received", "run_completed",
    ]


def test_a_failed_run_ends_its_stream_with_a_typed_error(take: Take) -> None:
    """If the agent fails, then the last item says with which code, and what its provider said."""
    *events, last = take("failing", "x")
    assert types(events)[-1] == "run_failed" and last.type == "error_occurred" and last.id == ""
    assert last.data["error_code"] == "provider_error" and "no luck" in last.data["error_message"]
    assert last.data["details"]["run_id"] == last.run_id and last.seq == events[-1].seq + 1


def test_a_refused_run_is_one_error(take: Take) -> None:
    """If the node refuses the run, then the stream is the refusal, and nothing is raised."""
    [only] = take("nobody", "x")
    assert (only.type, only.data["error_code"]) == ("error_occurred", "unknown_agent")


def test_silence_ends_the_stream_and_the_run(take: Take, client: mesh.Client) -> None:
    """If the agent says nothing for idle_timeout_s, then a text says so and the run is over."""
    *events, last = take("silent", "x", idle_timeout_s=0.5)
    assert types(events) == ["run_started", "message_streamed"]
    assert (last.type, last.data) == ("error_occurred", {"error_message": "no event within 0.5 s"})
    assert client.runs.get(str(last.run_id)).status == "cancelled"
    assert client.sessions.get(last.session_id).status in ("failed", "cancelled")


def test_waiting_for_a_human_is_no_silence(node: mesh.LocalNode, client: mesh.Client) -> None:
    """If a run waits for an approval longer than idle_timeout_s, then the stream waits with it."""
    policy = {"tool_rules": [["ask", ["write"]]]}
    options = {"run_opts": {"policy": policy}, "idle_timeout_s": 0.2}
    with StreamSession("asking", "x", client=client, **options) as stream:
        assert next(stream).type == "run_started"
        assert next(stream).type == "tool_approval_requested"
        held: list[Event] = []
        reader = threading.Thread(target=lambda: held.extend(stream))
        reader.start()
        reader.join(0.7)
        assert not held and reader.is_alive()
        with node.client() as other:
            other.approvals.approve(stream.meta.run_id, "w1")
        reader.join(30)
    assert types(held)[-1] == "run_completed" and "written" in [event.data.get("content") for event in held]


def test_closing_cancels_the_run_at_any_time(client: mesh.Client) -> None:
    """If a stream is closed, before its start, in the middle or twice, then it ends and so does its run."""
    early = StreamSession("silent", "x", client=client)
    early.close()
    assert list(early) == []
    with pytest.raises(mesh.NotFound):
        client.runs.get(early.meta.run_id)
    stream = StreamSession("silent", "x", client=client)
    assert next(stream).type == "run_started"
    stream.close()
    stream.close()
    assert list(stream) == [] and client.runs.get(stream.meta.run_id).status == "cancelled"


def test_closing_from_another_thread_ends_the_reader(client: mesh.Client) -> None:
    """If one thread waits for events and another closes, then the first one ends, without an error."""
    stream = StreamSession("silent", "x", client=client)
    assert [next(stream).type, next(stream).type] == ["run_started", "message_streamed"]
    rest: list[Event] = []
    reader = threading.Thread(target=lambda: rest.extend(stream))
    reader.start()
    stream.close()
    reader.join(30)
    assert not reader.is_alive() and rest == []


def test_a_stream_in_a_session_leaves_it_open(take: Take, client: mesh.Client) -> None:
    """If a session is named, then the run is one of its runs, and closing leaves the session."""
    sid = client.sessions.start("speaker").id
    assert types(take("speaker", "x", session_id=sid))[-1] == "run_completed"
    assert types(take("failing", "x", session_id=sid))[-1] == "error_occurred"
    assert client.sessions.get(sid).status == "active" and len(client.sessions.runs(sid)) == 2


def test_a_stream_without_a_client_has_a_node_of_its_own() -> None:
    """If no client is given, then a node is started for the stream, and gone with it."""
    with StreamSession("echo", "one two") as stream:
        said = [event.data["content"] for event in stream if event.type == "message_streamed"]
    assert "".join(said) == "one two" and stream._node is None


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((None, "x"), {}),
        (("", "x"), {}),
        (("echo", None), {}),
        (("echo", 5), {}),
        (("echo", "x"), {"idle_timeout_s": 0}),
        (("echo", "x"), {"shutdown_timeout_s": "5"}),
        (("echo", "x"), {"run_opts": {"deadline": 5}}),
        (("echo", "x"), {"session_id": "s", "client": object(), "run_opts": {"tags": ["a"]}}),
        (("echo", "x"), {"session_id": "s"}),
        (("echo", "x"), {"client": object(), "config": {}}),
    ],
)
@pytest.mark.parametrize("made", [StreamSession, AsyncStreamSession])
def test_a_stream_refuses_wrong_arguments(
    made: Any, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """If an argument is missing or wrong, then it is refused at once and nothing was started."""
    with pytest.raises(InvalidArgument):
        made(*arguments, **options)


def test_both_colours_have_the_same_methods() -> None:
    """If one colour gains a method, or an argument, then the other has it too."""

    def surface(kind: type) -> dict[str, str]:
        return {
            name: str(inspect.signature(getattr(kind, name)))
            for name in ("__init__", "start", "close", *(n for n in vars(kind) if not n.startswith("_")))
        }

    assert surface(StreamSession) == surface(AsyncStreamSession)


def test_an_interrupted_beginning_leaves_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """If entering a stream is broken off, then its own node is gone, though its block was never entered."""
    nodes: list[mesh.LocalNode] = []

    def interrupted(self: mesh.LocalNode, **_options: Any) -> Any:
        nodes.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(mesh.LocalNode, "client", interrupted)
    with pytest.raises(KeyboardInterrupt), StreamSession("echo", "x"):
        pytest.fail("it was entered")
    with pytest.raises(mesh.MeshError, match="not running"):
        _ = nodes[0].pid
