"""Runs of routers: who executes them, when another agent is tried, and what the log says of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from driving import Bench, Result, cancelled, drive, python_agent

from mesh.providers.router import Router

AGENTS = """
import asyncio
from mesh.providers.base import Output, ProviderFailure

def usage(n, **more):
    return {"type": "token_usage_updated", "data": {"input_tokens": n, "output_tokens": 0, **more}}

async def good(run):
    yield f"good {run.prompt} as {run.session.agent}"

async def options(run):
    yield {"type": "output", "data": {"content": "x", "options": run.options}}

async def mute(run):
    yield {"type": "run_started", "data": {"provider_session_id": "p1", "model": "m1"}}
    yield usage(100)
    yield {"type": "error_occurred", "data": {"error_message": "overloaded"}}
    raise ProviderFailure("overloaded", code="provider_unavailable")

async def broken(run):
    run.options["left"] = "behind"
    raise ValueError("broken on purpose")
    yield

async def refusing(run):
    raise ProviderFailure("a wrong argument", code="validation_error")
    yield

async def half(run):
    yield {"type": "tool_call_started", "data": {"tool_call_id": "t1", "tool_name": "x"}}
    yield usage(100, model="m1")
    yield "half "
    raise ProviderFailure("lost", code="provider_timeout")

async def acting(run):
    yield {"type": "run_started", "data": {"provider_session_id": "p1"}}
    await run.permit("write")
    raise ProviderFailure("lost", code="provider_timeout")

async def listening(run):
    await run.steering()
    raise ProviderFailure("lost", code="provider_timeout")
    yield

SEEN = []
async def silent(run):
    try:
        await asyncio.sleep(1000)
    finally:
        SEEN.append(run)
    yield

async def sulking(run):
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError:
        raise ValueError("I was not done") from None
    yield

async def spending(run):
    yield usage(80)
    yield "done"

async def empty(run):
    if False:
        yield

async def odd(run):
    yield {"type": ["message_streamed"], "data": {"content": "x"}}

async def pausing(run):
    await run.paused.over()
    yield "after the pause"

async def resuming(run):
    yield {"type": "run_started", "data": {"provider_session_id": "own"}}
    yield "new" if run.resume is None else "resumed"
"""
NAMES = ["good", "options", "mute", "broken", "refusing", "half", "acting", "silent", "spending", "empty",
         "listening", "sulking", "odd", "pausing"]


@pytest.fixture
def agents(tmp_path: Path) -> dict[str, Any]:
    first = python_agent(tmp_path, AGENTS, "good")
    file = first["target"].rpartition(":")[0]
    tables = {name: {"provider": "python", "target": f"{file}:{name}"} for name in NAMES}
    tables["resuming"] = {"provider": "python", "target": f"{file}:resuming"}
    for name in ("resuming", "acting"):
        tables[name]["capabilities"] = [{"name": "session_resume", "type": "resource"}]
    return {**tables, "echo": {"provider": "echo"}, "shell": {"provider": "shell"}}


SLOW = {"delay_s": 0.2, "pieces": 10_000}


def routed(agents: dict[str, Any], *names: str, **table: Any) -> dict[str, Any]:
    return {**agents, "agent": {"provider": "router", "agents": list(names), **table}}


def run(agents: dict[str, Any], prompt: Any = "hi", **options: Any) -> Result:
    async def play(bench: Bench) -> Result:
        result = await bench.result(bench.begin("agent", prompt, **options))
        router = bench.registry.router("agent")
        assert router is None or [row["active"] for row in router.view()] == [0] * len(router.rules.agents)
        return result

    found: Result = drive(agents, play)
    return found


def started(result: Result) -> dict[str, Any]:
    [data] = result.data("run_started")
    assert isinstance(data, dict)
    return data


def tried(result: Result) -> list[str]:
    return [row["agent"] for row in started(result)["routing"].get("tried", [])]


def test_routed_run_is_that_of_the_agent_that_executes_it(agents: dict[str, Any]) -> None:
    """If a router's first agent is well, then its log is as if it had been asked, and says who it is."""
    direct = run({**agents, "agent": agents["echo"]}, "a b")
    result = run(routed(agents, "echo", "good"), "a b")
    assert result.types == direct.types
    assert {event["provider"] for event in result.events} == {"echo"}
    assert (started(result)["agent"], started(result)["routed_to"]) == ("agent", "echo")
    assert started(result)["routing"] == {"routed_to": "echo", "attempt": 1, "candidates": ["echo", "good"]}
    about = result.settle["provider_metadata"]
    assert about == {"provider": "echo", "routing": started(result)["routing"]}
    assert result.settle["output"] == direct.settle["output"]


