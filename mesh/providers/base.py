"""What every provider keeps to, and what an agent is given.

A provider turns one run into a stream of *pieces*:

- ``str``: a piece of the answer's text. It becomes one ``message_streamed`` event.
- a map ``{"type": event type, "data": {...}}`` (and, if wanted, ``metadata``, ``correlation_id`` and ``ts``,
  when it happened): one event of that type. Its values become plain data (``core/plain.py``).
  ``token_usage_updated`` states the run's totals so far, or what was used since the last one:
  ``data["mode"]`` (or the agent's ``usage_mode``) is "total" or "delta".
- ``Output`` or ``{"type": "output", "data": {...}}``: what the run gives. Without it the output is the
  joined text. The map may hold ``token_usage`` too.
- ``{"type": "run_started", "data": {"provider_session_id", "model"}}``: how the provider calls itself, and
  ``{"type": "run_completed", "data": {"stop_reason", "total_cost_usd", "token_usage"}}``: how it ended. These
  two events are the node's own; what is said here goes into the run's record and into its terminal event.

The node writes ``run_started`` before the first piece and the one terminal event after the last, and
``message_received`` with the whole text when the provider did not write one itself. A provider that
fails raises: ``ProviderFailure`` (or ``mesh.RunError``) keeps its code, any other exception is
``provider_error``. A provider is cancelled by ``asyncio.CancelledError`` at its await; it has 4 seconds to
clean up, and whatever it produces then is dropped.
"""

from __future__ import annotations

import asyncio
import difflib
import os
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Protocol

import msgspec

from mesh.core.continuation import SESSION_RESUME, checked_budget, checked_mode
from mesh.core.manifest import CAPABILITY_TYPES, Capability
from mesh.core.message import Transcript
from mesh.core.provider_error import ProviderError
from mesh.core.record import Record
from mesh.core.run import messages
from mesh.core.usage import UsageMode
from mesh.errors import ConfigError, InvalidArgument, RunError, shown
from mesh.providers.live import Paused, Steering
from mesh.providers.permission import Blocking, Budget, Reservation

#: The type of the map that says what the run gives; no event.
OUTPUT = "output"
#: Capability types (spec 1.7).
STREAMING = {"name": "streaming", "type": "sampling"}
_BY_NAME: dict[str, Mapping[str, Any]] = {"streaming": STREAMING, "session_resume": SESSION_RESUME}


class SessionInfo(Record, frozen=True):
    """The session a run belongs to, as it was when the run was dispatched."""

    id: str
    agent: str = ""
    agent_id: str = ""
    incarnation: int = 0
    context: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    tags: tuple[str, ...] = ()


class Output(msgspec.Struct, kw_only=True):
    """What a run gives, beyond its events."""

    data: dict[str, Any]  #: becomes ``RunResult.output``
    token_usage: dict[str, Any] = {}
    cost_usd: float | None = None
    provider_metadata: dict[str, Any] = {}
    completion: dict[str, Any] = {}  #: goes into ``run_completed``; its ``stop_reason`` is else "end_turn"


class ProviderFailure(RunError):
    """A run failed in a way that its provider understands."""

    def __init__(
        self, message: str, *, code: str = "provider_error", details: Mapping[str, Any] | None = None,
        provider_error: dict[str, Any] | None = None, output: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message, code=code, details=details, provider_error=provider_error)
        self.output = output


class Cancellation:
    """Whether the run is over for the node: cancelled, or past its deadline.

    True or False wherever it is asked, from any thread: ``if run.cancelled: return``.
    A coroutine may also ``await run.cancelled.wait()``.
    """

    __slots__ = ("_set", "_waiters")

    def __init__(self) -> None:
        self._set = False
        self._waiters: list[asyncio.Future[None]] = []

    def __bool__(self) -> bool:
        return self._set

    def __repr__(self) -> str:
        return f"Cancellation({self._set})"

    def is_set(self) -> bool:
        """The same as ``bool``, spelled as ``threading.Event`` spells it."""
        return self._set

    def set(self) -> None:
        """Called by the node, on its loop."""
        self._set = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    def child(self) -> Cancellation:
        """One of its own for a part of the run: over with this one, or before it."""
        part = Cancellation()
        if self._set:
            part.set()
        else:
            told = asyncio.get_running_loop().create_future()
            told.add_done_callback(lambda _: part.set())
            self._waiters.append(told)
        return part

    async def wait(self) -> None:
        """Return when the run is cancelled."""
        if not self._set:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter


