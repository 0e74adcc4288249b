"""The providers without another side: ``echo``, ``shell`` and the kinds of ``python`` functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contract import SECRET, Agent, Subject, add
from driving import python_agent

ASYNC_GENERATOR = """
import asyncio
async def agent(run):
    if run.input == "fail":
        yield "some"
        raise ValueError("broken on purpose")
    if run.input == "silent":
        await asyncio.sleep(1000)
    for word in run.prompt.split(" "):
        if word == "wait":
            await asyncio.sleep(1000)
        yield word
"""
COROUTINE = """
import asyncio
async def agent(run):
    if run.input == "fail":
        raise ValueError("broken on purpose")
    if "wait" in run.prompt:
        await asyncio.sleep(1000)
    return run.prompt.replace(" ", "")
"""
FUNCTION = """
import time
def agent(run):
    if run.input == "fail":
        raise ValueError("broken on purpose")
    while "wait" in run.prompt and not run.cancelled:
        time.sleep(0.01)
    return run.prompt.replace(" ", "")
"""
GENERATOR = """
import time
def agent(run):
    if run.input == "fail":
        yield "some"
        raise ValueError("broken on purpose")
    for word in run.prompt.split(" "):
        while word == "wait" and not run.cancelled:
            time.sleep(0.01)
        yield word
"""
WITH_TOOL = """
import asyncio
count = 0
async def agent(run):
    if "wait" in run.prompt:
        yield "a"
        await asyncio.sleep(1000)
    if run.prompt == "usage":
        yield {"type": "token_usage_updated", "data": {"input_tokens": 7, "output_tokens": 3}}
    if run.prompt == "tool":
        call = {"tool_call_id": "call_1", "tool_name": "add", "tool_input": {"a": 2, "b": 3}}
        try:
            await run.permit("add", call["tool_input"], tool_call_id="call_1")
        except Exception as exc:
            yield {"type": "tool_call_failed", "data": {**call, "tool_output": str(exc)}}
        else:
            global count
            count += 1
            yield {"type": "tool_call_started", "data": call}
            yield {"type": "tool_call_completed", "data": {**call, "tool_output": "5"}}
    if run.prompt == "fail":
        raise ValueError("broken on purpose")
    for piece in ("hel", "lo"):
        yield piece
"""


class Echo(Subject):
    name = "echo"
    scenes = frozenset(("good", "bad", "slow", "silent", "secret"))
    stop_reason = "end_turn"

    def agent(self, scene: str, folder: Path) -> Agent:
        script: dict[str, Any] = {
            "bad": {"fail": "broken on purpose"}, "slow": {"delay_s": 0.2, "pieces": 10_000},
            "silent": {"delay_s": 1000, "pieces": 1}, "secret": {"pieces": 6},
        }
        said = {"bad": None, "slow": "a", "secret": SECRET}.get(scene, "hello")
        options = {"provider_opts": script[scene]} if scene in script else {}
        return Agent({"provider": "echo"}, said, options)


class Shell(Subject):
    name = "shell"
    scenes = frozenset(("good", "bad", "slow", "silent", "secret"))
    code = "command_failed"
    stop_reason = "exit_code_0"

    def agent(self, scene: str, folder: Path) -> Agent:
        half = len(SECRET) // 2
        line = {
            "bad": "echo some; exit 3", "slow": "echo a; sleep 1000", "silent": "sleep 1000",
            "secret": f"printf {SECRET[:half]}; sleep 0.05; printf {SECRET[half:]}",
        }.get(scene, "printf hello")
        return Agent({"provider": "shell"}, line)


class Python(Subject):
    def __init__(self, name: str, source: str, *, streams: bool) -> None:
        self.name, self.source, self.streams = name, source, streams

    def agent(self, scene: str, folder: Path) -> Agent:
        said = {"bad": "fail", "slow": "a wait"}.get(scene, "hel lo")
        return Agent(python_agent(folder, self.source), said)


class PythonTool(Subject):
    name = "python tool"
    scenes = frozenset(("good", "bad", "slow", "tool", "usage"))

    def agent(self, scene: str, folder: Path) -> Agent:
        said = {"bad": "fail", "slow": "wait", "tool": "tool", "usage": "usage"}.get(scene, "hello")
        capabilities = ["streaming", {"name": "tool_use", "type": "tool"}]
        return Agent(python_agent(folder, WITH_TOOL, capabilities=capabilities), said)


add(Echo())
add(Shell())
add(Python("async generator", ASYNC_GENERATOR, streams=True))
add(Python("coroutine", COROUTINE, streams=False))
add(Python("function", FUNCTION, streams=False))
add(Python("generator", GENERATOR, streams=True))
add(PythonTool())
