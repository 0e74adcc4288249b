"""``claude_code``: Claude Code, by the claude-agent-sdk.

Keys of the agent's table beside those of ``cli``: ``permission_mode`` (default, accept_edits, plan,
full_auto, dangerously_skip_permissions), ``max_turns``, ``max_budget_usd``, ``allowed_tools``,
``disallowed_tools``, ``setting_sources`` (user, project, local). A call may give ``max_turns`` and
``max_budget_usd``, too; of a policy's ``max_cost_usd`` what is left is passed on as the latter. Without
``program`` it is the one that the SDK brings along.

Under a policy every tool is asked for before it runs, whatever Claude's own rules allow: a hook sends each
call to the permission callback, and that asks ``run.permit``. Without a policy Claude's own rules hold, and
what they would ask a human is refused.

Our transcript is the truth, Claude's session a cache: it is resumed only when it knows all of the
conversation. A fork begins anew with the transcript, since the original's session may have gone on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from mesh.core.continuation import SESSION_RESUME
from mesh.core.usage import COST
from mesh.errors import ConfigError, MeshError
from mesh.providers.base import (
    STREAMING,
    Piece,
    ProviderFailure,
    RunContext,
    capabilities_of,
    checked,
    usage_mode_of,
)
from mesh.providers.channel import Channel
from mesh.providers.claude_talk import Talk
from mesh.providers.cli import Table, one_of, prompt_of, texts, used_before
from mesh.providers.conversation import Block, image_of
from mesh.providers.execution import Command
from mesh.providers.images import VISION, images_of
from mesh.providers.kinds import Place, library
from mesh.providers.program import Facts, Program

FACTS = Facts(
    "claude", "npm install -g @anthropic-ai/claude-code",
    "claude auth login (or set ANTHROPIC_API_KEY)", ("auth", "status"),
)
#: Our names of its modes.
MODES = {
    "default": "default", "accept_edits": "acceptEdits", "plan": "plan", "full_auto": "bypassPermissions",
    "dangerously_skip_permissions": "bypassPermissions",
}
_LIMITS: dict[str, tuple[type, ...]] = {"max_turns": (int,), "max_budget_usd": (int, float)}
#: The hook answers at once; one that came too late would count as no answer.
_HOOK_S = 86_400.0
_KEYS = ("permission_mode", *_LIMITS, "allowed_tools", "disallowed_tools", "setting_sources")
_ARGS = (
    "--output-format", "stream-json", "--verbose", "--input-format", "stream-json",
    "--include-partial-messages",
)


class ClaudeCodeProvider:
    """Runs one query per run, in a process of its own."""

    name = "claude_code"
    CAPABILITIES = (
        STREAMING, SESSION_RESUME, VISION, {"name": "system_prompts", "type": "prompt"},
        *({"name": name, "type": "tool"} for name in ("tool_use", "bash", "file_operations", "mcp")),
    )
    enforces = frozenset(("tools_before", "tools_observed", "approvals", "budget"))
    tested = "the real SDK on recorded output; the real program against a scripted server where it is on PATH"

    def __init__(self, table: Mapping[str, Any], place: Place) -> None:
        self._sdk = library("claude_agent_sdk", self.name)
        bundled = Path(self._sdk.__file__).parent / "_bundled" / FACTS.name
        program = {} if "program" in table or not bundled.is_file() else {"program": str(bundled)}
        self._table = Table({**table, **program}, FACTS, _KEYS, tuple(_LIMITS))
        self.capabilities = capabilities_of(table, self.CAPABILITIES)
        self.idempotent: bool = checked(table, "idempotent", (bool,), False)
        self.usage_mode = usage_mode_of(table)
        self._processes = place.processes
        self.mode = one_of(table, "permission_mode", tuple(MODES), "default") or "default"
        self._limits = _limits(table)
        self._fixed = [f"--model={table['model']}"] if table.get("model") else []
        for key, flag in (
            ("allowed_tools", "--allowedTools"), ("disallowed_tools", "--disallowedTools"),
            ("setting_sources", "--setting-sources"),
        ):
            if key in table:
                self._fixed.append(f"{flag}={','.join(texts(table, key))}")

    def started(self, run: RunContext) -> dict[str, Any]:  # noqa: ARG002
        """The mode under which its tools run."""
        return {"permission_mode": self.mode}

    async def run(self, run: RunContext) -> AsyncIterator[Piece]:
        """Yield what the query says; at the end, or when closed, nothing of it is left."""
        prompt = [{"type": "text", "text": prompt_of(run, system=False)}, *map(image_of, images_of(run))]
        program = Program(self._processes, run.run_id, self.name, FACTS)
        channel = Channel()
        talk = Talk(guarded=run.guard is not None, used_before=used_before(run, self.name))
        try:
            async with aclosing(channel.of(self._query(run, prompt, program, channel, talk))) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            await program.end()
        yield talk.output()

    async def _query(
        self, run: RunContext, prompt: list[Block], program: Program, channel: Channel, talk: Talk
    ) -> None:
        async def hear(message: dict[str, Any]) -> None:
            await channel.put(*talk.pieces(message))

        wire = _Wire(program, self._command(run), hear, self._sdk.ProcessError)
        client = self._sdk.ClaudeSDKClient(self._options(run, channel, talk), transport=wire)
        try:
            await client.connect(_prompts(prompt))
            async for _ in client.receive_messages():
                pass  # what it says was heard on the wire
        except Exception as exc:  # the SDK raises plain ones, too
            if wire.failed is not None:
                raise wire.failed from exc
            if talk.failed is None:
                raise program.failure(_told(exc)) from exc
        finally:
            await client.disconnect()
        if talk.failed is not None or not talk.over:
            raise program.failure(talk.failed or "", code=talk.code)

    def _options(self, run: RunContext, channel: Channel, talk: Talk) -> Any:
        """Without a policy nothing is asked; with one everything is."""
        sdk = self._sdk
        if run.guard is None:
            return sdk.ClaudeAgentOptions()

        async def may(tool: str, tool_input: dict[str, Any], about: Any) -> Any:
            call_id = about.tool_use_id
            try:
                await run.permit(tool, tool_input, tool_call_id=call_id)
            except MeshError as exc:
                await channel.put(*talk.denied(call_id, exc.message))
                return sdk.PermissionResultDeny(message=exc.message)
            await channel.put(*talk.begins(call_id))
            return sdk.PermissionResultAllow()

        async def ask(given: Any, call_id: str | None, about: Any) -> Any:  # noqa: ARG001
            return {"hookSpecificOutput": {"hookEventName": "PreToolUse", "permissionDecision": "ask"}}

        return sdk.ClaudeAgentOptions(
            can_use_tool=may, hooks={"PreToolUse": [sdk.HookMatcher(hooks=[ask], timeout=_HOOK_S)]}
        )

    def _command(self, run: RunContext) -> Command:
        settings = self._table.of(run)
        limits = _within(run, {**self._limits, **_limits(run.options)})
        args = [*_ARGS, *self._fixed, *self._table.args]
        if run.options.get("model"):
            args.append(f"--model={run.options['model']}")
        args += [f"--{name.replace('_', '-')}={value}" for name, value in limits.items()]
        mode = MODES[self.mode]
        if run.guard is not None:
            args += ["--permission-prompt-tool", "stdio"]
            mode = "default" if mode == "bypassPermissions" else mode
        args.append(f"--permission-mode={mode}")
        system = run.context.get("system_prompt")
        if isinstance(system, str) and system:
            args.append(f"--append-system-prompt={system}")
        if run.resume is not None:
            args.append(f"--resume={run.resume}")
        command = self._table.command(self.name, run, settings, args)
        env = {key: value for key, value in command.env.items() if key != "CLAUDECODE"}
        return command._replace(env={**env, "CLAUDE_CODE_ENTRYPOINT": "sdk-py"})


def _limits(table: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: checked(table, key, kinds, None) for key, kinds in _LIMITS.items() if key in table}
    for key, value in found.items():
        if not 0 < value <= 10**9:
            raise ConfigError(f"{key} = {value!r:.40}: expected a number more than 0")
    return found


def _within(run: RunContext, limits: dict[str, Any]) -> dict[str, Any]:
    """The limits with what the policy's budgets leave, where that is less. Claude counts a resumed session's
    cost from its beginning. Where nothing is left the policy decides."""
    left = run.left("cost_usd") if "max_cost_usd" in run.rules else None
    if left is None or left <= 0:
        return limits
    left += used_before(run, ClaudeCodeProvider.name).get(COST, 0.0)
    return limits | {"max_budget_usd": min(left, limits.get("max_budget_usd", left))}


def _told(exc: Exception) -> str:
    """What the SDK says, without its own introduction."""
    return str(exc).removeprefix("Claude Code returned an error result: ")


async def _prompts(prompt: list[Block]) -> AsyncIterator[dict[str, Any]]:
    content = prompt if len(prompt) > 1 else prompt[0]["text"]
    yield {
        "type": "user", "message": {"role": "user", "content": content}, "parent_tool_use_id": None,
        "session_id": "",
    }


class _Wire:
    """The SDK's transport: its messages over a program of ours, which is watched, bounded and reaped."""

    def __init__(
        self, program: Program, command: Command, hear: Callable[[dict[str, Any]], Awaitable[None]],
        ended: Callable[..., Exception],
    ) -> None:
        self._program = program
        self._hear = hear
        self._ended = ended
        self._command = command
        self._ready = False
        self.failed: ProviderFailure | None = None

    async def connect(self) -> None:
        """Start it."""
        try:
            await self._program.start(self._command)
        except ProviderFailure as exc:
            self.failed = exc
            raise
        self._ready = True

    async def write(self, data: str) -> None:
        """Hand a line to it. One that does not listen any more will be seen to have ended."""
        await self._program.write_text(data)

    async def read_messages(self) -> AsyncIterator[dict[str, Any]]:
        """Its messages. One that ends without a result has failed."""
        result = failed = False
        try:
            async for message in self._program.messages():
                if message.get("type") == "result":
                    result, failed = True, bool(message.get("is_error"))
                    self._program.leave()
                await self._hear(message)
                yield message
        except ProviderFailure as exc:
            self.failed = exc
            raise
        if not result:
            self.failed = self._program.failure("")
            raise self.failed
        if failed and self._program.exit_code:  # the SDK makes one exception of both
            raise self._ended("it failed", exit_code=self._program.exit_code)

    async def end_input(self) -> None:
        """The SDK has nothing more to say."""
        self._program.close_stdin()

    async def close(self) -> None:
        """Leave nothing of it."""
        self._ready = False
        await self._program.end()

    def is_ready(self) -> bool:
        """Whether it can be written to."""
        return self._ready


__all__ = ["FACTS", "MODES", "ClaudeCodeProvider"]
