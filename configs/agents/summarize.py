"""An agent that is a plain function: it runs in a thread, and what it returns is the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mesh


def summarize(run: mesh.RunContext) -> str:
    """Count the words of the prompt and name the longest one."""
    words = run.prompt.split()
    if not words:
        return "nothing to summarize"
    return f"{len(words)} words, the longest is {max(words, key=len)!r}"
