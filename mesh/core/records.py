"""The records that users see: frozen, typed, each with ``to_map()`` and built from a wire map.

A map that comes from a newer node may hold more keys; they are ignored. A missing optional key gives the
default. ``route``, ``output``, ``data`` and the like are plain dicts that belong to the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Generic, NamedTuple, Self, TypeVar

import msgspec
from msgspec.structs import force_setattr

from mesh.core.plain import RECORD_DEPTH_MAX, converted, to_json
from mesh.errors import MeshError, RemoteProtocolError, from_wire

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


class Provenance(StrEnum):
    """``learned`` by a set, or ``guessed`` by a write-back of resolve."""

    LEARNED = "learned"
    GUESSED = "guessed"


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


class Record(msgspec.Struct, frozen=True):
    """A typed, frozen value with a map form."""

    def to_map(self) -> dict[str, Any]:
        """The record as plain maps and lists, keys named as the fields (the table of ``core.plain``)."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        found: dict[str, Any] = converted(values, type(self).__name__, depth_max=RECORD_DEPTH_MAX)
        return found

    def to_json(self) -> str:
        """``to_map`` as one line of JSON; bytes are base64."""
        return to_json(self)

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> Self:
        """Build from a wire map; unknown keys are ignored, values are converted to the field types."""
        known = {name: values[name] for name in cls.__struct_fields__ if name in values}
        return msgspec.convert(known, cls, strict=False)


class RouteRecord(Record, frozen=True, gc=False, array_like=True, eq=False):
    """What ``routes.get`` finds: ``route``, ``age_ms`` and ``ttl_left_ms`` (ms on the node's clock, never raw
    clock readings) and ``provenance``.

    Its fields stand in the order of the wire, so that a reply is read straight into records, and the route is
    decoded when it is first looked at: 0.25 us per record instead of 1.1. Until then the record keeps the
    reply's bytes alive. Not tracked by the collector: decoded data cannot point back to the record.
    """

    packed: msgspec.Raw  #: the route as it came; a dict once it was looked at
    age_ms: int
    ttl_left_ms: int
    provenance: Provenance = Provenance.LEARNED

    @property
    def route(self) -> dict[str, Any]:
        """The caller's map, as it was set."""
        known: Any = self.packed
        if type(known) is msgspec.Raw:
            known = _decode_route(known)
            force_setattr(self, "packed", known)
        route: dict[str, Any] = known
        return route

    def to_map(self) -> dict[str, Any]:
        """The record as plain, JSON-friendly maps and lists."""
        return {
            "route": self.route,
            "age_ms": self.age_ms,
            "ttl_left_ms": self.ttl_left_ms,
            "provenance": self.provenance.value,
        }

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_map``."""
        provenance = Provenance(values.get("provenance", Provenance.LEARNED))
        return cls(values["route"], values["age_ms"], values["ttl_left_ms"], provenance)

    def __repr__(self) -> str:
        return "RouteRecord(" + ", ".join(f"{k}={v!r}" for k, v in self.to_map().items()) + ")"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RouteRecord) and self.to_map() == other.to_map()

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return RouteRecord, (self.route, self.age_ms, self.ttl_left_ms, self.provenance)


_decode_route = msgspec.msgpack.Decoder(dict[str, Any]).decode


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
    """A conversation. Times are seconds since the epoch (UTC). ``handle`` is None when it is not live.

    ``version`` grows with every change of its state; pass it as ``if_version`` to refuse a step on a session
    that changed meanwhile. ``slots`` is how many runs it executes at a time, None for the node's setting.
    """

    id: str
    agent: str
    agent_id: str
    status: SessionStatus
    parent_session_id: str | None = None
    metadata: dict[str, Any] = {}
    context: dict[str, Any] = {}
    tags: tuple[str, ...] = ()
    created_at: float = 0.0
    updated_at: float = 0.0
    seq: int = 0
    error: dict[str, Any] | None = None
    handle: Handle | None = None
    version: int = 1
    slots: int | None = None


class Run(Record, frozen=True):
    """One execution of an agent in a session.

    ``running`` means claimed by a runner; ``started_at`` is when the agent began, None while the runner's
    limit lets it wait. ``version`` grows with every step.
    """

    id: str
    session_id: str
    status: RunStatus
    input: Any = None
    output: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    metadata: dict[str, Any] = {}
    token_usage: dict[str, Any] = {}
    cost_usd: float | None = None
    attempt: int = 0
    turn_count: int = 0
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    provider: str | None = None
    provider_metadata: dict[str, Any] = {}
    version: int = 1
    cost_state: CostState = CostState.NO_USAGE

    @property
    def terminal(self) -> bool:
        """Whether the run is over for good."""
        return self.status in TERMINAL


TERMINAL = frozenset((RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.TIMEOUT))


class Event(Record, frozen=True):
    """One fact of a session's log. ``seq`` counts from 1 without holes; ``ts`` is seconds (UTC)."""

    id: str
    type: str
    session_id: str
    run_id: str | None
    seq: int
    ts: float
    data: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    provider: str | None = None
    correlation_id: str | None = None
    schema_version: int = 1


class Prompted(Record, frozen=True):
    """A prompt was accepted as a run; ``queued`` says that another one is executing first."""

    run_id: str
    queued: bool


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


class Notification(NamedTuple):
    """A message of the feed. ``cursor`` is opaque: pass it to ``listen(after=...)`` to go on behind it."""

    topic: str
    data: dict[str, Any]
    cursor: str


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
    code, message, details = (values.get(name) for name in ("code", "message", "details"))
    return from_wire(
        code if type(code) is str else "unknown_error",
        message if type(message) is str else "",
        details if isinstance(details, Mapping) else None,
    )


__all__ = [
    "TERMINAL",
    "CostState",
    "Event",
    "Handle",
    "Notification",
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
