"""Tools of MCP servers, with the official SDK: programs that speak over stdin and stdout, and HTTP servers.

A server is a table of the config, which agents name (``mcp = ["files"]``):

    [mcp.files]                              [mcp.search]
    command = "mcp-server-files"             url = "https://example.org/mcp"
    args = ["/srv"]                          headers = { Authorization = "env:SEARCH_AUTHORIZATION" }
    env = { TOKEN = "env:FILES_TOKEN" }

also ``cwd``, ``start_timeout_s`` (30) and ``timeout_s`` of one call (60). A value ``env:NAME`` is taken from
the node's environment when the server starts.

Rules of this file:

1. A run has its own servers, from its first word to its end: no run sees what another left in one, and none
   outlives its run. A program leads a process group and carries a mark of the run (``execution``).
2. A server that dies fails the call that waits, which its model is told; the next call starts it again.
3. A program gets PATH, HOME and the like and its table's ``env``, not the node's keys.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import anyio
import httpx2
import mcp
import msgspec
from mcp.client.stdio import get_default_environment
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage

from mesh.errors import ConfigError, MeshError, RunError
from mesh.providers.base import RunContext, checked, from_environment, nearest_name
from mesh.providers.execution import Command, Processes
from mesh.providers.program import Facts, Program
from mesh.providers.tools import TOOLS_MAX, Tool, ToolResult

START_S = 30.0
TIMEOUT_S = 60.0
#: A program that hears the end of its stdin has this long before it is told by signals.
LEAVE_S = 0.2
#: How long a connection may take to end; then its task is cancelled.
CLOSE_S = 3.0
#: Models take names of so many characters.
NAME_CHARS_MAX = 64
_KEYS = ("command", "args", "env", "cwd", "url", "headers", "timeout_s", "start_timeout_s")
_BAD = re.compile(r"[^a-zA-Z0-9_-]")
#: Every process of a run carries its id in this variable (``shell``); a server's says which server it is too.
MARK = "MESH_RUN"
#: Of the variables of a node a server is given this one, by which what is left of it would be found.
NODE_MARK = "MESH_MARK"

Streams = tuple[Any, Any]


async def mcp_tools(
    tables: Mapping[str, Mapping[str, Any]], names: list[str], stack: AsyncExitStack, run: RunContext,
    processes: Processes,
) -> list[Tool]:
    """Start the servers of an agent for one run, all at once; ``stack`` ends them.

    Raises:
        RunError: ``provider_unavailable``: a server does not start or is not reached; says which and why.
    """
    servers = [Server(name, tables[name], run, processes) for name in names]
    for server in servers:
        stack.push_async_callback(server.close)
    found = await asyncio.gather(*(server.tools() for server in servers), return_exceptions=True)
    failed = next((one for one in found if isinstance(one, BaseException)), None)
    if failed is not None:
        raise failed
    return [tool for tools in found if isinstance(tools, list) for tool in tools]


def check_server(name: str, table: Mapping[str, Any]) -> None:
    """Prove a server's table.

    Raises:
        ConfigError: names the server and the key.
    """
    try:
        strange = next((key for key in table if key not in _KEYS), None)
        if strange is not None:
            raise ConfigError(f"unknown key {strange!r:.80}{nearest_name(strange, _KEYS)}")
        if ("command" in table) == ("url" in table):
            raise ConfigError("expected either command or url")
        for key in ("command", "cwd", "url"):
            checked(table, key, (str,), "")
        for key in ("env", "headers"):
            values = checked(table, key, (dict,), {})
            if not all(isinstance(value, str) for value in values.values()):
                raise ConfigError(f"{key}: expected a table of texts")
        if not all(isinstance(word, str) for word in checked(table, "args", (list,), [])):
            raise ConfigError("args: expected a list of texts")
        for key in ("timeout_s", "start_timeout_s"):
            if checked(table, key, (int, float), 1) <= 0:
                raise ConfigError(f"{key}: expected a number above 0")
    except ConfigError as exc:
        raise ConfigError(f"[mcp.{name}]: {exc.message}") from exc


class Server:
    """One server of one run."""

    def __init__(
        self, name: str, table: Mapping[str, Any], run: RunContext, processes: Processes
    ) -> None:
        self.name = name
        self._table, self._run, self._processes = table, run, processes
        self._timeout_s = float(table.get("timeout_s", TIMEOUT_S))
        self._connection: _Connection | None = None
        self._starting = asyncio.Lock()
        self._starts = 0

    async def tools(self) -> list[Tool]:
        """What it offers, page by page; a name that models do not take is made one."""
        found: list[Tool] = []
        cursor: str | None = None
        client = await self._client()
        for _ in range(TOOLS_MAX):  # a page may be empty
            page = await self._done(client.list_tools(cursor=cursor))
            found += [self._tool(tool) for tool in page.tools]
            cursor = page.next_cursor
            if not cursor:
                return found
            if len(found) >= TOOLS_MAX:
                break
        raise RunError(f"MCP server {self.name!r} does not end its list of tools: {len(found)} of at most "
                       f"{TOOLS_MAX}, and more to come", code="provider_unavailable")

    def _tool(self, tool: Any) -> Tool:
        async def call(tool_input: dict[str, Any]) -> ToolResult:
            return await self.call(tool.name, tool_input)

        name = _BAD.sub("_", f"{self.name}__{tool.name}")
        if len(name) > NAME_CHARS_MAX:
            name = name[:NAME_CHARS_MAX - 9] + "_" + blake2b(name.encode(), digest_size=4).hexdigest()
        schema = dict(tool.input_schema or {"type": "object", "properties": {}})
        return Tool(name, tool.description or tool.title or "", schema, call, self.name)

    async def call(self, name: str, tool_input: dict[str, Any]) -> ToolResult:
        """Call a tool, of a server that is started again when it died.

        Raises:
            RunError: it cannot be started, it died meanwhile, or it refused; its model is told.
        """
        client = await self._client()
        answer = await self._done(
            client.call_tool(name, tool_input, read_timeout_seconds=self._timeout_s)
        )
        return _result(answer)

    async def _done(self, step: Awaitable[Any]) -> Any:
        """Await an answer; what a broken connection means is said in our words."""
        connection = self._connection
        try:
            return await step
        except MCPError as exc:
            if connection is None or connection.usable:
                raise RunError(f"MCP server {self.name!r}: {exc.message}", code="tool_error") from exc
            why: Exception = exc
        except (MeshError, asyncio.CancelledError):
            raise
        except Exception as exc:  # noqa: BLE001  whatever a transport raises, the connection is not to be trusted
            why = exc
        if self._connection is connection:  # another call may have started it again meanwhile
            await self.close()
        told = connection.why if connection is not None else ""
        raise RunError(f"MCP server {self.name!r} died: {told or _shown(why)}", code="tool_error") from why

    async def _client(self) -> mcp.Client:
        async with self._starting:
            if self._connection is not None and not self._connection.usable:
                await self.close()
            if self._connection is None:
                self._starts += 1
                connection = self._connection = _Connection(self._open)
                try:
                    async with asyncio.timeout(self._start_s):
                        return await asyncio.shield(connection.ready)
                except TimeoutError:
                    why = f"it did not answer within {self._start_s:g} s"
                except asyncio.CancelledError:
                    raise
                except Exception as exc:  # noqa: BLE001  whatever it is, the server is not there
                    why = connection.why or _shown(exc)
                await self.close()
                raise RunError(f"MCP server {self.name!r} cannot be used: {why}", code="provider_unavailable",
                               details={"server": self.name})
            return await asyncio.shield(self._connection.ready)

    @property
    def _start_s(self) -> float:
        return float(self._table.get("start_timeout_s", START_S))

    async def close(self) -> None:
        """End the connection, and the program with all it started."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _open(self, connection: _Connection) -> Any:
        return self._http() if "url" in self._table else self._program(connection)

    @asynccontextmanager
    async def _http(self) -> AsyncIterator[Streams]:
        limits = httpx2.Timeout(self._start_s, read=max(self._timeout_s, self._start_s))
        headers = _resolved(self._table.get("headers", {}), self.name)
        async with (
            httpx2.AsyncClient(headers=headers, timeout=limits) as http,
            streamable_http_client(self._table["url"], http_client=http) as streams,
        ):
            yield streams

    @asynccontextmanager
    async def _program(self, connection: _Connection) -> AsyncIterator[Streams]:
        mark = f"{self._run.run_id}.{self.name}.{self._starts}"
        program = Program(self._processes, mark, "mcp", Facts(self.name, "", ""))
        try:
            await program.start(self._command(mark))
            async with _speaking(program, connection) as streams:
                yield streams
        finally:
            await program.end()

    def _command(self, run_mark: str) -> Command:
        table = self._table
        marks = {name: os.environ[name] for name in (NODE_MARK,) if name in os.environ} | {MARK: run_mark}
        env = {**get_default_environment(), **_resolved(table.get("env", {}), self.name), **marks}
        words = [table["command"], *table.get("args", [])]
        folder = str(Path(table.get("cwd") or self._run.workspace or Path.cwd()).expanduser())
        return Command(words, words[0], folder, env, self._start_s, direct=True, stdin=True)