def test_failed_agent_leaves_no_event_and_the_next_one_is_the_run(agents: dict[str, Any]) -> None:
    """If an agent fails before its first word, then the log holds the next one's events, and why."""
    result = run(routed(agents, "mute", "good"))
    assert result.types == ["run_started", "message_streamed", "message_received", "run_completed"]
    assert result.output["content"] == "good hi as good"
    assert started(result)["routing"] == {
        "routed_to": "good", "attempt": 2, "candidates": ["mute", "good"],
        "tried": [{"agent": "mute", "error_code": "provider_unavailable", "error_message": "overloaded"}],
    }
    assert "model" not in result.settle["provider_metadata"]


def test_what_a_failed_agent_used_is_reported_with_its_own_model(agents: dict[str, Any]) -> None:
    """If an agent used tokens before it failed, then they are reported beside those of the next one."""
    result = run(routed(agents, "mute", "spending"))
    assert result.settle["token_usage"] == {"input_tokens": 80, "output_tokens": 0}
    assert result.settle["before"] == [
        {"provider": "python", "model": "m1", "token_usage": {"input_tokens": 100, "output_tokens": 0}}]


@pytest.mark.parametrize(("names", "code"), [
    (("broken", "mute"), "provider_unavailable"), (("mute", "broken"), "provider_error"),
])
def test_last_agents_failure_is_the_runs(agents: dict[str, Any], names: tuple[str, str], code: str) -> None:
    """If every agent fails, then the run fails as the last one did, and names all that were tried."""
    result = run(routed(agents, *names, "good"), provider_opts={"routing": {"exclude": ["good"]}})
    assert result.types == ["run_started", "run_failed"] and result.error["code"] == code
    assert tuple(tried(result)) == names and started(result)["routing"]["attempt"] == 2
    assert {event["provider"] for event in result.events} == {"python"}


@pytest.mark.parametrize("name", ["refusing", "acting", "half"])
def test_no_other_agent_is_tried_when_it_is_the_callers_fault_or_something_happened(
    agents: dict[str, Any], name: str
) -> None:
    """If an agent failed by its caller's doing, used a tool, or spoke, then the run fails with it."""
    result = run(routed(agents, name, "good"))
    assert result.settle["status"] == "failed" and started(result)["routed_to"] == name
    assert not [data for data in result.data("message_streamed") if "good" in data["content"]]


def test_idempotent_router_begins_anew_with_another_agent_after_words(agents: dict[str, Any]) -> None:
    """If an agent of an idempotent router breaks off, then what it said is closed, and another begins."""
    result = run(routed(agents, "half", "good", idempotent=True))
    assert result.types == [
        "run_started", "tool_call_started", "token_usage_updated", "message_streamed", "message_received",
        "tool_call_failed", "run_started", "message_streamed", "message_received", "run_completed"]
    assert [data["routed_to"] for data in result.data("run_started")] == ["half", "good"]
    assert result.output["content"] == "good hi as good"
    assert result.settle["before"] == [
        {"provider": "python", "model": "m1", "token_usage": {"input_tokens": 100, "output_tokens": 0}}]
    assert result.settle["token_usage"] == {}


def test_idempotent_router_goes_on_after_a_permitted_tool(agents: dict[str, Any]) -> None:
    """If an agent failed behind a permitted tool, then only an idempotent router tries another."""
    result = run(routed(agents, "acting", "good", idempotent=True))
    assert result.settle["status"] == "completed"
    assert [data["routed_to"] for data in result.data("run_started")] == ["acting", "good"]
    assert "provider_session_id" not in result.settle["provider_metadata"]  # that was the other one's


def test_agent_that_says_nothing_for_its_time_is_left_for_another(agents: dict[str, Any]) -> None:
    """If an agent is silent for first_word_s, then it is stopped, knows so, and another one is tried."""

    async def play(bench: Bench) -> Any:
        result = await bench.result(bench.begin("agent", "hi"))
        assert tried(result) == ["silent"] and result.output["content"] == "good hi as good"
        provider = await bench.registry.provider("silent")
        [seen] = provider._function.__globals__["SEEN"]  # type: ignore[attr-defined]
        assert seen.cancelled
        return started(result)["routing"]["tried"][0]["error_code"]

    assert drive(routed(agents, "silent", "good", first_word_s=0.05), play) == "provider_timeout"


