"""What an agent can do: capabilities, and the manifest that lists them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from mesh.core.record import Record, Text
from mesh.errors import InvalidState, NotFound, shown


class CapabilityType(StrEnum):
    """What kind of thing it is; runs require capabilities by type."""

    TOOL = "tool"
    RESOURCE = "resource"
    PROMPT = "prompt"
    SAMPLING = "sampling"
    FILE_ACCESS = "file_access"
    NETWORK_ACCESS = "network_access"
    CODE_EXECUTION = "code_execution"


CAPABILITY_TYPES = frozenset(kind.value for kind in CapabilityType)


class Capability(Record, frozen=True):
    """One thing an agent can do. One that is not enabled counts as missing."""

    REFUSALS = {"type": "invalid_capability_type"}

    name: Text
    type: CapabilityType
    enabled: bool = True
    description: str | None = None
    config: dict[str, Any] = {}
    permissions: tuple[str, ...] = ()

    def enable(self) -> Capability:
        """A copy that is enabled."""
        return msgspec.structs.replace(self, enabled=True)

    def disable(self) -> Capability:
        """A copy that is not."""
        return msgspec.structs.replace(self, enabled=False)


class Manifest(Record, frozen=True):
    """What an agent says of itself. Changing it gives a copy."""

    REFUSALS = {"type": "invalid_capability_type"}

    name: Text
    version: Text
    description: str | None = None
    provider: str | None = None
    capabilities: tuple[Capability, ...] = ()
    config: dict[str, Any] = {}
    metadata: dict[str, Any] = {}

    def capability(self, name: str) -> Capability:
        """The capability of that name.

        Raises:
            NotFound: ``capability_not_found``.
        """
        for one in self.capabilities:
            if one.name == name:
                return one
        raise NotFound(f"{self.name} has no capability {shown(name)}", code="capability_not_found")

    def add_capability(self, capability: Capability) -> Manifest:
        """A copy with one more.

        Raises:
            InvalidState: ``duplicate_capability``.
        """
        if any(one.name == capability.name for one in self.capabilities):
            message = f"{self.name} has {shown(capability.name)} already"
            raise InvalidState(message, code="duplicate_capability")
        return msgspec.structs.replace(self, capabilities=(*self.capabilities, capability))

    def remove_capability(self, name: str) -> Manifest:
        """A copy without it.

        Raises:
            NotFound: ``capability_not_found``.
        """
        gone = self.capability(name)
        rest = tuple(one for one in self.capabilities if one is not gone)
        return msgspec.structs.replace(self, capabilities=rest)

    @property
    def enabled_capabilities(self) -> tuple[Capability, ...]:
        """Those that are enabled, in their order."""
        return tuple(one for one in self.capabilities if one.enabled)


class Negotiation(NamedTuple):
    """What an agent has of what a run wants, by types of capabilities; only enabled ones count."""

    missing: tuple[str, ...]  #: required, and not there: the agent cannot take the run
    unsupported: tuple[str, ...]  #: optional, and not there
    supported: tuple[str, ...]

    @property
    def status(self) -> str:
        """``full``, or ``degraded`` when something optional is not there."""
        return "degraded" if self.unsupported else "full"

    def to_map(self) -> dict[str, Any]:
        """What a run says about it."""
        warnings = [f"optional capability {name!r} is not there" for name in self.unsupported]
        return {"status": self.status, "supported": list(self.supported),
                "unsupported": list(self.unsupported), "warnings": warnings}


def negotiate(
    capabilities: Iterable[Mapping[str, Any]], required: Iterable[str] = (), optional: Iterable[str] = ()
) -> Negotiation:
    """Compare what an agent declares with the types that a run requires, and those that it would like."""
    have = {one["type"] for one in capabilities if one.get("enabled", True)}
    required, optional = dict.fromkeys(required), dict.fromkeys(optional)
    return Negotiation(
        tuple(name for name in required if name not in have),
        tuple(name for name in optional if name not in have),
        tuple(name for name in {**required, **optional} if name in have),
    )


__all__ = ["CAPABILITY_TYPES", "Capability", "CapabilityType", "Manifest", "Negotiation", "negotiate"]
