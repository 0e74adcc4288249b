"""A real ACP agent of the official package: does what the prompt says."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import acp
from acp.schema import PermissionOption, ToolCallUpdate

FOLDER = Path(__file__).parent if len(sys.argv) < 2 else Path(sys.argv[1])


def note(name: str, text: str) -> None:
    with (FOLDER / name).open("a") as file:
        file.write(text)


class Agent:
    client: Any

    def on_connect(self, client: Any) -> None:
        self.client = client

    async def initialize(self, protocol_version: int, **_: Any) -> Any:
        return acp.InitializeResponse.model_validate({
            "protocolVersion": protocol_version, "agentCapabilities": {
                "loadSession": True, "promptCapabilities": {"image": "IMAGES" in os.environ}},
            "authMethods": [{"id": "x", "name": "Log in with X"}],
        })

    async def new_session(self, cwd: str, **_: Any) -> Any:
        if os.environ.get("LOGGED_OUT"):
            raise acp.RequestError.auth_required()
        return acp.NewSessionResponse(session_id="acp-1")

    async def load_session(self, cwd: str, session_id: str, **_: Any) -> Any:
        note("loaded", session_id)
        await self.say(session_id, "an old answer")
        return acp.LoadSessionResponse()

    async def set_session_mode(self, session_id: str, mode_id: str, **_: Any) -> Any:
        note("modes", f"{mode_id}\n")
        return acp.schema.SetSessionModeResponse()

    async def cancel(self, session_id: str, **_: Any) -> None:
        note("cancelled", "x")

    async def say(self, session_id: str, text: str) -> None:
        await self.client.session_update(session_id=session_id, update=acp.update_agent_message_text(text))

    async def prompt(self, session_id: str, prompt: list[Any], **_: Any) -> Any:
        text = prompt[0].text
        note("heard", text)
        for block in prompt[1:]:
            note("images", f"{block.type} {block.mime_type} {block.data}\n")
        word, _, rest = text.rpartition("DO ")[2].partition(" ")
        usage = None
        try:
            usage = await getattr(self, f"do_{word}", self.do_good)(session_id, rest)
        except acp.RequestError as exc:
            await self.say(session_id, f"refused: {exc.data}")
        answer = {"stopReason": "end_turn", **({"usage": usage} if isinstance(usage, dict) else {})}
        return acp.PromptResponse.model_validate(answer)

    async def do_good(self, sid: str, rest: str) -> None:
        await self.say(sid, "hel")
        await self.say(sid, "lo")

    async def do_usage(self, sid: str, rest: str) -> dict[str, int]:
        await self.do_good(sid, rest)
        return {"totalTokens": 10, "inputTokens": 7, "outputTokens": 3}

    async def do_bad(self, sid: str, rest: str) -> None:
        await self.say(sid, "some")
        sys.stderr.write("Error: it broke\n")
        sys.stderr.flush()
        os._exit(3)

    async def do_slow(self, sid: str, rest: str) -> None:
        await self.say(sid, "a")
        await asyncio.sleep(1000)

    async def do_silent(self, sid: str, rest: str) -> None:
        await asyncio.sleep(1000)

    async def do_secret(self, sid: str, rest: str) -> None:
        for piece in (rest[:5], rest[5:11], rest[11:]):
            await self.say(sid, piece)

    async def do_tool(self, sid: str, rest: str) -> None:
        given = {"a": 2, "b": 3}
        await self.client.session_update(session_id=sid, update=acp.start_tool_call(
            "call_1", "Add", kind="execute", status="pending", raw_input=given))
        asked = await self.client.request_permission(
            session_id=sid, tool_call=ToolCallUpdate(tool_call_id="call_1"),
            options=[PermissionOption(kind="allow_once", name="Yes", option_id="yes"),
                     PermissionOption(kind="reject_once", name="No", option_id="no")])
        may = asked.outcome.outcome == "selected" and asked.outcome.option_id == "yes"
        if may:
            note("ran", "x")
        await self.client.session_update(session_id=sid, update=acp.update_tool_call(
            "call_1", status="completed" if may else "failed", raw_output="5" if may else "no"))
        await self.do_good(sid, rest)

    async def do_read(self, sid: str, rest: str) -> None:
        found = await self.client.read_text_file(session_id=sid, path=rest, line=2, limit=1)
        await self.say(sid, found.content)

    async def do_write(self, sid: str, rest: str) -> None:
        await self.client.write_text_file(session_id=sid, path=rest, content="written")
        await self.say(sid, "wrote")

    async def do_run(self, sid: str, rest: str) -> None:
        terminal = await self.client.create_terminal(session_id=sid, command=rest, cwd=None)
        name = terminal.terminal_id
        ended = await self.client.wait_for_terminal_exit(session_id=sid, terminal_id=name)
        output = await self.client.terminal_output(session_id=sid, terminal_id=name)
        await self.client.release_terminal(session_id=sid, terminal_id=name)
        await self.say(sid, f"{ended.exit_code} {output.output}")

    async def do_flood(self, sid: str, rest: str) -> None:
        for n in range(int(rest)):
            await self.client.session_update(session_id=sid, update=acp.start_tool_call(
                f"call_{n}", "Add", kind="execute", status="in_progress", raw_input={}))
        await self.do_good(sid, rest)

    async def do_leave(self, sid: str, rest: str) -> None:
        await self.client.create_terminal(session_id=sid, command="sleep 1000 & setsid sleep 1000", cwd=None)
        await self.say(sid, "left")


asyncio.run(acp.run_agent(Agent()))
