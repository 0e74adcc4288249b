"""Every error of mesh, and the one table that gives each its code.

    MeshError                      code (stable, on the wire), details, retryable
    |- ConfigError                 a setting is wrong: names file, key and the accepted values
    |- ProtocolError               bytes that do not follow wire protocol v1
    |  |- LocalProtocolError       ours: please report it
    |  `- RemoteProtocolError      theirs: a peer of another version, or not a mesh at all
    |- RequestError                the node understood and refused; the code says why
    |  |- NotFound                 nothing under that key or id
    |  |- InvalidArgument          an argument is wrong; details name it; nothing was changed
    |  |- InvalidState             the state machine forbids it; nothing was changed
    |  |- NotAllowed               the session is protected, or another drives it; nothing was changed
    |  `- ClientExpired            our sequence numbers are unknown there; the SDK starts anew by itself
    |- Unavailable                 try again later, or elsewhere
    |  |- Overloaded               a bound was reached; details.retry_after_ms
    |  |- NodeUnreachable          nobody answers at the address
    |  `- DeadlineExceeded         the caller's own time limit (code ``timeout``)
    |- StoreError                  the disk refused; nothing of the request was kept
    |- RunError                    an agent's run ended badly (failed, cancelled, timeout)
    `- ClientClosed                the client was closed by its owner

A code that this version does not know becomes a plain ``RequestError``, so that an old client can
talk to a new node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class MeshError(Exception):
    """The root. ``code`` is stable and travels on the wire; ``message`` is for people."""

    code = "unknown_error"

    def __init__(
        self,
        message: str = "",
        *,
        code: str | None = None,
        details: Mapping[str, Any] | None = None,
        provider_error: Mapping[str, Any] | None = None,
    ) -> None:
        if code is not None:
            self.code = code
        self.message = message or self.code
        self.details: dict[str, Any] = dict(details or {})
        #: What a provider said about its failure, as the map of a ``ProviderError``.
        self.provider_error = None if provider_error is None else dict(provider_error)
        super().__init__(self.message)

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later without being changed."""
        return self.code in RETRYABLE

    @property
    def category(self) -> str:
        """The family of the code, such as ``validation``, ``state``, ``provider`` or ``storage``."""
        return category(self.code)

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (from_wire, (self.code, self.message, self.details, self.provider_error))

    def to_wire(self) -> dict[str, Any]:
        """The form in which an error travels and is stored: what follows from its code is left out."""
        found = {"code": self.code, "message": self.message, "details": self.details}
        return found if self.provider_error is None else {**found, "provider_error": self.provider_error}

    def to_map(self) -> dict[str, Any]:
        """All that is known of the error."""
        return {
            "code": self.code,
            "category": self.category,
            "retryable": self.retryable,
            "message": self.message,
            "details": self.details,
            "provider_error": self.provider_error,
        }

    @staticmethod
    def from_map(values: Any) -> MeshError:
        """The typed error of a map, checked; what follows from the code is not read.

        Raises:
            InvalidArgument: no map, a code that is not listed, no message, or details that are no map.
        """
        if not isinstance(values, Mapping):
            raise InvalidArgument(f"an error is read from a map, not {type(values).__name__}")
        code, message = values.get("code"), values.get("message")
        if not isinstance(code, str) or code not in CODES:
            raise InvalidArgument(f"unknown error code {shown(code)}")
        if not isinstance(message, str) or not message:
            raise InvalidArgument("an error needs a message, a non-empty str")
        for name in ("details", "provider_error"):
            if values.get(name) is not None and not isinstance(values[name], Mapping):
                raise InvalidArgument(f"{name} of an error must be a map, not {shown(values[name])}")
        return from_wire(code, message, values.get("details"), values.get("provider_error"))


class ConfigError(MeshError):
    """A setting is wrong. Mend the named key; nothing was started."""

    code = "config_error"


class ProtocolError(MeshError):
    """Bytes that break wire protocol v1."""

    code = "protocol_error"


class LocalProtocolError(ProtocolError):
    """We were about to send something illegal: too large, or of a type that msgpack has not."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something illegal. Check that the address is a mesh node of this version."""


