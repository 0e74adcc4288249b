"""``codex``: OpenAI's coding agent, by ``codex exec --json``.

Keys of the agent's table beside those of ``cli``: ``sandbox`` (read-only, workspace-write,
danger-full-access), ``approval_mode`` (never, on-request, untrusted), ``config`` (a table, each value given
as ``-c key=value``).

Codex runs its tools itself and says so meanwhile: a policy observes them, and stops the run; what bounds them
beforehand is the sandbox. Both modes are said anew at each resume, since Codex would else take those of the
thread or of its own config. Without ``sandbox`` it is read-only.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from mesh.core.account import USED_BEFORE
from mesh.core.continuation import SESSION_RESUME
from mesh.errors import ConfigError
from mesh.providers.base import (
    Output,
    Piece,
    RunContext,
    capabilities_of,
    checked,
    usage_mode_of,
)
from mesh.providers.cli import Table, one_of, prompt_of, used_before
from mesh.providers.execution import Command
from mesh.providers.images import VISION, image_files, images_of
from mesh.providers.kinds import Place
from mesh.providers.program import Facts, Program

FACTS = Facts(
    "codex", "npm install -g @openai/codex", "codex login (or set CODEX_API_KEY)", ("login", "status")
)
SANDBOXES = ("read-only", "workspace-write", "danger-full-access")
APPROVALS = ("never", "on-request", "untrusted")
#: What would undo the two modes, by an argument or by the config. Codex takes the last word for the truth, so
#: such a one, hidden in ``args``, would hold against what the run's first event says.
_SAID_ELSEWHERE = frozenset((
    "-s", "--sandbox", "--full-auto", "--yolo", "--approve-for-me", "sandbox_mode", "approval_policy",
    "--dangerously-bypass-approvals-and-sandbox",
))


class CodexProvider:
    """Runs one thread's turn per run."""

    name = "codex"
    enforces = frozenset({"tools_observed", "budget"})

    CAPABILITIES = (
        SESSION_RESUME, VISION,
        *({"name": name, "type": "tool"} for name in ("bash", "file_operations", "mcp")),
    )
    tested = "recorded output, and the real program against a scripted server where it is on PATH"

    def __init__(self, table: Mapping[str, Any], place: Place) -> None:
        self._table = Table(table, FACTS, ("sandbox", "approval_mode", "config"))
        self.capabilities = capabilities_of(table, self.CAPABILITIES)
        self.idempotent: bool = checked(table, "idempotent", (bool,), False)
        self.usage_mode = usage_mode_of(table)
        self._processes = place.processes
        self.sandbox = one_of(table, "sandbox", SANDBOXES, SANDBOXES[0])
        self.approval_mode = one_of(table, "approval_mode", APPROVALS, APPROVALS[0])
        config = checked(table, "config", (dict,), {})
        for word in (*self._table.args, *config):
            if word.partition("=")[0] in _SAID_ELSEWHERE:
                why = "say it by sandbox and approval_mode: they hold at a resume too"
                raise ConfigError(f"{word:.60}: {why}")
        self._config = [f"{key}={_toml(value)}" for key, value in config.items()]

    def started(self, run: RunContext) -> dict[str, Any]:  # noqa: ARG002
        """The bounds under which its tools run."""
        return {"sandbox": self.sandbox, "approval_mode": self.approval_mode}

    async def run(self, run: RunContext) -> AsyncIterator[Piece]:
        """Yield what the turn says; at the end, or when closed, nothing of it is left."""
        prompt = prompt_of(run)
        turn = _Turn(used_before(run, self.name))
        program = Program(self._processes, run.run_id, self.name, FACTS)
        with image_files(images_of(run), self.name) as images:
            try:
                await program.start(self._command(run, images), prompt.encode(errors="replace"))
                async for message in program.messages():
                    for piece in turn.pieces(message):
                        yield piece
                    if turn.over:
                        program.leave()
            finally:
                await program.end()
        if turn.failed is not None or not turn.over:
            raise program.failure(turn.failed or turn.error)
        yield turn.output()

    def _command(self, run: RunContext, images: list[str]) -> Command:
        settings = self._table.of(run)
        args = ["exec"] if run.resume is None else ["exec", "resume"]
        # As config in both cases: ``resume`` has no --sandbox, and what is not said is taken from the thread.
        modes = (f'sandbox_mode="{self.sandbox}"', f'approval_policy="{self.approval_mode}"')
        for line in (*modes, *self._config):
            args += ["-c", line]
        if settings.get("model"):
            args += ["-m", settings["model"]]
        args += (f"--image={path}" for path in images)
        args += ["--json", "--skip-git-repo-check", *self._table.args]
        if run.resume is not None:
            args += ["--", run.resume]
        return self._table.command(self.name, run, settings, [*args, "-"])


