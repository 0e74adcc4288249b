"""``record`` and ``replay``: what one agent said, said again by another, as it was, without its secrets."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from driving import Bench, Result, cancelled, drive, python_agent

SECRET = "AKIAIOSFODNN7EXAMPLE"
TALKER = """
import asyncio
from mesh import RunError
async def agent(run):
    yield {"type": "run_started", "data": {"model": "m-1"}}
    if run.prompt == "wait":
        yield "before "
        await asyncio.sleep(1000)
    if run.prompt == "fail":
        yield "some"
        raise RunError("no more", code="provider_rate_limited", details={"retry_after_s": 3})
    yield "it is AKIAIOSF"
    yield "ODNN7EXAMPLE, "
    yield {"type": "tool_call_started",
           "data": {"tool_call_id": "1", "tool_name": "add", "tool_input": {"password": "hunter22"}}}
    yield {"type": "tool_call_completed", "data": {"tool_call_id": "1", "tool_name": "add", "tool_output": 5}}
    yield {"type": "token_usage_updated", "data": {"input_tokens": 3, "output_tokens": 1, "mode": "delta"}}
    yield {"type": "token_usage_updated", "data": {"input_tokens": 4, "output_tokens": 2, "mode": "delta"}}
    yield "done"
"""


def tables(folder: Path, **replay: Any) -> dict[str, Any]:
    tape = str(folder / "tape.jsonl")
    return {
        "talker": python_agent(folder, TALKER),
        "taped": {"provider": "record", "agent": "talker", "file": tape},
        "again": {"provider": "replay", "file": tape, "timing": "zero", **replay},
    }


def played(folder: Path, *inputs: Any, agent: str = "taped", **replay: Any) -> list[Result]:
    """Runs of one session, one after another."""
    made = tables(folder, **replay)
    wanted = {name: made[name] for name in (("talker", "taped") if agent == "taped" else (agent,))}

    async def play(bench: Bench) -> list[Result]:
        return [await bench.result(bench.begin(agent, given)) for given in inputs]

    found = drive(wanted, play)
    assert isinstance(found, list)
    return found


def shape(result: Result) -> list[tuple[str, Any]]:
    """What a run said, without what is its own: ids, times, names."""
    own = ("agent", "provider", "attempt", "model", "replay_of", "mode", "provider_error")
    return [(event["type"], {k: v for k, v in event["data"].items() if k not in own})
            for event in result.events]


def test_what_was_recorded_is_said_again_event_for_event(tmp_path: Path) -> None:
    """If a recorded run is replayed, then its events, output, usage and status are those of then."""
    [then] = played(tmp_path, "hello")
    [now] = played(tmp_path, "hello", agent="again")
    assert shape(now) == shape(then)
    assert now.output == then.output
    assert now.settle["token_usage"] == then.settle["token_usage"] == {"input_tokens": 7, "output_tokens": 3}
    assert now.settle["provider_metadata"]["model"] == "m-1"
    assert now.settle["status"] == "completed"


def test_recorded_agent_keeps_its_provider(tmp_path: Path) -> None:
    """If an agent is recorded, then its events name the provider behind it: prices go by that."""
    [then] = played(tmp_path, "hello")
    assert {event["provider"] for event in then.events} == {"python"}


def test_recording_holds_no_secret(tmp_path: Path) -> None:
    """If a secret comes in two pieces, or under a telling key, or in the prompt, then the file has none."""
    played(tmp_path, "hello", f"again {SECRET}")
    text = (tmp_path / "tape.jsonl").read_text()
    for secret in (SECRET, "AKIAIOSF", "ODNN7EXAMPLE", "hunter22"):
        assert secret not in text
    [first, second] = played(tmp_path, "hello", f"again {SECRET}", agent="again")
    assert first.settle["status"] == second.settle["status"] == "completed"
    assert "[REDACTED]" in first.output["content"]


def test_failed_run_fails_again_with_its_code(tmp_path: Path) -> None:
    """If the recorded run failed, then the replay says as much and fails with its code and details."""
    [then] = played(tmp_path, "fail")
    [now] = played(tmp_path, "fail", agent="again")
    assert shape(now) == shape(then)
    assert now.error == {**then.error, "provider_error": now.error.get("provider_error")}
    assert now.error["code"] == "provider_rate_limited"


def test_run_that_was_stopped_ends_where_it_was_stopped(tmp_path: Path) -> None:
    """If the recorded run was cancelled, then the replay fails there, as cancelled."""
    async def play(bench: Bench) -> Result:
        running = bench.begin("taped", "wait")
        await bench.until(running, lambda result: "message_streamed" in result.types)
        return await cancelled(bench, running)

    made = tables(tmp_path)
    drive({name: made[name] for name in ("talker", "taped")}, play)
    [now] = played(tmp_path, "wait", agent="again")
    assert now.error["code"] == "cancelled"
    assert now.data("message_received")[0]["content"] == "before "


def test_recording_that_was_cut_off_says_so(tmp_path: Path) -> None:
    """If a recording stops within a run, then its replay says so, and fails as outcome_unknown."""
    played(tmp_path, "hello")
    lines = (tmp_path / "tape.jsonl").read_text().splitlines()
    (tmp_path / "tape.jsonl").write_text("\n".join(lines[:6]))
    [now] = played(tmp_path, "hello", agent="again")
    assert now.error["code"] == "outcome_unknown"


def test_two_runs_at_once_are_told_apart(tmp_path: Path) -> None:
    """If two sessions are recorded into one file at the same time, then each is replayed by itself."""
    async def play(bench: Bench) -> list[Result]:
        running = [bench.begin("taped", f"word {n}", session=f"ses_{n}") for n in range(5)]
        return [await bench.result(run) for run in running]

    made = tables(tmp_path)
    drive({name: made[name] for name in ("talker", "taped")}, play)
    assert all(result.settle["status"] == "completed"
               for result in played(tmp_path, *(f"word {n}" for n in range(5)), agent="again"))


def test_unknown_question_is_told_what_the_recording_answers(tmp_path: Path) -> None:
    """If nothing like it was recorded, then the run fails and says what was."""
    played(tmp_path, "hello")
    [now] = played(tmp_path, "other", agent="again")
    assert now.error["code"] == "provider_error"
    assert "'hello'" in now.error["message"]
    [first, second] = played(tmp_path, "other", "more", agent="again", match="order")
    assert (first.settle["status"], second.settle["status"]) == ("completed", "failed")


def test_original_timing_waits_between_pieces(tmp_path: Path) -> None:
    """If the timing is the original, then no piece comes before its time."""
    event = {"run_id": "a", "type": "message_streamed", "ts": 10.2, "data": {"content": "x"}}
    lines = [
        {"run": {"id": "a", "input": "hi", "status": "completed", "output": {"content": "x"}}},
        {"event": {"run_id": "a", "type": "run_started", "ts": 10.0, "data": {}}}, {"event": event},
        {"event": {"run_id": "a", "type": "run_completed", "ts": 10.3, "data": {}}},
    ]
    (tmp_path / "tape.jsonl").write_text("\n".join(map(json.dumps, lines)))
    slept: list[float] = []
    real = asyncio.sleep

    async def sleep(delay: float, result: Any = None) -> Any:
        slept.append(delay)
        return await real(0, result)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mesh.providers.replay.asyncio.sleep", sleep)
        [now] = played(tmp_path, "hi", agent="again", timing="original")
    assert now.output == {"content": "x"}
    assert 0.1 < max(slept) <= 0.31


def test_counts_of_a_provider_that_says_deltas_are_added_again(tmp_path: Path) -> None:
    """If an agent counts in deltas by its table, then the replay's counts are the same, not the largest."""
    made = tables(tmp_path)
    source = TALKER.replace(', "mode": "delta"', "")
    made["talker"] = python_agent(tmp_path, source, usage_mode="delta")

    async def play(bench: Bench) -> Result:
        return await bench.result(bench.begin("taped", "hello"))

    then = drive({name: made[name] for name in ("talker", "taped")}, play)
    [now] = played(tmp_path, "hello", agent="again")
    assert now.settle["token_usage"] == then.settle["token_usage"] == {"input_tokens": 7, "output_tokens": 3}


