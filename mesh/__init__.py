"""mesh: a mesh of supervised actors that hosts AI-agent sessions.

``Client`` and ``AsyncClient`` talk to a node, ``LocalNode`` starts one. Everything else here is a record
that comes back, or an error. Names are imported when they are first used, so ``import mesh`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mesh.client._aio_attach import AsyncAttachment
    from mesh.client._aio_listener import AsyncListener
    from mesh.client._blocking_attach import Attachment
    from mesh.client._blocking_listener import Listener
    from mesh.client._surface_attach import new_token
    from mesh.client.aio import AsyncClient
    from mesh.client.blocking import Client
    from mesh.client.local_node import LocalNode
    from mesh.core.approval import Approval
    from mesh.core.attached import Claim, Snapshot
    from mesh.core.keys import SessionKey
    from mesh.core.manifest import Capability, CapabilityType, Manifest
    from mesh.core.message import Message, Role, Transcript
    from mesh.core.notification import Notification
    from mesh.core.provider_error import ProviderError
    from mesh.core.records import (
        CostState,
        Event,
        Handle,
        Page,
        PartitionInfo,
        Prompted,
        Provenance,
        PruneResult,
        QueuedPrompt,
        Resolution,
        RouteEntry,
        RouteRecord,
        Run,
        RunResult,
        RunStatus,
        Session,
        SessionStatus,
        Source,
        StopReason,
    )
    from mesh.errors import (
        ClientClosed,
        ClientExpired,
        ConfigError,
        DeadlineExceeded,
        InvalidArgument,
        InvalidState,
        LocalProtocolError,
        MeshError,
        NodeUnreachable,
        NotAllowed,
        NotFound,
        Overloaded,
        ProtocolError,
        RemoteProtocolError,
        RequestError,
        RunError,
        StoreError,
        Unavailable,
    )
    from mesh.providers.base import RunContext

_RECORDS = (
    "CostState",
    "Event",
    "Handle",
    "Page",
    "PartitionInfo",
    "Prompted",
    "QueuedPrompt",
    "Provenance",
    "PruneResult",
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
)
_ERRORS = (
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
)
#: public name -> the module that defines it.
_HOME: dict[str, str] = {
    "Approval": "mesh.core.approval",
    "AsyncAttachment": "mesh.client._aio_attach",
    "AsyncClient": "mesh.client.aio",
    "AsyncListener": "mesh.client._aio_listener",
    "Attachment": "mesh.client._blocking_attach",
    "Capability": "mesh.core.manifest",
    "CapabilityType": "mesh.core.manifest",
    "Claim": "mesh.core.attached",
    "Client": "mesh.client.blocking",
    "Listener": "mesh.client._blocking_listener",
    "LocalNode": "mesh.client.local_node",
    "Manifest": "mesh.core.manifest",
    "Message": "mesh.core.message",
    "ProviderError": "mesh.core.provider_error",
    "Notification": "mesh.core.notification",
    "Role": "mesh.core.message",
    "RunContext": "mesh.providers.base",
    "SessionKey": "mesh.core.keys",
    "Snapshot": "mesh.core.attached",
    "Transcript": "mesh.core.message",
    "new_token": "mesh.client._surface_attach",
    **dict.fromkeys(_RECORDS, "mesh.core.records"),
    **dict.fromkeys(_ERRORS, "mesh.errors"),
}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'mesh' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


__all__ = [
    "Approval",
    "AsyncAttachment",
    "AsyncClient",
    "AsyncListener",
    "Attachment",
    "Capability",
    "CapabilityType",
    "Claim",
    "Client",
    "ClientClosed",
    "ClientExpired",
    "ConfigError",
    "CostState",
    "DeadlineExceeded",
    "Event",
    "Handle",
    "InvalidArgument",
    "InvalidState",
    "Listener",
    "LocalNode",
    "LocalProtocolError",
    "Manifest",
    "MeshError",
    "Message",
    "NodeUnreachable",
    "NotAllowed",
    "NotFound",
    "Notification",
    "Overloaded",
    "Page",
    "PartitionInfo",
    "Prompted",
    "ProtocolError",
    "Provenance",
    "ProviderError",
    "PruneResult",
    "QueuedPrompt",
    "RemoteProtocolError",
    "RequestError",
    "Resolution",
    "Role",
    "RouteEntry",
    "RouteRecord",
    "Run",
    "RunContext",
    "RunError",
    "RunResult",
    "RunStatus",
    "Session",
    "SessionKey",
    "SessionStatus",
    "Snapshot",
    "Source",
    "StopReason",
    "StoreError",
    "Transcript",
    "Unavailable",
    "__version__",
    "new_token",
]
