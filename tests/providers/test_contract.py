"""One suite for every provider: what any agent's run leaves, however it ends. Its subjects: contract.py."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contract import SCENES, SECRET, Subject, subjects
from driving import Bench, Result, cancelled, drive

from mesh.core.message import Message, Role
from mesh.node.drive import CANCEL_S
from mesh.providers.kinds import ENFORCED, KINDS, load
from mesh.providers.table import text

SUBJECTS = subjects()


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    found = SUBJECTS[request.param]
    before = _children()
    with found.opened(tmp_path):
        yield found
    assert _children() <= before, "a process was left"


def _children() -> set[int]:
    """The processes that this one started."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(stat[1]) == os.getpid() and stat[0] not in "ZX":
            found.add(int(entry.name))
    return found


def plays(scene: str) -> pytest.MarkDecorator:
    """For the subjects that can be made to play this scene."""
    names = [name for name, subject in SUBJECTS.items() if scene in subject.scenes]
    return pytest.mark.parametrize("subject", names, indirect=True)


def run(subject: Subject, scene: str, folder: Path, *, human: bool | None = None, **more: Any) -> Result:
    """One run of a scene, to its end."""
    settings = more.pop("settings", {})
    agent = subject.agent(scene, folder)

    async def play(bench: Bench) -> Result:
        bench.human = human
        return await bench.result(bench.begin("agent", agent.input, **{**agent.options, **more}))

    result = drive({"agent": agent.table}, play, **settings)
    assert isinstance(result, Result)
    return result


def main_types(result: Result) -> list[str]:
    """The types of a run's events without the text's pieces and without what only some report."""
    beside = ("message_streamed", "token_usage_updated", "turn_completed")
    return [event_type for event_type in result.types if event_type not in beside]


@pytest.mark.parametrize("name", SUBJECTS)
def test_subjects_play_scenes_of_the_suite(name: str) -> None:
    """If a subject says what it can play, then these are scenes that the suite knows."""
    assert SUBJECTS[name].scenes <= set(SCENES)


def test_good_run_leaves_its_events_in_order(subject: Subject, tmp_path: Path) -> None:
    """If a run goes well, then its events are the contract's, in order, and name their provider and run."""
    result = run(subject, "good", tmp_path)
    assert main_types(result) == ["run_started", "message_received", "run_completed"]
    assert result.types[0] == "run_started"
    assert result.types[-2:] == ["message_received", "run_completed"]
    assert "".join(data["content"] for data in result.data("message_streamed")) == subject.text
    assert result.data("message_received") == [{"role": "assistant", "content": subject.text}]
    assert result.output["content"] == subject.text
    assert result.settle["status"] == "completed"
    assert result.settle["error"] is None
    [started] = result.data("run_started")
    assert {event["provider"] for event in result.events} == {started["provider"]}
    assert started["agent"] == "agent"
    assert {event["session_id"] for event in result.events} == {"ses_1"}
    [completed] = result.data("run_completed")
    assert completed["stop_reason"] == subject.stop_reason


def test_failed_run_has_one_terminal_event_and_its_code(subject: Subject, tmp_path: Path) -> None:
    """If a run fails, then its last event is run_failed, and event and settlement say the same."""
    result = run(subject, "bad", tmp_path)
    assert result.settle["status"] == "failed"
    assert result.error["code"] == subject.code
    assert result.error["message"]
    [failed] = result.data("run_failed")
    assert result.types[0] == "run_started"
    assert result.types[-1] == "run_failed"
    assert (failed["error_code"], failed["error_message"]) == (subject.code, result.error["message"])
    assert "run_completed" not in result.types
    told = result.error["provider_error"]
    assert told["provider"] == result.events[0]["provider"]
    stderr = told.get("stderr") or ""
    assert stderr.count("\n") <= 200 and len(stderr.encode()) <= 16_384


def play_slow(subject: Subject, how: Callable[[Bench, Any], Any], folder: Path) -> Result:
    agent = subject.agent("slow", folder)

    async def play(bench: Bench) -> Any:
        running = bench.begin("agent", agent.input, **agent.options)
        await bench.until(running, lambda result: bool(result.events))
        return await how(bench, running)

    result = drive({"agent": agent.table}, play)
    assert isinstance(result, Result)
    return result


