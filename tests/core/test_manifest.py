"""Capabilities and manifests: copies, never changed in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import mesh

BASH = mesh.Capability("bash", mesh.CapabilityType.TOOL, permissions=("execute",))
READ = mesh.Capability("read", mesh.CapabilityType.FILE_ACCESS, enabled=False)
BOTH = mesh.Manifest("coder", "1.0", capabilities=(BASH, READ))


def test_enabling_gives_a_copy() -> None:
    """If a capability is enabled or disabled, then the given one stays as it was."""
    assert READ.enable().enabled and not READ.enabled
    assert not BASH.disable().enabled and BASH.enabled


def test_only_enabled_capabilities_count() -> None:
    """If a capability is not enabled, then it is not among those that are."""
    assert BOTH.enabled_capabilities == (BASH,)
    assert BOTH.capability("read") is READ


def test_adding_and_removing_give_copies() -> None:
    """If capabilities are added or removed, then in order, and in a copy."""
    assert mesh.Manifest("coder", "1.0").add_capability(BASH).add_capability(READ) == BOTH
    assert BOTH.remove_capability("bash").capabilities == (READ,)
    assert BOTH.capabilities == (BASH, READ)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda: BOTH.add_capability(BASH), "duplicate_capability"),
        (lambda: BOTH.remove_capability("x"), "capability_not_found"),
        (lambda: BOTH.capability("x"), "capability_not_found"),
    ],
)
def test_wrong_names_have_their_codes(change: Callable[[], Any], code: str) -> None:
    """If a name is taken or unknown, then the code says which."""
    with pytest.raises(mesh.MeshError) as caught:
        change()
    assert caught.value.code == code