class _Connection:
    """One life of a server. The SDK's contexts are entered and left in one task of their own."""

    def __init__(self, opened: Callable[[_Connection], Any]) -> None:
        self.why = ""  #: it ended by itself
        self.over = False
        self.ready: asyncio.Future[mcp.Client] = asyncio.get_running_loop().create_future()
        self._leave = asyncio.Event()
        self._task = asyncio.ensure_future(self._serve(opened))

    @property
    def usable(self) -> bool:
        """Whether calls may be made on it."""
        return not (self.over or self._task.done())

    async def _serve(self, opened: Callable[[_Connection], Any]) -> None:
        try:
            async with mcp.Client(opened(self)) as client:
                self.ready.set_result(client)
                await self._leave.wait()
        except BaseException as exc:
            self.over = True
            if not self.ready.done():
                self.ready.set_exception(_told(exc))
                self.ready.exception()  # seen, if nobody waits any more
            elif not isinstance(exc, Exception | BaseExceptionGroup):
                raise

    async def close(self) -> None:
        """Leave; a server that does not let go is left alone with its task cancelled."""
        self._leave.set()
        if not self.ready.done():
            self._task.cancel()
        await asyncio.wait({self._task}, timeout=CLOSE_S)
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=CLOSE_S)


@asynccontextmanager
async def _speaking(program: Program, connection: _Connection) -> AsyncIterator[Streams]:
    """The SDK's streams of messages over a program's lines."""
    heard, incoming = anyio.create_memory_object_stream[Any](0)
    outgoing, said = anyio.create_memory_object_stream[Any](0)
    ended = anyio.Event()

    async def listen() -> None:
        try:
            async with heard, aclosing(program.messages()) as messages:
                async for message in messages:
                    await heard.send(_read(message))
            connection.why = connection.why or program.failure("").message
        except MeshError as exc:
            connection.why = exc.message
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # nobody listens any more
        finally:
            connection.over = True
            ended.set()

    async def speak() -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            async with said:
                async for message in said:
                    text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                    await program.write_text(text + "\n")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        tasks.start_soon(speak)
        try:
            yield incoming, outgoing
        finally:
            program.close_stdin()
            with anyio.move_on_after(LEAVE_S, shield=True):
                incoming.close()
                await ended.wait()
            tasks.cancel_scope.cancel()
            outgoing.close()