def test_time_of_a_paused_run_is_not_its_agents_silence(agents: dict[str, Any]) -> None:
    """If a run is paused before its agent's first word, then first_word_s waits for the end of the pause."""

    async def play(bench: Bench) -> Result:
        running = bench.begin("agent", "hi")
        running.context.paused.turn(True)
        await asyncio.sleep(0.3)
        running.context.paused.turn(False)
        return await bench.result(running)

    result = drive(routed(agents, "pausing", "good", first_word_s=0.1), play)
    assert tried(result) == [] and result.output["content"] == "after the pause"


def test_piece_of_a_type_that_is_none_is_the_agents_error(agents: dict[str, Any]) -> None:
    """If an agent's piece has a type that is no text, then the run fails with that word on it."""
    result = run(routed(agents, "odd", "good"))
    assert result.settle["status"] == "failed" and "unhashable" not in result.error["message"]


def test_permitted_tool_ends_the_hurry(agents: dict[str, Any], tmp_path: Path) -> None:
    """If an agent was permitted a tool, then first_word_s no longer holds for it."""
    result = run(routed(agents, "shell", "good", first_word_s=0.05), "sleep 0.3; echo late")
    assert result.output["content"] == "late\n"


def test_agents_do_not_see_each_others_options_nor_the_routers(agents: dict[str, Any]) -> None:
    """If one agent changes its options and fails, then the next one has the caller's, without the hints."""
    opts = {"level": 3, "routing": {"prefer": ["broken", "options"], "options": {"options": {"own": 1}}}}
    result = run(routed(agents, "options", "broken"), provider_opts=opts)
    assert result.output["options"] == {"level": 3, "own": 1}
    assert tried(result) == ["broken"]


def test_wrong_hint_fails_the_run_and_tries_nobody(agents: dict[str, Any]) -> None:
    """If provider_opts["routing"] is wrong, then the run is validation_error, and says where."""
    result = run(routed(agents, "good"), provider_opts={"routing": {"prefer": ["goood"]}})
    assert result.error["code"] == "validation_error" and "did you mean 'good'" in result.error["message"]
    assert {event["provider"] for event in result.events} == {"router"}


def test_open_circuit_is_skipped_and_one_router_with_nobody_left_says_when(agents: dict[str, Any]) -> None:
    """If an agent failed too often, then it is skipped; with nobody left the error says when to return."""

    async def play(bench: Bench) -> None:
        first = await bench.result(bench.begin("agent", "hi"))
        assert first.error["code"] == "provider_unavailable" and "circuit" not in first.error["message"]
        second = await bench.result(bench.begin("agent", "hi"))
        assert second.error["code"] == "provider_unavailable"
        assert "mute: its circuit is open" in second.error["message"]
        assert "retry_after_ms" in str(second.error)
        [entry] = [row for row in bench.registry.catalogue() if row["name"] == "agent"]
        assert [row["state"] for row in entry["routing"]] == ["open"]
        await bench.registry.reload()
        [entry] = [row for row in bench.registry.catalogue() if row["name"] == "agent"]
        assert [row["state"] for row in entry["routing"]] == ["closed"]

    drive(routed(agents, "mute", failures=1), play)


def test_cancel_before_the_first_word_names_who_was_tried(agents: dict[str, Any]) -> None:
    """If a run is cancelled while an agent is silent, then its log names that agent, and it gets no fault."""

    async def play(bench: Bench) -> Result:
        running = bench.begin("agent", "hi")
        router = bench.registry.router("agent")
        assert isinstance(router, Router)
        while router.view()[0]["active"] == 0:
            await asyncio.sleep(0)
        result = await cancelled(bench, running)
        assert (router.view()[0]["active"], router.view()[0]["faults"]) == (0, 0)
        return result

    result = drive(routed(agents, "silent", "good"), play)
    assert result.types == ["run_started", "run_cancelled"] and started(result)["routed_to"] == "silent"
    assert {event["provider"] for event in result.events} == {"python"}


def test_an_agent_that_fails_because_it_is_cancelled_gets_no_fault(agents: dict[str, Any]) -> None:
    """If an agent answers a cancel before its first word with an error, then that is not held against it."""

    async def play(bench: Bench) -> None:
        running = bench.begin("agent", "hi")
        router = bench.registry.router("agent")
        assert isinstance(router, Router)
        while not bench.registry.ready("sulking") or router.view()[0]["active"] == 0:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        result = await cancelled(bench, running)
        assert result.types == ["run_started", "run_cancelled"]
        row = router.view()[0]
        assert (row["active"], row["faults"], row["state"]) == (0, 0, "closed")

    drive(routed(agents, "sulking", "good", failures=1), play)


