"""API models on a whole node: a real llama.cpp server with a tiny model, changes of provider, kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conditions import wait_for
from scripted import Threaded, end, hang, text

import mesh

pytestmark = pytest.mark.e2e
pytest.importorskip("anthropic")
pytest.importorskip("openai")

MODEL = Path(__file__).with_name("tiny_model.py")
FAST = {"supervision": {"hang_timeout_s": 2.0, "heartbeat_s": 0.2}}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a real server serves a real, if senseless, model."""
    pytest.importorskip("xllamacpp")
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("model")
    with (folder / "log").open("w") as log, subprocess.Popen(
        [sys.executable, str(MODEL), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


@pytest.fixture(scope="module")
def scripted() -> Iterator[Threaded]:
    with Threaded({"slow": [text("a"), hang()], "good": [text("hel"), text("lo"), end()]}) as server:
        yield server


@pytest.fixture(scope="module")
def client(llama: str, scripted: Threaded) -> Iterator[mesh.Client]:
    real: dict[str, Any] = {"model": "tiny", "max_tokens": 12}
    agents: dict[str, Any] = {
        "chat": {"provider": "openai", "base_url": f"{llama}/v1", **real},
        "responses": {"provider": "openai", "api": "responses", "base_url": f"{llama}/v1", **real},
        "messages": {"provider": "anthropic", "base_url": llama, **real},
        "long": {"provider": "openai", "base_url": f"{llama}/v1", "model": "tiny", "max_tokens": 900},
        "slow anthropic": {"provider": "anthropic", "base_url": scripted.url, "model": "slow"},
        "slow openai": {"provider": "openai", "base_url": f"{scripted.url}/v1", "model": "slow"},
        "other": {"provider": "anthropic", "base_url": scripted.url, "model": "good"},
    }
    with mesh.LocalNode(config={**FAST, "agents": agents}) as node, node.client(timeout_s=60.0) as opened:
        yield opened


@pytest.mark.parametrize("agent", ["chat", "responses", "messages"])
def test_a_real_server_answers_in_pieces_with_usage(client: mesh.Client, agent: str) -> None:
    """If a run asks a real llama.cpp, then its words come in pieces, with the server's own usage."""
    result = client.run_once(agent, "hello")
    types = [event.type for event in result.events]
    assert types[:4] == ["session_created", "session_started", "message_sent", "run_started"]
    assert types[-3:] == ["message_received", "run_completed", "session_completed"]
    assert types.count("message_streamed") > 3
    assert result.output["content"]
    # its Responses API does not say that an answer was cut
    assert result.output["stop_reason"] == ("end_turn" if agent == "responses" else "max_tokens")
    assert result.token_usage["output_tokens"] == 12
    assert result.token_usage["input_tokens"] > 0
    assert "usage_estimated" not in result.output


def test_a_real_answer_is_cancelled_in_the_middle(client: mesh.Client) -> None:
    """If a run of a real server is cancelled, then it ends, keeps its words, and the server serves on."""
    session = client.sessions.start("long")
    run = client.runs.submit(session.id, "tell me")
    wait_for(lambda: client.sessions.events(session.id, type="message_streamed"), "the first word")
    client.runs.cancel(run.id)
    assert client.runs.get(run.id).status in ("cancelled", "completed")
    assert client.run_once("chat", "still there?").output["content"]


def test_a_session_goes_on_with_another_provider(client: mesh.Client, scripted: Threaded) -> None:
    """If a session's next run is another provider's, then that is told all that was said before."""
    session = client.sessions.start("chat")
    first = client.runs.wait(client.runs.submit(session.id, "about plums").id)
    run = client.runs.submit(session.id, "and now?", agent="other", continuation="auto")
    assert client.runs.wait(run.id).output["content"] == "hello"
    asked = scripted.requests[-1].body["messages"]
    said = [(m["role"], m["content"][0]["text"]) for m in asked]
    assert said == [("user", "about plums"), ("assistant", first.output["content"]), ("user", "and now?")]
    last = client.runs.submit(session.id, "and last?", agent="responses", continuation="auto")
    assert client.runs.wait(last.id).token_usage["input_tokens"] > first.token_usage["input_tokens"]


def test_a_killed_runner_settles_the_runs_of_api_models(client: mesh.Client) -> None:
    """If the runner dies while models answer, then the runs are outcome_unknown, and its successor serves."""
    runs = {}
    for agent in ("slow anthropic", "slow openai"):
        session = client.sessions.start(agent)
        runs[session.id] = client.runs.submit(session.id, "hi").id
    for session_id in runs:
        wait_for(lambda sid=session_id: client.sessions.events(sid, type="message_streamed"), "a word")
    os.kill(client.sessions.handle(next(iter(runs))).pid, signal.SIGKILL)
    for session_id, run_id in runs.items():
        with pytest.raises(mesh.MeshError) as failure:
            client.runs.wait(run_id)
        assert failure.value.code == "outcome_unknown"
        terminal = [e for e in client.sessions.events(session_id, run_id=run_id) if e.type == "run_failed"]
        assert len(terminal) == 1
    assert client.run_once("other", "hi").output["content"] == "hello"


LINES = {
    "anthropic": 'provider = "anthropic"\nmodel = "good"\nbase_url = "{url}"\n',
    "openai": 'provider = "openai"\nmodel = "good"\nbase_url = "{url}/v1"\n',
}


def _run(folder: Path, lines: str, **environ: str) -> subprocess.CompletedProcess[str]:
    config = folder / "mesh.toml"
    config.write_text(f"[agents.mine]\n{lines}")
    keep = {key: value for key, value in os.environ.items() if not key.endswith("_API_KEY")}
    return subprocess.run(
        [sys.executable, "-m", "mesh", "run", "--config", str(config), "mine", "hi"], text=True,
        capture_output=True, check=False, env={**keep, **environ}, cwd=MODEL.parents[2],
    )


@pytest.mark.parametrize("provider", LINES)
def test_three_lines_of_config_and_a_command_are_enough(
    provider: str, scripted: Threaded, tmp_path: Path
) -> None:
    """If a config names provider, model and server, then mesh run NAME says the model's answer."""
    done = _run(tmp_path, LINES[provider].format(url=scripted.url))
    assert (done.returncode, done.stdout.strip()) == (0, "hello"), done.stderr


def test_mesh_run_without_a_key_says_what_to_do(tmp_path: Path) -> None:
    """If no key is there, then mesh run fails and says which variable to set."""
    done = _run(tmp_path, 'provider = "anthropic"\nmodel = "good"\n')
    assert done.returncode == 1
    assert "set ANTHROPIC_API_KEY" in done.stderr


def test_nothing_of_a_library_is_loaded_without_need() -> None:
    """If mesh, its node and its providers are imported, then no library of an API is."""
    code = (
        "import sys, mesh, mesh.cli, mesh.node.runner, mesh.node.supervisor, mesh.providers.table as t\n"
        "t.text()\n"
        "print([n for n in ('anthropic', 'openai', 'httpx', 'httpx2', 'mcp', 'claude_agent_sdk', 'acp', "
        "'agents', 'langgraph', 'pydantic') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
