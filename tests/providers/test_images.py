"""Images of prompts and of tools' results: they reach whoever takes them, and are refused by who does not."""

from __future__ import annotations

import base64
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from driving import Result, run
from scripted import Threaded, call, end, text
from stand_in import StandIn, TalkingStandIn, recorded

DATA = base64.b64encode(b"\x89PNG of a test").decode()
IMAGE = {"type": "image", "media_type": "image/png", "data": DATA}
FAR = {"type": "image", "url": "http://127.0.0.1:9/a.png"}
TOOL = f'''
from mesh.providers.tools import ToolResult

def look() -> ToolResult:
    """Look."""
    image = {{"type": "image", "media_type": "image/png", "data": {DATA!r}}}
    return ToolResult("a plum", blocks=[{{"type": "text", "text": "a plum"}}, image])
'''


def asked(*blocks: dict[str, Any]) -> dict[str, Any]:
    content = [{"type": "text", "text": "what is this? "}, *blocks]
    return {"messages": [{"role": "user", "content": content}]}


def refused(result: Result, word: str) -> None:
    assert result.error["code"] == "validation_error", result.settle
    assert word in result.error["message"]


@pytest.mark.parametrize("api", ["anthropic", "chat", "responses"])
def test_image_of_a_tool_reaches_the_model(
    api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a tool gives an image, then the model is shown it, where its API has a place for it."""
    pytest.importorskip("anthropic" if api == "anthropic" else "openai")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    (tmp_path / "looking.py").write_text(TOOL)
    calls = [[call("call_1", "look", "{}"), call("call_2", "look", "{}"), end("tool_use")]]
    with Threaded({"m": lambda _: calls.pop() if calls else [text("a plum"), end()]}) as server:
        table = {"provider": "anthropic" if api == "anthropic" else "openai", "model": "m", "cache": False,
                 "api": api, "base_url": server.url + ("" if api == "anthropic" else "/v1"),
                 "tools": [f"{tmp_path}/looking.py:look"]}
        table.pop("api" if api == "anthropic" else "cache")
        assert run(table, "look").settle["status"] == "completed"
        body = server.requests[1].body
    url = f"data:image/png;base64,{DATA}"
    if api == "anthropic":
        source = {"type": "base64", "media_type": "image/png", "data": DATA}
        results = [block["content"] for block in body["messages"][-1]["content"]]
        assert results == [[{"type": "text", "text": "a plum"}, {"type": "image", "source": source}]] * 2
    elif api == "chat":
        *_, first, second, shown = body["messages"]
        assert [(m["role"], m["tool_call_id"], m["content"]) for m in (first, second)] == [
            ("tool", "call_1", "a plum"), ("tool", "call_2", "a plum")]
        assert shown["role"] == "user"
        assert [part["type"] for part in shown["content"]] == ["text", "image_url"] * 2
        assert "call_1" in shown["content"][0]["text"] and "call_2" in shown["content"][2]["text"]
        assert shown["content"][1]["image_url"] == {"url": url}
    else:
        outputs = [item["output"] for item in body["input"] if item["type"] == "function_call_output"]
        assert outputs == [[{"type": "input_text", "text": "a plum"},
                            {"type": "input_image", "image_url": url, "detail": "auto"}]] * 2


def test_claude_is_shown_images(tmp_path: Path) -> None:
    """If a prompt has images, then Claude Code gets them as blocks, data and addresses alike."""
    pytest.importorskip("claude_agent_sdk")
    program = TalkingStandIn(tmp_path, "claude").plays(recorded("claude_turn.jsonl"))
    table = {"provider": "claude_code", "program": str(program.path), "cwd": str(tmp_path)}
    assert run(table, asked(IMAGE, FAR)).settle["status"] == "completed"
    content = json.loads(program.stdin.splitlines()[-1])["message"]["content"]
    assert content == [
        {"type": "text", "text": "what is this? [image][image]"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}},
        {"type": "image", "source": {"type": "url", "url": FAR["url"]}},
    ]


def codex(folder: Path) -> StandIn:
    here = shlex.quote(str(folder))
    keep = f'for a in "$@"; do case "$a" in --image=*) cp "${{a#--image=}}" {here}/; ;; esac; done'
    return StandIn(folder, "codex").plays(recorded("codex_turn.jsonl"), before=keep)


def test_codex_reads_images_from_files_that_are_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a prompt has images, then Codex is given them as files, in a new thread or a resumed one."""
    places = tmp_path / "places"
    places.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(places))
    program = codex(tmp_path)
    table = {"provider": "codex", "program": str(program.path), "cwd": str(tmp_path)}
    thread = recorded("codex_turn.jsonl")[0]["thread_id"]
    for resume in (None, thread):
        assert run(table, asked(IMAGE, IMAGE), resume=resume).settle["status"] == "completed"
        assert [(tmp_path / f"image-{n}.png").read_bytes() for n in (0, 1)] == [b"\x89PNG of a test"] * 2
        (tmp_path / "image-0.png").unlink()
    assert list(places.iterdir()) == []


@pytest.mark.parametrize(("block", "word"), [
    (FAR, "not by their url"), ({**IMAGE, "data": "no base64!"}, "no base64"),
    ({**IMAGE, "media_type": "image/tiff"}, "image/tiff"), ({"type": "video", "data": "x"}, "video"),
])
def test_codex_is_given_no_image_that_it_cannot_read(
    block: dict[str, Any], word: str, tmp_path: Path
) -> None:
    """If an image is an address, of an unknown kind or broken, then the run is refused before it starts."""
    program = codex(tmp_path)
    table = {"provider": "codex", "program": str(program.path), "cwd": str(tmp_path)}
    refused(run(table, asked(block)), word)
    assert program.args == []


def test_amp_takes_no_images(tmp_path: Path) -> None:
    """If a prompt for Amp has an image, then the run is refused: Amp would not see it."""
    program = StandIn(tmp_path, "amp").plays(recorded("amp_turn.jsonl"))
    table = {"provider": "amp", "program": str(program.path), "cwd": str(tmp_path)}
    refused(run(table, asked(IMAGE)), "amp takes no images")
    assert program.args == []


@pytest.mark.parametrize("able", [True, False])
def test_acp_agent_is_shown_images_when_it_takes_them(able: bool, tmp_path: Path) -> None:
    """If an agent says that it takes images, then it gets them; else the run is refused."""
    pytest.importorskip("acp")
    program = Path(__file__).with_name("acp_agent.py")
    table = {"provider": "acp", "program": sys.executable, "args": [str(program), str(tmp_path)],
             "cwd": str(tmp_path), "env": {"IMAGES": "1"} if able else {}}
    result = run(table, asked(IMAGE))
    if able:
        assert result.settle["status"] == "completed", result.settle
        assert (tmp_path / "images").read_text() == f"image image/png {DATA}\n"
    else:
        refused(result, "takes no images")
        assert not (tmp_path / "heard").exists()
