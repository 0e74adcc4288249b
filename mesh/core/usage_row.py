"""What is kept of a run beside its record, so that usage is summed up without decoding inputs and outputs."""

from __future__ import annotations

from typing import Any, NamedTuple

from mesh.core import wire
from mesh.core.run import RunState


class UsageRow(NamedTuple):
    """When it started (until then: was created), provider, model, tokens in all, cost in USD (None: unknown)
    and the encoded numbers of its usage."""

    started: float
    provider: str | None
    model: str | None
    tokens: int | None
    cost: float | None
    usage: bytes | None



def columns(run: RunState) -> UsageRow:
    """The columns of a run."""
    started = run.created_at if run.started_at is None else run.started_at
    if run.ended_at is None and not run.token_usage and run.provider is None:
        return UsageRow(started, None, None, None, None, None)
    model = run.provider_metadata.get("model") or run.metadata.get("model")
    if not run.token_usage:
        model = model if type(model) is str else None
        return UsageRow(started, run.provider, model, None, run.cost_usd, None)
    counts = {name: value for name, value in run.token_usage.items() if type(value) is int}
    return UsageRow(
        started,
        run.provider,
        model if type(model) is str else None,
        total_tokens(counts),
        run.cost_usd,
        wire.pack(counts) if counts else None,
    )


def total_tokens(counts: dict[str, Any]) -> int | None:
    """``total_tokens`` where it was given, else input and output together; None when neither was."""
    total = counts.get("total_tokens")
    if type(total) is int:
        return min(max(total, 0), _INTEGER_MAX)
    parts = [counts[name] for name in ("input_tokens", "output_tokens") if type(counts.get(name)) is int]
    return min(max(sum(parts), 0), _INTEGER_MAX) if parts else None


#: What an SQLite column holds.
_INTEGER_MAX = (1 << 63) - 1

__all__ = ["UsageRow", "columns", "total_tokens"]
