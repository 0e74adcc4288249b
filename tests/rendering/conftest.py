"""A run as an agent with tools leaves it, and how its text pieces are told apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mesh.core.records import Event


def make(seq: int, kind: str, *, ts: float | None = None, run_id: str | None = "run_1", **data: Any) -> Event:
    """One event."""
    return Event(f"evt_{seq}", kind, "s.1", run_id, seq, float(seq if ts is None else ts), data, {}, "coder")


@pytest.fixture
def event() -> Callable[..., Event]:
    """Make an event."""
    return make


@pytest.fixture
def story() -> list[Event]:
    """A prompt, words with control in them, tools, a message that was not streamed, decisions, the end."""
    return [
        make(1, "session_created", run_id=None),
        make(2, "message_sent", content="fix the tests,\nplease", role="user"),
        make(3, "run_started", model="claude-sonnet-4-5-20250929"),
        make(4, "message_streamed", content="I'll look at the "),
        make(5, "message_streamed", content="tests \x1b]0;pwned\x07first.\nThen \x1b[3"),
        make(6, "message_streamed", content="1mred\x1b[0m."),
        make(7, "tool_call_started", tool_name="Read", tool_call_id="t1", tool_input={"path": "a.py"}),
        make(8, "tool_call_completed", tool_name="Read", tool_call_id="t1", tool_output="a\nb\nc"),
        make(9, "tool_call_started", tool_name="Bash", tool_call_id="t2",
             tool_input={"command": "pytest -q"}),
        make(10, "tool_call_failed", ts=14, tool_name="Bash", tool_call_id="t2", tool_output="no\n1 failed",
             exit_code=1),
        make(11, "token_usage_updated", input_tokens=847, output_tokens=312, cost_usd=0.0123),
        make(12, "message_received", content="I'll look at the tests first.\nThen red.", role="assistant"),
        make(13, "message_received", content="Not streamed: 漢字\n", role="assistant"),
        make(14, "tool_approval_requested", tool_name="bash", tool_input={"command": "git push"},
             policy_name="p", violation_kind="asked"),
        make(15, "tool_approval_granted", tool_name="bash", by="ann"),
        make(16, "workspace_diff_computed", files_changed=3, insertions=10, deletions=2),
        make(17, "run_completed", stop_reason="end_turn"),
        make(18, "session_completed", run_id=None),
        make(19, "of_tomorrow", run_id=None, what="\x1b[2J"),
    ]