def test_agent_that_took_a_steering_prompt_is_followed_by_nobody(agents: dict[str, Any]) -> None:
    """If an agent took what was said to the run and failed, then nobody else is tried without it."""

    async def play(bench: Bench) -> Result:
        running = bench.begin("agent", "hi")
        running.steering.hint()
        while not bench.asked:
            await asyncio.sleep(0)
        running.steering.taken(1, ["and this"])
        return await bench.result(running)

    result = drive(routed(agents, "listening", "good"), play)
    assert (result.error["code"], tried(result)) == ("provider_timeout", ["listening"])


def test_early_run_waits_for_an_agent_that_is_being_loaded(agents: dict[str, Any], tmp_path: Path) -> None:
    """If a router's first agent is still being loaded, then a run waits for it, also for what it can do."""
    slow = python_agent(tmp_path, "import time; time.sleep(0.2)\nasync def agent(run):\n    yield 'slow'")
    slow["capabilities"] = [{"name": "x", "type": "file_access"}]
    tables = routed({**agents, "slow": slow}, "slow", "good")

    async def main() -> None:
        for options in ({}, {"required_capabilities": ["file_access"]}):
            bench = Bench(tables)
            assert bench.registry.router("agent").waits_for  # type: ignore[union-attr]
            result = await bench.result(bench.begin("agent", "hi", **options))
            assert result.output["content"] == "slow"
            await bench.registry.loaded()

    asyncio.run(main())


def test_router_of_routers_ends_at_an_agent(agents: dict[str, Any]) -> None:
    """If a router's agent is a router, then its agents are tried before the outer one's next."""
    tables = routed(agents, "inner", "good")
    tables["inner"] = {"provider": "router", "agents": ["broken", "mute"]}
    result = run(tables)
    assert result.output["content"] == "good hi as good" and tried(result) == ["inner"]
    assert started(result)["routing"]["tried"][0]["error_code"] == "provider_unavailable"
    tables["inner"]["agents"] = ["broken", "echo"]
    inner = started(run(tables))["routing"]["inner"]
    assert (inner["routed_to"], inner["attempt"]) == ("echo", 2)


def test_agents_without_what_is_required_are_not_asked(agents: dict[str, Any]) -> None:
    """If a run requires a type, then the first agent that has it executes it; with none, it is refused."""
    result = run(routed(agents, "echo", "shell"), "echo x", required_capabilities=["code_execution"])
    assert started(result)["routed_to"] == "shell"
    assert started(result)["routing"]["skipped"] == [{"agent": "echo", "why": "it has no code_execution"}]
    result = run(routed(agents, "echo", "good"), required_capabilities=["code_execution"])
    assert result.error["code"] == "missing_required_capability"


def test_optional_capabilities_order_the_agents_and_are_reported(agents: dict[str, Any]) -> None:
    """If a run would like a type, then who has it comes first, and the run says what it did not get."""
    wanted = {"optional_capabilities": ["code_execution", "file_access"]}
    result = run(routed(agents, "echo", "shell"), "echo x", **wanted)
    assert started(result)["routed_to"] == "shell"
    assert started(result)["capabilities"] == {
        "status": "degraded", "supported": ["code_execution"], "unsupported": ["file_access"],
        "warnings": ["optional capability 'file_access' is not there"]}
    direct = run({**agents, "agent": agents["echo"]}, **wanted)
    assert started(direct)["capabilities"]["unsupported"] == ["code_execution", "file_access"]


def test_router_can_do_what_any_of_its_agents_can(agents: dict[str, Any]) -> None:
    """If agents differ, then the router's capabilities are all of theirs, each once."""

    async def play(bench: Bench) -> Any:
        return {row["name"]: row for row in bench.registry.catalogue()}["agent"]

    entry = drive(routed(agents, "echo", "shell"), play)
    assert [one["name"] for one in entry["capabilities"]] == ["streaming", "command_execution"]
    assert (entry["problem"], entry["idempotent"], entry["partial"]) == (None, False, False)


def test_budget_counts_what_failed_agents_used(agents: dict[str, Any]) -> None:
    """If two agents together use more than a policy allows, then the run breaks it."""
    policy = {"name": "p", "limits": {"max_total_tokens": 150}}
    result = run(routed(agents, "mute", "spending"), policies=[policy])
    assert result.error["code"] == "policy_violation"
    assert run(routed(agents, "spending"), policies=[policy]).settle["status"] == "completed"


