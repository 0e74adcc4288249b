"""Tools: a function's schema, its input, its result, its failures; who is asked before it runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import ConfigError, RunError
from mesh.node.processes import RunProcesses
from mesh.providers import tools as tools_file
from mesh.providers.base import RunContext, SessionInfo
from mesh.providers.kinds import Place
from mesh.providers.tools import Toolbox, ToolResult, check_tools

SOURCE = '''
import asyncio
import os
import sys
import threading
import time
from typing import Literal

import mesh

called = []
free = threading.Event()

def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    More about it.

    Args:
        a: the first,
            and what it is
        b (int): the second
    """
    called.append((a, b))
    return a + b

async def colour(kind: Literal["red", "blue"], run: mesh.RunContext) -> dict:
    """Paint."""
    await asyncio.sleep(0)
    return {"kind": kind, "run": run.run_id}

def raises(text: str) -> str:
    raise ValueError(text)

def exits() -> None:
    sys.exit(3)

async def stops() -> None:
    raise asyncio.CancelledError

def strange() -> object:
    return object()

def raw() -> bytes:
    return b"x"

def blocks() -> str:
    free.wait()
    return "late"

async def sleeps() -> str:
    await asyncio.sleep(1000)

async def stubborn() -> str:
    while not free.is_set():
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            pass
    return "late"

def long() -> str:
    return "x" * 300_000

def nothing() -> None:
    return None

def positional(a, /) -> None: ...
def anything(**more) -> None: ...
class Own: ...
def own(a: Own) -> None: ...
def unknown_type(a: "Missing") -> None: ...
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tool_functions.py"
    path.write_text(SOURCE)
    return path


def place(**mcp: Any) -> Place:
    async def find(agent: str) -> Any:
        raise AssertionError(agent)

    return Place(RunProcesses(), False, "agent", find, mcp)


def context(guard: Any = None) -> RunContext:
    run = RunContext("run_1", SessionInfo("ses_1"), "hello")
    run.guard = guard
    return run


def called(
    file: Path, name: str, given: Any, *, run: RunContext | None = None, table: dict[str, Any] | None = None,
    then: Callable[[], None] = lambda: None,
) -> list[Any]:
    """Everything that one call of a tool gives."""

    async def play() -> list[Any]:
        found = check_tools({"tools": [f"{file}:{name}"], **(table or {})}, place())
        async with Toolbox.of(found, run or context()) as box:
            items = [item async for item in box.call("call_1", name, given)]
        then()
        return items

    return asyncio.run(play())


def test_schema_is_read_from_hints_and_docstring(file: Path) -> None:
    """If a function has hints and a docstring, then a model is told its parameters and what they mean."""

    async def play() -> Any:
        async with Toolbox.of(check_tools({"tools": [f"{file}:add"]}, place()), context()) as box:
            return box.specs()

    [tool] = asyncio.run(play())
    assert (tool.name, tool.description, tool.server) == ("add", "Add two numbers.", None)
    assert tool.schema == {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "description": "the first, and what it is"},
            "b": {"type": "integer", "description": "the second"},
        },
        "required": ["a"],
    }


def test_call_is_told_in_events_and_ends_with_its_result(file: Path) -> None:
    """If a tool is called, then its start, its end and its result come, in this order."""
    said = {"tool_call_id": "call_1", "tool_name": "add", "tool_input": {"a": 2, "b": 3}}
    assert called(file, "add", {"a": 2, "b": 3}) == [
        {"type": "tool_call_started", "data": said},
        {"type": "tool_call_completed", "data": {**said, "tool_output": "5"}},
        ToolResult("5"),
    ]


@pytest.mark.parametrize(
    ("name", "given", "text"),
    [
        ("add", {"a": "x"}, "wrong input: Expected `int`, got `str`"),
        ("add", {}, "wrong input: Object missing required field `a`"),
        ("add", {"a": 1, "c": 2}, "wrong input: Object contains unknown field `c`"),
        ("add", "[1", "the tool's input is no JSON object"),
        ("colour", {"kind": "green"}, "wrong input: Invalid enum value 'green'"),
        ("raises", {"text": "broken on purpose"}, "ValueError: broken on purpose"),
        ("exits", {}, "SystemExit: 3"),
        ("stops", {}, "stops cancelled itself"),
        ("strange", {}, "the tool returned what is no JSON: "),
        ("raw", {}, "the tool returned what is no JSON"),
    ],
)
def test_what_goes_wrong_in_a_tool_is_its_answer(file: Path, name: str, given: Any, text: str) -> None:
    """If a tool is called wrongly, raises, exits or returns no JSON, then its model is told, and no more."""
    *_, failed, result = called(file, name, given)
    assert failed["type"] == "tool_call_failed"
    assert failed["data"]["error"] == result.text
    assert result.is_error
    assert text in result.text


