"""Inputs that were findings, with what they showed. Each runs with the tests."""

from __future__ import annotations

CRASHES: list[tuple[str, bytes]] = []

__all__ = ["CRASHES"]
