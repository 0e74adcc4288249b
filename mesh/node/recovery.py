"""What a new incarnation of a partition does with what its predecessor left on the disk.

Sessions, runs and their order of work are in memory before READY. Routes follow behind the first answers; a
key that is asked for meanwhile is fetched alone.
"""

from __future__ import annotations

from typing import Any

from mesh.core.partition import Partition
from mesh.core.records import RunStatus, StopReason
from mesh.core.route_record import rebase
from mesh.core.run import RunState
from mesh.errors import StoreError, Unavailable
from mesh.log import Log
from mesh.store.file import DAMAGED
from mesh.store.sqlite import Store

ROUTES_PER_LOAD = 2_000
INCARNATIONS_PER_BOOT = 1_000_000
WHOLE_TABLE = frozenset(("route.list", "route.prune"))
SEARCHES = frozenset(("session.search", "run.search", "usage.summary"))


class Recovery:
    """Of one partition. ``node_boot`` tells the present life of the node from former ones."""

    def __init__(
        self, store: Store, partition: Partition, log: Log, *, node_boot: int, boot_id: str, offset_ms: int
    ) -> None:
        self.store = store
        self.partition = partition
        self.state = partition.state
        self.routes = partition.routes
        self.log = log
        self.node_boot = node_boot
        self.boot_id = boot_id
        self.offset_ms = offset_ms
        self.ready = False  #: the counters were read
        self.settled = False  #: what a former life of the node left behind is settled, durably
        self._after: str | None = ""
        self._unread: StoreError | None = None  #: why not all routes could be loaded

    @property
    def loading(self) -> bool:
        """Whether routes are still to be loaded."""
        return self._after is not None

    @property
    def partial(self) -> bool:
        """Whether memory has not all routes: for the moment, or for good."""
        return self._after is not None or self._unread is not None

    def load(self) -> None:
        """Read the counters, what is live, and what has to be done.

        Raises:
            StoreError: something is damaged: without the counters nothing can be served (``ready`` is False),
                else what was read serves reads.
        """
        state, counters = self.state, self.store.counters()
        state.pos, state.lseq = counters["pos"], counters["lseq"]
        state.next_session, state.next_run = counters["next_session"], counters["next_run"]
        state.session_count = counters["sessions"]
        self.ready = True
        self.routes.loading = True
        self.routes.fetch = self._fetch_route
        self.routes.keys_after = self.store.route_keys
        for session in self.store.live_sessions():
            if self.partition.owns_session(session.id):
                state.sessions[session.id] = session
                if session.live:
                    state.live[session.id] = True
                self.partition.ops.driving.recover(session)
        for run in sorted(self.store.active_runs(), key=lambda run: (run.queued_at, run.n)):
            if self.partition.owns_session(run.session_id):
                self._load_run(run)
        state.idle.update((name, state.mono) for name in state.live if name not in state.work)
        if self.store.damaged:
            self.log.write("damaged rows were left out", rows=self.store.damaged)

    def _load_run(self, run: RunState) -> None:
        state = self.state
        state.runs[run.id] = run
        work = state.work_of(run.session_id)
        if run.status != RunStatus.QUEUED:
            work = work._replace(running=(*work.running, run.id))
        elif run.queue == "steering":
            work = work._replace(steering=(*work.steering, run.id))
        else:
            work = work._replace(queue=(*work.queue, run.id))
        state.work[run.session_id] = work
        self.partition.ops.recover(run)

    def settle(self) -> None:
        """End what was live in a former life of the node, and settle what executed there."""
        state, partition = self.state, self.partition
        for session_id in list(state.live):
            if self._is_former(state.session(session_id).runner_incarnation):
                partition.live.take_down(state.session(session_id), StopReason.NODE_LOST)
        for run_id in [r for work in state.work.values() for r in reversed(work.running)]:
            run = state.run(run_id)
            if run_id in state.work_of(run.session_id).running and self._is_former(run.runner_incarnation):
                partition.runners.settle_lost(run)

    def _is_former(self, incarnation: int) -> bool:
        return incarnation // INCARNATIONS_PER_BOOT != self.node_boot

    # --- routes ---

    def _fetch_route(self, key: str) -> bytes | None:
        row = self.store.route(key)
        if row is None:
            return None
        record, offset_ms, boot_id = row
        if boot_id == self.boot_id:
            return record
        return rebase(record, offset_ms - self.offset_ms, self.partition.boot_ms)

    def refuse_partial(self, calls: list[Any]) -> None:
        """Refuse calls that look at the whole table while it is not in memory, or at columns of an older file
        that have no values yet; they are sent again soon.

        Raises:
            Unavailable: nothing of the payload was done.
            StoreError: nor can it be, since some routes are damaged.
        """
        if self.store.unfilled and any(op in SEARCHES for op, _ in calls):
            raise Unavailable(f"partition {self.state.partition} is still bringing its file up to date")
        if self.partial and any(op in WHOLE_TABLE for op, _ in calls):
            if self._unread is not None:
                raise self._unread
            raise Unavailable(f"partition {self.state.partition} is still loading its routes")

    def load_routes(self) -> None:
        """Load the next rows."""
        assert self._after is not None
        damaged = self.store.damaged
        try:
            rows = self.store.routes(self._after, ROUTES_PER_LOAD)
        except StoreError as error:
            self.log.write("routes cannot be loaded; each is fetched when it is asked for", why=error.message)
            self._after, self._unread = None, error
            return
        if self.store.damaged > damaged or (self.store.route_log.damage and self._unread is None):
            self.log.write("damaged routes were left out", rows=self.store.damaged - damaged)
            self._unread = StoreError(self.store.damage or "", code=DAMAGED)
        groups: dict[int, list[tuple[str, bytes]]] = {}
        for key, record, offset_ms, boot_id in rows:
            shift = 0 if boot_id == self.boot_id else offset_ms - self.offset_ms
            if record:
                groups.setdefault(shift, []).append((key, record))
        for shift, group in groups.items():
            self.routes.load(group, shift, now_ms=self.partition.boot_ms)
        self._after = rows[-1][0] if len(rows) == ROUTES_PER_LOAD else None
        if not self.partial:
            self.routes.loaded()


__all__ = ["INCARNATIONS_PER_BOOT", "ROUTES_PER_LOAD", "Recovery"]