def test_run_that_its_agent_refuses_is_recorded_too(tmp_path: Path) -> None:
    """If the agent refuses a run before its first word, then the recording holds it, and its code."""
    made = tables(tmp_path) | {"talker": {"provider": "shell", "denied_commands": ["rm"]}}

    async def play(bench: Bench) -> Result:
        return await bench.result(bench.begin("taped", "rm -rf x"))

    then = drive({name: made[name] for name in ("talker", "taped")}, play)
    [now] = played(tmp_path, "rm -rf x", agent="again")
    assert now.error["code"] == then.error["code"] == "policy_violation"


@pytest.mark.parametrize(("table", "told"), [
    ({"provider": "replay"}, "a recording is needed"),
    ({"provider": "replay", "file": "/no/such.jsonl"}, "No such file"),
    ({"provider": "replay", "file": __file__}, "line 1"),
    ({"provider": "replay", "file": __file__, "timing": "slow"}, "original or zero"),
    ({"provider": "replay", "file": __file__, "fill": 1}, "did you mean 'file'"),
    ({"provider": "record", "file": "x"}, "agent"),
    ({"provider": "record", "agent": "agent", "file": "x"}, "itself"),
    ({"provider": "record", "agent": "other", "file": "/no/such/folder/x"}, "cannot be written"),
])
def test_wrong_table_is_a_problem_of_its_agent(table: dict[str, Any], told: str) -> None:
    """If a table is wrong, then its agent is listed with what is wrong with it."""
    async def play(bench: Bench) -> str:
        return str(bench.registry.catalogue()[0]["problem"])

    assert told in drive({"agent": table}, play)


def test_file_that_cannot_be_written_any_more_fails_no_run(tmp_path: Path) -> None:
    """If the file cannot be written in the middle, then the run says so once and completes."""
    made = tables(tmp_path)

    async def play(bench: Bench) -> Result:
        (tmp_path / "tape.jsonl").mkdir()
        return await bench.result(bench.begin("taped", "hello"))

    result = drive({name: made[name] for name in ("talker", "taped")}, play)
    assert result.settle["status"] == "completed"
    [said] = result.data("error_occurred")
    assert said["error_code"] == "storage_write_failed"


def test_unknown_agent_is_told_at_the_run(tmp_path: Path) -> None:
    """If the agent to record is not there, then the run fails and names it."""
    async def play(bench: Bench) -> Result:
        return await bench.result(bench.begin("taped", "hello"))

    result = drive({"taped": tables(tmp_path)["taped"]}, play)
    assert result.settle["status"] == "failed"
    assert "talker" in result.error["message"]
