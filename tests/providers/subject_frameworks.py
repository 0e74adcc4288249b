"""Agents of LangGraph, pydantic-ai and openai-agents with models that are scripts: nobody is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contract import SECRET, Agent, Subject, add
from driving import python_agent

#: What each model does with the last thing the user said: pieces of text, and ``add`` before them.
SCRIPT = f"""
import asyncio
from pathlib import Path

HERE = Path(__file__).parent
SECRET = {SECRET!r}

def add(a: int, b: int) -> int:
    '''Add two numbers.'''
    with (HERE / "executed").open("a") as log:
        log.write("x")
    return a + b

def heard(messages):
    (HERE / "heard").write_text(str(messages))

async def pieces(asked):
    if asked == "bad":
        raise ValueError("broken on purpose")
    if asked == "silent":
        await asyncio.sleep(1000)
    if asked == "slow":
        yield "a"
        await asyncio.sleep(1000)
    for piece in (SECRET[:9], SECRET[9:]) if asked == "secret" else ("hel", "lo"):
        yield piece
"""

LANGGRAPH = SCRIPT + """
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

class Model(BaseChatModel):
    @property
    def _llm_type(self):
        return "script"

    def _generate(self, messages, stop=None, run_manager=None, **more):
        raise NotImplementedError

    async def _astream(self, messages, stop=None, run_manager=None, **more):
        heard(messages)
        asked = [message.content for message in messages if message.type == "human"][-1]
        if asked == "tool" and messages[-1].type != "tool":
            call = {"id": "call_1", "name": "add", "args": '{"a": 2, "b": 3}', "index": 0}
            yield ChatGenerationChunk(message=AIMessageChunk("", tool_call_chunks=[call]))
            return
        async for piece in pieces(asked):
            yield ChatGenerationChunk(message=AIMessageChunk(piece))
        usage = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
        yield ChatGenerationChunk(message=AIMessageChunk("", usage_metadata=usage))

async def call(state):
    return {"messages": [await Model().ainvoke(state["messages"])]}

graph = StateGraph(MessagesState)
graph.add_node("model", call)
graph.add_node("tools", ToolNode([tool(add)]))
graph.add_edge(START, "model")
graph.add_conditional_edges("model", tools_condition)
graph.add_edge("tools", "model")
agent = graph.compile()
"""

PYDANTIC_AI = SCRIPT + """
from pydantic_ai import Agent
from pydantic_ai.models.function import DeltaToolCall, FunctionModel

async def stream(messages, info):
    heard(messages)
    parts = [part for message in messages for part in message.parts]
    asked = [part.content for part in parts if part.part_kind == "user-prompt"][-1]
    if asked == "tool" and parts[-1].part_kind != "tool-return":
        yield {0: DeltaToolCall("add", '{"a": 2, "b": 3}', tool_call_id="call_1")}
        return
    async for piece in pieces(asked):
        yield piece

agent = Agent(FunctionModel(stream_function=stream))
agent.tool_plain(add)
"""

OPENAI_AGENTS = SCRIPT + """
from agents import Agent, function_tool
from agents.models.interface import Model
from openai.types import responses as r
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails, ResponseUsage

class Script(Model):
    async def get_response(self, *given, **more):
        raise NotImplementedError

    async def stream_response(self, system, given, *rest, **more):
        heard(given)
        asked = [item["content"] for item in given if item.get("role") == "user"][-1]
        if asked == "tool" and given[-1].get("type") != "function_call_output":
            out = [r.ResponseFunctionToolCall(
                type="function_call", call_id="call_1", name="add", arguments='{"a": 2, "b": 3}')]
        else:
            said = ""
            async for piece in pieces(asked):
                said += piece
                yield r.ResponseTextDeltaEvent(
                    type="response.output_text.delta", delta=piece, content_index=0, item_id="m",
                    output_index=0, sequence_number=1, logprobs=[])
            text = r.ResponseOutputText(text=said, type="output_text", annotations=[])
            out = [r.ResponseOutputMessage(
                id="m", role="assistant", status="completed", type="message", content=[text])]
        usage = ResponseUsage(
            input_tokens=7, output_tokens=3, total_tokens=10,
            input_tokens_details=InputTokensDetails(cached_tokens=0, cache_write_tokens=0),
            output_tokens_details=OutputTokensDetails(reasoning_tokens=0))
        whole = r.Response(
            id="r", created_at=0, model="script", object="response", output=out, parallel_tool_calls=False,
            tool_choice="auto", tools=[], usage=usage)
        yield r.ResponseCompletedEvent(type="response.completed", sequence_number=2, response=whole)

agent = Agent(name="script", model=Script(), tools=[function_tool(add)])
"""


class Framework(Subject):
    scenes = frozenset(("good", "bad", "slow", "silent", "tool", "usage", "secret", "resume"))

    def __init__(self, name: str, module: str, source: str, tool_output: Any = 5) -> None:
        self.name, self.source, self.requires, self.tool_output = name, source, (module,), tool_output
        self._folder = Path()

    @contextmanager
    def opened(self, folder: Path) -> Iterator[None]:
        self._folder = folder
        yield

    def agent(self, scene: str, folder: Path) -> Agent:
        return Agent(python_agent(folder, self.source), scene)

    def executed(self) -> int:
        log = self._folder / "executed"
        return len(log.read_text()) if log.exists() else 0

    def heard(self) -> str:
        return (self._folder / "heard").read_text()


class PydanticAI(Framework):
    scenes = Framework.scenes - {"usage"}  # its own test model counts words


add(Framework("langgraph", "langgraph", LANGGRAPH, "5"))
add(PydanticAI("pydantic-ai", "pydantic_ai", PYDANTIC_AI))
add(Framework("openai-agents", "agents", OPENAI_AGENTS))
