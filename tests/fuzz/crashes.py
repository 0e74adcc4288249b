"""Inputs that were findings, with what they showed. Each runs with the tests."""

from __future__ import annotations

CRASHES: list[tuple[str, bytes]] = [
    # A message that shows the repr of deep data exceeds the interpreter's limit: it was ``internal_error``.
    ("partition", b"\xc4\x00\x9f\x80\x88\xff\xff,\xfa\xb4\x00\xfa"),
]

__all__ = ["CRASHES"]
