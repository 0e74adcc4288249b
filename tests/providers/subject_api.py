"""The API models: ``anthropic`` and both APIs of ``openai``, on a scripted server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contract import SECRET, Agent, Subject, add
from scripted import Script, Step, Threaded, call, cut, end, hang, status, text, use

TOOL = '''
from pathlib import Path

def add(a: int, b: int) -> int:
    """Add two numbers."""
    with Path(__file__).with_suffix(".calls").open("a") as calls:
        calls.write("x")
    return a + b
'''
_TOLD = ('"tool_result"', '"role": "tool"', "function_call_output")


def _tool(body: dict[str, Any]) -> list[Step]:
    asked = json.dumps(body["messages"][-1:] if "messages" in body else body["input"][-1:])
    if any(word in asked for word in _TOLD):
        return [text("hel"), text("lo"), end()]
    return [call("call_1", "add", '{"a": ', "2, ", '"b": 3}'), end("tool_use")]


SCRIPTS: dict[str, Script] = {
    "good": [text("hel"), text("lo"), end()],
    "bad": [text("some"), cut()],
    "refused": [status(400, {"error": {"type": "invalid_request_error", "message": "no"}})],
    "slow": [text("a"), hang()],
    "silent": [hang()],
    "tool": _tool,
    "usage": [text("hel"), text("lo"), use(7, 3), end()],
    "secret": [*map(text, (SECRET[:5], SECRET[5:11], SECRET[11:])), end()],
    "resume": [text("hel"), text("lo"), end()],
}


class Api(Subject):
    """One API."""

    scenes = frozenset(("good", "bad", "slow", "silent", "tool", "usage", "secret", "resume"))
    code = "provider_unavailable"

    def __init__(self, name: str, library: str, **table: Any) -> None:
        self.name, self.requires, self._table = name, (library,), {"provider": library, **table}
        self._server: Threaded | None = None
        self._calls = Path()

    @contextmanager
    def opened(self, folder: Path) -> Iterator[None]:
        file = folder / "adding.py"
        file.write_text(TOOL)
        self._calls = file.with_suffix(".calls")
        with Threaded(SCRIPTS) as self._server:
            yield

    def agent(self, scene: str, folder: Path) -> Agent:
        assert self._server is not None
        base = self._server.url + ("/v1" if self._table["provider"] == "openai" else "")
        table = {**self._table, "model": scene, "base_url": base, "tools": [f"{folder}/adding.py:add"]}
        return Agent(table, "hello there")

    def executed(self) -> int:
        return len(self._calls.read_text()) if self._calls.exists() else 0

    def heard(self) -> str:
        assert self._server is not None
        return json.dumps(self._server.requests[-1].body)


add(Api("anthropic", "anthropic"))
add(Api("openai chat", "openai"))
add(Api("openai responses", "openai", api="responses"))
