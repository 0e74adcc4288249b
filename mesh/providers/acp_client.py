"""What an ACP agent may ask of us while it works: permission, files and terminals, inside its folder only.

Rules of this file:

1. Policy and human are asked before anything is read, written or executed: as ``read_file``, ``write_file``,
   ``bash``, and for what the agent does itself as the kind of its call (``edit``, ``execute`` ...).
2. A path is resolved first, links included; one that leaves the folder is refused.
3. Without a policy there is nobody to ask: what the agent asks a human is refused, unless its table says
   ``permission_mode = "full_auto"``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mesh.errors import MeshError
from mesh.providers.base import Piece, ProviderFailure, RunContext
from mesh.providers.channel import Channel
from mesh.providers.cli import MARK
from mesh.providers.execution import Command, Execution, Processes

FILE_BYTES_MAX = 16 * 1024 * 1024
TERMINALS_MAX = 16
TERMINAL_BYTES_MAX = 1024 * 1024
#: Tool calls that were announced and did not end yet.
CALLS_MAX = 1_000
_DAY_S = 86_400.0
_ENDS = {"completed": "tool_call_completed", "failed": "tool_call_failed"}


class Client:
    """The client's side of one session. Called by the acp package, each request in a task of its own."""

    def __init__(
        self, acp: Any, run: RunContext, channel: Channel, processes: Processes, *, folder: str, allow: bool
    ) -> None:
        self._acp = acp
        self._run = run
        self._channel = channel
        self._processes = processes
        self._folder = Path(folder).resolve()
        self._allow = allow
        self._wanted: dict[str, dict[str, Any]] = {}
        self._begun: dict[str, dict[str, Any]] = {}
        self._terminals: dict[str, _Terminal] = {}
        self._starting = 0  #: terminals that are asked for, or about to be there
        self.listening = False  #: the history that a loaded session repeats is not this run's
        self.failed: ProviderFailure | None = None  #: what it said passed a bound

    # --- what it says ---

    async def session_update(self, session_id: str, update: Any, **_: Any) -> None:
        """One update; thoughts, plans and commands are not told."""
        if not self.listening:
            return
        match update.session_update:
            case "agent_message_chunk" if getattr(update.content, "type", "") == "text":
                await self._channel.put(update.content.text)
            case "tool_call" | "tool_call_update":
                await self._channel.put(*self._called(update))

    def _called(self, update: Any) -> list[Piece]:
        call_id = update.tool_call_id
        if call_id not in self._begun:
            if call_id not in self._wanted and len(self._wanted) + len(self._begun) >= CALLS_MAX:
                why = f"the agent has more than {CALLS_MAX} tool calls open"
                self.failed = ProviderFailure(why, code="limit_exceeded")
                return []
            given = {"tool_name": update.kind, "tool_input": update.raw_input, "title": update.title}
            known = self._wanted.setdefault(call_id, {"tool_call_id": call_id, "tool_name": "other"})
            known.update({key: value for key, value in given.items() if value is not None})
            if self._run.guard is not None and update.status in (None, "pending"):
                return []  # it begins when it was permitted
        pieces = self._begins(call_id)
        if update.status in _ENDS and call_id in self._begun:
            data = self._begun.pop(call_id)
            ended = {**data, "tool_output": _output(update)}
            pieces.append({"type": _ENDS[update.status], "data": ended})
        return pieces

    def _begins(self, call_id: str) -> list[Piece]:
        data = self._wanted.pop(call_id, None)
        if data is None:
            return []
        self._begun[call_id] = data
        return [{"type": "tool_call_started", "data": data}]

    # --- what it asks ---

    async def request_permission(
        self, session_id: str, tool_call: Any, options: list[Any], **_: Any
    ) -> Any:
        """A human's word, or the policy's, as one of the agent's options."""
        call_id = tool_call.tool_call_id
        known = self._wanted.get(call_id, {})
        name = tool_call.kind or known.get("tool_name") or "other"
        given = tool_call.raw_input if tool_call.raw_input is not None else known.get("tool_input")
        may = self._allow
        if self._run.guard is not None:
            may = await self._may(name, given or {"title": tool_call.title}, call_id)
        if may:
            await self._channel.put(*self._begins(call_id))
        wanted = ("allow_once", "allow_always") if may else ("reject_once", "reject_always")
        chosen = next((o.option_id for kind in wanted for o in options if o.kind == kind), None)
        outcome = {"outcome": "selected", "optionId": chosen} if chosen else {"outcome": "cancelled"}
        return self._acp.RequestPermissionResponse.model_validate({"outcome": outcome})

    async def _may(self, tool: str, tool_input: Any, call_id: str | None = None) -> bool:
        try:
            await self._run.permit(tool, tool_input, tool_call_id=call_id)
        except MeshError:
            return False
        return True

    async def _permit(self, tool: str, tool_input: Any) -> None:
        if not await self._may(tool, tool_input):
            raise self._refused(f"{tool} was not permitted")

    def _refused(self, why: str) -> Exception:
        refusal: Exception = self._acp.RequestError.invalid_params({"message": why})
        return refusal

    def _inside(self, path: str) -> Path:
        found = (self._folder / path).resolve()
        if not found.is_relative_to(self._folder):
            raise self._refused(f"{path:.200} is outside of the run's folder")
        return found

    async def read_text_file(
        self, session_id: str, path: str, line: int | None = None, limit: int | None = None, **_: Any
    ) -> Any:  # fmt: skip
        """A file of the folder, or ``limit`` lines of it from ``line`` (1 is the first)."""
        file = self._inside(path)
        await self._permit("read_file", {"path": str(file)})
        text = await self._of_disk(_read, file)
        if line is not None or limit is not None:
            first = max(0, (line or 1) - 1)
            lines = text.splitlines(keepends=True)
            text = "".join(lines[first : None if limit is None else first + limit])
        return self._acp.ReadTextFileResponse(content=text)

    async def write_text_file(self, session_id: str, path: str, content: str, **_: Any) -> None:
        """Write a file of the folder."""
        file = self._inside(path)
        await self._permit("write_file", {"path": str(file), "content": content})
        await self._of_disk(_write, file, content)

    async def _of_disk(self, work: Any, *args: Any) -> Any:
        try:
            return await asyncio.to_thread(work, *args)
        except (OSError, ValueError) as exc:
            raise self._refused(str(exc)) from exc

    async def create_terminal(
        self, session_id: str, command: str, args: list[str] | None = None, env: list[Any] | None = None,
        cwd: str | None = None, output_byte_limit: int | None = None, **_: Any,
    ) -> Any:
        """Start a command in the folder."""
        if len(self._terminals) + self._starting >= TERMINALS_MAX:
            raise self._refused(f"{TERMINALS_MAX} terminals are open")
        self._starting += 1
        try:
            name = await self._start(command, args or [], env or [], cwd, output_byte_limit)
        finally:
            self._starting -= 1
        return self._acp.CreateTerminalResponse(terminal_id=name)

    async def _start(
        self, command: str, args: list[str], env: list[Any], cwd: str | None, limit: int | None
    ) -> str:
        place = self._inside(cwd) if cwd else self._folder
        argv = [command, *args]
        await self._permit("bash", {"command": " ".join(argv), "cwd": str(place)})
        values = {variable.name: variable.value for variable in env}
        terminal = _Terminal(self._processes, self._run.run_id, limit)
        try:
            await terminal.start(argv if args else ["/bin/sh", "-c", command], str(place), values)
        except MeshError as exc:
            await terminal.end()
            raise self._refused(exc.message) from exc
        except BaseException:
            await terminal.end()
            raise
        name = f"terminal-{len(self._terminals) + 1}-{os.urandom(4).hex()}"
        self._terminals[name] = terminal
        return name

    def _terminal(self, name: str) -> _Terminal:
        if name not in self._terminals:
            raise self._refused(f"no terminal {name!r:.80}")
        return self._terminals[name]

    async def terminal_output(self, session_id: str, terminal_id: str, **_: Any) -> Any:
        """What it said so far."""
        terminal = self._terminal(terminal_id)
        status = None if terminal.exit_code is None else {"exitCode": terminal.exit_code}
        return self._acp.TerminalOutputResponse.model_validate({
            "output": terminal.output, "truncated": terminal.truncated, "exitStatus": status,
        })

    async def wait_for_terminal_exit(self, session_id: str, terminal_id: str, **_: Any) -> Any:
        """Its exit code, when it ended."""
        terminal = self._terminal(terminal_id)
        await terminal.over.wait()
        return self._acp.WaitForTerminalExitResponse(exit_code=terminal.exit_code)

    async def kill_terminal(self, session_id: str, terminal_id: str, **_: Any) -> None:
        """End the command; what it said stays readable."""
        await self._terminal(terminal_id).end()

    async def release_terminal(self, session_id: str, terminal_id: str, **_: Any) -> None:
        """End the command and forget it."""
        await self._terminal(terminal_id).end()
        self._terminals.pop(terminal_id, None)

    async def end(self) -> None:
        """Leave no command of it."""
        await asyncio.gather(*(terminal.end() for terminal in self._terminals.values()))


