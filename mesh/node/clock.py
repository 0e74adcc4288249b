"""The machine's boot clock: stored boot times mean something within one boot only."""

from __future__ import annotations

import time

from mesh import proc


def boot_ms() -> int:
    """Milliseconds since the machine's boot, its sleep included where the system can tell."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime_ns(clock) // 1_000_000


def boot_id() -> str:
    """Which boot of the machine this is; where the system has no name for it, the time of the boot."""
    return proc.boot_id() or str(int(time.time() - time.monotonic()) // 10)


__all__ = ["boot_id", "boot_ms"]
