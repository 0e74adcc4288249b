"""A pydantic-ai agent as an agent of mesh. Its tools find the run as ``ctx.deps``.

``options`` of the agent: ``model_settings``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic_ai import messages as m
from pydantic_ai.toolsets import WrapperToolset

from mesh.core.message import Role
from mesh.errors import RunError
from mesh.providers.adapters import Stage, history, options_of, shown
from mesh.providers.base import Output, RunContext


async def play(agent: Any, stage: Stage) -> Output:
    """Play one run of an agent."""
    settings = options_of(stage.run, "model_settings").get("model_settings")
    asking = [_asking(toolset, stage) for toolset in agent.toolsets]
    result: Any = None
    with agent.override(toolsets=asking, tools=[]):
        async with agent.run_stream_events(
            message_history=_messages(stage.run), deps=stage.run, model_settings=settings,
        ) as events:
            async for event in events:
                await _event(event, stage)
                if event.event_kind == "agent_run_result":
                    result = event.result
    await stage.usage(result.usage, "total")
    return Output(data={"content": shown(result.output)})


async def _event(event: Any, stage: Stage) -> None:
    if event.event_kind == "part_start" and event.part.part_kind == "text":
        await stage.say(event.part.content)
    elif event.event_kind == "part_delta" and event.delta.part_delta_kind == "text":
        await stage.say(event.delta.content_delta)


def _messages(run: RunContext) -> list[Any]:
    found: list[Any] = []
    for kind, said in history(run):
        if not isinstance(said, str):
            made = [m.ToolCallPart(call.name, call.input, call.id) if kind == "calls"
                    else m.ToolReturnPart(call.name, call.output, call.id) for call in said]
            found.append((m.ModelResponse if kind == "calls" else m.ModelRequest)(parts=made))
        elif kind == Role.ASSISTANT:
            found.append(m.ModelResponse(parts=[m.TextPart(said)]))
        else:
            part = m.SystemPromptPart if kind == Role.SYSTEM else m.UserPromptPart
            found.append(m.ModelRequest(parts=[part(said)]))
    return found


def _asking(toolset: Any, stage: Stage) -> Any:
    @dataclass
    class Asking(WrapperToolset[Any]):
        """Asks before a tool, and tells the model when it may not."""

        async def call_tool(self, name: str, tool_args: dict[str, Any], ctx: Any, tool: Any) -> Any:
            call = (ctx.tool_call_id or f"{name}_{id(ctx)}", name)
            await stage.usage(ctx.usage, "total")
            try:
                await stage.ask(*call, tool_args)
            except RunError as exc:
                return await stage.tell(*call, exc)
            try:
                returned = await super().call_tool(name, tool_args, ctx, tool)
            except Exception as exc:
                await stage.tool("failed", *call, error=f"{type(exc).__name__}: {exc}")
                raise
            await stage.tool("completed", *call, tool_output=returned)
            return returned

    return Asking(toolset)


__all__ = ["play"]
