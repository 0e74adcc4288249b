"""``echo``: says the prompt back, word by word. For tests, benchmarks and the first minute with mesh.

Scripted by keys of the agent's table, or of ``provider_opts``, which win:

- ``delay_s``: wait that long before each piece.
- ``pieces``: say exactly so many pieces; a prompt that is too short is repeated until it suffices.
- ``fail``: after the last piece, fail with this text.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from itertools import pairwise
from typing import Any

from mesh.errors import ConfigError
from mesh.providers.base import (
    STREAMING,
    Piece,
    ProviderFailure,
    RunContext,
    as_failure,
    capabilities_of,
    check_keys,
    check_options,
    checked,
    usage_mode_of,
)

PIECES_MAX = 1_000_000
_SCRIPT: dict[str, tuple[type, ...]] = {"delay_s": (int, float), "pieces": (int,), "fail": (str,)}
_WORD = re.compile(r"\s*\S+(?:\s+\Z)?")


class EchoProvider:
    """Streams the prompt back."""

    name = "echo"
    CAPABILITIES = (STREAMING,)
    enforces: frozenset[str] = frozenset()
    tested = "itself"

    def __init__(self, table: Mapping[str, Any]) -> None:
        check_keys(table, tuple(_SCRIPT))
        self.capabilities = capabilities_of(table, self.CAPABILITIES)
        self.idempotent: bool = checked(table, "idempotent", (bool,), True)
        self.usage_mode = usage_mode_of(table)
        self._script = _script(table)

    def started(self, run: RunContext) -> dict[str, Any]:  # noqa: ARG002
        """Nothing to add."""
        return {}

    async def run(self, run: RunContext) -> AsyncIterator[Piece]:
        """Yield the prompt's words, each with the blanks before it, so that they join to the prompt."""
        script = self._script
        if run.options:
            with as_failure():
                check_options(run.options, tuple(_SCRIPT))
                script = script | _script(run.options)
        text = run.prompt or _shown(run.input)
        count = script.get("pieces")
        delay_s = script.get("delay_s", 0)
        for piece in _WORD.findall(text) if count is None else _slices(text or " ", count):
            if delay_s:
                await asyncio.sleep(delay_s)
            yield piece
        if "fail" in script:
            raise ProviderFailure(script["fail"])


def _script(table: Mapping[str, Any]) -> dict[str, Any]:
    script = {key: checked(table, key, kinds, None) for key, kinds in _SCRIPT.items() if key in table}
    if not 0 <= script.get("pieces", 0) <= PIECES_MAX:
        raise ConfigError(f"pieces = {script['pieces']}: expected 0 to {PIECES_MAX}")
    return script


def _shown(given: Any) -> str:
    return "" if isinstance(given, str | None) else json.dumps(given, default=str)


def _slices(text: str, count: int) -> list[str]:
    if 0 < len(text) < count:
        text = (text * (count // len(text) + 1))[:count]
    edges = [len(text) * i // count for i in range(count + 1)] if count else []
    return [text[a:b] for a, b in pairwise(edges)]


__all__ = ["PIECES_MAX", "EchoProvider"]
