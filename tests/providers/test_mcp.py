"""MCP servers as tools of an agent: real programs, a real HTTP server, and what they leave behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from driving import gone

pytest.importorskip("mcp")

from mesh.errors import ConfigError, RunError
from mesh.node.processes import RunProcesses
from mesh.providers.base import RunContext, SessionInfo
from mesh.providers.kinds import Place
from mesh.providers.mcp import Server
from mesh.providers.tools import Toolbox, ToolResult, check_tools

HERE = Path(__file__).parent
SMALL = {"command": sys.executable, "args": ["-S", str(HERE / "mcp_server.py")]}


def small(*words: str, **more: Any) -> dict[str, Any]:
    return {**SMALL, "args": [*SMALL["args"], *words], **more}


async def nobody(_: str) -> Any:
    raise AssertionError


def opened(servers: dict[str, Any], **table: Any) -> dict[str, Any]:
    place = Place(RunProcesses(), False, "agent", nobody, servers)
    return check_tools({"mcp": list(servers), **table}, place)


@asynccontextmanager
async def toolbox(servers: dict[str, Any], **table: Any) -> AsyncIterator[Toolbox]:
    run = RunContext("run_1", SessionInfo(id="ses_1"), "hello")
    async with Toolbox.of(opened(servers, **table), run) as box:
        yield box


async def answer(box: Toolbox, name: str, **given: Any) -> ToolResult:
    items = [item async for item in box.call("call_1", name, given)]
    assert isinstance(items[-1], ToolResult)
    return items[-1]


def play(scene: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with asyncio.timeout(60):
            return await scene()

    return asyncio.run(main())


def test_tools_of_all_pages_are_offered_under_names_that_models_take() -> None:
    """If a server has two pages of tools, then all are there, named after it, and can be called."""
    async def scene() -> None:
        async with toolbox({"calc": small("noisy")}) as box:
            names = [tool.name for tool in box.specs()]
            assert names[:3] == ["calc__add", "calc__die", "calc__wait"]
            assert len(names) == 7
            assert all(len(name) <= 64 and name.replace("_", "").replace("-", "").isalnum() for name in names)
            assert box.specs()[0].schema["properties"] == {"a": {"type": "integer"}, "b": {"type": "integer"}}
            assert box.specs()[0].policy_name == "mcp__calc__add"
            assert await answer(box, "calc__add", a=2, b=3) == ToolResult("5")
            assert (await answer(box, names[-1])).text.startswith("strange/name")

    play(scene)


def test_refusal_of_a_tool_is_an_answer_to_the_model() -> None:
    """If a tool says that it failed, then the model is told so, and the server serves on."""
    async def scene() -> None:
        async with toolbox({"calc": small()}) as box:
            assert await answer(box, "calc__fail") == ToolResult("it went wrong", is_error=True)
            assert (await answer(box, "calc__add", a=1, b=1)).text == "2"

    play(scene)


def test_server_that_dies_in_a_call_is_started_again_by_the_next() -> None:
    """If a server dies in a call, then that call says so with its last words, and the next call works."""
    async def scene() -> None:
        async with toolbox({"calc": small()}) as box:
            before = (await answer(box, "calc__pids")).text
            died = await answer(box, "calc__die")
            assert died.is_error
            assert "MCP server 'calc' died" in died.text
            assert "I was told to die" in died.text
            assert "exit code 3" in died.text
            assert await answer(box, "calc__add", a=2, b=2) == ToolResult("4")
            assert (await answer(box, "calc__pids")).text != before

    play(scene)


def test_server_that_died_between_two_calls_is_there_for_the_next() -> None:
    """If a server is killed while nobody calls it, then the next call starts it and has its answer."""
    async def scene() -> None:
        run = RunContext("run_1", SessionInfo(id="ses_1"), "hello")
        server = Server("calc", small(), run, RunProcesses())
        try:
            pids = (await server.call("pids", {})).text
            former = server._connection
            assert former is not None
            os.kill(int(pids.split()[0]), signal.SIGKILL)
            while former.usable:
                await asyncio.sleep(0.01)
            assert await server.call("add", {"a": 2, "b": 3}) == ToolResult("5")
        finally:
            await server.close()

    play(scene)


@pytest.mark.parametrize("how", ["polite", "stubborn"])
def test_nothing_of_a_server_outlives_its_run(how: str) -> None:
    """If a run ends, then its server is gone, with the grandchild that it had put into another session."""
    async def scene() -> list[int]:
        async with toolbox({"calc": small("child", how)}) as box:
            pids = [int(word) for word in (await answer(box, "calc__pids")).text.split()]
            assert not any(gone(pid) for pid in pids)
            return pids

    assert all(gone(pid) for pid in play(scene))


def test_cancelled_run_leaves_no_server() -> None:
    """If a run is cancelled while a tool hangs, then the server is gone."""
    async def scene() -> list[int]:
        pids: list[int] = []

        async def run() -> None:
            async with toolbox({"calc": small("child")}) as box:
                pids.extend(int(word) for word in (await answer(box, "calc__pids")).text.split())
                await answer(box, "calc__wait")

        task = asyncio.ensure_future(run())
        while not pids:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task})
        return pids

    assert all(gone(pid) for pid in play(scene))


def test_call_over_its_time_is_an_error_of_the_tool() -> None:
    """If a tool does not answer within its time, then the model is told, whose time it ever was."""
    async def scene() -> None:
        async with toolbox({"calc": small(timeout_s=0.3)}) as box:
            assert (await answer(box, "calc__wait")).is_error
        async with toolbox({"calc": small()}, tool_timeout_s=0.3) as box:
            late = await answer(box, "calc__wait")
            assert "did not end within 0.3 s" in late.text

    play(scene)


@pytest.mark.parametrize(("server", "told"), [
    (small("silent"), "no such database"),
    (small("slow", start_timeout_s=0.5), "within 0.5 s|nothing to read for 0.5 s"),
    ({"command": "/no/such/program"}, "No such file"),
    ({"url": "http://127.0.0.1:9/mcp", "start_timeout_s": 5.0}, "cannot be used"),
    (small(env={"TOKEN": "env:NO_SUCH_VARIABLE"}), "NO_SUCH_VARIABLE is not set"),
])
def test_server_that_cannot_be_used_fails_the_run_with_its_name_and_why(server: Any, told: str) -> None:
    """If a server does not start or is not reached, then the run fails and says which, and why."""
    async def scene() -> None:
        async with toolbox({"calc": server}):
            pass

    with pytest.raises(RunError, match=told) as caught:
        play(scene)
    assert "'calc'" in caught.value.message
    assert caught.value.code == "provider_unavailable"


def test_server_gets_its_own_environment_and_not_the_nodes_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the node has keys in its environment, then a server gets those that its table names, no others."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-hidden")
    monkeypatch.setenv("CALC_TOKEN", "given")

    async def scene() -> str:
        async with toolbox({"calc": small(env={"TOKEN": "env:CALC_TOKEN"})}) as box:
            return (await answer(box, "calc__env")).text

    text = play(scene)
    assert '"TOKEN": "given"' in text
    assert "sk-hidden" not in text
    assert '"PATH"' in text


def test_allow_and_deny_name_a_server_or_a_tool() -> None:
    """If lists name a server's tools, then a model is offered what they leave."""
    async def names(**lists: Any) -> list[str]:
        async with toolbox({"calc": small()}, **lists) as box:
            return [tool.name for tool in box.specs()]

    async def scene() -> None:
        assert await names(mcp_allow=["calc__add", "calc__d*"]) == ["calc__add", "calc__die"]
        assert len(await names(mcp_deny=["mcp__calc__d*"])) == 6
        assert await names(mcp_deny=["calc__*"]) == []

    play(scene)


