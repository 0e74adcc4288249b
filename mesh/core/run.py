"""What a run is inside its partition, and which steps its status allows.

Rules of this file:

1. pending -> queued -> running (<-> waiting_approval, <-> paused) -> completed | failed | cancelled |
   timeout. A run that has not started can only be cancelled; the one exception is a steering prompt, which is
   completed when another run took its text. A terminal status never changes.
2. The claim (attempt, runner, runner incarnation) is written in the commit that dispatches. What a runner
   says under another attempt is fenced. A claimed run that its runner has not begun has no ``started_at``.
3. ``version`` grows with every step.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mesh.core.continuation import checked_budget, checked_mode
from mesh.core.manifest import CAPABILITY_TYPES
from mesh.core.policy import checked_stack
from mesh.core.records import TERMINAL, CostState, RunStatus
from mesh.core.redact import Redactor
from mesh.core.wire import check_depth
from mesh.core.workspace import checked_workspace
from mesh.errors import InvalidArgument, InvalidState, shown

_STEPS: dict[RunStatus, frozenset[RunStatus]] = {
    RunStatus.PENDING: frozenset((RunStatus.QUEUED, RunStatus.CANCELLED)),
    RunStatus.QUEUED: frozenset(
        (RunStatus.RUNNING, RunStatus.CANCELLED, RunStatus.FAILED, RunStatus.COMPLETED)
    ),
    RunStatus.RUNNING: frozenset((*TERMINAL, RunStatus.WAITING_APPROVAL, RunStatus.PAUSED, RunStatus.QUEUED)),
    RunStatus.PAUSED: frozenset((*TERMINAL, RunStatus.RUNNING)),
    RunStatus.WAITING_APPROVAL: frozenset((*TERMINAL, RunStatus.RUNNING)),
}
#: The code in the store, for its indexes: below TERMINAL_CODE a run is not over, from 1 on it is active.
#: A paused run shares the code of one that waits for an approval; the record tells them apart.
STATUS_CODE = {
    RunStatus.PENDING: 0, RunStatus.QUEUED: 1, RunStatus.RUNNING: 2, RunStatus.WAITING_APPROVAL: 3,
    RunStatus.PAUSED: 3, RunStatus.COMPLETED: 4, RunStatus.FAILED: 5, RunStatus.CANCELLED: 6,
    RunStatus.TIMEOUT: 7,
}
TERMINAL_CODE = STATUS_CODE[RunStatus.COMPLETED]
OPTIONS = frozenset((
    "deadline_s", "idle_s", "policies", "provider_opts", "required_capabilities", "optional_capabilities",
    "continuation", "continuation_opts", "agent", "workspace",
))
#: The option of a run that makes a summary: up to which seq. Only the node sets it.
COMPACT = "compact"


class RunState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A run as its partition stores it. New fields go to the end and have a default.

    The collector does not look at it: decoded data cannot point back to the run.
    """

    n: int
    id: str
    session_id: str
    status: RunStatus
    input: Any
    options: dict[str, Any]
    created_at: float
    once: bool = False  #: of run_once: settling it settles its session
    attempt: int = 0
    runner: int | None = None
    runner_incarnation: int = 0
    cancelling: bool = False
    batch: int = 0  #: number of the runner's last batch that is in the log
    started_at: float | None = None
    ended_at: float | None = None
    output: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    metadata: dict[str, Any] = {}
    token_usage: dict[str, Any] = {}
    cost_usd: float | None = None
    provider: str | None = None
    provider_metadata: dict[str, Any] = {}
    queued_at: float = 0.0  #: its place in the session's queue, also after a restart
    version: int = 1
    reason: str | None = None  #: why it was told to stop: cancel, interrupt, rollback, abort ...
    said: bool = False  #: its messages are in the log
    queue: str | None = None  #: of a prompt: where it waits, or waited (follow_up, steering)
    takes: int = 0  #: how often this attempt took steering prompts
    taken: tuple[str, ...] = ()  #: which: the last ones, and those before them where it may be executed again
    given: int = 0  #: how many of these before the last time
    turn_count: int = 0
    cost_state: CostState = CostState.NO_USAGE
    earlier: dict[str, Any] | None = None  #: usage and cost of the attempts before this one
    reported_at: float = 0.0  #: when its row took what its runner reported, before the end
    approvals: dict[str, dict[str, Any]] = {}  #: what it asked humans, by name: open, and the last answered
    counts: dict[str, float] = {}  #: what policies count beside tokens and cost: metric -> number
    held: dict[str, float] = {}  #: reserved for calls that it is about to make: metric -> number
    holds: int = 0  #: number of this attempt's last word on that
    ahead: bool = False  #: a prompt that interrupts, or what steers it: steering prompts stay behind it


def step(run: RunState, status: RunStatus, **changes: Any) -> RunState:
    """The run in another status.

    Raises:
        InvalidState: ``invalid_transition``.
    """
    if status not in _STEPS.get(run.status, ()):
        raise InvalidState(
            f"run {run.id} is {run.status}; it cannot become {status}", code="invalid_transition",
            details={"status": run.status.value, "run_id": run.id},
        )
    return msgspec.structs.replace(run, status=status, version=run.version + 1, **changes)


