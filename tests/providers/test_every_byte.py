"""A connection that is lost at every single byte of an answer, for each API. The responses are the HTTP
library's, in memory: ten thousand sockets would take minutes (some of them: ``test_api_models.py``)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from scripted import STREAMS, call, end, text

from mesh.providers import kinds
from mesh.providers.base import Output, ProviderFailure, RunContext, SessionInfo

pytest.importorskip("anthropic")
pytest.importorskip("openai")
httpx2 = pytest.importorskip("httpx2")

TOOLS = '''
def add(a: int, b: int) -> int:
    """Add."""
    return a + b
'''
APIS = {
    "anthropic": ("/v1/messages", {"provider": "anthropic", "base_url": "http://localhost"}),
    "chat": ("/v1/chat/completions", {"provider": "openai", "base_url": "http://localhost/v1"}),
    "responses": ("/v1/responses",
                  {"provider": "openai", "api": "responses", "base_url": "http://localhost/v1"}),
}


def bytes_of(path: str, *steps: Any) -> bytes:
    return b"".join(part for part in STREAMS[path](list(steps), "m") if isinstance(part, bytes))


class Lost(httpx2.AsyncByteStream):  # type: ignore[misc]
    """An answer that ends at a byte: the connection breaks there, or the server thinks that this is all."""

    def __init__(self, data: bytes, broken: bool) -> None:
        self._data, self._broken = data, broken

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._data
        if self._broken:
            raise httpx2.RemoteProtocolError("peer closed connection without sending complete message body")


class Torn:
    """A library's client. The first answer calls a tool, and ends at the byte that the prompt says; the
    second says ``hello``."""

    def __init__(self, path: str) -> None:
        self.whole = bytes_of(path, text("hé"), call("c1", "add", '{"a": 1, ', '"b": 2}'), end("tool_use"))
        self._path = path
        self._last = bytes_of(path, text("hello"), end())

    async def post(self, path: str, *, body: dict[str, Any], cast_to: Any, stream: bool) -> Any:
        assert stream and body["stream"] is True and path in self._path
        said = json.dumps(body)
        if "tool_result" in said or '"tool"' in said or "function_call_output" in said:
            return cast_to(200, stream=Lost(self._last, False))
        _, kind, place = said.partition("lost ")[2].partition('"')[0].split("-")
        return cast_to(200, stream=Lost(self.whole[:int(place)], kind == "broken"))

    def is_closed(self) -> bool:
        return False


async def heard(provider: Any, prompt: str) -> tuple[list[Any], ProviderFailure | None]:
    """What a run yields, and how it fails."""
    pieces: list[Any] = []
    try:
        async for piece in provider.run(RunContext("run_1", SessionInfo("ses_1"), prompt)):
            pieces += [piece]
    except ProviderFailure as exc:
        return pieces, exc
    return pieces, None


@pytest.mark.parametrize("api", APIS)
def test_a_stream_lost_at_every_byte_never_looks_well(
    api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an answer ends at any byte, broken or as if that were all, then the run fails and no tool is called,
    or all of it was there."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    (tmp_path / "adding.py").write_text(TOOLS)
    path, settings = APIS[api]
    table = {**settings, "model": "m", "retries": 0, "tools": [f"{tmp_path}/adding.py:add"]}
    place = kinds.Place(None, False, "agent", None)  # type: ignore[arg-type]
    client = Torn(path)
    whole: list[int] = []

    async def play() -> None:
        provider: Any = kinds.build(table, place)
        await provider._client.close()
        provider._client = client
        for at in range(len(client.whole) + 1):
            for kind in ("broken", "ended") if at % 4 == 0 or at > len(client.whole) - 9 else ("broken",):
                pieces, failure = await heard(provider, f"lost at-{kind}-{at}")
                types = [piece["type"] for piece in pieces if isinstance(piece, dict)]
                if failure is None:
                    whole.append(at)
                    assert isinstance(pieces[-1], Output) and pieces[-1].data["content"] == "hello"
                    assert types.count("tool_call_completed") == 1
                else:
                    assert failure.code in ("provider_unavailable", "provider_error"), (at, kind)
                    assert "tool_call_started" not in types

    asyncio.run(play())
    assert whole and whole[-1] == len(client.whole)
    assert min(whole) > len(client.whole) * 0.6  # what ends earlier is no answer
