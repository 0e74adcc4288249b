"""Providers together on a real node: one session over several, recordings, MCP servers under kills."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_for

import mesh

HERE = Path(__file__).parent
PROVIDERS = HERE.parent / "providers"
HAS_MCP = importlib.util.find_spec("mcp") is not None
HAS_OPENAI = importlib.util.find_spec("openai") is not None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recordings")


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """What stands for a model's API."""
    sys.path.append(str(PROVIDERS))
    import scripted

    def tools(body: dict[str, Any]) -> list[Any]:
        if body["messages"][-1]["role"] == "tool":
            return [scripted.text("it is "), scripted.text(body["messages"][-1]["content"]), scripted.end()]
        call = scripted.call("call_1", "calc__add", '{"a": ', '2, "b": 3}')
        return [call, scripted.end("tool_use")]

    script = {"good": [scripted.text("well "), scripted.text("done"), scripted.end()], "tools": tools}
    with scripted.Threaded(script) as started:
        yield started


@pytest.fixture(scope="module")
def node(folder: Path, server: Any) -> Iterator[mesh.LocalNode]:
    tape = str(folder / "tape.jsonl")
    said = {"run_id": "a", "type": "message_streamed", "ts": 1.1, "data": {"content": "as then"}}
    (folder / "then.jsonl").write_text(
        '{"run": {"id": "a", "input": "go on", "status": "completed"}}\n'
        '{"event": {"run_id": "a", "type": "run_started", "ts": 1.0, "data": {}}}\n'
        f'{{"event": {str(said).replace(chr(39), chr(34))}}}\n'
        '{"event": {"run_id": "a", "type": "run_completed", "ts": 1.2, "data": {}}}\n'
    )
    own = {"provider": "python", "target": f"{HERE / 'tool_agents.py'}:mind", "continuation": "auto"}
    agents: dict[str, Any] = {
        "mind": own,
        "then": {"provider": "replay", "file": str(folder / "then.jsonl"), "timing": "zero"},
        "taped": {"provider": "record", "agent": "mind", "file": tape},
    }
    if HAS_OPENAI:
        agents["model"] = {"provider": "openai", "model": "good", "base_url": server.url + "/v1",
                           "continuation": "auto"}
    if HAS_OPENAI and HAS_MCP:
        agents["counts"] = {**agents["model"], "model": "tools", "mcp": ["calc"], "mcp_allow": ["calc__add"]}
    if HAS_MCP:
        target = f"{HERE / 'tool_agents.py'}:caller"
        agents["caller"] = {"provider": "python", "target": target, "mcp": ["calc"]}
    words = ["-S", str(PROVIDERS / "mcp_server.py"), "child"]
    mcp = {"calc": {"command": sys.executable, "args": words}} if HAS_MCP else {}
    with mesh.LocalNode(partitions=1, config={"agents": agents, "mcp": mcp}) as started:
        yield started


@pytest.fixture
def client(node: mesh.LocalNode) -> Iterator[mesh.Client]:
    with node.client(timeout_s=30.0) as made:
        yield made


def run(client: mesh.Client, session: str, prompt: str, **options: Any) -> str:
    """What one run says."""
    return str(client.runs.wait(client.runs.submit(session, prompt, **options).id).output["content"])


@pytest.mark.skipif(not HAS_OPENAI, reason="needs openai")
def test_one_session_goes_on_over_four_providers_with_its_transcript(
    client: mesh.Client, server: Any
) -> None:
    """If each run of a session is another provider's, then each is told all that was said before it."""
    sid = client.sessions.start("mind").id
    assert run(client, sid, "echo plums", agent="shell") == "plums\n"
    assert run(client, sid, "go on", agent="then") == "as then"
    assert run(client, sid, "what was it?") == "echo plums | plums\n | go on | as then | what was it?"
    assert run(client, sid, "and you?", agent="model") == "well done"
    told = [(message["role"], message["content"]) for message in server.requests[-1].body["messages"]]
    assert told[:2] == [("user", "echo plums"), ("assistant", "plums\n")]
    assert told[-1] == ("user", "and you?")
    assert {event.provider for event in client.sessions.events(sid, type="run_started")} == {
        "shell", "replay", "python", "openai"}


def test_export_of_a_session_is_a_recording(client: mesh.Client, folder: Path) -> None:
    """If a session's export is a replay's file, then its runs are said again."""
    sid = client.sessions.start("shell").id
    first = run(client, sid, "printf one; printf two >&2")
    file = folder / "then.jsonl"
    before = file.read_text()
    file.write_text("\n".join(client.sessions.export(sid)))
    try:
        client.agents.reload()
        again = client.run_once("then", "printf one; printf two >&2")
    finally:
        file.write_text(before)
        client.agents.reload()
    assert again.output["content"] == first == "one"
    assert again.output["exit_code"] == 0


