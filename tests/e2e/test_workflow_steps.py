"""Steps of a workflow on a node, in both colours, and the example of the README."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mesh
from mesh import workflow
from mesh.errors import InvalidArgument, RunError

pytestmark = pytest.mark.e2e
HERE = Path(__file__).parent
AGENTS = {
    name: {"provider": "python", "target": f"{HERE}/stream_agents.py:{name}"}
    for name in ("speaker", "failing")
}
Do = Callable[..., Any]


@pytest.fixture(scope="module")
def node() -> Iterator[mesh.LocalNode]:
    """A node with the agents."""
    with mesh.LocalNode(partitions=1, config={"agents": AGENTS}) as started:
        yield started


@pytest.fixture(params=["blocking", "asyncio"])
def do(request: pytest.FixtureRequest, node: mesh.LocalNode) -> Do:
    """Call a function of the module with a client of either colour; its result."""

    def blocking(function: Do, *arguments: Any, **options: Any) -> Any:
        with node.client() as client:
            return function(client, *arguments, **options)

    async def on_asyncio(function: Do, *arguments: Any, **options: Any) -> Any:
        async with node.async_client() as client:
            return await function(client, *arguments, **options)

    if request.param == "blocking":
        return blocking
    return lambda *arguments, **options: asyncio.run(on_asyncio(*arguments, **options))


def test_a_step_alone_has_a_session_of_its_own(do: Do, node: mesh.LocalNode) -> None:
    """If a step has no session, then it is run_once, and its result is a plain value."""
    events: list[str] = []
    step = do(
        workflow.step_execute, "x", agent="speaker", tags=["t"],
        on_event=lambda event: events.append(event.type),
    )
    assert (step.content, step.stop_reason, step.has_tool_calls) == ("a b", "end_turn", True)
    assert step.tool_calls[0]["tool_name"] == "look" and events == [event.type for event in step.events]
    with node.client() as client:
        session = client.sessions.get(step.session_id)
    assert session.status == "completed" and session.tags == ("t",)
    assert set(step.to_map()) >= {"output", "token_usage", "run_id", "workspace", "policy", "retryable"}


def test_steps_share_a_session_until_it_is_completed(do: Do, node: mesh.LocalNode) -> None:
    """If steps have a session, then each is a run of it, and completing the workflow ends it."""
    sid = do(workflow.setup_workflow_session, "echo", metadata={"flow": 1})
    first = do(workflow.step_execute, "one", session_id=sid)
    second = do(workflow.step_execute, "two", session_id=sid, agent="speaker", continuation="auto")
    assert (first.content, second.content) == ("one", "a b") and first.session_id == second.session_id == sid
    with node.client() as client:
        assert client.sessions.get(sid).agent_id == workflow.WORKFLOW_AGENT_ID
        do(workflow.complete_workflow_session, sid)
        assert client.sessions.get(sid).status == "completed"


def test_a_step_that_fails_raises_and_the_workflow_may_fail_with_it(do: Do, node: mesh.LocalNode) -> None:
    """If a step fails, then its error can be classified, and the session failed with it."""
    sid = do(workflow.setup_workflow_session, "failing")
    with pytest.raises(RunError) as raised:
        do(workflow.step_execute, "x", session_id=sid)
    assert workflow.classify_error(raised.value).action == "abort"
    do(workflow.complete_workflow_session, sid, status="failed", error=raised.value)
    with node.client() as client:
        [last] = client.sessions.events(sid, type="session_failed")
        assert client.sessions.get(sid).status == "failed" and last.data["error_code"] == "provider_error"


@pytest.mark.parametrize(
    ("options", "code"), [({"deadline_s": -1}, "validation_error"), ({"agent": "nobody"}, "unknown_agent")]
)
def test_a_step_that_is_refused_leaves_nothing_pending(
    do: Do, node: mesh.LocalNode, options: dict[str, Any], code: str
) -> None:
    """If a step in a session is refused, by the client or by the node, then no run waits to be begun."""
    sid = do(workflow.setup_workflow_session, "echo")
    with pytest.raises(mesh.MeshError) as raised:
        do(workflow.step_execute, "x", session_id=sid, **options)
    assert raised.value.code == code
    with node.client() as client:
        assert [run.status for run in client.sessions.runs(sid)] == ["cancelled"]


@pytest.mark.parametrize(
    ("function", "arguments", "options"),
    [
        (workflow.step_execute, ("x",), {}),
        (workflow.step_execute, ("x",), {"agent": "echo", "polcy": {}}),
        (workflow.step_execute, ("x",), {"session_id": "s", "tags": ["a"]}),
        (workflow.complete_workflow_session, ("s",), {"status": "cancelled"}),
        (workflow.complete_workflow_session, ("s",), {"error": "x"}),
    ],
)
def test_wrong_arguments_are_refused_at_once(
    node: mesh.LocalNode, function: Do, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """If an option is unknown, missing or does not fit, then nothing is asked of the node."""
    with node.client() as client, pytest.raises(InvalidArgument):
        function(client, *arguments, **options)


def test_the_examples_of_the_readme_run(
    node: mesh.LocalNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the README shows how to render, stream and make steps, then its lines do what they say."""
    text = (HERE.parent.parent / "README.md").read_text(encoding="utf-8")
    chapter = text.partition("\n## Rendering and streams\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", chapter, re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    with node.client() as client:
        names: dict[str, Any] = {"mesh": mesh, "client": client}
        for block in blocks:
            exec(block, names)
    assert (tmp_path / "run.txt").read_text() and "one two" in capsys.readouterr().out
