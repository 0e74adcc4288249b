"""Providers: ids that repeat, lists that do not end, what a replaced or closed run leaves behind."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from driving import Bench, Result, drive, run
from scripted import Threaded, call, end, text
from stand_in import StandIn, TalkingStandIn, recorded

from mesh.core.message import Message, Role
from mesh.errors import ConfigError, InvalidArgument, RunError
from mesh.node.processes import RunProcesses
from mesh.providers import anthropic, openai_chat, program, tools
from mesh.providers.acp_client import TERMINALS_MAX, Client
from mesh.providers.adapters import Stage
from mesh.providers.api_errors import Failures, retry_after_s
from mesh.providers.base import RunContext, SessionInfo
from mesh.providers.channel import Channel
from mesh.providers.cli import Table
from mesh.providers.codex import _Turn
from mesh.providers.conversation import Called, conversation_of
from mesh.providers.functions import plan_of
from mesh.providers.mcp import Server
from mesh.providers.mcp import _result as mcp_result
from mesh.providers.openai_chat import Answer
from mesh.providers.program import Facts
from mesh.providers.tools import TOOLS_MAX, Tool, Toolbox, ToolResult

GOOD = [text("hel"), text("lo"), end()]
FACTS = Facts("a-program", "", "")


def context(guard: Any = None) -> RunContext:
    found = RunContext("run_1", SessionInfo("ses_1"), "hello")
    found.guard = guard
    return found


# --- frameworks ---


def test_an_id_that_a_model_uses_again_is_asked_for_again() -> None:
    """If a model gives a later call the id of a permitted or a denied one, then that is asked for too."""
    asked: list[str] = []

    async def guard(tool: str, tool_input: Any, call_id: str | None) -> None:
        asked.append(tool)
        if tool == "bash":
            raise RunError("no", code="tool_permission_denied")

    async def scene() -> None:
        stage = Stage(context(guard))
        await stage.ask("call_0", "add", {})
        await stage.begin("call_0", "add", {})
        for _ in range(2):
            with pytest.raises(RunError):
                await stage.begin("call_0", "bash", {})
        await stage.begin("call_0", "add", {})
        assert asked == ["add", "bash", "bash", "add"]

    asyncio.run(scene())


def test_call_that_has_the_id_of_a_denied_one_is_told() -> None:
    """If a call that may be made has the id of one that was denied, then its events are in the log."""
    async def guard(tool: str, tool_input: Any, call_id: str | None) -> None:
        if tool == "bash":
            raise RunError("no", code="tool_permission_denied")

    async def scene() -> list[Any]:
        stage = Stage(context(guard))
        with pytest.raises(RunError) as refused:
            await stage.ask("call_0", "bash", {})
        await stage.tell("call_0", "bash", refused.value)
        await stage.ask("call_0", "add", {})
        return [stage.said.get_nowait() for _ in range(stage.said.qsize())]

    assert [piece["type"] for piece in asyncio.run(scene())] == ["tool_call_failed", "tool_call_started"]


def test_a_call_that_cannot_be_asked_about_is_refused_to_the_model() -> None:
    """If a call's id or name makes no sense, then it is refused as any other, and that says nothing of what
    fails after a later call was permitted."""
    async def guard(tool: str, tool_input: Any, call_id: str | None) -> None:
        if tool == "odd":
            raise InvalidArgument("what is that?")

    async def scene() -> None:
        stage = Stage(context(guard))
        with pytest.raises(RunError, match="what is that") as refused:
            await stage.ask("call_0", "odd", {})
        assert stage.refusal is refused.value and stage.refusal.code == "tool_permission_denied"
        await stage.ask("call_1", "add", {})
        assert stage.refusal is None

    asyncio.run(scene())


# --- recordings ---


def test_agents_that_record_one_another_have_a_problem(tmp_path: Path) -> None:
    """If recording agents name one another, then each says so, and the node's list is there."""
    async def play(bench: Bench) -> Any:
        return {entry["name"]: entry["problem"] for entry in bench.registry.catalogue()}

    tables = {name: {"provider": "record", "agent": other, "file": str(tmp_path / name)}
              for name, other in (("a", "b"), ("b", "a"), ("c", "echo"))}
    problems = drive({**tables, "echo": {"provider": "echo"}}, play)
    assert "in a circle" in problems["a"] and "in a circle" in problems["b"]
    assert problems["c"] is None


# --- MCP ---


class Pages:
    """A server whose list of tools does not end."""

    async def list_tools(self, cursor: str | None) -> Any:
        return SimpleNamespace(tools=[], next_cursor=f"{cursor}+")


