"""Steps of a workflow: what an engine of graphs or pipelines needs of mesh, as plain values.

    result = step_execute(client, "fix the tests", agent="coder")          # a session of its own
    sid = setup_workflow_session(client, "coder")                          # or one for several steps
    result = step_execute(client, "now the docs", session_id=sid, continuation="auto")
    complete_workflow_session(client, sid)

With an ``AsyncClient`` the same functions give awaitables. A step that fails raises the run's error;
``classify_error`` says what an engine should do about it.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Generator, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Any, TypedDict, Unpack, overload

from mesh.client.aio import AsyncClient
from mesh.client.blocking import Client
from mesh.core.record import Record
from mesh.core.records import Event, RunResult
from mesh.errors import InvalidArgument, InvalidState, MeshError, NotFound, shown

#: The name under which sessions of workflows are found (``sessions.list(agent_id=...)``).
WORKFLOW_AGENT_ID = "workflow-agent"
_SESSION_OPTIONS = ("agent_id", "context", "metadata", "tags", "parent_session_id")
_RUN_OPTIONS = (
    "continuation", "continuation_opts", "provider_opts", "policy", "policies", "workspace", "deadline_s",
    "idle_s", "on_event", "timeout_s",
)


class Action(StrEnum):
    """What an engine should do about an error."""

    RETRY = "retry"
    WAIT_AND_RETRY = "wait_and_retry"
    FAILOVER = "failover"
    CANCEL = "cancel"
    ABORT = "abort"


_ACTIONS = {
    "cancelled": Action.CANCEL,
    "max_runs_exceeded": Action.WAIT_AND_RETRY,
    "max_sessions_exceeded": Action.WAIT_AND_RETRY,
    "overloaded": Action.WAIT_AND_RETRY,
    "policy_violation": Action.CANCEL,
    "provider_rate_limited": Action.WAIT_AND_RETRY,
    "provider_unavailable": Action.FAILOVER,
    "queue_full": Action.WAIT_AND_RETRY,
    "workspace_busy": Action.WAIT_AND_RETRY,
}


class ErrorClassification(Record, frozen=True):
    """An error as a workflow engine sees it; ``action`` is one of ``Action``."""

    code: str
    message: str
    retryable: bool
    category: str
    action: str


class StepResult(Record, frozen=True):
    """What a step gave. ``retryable`` is always false: a step that gives a result is done.

    ``stop_reason`` and ``tool_calls`` are those of the output, else of the events.
    """

    output: dict[str, Any]
    content: str | None
    token_usage: dict[str, Any]
    session_id: str
    run_id: str
    events: tuple[Event, ...]
    stop_reason: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    has_tool_calls: bool = False
    persistence_failures: int = 0
    workspace: dict[str, Any] | None = None
    policy: dict[str, Any] | None = None
    retryable: bool = False
    cost_usd: float | None = None


class StepOptions(TypedDict, total=False):
    """Options of a step: those of ``run_once``, or of ``runs.execute`` when it has a session."""

    agent_id: str
    context: Mapping[str, Any]
    metadata: Mapping[str, Any]
    tags: Sequence[str]
    parent_session_id: str
    continuation: str | bool
    continuation_opts: Mapping[str, Any]
    provider_opts: Mapping[str, Any]
    policy: Any
    policies: Any
    workspace: Any
    deadline_s: float
    idle_s: float
    on_event: Any
    timeout_s: float


@overload
def step_execute(
    client: Client, input: str | Mapping[str, Any], *, agent: str | None = None,
    session_id: str | None = None, **options: Unpack[StepOptions],
) -> StepResult: ...


@overload
def step_execute(
    client: AsyncClient, input: str | Mapping[str, Any], *, agent: str | None = None,
    session_id: str | None = None, **options: Unpack[StepOptions],
) -> Awaitable[StepResult]: ...


def step_execute(
    client: Client | AsyncClient, input: str | Mapping[str, Any], *, agent: str | None = None,
    session_id: str | None = None, **options: Unpack[StepOptions],
) -> StepResult | Awaitable[StepResult]:
    """Do one step: a run in that session, else once in a session of its own.

    In a session ``agent`` executes this step in place of the session's own agent.

    Raises:
        InvalidArgument: an unknown option, one of a new session for an existing one, or no agent.
        MeshError: the run's error, see ``classify_error``.
    """
    given: dict[str, Any] = {**options}
    known = _RUN_OPTIONS if session_id is not None else (*_SESSION_OPTIONS, *_RUN_OPTIONS)
    for name in given:
        if name not in known:
            raise InvalidArgument(f"unknown option {name!r} of a step", code="invalid_argument")
    if session_id is None and agent is None:
        raise InvalidArgument("a step needs an agent or a session")
    result: StepResult | Awaitable[StepResult] = _perform(
        client, _step(client, input, agent, session_id, given)
    )
    return result


def _step(
    client: Any, value: Any, agent: str | None, session_id: str | None, options: dict[str, Any]
) -> Generator[Any, Any, StepResult]:
    if session_id is None:
        return step_result((yield client.run_once(agent, value, **options)))
    run = yield client.runs.create(session_id, value)
    try:
        return step_result((yield client.runs.execute(run.id, agent=agent, **options)))
    except (InvalidArgument, InvalidState, NotFound) as error:
        if "run_id" not in error.details:  # it was refused, and would stay pending
            with suppress(MeshError):
                yield client.runs.cancel(run.id)
        raise


def step_result(result: RunResult) -> StepResult:
    """The result of a run as that of a step."""
    output = result.output
    content, calls = output.get("content"), output.get("tool_calls")
    told = calls if isinstance(calls, list) else _calls(result.events)
    named = tuple(call for call in told if isinstance(call, dict))
    return StepResult(
        output,
        content if isinstance(content, str) else None,
        result.token_usage,
        result.session_id,
        result.run_id,
        result.events,
        _stop_reason(result),
        named,
        bool(named),
        workspace=result.workspace,
        policy=result.policy,
        cost_usd=result.cost_usd,
    )


def _stop_reason(result: RunResult) -> str | None:
    ends = (event.data.get("stop_reason") for event in result.events if event.type == "run_completed")
    reason = result.output.get("stop_reason") or next(ends, None)
    return reason if isinstance(reason, str) else None


def _calls(events: Sequence[Event]) -> list[dict[str, Any]]:
    names = ("tool_call_id", "tool_name", "tool_input")
    return [
        {name: event.data.get(name) for name in names}
        for event in events
        if event.type == "tool_call_started"
    ]


@overload
def setup_workflow_session(
    client: Client, agent: str, *, agent_id: str = WORKFLOW_AGENT_ID,
    context: Mapping[str, Any] | None = None, metadata: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
) -> str: ...


@overload
def setup_workflow_session(
    client: AsyncClient, agent: str, *, agent_id: str = WORKFLOW_AGENT_ID,
    context: Mapping[str, Any] | None = None, metadata: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
) -> Awaitable[str]: ...


def setup_workflow_session(
    client: Client | AsyncClient, agent: str, *, agent_id: str = WORKFLOW_AGENT_ID,
    context: Mapping[str, Any] | None = None, metadata: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
) -> str | Awaitable[str]:
    """Start a session for several steps; its id."""

    def plan(sessions: Any) -> Generator[Any, Any, str]:
        session = yield sessions.start(
            agent, agent_id=agent_id, context=context, metadata=metadata, tags=tags
        )
        return str(session.id)

    found: str | Awaitable[str] = _perform(client, plan(client.sessions))
    return found


@overload
def complete_workflow_session(
    client: Client, session_id: str, *, status: str = "completed", error: Any = None
) -> None: ...


@overload
def complete_workflow_session(
    client: AsyncClient, session_id: str, *, status: str = "completed", error: Any = None
) -> Awaitable[None]: ...


def complete_workflow_session(
    client: Client | AsyncClient, session_id: str, *, status: str = "completed", error: Any = None
) -> Awaitable[None] | None:
    """End such a session for good: completed, or failed with the error of the workflow.

    Raises:
        InvalidArgument: ``invalid_status``, another status; or an error for one that is completed.
        InvalidState: it is over already, or a step of it still runs.
    """
    if status not in ("completed", "failed"):
        text = f"a workflow ends completed or failed, not {shown(status)}"
        raise InvalidArgument(text, code="invalid_status")
    if status == "completed" and error is not None:
        raise InvalidArgument("an error is for status='failed'")

    def plan(sessions: Any) -> Generator[Any, Any, None]:
        if status == "completed":
            yield sessions.complete(session_id)
        else:
            yield sessions.fail(session_id, error or MeshError("Workflow failed", code="internal_error"))

    done: Awaitable[None] | None = _perform(client, plan(client.sessions))
    return done


def classify_error(error: MeshError) -> ErrorClassification:
    """What an engine should do about the error of a step.

    Raises:
        InvalidArgument: it is no error of mesh.
    """
    if not isinstance(error, MeshError):
        raise InvalidArgument(f"an error of mesh is classified, not {shown(error)}")
    action = _ACTIONS.get(error.code, Action.RETRY if error.retryable else Action.ABORT)
    return ErrorClassification(error.code, error.message, error.retryable, error.category, action)


def _perform(client: Client | AsyncClient, plan: Generator[Any, Any, Any]) -> Any:
    """Take the plan's steps: what a ``Client`` answered is there, what an ``AsyncClient`` did is awaited."""
    return _awaited(plan) if isinstance(client, AsyncClient) else _taken(plan)


def _taken(plan: Generator[Any, Any, Any]) -> Any:
    try:
        answer = next(plan)
        while True:
            answer = plan.send(answer)
    except StopIteration as stop:
        return stop.value


async def _awaited(plan: Generator[Any, Any, Any]) -> Any:
    try:
        asked = next(plan)
        while True:
            try:
                answer = await asked if inspect.isawaitable(asked) else asked
            except MeshError as error:
                asked = plan.throw(error)
            else:
                asked = plan.send(answer)
    except StopIteration as stop:
        return stop.value


__all__ = [
    "WORKFLOW_AGENT_ID",
    "Action",
    "ErrorClassification",
    "StepOptions",
    "StepResult",
    "classify_error",
    "complete_workflow_session",
    "setup_workflow_session",
    "step_execute",
    "step_result",
]
