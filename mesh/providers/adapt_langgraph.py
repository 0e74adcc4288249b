"""A compiled LangGraph graph as an agent.

Of a graph with ``messages`` the run's messages are the input, behind the session's transcript (unless its own
checkpointer knows the thread, which is the session's id); any other graph gets the run's input as it is.
``options`` of the agent: ``recursion_limit``, ``configurable``.
"""

from __future__ import annotations

import copy
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.prebuilt import ToolNode

from mesh.core.message import Role
from mesh.errors import RunError
from mesh.providers.adapters import Stage, history, options_of, shown, text_of
from mesh.providers.base import Output, RunContext


async def play(graph: Any, stage: Stage) -> Output:
    """Play one run of a graph."""
    graph = _asking(graph, stage)
    options = options_of(stage.run, "recursion_limit", "configurable")
    thread = {"thread_id": stage.run.session.id, **(options.get("configurable") or {})}
    config = {**options, "configurable": thread, "callbacks": [_handler(stage)]}
    talks = "messages" in graph.channels
    given: Any = stage.run.input
    if talks:
        messages = _messages(stage.run)
        if getattr(graph, "checkpointer", None) and (await graph.aget_state(config)).values:
            messages = messages[-len(stage.run.messages):]  # it remembers the others by itself
        given = {"messages": messages}
    state: Any = {}
    async for mode, chunk in graph.astream(given, config, stream_mode=["messages", "values"]):
        if mode == "values":
            state = chunk
        elif chunk[0].type in ("ai", "AIMessageChunk"):
            await stage.say(text_of(chunk[0].content))
            await stage.usage(getattr(chunk[0], "usage_metadata", None) or {}, "delta")
    waits = state.pop("__interrupt__", None) if isinstance(state, dict) else None
    data = {"content": _last_said(state)} if talks else {"content": shown(state)}
    if waits:
        return Output(data={**data, "interrupts": [shown(wait.value) for wait in waits]},
                      completion={"stop_reason": "interrupted"})
    return Output(data=data)


def _last_said(state: Any) -> str:
    found = [message for message in state.get("messages", ()) if message.type == "ai"]
    return text_of(found[-1].content) if found else ""


def _messages(run: RunContext) -> list[Any]:
    made: dict[str, Any] = {Role.SYSTEM: SystemMessage, Role.ASSISTANT: AIMessage}
    found: list[Any] = []
    for kind, said in history(run):
        if isinstance(said, str):
            found.append(made.get(kind, HumanMessage)(said))
        elif kind == "calls":
            calls = [{"id": call.id, "name": call.name, "args": call.input} for call in said]
            found.append(AIMessage("", tool_calls=calls))
        else:
            found += [ToolMessage(call.output, tool_call_id=call.id, name=call.name) for call in said]
    return found


def _asking(graph: Any, stage: Stage) -> Any:
    """The graph, a copy if need be, whose tool nodes tell the model which tool it may not call."""
    nodes = {name: node.copy({"bound": _asking_node(node.bound, stage)}) for name, node in graph.nodes.items()
             if isinstance(node.bound, ToolNode)}
    if nodes:
        graph = copy.copy(graph)
        graph.nodes = {**graph.nodes, **nodes}
    return graph


def _asking_node(node: Any, stage: Stage) -> Any:
    before = node._awrap_tool_call
    if before is None and node._wrap_tool_call is not None:
        return node  # its owner's own way, which is not ours to go round; the handler asks

    async def ask(request: Any, execute: Any) -> Any:
        call = (str(request.tool_call["id"]), request.tool_call["name"])
        try:
            await stage.ask(*call, request.tool_call["args"])
        except RunError as exc:
            said = await stage.tell(*call, exc)
            return ToolMessage(said, name=call[1], tool_call_id=call[0], status="error")
        return await (execute(request) if before is None else before(request, execute))

    node = copy.copy(node)
    node._awrap_tool_call = ask
    node.func, node.afunc = node._func, node._afunc  # they were bound to the original
    return node


def _handler(stage: Stage) -> Any:
    names: dict[Any, tuple[str, str]] = {}

    class Handler(BaseCallbackHandler):
        """Asks before a tool; what it raises, the tool's call raises.

        Not async: LangChain calls it in a thread then, also for tools that are plain functions, for which it
        swallows what an async one raises.
        """

        raise_error = True

        def on_tool_start(
            self, serialized: dict[str, Any], input_str: str, *, run_id: Any, inputs: Any = None, **more: Any
        ) -> None:
            call = (str(more.get("tool_call_id") or run_id), str(serialized.get("name") or "tool"))
            stage.from_thread(stage.begin(*call, input_str if inputs is None else inputs))
            names[run_id] = call

        def on_tool_end(self, output: Any, *, run_id: Any, **_more: Any) -> None:
            call = names.pop(run_id, (str(run_id), "tool"))
            step = "failed" if getattr(output, "status", "") == "error" else "completed"
            stage.from_thread(stage.tool(step, *call, tool_output=getattr(output, "content", output)))

        def on_tool_error(self, error: BaseException, *, run_id: Any, **_more: Any) -> None:
            call = names.pop(run_id, (str(run_id), "tool"))
            stage.from_thread(stage.tool("failed", *call, error=str(error)))

    return Handler()


__all__ = ["play"]
