"""The counters of a partition that ``partitions.info`` and ``mesh status`` show."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesh.node.partition import PartitionProcess


def counters(process: PartitionProcess) -> dict[str, Any]:
    """What there is, what waits, and what went wrong."""
    state = process.state
    return {
        "index": process.index,
        "epoch": process.epoch,
        "pid": os.getpid(),
        "routes": process.partition.routes.count,
        "sessions": state.session_count,
        "live": len(state.live),
        "waiters": len(process.waiters),
        "runs_active": sum(len(work.running) for work in state.work.values()),
        "queue_depth": sum(len(work.waiting) for work in state.work.values()),
        "parked": len(process.partition.parked),
        "pos": state.pos,
        "lseq": state.lseq,
        "degraded": process.health.state,
        "dropped": process.replies.dropped,
        "redacted": state.redactor.count,
        "patterns_gave_up": state.redactor.gave_up,
        "fenced": process.partition.runners.fenced,
        "topics": len(process.publisher.topics),
        "unpublished": process.publisher.lost,
        "damaged": process.store.damaged,
        "loading": process.recovery.loading,
    }


__all__ = ["counters"]
