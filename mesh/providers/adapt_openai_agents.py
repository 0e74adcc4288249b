"""An agent of openai-agents as an agent of mesh. Its tools find the run as ``ctx.context``.

``options`` of the agent: ``max_turns``.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import agents

from mesh.errors import RunError
from mesh.providers.adapters import Stage, history, options_of, shown
from mesh.providers.base import Output, RunContext


async def play(agent: Any, stage: Stage) -> Output:
    """Play one run of an agent."""
    options = options_of(stage.run, "max_turns")
    # Its traces would go to OpenAI; the session's log is ours.
    config = agents.RunConfig(tracing_disabled=True)
    stream = agents.Runner.run_streamed(
        _asking(agent, stage, {}), _items(stage.run), context=stage.run, run_config=config,
        hooks=_hooks(stage), **options,
    )
    heard = False
    try:
        async for event in stream.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                heard = True
                await stage.say(event.data.delta)
            elif event.type == "run_item_stream_event" and event.name == "message_output_created":
                if not heard:  # a model that does not stream
                    await stage.say(agents.ItemHelpers.text_message_output(event.item))
                heard = False
    finally:
        stream.cancel()
    return Output(data={"content": shown(stream.final_output)})


def _items(run: RunContext) -> list[Any]:
    found: list[Any] = []
    for kind, said in history(run):
        if isinstance(said, str):
            found.append({"role": kind, "content": said})
        elif kind == "calls":
            found += [{"type": "function_call", "call_id": call.id, "name": call.name,
                       "arguments": json.dumps(call.input, default=str)} for call in said]
        else:
            found += [{"type": "function_call_output", "call_id": call.id, "output": call.output}
                      for call in said]
    return found


def _asking(agent: Any, stage: Stage, known: dict[int, Any]) -> Any:
    """The agent, and those it hands over to, with tools that ask before they are called."""
    if id(agent) in known:
        return known[id(agent)]

    async def asked(data: Any) -> Any:
        call = (data.context.tool_call_id, data.context.tool_name)
        try:
            await stage.ask(*call, _given(data.context))
        except RunError as exc:
            return agents.ToolGuardrailFunctionOutput.reject_content(await stage.tell(*call, exc))
        return agents.ToolGuardrailFunctionOutput.allow()

    guard = agents.ToolInputGuardrail(asked)
    tools = [
        dataclasses.replace(tool, tool_input_guardrails=[*(tool.tool_input_guardrails or ()), guard])
        if isinstance(tool, agents.FunctionTool) else tool for tool in agent.tools
    ]
    known[id(agent)] = copied = agent.clone(tools=tools)
    copied.handoffs = [
        _asking(other, stage, known) if isinstance(other, agents.Agent) else other for other in agent.handoffs
    ]
    return copied


def _given(context: Any) -> Any:
    text = getattr(context, "tool_arguments", None)
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return {"input": text}


def _hooks(stage: Stage) -> Any:
    class Hooks(agents.RunHooks):
        """Asks before a tool that was not asked for yet; what it raises ends the run."""

        async def on_llm_end(self, context: Any, agent: Any, response: Any) -> None:  # noqa: ARG002
            await stage.usage(context.usage, "total")

        async def on_tool_start(self, context: Any, agent: Any, tool: Any) -> None:  # noqa: ARG002
            await stage.begin(_call(context, tool), tool.name, _given(context))

        async def on_tool_end(self, context: Any, agent: Any, tool: Any, result: Any) -> None:  # noqa: ARG002
            await stage.tool("completed", _call(context, tool), tool.name, tool_output=result)

    return Hooks()


def _call(context: Any, tool: Any) -> str:
    return str(getattr(context, "tool_call_id", None) or tool.name)


__all__ = ["play"]
