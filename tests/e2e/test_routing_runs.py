"""Routers on a real node: the specification's cases on routing by their ids, and what survives a kill.

F02 stands with the pure rules, in ``tests/core/test_routing.py``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import pids, wait_for

import mesh

FILE = Path(__file__).with_name("routing_agents.py")
PAIR = {"provider": "router", "agents": ["moody", "steady"]}
ROUTERS: dict[str, Any] = {
    "f04": {**PAIR, "max_attempts": 2},
    "f06": {**PAIR, "failures": 1, "cooldown_s": 0.2},
    "f08": {**PAIR, "failures": 2, "cooldown_s": 60},
    "probed": {**PAIR, "failures": 1, "cooldown_s": 0.5},
    "f10": {**PAIR, "failures": 1},
    "talks": {"provider": "router", "agents": ["steady", "moody"], "continuation": "auto"},
    "plain": PAIR,
    "again": {**PAIR, "idempotent": True, "failures": 1},
    "disables": {"provider": "router", "agents": ["disabled"]},
    "asks": {"provider": "router", "agents": ["shell", "steady"], "first_word_s": 0.3},
    "asks_again": {"provider": "router", "agents": ["shell"], "idempotent": True},
    "pauses": {"provider": "router", "agents": ["patient", "endless"]},
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mesh.LocalNode]:
    agents: dict[str, Any] = {
        name: {"provider": "python", "target": f"{FILE}:{name}"} for name in ("moody", "steady", "patient")
    }
    agents["steady"]["capabilities"] = [{"name": "session_resume", "type": "resource"}]
    agents["patient"]["capabilities"] = ["pause", "resume"]
    agents["disabled"] = {**agents["steady"], "capabilities": [
        {"name": "x", "type": "tool", "enabled": False}]}
    agents["endless"] = {"provider": "echo", "delay_s": 0.05, "pieces": 1_000_000}
    prices = {"python": {"models": {"small": {"input": 1e-6, "output": 1e-5}}}}
    config = {"agents": agents | ROUTERS, "prices": prices}
    with mesh.LocalNode(tmp_path_factory.mktemp("routing") / "data", config=config) as made:
        yield made


@pytest.fixture
def client(node: mesh.LocalNode) -> Iterator[mesh.Client]:
    with node.client(timeout_s=20.0) as made:
        yield made


class Moody:
    """The first agent of most routers, as one test wants it."""

    def __init__(self, client: mesh.Client, file: Path) -> None:
        self.client, self.file = client, file

    def set(self, mood: str) -> None:
        part = self.file.with_suffix(".part")
        part.write_text(mood)
        part.rename(self.file)

    def submit(self, router: str, **options: Any) -> mesh.Run:
        session = self.client.sessions.start(router, context={"mood": str(self.file)})
        return self.client.runs.submit(session.id, "hi", **options)

    def run(self, router: str, **options: Any) -> mesh.RunResult:
        return self.client.run_once(router, "hi", context={"mood": str(self.file)}, **options)

    def who(self, router: str) -> str:
        return str(self.run(router).metadata["routing"]["routed_to"])

    @property
    def calls(self) -> int:
        return len(Path(f"{self.file}.calls").read_text())


@pytest.fixture
def moody(client: mesh.Client, tmp_path: Path) -> Moody:
    return Moody(client, tmp_path / "mood")


def circuit(client: mesh.Client, router: str, agent: str = "moody") -> dict[str, Any]:
    """An agent's circuit as the list of agents shows it; empty while no runner told."""
    [entry] = [row for row in client.agents.list() if row["name"] == router]
    rows = [row for seen in entry["routing"] for row in seen["agents"] if row["agent"] == agent]
    return dict(rows[0]) if rows else {}


def test_f02_disabled_capability_is_a_missing_one(client: mesh.Client) -> None:
    """If a required type is there but disabled, then the run is refused, of a router too, and not stored."""
    for agent in ("disabled", "disables"):
        session = client.sessions.start(agent)
        with pytest.raises(mesh.InvalidArgument) as caught:
            client.runs.create(session.id, "x", required_capabilities=["tool"])
        assert caught.value.code == "missing_required_capability"
        assert caught.value.details["missing"] == ["tool"]
        assert client.sessions.events(session.id, type="message_sent") == []


def test_f04_fault_is_answered_by_the_next_agent(client: mesh.Client, moody: Moody) -> None:
    """If the first agent times out, then the second's output is the run's, at its price, and says why."""
    moody.set("down")
    result = moody.run("f04")
    assert result.output["content"] == "re hi"
    assert result.metadata["routing"] == {
        "routed_to": "steady", "attempt": 2, "candidates": ["moody", "steady"],
        "tried": [{"agent": "moody", "error_code": "provider_timeout", "error_message": "no answer"}]}
    run = client.runs.get(result.run_id)
    assert (run.provider, run.metadata["model"]) == ("python", "small-2")
    # moody's tokens were paid for, but nobody knows its model's price
    assert (result.token_usage["input_tokens"], result.cost_state) == (1_100, "unknown_price")
    assert [e.type for e in result.events if e.run_id == run.id] == [
        "message_sent", "run_started", "token_usage_updated", "message_streamed", "message_received",
        "run_completed"]
    wait_for(lambda: circuit(client, "f04").get("failures") == 1, "the health of the first agent")


