"""The events of a session's log: the 28 types, their codes in the store, and the stored form.

The stored form is a *fragment*: the nine encoded key/value pairs of an event's map that its author knows
(ts, type, session_id, run_id, data, metadata, provider, correlation_id, schema_version). Whoever serves or
publishes the event puts a map header in front and appends the pairs that only the log knows (id, seq, and
on the feed pos, partition, epoch, node). So an event is encoded once, where it happens, and never decoded
on its way to the disk, to a reader or to the feed.
"""

from __future__ import annotations

from typing import Any

from xxhash import xxh3_128_hexdigest

from mesh.core.wire import map_header, pack
from mesh.errors import InvalidArgument

SCHEMA_VERSION = 1
#: Order is the code in the store: append only, never reorder.
EVENT_TYPES: tuple[str, ...] = (
    "session_created",
    "session_started",
    "session_paused",
    "session_resumed",
    "session_completed",
    "session_failed",
    "session_cancelled",
    "run_started",
    "run_completed",
    "run_failed",
    "run_cancelled",
    "run_timeout",
    "message_sent",
    "message_received",
    "message_streamed",
    "tool_call_started",
    "tool_call_completed",
    "tool_call_failed",
    "error_occurred",
    "error_recovered",
    "token_usage_updated",
    "turn_completed",
    "workspace_snapshot_taken",
    "workspace_diff_computed",
    "policy_violation",
    "tool_approval_requested",
    "tool_approval_granted",
    "tool_approval_denied",
)
TYPE_CODE: dict[str, int] = {name: code for code, name in enumerate(EVENT_TYPES)}
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
_METADATA = pack("metadata")
_PROVIDER = pack("provider")
_TAIL = pack("correlation_id")
_SCHEMA = pack("schema_version") + pack(SCHEMA_VERSION)
_ID = pack("id")
_SEQ = pack("seq")
_STORED_HEADER = map_header(FRAGMENT_PAIRS + 2)


def type_code(name: Any) -> int:
    """The store's code of an event type.

    Raises:
        InvalidArgument: ``invalid_event_type``.
    """
    code = TYPE_CODE.get(name) if isinstance(name, str) else None
    if code is None:
        shown = repr(name[:60]) if isinstance(name, str) else f"of type {type(name).__name__}"
        raise InvalidArgument(f"unknown event type {shown}", code="invalid_event_type")
    return code


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
    """Encode what the author of an event knows; ``ts`` is wall time in seconds since the epoch (UTC)."""
    return b"".join(
        (
            _TS,
            pack(ts),
            _TYPE[event_type],
            _SESSION,
            pack(session_id),
            _RUN,
            pack(run_id),
            _DATA,
            pack(data),
            _METADATA,
            pack(metadata or {}),
            _PROVIDER,
            pack(provider),
            _TAIL,
            pack(correlation_id),
            _SCHEMA,
        )
    )


class FragmentEncoder:
    """``encode_fragment`` for the many events of one run: what they share is encoded once."""

    __slots__ = ("_middle", "_run_id", "_session_id", "_tail", "provider")

    def __init__(self, session_id: str, run_id: str, provider: str | None) -> None:
        self._session_id = session_id
        self._run_id = run_id
        self.provider = provider
        self._middle = b"".join((_SESSION, pack(session_id), _RUN, pack(run_id), _DATA))
        self._tail = b"".join((_METADATA, pack({}), _PROVIDER, pack(provider), _TAIL, pack(None), _SCHEMA))

    def encode(
        self,
        event_type: str,
        data: dict[str, Any],
        ts: float,
        metadata: dict[str, Any] | None = None,
        correlation_id: str | None = None,
    ) -> bytes:
        """The fragment of one event."""
        if metadata or correlation_id is not None:
            return encode_fragment(
                event_type,
                self._session_id,
                self._run_id,
                data,
                ts=ts,
                provider=self.provider,
                metadata=metadata,
                correlation_id=correlation_id,
            )
        return b"".join((_TS, pack(ts), _TYPE[event_type], self._middle, pack(data), self._tail))


def event_id(session_id: str, seq: int) -> str:
    """``evt_`` and 32 hex digits. Session ids never repeat, so neither does this; it needs no storage."""
    return "evt_" + xxh3_128_hexdigest(f"{session_id}:{seq}".encode())


def encode_stored(fragment: bytes, session_id: str, seq: int) -> bytes:
    """The event's whole map, encoded, for a reader of the log."""
    return b"".join((_STORED_HEADER, fragment, _ID, pack(event_id(session_id, seq)), _SEQ, pack(seq)))


def encode_published(
    fragment: bytes, session_id: str, seq: int, pos: int, stamp: bytes, stamp_pairs: int
) -> bytes:
    """The event's map for the feed; ``stamp`` holds the encoded pairs partition, epoch and node."""
    return b"".join(
        (
            map_header(FRAGMENT_PAIRS + 3 + stamp_pairs),
            fragment,
            _ID,
            pack(event_id(session_id, seq)),
            _SEQ,
            pack(seq),
            b"\xa3pos",
            pack(pos),
            stamp,
        )
    )


__all__ = [
    "EVENT_TYPES",
    "FRAGMENT_PAIRS",
    "RUN_TERMINAL_EVENT",
    "SCHEMA_VERSION",
    "TYPE_CODE",
    "FragmentEncoder",
    "encode_fragment",
    "encode_published",
    "encode_stored",
    "event_id",
    "type_code",
]
