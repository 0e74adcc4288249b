"""What a partition does beside answering: retire idle sessions, sweep, checkpoint. All in bounded steps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from math import inf

from mesh.config import NodeConfig
from mesh.core.partition import Partition
from mesh.core.records import StopReason
from mesh.node.retention import Retention
from mesh.node.tag_age import TagAge, Tell
from mesh.store.sqlite import WAL_BYTES_MAX, Store

ROUTES_PER_SWEEP = 2_000
IDLE_PER_TICK = 1_000
SWEEP_S = 30.0
CACHE_MAX = 8_192
TRIM_STEP = 512


class Upkeep:
    """Of one partition. Its methods raise ``StoreError`` when the disk refuses."""

    def __init__(
        self, store: Store, partition: Partition, config: NodeConfig, node_boot: int, tell: Tell
    ) -> None:
        self.store = store
        self.partition = partition
        self.state = partition.state
        self.config = config
        self.node_boot = node_boot
        self.sweeping = False
        self.retention = Retention(
            store, self.state, partition.ops.keeping, config.retention, share=1 / config.node.partitions,
            owns=partition.owns_session, tags=lambda removing: TagAge(
                removing, partition.runners.spent.forget, index=partition.index,
                partitions=config.node.partitions, tell=tell),
        )
        self._next_prune_s = self._next_sweep_s = 0.0

    def retire_idle(self) -> None:
        """End the actors of sessions that did nothing for long, some at a time."""
        for session_id in list(islice(self._idle(), IDLE_PER_TICK)):
            self.partition.live.take_down(self.state.session(session_id), StopReason.IDLE)

    def _idle(self) -> Iterator[str]:
        """Those that were idle for longer than they may."""
        limits, live = self.config.sessions, self.partition.live
        usual_s = limits.idle_timeout_s or inf
        native_s = limits.native_idle_timeout_s or inf
        for session_id, at in self.state.idlest():
            idle_s = self.state.mono - at
            if idle_s < min(usual_s, native_s):
                return
            native = self.state.session(session_id).agent in live.native
            if idle_s >= (native_s if native else usual_s):
                yield session_id

    def tick(self) -> None:
        """Once a second: begin what is due. Not while the store refuses writes."""
        now = self.state.mono
        self.retention.tick()
        if now >= self._next_prune_s:
            self.sweeping = True
            self._next_prune_s = now + self.config.routes.prune_interval_ms / 1000
        if now >= self._next_sweep_s:
            self._next_sweep_s = now + SWEEP_S
            self._sweep_store()

    def _sweep_store(self) -> None:
        limits, state = self.config.limits, self.state
        self.partition.receipts.silent(state.mono, limits.client_silence_s)
        self.store.sweep(
            silent_before=int(self.store.served_s() - limits.client_silence_s - SWEEP_S),
            lifecycle_below=state.lseq - limits.lifecycle_kept + 1,
        )
        self.store.save_counters(state, self.node_boot)
        self.store.checkpoint()

    @property
    def busy(self) -> bool:
        """Whether there is more to do at once: the loop does not wait."""
        return self.sweeping or bool(self.store.unfilled) or self.store.by_session.copying

    def step(self) -> None:
        """A small piece, after each batch."""
        if self.store.unfilled and self.store.leased:
            self.store.fill()
        if self.store.leased:
            self._logs()
        if self.sweeping:
            removed = self.partition.routes.sweep(self.partition.boot_ms, ROUTES_PER_SWEEP)
            self.sweeping = removed >= ROUTES_PER_SWEEP
        self._routes()
        self.state.trim(CACHE_MAX, TRIM_STEP)
        if self.store.wal_bytes_estimate() > WAL_BYTES_MAX:
            self.store.checkpoint()

    def _routes(self) -> None:
        """Keep the log of routes short."""
        log, count = self.store.route_log, self.partition.routes.count
        log.turn(count)
        if log.due(count):
            self.store.fold_routes()

    def _logs(self) -> None:
        """Keep each session's log close behind its events."""
        if self.store.by_session.copying:
            self.store.copy_log()
        elif self.store.by_session.due:
            self.store.fill_log()


__all__ = ["CACHE_MAX", "IDLE_PER_TICK", "ROUTES_PER_SWEEP", "SWEEP_S", "TRIM_STEP", "Upkeep"]
