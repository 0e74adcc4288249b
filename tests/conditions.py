"""Waiting for a condition: what every test does instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

#: How long a condition may take before the test calls it missing. Never waited for when it comes sooner.
PATIENCE_S = 20.0


def wait_for(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait until a condition holds and return its value."""
    until = time.monotonic() + patience_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until:
            raise AssertionError(f"not within {patience_s} s: {what}")
        time.sleep(0.01)
