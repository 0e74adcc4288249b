"""What sessions and tags used up: the sums that budgets over more than one run are held against.

Rules of this file:

1. A sum is what is stored: of a session, its runs; of a tag, one row per slot, to which each run that ends
   adds what it used, in the transaction of its end. So no run counts twice, and none is lost.
2. What executes counts with what its runner reported so far and with what it *holds*: reserved for a call
   that it is about to make. A hold is a part of its run. It ends with the run, or with its attempt, however
   that ends, so there is none that outlives who made it. What waits for another attempt counts as well.
3. A tag's sessions live in several partitions, and nobody owns the whole. Who reserves stores the hold first
   and asks for the sums then, so of two that reserve at once at least one sees the other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from mesh.core import wire
from mesh.core.policy import LIMITS
from mesh.core.run import RunState
from mesh.core.session import SessionState
from mesh.core.slots import check_id, session_slot
from mesh.core.state import State, Work
from mesh.core.usage_row import total_tokens
from mesh.errors import InvalidArgument, shown

#: Sums that are kept in memory; others are read from the store when somebody asks.
KEPT_MAX = 10_000
#: Tags that one question may name.
TAGS_MAX = 256
DURATION = "duration_ms"

Sums = dict[str, float]
_NEVER: tuple[float, dict[str, Sums]] = (-1.0, {})
METRICS = tuple(kind.metric for kind in LIMITS.values())


def used_by(run: RunState, now: float, *, earlier: bool = False) -> Sums:
    """What a run used: metric -> number; ``earlier``: in the attempts before this one alone."""
    about: Mapping[str, Any] = run.earlier or {} if earlier else {
        "token_usage": run.token_usage, "cost_usd": run.cost_usd, "counts": run.counts}
    counts: Mapping[str, Any] = about.get("counts") or {}
    sums: Sums = {metric: counts.get(metric, 0) for metric in METRICS}
    sums["total_tokens"] = total_tokens(about.get("token_usage") or {}) or 0
    sums["cost_usd"] = about.get("cost_usd") or 0
    if not earlier and DURATION not in counts and run.started_at is not None:
        sums[DURATION] = max(0.0, ((run.ended_at or now) - run.started_at) * 1000)
    return sums


def added(sums: Sums, more: Mapping[str, float], sign: int = 1) -> Sums:
    """Both together."""
    return {metric: sums.get(metric, 0) + sign * more.get(metric, 0) for metric in sums | dict(more)}


class Spent:
    """The sums of one partition."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._kept: OrderedDict[tuple[str, str], Sums] = OrderedDict()
        self._active = _NEVER

    def ended(self, run: RunState) -> None:
        """A run is over: what it used goes into the sums, with this batch."""
        self._active = _NEVER
        session = self.state.session(run.session_id)
        if not (session.tags or self._kept):
            return
        tags = list(dict.fromkeys(session.tags))
        kept = [key for key in (_key(session), *(("tag", tag) for tag in tags)) if key in self._kept]
        if not (tags or kept):
            return
        sums, slot = used_by(run, self.state.now), session_slot(run.session_id)
        for tag in tags:
            self._put(self.state.spent, (slot, tag), sums)
        for key in kept:
            self._put(self._kept, key, sums)

    def _put(self, table: dict[Any, Sums], key: Any, more: Sums) -> None:
        former = table.get(key)
        self.state.undo.append((table, key, former))
        table[key] = added(former or {}, more)

    def hold(self, run: RunState, number: int, amounts: Any) -> None:
        """The run reserves so much from now on, all its calls together; an older word is not heard."""
        if number <= run.holds:
            return
        self._active = _NEVER
        held = {metric: float(amount) for metric, amount in amounts.items() if amount}
        self.state.put_run(msgspec.structs.replace(run, held=held, holds=number))

    def forget(self, tag: str) -> None:
        """What the tag used is not stored any more."""
        self._kept.pop(("tag", tag), None)

    # --- reading ---

    def read(self, args: list[Any], now: int) -> bytes:  # noqa: ARG002
        """``budget.used``: session_id?, tags, run_id? -> {scope: {metric: number}}, without the run itself;
        its earlier attempts count."""
        session_id, tags, run_id = args if len(args) == 3 else _refused(args)
        fits = type(tags) is list and len(tags) <= TAGS_MAX and all(type(tag) is str and tag for tag in tags)
        if not fits:
            raise InvalidArgument(f"tags must be at most {TAGS_MAX} non-empty strs, not {shown(tags, 60)}")
        own = None if run_id is None else self.state.runs.get(check_id(run_id))
        but: Sums = {}
        if own is not None and own.ended_at is None:
            mine_now = added(used_by(own, self.state.now), own.held)
            but = added(mine_now, used_by(own, self.state.now, earlier=True), -1)
        found = {}
        if session_id is not None:
            session = self.state.session(check_id(session_id))
            found["session"] = added(self._of_session(session), but, -1)
        mine = () if own is None or not but else self.state.session(own.session_id).tags
        for tag in dict.fromkeys(tags):
            found[f"tag:{tag}"] = added(self._of_tag(tag), but if tag in mine else {}, -1)
        return wire.ok(found)

    def _of_session(self, session: SessionState) -> Sums:
        def stored() -> Iterable[Sums]:
            runs = self.state.loader.runs_of(session.n)
            return (used_by(run, self.state.now) for run in runs if run.ended_at is not None)

        sums = self._sum(_key(session), stored)
        for more in self._of_work(self.state.work_of(session.id)):
            sums = added(sums, more)
        return sums

    def _of_work(self, work: Work) -> Iterator[Sums]:
        """Of each run that executes, and of those that wait for their next attempt."""
        for run in map(self.state.run, work.running):
            yield added(used_by(run, self.state.now), run.held)
        for run in map(self.state.run, work.queue):
            if run.earlier is not None:
                yield used_by(run, self.state.now, earlier=True)

    def _of_tag(self, tag: str) -> Sums:
        sums = self._sum(("tag", tag), lambda: self.state.loader.spent_by_tag(tag))
        return added(sums, self._at_work_by_tag().get(tag, {}))

    def _sum(self, key: tuple[str, str], stored: Callable[[], Iterable[Sums]]) -> Sums:
        if key not in self._kept:
            sums: Sums = {}
            for more in stored():
                sums = added(sums, more)
            self._kept[key] = sums
            while len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)
        return self._kept[key]

    def _at_work_by_tag(self) -> dict[str, Sums]:
        """What executes now, by tag; made once for all questions of a batch."""
        state = self.state
        if self._active[0] != state.mono:
            found: dict[str, Sums] = {}
            for session_id, work in state.work.items():
                tags = state.session(session_id).tags
                for sums in self._of_work(work) if tags else ():
                    for tag in dict.fromkeys(tags):
                        found[tag] = added(found.get(tag, {}), sums)
            self._active = (state.mono, found)
        return self._active[1]


def _key(session: SessionState) -> tuple[str, str]:
    """Its row's number: who is deleted for good leaves its id to another one."""
    return "session", str(session.n)


def _refused(args: list[Any]) -> list[Any]:
    raise InvalidArgument(f"expected 3 arguments, not {len(args)}")


__all__ = ["DURATION", "KEPT_MAX", "METRICS", "TAGS_MAX", "Spent", "Sums", "added", "used_by"]