@pytest.mark.parametrize(("servers", "told"), [
    ({"calc": {}}, r"\[mcp.calc\]: expected either command or url"),
    ({"calc": {"command": "x", "url": "y"}}, "either command or url"),
    ({"calc": {"comand": "x"}}, "did you mean 'command'"),
    ({"calc": {"command": 3}}, "command = 3"),
    ({"calc": {"command": "x", "args": "y"}}, "args"),
    ({"calc": {"command": "x", "env": {"A": 1}}}, "env: expected a table of texts"),
    ({"calc": {"command": "x", "timeout_s": 0}}, "timeout_s"),
])
def test_wrong_table_of_a_server_is_a_problem_of_its_agents(servers: dict[str, Any], told: str) -> None:
    """If a server's table is wrong, then building an agent that names it says what is."""
    with pytest.raises(ConfigError, match=told):
        opened(servers)


def test_missing_library_is_a_problem_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the SDK is not installed, then only an agent that names servers is told what to install."""
    monkeypatch.delitem(sys.modules, "mesh.providers.mcp", raising=False)
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(ConfigError, match=r"pip install .*\[mcp\]\""):
        opened({"calc": small()})
    assert opened({}) == {}


SERVER = """
import sys
from mcp.server.mcpserver import MCPServer
server = MCPServer("real")

@server.tool()
def add(a: int, b: int) -> int:
    "Add."
    return a + b

if sys.argv[1] == "stdio":
    server.run("stdio")
else:
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[2]))
"""


def test_official_sdks_servers_are_spoken_to_over_stdio_and_http(tmp_path: Path, free_port: int) -> None:
    """If the server is the official SDK's, then its tools are called over stdin and stdout, and over HTTP."""
    file = tmp_path / "server.py"
    file.write_text(SERVER)

    async def scene() -> None:
        quiet = asyncio.subprocess.DEVNULL
        http = await asyncio.create_subprocess_exec(
            sys.executable, str(file), "http", str(free_port), stdout=quiet, stderr=quiet
        )
        servers = {
            "pipe": {"command": sys.executable, "args": [str(file), "stdio"]},
            "net": {"url": f"http://127.0.0.1:{free_port}/mcp"},
        }
        try:
            await listening(free_port)
            async with toolbox(servers) as box:
                assert await answer(box, "pipe__add", a=2, b=3) == ToolResult("5")
                assert await answer(box, "net__add", a=2, b=3) == ToolResult("5")
                http.kill()
                await http.wait()
                assert (await answer(box, "net__add", a=2, b=3)).is_error
        finally:
            if http.returncode is None:
                http.kill()
                await http.wait()

    play(scene)


async def listening(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
