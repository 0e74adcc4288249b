"""An agent with words that a terminal would obey, and a tool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import mesh


async def coder(run: mesh.RunContext) -> AsyncIterator[Any]:
    """Words with control in them, cut badly; a tool; wide letters; tokens."""
    for piece in ("Looking at \x1b[3", "1mit\x1b[0m.\x1b]0;pwned\x07\nNow ", "fixing."):
        yield piece
    call = {"tool_name": "Bash", "tool_call_id": "1", "tool_input": {"command": "pytest -q " + "a/b " * 40}}
    yield {"type": "tool_call_started", "data": call}
    yield {"type": "tool_call_completed", "data": {**call, "tool_output": "1 passed"}}
    yield "漢字\n"
    yield {"type": "token_usage_updated", "data": {"input_tokens": 8, "output_tokens": 3}}