def test_list_of_tools_that_does_not_end_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a server sends empty pages for ever, then the run fails and says so."""
    async def client(self: Server) -> Any:
        return Pages()

    monkeypatch.setattr(Server, "_client", client)
    server = Server("calc", {"command": "x"}, context(), RunProcesses())
    with pytest.raises(RunError, match=f"does not end .* at most {TOOLS_MAX}"):
        asyncio.run(asyncio.wait_for(server.tools(), 30))


def test_call_of_a_dead_server_does_not_end_its_successor() -> None:
    """If a call fails late, then the server that another call started again lives on."""
    class Connection:
        why, usable, closed = "", False, False

        async def close(self) -> None:
            self.closed = True

    async def scene() -> None:
        server = Server("calc", {"command": "x"}, context(), RunProcesses())
        server._connection = Connection()  # type: ignore[assignment]
        successor = Connection()

        async def step() -> None:
            server._connection = successor  # type: ignore[assignment]
            raise OSError("broken")

        with pytest.raises(RunError, match="died"):
            await server._done(step())
        assert not successor.closed

    asyncio.run(scene())


# --- API models ---


def test_password_of_a_server_is_in_no_failure() -> None:
    """If an agent's base_url holds a password and a key, then its failures do not."""
    failures = Failures("openai", "https://user:pa55word@llm.example:8000/v1?key=k3y", "none")
    said = failures.broken_off().message
    assert "llm.example:8000/v1" in said and "pa55word" not in said and "k3y" not in said


@pytest.mark.parametrize("value", ["inf", "nan", "1e999"])
def test_retry_after_that_is_no_time_is_none(value: str) -> None:
    """If a server asks for a pause that is no number of seconds, then it asked for none."""
    assert retry_after_s({"retry-after": value}) is None


