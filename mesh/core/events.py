"""The events of a session's log: the types, their codes in the store, and the stored form.

**The one place where a type is defined** is the table ``EVENTS``: a new type is one more row at its end, and
everything else follows from it (who may write it, what is checked, whether it is searched for secrets, the
feed's topic, the filters of the SDK).

The stored form is a *fragment*: the nine encoded key/value pairs of an event's map that its author knows
(ts, type, session_id, run_id, data, metadata, provider, correlation_id, schema_version). Whoever serves or
publishes the event puts a map header in front and appends the pairs that only the log knows (id, seq, and
on the feed pos, partition, epoch, node). So an event is encoded once, where it happens, and never decoded
on its way to the disk, to a reader or to the feed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec
from xxhash import xxh3_128_hexdigest

from mesh.core.wire import map_header, pack, repack, unpack
from mesh.errors import InvalidArgument

SCHEMA_VERSION = 1
#: Where the warnings about an event's shape stand in its metadata.
WARNINGS = "_validation_warnings"


class EventType(NamedTuple):
    """One row of the table."""

    name: str
    group: str
    #: Who may write it. What is the node's an agent cannot write: those are promises. ``human`` is whoever
    #: approves or denies, through the node.
    author: Literal["node", "agent", "both", "human"]
    scanned: bool  #: its data may hold text of an agent, a command or a person, so it is searched for secrets
    shape: dict[str, type]  #: what its data should hold; else the event is kept, with warnings


_TEXT: dict[str, type] = {"content": str}
_TOOL: dict[str, type] = {"tool_name": str}
_TOKENS: dict[str, type] = {"input_tokens": int, "output_tokens": int}
_APPROVAL: dict[str, type] = {"tool_name": str, "policy_name": str}
_POLICY: dict[str, type] = {"policy": str, "kind": str}

#: Order is the code in the store: append only, never reorder.
EVENTS: tuple[EventType, ...] = (
    EventType("session_created", "session", "node", False, {}),
    EventType("session_started", "session", "node", False, {}),
    EventType("session_paused", "session", "node", False, {}),
    EventType("session_resumed", "session", "node", False, {}),
    EventType("session_completed", "session", "node", False, {}),
    EventType("session_failed", "session", "node", True, {}),
    EventType("session_cancelled", "session", "node", False, {}),
    EventType("run_started", "run", "node", True, {}),
    EventType("run_completed", "run", "node", True, {"stop_reason": str}),
    EventType("run_failed", "run", "node", True, {}),
    EventType("run_cancelled", "run", "node", False, {}),
    EventType("run_timeout", "run", "node", False, {}),
    EventType("message_sent", "message", "node", True, {}),
    EventType("message_received", "message", "both", True, {**_TEXT, "role": str}),
    EventType("message_streamed", "message", "both", True, _TEXT),
    EventType("tool_call_started", "tool", "agent", True, _TOOL),
    EventType("tool_call_completed", "tool", "agent", True, _TOOL),
    EventType("tool_call_failed", "tool", "agent", True, _TOOL),
    EventType("error_occurred", "error", "both", True, {"error_message": str}),
    EventType("error_recovered", "error", "both", True, {}),
    EventType("token_usage_updated", "usage", "agent", True, _TOKENS),
    EventType("turn_completed", "usage", "agent", True, {}),
    EventType("workspace_snapshot_taken", "workspace", "both", True, {}),
    EventType("workspace_diff_computed", "workspace", "both", True, {}),
    EventType("policy_violation", "policy", "both", True, _POLICY),
    EventType("tool_approval_requested", "approval", "both", True, _APPROVAL),
    EventType("tool_approval_granted", "approval", "human", True, _TOOL),
    EventType("tool_approval_denied", "approval", "human", True, _TOOL),
    EventType("transcript_compacted", "transcript", "node", True, {"summary": str, "up_to": int}),
    EventType("message_pinned", "transcript", "node", False, {"seq": int}),
    EventType("driver_changed", "session", "node", True, {"reason": str}),
    EventType("access_changed", "session", "node", False, {}),
    EventType("prompt_queued", "message", "node", True, {**_TEXT, "queue": str}),
)
EVENT_TYPES: tuple[str, ...] = tuple(row.name for row in EVENTS)
TYPE_CODE: dict[str, int] = {name: code for code, name in enumerate(EVENT_TYPES)}
#: What an agent may write.
AGENT_EVENTS = frozenset(row.name for row in EVENTS if row.author in ("agent", "both"))
#: What is searched for secrets.
SCANNED = frozenset(row.name for row in EVENTS if row.scanned)
_SHAPES: dict[str, tuple[tuple[str, type], ...]] = {row.name: tuple(row.shape.items()) for row in EVENTS}
RUN_TERMINAL_EVENT: dict[str, str] = {
    "completed": "run_completed",
    "failed": "run_failed",
    "cancelled": "run_cancelled",
    "timeout": "run_timeout",
}

FRAGMENT_PAIRS = 9
_TS = pack("ts")
_TYPE = {name: pack("type") + pack(name) for name in EVENT_TYPES}
_SESSION = pack("session_id")
_RUN = pack("run_id")
_DATA = pack("data")
_CONTENT = map_header(1) + pack("content")
_PIECE = b"\x93" + pack(TYPE_CODE["message_streamed"])
_FLOAT_BYTES = 9
_METADATA = pack("metadata")
_PROVIDER = pack("provider")
_CORRELATION = pack("correlation_id")
_SCHEMA = pack("schema_version") + pack(SCHEMA_VERSION)
_NO_METADATA, _NO_CORRELATION = _METADATA + pack({}), _CORRELATION + pack(None) + _SCHEMA
#: ... and the beginning of its value, a text of 36 bytes.
_ID = pack("id") + b"\xd9\x24evt_"
_SEQ = pack("seq")
_POS = pack("pos")
_STORED_HEADER = map_header(FRAGMENT_PAIRS + 2)
_PACKED_HEADER = map_header(FRAGMENT_PAIRS + 3)


def type_code(name: Any) -> int:
    """The store's code of an event type.

    Raises:
        InvalidArgument: ``invalid_event_type``.
    """
    code = TYPE_CODE.get(name) if isinstance(name, str) else None
    if code is None:
        shown = repr(name[:60]) if isinstance(name, str) else f"of type {type(name).__name__}"
        raise InvalidArgument(f"unknown event type {shown}{_meant(name)}", code="invalid_event_type")
    return code


def _meant(name: Any) -> str:
    """The type that was perhaps meant, for a message."""
    import difflib

    near = difflib.get_close_matches(name[:60], TYPE_CODE, n=1) if isinstance(name, str) else ()
    return f" (did you mean {near[0]!r}?)" if near else ""


def shape_warnings(event_type: str, data: dict[str, Any]) -> list[str]:
    """What is not as the type's shape says; mostly nothing. Advice for readers, never a reason to refuse."""
    for key, kind in _SHAPES[event_type]:
        if type(data.get(key)) is not kind:
            return [_warning(data, *wanted) for wanted in _SHAPES[event_type] if _breaks(data, *wanted)]
    return []


