"""``replay``: says what a recording holds, for demos, tests and bug reports: the same words each time.

Keys of the agent's table:

- ``file``: what ``mesh run --record``, ``mesh session export`` or ``provider = "record"`` wrote.
- ``timing``: "original" (default: every piece when it came) or "zero" (at once).
- ``match``: "input" (default: a run gets the answer to what it asks; asked again, the next one) or "order"
  (the session's n-th run gets the n-th).

A run that failed fails again, with its code; one that was stopped, or cut off, fails where it was.
What is counted of a session lives as long as it is live, as ``run.state`` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh.core import recording
from mesh.core.recording import Recorded
from mesh.errors import ConfigError, InvalidArgument, shown
from mesh.providers.base import (
    STREAMING,
    Output,
    Piece,
    ProviderFailure,
    RunContext,
    capabilities_of,
    check_keys,
    checked,
    usage_mode_of,
)

if TYPE_CHECKING:
    from mesh.providers.kinds import Place

#: A larger file is refused.
FILE_BYTES_MAX = 256 * 1024 * 1024
TIMINGS = ("original", "zero")
MATCHES = (recording.BY_INPUT, recording.BY_ORDER)


class ReplayProvider:
    """One recording. Loading reads its file: do it off the loop."""

    name = "replay"
    CAPABILITIES = (STREAMING,)
    enforces = frozenset(("tools_observed", "budget"))
    tested = "recordings of every other provider"

    def __init__(self, table: Mapping[str, Any], place: Place) -> None:
        """Read the recording.

        Raises:
            ConfigError: no such file, no recording, or a wrong setting.
        """
        check_keys(table, ("file", "timing", "match"))
        self.capabilities = capabilities_of(table, self.CAPABILITIES)
        self.idempotent: bool = checked(table, "idempotent", (bool,), True)
        self.usage_mode = usage_mode_of(table)
        self._original = _one_of(table, "timing", TIMINGS) == "original"
        self._match = _one_of(table, "match", MATCHES)
        self._redactor = place.redactor
        self._file = checked(table, "file", (str,), "")
        self._runs = _read(self._file)

    def started(self, run: RunContext) -> dict[str, Any]:  # noqa: ARG002
        """Nothing to add."""
        return {}

    async def run(self, run: RunContext) -> AsyncIterator[Piece]:
        """Say the recorded run that answers, and end as it ended."""
        recorded = self._chosen(run)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        yield {"type": "run_started", "data": {"model": recorded.model, "replay_of": recorded.id}}
        mode = recorded.usage_mode
        for at_s, piece in recorded.pieces:
            if self._original:
                await asyncio.sleep(began_s + at_s - loop.time())
            if piece["type"] == "token_usage_updated":
                piece = {**piece, "data": {"mode": mode, **piece["data"]}}
            yield piece
        if self._original and recorded.ended_s is not None:
            await asyncio.sleep(began_s + recorded.ended_s - loop.time())
        yield _end(recorded)

    def _chosen(self, run: RunContext) -> Recorded:
        played: dict[str, int] = run.state.setdefault(f"mesh.replay {self._file}", {})
        # What was asked then stands in the recording without its secrets.
        found = recording.chosen(self._runs, self._redactor.view(run.input), played, self._match)
        if found is None:
            if self._match == recording.BY_ORDER:
                raise ProviderFailure(f"the recording holds {len(self._runs)} runs, and no more")
            known = ", ".join(shown(recorded.run.get("input"), 60) for recorded in self._runs[:5])
            raise ProviderFailure(
                f"the recording has no run for {shown(run.input, 80)} (it answers: {known or 'nothing'})",
                details={"file": self._file, "runs": len(self._runs)},
            )
        recorded, name = found
        played[name] = played.get(name, 0) + 1
        return recorded


def _end(recorded: Recorded) -> Output:
    """What the run gave; raises as it failed."""
    run = recorded.run
    status, error = run.get("status"), run.get("error")
    if recorded.ended_s is None or status not in ("completed", "failed", "cancelled", "timeout"):
        raise ProviderFailure(
            f"the recording of run {recorded.id} was cut off here", code="outcome_unknown"
        )
    if status != "completed":
        error = error if isinstance(error, dict) else {}
        raise ProviderFailure(
            str(error.get("message") or f"the recorded run ended as {status}"),
            code=str(error.get("code") or "provider_error"), details=error.get("details") or {},
            provider_error=error.get("provider_error"), output=run.get("output") or None,
        )
    said = {key: value for key, value in recorded.completion.items() if key != "token_usage"}
    return Output(
        data=recorded.output, token_usage=run.get("token_usage") or {}, cost_usd=run.get("cost_usd"),
        completion=said,
    )


def _one_of(table: Mapping[str, Any], key: str, values: tuple[str, ...]) -> str:
    value: str = checked(table, key, (str,), values[0])
    if value not in values:
        raise ConfigError(f"{key} = {value!r:.80}: expected {' or '.join(values)}")
    return value


def _read(file: str) -> list[Recorded]:
    if not file:
        raise ConfigError("file: a recording is needed (mesh run NAME ... --record FILE makes one)")
    path = Path(file).expanduser()
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ConfigError(f"file: {path} is larger than {FILE_BYTES_MAX} bytes")
        with path.open(encoding="utf-8") as lines:
            return recording.read(lines)
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"file: {path}: {getattr(exc, 'strerror', None) or exc}") from exc
    except InvalidArgument as exc:
        raise ConfigError(f"file: {path}: {exc.message}") from exc


__all__ = ["FILE_BYTES_MAX", "MATCHES", "TIMINGS", "ReplayProvider"]
