"""Neighbours of one op travel as its ``*_many`` form: less than half the bytes and of the work at both ends.

Nobody above sees it: every call gets its own pair again (``spread``). One call travels as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, repeat
from typing import Any

from mesh.client._found import Found, found_of
from mesh.errors import RemoteProtocolError

Call = tuple[str, Sequence[Any]]
#: (0, value), (1, error map), (LOCAL_ERROR, MeshError) or STALE.
Pair = Sequence[Any]

#: For each call that travels, how many calls of the SDK it is (see ``gather``).
Spans = Sequence[int]

#: Ops whose neighbours travel together, and their form for many: its one argument is the list of their
#: arguments; of a single argument, where an op has no other, just that.
GATHERED = {f"route.{name}": f"route.{name}_many" for name in ("get", "set", "resolve")}
#: One call, as it came.
ONE: Spans = (0,)
_LISTS, _TWO = {list}, {2}


def gather(calls: Sequence[Call]) -> tuple[Sequence[Call], Spans]:
    """The calls as they travel, and for each of those how many of ``calls`` it is: 0 is one, as it came."""
    if len(calls) == 1:
        return calls, ONE
    ops = [op for op, _ in calls]
    if ops.count(ops[0]) == len(ops):
        runs = [calls]
    else:
        runs = [list(run) for _, run in groupby(calls, key=_first)]
    travel: list[Call] = []
    spans: list[int] = []
    for run in runs:
        op = run[0][0]
        many = GATHERED.get(op) if len(run) > 1 or op == "route.get" else None
        if many == "route.get_many":
            items: list[Any] = [key for _, (key,) in run]
        elif many == "route.set_many":
            items = [args for _, args in run]
        elif many is not None and max(len(args) for _, args in run) == 1:  # fallbacks are each caller's own
            items = [key for _, (key,) in run]
        else:
            travel += run
            spans += repeat(0, len(run))
            continue
        travel.append((many, (items,)))
        spans.append(len(run))
    return travel, spans


def _first(call: Call) -> str:
    return call[0]


def spread(pairs: Sequence[Pair], spans: Spans) -> Sequence[Pair]:
    """Give each call of ``gather`` its own pair.

    Raises:
        RemoteProtocolError: these are not the answers to those calls.
    """
    if len(spans) == 1 and spans[0] and pairs[0][0] == 0:
        return _members(pairs[0][1], spans[0])
    every: list[Pair] = []
    for pair, span in zip(pairs, spans, strict=True):
        if not span:
            every.append(pair)
        elif pair[0]:
            every += repeat(pair, span)
        else:
            every += _members(pair[1], span)
    return every


def _members(value: Any, count: int) -> Sequence[Pair]:
    if type(value) is Found or (type(value) is list and value and type(value[0]) is int):
        return found_of(value).pairs(count)
    return listed_pairs(value, count)


def listed_pairs(value: Any, count: int) -> list[Pair]:
    """The pairs of a list of calls, one for each.

    Raises:
        RemoteProtocolError: it is not the answer to so many calls.
    """
    if type(value) is not list or len(value) != count or set(map(type, value)) != _LISTS or (
        set(map(len, value)) != _TWO
    ):
        raise RemoteProtocolError(f"not the answers to {count} calls")
    return value


__all__ = ["GATHERED", "ONE", "Call", "Pair", "Spans", "gather", "listed_pairs", "spread"]
