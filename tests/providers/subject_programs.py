"""The coding programs, played by stand-ins: ``codex``, ``amp`` and ``claude_code``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contract import SECRET, Agent, Subject, add
from stand_in import StandIn, TalkingStandIn

CODEX = {"type": "thread.started", "thread_id": "t1"}
INIT = {"type": "system", "subtype": "init", "session_id": "s1", "model": "m", "tools": []}


def _answer(text: str) -> dict[str, Any]:
    return {"type": "item.completed", "item": {"id": "i", "type": "agent_message", "text": text}}


def _says(text: str, **usage: int) -> dict[str, Any]:
    content = [{"type": "text", "text": text}]
    return {"type": "assistant", "parent_tool_use_id": None,
            "message": {"id": "m1", "role": "assistant", "model": "m", "content": content, "usage": usage}}


def _part(text: str) -> dict[str, Any]:
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    return {"type": "stream_event", "uuid": "u", "session_id": "s1", "event": delta}


def result(text: str, **more: Any) -> dict[str, Any]:
    """The last message of Claude Code or Amp."""
    return {"type": "result", "subtype": "success", "is_error": False, "num_turns": 1, "duration_ms": 1,
            "duration_api_ms": 1, "session_id": "s1", "result": text, **more}


def _wants(call_id: str, name: str, tool_input: Any) -> dict[str, Any]:
    content = [{"type": "tool_use", "id": call_id, "name": name, "input": tool_input}]
    return {"type": "assistant", "parent_tool_use_id": None,
            "message": {"id": "m0", "role": "assistant", "model": "m", "content": content}}


class Programs(Subject):
    """One program."""

    scenes = frozenset(("good", "bad", "slow", "silent", "usage", "secret", "resume"))
    streams = False

    def __init__(self, name: str, said: dict[str, list[dict[str, Any]]]) -> None:
        self.name, self._said = name, said
        self._places = 0

    @contextmanager
    def opened(self, folder: Path) -> Iterator[None]:
        self._folder, self._places = folder, 0
        yield

    def agent(self, scene: str, folder: Path) -> Agent:
        self._places += 1
        place = folder / str(self._places)
        place.mkdir()
        self._program = self._stand_in(place, scene)
        return Agent({"provider": self.name, "program": str(self._program.path), "cwd": str(place)})

    def _stand_in(self, place: Path, scene: str) -> StandIn:
        after = {"bad": "echo it broke >&2; exit 3", "slow": "sleep 1000", "silent": "sleep 1000"}
        return StandIn(place, self.name).plays(
            self._said.get(scene, self._said["good"]), after=after.get(scene, "")
        )

    def heard(self) -> str:
        return self._program.stdin


class Claude(Programs):
    """The one that asks."""

    requires = ("claude_agent_sdk",)
    scenes = Programs.scenes | {"tool"}
    streams = True

    def _stand_in(self, place: Path, scene: str) -> StandIn:
        return TalkingStandIn(place, "claude").plays(self._said.get(scene, self._said["good"]))

    def executed(self) -> int:
        assert isinstance(self._program, TalkingStandIn)
        return self._program.ran


add(Programs("codex", {
    "good": [CODEX, _answer("hello"), {"type": "turn.completed"}],
    "bad": [CODEX, _answer("some")],
    "slow": [CODEX, _answer("a")],
    "silent": [CODEX],
    "usage": [CODEX, _answer("hello"),
              {"type": "turn.completed", "usage": {"input_tokens": 7, "output_tokens": 3}}],
    "secret": [CODEX, _answer(f"it is {SECRET}"), {"type": "turn.completed"}],
}))
add(Programs("amp", {
    "good": [INIT, _says("hello"), result("hello")],
    "bad": [INIT, _says("some")],
    "slow": [INIT, _says("a")],
    "silent": [INIT],
    "usage": [INIT, _says("hello", input_tokens=7, output_tokens=3), result("hello")],
    "secret": [INIT, _says(f"it is {SECRET}"), result(f"it is {SECRET}")],
}))
add(Claude("claude_code", {
    "good": [INIT, _part("hel"), _part("lo"), _says("hello"), result("hello")],
    "bad": [INIT, _part("some"), {"exit": 3}],
    "slow": [INIT, _part("a"), {"sleep": 1000}],
    "silent": [INIT, {"sleep": 1000}],
    "tool": [INIT, _wants("call_1", "add", {"a": 2, "b": 3}),
             {"tool": "add", "id": "call_1", "input": {"a": 2, "b": 3}, "output": "5"},
             _part("hel"), _part("lo"), _says("hello"), result("hello")],
    "usage": [INIT, _part("hel"), _part("lo"), _says("hello"),
              result("hello", usage={"input_tokens": 7, "output_tokens": 3})],
    "secret": [INIT, _part(SECRET[:5]), _part(SECRET[5:11]), _part(SECRET[11:]), _says(SECRET),
               result(SECRET)],
}))