class RunContext:
    """What an agent is given: ``async def agent(run: mesh.RunContext)``.

    What to do: ``prompt`` (a str), ``messages``, ``input`` (as the caller gave it), ``options`` (the call's
    ``provider_opts``); what was said before: ``transcript``, when the run continues its session, else empty.
    Whose it is: ``run_id``, ``session`` (id, agent, context, metadata), ``context``, ``attempt``,
    ``workspace`` (the folder of its own, or None), ``state`` (a dict, as long as the session is live here).
    While it works: ``steering``, ``paused``, ``cancelled``, ``left_s``, ``permit``, ``reserve``, ``tools``.
    """

    __slots__ = (
        "_states", "attempt", "blocking", "budget", "cancelled", "deadline_at", "guard", "input", "late",
        "options", "paused", "resume", "rules", "run_id", "session", "steering", "tools", "transcript",
        "workspace",
    )

    def __init__(
        self, run_id: str, session: SessionInfo, input: Any, *, attempt: int = 1,
        options: dict[str, Any] | None = None, states: MutableMapping[str, dict[str, Any]] | None = None,
        late: Callable[[], None] = lambda: None, steering: Steering | None = None,
    ) -> None:
        self.run_id = run_id
        self.attempt = attempt  #: from 1; higher only for an agent that is declared ``idempotent``
        self.session = session
        self.input = input  #: as the caller gave it
        self.options = options or {}  #: ``provider_opts`` of the call
        self.cancelled = Cancellation()
        self.paused = Paused()
        self.steering = steering or Steering()
        self.guard: Callable[[str, Any, str | None], Awaitable[None]] | None = None
        self.budget: Budget | None = None
        #: What the policy says to who enforces rules himself: ``allowed_tools`` or ``denied_tools``, and
        #: ``max_tokens``. ``permit`` looks at each call in any case.
        self.rules: dict[str, Any] = {}
        self.blocking = Blocking()
        #: The conversation before this run, when the run continues it; else without messages.
        self.transcript = Transcript(session.id)
        #: The provider's own session to go on with, for one that declares ``session_resume``, or None.
        self.resume: str | None = None
        self.late = late  #: for providers: on the loop, count a word that came after the run's end
        self.deadline_at: float | None = None  #: on the loop's clock; None: it has its time
        #: Opens the tools of the agent's table: ``async with run.tools() as box``; None: it names none.
        self.tools: Callable[[], AbstractAsyncContextManager[Any]] | None = None
        self.workspace: str | None = None  #: the folder of the run, when it was given one
        self._states: MutableMapping[str, dict[str, Any]] = {} if states is None else states

    @property
    def context(self) -> dict[str, Any]:
        """The session's ``context`` map."""
        return self.session.context

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages of THIS run's input, ``[{"role", "content"}, ...]``; a prompt is one user message.

        What was said in earlier runs is in ``transcript``.
        """
        return messages(self.input)

    @property
    def prompt(self) -> str:
        """The prompt, or the user's messages joined by newlines; "" for an input of any other shape."""
        given = self.input
        if isinstance(given, str):
            return given
        if isinstance(given, dict) and isinstance(given.get("prompt"), str):
            return str(given["prompt"])
        return "\n".join(message["content"] for message in messages(given) if message["role"] == "user")

    @property
    def left_s(self) -> float | None:
        """How long the run may still take (``deadline_s``), None when nobody set a limit."""
        if self.deadline_at is None:
            return None
        return max(0.0, self.deadline_at - asyncio.get_running_loop().time())

    async def permit(self, tool: str, tool_input: Any = None, *, tool_call_id: str | None = None) -> None:
        """Ask whether a tool may be called with this input, before it is called. Returns when it may: at
        once, or when a human said so, where the policy asks one.

        Raises:
            RunError: ``tool_permission_denied``: the policy forbids it, or a human did. Do not call the tool.
            CancelledError: the policy forbids it, and that ends the run.
            InvalidArgument: the input cannot be shown to a human. Nor call it then.
        """
        if self.guard is not None:
            await self.guard(tool, tool_input, tool_call_id)

    def permit_blocking(
        self, tool: str, tool_input: Any = None, *, tool_call_id: str | None = None
    ) -> None:
        """``permit`` for an agent that is a plain function: its thread waits.

        Raises:
            RunError: ``tool_permission_denied``; ``cancelled``: the run ended meanwhile.
            InvalidArgument: as ``permit``; or this is a coroutine, which awaits ``permit``.
        """
        if self.guard is not None:
            self.blocking.wait(self.permit(tool, tool_input, tool_call_id=tool_call_id))

    def reserve(self, **amounts: float) -> Reservation:
        """Hold a part of the budgets for a call: ``async with run.reserve(total_tokens=4_000): ...``, or
        ``with`` in a plain function. Report what the call used inside the block.

        Entering it raises:
            RunError: ``policy_violation``: it does not fit. Do not make the call. Where that ends the run, a
                coroutine is cancelled instead, and a plain function's error is ``cancelled``.
        """
        return Reservation(self.budget, self.blocking, amounts)

    def left(self, metric: str) -> float | None:
        """How much of ``total_tokens``, ``cost_usd`` or ``tool_calls`` the budgets leave, by what is known of
        other runs now; None when nothing limits it. Reserve it to be sure."""
        return None if self.budget is None else self.budget.left(metric)

    @property
    def state(self) -> dict[str, Any]:
        """A dict that lives as long as the live session does in this process. Nothing of it is stored."""
        return self._states.setdefault(self.session.id, {})