def test_cancelled_run_is_settled_soon_and_once(subject: Subject, tmp_path: Path) -> None:
    """If a run is cancelled, then its provider ends by itself, and run_cancelled is its last event."""

    async def how(bench: Bench, running: Any) -> Result:
        async with asyncio.timeout(CANCEL_S / 2):  # else it was only abandoned
            return await cancelled(bench, running)

    result = play_slow(subject, how, tmp_path)
    assert result.settle["status"] == "cancelled"
    assert result.error["code"] == "cancelled"
    assert result.types.count("run_cancelled") == 1
    assert result.types[-1] == "run_cancelled"
    assert result.data("run_cancelled") == [{"reason": "cancel"}]


def test_cancel_before_the_first_step_leaves_a_whole_story(subject: Subject, tmp_path: Path) -> None:
    """If a run is cancelled in the turn it was begun, then it still starts, and ends, in the log."""
    agent = subject.agent("slow", tmp_path)

    async def play(bench: Bench) -> Result:
        return await cancelled(bench, bench.begin("agent", agent.input, **agent.options))

    result = drive({"agent": agent.table}, play)
    assert result.types == ["run_started", "run_cancelled"]
    assert result.settle["status"] == "cancelled"


@pytest.mark.parametrize(
    ("subject", "scene"),
    [(name, scene) for name in SUBJECTS for scene in ("slow", "silent") if scene in SUBJECTS[name].scenes],
    indirect=["subject"],
)
def test_deadline_ends_a_run_as_timeout(subject: Subject, scene: str, tmp_path: Path) -> None:
    """If a run takes longer than deadline_s, then it is stopped, and its status is timeout."""
    result = run(subject, scene, tmp_path, deadline_s=0.3)
    assert (result.settle["status"], result.error["code"]) == ("timeout", "timeout")
    assert result.types[-1] == "run_timeout"
    assert result.data("run_timeout") == [{"deadline_s": 0.3}]


def test_capabilities_are_honest(subject: Subject, tmp_path: Path) -> None:
    """If a provider says that it streams or calls tools, then it does; one that cannot does not say so."""
    scenes = {"streaming": subject.streams, "tool_use": "tool" in subject.scenes}
    table = subject.agent("good", tmp_path).table

    async def play(bench: Bench) -> Any:
        return bench.registry.catalogue()

    [entry] = drive({"agent": table}, play)
    assert entry["problem"] is None
    assert entry["provider"] == table["provider"]
    names = {capability["name"] for capability in entry["capabilities"]}
    assert {name: name in names for name in scenes} == scenes
    assert ("session_resume" in names) <= ("resume" in subject.scenes)
    if subject.streams and subject.name not in ("shell",):
        assert len(run(subject, "good", tmp_path).data("message_streamed")) > (subject.name != "echo")


def test_one_failing_run_leaves_its_neighbours_alone(subject: Subject, tmp_path: Path) -> None:
    """If one of several runs of a provider fails, then the others end well."""
    good, bad = subject.agent("good", tmp_path), subject.agent("bad", tmp_path)

    async def play(bench: Bench) -> Any:
        running = [bench.begin("good", good.input, **good.options) for _ in range(3)]
        running.append(bench.begin("bad", bad.input, **bad.options))
        return [(await bench.result(one)).settle["status"] for one in running]

    assert drive({"good": good.table, "bad": bad.table}, play) == ["completed"] * 3 + ["failed"]


def test_full_outbox_stops_the_provider_and_loses_nothing(subject: Subject, tmp_path: Path) -> None:
    """If nothing is stored for a while, then the provider waits, and every piece arrives in the end."""
    result = run(subject, "good", tmp_path, settings={"bytes_max": 1})
    assert "".join(data["content"] for data in result.data("message_streamed")) == subject.text


@plays("usage")
def test_usage_is_reported(subject: Subject, tmp_path: Path) -> None:
    """If a provider says what was used, then the run's record has the counts."""
    result = run(subject, "usage", tmp_path)
    assert result.settle["token_usage"].items() >= subject.used.items()
    assert result.settle["status"] == "completed"


@plays("usage")
def test_a_budget_ends_the_run(subject: Subject, tmp_path: Path) -> None:
    """If more is used than the policy allows, then the run ends with it, when its provider reports usage."""
    policy = {"name": "p", "limits": {"max_total_tokens": 5}, "on_violation": "cancel"}
    result = run(subject, "usage", tmp_path, policies=[policy])
    assert result.error["code"] == "policy_violation"