def test_calls_without_ids_get_different_ones() -> None:
    """If a server gives its calls no ids, then those of two answers differ."""
    ids = set()
    for _ in range(2):
        turn: Any = SimpleNamespace(text=[], calls=[], stop_reason="end_turn", message=[], usage={})
        answer = Answer(turn)
        answer.take({"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"name": "add"}}]}}]})
        answer.finish()
        ids |= {called.id for called in turn.calls}
    assert len(ids) == 2


class Held:
    """A budget that knows what is held."""

    def __init__(self) -> None:
        self.tokens = 0.0

    def left(self, metric: str) -> float | None:
        return 1_000

    async def reserve(self, amounts: Mapping[str, float]) -> None:
        self.tokens += amounts["total_tokens"]

    def release(self, amounts: Mapping[str, float]) -> None:
        self.tokens -= amounts["total_tokens"]


def _local(url: str) -> dict[str, Any]:
    return {"a": {"provider": "openai", "model": "m", "base_url": f"{url}/v1"}}


def test_closed_run_of_an_api_model_holds_nothing() -> None:
    """If a run is closed in the middle of an answer, then nothing of a budget is held any more."""
    pytest.importorskip("openai")

    async def play(bench: Bench) -> None:
        provider = await bench.registry.provider("a")
        asking, held = context(), Held()
        asking.budget = held
        pieces = provider.run(asking)
        assert await anext(pieces) == "hel"
        assert held.tokens > 0
        await pieces.aclose()  # type: ignore[attr-defined]
        assert held.tokens == 0

    with Threaded({"m": GOOD}) as server:
        drive(_local(server.url), play)


def test_run_that_begins_while_its_agent_is_replaced_is_answered() -> None:
    """If an agent is replaced after a run found it, before it began, then the run has its answer."""
    pytest.importorskip("openai")

    async def play(bench: Bench) -> list[Any]:
        provider = await bench.registry.provider("a")
        await provider.close()  # type: ignore[attr-defined]
        return [piece async for piece in provider.run(context()) if isinstance(piece, str)]

    with Threaded({"m": GOOD}) as server:
        assert drive(_local(server.url), play) == ["hel", "lo"]


# --- functions ---


def test_function_that_a_reload_replaced_is_not_kept(tmp_path: Path) -> None:
    """If a file of tools is read anew, then nothing keeps its former functions."""
    file = tmp_path / "replaced_tools.py"
    file.write_text("def add(a: int) -> int:\n    return a\n")
    former = weakref.ref(plan_of(f"{file}:add").function)
    plan_of(f"{file}:add", fresh=True)
    gc.collect()
    assert former() is None


# --- programs ---


def test_claude_that_lingers_after_its_answer_has_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If Claude does not end after its result, then it is ended, and the run has its answer."""
    pytest.importorskip("claude_agent_sdk")
    monkeypatch.setattr(program, "EXIT_S", 0.2)
    claude = TalkingStandIn(tmp_path, "claude").plays(recorded("claude_turn.jsonl"))
    claude.path.write_text(claude.path.read_text() + "\ntime.sleep(3600)\n")
    table = {"provider": "claude_code", "program": str(claude.path), "cwd": str(tmp_path)}
    found: Result = run(table, "do it")
    assert found.settle["status"] == "completed", found.error
    assert found.output["content"] == "done here"


def test_usage_of_codex_that_is_none_is_none() -> None:
    """If Codex tells its usage in another form, then the turn is over nevertheless."""
    turn = _Turn({})
    turn.pieces({"type": "turn.completed", "usage": ["new", "form"]})
    assert turn.over and turn.output().data == {"content": ""}


def test_model_with_a_nul_is_a_wrong_setting() -> None:
    """If a model's name cannot be an argument of a program, then that is said."""
    with pytest.raises(ConfigError, match="model"):
        Table({"model": "a\0b"}, FACTS, ())


def test_terminals_that_wait_for_a_human_count(tmp_path: Path) -> None:
    """If an agent asks for many terminals at once, then no more than the allowed ones wait or run."""
    waiting: list[str] = []

    async def guard(tool: str, tool_input: Any, call_id: str | None) -> None:
        waiting.append(tool)
        await asyncio.Event().wait()

    refusal = SimpleNamespace(invalid_params=lambda data: ValueError(data["message"]))
    acp = SimpleNamespace(RequestError=refusal)

    async def scene() -> list[Any]:
        client = Client(acp, context(guard), Channel(), RunProcesses(), folder=str(tmp_path), allow=False)
        asking = [asyncio.ensure_future(client.create_terminal("s", "true"))
                  for _ in range(TERMINALS_MAX + 3)]
        while not sum(task.done() for task in asking) and len(waiting) < len(asking):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        refused = [task for task in asking if task.done()]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        return refused

    refused = asyncio.run(scene())
    assert (len(waiting), len(refused)) == (TERMINALS_MAX, 3)
    assert "are open" in str(refused[0].exception())


def test_calls_of_one_run_with_one_id_are_two_calls(tmp_path: Path) -> None:
    """If a server gives each call the same id, then the log has different ones, and a limit counts them."""
    pytest.importorskip("openai")
    (tmp_path / "same_id_tools.py").write_text("def add(a: int) -> int:\n    return a\n")
    again = [call("call_0", "add", '{"a": 1}'), end("tool_use")]
    policy = {"name": "p", "limits": {"max_tool_calls": 2}}
    with Threaded({"m": lambda body: GOOD if len(body["messages"]) > 8 else again}) as server:
        table = {**_local(server.url)["a"], "tools": [f"{tmp_path}/same_id_tools.py:add"]}
        found = run(table, "add")
        limited = run(table, "add", policies=[policy])
    ids = [data["tool_call_id"] for data in found.data("tool_call_completed")]
    assert len(ids) == len(set(ids)) > 2
    assert limited.error["code"] == "policy_violation"


def test_link_to_log_in_by_is_kept_nowhere(tmp_path: Path) -> None:
    """If a program asks for a login on stderr, then nobody reads its link."""
    amp = StandIn(tmp_path, "amp").plays(
        before="echo 'not logged in: open https://x/login?authToken=30a87c915d89' >&2; sleep 1000"
    )
    found = run({"provider": "amp", "program": str(amp.path), "cwd": str(tmp_path)}, "hi")
    assert found.error["code"] == "provider_authentication_failed"
    assert "[link]" in found.error["message"] and "30a87c" not in str(found.error)


def test_long_text_beside_an_image_is_cut_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a tool gives a long text and an image, then the text is cut wherever a model is told it."""
    monkeypatch.setattr(tools, "TEXT_CHARS_MAX", 10)
    image = {"type": "image", "data": "aGVsbG8=", "media_type": "image/png"}
    long = "x" * 100

    async def give(given: dict[str, Any]) -> ToolResult:
        return ToolResult(long, blocks=[{"type": "text", "text": long}, image])

    async def scene() -> Any:
        box = Toolbox([Tool("give", "", {}, give)], context())
        return [item async for item in box.call("c", "give", {})][-1]

    found = asyncio.run(scene())
    assert found.text.startswith("x" * 10 + "\n[cut:")
    assert found.blocks == [{"type": "text", "text": found.text}, image]


def test_image_of_an_mcp_tool_has_a_word_in_its_text() -> None:
    """If a tool gives an image alone, then who is told texts only is told that there is one."""
    item = SimpleNamespace(type="image", data="aGVsbG8=", mime_type="image/png")
    found = mcp_result(SimpleNamespace(content=[item], structured_content=None, is_error=False))
    assert found.text == "[image]" and [block["type"] for block in found.blocks] == ["image"]


def test_ids_of_a_conversation_differ() -> None:
    """If calls of several runs have one id, then a model is told different ones, each with its result."""
    said: list[Message] = []
    for run_id in ("run_1", "run_2", "run_3"):
        about: dict[str, Any] = {"tool_name": "add", "tool_call_id": "call_0"}
        said += [
            Message(role=Role.USER, content="add"),
            Message(role=Role.ASSISTANT, tool_input={"a": 1}, **about),
            Message(role=Role.TOOL, tool_output=run_id, **about),
        ]
    found = conversation_of(said, "go on", [{"role": "user", "content": "go on"}], system=None, tools=True)
    called = [item for item in found.items if isinstance(item, Called)]
    assert [item.calls[0].id for item in called] == [item.results[0].id for item in called]
    assert len({item.calls[0].id for item in called}) == 3
    assert [item.results[0].text for item in called] == ["run_1", "run_2", "run_3"]


@pytest.mark.parametrize("read", [openai_chat.arguments, anthropic._json])
def test_input_of_a_call_that_is_nested_too_deeply_stays_text(read: Any) -> None:
    """If a model nests a call's input deeper than can be read, then the tool's answer says so, no failure."""
    deep = "[" * 100_000
    assert read(deep) == deep
