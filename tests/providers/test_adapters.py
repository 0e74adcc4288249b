"""Agents of other frameworks: what their contract (``subject_frameworks``) does not show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from driving import Bench, Result, drive, python_agent, run

DENY = [{"name": "p", "tool_rules": [["deny", ["add"]]], "on_violation": "warn"}]
GRAPH = """
from typing import Any, TypedDict
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt

@tool
def add(a: int, b: int) -> int:
    "Add."
    return a + b

def compiled(state, node, **more):
    builder = StateGraph(state)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    return builder.compile(**more)

class Counting(TypedDict):
    count: int

async def count(state):
    return {"count": state["count"] + 1}

async def heard(state):
    return {"messages": [AIMessage(" / ".join(message.content for message in state["messages"]))]}

async def ask(state):
    return {"messages": [AIMessage(interrupt({"question": "sure?"}))]}

def in_a_thread(state):
    return {"messages": [AIMessage(str(add.invoke({"a": 2, "b": 3})))]}

async def on_the_loop(state):
    return {"messages": [AIMessage(str(add.invoke({"a": 2, "b": 3})))]}

counting = compiled(Counting, count)
remembers = compiled(MessagesState, heard, checkpointer=InMemorySaver())
asks = compiled(MessagesState, ask, checkpointer=InMemorySaver())
threaded = compiled(MessagesState, in_a_thread)
blocking = compiled(MessagesState, on_the_loop)
"""
TYPED = """
from dataclasses import dataclass
from pydantic_ai import Agent, RunContext
from pydantic_ai.models.test import TestModel

@dataclass
class City:
    name: str

agent = Agent(TestModel(custom_output_args={"name": "Ghent"}), output_type=City)
knows = Agent(TestModel())

@knows.tool
def session(context: RunContext) -> str:
    "The session."
    return context.deps.session.id
"""


def graph(folder: Path, name: str, run_input: Any = "hello", **options: Any) -> Result:
    pytest.importorskip("langgraph")
    return run(python_agent(folder, GRAPH, name), run_input, **options)


def test_graph_without_messages_gets_the_input_as_it_is(tmp_path: Path) -> None:
    """If a graph's state has no messages, then the run's map is its input, and its last state the output."""
    assert graph(tmp_path, "counting", {"count": 4}).output == {"content": {"count": 5}}


def test_graph_with_a_memory_of_its_own_hears_nothing_twice(tmp_path: Path) -> None:
    """If a graph has a checkpointer, then a second run of the session gives it its new message alone."""
    pytest.importorskip("langgraph")

    async def play(bench: Bench) -> list[Any]:
        return [(await bench.result(bench.begin("agent", said))).output["content"] for said in ("one", "two")]

    found = drive({"agent": python_agent(tmp_path, GRAPH, "remembers")}, play)
    assert found == ["one", "one / one / two"]


def test_interrupted_graph_says_what_it_waits_for(tmp_path: Path) -> None:
    """If a graph interrupts itself, then the run ends as interrupted, with the questions."""
    result = graph(tmp_path, "asks")
    assert result.output["interrupts"] == [{"question": "sure?"}]
    assert result.data("run_completed")[0]["stop_reason"] == "interrupted"


def test_tool_that_a_node_calls_itself_is_asked_about(tmp_path: Path) -> None:
    """If a plain node calls a tool, then it is asked about in its thread, and a denial ends the run."""
    assert graph(tmp_path, "threaded").output["content"] == "5"
    denied = graph(tmp_path, "threaded", policies=DENY)
    assert denied.error["code"] == "tool_permission_denied"
    assert "tool_call_started" not in denied.types


def test_tool_called_on_the_loop_is_refused_and_nothing_hangs(tmp_path: Path) -> None:
    """If an async node calls a tool synchronously, then nobody can be asked, and the run says what to do."""
    result = graph(tmp_path, "blocking")
    assert result.error["code"] == "tool_permission_denied"
    assert "ainvoke" in result.error["message"]


def test_unknown_option_is_named(tmp_path: Path) -> None:
    """If a call has an option that the adapter does not know, then the run fails and names the nearest."""
    result = graph(tmp_path, "asks", provider_opts={"recursion_limits": 3})
    assert result.error["code"] == "validation_error"
    assert "recursion_limit" in result.error["message"]


def test_typed_output_is_plain_data(tmp_path: Path) -> None:
    """If a pydantic-ai agent gives an object, then the output is its map."""
    pytest.importorskip("pydantic_ai")
    assert run(python_agent(tmp_path, TYPED), "hello").output == {"content": {"name": "Ghent"}}


def test_tools_find_the_run(tmp_path: Path) -> None:
    """If a tool of a pydantic-ai agent looks at its dependencies, then there is the run."""
    pytest.importorskip("pydantic_ai")
    result = run(python_agent(tmp_path, TYPED, "knows"), "hello")
    assert result.data("tool_call_completed")[0]["tool_output"] == "ses_1"


def test_what_is_no_agent_is_refused_as_before(tmp_path: Path) -> None:
    """If the target is an object of no framework that cannot be called, then the agent's problem says so."""
    async def play(bench: Bench) -> str:
        return str(bench.registry.catalogue()[0]["problem"])

    assert "no function 'thing'" in drive({"agent": python_agent(tmp_path, "thing = 3", "thing")}, play)
