"""``shell``: a command in a process group of its own, both pipes streamed, nothing left behind.

The prompt is the command line, given to ``shell -c``. An input ``{"command": str, "args": [...]}`` is
executed directly, without a shell; it may also hold ``cwd`` and ``env``.

Keys of the agent's table: ``cwd``, ``env``, ``shell``, ``timeout_s``, ``max_output_bytes`` (per pipe; what
comes after it is read and counted, not kept and not streamed), ``allowed_commands``, ``denied_commands``,
``success_exit_codes``. ``provider_opts`` of a call may hold ``cwd``, ``env`` and ``timeout_s``.

Output: ``content`` (stdout), ``stderr``, ``exit_code``, ``truncated``, ``duration_ms``. A death by signal n
is exit code 128 + n, as shells say it; a timeout is 124.

Allow and deny lists compare the name of each command of the line. They are a fence against accidents,
not a sandbox: whoever may run ``python`` may run anything.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from mesh.core.commandline import refused_command
from mesh.errors import ConfigError
from mesh.providers.base import (
    STREAMING,
    Output,
    Piece,
    ProviderFailure,
    RunContext,
    as_failure,
    capabilities_of,
    check_keys,
    check_options,
    checked,
    provider_error,
    usage_mode_of,
)
from mesh.providers.execution import Command, Execution, Processes

TIMEOUT_S = 3_600.0
OUTPUT_BYTES = 1_048_576
#: Every process of a run carries its id in this variable, whatever it does to its parent or group.
MARK = "MESH_RUN"
_KEYS = (
    "cwd", "env", "shell", "timeout_s", "max_output_bytes", "allowed_commands", "denied_commands",
    "success_exit_codes",
)
#: What a call may say too.
_CALL_KEYS = ("cwd", "env", "timeout_s")
_COMMAND_EXECUTION = {"name": "command_execution", "type": "code_execution"}


class ShellProvider:
    """Executes commands."""

    name = "shell"
    CAPABILITIES = (_COMMAND_EXECUTION, STREAMING)
    enforces = frozenset(("tools_before", "approvals"))
    tested = "real commands"

    def __init__(self, table: Mapping[str, Any], processes: Processes) -> None:
        check_keys(table, _KEYS)
        self.capabilities = capabilities_of(table, self.CAPABILITIES)
        self.idempotent: bool = checked(table, "idempotent", (bool,), False)
        self.usage_mode = usage_mode_of(table)
        self._processes = processes
        self._shell: str = checked(table, "shell", (str,), "/bin/sh")
        self._defaults = {key: table[key] for key in _CALL_KEYS if key in table}
        _placed(self._defaults)
        self._bytes_max: int = checked(table, "max_output_bytes", (int,), OUTPUT_BYTES)
        self._allowed = _names(table, "allowed_commands")
        self._denied = _names(table, "denied_commands")
        self._success = _exit_codes(table)

    def started(self, run: RunContext) -> dict[str, Any]:
        """The command and its folder; refuses what the lists forbid before anything is executed."""
        command = self._command(run)
        refusal = refused_command(
            command.argv[:1] if command.direct else command.shown, self._allowed, self._denied
        )
        if refusal is not None:
            raise ProviderFailure(refusal, code="policy_violation")
        return {"command": command.shown, "cwd": command.cwd}

    async def run(self, run: RunContext) -> AsyncIterator[Piece]:
        """Stream what the command writes; at the end, or when closed, all its processes are gone."""
        command = self._command(run)
        await run.permit("bash", {"command": command.shown, "cwd": command.cwd})
        execution = Execution(self._processes, run.run_id, self._bytes_max)
        try:
            await execution.start(command)
            async for stream, text in execution.pieces():
                yield {"type": "message_streamed", "data": {"content": text, "stream": stream}}
        finally:
            await execution.end()
        yield self._result(execution)

    def _result(self, execution: Execution) -> Output:
        code, duration_ms = execution.exit_code, execution.duration_ms
        output = {
            "content": execution.stdout, "stderr": execution.stderr, "exit_code": code,
            "truncated": execution.truncated, "duration_ms": duration_ms,
        }
        if execution.timed_out or code not in self._success:
            raise _failure(execution, output)
        return Output(
            data=output,
            completion={"stop_reason": f"exit_code_{code}", "exit_code": code, "duration_ms": duration_ms},
        )

    def _command(self, run: RunContext) -> Command:
        with as_failure():
            return self._asked(run)

    def _asked(self, run: RunContext) -> Command:
        check_options(run.options, _CALL_KEYS)
        given = run.input if isinstance(run.input, dict) and run.input.get("command") is not None else {}
        placed = {key: run.options[key] for key in _CALL_KEYS if key in run.options}
        asked = _placed(placed | {key: given[key] for key in _CALL_KEYS if key in given})
        placed = self._defaults | asked
        line = given.get("command", run.prompt)
        if not isinstance(line, str) or not line.strip():
            raise ConfigError("a command line is needed: a prompt, or {\"command\": ...}")
        argv = [line, *_texts(given.get("args", []))] if given else [self._shell, "-c", line]
        if any("\0" in text for text in argv):
            raise ConfigError("a command line has no NUL characters")
        return Command(
            argv=argv, shown=" ".join(argv) if given else line,
            cwd=_folder(placed.get("cwd"), run.workspace, by_call=bool(asked.get("cwd"))),
            env={**os.environ, **self._defaults.get("env", {}), **placed.get("env", {}), MARK: run.run_id},
            timeout_s=float(placed.get("timeout_s", TIMEOUT_S)), direct=bool(given),
        )


def _folder(asked: str | None, workspace: str | None, *, by_call: bool) -> str:
    """What the call says, seen from its workspace; else the workspace; else the agent's; else the node's."""
    if workspace is None:
        return str(Path(asked or Path.cwd()).expanduser())
    return str(Path(workspace, Path(asked).expanduser())) if asked and by_call else workspace


def _placed(table: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a table, a call and an input may all give, proven."""
    checked(table, "cwd", (str,), None)
    if checked(table, "timeout_s", (int, float), TIMEOUT_S) <= 0:
        raise ConfigError("timeout_s: expected a number more than 0")
    env = checked(table, "env", (dict,), {})
    texts = all(isinstance(key, str) and isinstance(value, str) for key, value in env.items())
    if not texts or any("\0" in key + value or "=" in key for key, value in env.items()):
        raise ConfigError("env: expected a table of texts")
    return dict(table)


