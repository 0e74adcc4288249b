"""What a run used: how what a provider says about tokens becomes the counts of the run.

Rules of this file:

1. A provider says *deltas* (what was used since it last said so) or *totals* (of this run so far). Deltas are
   added; of totals the largest holds, so that a repeated or late one changes nothing. Each count by itself.
2. Only counts are kept: numbers that are finite and not negative, under at most ``COUNTS_MAX`` names.
3. What one attempt used is added to what the attempts before it used: all of it was paid for.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from math import isfinite
from typing import Any

#: What costs money; a provider may count more.
INPUT, OUTPUT = "input_tokens", "output_tokens"
CACHE_READ, CACHE_CREATION = "cache_read_tokens", "cache_creation_tokens"
TOTAL = "total_tokens"
#: What the provider says the run cost: counted like tokens.
COST = "total_cost_usd"
COUNTS_MAX = 32
COUNT_MAX = (1 << 63) - 1
_NAME_CHARS_MAX = 64
_NAMES = {"cache_read_input_tokens": CACHE_READ, "cache_creation_input_tokens": CACHE_CREATION}

Counts = dict[str, int | float]


class UsageMode(StrEnum):
    """How a provider counts."""

    DELTA = "delta"
    TOTAL = "total"


def counts(said: Mapping[Any, Any]) -> Counts:
    """The counts of a map, under the names of this file; all else in it is left out."""
    found: Counts = {}
    for name, value in said.items():
        if type(name) is str and len(name) <= _NAME_CHARS_MAX and is_count(value):
            found[_NAMES.get(name, name)] = value if type(value) is float else min(value, COUNT_MAX)
    return found


def is_count(value: Any) -> bool:
    """Whether a value is a number that is finite and not negative."""
    return value >= 0 if type(value) is int else type(value) is float and value >= 0 and isfinite(value)


def folded(used: Counts, said: Mapping[Any, Any], mode: str) -> Counts:
    """What was used, after the provider said more."""
    together = dict(used)
    for name, value in counts(said).items():
        if name in together:
            together[name] = (
                _sum(together[name], value) if mode == UsageMode.DELTA else max(together[name], value)
            )
        elif len(together) < COUNTS_MAX:
            together[name] = value
    return together


def added(before: Counts, attempt: Mapping[Any, Any]) -> Counts:
    """What all attempts used together."""
    return folded(before, attempt, UsageMode.DELTA)


def _sum(a: float, b: float) -> int | float:
    total = a + b
    return min(total, COUNT_MAX) if isfinite(total) else COUNT_MAX


def without_cost(used: Mapping[str, Any]) -> Counts:
    """The counts alone: what a run keeps as its ``token_usage``."""
    return {name: value for name, value in counts(used).items() if name != COST}


__all__ = [
    "CACHE_CREATION", "CACHE_READ", "COST", "COUNTS_MAX", "COUNT_MAX", "INPUT", "OUTPUT", "TOTAL", "Counts",
    "UsageMode", "added", "counts", "folded", "is_count",
    "without_cost",
]
