"""What the kernel says about processes. Only reads; ``node/reaper.py`` is what kills."""

from __future__ import annotations

import functools
import subprocess
import time
from pathlib import Path
from subprocess import TimeoutExpired
from typing import NamedTuple

_PROC = Path("/proc")
#: A system's own tool that is asked for a fact and has not answered by then does not know it.
ANSWER_S = 5.0
_HAS_PROC = (_PROC / "self" / "stat").exists()


class Stat(NamedTuple):
    """One process. ``start_time`` is in the platform's own unit: only compare it."""

    pid: int
    ppid: int
    pgid: int
    state: str
    start_time: int


def read_stat(pid: int) -> Stat | None:
    """The process's line, or None when there is no such process (a zombie still has one)."""
    if not _HAS_PROC:
        return next(iter(_ps("-p", str(pid))), None)
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            text = file.read()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    return Stat(pid, int(fields[1]), int(fields[2]), fields[0].decode(), int(fields[19]))


def start_time(pid: int) -> int | None:
    """When a living process started; None when it is gone or only waits to be collected."""
    stat = read_stat(pid)
    return None if stat is None or stat.state in "ZX" else stat.start_time


def process_table() -> list[Stat]:
    """Every process of the machine that we may see."""
    if not _HAS_PROC:
        return _ps("-ax")
    pids = [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]
    return [stat for pid in pids if (stat := read_stat(pid)) is not None]


def boot_id() -> str:
    """Names this boot of the machine: start times are comparable only within one. "" where unknown."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return _boot_session()


@functools.cache
def _boot_session() -> str:
    """The same on macOS."""
    command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
        return done.stdout.strip()
    except (OSError, TimeoutExpired):
        return ""


def _ps(*which: str) -> list[Stat]:
    """The same from ``ps``, where there is no /proc (macOS)."""
    command = ["/bin/ps", *which, "-o", "pid=,ppid=,pgid=,state=,lstart="]
    text = subprocess.run(command, capture_output=True, text=True, check=False, env={"LC_ALL": "C"}).stdout
    rows = (line.split(None, 4) for line in text.splitlines())
    return [_from_ps(row) for row in rows if len(row) == 5]


def _from_ps(row: list[str]) -> Stat:
    started = int(time.mktime(time.strptime(row[4].strip())))
    return Stat(int(row[0]), int(row[1]), int(row[2]), row[3][0], started)


__all__ = ["Stat", "boot_id", "process_table", "read_stat", "start_time"]
