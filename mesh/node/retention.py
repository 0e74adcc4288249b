"""Retention: what is old goes, in the background, one small step at a time.

A sweep is a generator: each ``yield`` ends a step of at most ``batch_size`` rows, and the next step follows
after PAUSE_S, so that a partition spends a twentieth of its time on it at most. Order of a sweep: sessions
that are old are deleted softly; those that were deleted long ago are deleted hard; imports that nobody
finished are given up; then rows of deleted sessions, old events and the oldest audit entries are removed.
With ``archive_dir`` sessions and events that go for good are in a file first (``node/archive.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from math import ceil
from pathlib import Path
from typing import Any

from mesh.config import RetentionSection
from mesh.core import wire
from mesh.core.audit import own_entry
from mesh.core.events import TYPE_CODE
from mesh.core.keeping import Keeping
from mesh.core.pending import PartOf
from mesh.core.session import SessionState
from mesh.core.state import State
from mesh.errors import MeshError, NotFound, StoreError
from mesh.node.archive import Archive
from mesh.node.artifacts import Artifacts
from mesh.node.tag_age import TagAge
from mesh.store.removing import Removing
from mesh.store.sqlite import Store

PAUSE_S = 0.02
DAY_S = 86_400.0
#: An import that did not go on for so long is given up.
IMPORT_S = 3_600.0
#: Never pruned: how a session and its runs began and ended.
PROTECTED = frozenset((
    "session_created", "session_completed", "session_failed", "session_cancelled", "run_started",
    "run_completed", "run_failed", "run_cancelled", "run_timeout", "error_occurred",
))
_PROTECTED = frozenset(TYPE_CODE[name] for name in PROTECTED)


class Retention:
    """Of one partition. ``share`` is the part of the node's events that this partition may keep."""

    def __init__(
        self, store: Store, state: State, keeping: Keeping, policy: RetentionSection, *, share: float,
        owns: Callable[[str], bool],
        tags: Callable[[Removing], TagAge] = lambda removing: TagAge(removing, str),
    ) -> None:
        self.state = state
        self.keeping = keeping
        self.policy = policy
        self.removing = Removing(store, state)
        self.tags = tags(self.removing)
        self._artifacts = Artifacts(state, store)
        self.archive = None if not policy.archive_dir else Archive(
            Path(policy.archive_dir).expanduser(), store, state, rows=policy.batch_size)
        self._events_max = ceil(policy.max_total_events * share)
        self._owns = owns
        self._first = [TYPE_CODE[name] for name in policy.prune_event_types_first]
        self._waiting: list[PartOf] = []
        self._answering: list[PartOf] = []
        self._steps: Iterator[None] | None = None
        self._next_sweep_s: float | None = None
        self._next_step_s = 0.0
        self._began_s = 0.0
        self.report: dict[str, Any] = {}

    @property
    def due_s(self) -> float | None:
        """When the next step is due; None: there is nothing to do."""
        if self.tags.heard:
            return 0.0
        return None if self._steps is None else self._next_step_s

    def ask(self, part: PartOf) -> None:
        """Sweep for somebody who waits for the report: a whole sweep, begun from now on."""
        self._waiting.append(part)
        if self._steps is None:
            self._begin(self._sweep())

    def tick(self) -> None:
        """Once a second: begin what is due."""
        now = self.state.mono
        if self._next_sweep_s is None:
            self._next_sweep_s = now + min(60.0, self.policy.interval_s)
        if self._steps is not None:
            return
        if now >= self._next_sweep_s:
            self._next_sweep_s = now + self.policy.interval_s
            self._begin(self._sweep())
        elif self.removing.erased() is not None:
            self._begin(self._purge())

    def _begin(self, steps: Iterator[None]) -> None:
        self._steps = steps
        self._next_step_s = self._began_s = self.state.mono
        self._answering, self._waiting = self._waiting, []
        self.report = {
            "sessions_soft_deleted": 0, "sessions_hard_deleted": 0, "sessions_removed": 0, "events_pruned": 0,
            "events_removed": 0, "imports_given_up": 0, "sessions_archived": 0, "duration_ms": 0,
            "errors": [],
        }

    def step(self) -> None:
        """One step, inside a batch of its own.

        Raises:
            StoreError: the disk refuses; the sweep is over, whoever waits is told.
        """
        self.tags.act()
        if self._steps is None:
            return
        self._next_step_s = self.state.mono + PAUSE_S
        try:
            next(self._steps)
        except StopIteration:
            self._finish()
        except StoreError as error:
            self.report["errors"].append(error.message)
            self._finish()
            raise

    def _finish(self) -> None:
        self._steps = None
        self.report["duration_ms"] = int((self.state.mono - self._began_s) * 1000)
        for part in self._answering:
            part.resolve(wire.ok(self.report))
        self._answering = []
        if self._waiting:
            self._begin(self._sweep())

    # --- the phases ---

    def _sweep(self) -> Iterator[None]:
        policy = self.policy
        for phase in (
            self._hide("updated", policy.max_completed_session_age_days),
            self._hide("created", policy.max_session_age_days),
            self._erase(), self._give_up_imports(), self._purge(), self._prune_long(), self._prune_all(),
            self._trim(),
        ):
            try:
                yield from phase
            except StoreError:
                raise
            except MeshError as error:  # one phase that fails does not stop the others
                self.report["errors"].append(error.message)

    def _hide(self, column: str, days: float) -> Iterator[None]:
        """Delete softly what was not changed, or was created, before so many days; 0 is never."""
        if days <= 0:
            return
        before, after = self.state.now - days * DAY_S, (float("-inf"), 0)
        while True:
            rows = self.removing.old_sessions(column, after, before, self.policy.batch_size)
            for _, stored in rows:
                session = self.state.sessions.get(stored.id, stored)
                if self._may_go(session):
                    self.keeping.hide(self.state.session(session.id))
                    self._note("retention.delete", session)
                    self.report["sessions_soft_deleted"] += 1
            yield
            if len(rows) < self.policy.batch_size:
                return
            after = rows[-1][0], rows[-1][1].n

    def _may_go(self, session: SessionState) -> bool:
        policy = self.policy
        return (
            session.deleted_at is None and session.status.value not in policy.exempt_statuses
            and not set(session.tags) & set(policy.exempt_tags) and not self.keeping.in_use(session)
            and self._owns(session.id)
        )

    def _erase(self) -> Iterator[None]:
        days = self.policy.hard_delete_after_days
        while days > 0:
            before = self.state.now - days * DAY_S
            found = self.removing.deleted_sessions(before, self.policy.batch_size)
            gone = 0
            for session in found:
                if not self._as_it_was(session):
                    continue
                if self.archive is not None:
                    yield from self.archive.session(session)
                    if not self._as_it_was(session):
                        self.archive.take_back(session)
                        continue
                    self.report["sessions_archived"] += 1
                self.keeping.erase(self.state.session(session.id))
                self._note("retention.forget", session)
                self.report["sessions_hard_deleted"] += 1
                gone += 1
            yield
            if len(found) < self.policy.batch_size or not gone:
                return

    def _as_it_was(self, session: SessionState) -> bool:
        """Whether nobody took the deletion back meanwhile, or had the session forgotten."""
        try:
            now = self.state.session(session.id)
        except NotFound:
            return False
        return (now.n, now.deleted_at) == (session.n, session.deleted_at)

    def _note(self, what: str, session: SessionState) -> None:
        self.state.audit.append(own_entry(what, session.id, self.state.now))

    def _give_up_imports(self) -> Iterator[None]:
        for session in self.removing.left_imports(self.state.now - IMPORT_S, self.policy.batch_size):
            self.keeping.erase(self.state.session(session.id))
            self.report["imports_given_up"] += 1
        yield

    def _purge(self) -> Iterator[None]:
        """Remove the rows of sessions that were deleted hard."""
        while (session := self.removing.erased()) is not None:
            yield from self._artifacts.forget(session, self.policy.batch_size)
            while self.removing.erased() == session:
                self.report["events_removed"] += self.removing.purge(session, self.policy.batch_size)
                yield
            self.report["sessions_removed"] += 1

    def _prune_long(self) -> Iterator[None]:
        """Shorten logs of more than ``max_events_per_session`` events."""
        most, behind = self.policy.max_events_per_session, 0
        while most > 0:
            found = self.removing.sessions_behind(behind, self.policy.batch_size)
            for session in found:
                behind = session.n
                if session.seq - session.pruned > most and self._prunable(session):
                    yield from self._prune_one(session.n, session.seq - session.pruned - most)
            yield
            if len(found) < self.policy.batch_size:
                return

    def _prunable(self, session: SessionState) -> bool:
        return self._owns(session.id) and not set(session.tags) & set(self.policy.exempt_tags)

    def _prune_one(self, session: int, over: int) -> Iterator[None]:
        """Remove the oldest ``over`` events of a session: of the types that go first, then of the others."""
        for types, but in ((self._first, False), ([*self._first, *_PROTECTED], True)):
            seq: int | None = 0
            while over > 0 and seq is not None:
                rows, end = self.removing.events_of(session, seq, types, but=but)
                over -= yield from self._remove(rows[:over])
                seq = end

    def _prune_all(self) -> Iterator[None]:
        """Remove the oldest events of the partition beyond its share of ``max_total_events``."""
        if self._events_max <= 0:
            return
        total, pos = 0, 0
        end: int | None = 0
        while end is not None:
            count, end = self.removing.count_events(pos)
            total, pos = total + count, end or pos
            yield
        over = total - self._events_max
        for types, but in ((self._first, False), ([*self._first, *_PROTECTED], True)):
            end = 0
            while over > 0 and end is not None:
                rows, end = self.removing.events_behind(end, types, but=but)
                over -= yield from self._remove(rows[:over])

    def _remove(self, rows: list[Any]) -> Generator[None, None, int]:
        """Remove events in steps, each of one session; how many went."""
        removed = 0
        size = self.policy.batch_size
        for n in dict.fromkeys(row[1] for row in rows):
            mine = [row for row in rows if row[1] == n]
            for first in range(0, len(mine), size):
                session = self.removing.session_of(n)
                if session is None or not self._prunable(session):
                    break
                if self.archive is not None:
                    self.archive.events(session, [row[0] for row in mine[first : first + size]])
                self.removing.prune(session, mine[first : first + size])
                removed += len(mine[first : first + size])
                self.report["events_pruned"] += len(mine[first : first + size])
                yield
        yield
        return removed

    def _trim(self) -> Iterator[None]:
        self.removing.trim_audit(self.policy.audit_kept)
        yield
        days = self.policy.max_tag_age_days
        if days > 0:
            yield from self.tags.sweep(self.state.now - days * DAY_S, self.policy.batch_size)


__all__ = ["DAY_S", "IMPORT_S", "PAUSE_S", "PROTECTED", "Retention"]