def test_routed_run_has_the_price_of_its_agents_model(moody: Moody) -> None:
    """If the agent that executes a run has a price, then the run has its cost."""
    result = moody.run("f04", provider_opts={"routing": {"prefer": ["steady"]}})
    assert (result.cost_usd, result.cost_state) == (pytest.approx(0.0002), "computed")


def test_f06_failed_agent_is_left_alone_for_its_cooldown(moody: Moody) -> None:
    """If an agent fails, then the next run passes it over, and one behind the cooldown does not."""
    moody.set("down")
    first = moody.run("f06").metadata["routing"]
    assert first["routed_to"] == "steady" and first["tried"][0]["agent"] == "moody"
    moody.set("well")
    wait_for(lambda: moody.who("f06") == "moody", "the end of the cooldown")
    assert moody.calls == 2


def test_f08_open_circuit_is_skipped(client: mesh.Client, moody: Moody) -> None:
    """If an agent failed twice, then the third run skips it, and its circuit is shown as open."""
    moody.set("down")
    assert [moody.who("f08") for _ in range(3)] == ["steady"] * 3 and moody.calls == 2
    wait_for(lambda: circuit(client, "f08").get("state") == "open", "the open circuit")


def test_f08_half_open_circuit_lets_exactly_one_probe_through(client: mesh.Client, moody: Moody) -> None:
    """If the cooldown is over, then one run is let through to the agent, until it came back."""
    moody.set("down")
    moody.run("probed")
    wait_for(lambda: circuit(client, "probed").get("state") == "half_open", "the end of the cooldown")
    moody.set("slow")
    probe = moody.submit("probed")
    wait_for(lambda: moody.calls == 2, "the probe")
    assert [moody.who("probed") for _ in range(3)] == ["steady"] * 3 and moody.calls == 2
    moody.set("well")
    assert client.runs.wait(probe.id).output["content"] == "from moody"
    assert moody.who("probed") == "moody"


def test_f10_callers_mistake_costs_nobodys_health(client: mesh.Client, moody: Moody) -> None:
    """If a run fails by its caller's doing, then it does so twice, and no other agent is tried."""
    moody.set("refusing")
    for calls in (1, 2):
        with pytest.raises(mesh.MeshError) as caught:
            moody.run("f10")
        assert caught.value.code == "validation_error" and moody.calls == calls
    moody.set("well")
    assert moody.who("f10") == "moody"


def test_conversation_resumes_with_its_agent_and_is_replayed_to_another(client: mesh.Client) -> None:
    """If the agent that knows the conversation executes again, it resumes; another gets the transcript."""
    session = client.sessions.start("talks", context={"mood": "/nowhere"})

    def ask(prompt: str, **options: Any) -> dict[str, Any]:
        run = client.runs.submit(session.id, prompt, **options)
        return client.runs.wait(run.id).output

    assert ask("one")["resumed"] is None
    own = client.sessions.get(session.id).metadata["provider_sessions"]["python"]["provider_session_id"]
    assert ask("two")["resumed"] == own
    elsewhere = ask("three", provider_opts={"routing": {"exclude": ["steady"]}})
    assert elsewhere["content"] == "from moody"
    back = ask("four")  # it does not know what was said elsewhere
    assert back["resumed"] is None
    assert back["seen"] == [
        "user: one", "assistant: re one", "user: two", "assistant: re two", "user: three",
        "assistant: from moody"]
    # asked by its own name it is the same agent
    assert ask("five", agent="steady", continuation="native")["resumed"] is not None


def test_policy_holds_whoever_executes(client: mesh.Client, moody: Moody) -> None:
    """If a policy limits tokens, then those of an agent that failed count with those of the next."""
    moody.set("down")
    with pytest.raises(mesh.MeshError) as caught:
        moody.run("plain", policy={"name": "small", "limits": {"max_total_tokens": 1_050}})
    assert caught.value.code == "policy_violation"


def test_question_to_a_human_holds_up_the_hurry_to_speak(client: mesh.Client, tmp_path: Path) -> None:
    """If a routed agent waits for a human, then nobody else is tried, and it goes on when it may."""
    session = client.sessions.start("asks")
    policy = {"tool_rules": [["ask", ["bash"]]]}
    run = client.runs.submit(session.id, f"echo made > {tmp_path}/file; echo done", policy=policy)
    [asked] = wait_for(lambda: list(client.approvals.list(session.id)), "the question")
    late = client.runs.submit(client.sessions.start("asks").id, "sleep 0.5; echo late")  # outlasts the hurry
    assert client.runs.wait(late.id).output["content"] == "late\n"
    client.approvals.approve(run.id, asked.tool_call_id)
    result = client.runs.wait(run.id)
    assert result.output["content"] == "done\n"
    assert [event.type for event in result.events[:4]] == [
        "message_sent", "run_started", "tool_approval_requested", "tool_approval_granted"]
    assert client.runs.get(run.id).metadata["routing"]["routed_to"] == "shell"


