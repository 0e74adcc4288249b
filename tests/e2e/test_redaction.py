"""Secrets on their way through a node: nobody who reads sees one, whatever way it takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conditions import wait_for

import mesh

KEY = "AKIAIOSFODNN7EXAMPLE"
WORD = "hunter2"
BEARER = "abcdefghijklmnopqrstuvwxyz123456"
SOURCE = f'''
import sys

async def leaky(run):
    run.state["seen"] = run.prompt
    print("printed {KEY}")
    sys.stderr.write("-----BEGIN RSA PRIVATE KEY-----\\nMIIEpAIBAAKCAQEA75\\n")
    sys.stdout.buffer.write(b"password={WORD}\\n")
    for char in "the key is {KEY} ok":
        yield char
    yield {{"type": "tool_call_started", "metadata": {{"note": "{KEY}"}}, "data": {{
        "tool_name": "t", "tool_call_id": "1", "tool_input": {{"password": "{WORD}", "n": 5}}}}}}
    yield {{"type": "tool_call_completed", "data": {{
        "tool_name": "t", "tool_call_id": "1", "tool_output": ["Bearer {BEARER}"]}}}}
    if "raise" in run.prompt:
        raise ValueError("cannot reach postgres://u:{WORD}@h/db")
    yield {{"type": "output", "data": {{
        "content": "done {KEY}", "true input": "{WORD}" in run.state["seen"]}}}}

async def waits(run):
    import asyncio
    yield "Enter your pass"
    await asyncio.sleep(1000)
'''


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mesh.LocalNode]:
    folder = tmp_path_factory.mktemp("redaction")
    (folder / "agents.py").write_text(SOURCE)
    agents = {
        name: {"provider": "python", "target": f"{folder}/agents.py:{name}"} for name in ("leaky", "waits")
    }
    agents["broken"] = {"provider": "python", "target": f"{folder}/broken.py:agent"}
    (folder / "broken.py").write_text(f'raise RuntimeError("api_key={WORD}")')
    with mesh.LocalNode(folder / "data", config={"agents": agents}) as node:
        yield node


@pytest.fixture
def client(node: mesh.LocalNode) -> Iterator[mesh.Client]:
    with node.client() as client:
        yield client


def hidden(*shown: Any) -> None:
    text = repr(shown)
    for secret in (KEY, WORD, BEARER, "MIIEpAIBAAKCAQEA75"):
        assert secret not in text


def test_no_reader_sees_a_secret_and_the_agent_sees_its_input(
    client: mesh.Client, node: mesh.LocalNode
) -> None:
    """If secrets go in and come out, then events, feed, output, input as read and logs hide them."""
    session = client.sessions.start("leaky")
    heard: list[Any] = []
    with client.listen(f"session.{session.id}.") as listener:
        run = client.runs.create(session.id, f"use password={WORD}")
        result = client.runs.execute(run.id, on_event=heard.append)
        told = []
        for notice in listener:
            told.append(notice.data)
            if notice.topic.endswith("run_completed"):
                break
    assert result.output == {"content": "done [REDACTED]", "true input": True}
    streamed = [e.data["content"] for e in result.events if e.type == "message_streamed"]
    assert "".join(streamed) == "the key is [REDACTED] ok"
    tools = [event for event in result.events if event.type.startswith("tool")]
    assert [tool.data.get("tool_input") for tool in tools] == [{"password": "[REDACTED]", "n": 5}, None]
    assert tools[1].data["tool_output"] == ["[REDACTED]"]
    stored = client.runs.get(run.id)
    assert stored.input == "use [REDACTED]"
    hidden(result, [event.to_map() for event in (*heard, *result.events)], told, stored.to_map())
    hidden(list(client.sessions.events(session.id)), [r.to_map() for r in client.sessions.runs(session.id)])
    logs = Path(client.status()["data_dir"]) / "logs"
    hidden(wait_for(lambda: _printed(logs / "runner-0.log"), "three markers in the log"))
    wait_for(lambda: client.status()["runners"][0]["redacted"] >= 5, "a count in the status")
    wait_for(lambda: sum(p["redacted"] for p in client.status()["partitions"]) >= 1, "a partition's count")


def _printed(log: Path) -> str:
    text = log.read_text()
    return text if text.count("[REDACTED]") >= 3 else ""


def test_errors_hold_no_secret(client: mesh.Client) -> None:
    """If an agent raises, cannot be loaded, or a caller fails a session, then the error hides its secrets."""
    session = client.sessions.start("leaky")
    with pytest.raises(mesh.MeshError) as caught:
        client.run_once("leaky", "raise")
    assert "cannot reach [REDACTED]" in caught.value.message
    failed = client.sessions.fail(session.id, {"code": "x", "message": f"pwd={WORD}", "details": {"k": KEY}})
    last = client.sessions.events(session.id)[-1]
    problems = {agent["name"]: agent["problem"] for agent in client.agents.list()}
    assert "RuntimeError: [REDACTED]" in str(problems["broken"])
    hidden(caught.value.to_map() if hasattr(caught.value, "to_map") else caught.value.details, failed, last)


def test_a_command_is_redacted_line_and_output(client: mesh.Client) -> None:
    """If a command's line, stdout and stderr hold secrets, then none is shown, cut in two or not."""
    half, rest = KEY[:9], KEY[9:]
    result = client.run_once("shell", f"printf {half}; sleep 0.2; printf {rest}; echo password={WORD} >&2")
    assert result.output["content"] == "[REDACTED]"
    assert result.output["stderr"] == "[REDACTED]\n"
    assert [e.data["content"] for e in result.events if e.data.get("stream") == "stdout"] == ["[REDACTED]"]
    hidden(result.output, [event.to_map() for event in result.events])


def test_what_is_imported_is_redacted(client: mesh.Client) -> None:
    """If a file written elsewhere holds secrets, then its events and results come in without them."""
    done = client.run_once("echo", "PLACEHOLDER words")
    lines = [line.replace("PLACEHOLDER", KEY) for line in client.sessions.export(done.session_id)]
    copy = client.sessions.import_(lines, new_id=True)
    events, runs = client.sessions.events(copy.id), client.sessions.runs(copy.id)
    assert runs[0].output == {"content": "[REDACTED] words"}
    hidden([event.to_map() for event in events], [run.to_map() for run in runs])


def test_words_that_only_begin_like_a_secret_are_shown_soon(client: mesh.Client) -> None:
    """If an agent pauses after such a word, then a reader sees it all the same."""
    session = client.sessions.start("waits")
    run = client.runs.submit(session.id, "go")
    said = ""
    for event in client.sessions.stream(session.id, type="message_streamed"):
        said += event.data["content"]
        if said == "Enter your pass":
            break
    client.runs.cancel(run.id)


def test_redaction_can_be_turned_off_and_categorized() -> None:
    """If the settings say so, then markers name the category, or nothing is hidden."""
    config = {"redaction": {"replacement": "categorized", "patterns": [r"EMP-\d+"]}}
    with mesh.LocalNode(config=config) as node, node.client() as client:
        assert client.run_once("echo", f"x {KEY} EMP-12").output["content"] == (
            "x [REDACTED:aws_access_key] [REDACTED:custom]"
        )
    with mesh.LocalNode(config={"redaction": {"enabled": False}}) as node, node.client() as client:
        assert client.run_once("echo", KEY).output["content"] == KEY