class _Turn:
    """What one turn says, as pieces."""

    def __init__(self, before: Mapping[str, int]) -> None:
        self.over = False
        self.failed: str | None = None
        self.error = ""  #: the last one that it told; it may have gone on after it
        self._before = before
        self._usage: dict[str, int] = {}
        self._answer = ""
        self._unsaid: list[Piece] = []  #: the last message, said whole when it was not the last word
        self._open: set[str] = set()
        self._ignored = 0

    def pieces(self, message: dict[str, Any]) -> list[Piece]:
        """The pieces of one line. What is unknown is counted: newer versions say more."""
        item = message.get("item")
        match message.get("type"):
            case "thread.started":
                return [{"type": "run_started", "data": {"provider_session_id": message.get("thread_id")}}]
            case "turn.started" | "item.updated":
                return []
            case "turn.completed":
                self.over = True
                return self._used(message.get("usage"))
            case "turn.failed":
                self.failed = _message(message.get("error")) or self.error or "the turn failed"
                self.over = True
                return []
            case "error":
                self.error = _message(message)
                return [{"type": "error_occurred", "data": {"error_message": self.error}}]
            case "item.started" | "item.completed":
                if isinstance(item, dict):
                    return self._item(item, done=message["type"] == "item.completed")
        self._ignored += 1
        return []

    def _item(self, item: dict[str, Any], *, done: bool) -> list[Piece]:
        kind = item.get("type")
        if kind == "agent_message" and done:
            text, before = _text(item.get("text")), self._unsaid
            self._answer = text
            self._unsaid = [{"type": "message_received", "data": {"role": "assistant", "content": text}}]
            return [*before, text]
        if kind == "error":
            return [{"type": "error_occurred", "data": {"error_message": _message(item)}}]
        if kind in ("agent_message", "reasoning", "todo_list"):
            return []
        before, self._unsaid = self._unsaid, []
        return [*before, *self._tool(item, done=done)]

    def _tool(self, item: dict[str, Any], *, done: bool) -> list[Piece]:
        """A tool's call, at its start or its end; some are told only at their end."""
        call_id = _text(item.get("id"))
        data = {"tool_call_id": call_id, **_named(item)}
        started: list[Piece] = [] if call_id in self._open else [{"type": "tool_call_started", "data": data}]
        if not done:
            self._open.add(call_id)
            return started
        self._open.discard(call_id)
        failed = item.get("status") in ("failed", "declined")
        ended = "tool_call_failed" if failed else "tool_call_completed"
        return [*started, {"type": ended, "data": {**data, "tool_output": _output(item)}}]

    def _used(self, usage: Any) -> list[Piece]:
        """Codex counts from the beginning of the thread, runs before this one included."""
        total = {name: usage[name] for name in _COUNTS if type(usage.get(name)) is int} \
            if isinstance(usage, dict) else {}
        self._usage = total
        used = {name: max(0, count - self._before.get(name, 0)) for name, count in total.items()}
        cached = used.pop("cached_input_tokens", 0)
        if "input_tokens" in used:
            used["input_tokens"] = max(0, used["input_tokens"] - cached)
        used["cache_read_tokens"] = cached
        return [{"type": "token_usage_updated", "data": used}, {"type": "turn_completed", "data": {}}]

    def output(self) -> Output:
        """What the run gives: Codex's last message."""
        return Output(
            data={"content": self._answer}, provider_metadata={USED_BEFORE: self._usage},
            completion={"unknown_messages": self._ignored} if self._ignored else {},
        )


_COUNTS = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_output_tokens")


def _named(item: dict[str, Any]) -> dict[str, Any]:
    match item.get("type"):
        case "command_execution":
            return {"tool_name": "bash", "tool_input": {"command": item.get("command")}}
        case "file_change":
            return {"tool_name": "apply_patch", "tool_input": {"changes": item.get("changes")}}
        case "mcp_tool_call":
            name = f"mcp__{item.get('server')}__{item.get('tool')}"
            return {"tool_name": name, "tool_input": item.get("arguments")}
        case "web_search":
            return {"tool_name": "web_search", "tool_input": {"query": item.get("query")}}
    rest = {key: value for key, value in item.items() if key not in ("id", "type", "status")}
    return {"tool_name": _text(item.get("type")) or "unknown", "tool_input": rest}


def _output(item: dict[str, Any]) -> Any:
    match item.get("type"):
        case "command_execution":
            return {"output": item.get("aggregated_output"), "exit_code": item.get("exit_code")}
        case "mcp_tool_call":
            return item.get("error") or item.get("result")
    return item.get("status")


def _message(about: Any) -> str:
    text = about.get("message") if isinstance(about, dict) else about
    return text if isinstance(text, str) else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _toml(value: Any) -> str:
    """A value as ``-c`` reads it."""
    if isinstance(value, bool | int | float | str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    raise ConfigError(f"config: {value!r:.60} has no place in a codex config")


__all__ = ["APPROVALS", "FACTS", "SANDBOXES", "CodexProvider"]
