"""The records that users see: frozen, typed, each with ``to_map()`` and ``from_map()``, its exact inverse.

``route``, ``output``, ``data`` and the like are plain dicts that belong to the caller. Times are floats,
seconds since the epoch (UTC); beside each stands a property that gives an aware ``datetime``, as ``created``
beside ``created_at``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from mesh.core.events import type_code
from mesh.core.plain import RECORD_DEPTH_MAX, converted, utc
from mesh.core.record import Count, Number, Record, Text
from mesh.core.route_found import Provenance, RouteRecord
from mesh.errors import InvalidArgument, MeshError, RemoteProtocolError, from_wire

if TYPE_CHECKING:
    from datetime import datetime

T = TypeVar("T")


class SessionStatus(StrEnum):
    """pending -> active | cancelled | failed; active <-> paused; both -> completed | cancelled | failed."""

    PENDING = "pending"
    ACTIVE = "active"
    PAUSED = "paused"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"


class RunStatus(StrEnum):
    """pending -> queued -> running (<-> waiting_approval, paused) -> one of the four terminal ones."""

    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    WAITING_APPROVAL = "waiting_approval"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"


class Source(StrEnum):
    """Where a resolution came from."""

    STATE_HIT = "state_hit"
    PARTITION_FALLBACK = "partition_fallback"
    PROVIDED_FALLBACK = "provided_fallback"


class CostState(StrEnum):
    """How ``cost_usd`` is known."""

    REPORTED = "reported"  #: the provider said it
    COMPUTED = "computed"  #: counts of tokens times prices
    UNKNOWN_PRICE = "unknown_price"  #: tokens were used, and nobody knows what they cost
    NO_USAGE = "no_usage"  #: nothing that costs was reported


class StopReason(StrEnum):
    """Why a live session ended (``lifecycle.stopped``)."""

    STOPPED = "stopped"
    NORMAL = "normal"
    IDLE = "idle"
    SHUTDOWN = "shutdown"
    CRASH = "crash"
    RESTART_EXHAUSTED = "restart_exhausted"
    NODE_LOST = "node_lost"


class RouteEntry(Record, frozen=True):
    """One row of ``routes.list``."""

    session_key: str
    route: dict[str, Any]
    age_ms: int
    ttl_left_ms: int
    provenance: Provenance = Provenance.LEARNED


class Resolution(Record, frozen=True):
    """Where a reply should go. ``fallback_reason`` is None on a hit, else stale, miss,
    thread_scope_miss or session_unavailable."""

    external_room_id: Any
    route: dict[str, Any]
    partition: int
    session_key: str
    source: Source
    fallback: bool
    stale: bool
    fallback_reason: str | None = None


class PruneResult(Record, frozen=True):
    """``pruned`` entries over ``partitions`` partitions; those that did not answer count 0."""

    pruned: int
    partitions: int


class Handle(Record, frozen=True):
    """The address of ONE incarnation of a live session: the process that hosts it, and its number."""

    session_id: str
    runner: int
    pid: int
    incarnation: int


class Session(Record, frozen=True):
    """A conversation. ``handle`` is None when it is not live.

    ``version`` grows with every change of its state; pass it as ``if_version`` to refuse a step on a session
    that changed meanwhile. ``slots`` is how many runs it executes at a time, None for the node's setting.
    """

    REFUSALS = {"status": "invalid_status"}

    id: Text
    agent: Text
    agent_id: Text
    status: SessionStatus
    parent_session_id: str | None = None
    metadata: dict[str, Any] = {}
    context: dict[str, Any] = {}
    tags: tuple[str, ...] = ()
    created_at: float = 0.0
    updated_at: float = 0.0
    seq: Count = 0
    error: dict[str, Any] | None = None
    handle: Handle | None = None
    version: int = 1
    slots: int | None = None
    deleted_at: float | None = None  #: hidden from lists since then
    pruned: int = 0  #: events of its log that retention removed
    pruned_to: int = 0  #: what is missing up to this seq was removed, and is no loss
    fork_seq: int | None = None  #: its transcript begins with that of ``parent_session_id`` up to this seq
    driver: dict[str, Any] | None = None  #: who drives it: by, claim, since, ttl_s
    protected: bool = False  #: it has a token

    @property
    def created(self) -> datetime | None:
        """``created_at`` as an aware datetime."""
        return utc(self.created_at)

    @property
    def updated(self) -> datetime | None:
        """``updated_at`` as an aware datetime."""
        return utc(self.updated_at)


class Run(Record, frozen=True):
    """One execution of an agent in a session.

    ``running`` means claimed by a runner; ``started_at`` is when the agent began, None while the runner's
    limit lets it wait. ``version`` grows with every step.
    """

    REFUSALS = {"status": "invalid_status"}

    id: Text
    session_id: Text
    status: RunStatus
    input: Any = None
    output: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    metadata: dict[str, Any] = {}
    token_usage: dict[str, Any] = {}
    cost_usd: float | None = None
    attempt: Count = 0
    turn_count: Count = 0
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    provider: str | None = None
    provider_metadata: dict[str, Any] = {}
    version: int = 1
    cost_state: CostState = CostState.NO_USAGE

    @property
    def created(self) -> datetime | None:
        """``created_at`` as an aware datetime."""
        return utc(self.created_at)

    @property
    def started(self) -> datetime | None:
        """``started_at`` as an aware datetime; None before it began."""
        return utc(self.started_at)

    @property
    def ended(self) -> datetime | None:
        """``ended_at`` as an aware datetime; None before its end."""
        return utc(self.ended_at)

    @property
    def policy(self) -> dict[str, Any] | None:
        """What a policy found: policy, action, violations, metadata; None without one, and before its end."""
        return self.metadata.get("policy")

    @property
    def workspace(self) -> dict[str, Any] | None:
        """What became of its folder: backend, path, refs, diff, rollback; None as that of ``policy``."""
        return self.metadata.get("workspace")

    @property
    def terminal(self) -> bool:
        """Whether the run is over for good."""
        return self.status in TERMINAL


TERMINAL = frozenset((RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.TIMEOUT))


class Event(Record, frozen=True, gc=False):
    """One fact of a session's log. ``seq`` counts from 1 without holes."""

    id: Text
    type: str
    session_id: Text
    run_id: str | None
    seq: Number
    ts: float
    data: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    provider: str | None = None
    correlation_id: str | None = None
    schema_version: Number = 1

    @property
    def time(self) -> datetime | None:
        """``ts`` as an aware datetime."""
        return utc(self.ts)

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> Self:
        """Build from a map that says of which type and of which schema it is.

        Raises:
            InvalidArgument: ``invalid_event_type``, or ``validation_error``, which names the field.
        """
        event = super().from_map(values)
        if "schema_version" not in values:
            raise InvalidArgument("Event: Object missing required field `schema_version`")
        type_code(event.type)
        return event


