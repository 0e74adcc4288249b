"""``acp``: any agent that speaks the Agent Client Protocol over stdio, by the official Python package.

Keys of the agent's table beside those of ``cli``: ``program`` (needed; its ``args`` make it speak ACP),
``permission_mode`` (default, full_auto), ``mode`` (a session mode of the agent, set at each start and
resume). What it may ask of us stands in ``acp_client``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from mesh.core.continuation import SESSION_RESUME
from mesh.errors import ConfigError
from mesh.providers.acp_client import Client
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
from mesh.providers.cli import Table, one_of, prompt_of
from mesh.providers.images import data_of, images_of, refuse_images
from mesh.providers.kinds import Place, library
from mesh.providers.program import Facts, Program

MODES = ("default", "full_auto")
INSTALL, LOGIN = "install the agent that `program` names", "as the agent's own manual says"
#: After a cancel: so long may the agent take note, before it is ended.
CANCEL_S = 0.2
_AUTH_REQUIRED = -32000
_COUNTS = {
    "input_tokens": "input_tokens", "output_tokens": "output_tokens",
    "cached_read_tokens": "cache_read_tokens", "cached_write_tokens": "cache_creation_tokens",
}


class AcpProvider:
    """Runs one prompt per run, in a process of its own."""

    name = "acp"
    CAPABILITIES = (STREAMING, SESSION_RESUME, {"name": "tool_use", "type": "tool"})
    enforces = frozenset(("tools_before", "tools_observed", "approvals"))
    tested = "a real agent process of the official package"

    def __init__(self, table: Mapping[str, Any], place: Place) -> None:
        self._acp = library("acp", self.name)
        self._facts = facts_of(table)
        if not self._facts.name:
            raise ConfigError('program = "...": name the agent, such as "gemini" with args = ["--acp"]')
        self._table = Table(table, self._facts, ("permission_mode", "mode"))
        self.capabilities = capabilities_of(table, self.CAPABILITIES)
        self.idempotent: bool = checked(table, "idempotent", (bool,), False)
        self.usage_mode = usage_mode_of(table)
        self._processes = place.processes
        self.permission_mode = one_of(table, "permission_mode", MODES, MODES[0])
        self._mode = checked(table, "mode", (str,), None)

    def started(self, run: RunContext) -> dict[str, Any]:  # noqa: ARG002
        """Who decides what the agent asks when there is no policy."""
        return {"permission_mode": self.permission_mode}

    async def run(self, run: RunContext) -> AsyncIterator[Piece]:
        """Yield what the agent says; at the end, or when closed, nothing of it is left."""
        prompt = prompt_of(run)
        command = self._table.command(self.name, run, self._table.of(run), self._table.args)
        program = Program(self._processes, run.run_id, self.name, self._facts)
        channel = Channel()
        client = Client(
            self._acp, run, channel, self._processes, folder=command.cwd,
            allow=self.permission_mode == "full_auto",
        )
        said: dict[str, Any] = {}
        try:
            await program.start(command)
            work = self._converse(run, prompt, command.cwd, program, channel, client, said)
            async with aclosing(channel.of(work)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            await client.end()
            await program.end()
        yield {"type": "run_completed", "data": said}

    async def _converse(
        self, run: RunContext, prompt: str, cwd: str, program: Program, channel: Channel, client: Client,
        said: dict[str, Any],
    ) -> None:
        acp, wire = self._acp, _Wire(program, channel, client)
        agent = acp.connect_to_agent(client, wire)
        session_id, about = "", None
        try:
            about = await agent.initialize(acp.PROTOCOL_VERSION, client_capabilities=_abilities(acp))
            shown = self._images(run, about)
            session_id = await self._session(run, agent, about, cwd)
            if self._mode is not None:
                await agent.set_session_mode(session_id=session_id, mode_id=self._mode)
            await channel.put({"type": "run_started", "data": {"provider_session_id": session_id}})
            client.listening = True
            answer = await agent.prompt(session_id=session_id, prompt=[acp.text_block(prompt), *shown])
            if client.failed is not None:
                raise client.failed
            said["stop_reason"] = answer.stop_reason
            await channel.put(*_used(answer.usage), {"type": "turn_completed", "data": {}})
        except asyncio.CancelledError:
            if session_id:
                with suppress(Exception):
                    await asyncio.wait_for(agent.cancel(session_id=session_id), CANCEL_S)
            raise
        except ProviderFailure:
            raise
        except Exception as exc:  # the package raises plain ones, too
            raise wire.failed or self._failure(exc, about, program) from exc
        finally:
            await agent.close()

    async def _session(self, run: RunContext, agent: Any, about: Any, cwd: str) -> str:
        """A new session, or the one to resume."""
        if run.resume is None:
            new = await agent.new_session(cwd=cwd, mcp_servers=[])
            return str(new.session_id)
        can = about.agent_capabilities
        if can is not None and getattr(can.session_capabilities, "resume", None) is not None:
            await agent.resume_session(cwd=cwd, session_id=run.resume, mcp_servers=[])
        elif can is not None and can.load_session:
            await agent.load_session(cwd=cwd, session_id=run.resume, mcp_servers=[])
        else:
            raise ProviderFailure("the agent can neither resume nor load a session")
        return run.resume

    def _images(self, run: RunContext, about: Any) -> list[Any]:
        """The input's images, for an agent that says that it takes any."""
        can = getattr(about.agent_capabilities, "prompt_capabilities", None)
        if not getattr(can, "image", False):
            refuse_images(run, f"{self._facts.name}, by its own word,")
        return [self._acp.image_block(data, media_type)
                for media_type, data in data_of(images_of(run), self.name)]

    def _failure(self, exc: Exception, about: Any, program: Program) -> ProviderFailure:
        """What the agent answered, or that it is gone."""
        if isinstance(exc, ConnectionError):
            return program.failure("")
        if getattr(exc, "code", None) == _AUTH_REQUIRED:
            names = [method.name for method in (about.auth_methods if about else None) or []]
            ways = f" (it offers: {', '.join(names)})" if names else ""
            return program.failure(f"not logged in{ways}", code="provider_authentication_failed")
        data = getattr(exc, "data", None)
        return program.failure(f"{exc}{f': {data}' if data else ''}"[:2_000], kind="protocol_error")