def _names(table: Mapping[str, Any], key: str) -> frozenset[str] | None:
    names = checked(table, key, (list,), None)
    return None if names is None else frozenset(_texts(names))


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ConfigError(f"{values!r:.80}: expected a list of texts")
    return values


def _exit_codes(table: Mapping[str, Any]) -> frozenset[int]:
    codes = checked(table, "success_exit_codes", (list,), [0])
    if not all(type(code) is int for code in codes):
        raise ConfigError(f"success_exit_codes = {codes!r:.80}: expected a list of whole numbers")
    return frozenset(codes)


def _failure(execution: Execution, output: dict[str, Any]) -> ProviderFailure:
    code, stderr = execution.exit_code, execution.stderr
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "")
    if execution.timed_out:
        kind, error = "timeout", "command_timeout"
        message = f"the command ran over its {execution.command.timeout_s:g} s"
    elif code == 127:
        kind, error, message = "process_error", "command_not_found", f"command not found: {last}".rstrip(": ")
    else:
        kind, error = "transport_exit", "command_failed"
        message = f"the command ended with exit code {code}" + (f": {last[:500]}" if last else "")
    return ProviderFailure(
        message, code=error, details={"exit_code": code}, output=output,
        provider_error=provider_error("shell", kind, message, exit_code=code, stderr=stderr),
    )


__all__ = ["MARK", "OUTPUT_BYTES", "ShellProvider"]
