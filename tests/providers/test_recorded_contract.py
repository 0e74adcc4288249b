"""Every provider, recorded: its run is the one it would have been without; said again it is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from contract import SECRET, Agent, Subject, subjects
from driving import Result, run_of

SUBJECTS = subjects()
SCENES = ("good", "bad", "tool", "usage", "secret")
#: What tells one run from another, and what the clock has to do with.
OWN = ("agent", "provider", "attempt", "replay_of", "duration_ms", "mode", "provider_error", "details")


def essence(result: Result) -> dict[str, Any]:
    """What of a run must be the same, whoever says it."""
    error = result.settle["error"] or {}
    told = [(event["type"], {key: value for key, value in event["data"].items() if key not in OWN})
            for event in result.events if event["type"] not in ("message_streamed", "run_started")]
    return {
        "told": told, "status": result.settle["status"], "code": error.get("code"),
        "content": (result.settle["output"] or {}).get("content"), "usage": result.settle["token_usage"],
        "model": result.settle["provider_metadata"].get("model"),
        "said": "".join(data["content"] for data in result.data("message_streamed")),
    }


@pytest.mark.parametrize(
    ("subject", "scene"),
    [(name, scene) for name in SUBJECTS for scene in SCENES if scene in SUBJECTS[name].scenes],
    indirect=["subject"],
)
def test_what_any_provider_said_is_recorded_and_said_again(
    subject: Subject, tmp_path: Path, scene: str
) -> None:
    """If a provider is recorded, then its run is as without, and the replay of it is that run once more."""
    tape = str(tmp_path / "tape.jsonl")
    agent = subject.agent(scene, tmp_path)
    recorded = run_of(agent, {"behind": agent.table,
                           "agent": {"provider": "record", "agent": "behind", "file": tape}})
    assert recorded.settle["status"] == ("failed" if scene == "bad" else "completed")
    assert "error_occurred" not in recorded.types
    text = Path(tape).read_text()
    assert SECRET not in text
    replay = {"provider": "replay", "file": tape, "timing": "zero"}
    replayed = run_of(Agent({}, agent.input), {"agent": replay})
    assert essence(replayed) == essence(recorded)


def test_recorded_run_is_what_the_direct_one_is(subject: Subject, tmp_path: Path) -> None:
    """If an agent is recorded, then what it says, and who says it, is as if it were not."""
    agent = subject.agent("good", tmp_path)
    direct = run_of(agent, {"agent": agent.table})
    agent = subject.agent("good", tmp_path)
    tape = str(tmp_path / "tape.jsonl")
    recorded = run_of(agent, {"behind": agent.table,
                           "agent": {"provider": "record", "agent": "behind", "file": tape}})
    assert essence(recorded) == essence(direct)
    assert {event["provider"] for event in recorded.events} == {event["provider"] for event in direct.events}
