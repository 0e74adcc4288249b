"""A question to a human: may this tool be called, may this run go on? What is asked, and what is answered."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from mesh.core.record import Record
from mesh.core.wire import repack

#: How far an answer reaches: this call; this tool for the rest of the run; this tool in later runs, too.
ONCE, TURN, SESSION = SCOPES = ("once", "turn", "session")
#: Open questions of one run; a further one is denied at once.
OPEN_MAX = 100
#: Answered questions that a run remembers, so that a second answer is told what the first one was.
KEPT_MAX = 256
#: How long a question waits when its policy does not say; then the default decides.
LIMIT_S = 3_600.0
DENY, APPROVE = DEFAULTS = ("deny", "approve")
#: A larger input is shown with its texts cut.
INPUT_BYTES_MAX = 64 * 1024
CUT_CHARS = 1_000
CUT_ITEMS = 50
CUT_DEPTH = 4
#: Who decided when nobody did.
NODE = "node"
#: Where a session's metadata keeps the tools that may always be called: names without case.
APPROVED_TOOLS = "approved_tools"
APPROVED_TOOLS_MAX = 1_024
TEXT_CHARS_MAX = 2_000


class Approval(Record, frozen=True):
    """One question of a run. ``approved`` is None while nobody has answered."""

    run_id: str
    session_id: str
    tool_call_id: str
    tool_name: str | None  #: None: a budget is used up; may the run go on?
    tool_input: Any
    policy_name: str
    violation_kind: str  #: approval_required, budget_exceeded or tool_denied
    asked_at: float
    limit_s: float
    default: str  #: deny or approve: what holds when the time is over
    approved: bool | None = None
    scope: str | None = None
    by: str | None = None
    reason: str | None = None
    decided_at: float | None = None


def is_open(asked: Mapping[str, Any]) -> bool:
    """Whether nobody has answered."""
    return asked.get("approved") is None


def digest(tool: str, tool_input: Any) -> int:
    """What tells this question from others under its name. A number: a text would be redacted."""
    return int.from_bytes(blake2b(repack([tool, tool_input]), digest_size=8).digest()) >> 1


def shown_input(tool_input: Any) -> Any:
    """An input as a human is shown it: whole, or with what is long cut and the cut marked."""
    if len(repack(tool_input)) <= INPUT_BYTES_MAX:
        return tool_input
    cut = _cut(tool_input, CUT_DEPTH)
    return cut if len(repack(cut)) <= INPUT_BYTES_MAX else _cut(tool_input, 1)


def _cut(value: Any, depth: int) -> Any:
    if isinstance(value, str | bytes):
        short = value[:CUT_CHARS] if isinstance(value, str) else ""
        return value if len(value) <= CUT_CHARS else f"{short} ... ({len(value)} in all)"
    if not isinstance(value, list | dict):
        return value
    left = len(value) - CUT_ITEMS
    if depth == 0:
        return f"... ({len(value)} in all)"
    if isinstance(value, list):
        return [_cut(item, depth - 1) for item in value[:CUT_ITEMS]] + [f"... ({left} more)"] * (left > 0)
    found = {str(k)[:CUT_CHARS]: _cut(v, depth - 1) for k, v in list(value.items())[:CUT_ITEMS]}
    return {**found, **({"...": f"{left} more"} if left > 0 else {})}


__all__ = [
    "APPROVE", "APPROVED_TOOLS", "APPROVED_TOOLS_MAX", "CUT_CHARS", "CUT_DEPTH", "CUT_ITEMS", "DEFAULTS",
    "DENY", "INPUT_BYTES_MAX", "KEPT_MAX", "LIMIT_S", "NODE", "ONCE", "OPEN_MAX", "SCOPES", "SESSION",
    "TEXT_CHARS_MAX", "TURN", "Approval", "digest", "is_open", "shown_input",
]