def test_routed_run_outlives_its_partition(client: mesh.Client, moody: Moody) -> None:
    """If the partition dies while an agent is silent, then the run goes on, and its choice is stored."""
    moody.set("slow")
    run = moody.submit("plain")
    wait_for(lambda: moody.file.with_name("mood.calls").exists(), "the agent")
    pid = client.partitions.pid(run.session_id)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: client.partitions.pid(run.session_id) not in (None, pid), "the next partition")
    moody.set("down")
    assert client.runs.wait(run.id, timeout_s=20).output["content"] == "re hi"
    assert client.runs.get(run.id).metadata["routing"]["tried"][0]["agent"] == "moody"


def test_only_the_agent_that_executes_decides_about_a_pause(client: mesh.Client) -> None:
    """If one agent of a router can be paused, then only runs that it executes can be."""
    session = client.sessions.start("pauses")
    for hints, code in (({}, None), ({"exclude": ["patient"]}, "capability_not_supported")):
        run = client.runs.submit(session.id, "x", provider_opts={"routing": hints})
        wait_for(lambda run=run: client.runs.get(run.id).metadata.get("routing"), "the choice")
        if code is None:
            assert client.runs.pause(run.id).status == "paused"
        else:
            with pytest.raises(mesh.MeshError) as caught:
                client.runs.pause(run.id)
            assert caught.value.code == code
        client.runs.cancel(run.id)


def test_cancel_stops_the_agent_that_is_tried(client: mesh.Client, moody: Moody) -> None:
    """If a run is cancelled before a word, then its log names the agent, whose health is as it was."""
    moody.set("slow")
    run = moody.submit("plain")
    wait_for(lambda: moody.file.with_name("mood.calls").exists(), "the agent")
    client.runs.cancel(run.id)
    wait_for(lambda: client.runs.get(run.id).status == "cancelled", "the end")
    started, ended = client.sessions.events(run.session_id, run_id=run.id)[-2:]
    assert (started.type, started.data["routed_to"], ended.type) == ("run_started", "moody", "run_cancelled")
    wait_for(lambda: circuit(client, "plain").get("active") == 0, "the place given back")


def test_killed_runner_ends_its_routed_run_and_its_successor_begins_with_closed_circuits(
    client: mesh.Client, moody: Moody
) -> None:
    """If the runner dies, then a routed run is outcome_unknown, and no circuit is open any more."""
    moody.set("down")
    moody.run("again")
    wait_for(lambda: circuit(client, "again").get("state") == "open", "the open circuit")
    moody.set("slow")
    run = moody.submit("plain", provider_opts={"routing": {"prefer": ["moody"]}})
    wait_for(lambda: moody.calls == 2, "the run")
    os.kill(pids(client, "runner")[0], signal.SIGKILL)
    with pytest.raises(mesh.MeshError) as caught:
        client.runs.wait(run.id, timeout_s=20)
    assert caught.value.code == "outcome_unknown"
    wait_for(lambda: circuit(client, "again").get("state") == "closed", "the next runner")
    moody.set("well")
    assert moody.who("again") == "moody"


def test_idempotent_router_executes_a_run_again_whose_runner_died(
    client: mesh.Client, moody: Moody
) -> None:
    """If a router is idempotent, then a run whose runner was killed is executed by the next one."""
    moody.set("slow")
    run = moody.submit("again")
    wait_for(lambda: moody.file.with_name("mood.calls").exists(), "the run")
    os.kill(pids(client, "runner")[0], signal.SIGKILL)
    wait_for(lambda: moody.calls == 2, "the second attempt")
    moody.set("well")
    assert client.runs.wait(run.id, timeout_s=20).output["content"] == "from moody"
    assert client.runs.get(run.id).attempt == 2


def test_question_of_an_idempotent_router_survives_its_runner(client: mesh.Client) -> None:
    """If the runner dies while a routed run waits for a human, one answer lets its next attempt go on."""
    session = client.sessions.start("asks_again")
    run = client.runs.submit(session.id, "echo done", policy={"tool_rules": [["ask", ["bash"]]]})
    wait_for(lambda: list(client.approvals.list(session.id)), "the question")
    os.kill(pids(client, "runner")[0], signal.SIGKILL)
    wait_for(lambda: client.runs.get(run.id).attempt == 2, "the next attempt")
    [still] = wait_for(lambda: list(client.approvals.list(session.id)), "the question again")
    client.approvals.approve(run.id, still.tool_call_id)
    result = client.runs.wait(run.id, timeout_s=20)
    assert result.output["content"] == "done\n"
    assert [e.type for e in result.events].count("run_started") == 2