@pytest.mark.parametrize(("action", "status"), [("cancel", "failed"), ("warn", "completed")])
def test_budget_that_a_failed_agent_used_up_is_said_behind_the_beginning(
    agents: dict[str, Any], action: str, status: str
) -> None:
    """If a failed agent alone used too much, then the run ends with it, or warns when another one began."""
    policy = {"name": "p", "limits": {"max_total_tokens": 50}, "on_violation": action}
    result = run(routed(agents, "mute", "good"), policies=[policy])
    assert result.settle["status"] == status
    assert result.types[:2] == ["run_started", "policy_violation"]
    assert result.types.count("run_started") == 1
    assert started(result)["routed_to"] == ("mute" if action == "cancel" else "good")
    assert tried(result) == ["mute"]


def test_run_begins_in_the_log_before_its_first_question(agents: dict[str, Any]) -> None:
    """If a policy denies a tool before the first word, then run_started is the first event all the same."""
    result = run(routed(agents, "acting", "good"), policies=[
        {"name": "p", "tool_rules": [["deny", ["write"]]]}])
    assert result.types == ["run_started", "policy_violation", "run_failed"]


def test_denied_tool_is_no_fault_of_the_agent(agents: dict[str, Any]) -> None:
    """If a policy denies a tool of a routed run, then nobody else is tried, and nobody is to blame."""
    result = run(routed(agents, "shell", "good"), "echo x", policies=[
        {"name": "p", "tool_rules": [["deny", ["bash"]]]}])
    assert result.settle["status"] == "failed" and started(result)["routed_to"] == "shell"


def test_agent_that_cannot_be_loaded_is_one_that_fails(agents: dict[str, Any]) -> None:
    """If an agent's file is gone, then the next one is tried, and the run says why."""
    tables = routed(agents, "gone", "good")
    tables["gone"] = {"provider": "python", "target": "/nowhere.py:agent"}
    result = run(tables)
    assert result.output["content"] == "good hi as good" and tried(result) == ["gone"]
    assert "no such file" in started(result)["routing"]["tried"][0]["error_message"]


def test_run_without_a_word_is_a_run_that_ends_well(agents: dict[str, Any]) -> None:
    """If an agent ends without a word, then the run is completed, and nobody else is tried."""
    result = run(routed(agents, "empty", "good"))
    assert result.settle["status"] == "completed" and tried(result) == []


def test_what_an_agent_calls_the_conversation_is_kept_as_its_own(agents: dict[str, Any]) -> None:
    """If a routed agent names its own session, then the run reports it under that agent's provider."""
    result = run(routed(agents, "resuming", "good"))
    about = result.settle["provider_metadata"]
    assert (about["provider"], about["provider_session_id"]) == ("python", "own")
    assert result.output["content"] == "new"


def test_secret_in_what_a_failed_agent_said_is_in_no_batch(agents: dict[str, Any], tmp_path: Path) -> None:
    """If an agent failed with a secret in its message, then neither events nor reports hold it."""
    secret = "AKIAIOSFODNN7EXAMPLE"

    async def play(bench: Bench) -> Any:
        running = bench.begin("agent", "a b", provider_opts={"routing": {"options": {"echo": SLOW}}})
        so_far = await bench.until(running, lambda result: "message_streamed" in result.types)
        assert "[REDACTED]" in started(so_far)["routing"]["tried"][0]["error_message"]
        reports = [batch[5] for batch in bench.stored[running.key[0]] if batch[5]]
        assert reports and "routing" in reports[0]["provider_metadata"]
        await cancelled(bench, running)
        return bench.stored

    tables = routed(agents, "leaky", "echo")
    tables["leaky"] = {"provider": "echo", "fail": f"no such key {secret}", "pieces": 0}
    assert secret not in str(drive(tables, play))


@pytest.mark.parametrize(("table", "problem"), [
    ({"agents": []}, "a router needs a list of agents"),
    ({"agents": ["agent"]}, "agent -> agent"),
    ({"agents": ["nobody"]}, "no agent 'nobody'"),
    ({"agents": ["good"], "weights": {"good": 0}}, "weights.good"),
    ({"agents": ["good"], "cool_down": 3}, "did you mean 'cooldown_s'"),
])
def test_wrong_router_is_listed_with_its_problem(
    agents: dict[str, Any], table: dict[str, Any], problem: str
) -> None:
    """If a router's table is wrong, then the agent is listed with what is wrong, and the others serve."""

    async def play(bench: Bench) -> Any:
        good = await bench.result(bench.begin("good", "hi"))
        assert good.settle["status"] == "completed"
        return {row["name"]: row for row in bench.registry.catalogue()}["agent"]["problem"]

    assert problem in drive({**agents, "agent": {"provider": "router", **table}}, play)
