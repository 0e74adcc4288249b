"""``python -m mesh.providers.table`` prints the README's table of providers, from their classes.

A class says ``CAPABILITIES`` (what it has unless the agent's table says otherwise), ``enforces`` (of
``kinds.ENFORCED``) and ``tested`` (against what).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from mesh.providers.kinds import ENFORCED, KINDS, load

_HEAD = (
    "provider", "extra", "capabilities", "asks before a tool", "a human may be asked", "reports its tools",
    "budgets end it", "tested against",
)
OTHER = "as its agent"


def rows() -> Iterator[tuple[str, ...]]:
    """One row for each provider.

    Raises:
        ValueError: a class that says something else than there is.
    """
    for name, kind in sorted(KINDS.items()):
        cls: Any = load(name)
        capabilities = ", ".join(capability["name"] for capability in cls.CAPABILITIES)
        yield (f"`{name}`", f"`{kind.extra}`" if kind.extra else "", capabilities,
               *_enforced(name, cls.enforces), cls.tested)


def _enforced(name: str, enforces: Any) -> list[str]:
    if isinstance(enforces, property):  # one that has another agent do its runs
        return [OTHER] * len(ENFORCED)
    strange = enforces - set(ENFORCED)
    if strange:
        raise ValueError(f"{name}: enforces {sorted(strange)}")
    return ["yes" if word in enforces else "no" for word in ENFORCED]


def text() -> str:
    """The table as Markdown."""
    lines = [_HEAD, tuple("---" for _ in _HEAD), *rows()]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(text())

__all__ = ["rows", "text"]