def test_recorded_run_is_the_agents_own_and_stands_in_the_file(client: mesh.Client, folder: Path) -> None:
    """If an agent is recorded, then its runs look like its own, continue likewise, and are in the file."""
    sid = client.sessions.start("taped").id
    run(client, sid, "first")
    assert run(client, sid, "password=hunter2222") == "first |  | first | [REDACTED]"
    [_, event] = client.sessions.events(sid, type="run_started")
    assert event.provider == "python"
    text = (folder / "tape.jsonl").read_text()
    assert text.startswith('{"mesh_recording": 1}\n')
    assert "first" in text
    assert "hunter2222" not in text


def test_mesh_run_records_also_a_run_that_fails(node: mesh.LocalNode, tmp_path: Path) -> None:
    """If --record names a file, then it holds the session, and stdout is the agent's alone."""
    file = tmp_path / "demo.jsonl"
    command = [sys.executable, "-m", "mesh", "--address", node.address, "run", "shell", "echo hi; exit 3",
               "--record", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "hi\n")
    assert "recorded" in done.stderr
    lines = file.read_text().splitlines()
    assert '"mesh_export":1' in lines[0]
    assert any('"run_failed"' in line for line in lines)
    assert lines[-1].startswith('{"end":')


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def pids_of(client: mesh.Client, session: str) -> list[int]:
    """The MCP server of the run that goes on, and its grandchild, by their own word."""
    def said() -> list[Any]:
        return [event for event in client.sessions.events(session, type="tool_call_completed")
                if event.data["tool_name"] == "mcp__calc__pids"]

    wait_for(said, "the server's pids")
    return [int(word) for word in said()[-1].data["tool_output"].split()]


@pytest.mark.skipif(not HAS_MCP, reason="needs mcp")
def test_policy_names_an_mcp_server_or_its_tool(client: mesh.Client) -> None:
    """If a policy denies one tool of a server, then the others of it may be called."""
    policy = {"name": "p", "tool_rules": [["deny", ["mcp__calc__fail"]]], "on_violation": "warn"}
    result = client.run_once("caller", "calc__add calc__fail calc__add", policies=[policy])
    first, denied, last = result.output["content"].splitlines()
    assert (first, last) == ("calc__add: 5", "calc__add: 5")
    assert "does not allow" in denied
    whole = {"name": "p", "tool_rules": [["deny", ["mcp__calc__*"]]], "on_violation": "warn"}
    assert "does not allow" in client.run_once("caller", "calc__add", policies=[whole]).output["content"]


@pytest.mark.skipif(not (HAS_MCP and HAS_OPENAI), reason="needs mcp and openai")
def test_model_uses_a_tool_of_a_server_when_a_human_says_yes(client: mesh.Client, server: Any) -> None:
    """If a policy asks about a server's tools, then the model's call waits for a human's word."""
    policy = {"name": "p", "tool_rules": [["ask", ["mcp__calc__*"]]]}
    sid = client.sessions.start("counts").id
    going = client.runs.submit(sid, "what is 2+3?", policies=[policy])
    wait_for(lambda: client.approvals.list(session_id=sid), "the question")
    [question] = client.approvals.list(session_id=sid)
    assert (question.tool_name, question.tool_input) == ("mcp__calc__add", {"a": 2, "b": 3})
    client.runs.approve(going.id, "call_1")
    assert client.runs.wait(going.id).output["content"] == "it is 5"
    offered = [tool["function"]["name"] for tool in server.requests[-1].body["tools"]]
    assert offered == ["calc__add"]


@pytest.mark.skipif(not HAS_MCP, reason="needs mcp")
def test_killed_runner_and_cancelled_run_leave_no_mcp_server(client: mesh.Client) -> None:
    """If a run is cancelled, or its runner killed, in a tool that hangs, then its server is gone."""
    client.sessions.start("caller", id="calls")
    going = client.runs.submit("calls", "calc__pids calc__wait")
    pids = pids_of(client, "calls")
    assert all(alive(pid) for pid in pids)
    client.runs.cancel(going.id)
    wait_for(lambda: not any(alive(pid) for pid in pids), "the end of the cancelled run's server")

    going = client.runs.submit("calls", "calc__pids calc__wait")
    wait_for(lambda: pids_of(client, "calls") != pids, "the next server")
    pids = pids_of(client, "calls")
    os.kill(client.sessions.handle("calls").pid, signal.SIGKILL)
    wait_for(lambda: not any(alive(pid) for pid in pids), "the end of the killed runner's server")
    with pytest.raises(mesh.MeshError) as ended:
        client.runs.wait(going.id)
    assert ended.value.code == "outcome_unknown"
