"""The tools an agent's model may call: Python functions and MCP servers, behind one door.

``Toolbox.of(table, run)`` opens what an agent's table names; ``box.specs()`` is what a model is told, and
``box.call`` does one call: policy and human first, then the tool, its events around it.

Keys of the table: ``tools = ["module:function", "file.py:function"]``, ``mcp = ["server"]`` with
``mcp_allow`` and ``mcp_deny``, and ``tool_timeout_s``.

Rules of this file:

1. ``run.permit`` is asked before anything of a tool runs. Policies and events know a tool of an MCP server
   as ``mcp__server__tool``; a model knows it as ``server__tool``.
2. Whatever a tool does is an answer to its model: an exception, a wrong input, a result that is no JSON, no
   end within ``tool_timeout_s``. Only the run's own end goes through.
3. A result is cut at ``TEXT_CHARS_MAX``, and says so.
"""

from __future__ import annotations

import asyncio
import fnmatch
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from mesh.core.plain import plain
from mesh.errors import ConfigError, MeshError, RunError
from mesh.providers.base import RunContext, checked, nearest_name
from mesh.providers.functions import plan_of
from mesh.providers.kinds import Place, installing
from mesh.providers.python import TOOL_KEYS

#: One call's time when the table does not say otherwise; waiting for a human does not count.
TIMEOUT_S = 60.0
#: A tool that was told to stop has this long; then its late result is nobody's.
STOP_S = 1.0
#: Of one result, in characters of its text.
TEXT_CHARS_MAX = 200_000
#: Tools of one agent.
TOOLS_MAX = 512
MCP_PREFIX = "mcp__"


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool. ``call`` takes the input; what it returns becomes a ``ToolResult``."""

    name: str  #: as the model calls it
    description: str
    schema: dict[str, Any]  #: JSON schema of the input, an object
    call: Callable[[dict[str, Any]], Awaitable[Any]]
    server: str | None = None  #: of MCP; its tools are named ``server__tool``

    @property
    def policy_name(self) -> str:
        """As policies, humans and events know it."""
        return self.name if self.server is None else MCP_PREFIX + self.name


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a model is told of a call."""

    text: str
    is_error: bool = False
    #: When it is more than text: {"type": "text", "text"}, {"type": "image", "data": base64, "media_type"}.
    blocks: list[dict[str, Any]] = field(default_factory=list)


class Toolbox:
    """The tools of one run. Made by ``of``, from what ``check_tools`` gave."""

    def __init__(self, tools: Iterable[Tool], run: RunContext, *, timeout_s: float = TIMEOUT_S) -> None:
        self._run = run
        self._timeout_s = timeout_s
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            if tool.name in self._tools:
                raise ConfigError(f"two tools are named {tool.name!r:.80}")
            self._tools[tool.name] = tool
        if len(self._tools) > TOOLS_MAX:
            raise ConfigError(f"{len(self._tools)} tools: at most {TOOLS_MAX}")

    @classmethod
    @asynccontextmanager
    async def of(cls, table: Mapping[str, Any], run: RunContext) -> AsyncIterator[Toolbox]:
        """Open the tools of an agent, as ``check_tools`` found them; what they started is gone at the end.

        Raises:
            ConfigError: a function that is not there any more, a name twice.
            RunError: an MCP server that cannot be reached.
        """
        tools = [_bound(target, run) for target in python_targets(table)]
        async with AsyncExitStack() as stack:
            if table.get("mcp"):
                found = await _mcp().mcp_tools(
                    table["mcp_tables"], _names(table, "mcp"), stack, run, table["processes"]
                )
                tools += _allowed(found, _names(table, "mcp_allow"), _names(table, "mcp_deny"))
            yield cls(tools, run, timeout_s=timeout_of(table))

    def specs(self) -> list[Tool]:
        """All tools, in the order in which they were named."""
        return list(self._tools.values())

    def find(self, name: str) -> Tool | None:
        """The tool of a name, as a model or as an event says it."""
        return self._tools.get(name) or self._tools.get(model_name(name))

    async def call(
        self, tool_call_id: str, name: str, tool_input: Any
    ) -> AsyncIterator[dict[str, Any] | ToolResult]:
        """Do one call: its events, and as the last item what the model is told."""
        tool = self.find(name)
        known = name if tool is None else tool.policy_name
        said = {"tool_call_id": tool_call_id, "tool_name": known, "tool_input": tool_input}
        refusal = self._refusal(tool, name, tool_input)
        if refusal is None:
            refusal = await self._permission(known, tool_input, tool_call_id)
        if tool is None or refusal is not None:
            result = refusal or ToolResult("", is_error=True)
        else:
            yield {"type": "tool_call_started", "data": dict(said)}
            result = await self._result(tool, tool_input)
        if result.is_error:
            yield {"type": "tool_call_failed",
                   "data": {**said, "tool_output": result.text, "error": result.text[:2_000]}}
        else:
            yield {"type": "tool_call_completed", "data": {**said, "tool_output": result.text}}
        yield result

    def _refusal(self, tool: Tool | None, name: str, tool_input: Any) -> ToolResult | None:
        if tool is None:
            return ToolResult(f"no tool {name!r:.80}{nearest_name(name, self._tools)}", is_error=True)
        if not isinstance(tool_input, dict):
            return ToolResult("the tool's input is no JSON object", is_error=True)
        return None

    async def _permission(self, name: str, tool_input: Any, tool_call_id: str) -> ToolResult | None:
        try:
            await self._run.permit(name, tool_input, tool_call_id=tool_call_id)
        except (RunError, MeshError) as exc:
            return ToolResult(exc.message, is_error=True)
        return None

    async def _result(self, tool: Tool, tool_input: dict[str, Any]) -> ToolResult:
        """The tool's own task, so that its cancellation is told from the run's."""
        task: asyncio.Task[Any] = asyncio.ensure_future(_called(tool, tool_input))
        try:
            late = not (await asyncio.wait({task}, timeout=self._timeout_s))[0]
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=STOP_S)
        if late or task.cancelled():
            why = f"did not end within {self._timeout_s:g} s" if late else "cancelled itself"
            return ToolResult(f"{tool.name} {why}", is_error=True)
        answer: ToolResult = task.result()
        return answer