Piece = str | dict[str, Any] | Output


class Provider(Protocol):
    """One agent's way to execute runs. One object serves many runs at the same time.

    One that holds something between runs (connections) has ``async def close()`` too: called when the agent
    is replaced; what executes then goes on.
    """

    name: str  #: the provider's name, as it stands in every event
    capabilities: list[dict[str, Any]]
    enforces: frozenset[str]  #: what it does about policies: see ``kinds.ENFORCED``
    idempotent: bool  #: a run whose runner died may be executed again
    usage_mode: str  #: how its ``token_usage_updated`` count: "total" of the run so far, or "delta"

    def started(self, run: RunContext) -> dict[str, Any]:
        """What ``run_started`` says beyond agent and provider. May refuse the run by raising."""
        ...

    def run(self, run: RunContext) -> AsyncIterator[Piece]:
        """Execute one run. An async generator: when it is closed, nothing of the run is left."""
        ...


def capabilities_of(table: Mapping[str, Any], default: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The capabilities of an agent: its table's ``capabilities`` (names, or maps), else the provider's own.

    Raises:
        ConfigError: not a list of names or of maps with ``name`` and ``type``.
    """
    given = table.get("capabilities")
    if given is None:
        return [_capability(item) for item in default]
    if not isinstance(given, list):
        raise ConfigError(f"capabilities = {given!r:.80}: expected a list")
    return [_capability(item) for item in given]


def _capability(item: Any) -> dict[str, Any]:
    if isinstance(item, str):
        item = _BY_NAME.get(item, {"name": item, "type": "tool"})
    if not isinstance(item, Mapping):
        raise ConfigError(f"capability {shown(item)}: expected a name, or a map with name and type")
    try:
        return Capability.from_map(item).to_map()
    except InvalidArgument as exc:
        message = f"capability {shown(item.get('name'))}: {exc.message}"
        if exc.code == "invalid_capability_type":
            message += nearest_name(str(item.get("type")), CAPABILITY_TYPES)
        raise ConfigError(message, code=exc.code) from exc


def continuation_of(table: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    """How an agent's runs continue their session when they do not say so themselves: mode and options.

    Raises:
        ConfigError: no mode, or a wrong option.
    """
    try:
        given = table.get("continuation_opts") or {}
        checked_budget(given)
        return checked_mode(table.get("continuation")), given
    except InvalidArgument as exc:
        raise ConfigError(exc.message) from exc


#: Keys of an agent's table that any provider accepts.
COMMON_KEYS = (
    "provider", "capabilities", "idempotent", "description", "usage_mode", "continuation",
    "continuation_opts", "native_process", "isolation",
)


def check_keys(table: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse a key that the provider does not know, naming the nearest one.

    Raises:
        ConfigError: an unknown key.
    """
    accepted = (*COMMON_KEYS, *known)
    for key in table:
        if key not in accepted:
            raise ConfigError(f"unknown key {key!r}{nearest_name(key, accepted)}")


def check_options(options: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse a ``provider_opts`` of a call that the provider does not know, naming the nearest one.

    Raises:
        ConfigError: an unknown name.
    """
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown provider_opts {name!r:.80}{nearest_name(name, known)}")


def nearest_name(word: str, names: Iterable[str]) -> str:
    """`` (did you mean 'x'?)``, or the list of what there is."""
    close = difflib.get_close_matches(word, list(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(sorted(names))})"


def checked(table: Mapping[str, Any], key: str, kinds: tuple[type, ...], default: Any) -> Any:
    """One setting of an agent's table, its type proven.

    Raises:
        ConfigError: another type.
    """
    value = table.get(key, default)
    if value is default:
        return value
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigError(f"{key} = {value!r:.80}: expected {names}, not {type(value).__name__}")
    return value


def from_environment(values: Mapping[str, str], where: str) -> dict[str, str]:
    """Texts of a table; ``env:NAME`` stands for a secret and is taken from the node's environment.

    Raises:
        ConfigError: one is not set there; ``where`` says whose.
    """
    found = {}
    for name, value in values.items():
        source = value.removeprefix("env:")
        if source != value and source not in os.environ:
            raise ConfigError(f"{where}: {name}: {source} is not set in the node's environment")
        found[name] = value if source == value else os.environ[source]
    return found


def usage_mode_of(table: Mapping[str, Any], default: str = UsageMode.TOTAL) -> str:
    """How an agent counts tokens: its table's ``usage_mode``, else as its provider does.

    Raises:
        ConfigError: neither delta nor total.
    """
    mode: str = checked(table, "usage_mode", (str,), str(default))
    if mode not in tuple(UsageMode):
        raise ConfigError(f"usage_mode = {mode!r:.80}: expected delta or total")
    return mode


@contextmanager
def as_failure() -> Iterator[None]:
    """What is wrong with a call's own settings fails the run with ``validation_error``."""
    try:
        yield
    except ConfigError as exc:
        raise ProviderFailure(exc.message, code="validation_error") from exc


def provider_error(
    provider: str, kind: str, message: str, *, exit_code: int | None = None, stderr: str | None = None
) -> dict[str, Any]:
    """The stable payload of a provider's failure (spec 1.6); ``stderr`` is cut to its bounds."""
    return ProviderError.of(provider, kind, message, exit_code=exit_code, stderr=stderr).to_map()


__all__ = [
    "COMMON_KEYS", "OUTPUT", "STREAMING", "Cancellation", "Output",
    "Piece", "Provider", "ProviderFailure", "RunContext", "SessionInfo", "as_failure", "capabilities_of",
    "check_keys", "check_options", "checked", "continuation_of", "from_environment", "nearest_name",
    "provider_error", "usage_mode_of",
]