def _read(message: dict[str, Any]) -> Any:
    try:
        return SessionMessage(mcp.types.jsonrpc_message_adapter.validate_python(message, by_name=False))
    except ValueError as exc:  # no JSON-RPC: the SDK counts it as noise
        return exc


def _told(exc: BaseException) -> Exception:
    """The one cause of what came out of task groups."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc if isinstance(exc, Exception) else RunError("it was stopped", code="cancelled")


def _shown(exc: BaseException) -> str:
    exc = _told(exc)
    return exc.message if isinstance(exc, MeshError) else f"{type(exc).__name__}: {exc}"[:500]


def _resolved(values: Mapping[str, str], server: str) -> dict[str, str]:
    """Texts with ``env:NAME`` in the place of secrets."""
    try:
        return from_environment(values, f"[mcp.{server}]")
    except ConfigError as exc:
        raise RunError(exc.message, code="config_error") from exc


def _result(answer: Any) -> ToolResult:
    """What a server answered, for a model: its texts, and its images as blocks."""
    texts: list[str] = []
    blocks: list[dict[str, Any]] = []
    for item in answer.content:
        if item.type == "text":
            texts.append(item.text)
            blocks.append({"type": "text", "text": item.text})
        elif item.type == "image":
            blocks.append({"type": "image", "data": item.data, "media_type": item.mime_type})
        elif item.type == "resource" and getattr(item.resource, "text", None) is not None:
            texts.append(item.resource.text)
        elif item.type == "resource_link":
            texts.append(f"{item.name}: {item.uri}")
        else:
            texts.append(f"[{item.type}, which is not shown]")
    if not texts and answer.structured_content is not None:
        texts.append(msgspec.json.encode(answer.structured_content).decode())
    images = any(block["type"] == "image" for block in blocks)
    if images and not texts:
        texts.append("[image]")
    return ToolResult("\n".join(texts), bool(answer.is_error), blocks if images else [])


__all__ = ["CLOSE_S", "LEAVE_S", "MARK", "NAME_CHARS_MAX", "START_S", "TIMEOUT_S", "Server", "check_server",
           "mcp_tools"]