def _breaks(data: dict[str, Any], key: str, kind: type) -> bool:
    return type(data.get(key)) is not kind


def _warning(data: dict[str, Any], key: str, kind: type) -> str:
    if key not in data:
        return f"{key} is missing"
    return f"{key} must be {kind.__name__}, not {type(data[key]).__name__}"


class _Fragment(msgspec.Struct):
    """The nine pairs, in the order in which ``FragmentEncoder`` joins them."""

    ts: float
    type: str
    session_id: str
    run_id: str | None
    data: dict[str, Any]
    metadata: dict[str, Any]
    provider: str | None
    correlation_id: str | None
    schema_version: int = SCHEMA_VERSION


def encode_fragment(
    event_type: str,
    session_id: str,
    run_id: str | None,
    data: dict[str, Any],
    *,
    ts: float,
    provider: str | None = None,
    metadata: dict[str, Any] | None = None,
    correlation_id: str | None = None,
) -> bytes:
    """Encode an event of the node itself; ``ts`` is wall time in seconds since the epoch (UTC).

    What is wrong with the event's shape is added to its metadata. What it holds was decoded before or is our
    own (``wire.repack``).
    """
    warnings = shape_warnings(event_type, data)
    if warnings:
        metadata = {**(metadata or {}), WARNINGS: warnings}
    pairs = _Fragment(
        ts, event_type, session_id, run_id, data, metadata or {}, provider, correlation_id
    )
    return repack(pairs)[1:]  # without the header of a map of nine


def masked(fragment: bytes) -> bytes:
    """The same event for whom its session does not open: that it happened, not what was said."""
    pairs = unpack(map_header(FRAGMENT_PAIRS) + fragment)
    # A session's correlation_id is of its metadata.
    return repack({**pairs, "data": {}, "metadata": {"protected": True}, "correlation_id": None})[1:]