class RequestError(MeshError):
    """The node refused the request; ``code`` says why, and nothing was changed."""

    code = "invalid_input"


class NotFound(RequestError):
    """Nothing is stored under that key or id."""

    code = "not_found"


class InvalidArgument(RequestError):
    """An argument is wrong; ``details`` name it. Nothing was changed."""

    code = "validation_error"


class InvalidState(RequestError):
    """The state machine forbids this step from the current status. Nothing was changed."""

    code = "invalid_transition"


class NotAllowed(RequestError):
    """The session's token was not shown, or somebody else drives it. Nothing was changed."""

    code = "unauthorized"


class ClientExpired(RequestError):
    """The node forgot this client's numbers (15 min of silence). Begin anew with a new client id."""

    code = "client_expired"


class Unavailable(MeshError):
    """Somebody needed for the answer is not there now."""

    code = "partition_unavailable"


class Overloaded(Unavailable):
    """A named bound was reached. Wait ``details["retry_after_ms"]`` and send again."""

    code = "overloaded"


class NodeUnreachable(Unavailable):
    """No node answers at the address. Start one with ``mesh up``, or check the address."""

    code = "node_unreachable"


class DeadlineExceeded(Unavailable):
    """The caller's time limit passed. A write may or may not have happened."""

    code = "timeout"


class StoreError(MeshError):
    """The store refused (disk full, read-only, IO error); the request left nothing behind."""

    code = "store_unavailable"


class RunError(MeshError):
    """A run ended other than ``completed``; ``code`` says how."""

    code = "provider_error"


class ClientClosed(MeshError):
    """The client was closed; make a new one."""

    code = "client_closed"