def facts_of(table: Mapping[str, Any]) -> Facts:
    """What people must know about the agent that a table names."""
    return Facts(Path(checked(table, "program", (str,), "")).name, INSTALL, LOGIN)


class _Wire:
    """The package's transport, over a program of ours, which is watched, bounded and reaped."""

    def __init__(self, program: Program, channel: Channel, client: Client) -> None:
        self._program = program
        self._client = client
        self._channel = channel
        self._messages = program.messages()
        self.failed: ProviderFailure | None = None

    async def send(self, message: dict[str, Any]) -> None:
        """Hand a message over."""
        if not await self._program.write(message):
            raise ConnectionError("the agent does not listen any more")

    async def receive(self) -> dict[str, Any] | None:
        """Its next message, when there is room for what it says; None when it ended."""
        await self._channel.room()
        self.failed = self.failed or self._client.failed
        if self.failed is not None:
            return None
        try:
            return await anext(self._messages, None)
        except ProviderFailure as exc:
            self.failed = exc
        return None

    async def close(self) -> None:
        """Nothing more will be said."""
        self._program.close_stdin()


def _abilities(acp: Any) -> Any:
    return acp.schema.ClientCapabilities.model_validate({
        "fs": {"readTextFile": True, "writeTextFile": True}, "terminal": True,
    })


def _used(usage: Any) -> list[Piece]:
    if usage is None:
        return []
    counts = {ours: getattr(usage, theirs) for theirs, ours in _COUNTS.items()}
    used = {name: count for name, count in counts.items() if count is not None}
    return [{"type": "token_usage_updated", "data": used}]


__all__ = ["CANCEL_S", "MODES", "AcpProvider", "facts_of"]