class Prompted(Record, frozen=True):
    """A prompt was accepted as a run; ``queued`` says that it waits, and ``queue`` in which queue.

    A steering prompt that another run took is completed, its output ``{"steered_into": run_id}``.
    """

    run_id: str
    queued: bool
    queue: str | None = None


class QueuedPrompt(Record, frozen=True):
    """A prompt that waits; ``queue`` is ``steering`` or ``follow_up``."""

    run_id: str
    queue: str
    text: str
    queued_at: float


class RunResult(Record, frozen=True):
    """What a completed run gave."""

    output: dict[str, Any]
    token_usage: dict[str, Any]
    cost_usd: float | None
    events: tuple[Event, ...]
    session_id: str
    run_id: str
    policy: dict[str, Any] | None = None
    workspace: dict[str, Any] | None = None
    cost_state: CostState = CostState.NO_USAGE
    turn_count: int = 0
    metadata: dict[str, Any] = {}  #: of the run: provider, provider_session_id, model ...


class PartitionInfo(Record, frozen=True):
    """What is known of one partition, also while it is dead: then the counters are the last heard."""

    index: int
    state: str
    pid: int | None = None
    epoch: int = 0
    restarts: int = 0
    routes: int = 0
    sessions: int = 0
    live: int = 0
    runs_active: int = 0
    queue_depth: int = 0
    degraded: str | None = None
    cause: dict[str, Any] | None = None


class Page(Sequence[T], Generic[T]):
    """A list with ``.cursor`` (opaque, None at the end) and ``.missing`` (partitions that did not answer)."""

    __slots__ = ("_items", "cursor", "missing")

    def __init__(self, items: Iterable[T], cursor: str | None = None, missing: Iterable[int] = ()) -> None:
        self._items = tuple(items)
        self.cursor = cursor
        self.missing = tuple(missing)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def __repr__(self) -> str:
        return f"Page({list(self._items)!r}, cursor={self.cursor!r}, missing={self.missing!r})"

    def to_map(self) -> dict[str, Any]:
        """The page as plain maps."""
        return {
            "items": converted(self._items, "items", depth_max=RECORD_DEPTH_MAX),
            "cursor": self.cursor,
            "missing": list(self.missing),
        }


def error_of(values: Any) -> MeshError:
    """The typed error of a stored or wire error map; of anything else, that it is none."""
    if not isinstance(values, Mapping):
        return RemoteProtocolError(f"an error is a map with code and message, not {type(values).__name__}")
    code, message, details, about = map(values.get, ("code", "message", "details", "provider_error"))
    return from_wire(
        code if type(code) is str else "unknown_error",
        message if type(message) is str else "",
        details if isinstance(details, Mapping) else None,
        about if isinstance(about, Mapping) else None,
    )


__all__ = [
    "TERMINAL",
    "CostState",
    "Event",
    "Handle",
    "Page",
    "PartitionInfo",
    "Prompted",
    "Provenance",
    "PruneResult",
    "Record",
    "Resolution",
    "RouteEntry",
    "RouteRecord",
    "Run",
    "RunResult",
    "RunStatus",
    "Session",
    "SessionStatus",
    "Source",
    "StopReason",
    "error_of",
]
