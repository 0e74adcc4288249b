"""The processes of shell runs, as the runner finds, signals and collects them.

A runner is a subreaper: what a command left behind comes back to it, and stays a zombie until it is
collected. But a zombie may also be the child of an agent's own ``subprocess.Popen``, whose exit status
belongs to that agent. So only what is known to be an orphan of a command is collected at once: a member of
a command's group, or a process seen as part of a run. Any other is left alone until it has been dead for
``STRANGER_S``.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from mesh.node import reaper
from mesh.node.reaper import Proc
from mesh.proc import Stat, process_table, read_stat

#: Groups and processes of finished commands that are remembered.
REMEMBERED_MAX = 4_096
STRANGER_S = 60.0
MARK = "MESH_RUN"


def watch_children() -> None:
    """Python 3.11 waits for each subprocess in a thread of its own unless it is told of pidfds."""
    if sys.version_info < (3, 12) and hasattr(os, "pidfd_open"):
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())


class RunProcesses:
    """Implements ``providers.execution.Processes`` with /proc (or ``ps``) and pidfds."""

    def __init__(self) -> None:
        self._leaders: dict[int, int] = {}  # leader -> start time; asyncio collects these
        self._past: deque[int] = deque(maxlen=REMEMBERED_MAX)
        self._zombies: dict[int, float] = {}

    def begin(self, leader: int) -> None:
        """A command started."""
        stat = read_stat(leader)
        self._leaders[leader] = 0 if stat is None else stat.start_time

    def living(self, leader: int | None, run_id: str) -> Sequence[Proc]:
        """Its group, those below its leader, those that carry its mark."""
        table = [stat for stat in process_table() if stat.pid != os.getpid()]
        below = _below(leader, table)
        oldest = 0 if leader is None else self._leaders.get(leader, 0)
        found = [
            Proc(stat.pid, stat.start_time) for stat in table
            if stat.state not in "ZX" and stat.start_time >= oldest and (
                stat.pgid == leader or stat.pid in below or reaper.environ_mark(stat.pid, MARK) == run_id
            )
        ]
        self._past.extend(proc.pid for proc in found if proc.pid != leader)
        return found

    def signal(self, procs: Sequence[Proc], signum: int) -> None:
        """Signal these very processes, never one that inherited a pid."""
        for proc in procs:
            reaper.send_signal(proc, signum)

    def end(self, leader: int) -> None:
        """The command is over; its orphans are collected."""
        if self._leaders.pop(leader, None) is not None:
            self._past.append(leader)

    def collect(self, now_s: float) -> None:
        """Collect dead orphans. Called once a second."""
        stats = (read_stat(pid) for pid in reaper.children(os.getpid()))
        zombies = [
            stat for stat in stats if stat is not None and stat.state == "Z" and stat.pid not in self._leaders
        ]
        self._zombies = {stat.pid: self._zombies.get(stat.pid, now_s) for stat in zombies}
        known = frozenset(self._past) | frozenset(self._leaders)
        for stat in zombies:
            ours = stat.pid in known or stat.pgid in known
            if ours or (stat.pgid != os.getpgrp() and now_s - self._zombies[stat.pid] > STRANGER_S):
                with suppress(OSError):
                    os.waitpid(stat.pid, os.WNOHANG)


def _below(leader: int | None, table: Sequence[Stat]) -> set[int]:
    if leader is None:
        return set()
    by_parent: dict[int, list[int]] = {}
    for stat in table:
        by_parent.setdefault(stat.ppid, []).append(stat.pid)
    found = {leader}
    level = [leader]
    while level:
        level = [pid for parent in level for pid in by_parent.get(parent, ()) if pid not in found]
        found.update(level)
    return found


__all__ = ["MARK", "REMEMBERED_MAX", "STRANGER_S", "RunProcesses", "watch_children"]
