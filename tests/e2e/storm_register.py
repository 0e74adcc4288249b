"""Which reads of a key no order of its writes explains.

A write takes effect at one moment between its call and its answer. One that was never answered takes effect
at any later moment or never, but not after a later write of the same writer was answered: what a caller gave
up never lands after its later call. A read of ``None`` is one of a key that is not there.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf
from typing import NamedTuple


class Write(NamedTuple):
    """One write; ``end`` is infinite when it was never answered."""

    begin: float
    end: float
    value: str | None
    writer: str


class Read(NamedTuple):
    """One read and what it gave."""

    begin: float
    end: float
    value: str | None
    how: str


class Span(NamedTuple):
    """When a write can have taken effect."""

    begin: float
    end: float  #: at the latest, if at all
    buried: float  #: from here on its writer's next write is there instead


@dataclass
class Register:
    """The history of one key."""

    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)

    def problems(self, key: str) -> list[str]:
        """Reads of what was never written, or was overwritten before the read began."""
        seen: dict[str | None, float] = {}
        for read in self.reads:  # it was there by then; of an absence nobody knows which one
            if read.value is not None:
                seen[read.value] = min(read.end, seen.get(read.value, inf))
        landed = sorted((min(write.end, seen.get(write.value, inf)), write.begin) for write in self.writes)
        ends = [end for end, _ in landed]
        newest = [-inf, *accumulate((begin for _, begin in landed), max)]
        spans = _spans(self.writes, seen)
        found = []
        for read in self.reads:
            possible = [span for span in spans.get(read.value, ()) if span.begin <= read.end]
            over = newest[bisect_left(ends, read.begin)]
            if not possible:
                found.append(f"{read.how} of {key} gave {read.value}, which nobody had written")
            elif not any(span.end >= over and span.buried >= read.begin for span in possible):
                found.append(f"{read.how} of {key} gave {read.value}, which was overwritten before")
        return found


def _spans(writes: list[Write], seen: dict[str | None, float]) -> dict[str | None, list[Span]]:
    """value -> its writes; at first the key is not there."""
    spans: dict[str | None, list[Span]] = {None: [Span(-inf, -inf, inf)]}
    answered: dict[str, float] = {}
    for write in sorted(writes, key=lambda write: -write.begin):
        buried = answered.get(write.writer, inf)
        end = min(write.end, buried, seen.get(write.value, inf))
        spans.setdefault(write.value, []).append(Span(write.begin, end, buried))
        if write.end < inf:
            answered[write.writer] = write.end
    return spans


__all__ = ["Read", "Register", "Write"]