class _Terminal:
    """One command of an agent."""

    def __init__(self, processes: Processes, run_id: str, limit: int | None) -> None:
        most = min(limit or TERMINAL_BYTES_MAX, TERMINAL_BYTES_MAX)
        self._run_id = run_id
        self._execution = Execution(processes, f"{run_id}.{os.urandom(4).hex()}", most, provider="acp")
        self._task: asyncio.Task[None] | None = None
        self._said: list[str] = []
        self.over = asyncio.Event()

    async def start(self, argv: list[str], cwd: str, env: Mapping[str, str]) -> None:
        own = {**os.environ, **env, MARK: self._run_id}
        await self._execution.start(Command(argv, " ".join(argv), cwd, own, _DAY_S, direct=True))
        self._task = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        try:
            async for _, text in self._execution.pieces():
                self._said.append(text)
        finally:
            self.over.set()

    @property
    def output(self) -> str:
        return "".join(self._said)

    @property
    def truncated(self) -> bool:
        return self._execution.truncated

    @property
    def exit_code(self) -> int | None:
        return self._execution.exit_code if self.over.is_set() else None

    async def end(self) -> None:
        await self._execution.end()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1.0)
        self.over.set()


def _read(file: Path) -> str:
    if file.stat().st_size > FILE_BYTES_MAX:
        raise ValueError(f"{file.name}: more than {FILE_BYTES_MAX} bytes")
    return file.read_text(encoding="utf-8", errors="replace")


def _write(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")


def _output(update: Any) -> Any:
    if update.raw_output is not None:
        return update.raw_output
    texts = (getattr(getattr(part, "content", None), "text", None) for part in update.content or [])
    return "\n".join(text for text in texts if text)


__all__ = ["CALLS_MAX", "FILE_BYTES_MAX", "TERMINALS_MAX", "TERMINAL_BYTES_MAX", "Client"]