#: code -> (class, category, retryable). The only list of codes; the README's table is checked against it.
CODES: dict[str, tuple[type[MeshError], str, bool]] = {
    "already_exists": (InvalidState, "resource", False),
    "approval_not_found": (NotFound, "resource", False),
    "cancelled": (RunError, "runtime", False),
    "capability_not_found": (NotFound, "resource", False),
    "capability_not_supported": (InvalidArgument, "concurrency", False),
    "client_closed": (ClientClosed, "state", False),
    "client_expired": (ClientExpired, "state", False),
    "command_failed": (RunError, "tool", False),
    "command_not_found": (RunError, "tool", False),
    "command_timeout": (RunError, "tool", False),
    "config_error": (ConfigError, "validation", False),
    "context_mismatch": (InvalidArgument, "state", False),
    "degraded": (StoreError, "storage", True),
    "dependency_not_available": (RunError, "storage", False),
    "driver_taken": (InvalidState, "concurrency", False),
    "duplicate_capability": (InvalidState, "resource", False),
    "expired": (NotFound, "resource", False),
    "internal_error": (RequestError, "runtime", False),
    "invalid_argument": (InvalidArgument, "validation", False),
    "invalid_capability_type": (InvalidArgument, "state", False),
    "invalid_cursor": (InvalidArgument, "state", False),
    "invalid_event_type": (InvalidArgument, "state", False),
    "invalid_format": (InvalidArgument, "validation", False),
    "invalid_id": (InvalidArgument, "validation", False),
    "invalid_input": (InvalidArgument, "validation", False),
    "invalid_operation": (InvalidState, "concurrency", False),
    "invalid_role": (InvalidArgument, "validation", False),
    "invalid_route": (InvalidArgument, "validation", False),
    "invalid_session_key": (InvalidArgument, "validation", False),
    "invalid_status": (InvalidArgument, "state", False),
    "invalid_transition": (InvalidState, "state", False),
    "invalid_ttl": (InvalidArgument, "validation", False),
    "limit_exceeded": (InvalidArgument, "validation", False),
    "listener_closed": (ClientClosed, "state", False),
    "maintenance_error": (StoreError, "storage", False),
    "max_runs_exceeded": (Overloaded, "concurrency", True),
    "max_sessions_exceeded": (Overloaded, "concurrency", True),
    "migration_required": (StoreError, "storage", False),
    "missing_required_capability": (InvalidArgument, "state", False),
    "missing_required_field": (InvalidArgument, "validation", False),
    "no_route": (NotFound, "resource", False),
    "node_unreachable": (NodeUnreachable, "provider", True),
    "not_driver": (NotAllowed, "concurrency", False),
    "not_found": (NotFound, "resource", False),
    "outcome_unknown": (RunError, "runtime", False),
    "overloaded": (Overloaded, "concurrency", True),
    "partition_unavailable": (Unavailable, "provider", True),
    "persistence_error": (StoreError, "storage", False),
    "policy_violation": (RunError, "runtime", False),
    "protocol_error": (RemoteProtocolError, "validation", False),
    "provider_authentication_failed": (RunError, "provider", False),
    "provider_error": (RunError, "provider", False),
    "provider_quota_exceeded": (RunError, "provider", False),
    "provider_rate_limited": (RunError, "provider", True),
    "provider_timeout": (RunError, "provider", True),
    "provider_unavailable": (RunError, "provider", True),
    "query_error": (StoreError, "storage", False),
    "queue_full": (Overloaded, "concurrency", True),
    "restart_exhausted": (RunError, "runtime", False),
    "run_failed": (RunError, "runtime", False),
    "run_mismatch": (InvalidArgument, "state", False),
    "run_not_found": (NotFound, "resource", False),
    "session_busy": (InvalidState, "concurrency", False),
    "session_closed": (InvalidState, "state", False),
    "session_mismatch": (InvalidArgument, "state", False),
    "session_not_active": (InvalidState, "state", False),
    "session_not_found": (NotFound, "resource", False),
    "session_paused": (InvalidState, "state", False),
    "session_unavailable": (Unavailable, "provider", True),
    "stale_epoch": (StoreError, "storage", True),
    "storage_connection_failed": (StoreError, "storage", True),
    "storage_error": (StoreError, "storage", False),
    "storage_read_failed": (StoreError, "storage", False),
    "storage_write_failed": (StoreError, "storage", False),
    "store_unavailable": (StoreError, "storage", True),
    "stream_closed": (InvalidState, "state", False),
    "timeout": (DeadlineExceeded, "runtime", True),
    "tool_error": (RunError, "tool", False),
    "tool_execution_failed": (RunError, "tool", False),
    "tool_not_found": (RunError, "tool", False),
    "tool_permission_denied": (RunError, "tool", False),
    "unauthorized": (NotAllowed, "state", False),
    "unknown_agent": (NotFound, "resource", False),
    "unknown_error": (RequestError, "runtime", False),
    "unknown_op": (InvalidArgument, "validation", False),
    "version_conflict": (InvalidState, "state", False),
    "validation_error": (InvalidArgument, "validation", False),
    "workspace_busy": (RunError, "concurrency", True),
}

RETRYABLE = frozenset(code for code, (_, _, retryable) in CODES.items() if retryable)


def from_wire(
    code: str,
    message: str = "",
    details: Mapping[str, Any] | None = None,
    provider_error: Mapping[str, Any] | None = None,
) -> MeshError:
    """Build the typed error that a code stands for; an unknown code gives a plain ``RequestError``."""
    cls = CODES[code][0] if code in CODES else RequestError
    return cls(message, code=code, details=details, provider_error=provider_error)


def category(code: str) -> str:
    """The family of a code, ``unknown`` when it is not listed."""
    return CODES[code][1] if code in CODES else "unknown"


def shown(value: Any, most: int = 60) -> str:
    """A value for a message: its beginning, or its type where it has no repr (an integer of thousands of
    digits, data nested too deeply, an object whose own ``__repr__`` fails)."""
    try:
        return repr(value)[:most]
    except Exception:  # noqa: BLE001 - it may be anybody's code
        return f"an object of type {type(value).__name__}"


#: What the package exports: every class of the tree.
__all__ = [
    "ClientClosed",
    "ClientExpired",
    "ConfigError",
    "DeadlineExceeded",
    "InvalidArgument",
    "InvalidState",
    "LocalProtocolError",
    "MeshError",
    "NodeUnreachable",
    "NotAllowed",
    "NotFound",
    "Overloaded",
    "ProtocolError",
    "RemoteProtocolError",
    "RequestError",
    "RunError",
    "StoreError",
    "Unavailable",
    "category",
    "from_wire",
    "shown",
]