def test_inputs_are_coerced_as_models_write_them(file: Path) -> None:
    """If a model writes a number as a text, then the function gets a number."""
    assert called(file, "add", {"a": "2"})[-1] == ToolResult("3")


def test_a_coroutine_gets_the_run_and_gives_json(file: Path) -> None:
    """If a function asks for the run, then it gets it, and what it returns is JSON."""
    assert called(file, "colour", {"kind": "red"})[-1].text == '{"kind": "red", "run": "run_1"}'


@pytest.mark.parametrize("name", ["blocks", "sleeps", "stubborn"])
def test_a_tool_that_does_not_end_is_given_up(
    file: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a tool blocks, hangs or refuses to stop, then its model is told after tool_timeout_s."""
    monkeypatch.setattr(tools_file, "STOP_S", 0.05)

    def free() -> None:
        next(m for m in _modules() if getattr(m, "__file__", "") == str(file)).free.set()

    *_, result = called(file, name, {}, table={"tool_timeout_s": 0.05}, then=free)
    assert result == ToolResult(f"{name} did not end within 0.05 s", is_error=True)
    for thread in threading.enumerate():
        if thread.name == f"tool {name}":
            thread.join(20)


def _modules() -> list[Any]:
    import sys

    return list(sys.modules.values())


def test_a_long_result_is_cut_and_says_so(file: Path) -> None:
    """If a tool returns more than the bound, then its beginning is kept, and how much there was."""
    text = called(file, "long", {})[-1].text
    assert text.endswith("x\n[cut: 200000 of 300000 characters]")
    assert len(text) < 200_100


def test_a_forbidden_tool_does_not_run(file: Path) -> None:
    """If the policy or a human says no, then nothing of the tool runs, and its model is told why."""
    asked = []

    async def guard(tool: str, tool_input: Any, call_id: str | None) -> None:
        asked.append((tool, tool_input, call_id))
        raise RunError("not on a Friday", code="tool_permission_denied")

    items = called(file, "raises", {"text": "it ran"}, run=context(guard))
    assert asked == [("raises", {"text": "it ran"}, "call_1")]
    assert [item["type"] for item in items[:-1]] == ["tool_call_failed"]
    assert items[-1] == ToolResult("not on a Friday", is_error=True)


def test_an_unknown_tool_is_an_answer_that_names_the_nearest(file: Path) -> None:
    """If a model calls what is not there, then it is told what is."""

    async def play() -> Any:
        async with Toolbox.of(check_tools({"tools": [f"{file}:add"]}, place()), context()) as box:
            return [item async for item in box.call("call_1", "ad", {})]

    assert asyncio.run(play())[-1] == ToolResult("no tool 'ad' (did you mean 'add'?)", is_error=True)


def test_the_end_of_the_run_goes_through_a_tool(file: Path) -> None:
    """If the run is cancelled while a tool works, then the tool is stopped and the cancellation goes on."""

    async def play() -> None:
        async with Toolbox.of(check_tools({"tools": [f"{file}:sleeps"]}, place()), context()) as box:
            stream = box.call("call_1", "sleeps", {})
            assert (await anext(stream))["type"] == "tool_call_started"
            task = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await stream.aclose()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(play())


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"tools": ["{file}:missing"]}, "has no function 'missing'"),
        ({"tools": ["nothing here"]}, 'expected "module:function" or "file.py:function"'),
        ({"tools": "add"}, "expected list, not str"),
        ({"tools": [3]}, "expected a list of texts"),
        ({"tools": ["{file}:add", "{file}:add"]}, "two tools are named 'add'"),
        ({"tools": ["{file}:positional"]}, "cannot be given by name"),
        ({"tools": ["{file}:anything"]}, "cannot be given by name"),
        ({"tools": ["{file}:own"]}, "its parameters cannot be told as JSON"),
        ({"tools": ["{file}:unknown_type"]}, "its parameters cannot be read"),
        ({"tool_timeout_s": 0}, "expected a number above 0"),
        ({"mcp": ["filez"]}, "no [mcp.filez] in the config (did you mean 'files'?)"),
        ({"mcp_allow": "x"}, "expected list, not str"),
    ],
)
def test_a_wrong_table_names_what_is_wrong(file: Path, table: dict[str, Any], text: str) -> None:
    """If an agent's tools cannot be, then its problem says which, before any run."""
    if isinstance(table.get("tools"), list):
        names = [n.replace("{file}", str(file)) if isinstance(n, str) else n for n in table["tools"]]
        table = {**table, "tools": names}
    with pytest.raises(ConfigError) as caught:
        check_tools(table, place(files={}))
    assert text in caught.value.message