class FragmentEncoder:
    """The fragments of one run's events: what they share is encoded once."""

    __slots__ = ("_correlation_id", "_middle", "_piece", "_piece_bytes", "_provider", "_tail", "provider")

    def __init__(
        self, session_id: str, run_id: str, provider: str, correlation_id: str | None = None
    ) -> None:
        self.provider = provider
        self._middle = b"".join((_SESSION, repack(session_id), _RUN, repack(run_id), _DATA))
        self._provider = _PROVIDER + repack(provider)
        self._correlation_id = correlation_id
        self._tail = (self._tail_of({}, correlation_id) if correlation_id is not None else
                      b"".join((_NO_METADATA, self._provider, _NO_CORRELATION)))
        self._piece = b"".join((_TYPE["message_streamed"], self._middle, _CONTENT))
        self._piece_bytes = len(_TS) + _FLOAT_BYTES + len(self._piece) + len(self._tail)

    def _tail_of(self, metadata: dict[str, Any], correlation_id: Any) -> bytes:
        return b"".join((
            _METADATA, pack(metadata), self._provider, _CORRELATION, pack(correlation_id), _SCHEMA
        ))

    def encode(
        self,
        event_type: str,
        data: dict[str, Any],
        ts: float,
        metadata: dict[str, Any] | None = None,
        correlation_id: str | None = None,
    ) -> bytes:
        """The fragment of one event; what is wrong with its shape is added to its metadata.

        Raises:
            LocalProtocolError: it holds what cannot travel.
        """
        tail = self._tail
        warnings = shape_warnings(event_type, data)
        if metadata or warnings or correlation_id is not None:
            metadata = {**(metadata or {}), WARNINGS: warnings} if warnings else metadata or {}
            tail = self._tail_of(metadata, self._correlation_id if correlation_id is None else correlation_id)
        return b"".join((_TS, repack(ts), _TYPE[event_type], self._middle, pack(data), tail))

    def piece(self, text: str, ts: float) -> bytes:
        """A ``message_streamed`` that is nothing but a text, ``[type code, ts, fragment]`` as in a batch."""
        when, said = repack(ts), repack(text)
        size = self._piece_bytes + len(said)
        header = b"\xc5" + size.to_bytes(2, "big") if size < 65536 else b"\xc6" + size.to_bytes(4, "big")
        return b"".join((_PIECE, when, header, _TS, when, self._piece, said, self._tail))


def event_id(session_id: str, seq: int) -> str:
    """``evt_`` and 32 hex digits. Session ids never repeat, so neither does this; it needs no storage."""
    return "evt_" + xxh3_128_hexdigest(f"{session_id}:{seq}".encode())


def encode_stored(fragment: bytes, session_id: str, seq: int) -> bytes:
    """The event's whole map, encoded, for a reader of the log."""
    digest = xxh3_128_hexdigest(f"{session_id}:{seq}".encode()).encode()
    return b"".join((_STORED_HEADER, fragment, _ID, digest, _SEQ, repack(seq)))


def encode_log(session_id: str, rows: Sequence[Any]) -> bytes:
    """``encode_stored`` of many rows, one behind the other: in two thirds of its time. A row has ``seq`` and
    ``fragment``."""
    digest, encode, prefix = xxh3_128_hexdigest, repack, session_id.encode() + b":%d"
    parts: list[bytes] = []
    for row in rows:
        seq = row.seq
        parts += (_STORED_HEADER, row.fragment, _ID, digest(prefix % seq).encode(), _SEQ, encode(seq))
    return b"".join(parts)


def encode_published(
    fragment: bytes, session_id: str, seq: int, pos: int, stamp: bytes, stamp_pairs: int
) -> bytes:
    """The event's map for the feed; ``stamp`` holds the encoded pairs partition, epoch and node."""
    digest = xxh3_128_hexdigest(f"{session_id}:{seq}".encode()).encode()
    header = map_header(FRAGMENT_PAIRS + 3 + stamp_pairs)
    return b"".join((header, fragment, _ID, digest, _SEQ, repack(seq), _POS, repack(pos), stamp))


def encode_packed(rows: Sequence[Any]) -> list[bytes]:
    """The events' maps for a message of several, each with its ``pos``; what they share stands beside them.
    A row has ``session_id``, ``seq``, ``pos`` and ``fragment``."""
    digest, encode = xxh3_128_hexdigest, repack
    return [
        b"".join((
            _PACKED_HEADER, row.fragment, _ID, digest(f"{row.session_id}:{row.seq}".encode()).encode(), _SEQ,
            encode(row.seq), _POS, encode(row.pos),
        ))
        for row in rows
    ]


__all__ = [
    "AGENT_EVENTS",
    "EVENTS",
    "EVENT_TYPES",
    "FRAGMENT_PAIRS",
    "RUN_TERMINAL_EVENT",
    "SCANNED",
    "SCHEMA_VERSION",
    "TYPE_CODE",
    "WARNINGS",
    "EventType",
    "FragmentEncoder",
    "encode_fragment",
    "encode_log",
    "encode_packed",
    "encode_published",
    "encode_stored",
    "event_id",
    "masked",
    "shape_warnings",
    "type_code",
]