@plays("secret")
def test_secrets_are_redacted(subject: Subject, tmp_path: Path) -> None:
    """If a model or command says a secret, in one piece or in several, then no event and no output has it."""
    result = run(subject, "secret", tmp_path)
    assert result.settle["status"] == "completed"
    assert "REDACTED" in str(result.output["content"])
    assert SECRET not in "".join(str(data.get("content")) for data in result.data("message_streamed"))
    assert SECRET not in str(result)


@plays("tool")
def test_a_tool_is_told_from_its_start_to_its_end(subject: Subject, tmp_path: Path) -> None:
    """If a tool is called, then its events say id, name, input and output; the answer comes after them."""
    result = run(subject, "tool", tmp_path)
    assert main_types(result)[-4:] == [
        "tool_call_started", "tool_call_completed", "message_received", "run_completed",
    ]
    [started], [completed] = result.data("tool_call_started"), result.data("tool_call_completed")
    said = {"tool_call_id": subject.tool_call_id, "tool_name": subject.tool,
            "tool_input": subject.tool_input}
    assert started.items() >= said.items()
    assert completed.items() >= {**said, "tool_output": subject.tool_output}.items()
    assert result.output["content"].endswith(subject.text)


PAST = (Message(Role.USER, "what is the word?"), Message(Role.ASSISTANT, "the word is marmalade"))


def _policy(subject: Subject, effect: str) -> list[dict[str, Any]]:
    rules = [[effect, [subject.tool]]]
    return [{"name": "p", "tool_rules": rules, "on_violation": "warn"}]


@pytest.mark.parametrize("past", [(), PAST], ids=["first run", "resumed"])
@plays("tool")
def test_a_forbidden_tool_is_not_called(subject: Subject, past: Any, tmp_path: Path) -> None:
    """If the policy forbids a tool, in a first or a resumed run, then it does not run; its model is told."""
    result = run(subject, "tool", tmp_path, policies=_policy(subject, "deny"), past=past)
    assert subject.executed() == 0
    assert "tool_call_completed" not in result.types
    assert [data["kind"] for data in result.data("policy_violation")] == ["tool_denied"]
    assert result.settle["status"] == "completed"


@pytest.mark.parametrize("past", [(), PAST], ids=["first run", "resumed"])
@pytest.mark.parametrize("says", [True, False])
@plays("tool")
def test_a_human_is_asked_before_a_tool(
    subject: Subject, says: bool, past: Any, tmp_path: Path
) -> None:
    """If the policy asks a human, in a first or a resumed run, then the tool runs only after a yes."""
    result = run(subject, "tool", tmp_path, policies=_policy(subject, "ask"), human=says, past=past)
    assert result.types.count("tool_call_completed") == says
    assert result.data("policy_violation") == []
    assert result.settle["status"] == "completed"


@plays("resume")
def test_a_session_goes_on_where_another_provider_left_it(subject: Subject, tmp_path: Path) -> None:
    """If a session has a past, then the provider's other side is told it, tool calls included."""
    past = (
        *PAST,
        Message(Role.ASSISTANT, None, "toolu:9", "mcp__files__read", {"path": "plum.txt"}),
        Message(Role.TOOL, None, "toolu:9", "mcp__files__read", None, "damson"),
        Message(Role.SYSTEM, "a summary about quinces"),
        Message(Role.USER, "and then?"),
    )
    result = run(subject, "resume", tmp_path, past=past)
    assert result.settle["status"] == "completed"
    for word in ("marmalade", "plum.txt", "damson", "quinces", "and then?"):
        assert word in subject.heard()


@pytest.mark.parametrize("name", KINDS)
def test_what_a_provider_enforces_is_of_the_known(name: str) -> None:
    """If a class says something that no policy knows, or nothing about its tests, then the table is wrong."""
    cls = load(name)
    if not isinstance(cls.enforces, property):  # else it says what another agent says
        assert cls.enforces <= set(ENFORCED)
        assert cls.name == name
    assert cls.tested


def test_the_readme_has_the_table_of_the_code() -> None:
    """If a provider changes what it says of itself, then the README's table is made anew."""
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    assert text() in readme, "python -m mesh.providers.table > ... the table of README.md"