def checked_options(options: Any) -> dict[str, Any]:
    """The options of a run, checked.

    Raises:
        InvalidArgument: names the option.
    """
    if not options and (options is None or type(options) is dict):
        return {}
    if type(options) is not dict:
        raise InvalidArgument(f"options must be a map, not {type(options).__name__}")
    for name in options:
        if name not in OPTIONS:
            raise InvalidArgument(f"unknown run option {shown(name, 60)}", details={"known": sorted(OPTIONS)})
    for name in ("deadline_s", "idle_s"):
        limit_s = options.get(name)
        if limit_s is not None and not (type(limit_s) in (int, float) and 0 < limit_s < 10**9):
            raise InvalidArgument(f"{name} must be seconds from above 0 to 10**9, not {shown(limit_s, 40)}")
    for name in ("required_capabilities", "optional_capabilities"):
        names = options.get(name) or ()
        if type(names) not in (list, tuple) or not all(type(c) is str for c in names):
            raise InvalidArgument(f"{name} must be a list of strs, not {shown(names, 60)}")
        unknown = [c for c in names if c not in CAPABILITY_TYPES]
        if unknown:
            raise InvalidArgument(
                f"{name}: no capability type {shown(unknown[0], 60)}",
                code="invalid_capability_type",
                details={"known": sorted(CAPABILITY_TYPES)},
            )
    if options.get("policies") is not None:
        options = {**options, "policies": [checked_stack(options["policies"]).to_map()]}
    given = options.get("provider_opts")
    if given is not None and not (type(given) is dict and all(type(key) is str for key in given)):
        raise InvalidArgument(f"provider_opts must be a map with str keys, not {shown(given, 60)}")
    check_depth(given)
    checked_mode(options.get("continuation"))
    checked_budget(options.get("continuation_opts"))
    agent = options.get("agent")
    if agent is not None and (type(agent) is not str or not agent):
        raise InvalidArgument(f"agent must be the name of an agent, not {shown(agent, 60)}")
    if options.get("workspace") is not None:
        options = {**options, "workspace": checked_workspace(options["workspace"])}
    return {name: value for name, value in options.items() if value is not None}


def agent_of(run: RunState, session_agent: str) -> str:
    """Who executes the run: the session's agent, unless the run names another one."""
    return run.options.get("agent") or session_agent


def executor_of(run: RunState, session_agent: str) -> str:
    """Who executes the run: of a router the agent that it found, as far as that is known."""
    routing = run.metadata.get("routing")
    found = routing.get("routed_to") if type(routing) is dict else None
    return found if type(found) is str else agent_of(run, session_agent)


def checked_result(settle: dict[str, Any]) -> dict[str, Any]:
    """What the run gave, of a runner's settlement: an output or an error, as a map that can be read back."""
    output, error = settle.get("output"), settle.get("error")
    return {
        "output": None if output is None else _text_keys(output),
        "error": None if error is None else _text_keys(error),
    }


def _text_keys(value: Any) -> dict[str, Any]:
    return {str(key): item for key, item in value.items()} if type(value) is dict else {"content": value}


def messages(run_input: Any) -> list[dict[str, Any]]:
    """The input's messages, one ``message_sent`` each: of ``{"messages"}``, ``{"prompt"}`` or a plain str."""
    if type(run_input) is str:
        run_input = {"prompt": run_input}
    if type(run_input) is not dict:
        return []
    listed = run_input.get("messages")
    if type(listed) is list:
        found = []
        for message in listed:
            if type(message) is dict and message.get("content"):
                content = message["content"]
                role = str(message.get("role") or "user").lower()
                found.append({"role": role, "content": content if type(content) is str else _said(content)})
        return found
    prompt = run_input.get("prompt")
    return [{"role": "user", "content": prompt}] if type(prompt) is str and prompt else []


def _said(content: Any) -> str:
    """A message's content as text: of blocks their texts, and the names of the others."""
    if type(content) is not list or not all(type(b) is dict and type(b.get("type")) is str for b in content):
        return str(content)
    return "".join(b["text"] if type(b.get("text")) is str else f"[{b['type']}]" for b in content)


def to_wire(run: RunState, redactor: Redactor) -> dict[str, Any]:
    """The run map that travels; ``row`` is the cursor of lists. The input alone is stored as it was given."""
    return {
        "id": run.id, "session_id": run.session_id, "status": str(run.status),
        "input": redactor.view(run.input), "output": run.output, "error": run.error,
        "metadata": run.metadata, "token_usage": run.token_usage, "cost_usd": run.cost_usd,
        "attempt": run.attempt, "created_at": run.created_at, "started_at": run.started_at,
        "ended_at": run.ended_at, "provider": run.provider,
        "provider_metadata": run.provider_metadata, "row": run.n, "version": run.version,
        "turn_count": run.turn_count, "cost_state": str(run.cost_state),
    }


_DECODER = msgspec.msgpack.Decoder(RunState)
_ENCODER = msgspec.msgpack.Encoder()


def encode(run: RunState) -> bytes:
    """The stored form."""
    return _ENCODER.encode(run)


def decode(data: bytes) -> RunState:
    """The inverse of ``encode``."""
    return _DECODER.decode(data)


__all__ = [
    "COMPACT",
    "OPTIONS",
    "STATUS_CODE",
    "TERMINAL_CODE",
    "RunState",
    "agent_of",
    "checked_options",
    "checked_result",
    "decode",
    "encode",
    "executor_of",
    "messages",
    "step",
    "to_wire",
]