async def _called(tool: Tool, tool_input: dict[str, Any]) -> ToolResult:
    try:
        return _shortened(result_of(await tool.call(tool_input)))
    except asyncio.CancelledError:
        raise
    except BaseException as exc:  # noqa: BLE001  rule 2: it is somebody's function, and may even call sys.exit
        message = exc.message if isinstance(exc, MeshError) else f"{type(exc).__name__}: {exc}"
        return ToolResult(message[:TEXT_CHARS_MAX], is_error=True)


def result_of(returned: Any) -> ToolResult:
    """What a tool returned, as text: a str itself, None nothing, all else its JSON.

    Raises:
        RunError: it is no JSON.
    """
    if isinstance(returned, ToolResult):
        return returned
    if isinstance(returned, str):
        return ToolResult(returned.encode(errors="replace").decode())
    if returned is None:
        return ToolResult("")
    try:
        return ToolResult(json.dumps(plain(returned, "the result"), ensure_ascii=False))
    except (MeshError, TypeError) as exc:
        raise RunError(f"the tool returned what is no JSON: {exc}", code="tool_execution_failed") from exc


def _shortened(result: ToolResult) -> ToolResult:
    if len(result.text) <= TEXT_CHARS_MAX:
        return result
    text = _cut(result.text)
    images = [block for block in result.blocks if block.get("type") != "text"]
    return ToolResult(text, result.is_error, images and [{"type": "text", "text": text}, *images])


def _cut(text: str) -> str:
    return text[:TEXT_CHARS_MAX] + f"\n[cut: {TEXT_CHARS_MAX} of {len(text)} characters]"


def _bound(target: str, run: RunContext) -> Tool:
    plan = plan_of(target)
    return Tool(plan.name, plan.description, plan.schema, plan.bound(run))


def _allowed(tools: Iterable[Tool], allow: list[str], deny: list[str]) -> list[Tool]:
    """What the lists leave of the servers' tools. They name ``server__tool``, and may have ``*``."""
    return [
        tool for tool in tools
        if (not allow or _matches(tool, allow)) and not _matches(tool, deny)
    ]


def _matches(tool: Tool, patterns: list[str]) -> bool:
    return any(
        fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in (tool.name, tool.policy_name)
    )


def model_name(name: str) -> str:
    """A tool's name as a model knows it, from the one that events know."""
    return name.removeprefix(MCP_PREFIX)


def python_targets(table: Mapping[str, Any]) -> list[str]:
    """The functions that a table names."""
    return _names(table, "tools")


def timeout_of(table: Mapping[str, Any]) -> float:
    """How long one call may take.

    Raises:
        ConfigError: no number above 0.
    """
    found = checked(table, "tool_timeout_s", (int, float), TIMEOUT_S)
    if not 0 < found <= 86_400:
        raise ConfigError(f"tool_timeout_s = {found!r:.80}: expected a number above 0, of a day at most")
    return float(found)


def _names(table: Mapping[str, Any], key: str) -> list[str]:
    names = checked(table, key, (list,), [])
    if not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{key} = {names!r:.80}: expected a list of texts")
    return list(names)


def check_tools(table: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """The tool keys of an agent's table, proven when the agent is built, for ``Toolbox.of``. Loads functions.

    Empty when the agent has no tools.

    Raises:
        ConfigError: a function that is not there, a name twice, a wrong setting, an MCP server that no
            ``[mcp.NAME]`` of the config describes.
        Exception: whatever a function's module raises while it is imported.
    """
    timeout_of(table)
    names = [plan_of(target, fresh=place.fresh).name for target in python_targets(table)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two tools are named {twice!r:.80}")
    _names(table, "mcp_allow")
    _names(table, "mcp_deny")
    servers = _names(table, "mcp")
    for server in servers:
        if server not in place.mcp:
            raise ConfigError(f"mcp: no [mcp.{server}] in the config{nearest_name(server, place.mcp)}")
    if not names and not servers:
        return {}
    if servers:
        mcp = _mcp()
        for server in servers:
            mcp.check_server(server, place.mcp[server])
    found = {key: table[key] for key in TOOL_KEYS if key in table}
    return {**found, "mcp_tables": place.mcp, "processes": place.processes}


def _mcp() -> Any:
    """What speaks to MCP servers; nobody else loads its SDK."""
    try:
        return import_module("mesh.providers.mcp")
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] == "mesh":
            raise
        raise ConfigError(f"mcp needs the library {exc.name!r}: {installing('mcp')}") from exc


__all__ = [
    "MCP_PREFIX", "STOP_S", "TEXT_CHARS_MAX", "TIMEOUT_S", "TOOLS_MAX", "TOOL_KEYS", "Tool", "ToolResult",
    "Toolbox", "check_tools", "model_name", "python_targets", "result_of", "timeout_of",
]
