"""No orphan ever: find processes by descent and by mark, and kill them for sure.

Rules of this file:

1. A process is a pid AND its start time. Before a signal leaves, both are compared again, through a
   pidfd where the kernel has one, so a pid that was given to a stranger is never hit.
2. Killing is repeated until a look finds nobody: a process may fork while it is being killed.
3. A subreaper gets its grandchildren back even after ``setsid`` and a double fork. So descent finds
   everything below a living subreaper; the environment mark finds what lost its subreaper.
4. Every loop has a time limit, and what survived it (uninterruptible sleep) is returned, not forgotten.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mesh.proc import Stat, process_table, read_stat, start_time

KILL_TIMEOUT_S = 5.0
#: Pause between two looks while killed processes are on their way out.
_LOOK_AGAIN_S = 0.002
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class Proc(NamedTuple):
    """One process, proven: pid and start time."""

    pid: int
    start_time: int


def mark_env(name: str, value: str, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment that carries a mark; the mark is visible to ``marked`` from the process's exec on."""
    return {**(os.environ if base is None else base), name: value}


def alive(proc: Proc) -> bool:
    """Whether this very process still runs (a zombie does not)."""
    return start_time(proc.pid) == proc.start_time


def descendants(pid: int) -> list[Proc]:
    """All living processes below ``pid``, parents before their children; ``pid`` itself is not among them."""
    return [Proc(stat.pid, stat.start_time) for stat in _below((pid,), process_table()) if _lives(stat)]


def marked(name: str, value: str) -> list[Proc]:
    """All processes but this one whose environment at exec held ``name=value``."""
    return [proc for proc, found in _marks(name) if found == value]


def marked_elsewhere(name: str, prefix: str, own: str) -> list[Proc]:
    """All processes whose mark begins with ``prefix`` but is not ``own``: leftovers of an earlier life.

    Our own ancestors are left out: nobody may saw off the branch on which he sits.
    """
    spared = _ancestors(os.getpid())
    return [
        proc for proc, found in _marks(name)
        if found.startswith(prefix) and found != own and proc.pid not in spared
    ]


def environ_mark(pid: int, name: str) -> str | None:
    """The value of one variable in a process's environment at exec; None when absent or unreadable."""
    try:
        block = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    wanted = name.encode() + b"="
    values = (item[len(wanted):] for item in block.split(b"\0") if item.startswith(wanted))
    return next((value.decode(errors="replace") for value in values), None)


def send_signal(proc: Proc, signum: int = signal.SIGKILL) -> bool:
    """Signal this very process, never one that inherited its pid. False when it is gone."""
    try:
        fd = os.pidfd_open(proc.pid) if hasattr(os, "pidfd_open") else -1
    except OSError:
        return False
    try:
        if not alive(proc):
            return False
        if fd >= 0:
            signal.pidfd_send_signal(fd, signum)
        else:
            os.kill(proc.pid, signum)
    except OSError:
        return False
    finally:
        if fd >= 0:
            os.close(fd)
    return True


def kill_group(pgid: int, signum: int = signal.SIGKILL) -> bool:
    """Signal a whole process group that is not ours. False when nobody is in it any more."""
    if pgid <= 1 or pgid == os.getpgrp():
        return False
    try:
        os.killpg(pgid, signum)
    except OSError:
        return False
    return True


def kill_all(procs: Iterable[Proc], *, timeout_s: float = KILL_TIMEOUT_S) -> list[Proc]:
    """SIGKILL these processes, their groups where they lead one, and all below them; wait for their end.

    Returns who survived ``timeout_s``, normally nobody.
    """
    waiting = set(procs)
    until_s = time.monotonic() + timeout_s
    while waiting:
        table = {stat.pid: stat for stat in process_table()}
        waiting = {proc for proc in waiting if _is_there(proc, table)}
        waiting |= {
            Proc(stat.pid, stat.start_time)
            for stat in _below([proc.pid for proc in waiting], table.values()) if _lives(stat)
        }
        for proc in waiting:
            _kill_one(proc, table[proc.pid])
        if waiting and time.monotonic() > until_s:
            return sorted(waiting)
        if waiting:
            time.sleep(_LOOK_AGAIN_S)
    return []


def kill_tree(
    pid: int | None = None,
    *,
    keep: Collection[int] = (),
    reap: bool = False,
    timeout_s: float = KILL_TIMEOUT_S,
) -> list[Proc]:
    """SIGKILL everything below ``pid`` (default: this process) until nobody is left.

    ``keep`` names direct children that stay, with all below them. ``reap`` also collects the exit statuses
    of our own dead children: not for a process whose asyncio or subprocess objects wait for them.
    Returns who survived ``timeout_s``, normally nobody.
    """
    root = os.getpid() if pid is None else pid
    until_s = time.monotonic() + timeout_s
    while True:
        table = process_table()
        kept = {stat.pid for stat in _below(keep, table)} | set(keep)
        targets = [stat for stat in _below((root,), table) if stat.pid not in kept and _lives(stat)]
        for stat in targets:
            _kill_one(Proc(stat.pid, stat.start_time), stat)
        if reap:
            reap_unknown(keep)
        if not targets:
            return []
        if time.monotonic() > until_s:
            return [Proc(stat.pid, stat.start_time) for stat in targets]
        time.sleep(_LOOK_AGAIN_S)


def reap_unknown(known: Collection[int]) -> None:
    """Collect dead children that nobody waits for: those that came to us because we are a subreaper."""
    for pid in children(os.getpid()):
        if pid not in known:
            with suppress(OSError):
                os.waitpid(pid, os.WNOHANG)


def children(pid: int) -> list[int]:
    """The pids of direct children, zombies included; quick where the kernel lists them."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208
        lists = [Path(f"/proc/{pid}/task/{task}/children").read_text(encoding="ascii") for task in tasks]
    except OSError:
        return [stat.pid for stat in process_table() if stat.ppid == pid]
    return [int(child) for text in lists for child in text.split()]


def proc_of(pid: int) -> Proc | None:
    """The proven form of a living pid, None when it is gone."""
    started = start_time(pid)
    return None if started is None else Proc(pid, started)


def become_subreaper() -> bool:
    """Let orphaned processes below us come back to us instead of to init. False where that is unknown."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_death_signal(signum: int) -> bool:
    """Ask the kernel to signal us when our parent dies; the caller compares ``getppid`` afterwards."""
    return _prctl(_PR_SET_PDEATHSIG, signum)


def weaker() -> list[str]:
    """What this platform lacks of the promise "no orphan ever", in sentences for the start of a node."""
    if sys.platform.startswith("linux"):
        return [] if hasattr(os, "pidfd_open") else ["no pidfd: a signal could hit a pid given away just now"]
    return [
        "no PR_SET_PDEATHSIG: after kill -9 of the supervisor, children end when they see its pipe close",
        "no PR_SET_CHILD_SUBREAPER: a command that calls setsid and forks twice can outlive its runner",
        "no /proc/<pid>/environ: leftovers are found by pid and start time alone",
    ]


def _prctl(option: int, value: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    return bool(ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) == 0)


def _marks(name: str) -> list[tuple[Proc, str]]:
    found = []
    for stat in process_table():
        if stat.pid != os.getpid() and _lives(stat):
            value = environ_mark(stat.pid, name)
            if value is not None and alive(proc := Proc(stat.pid, stat.start_time)):
                found.append((proc, value))
    return found


def _ancestors(pid: int) -> set[int]:
    found: set[int] = set()
    while pid > 1 and pid not in found:
        found.add(pid)
        stat = read_stat(pid)
        pid = 0 if stat is None else stat.ppid
    return found


def _below(roots: Iterable[int], table: Iterable[Stat]) -> list[Stat]:
    by_parent: dict[int, list[Stat]] = {}
    for stat in table:
        by_parent.setdefault(stat.ppid, []).append(stat)
    found: list[Stat] = []
    level = list(roots)
    while level:
        below = [stat for pid in level for stat in by_parent.pop(pid, ())]
        found += below
        level = [stat.pid for stat in below]
    return found


def _lives(stat: Stat) -> bool:
    return stat.state not in "ZX"


def _is_there(proc: Proc, table: Mapping[int, Stat]) -> bool:
    stat = table.get(proc.pid)
    return stat is not None and stat.start_time == proc.start_time and _lives(stat)


def _kill_one(proc: Proc, stat: Stat) -> None:
    """A group leader takes its group along: members that changed their environment or parent go too."""
    if send_signal(proc) and stat.pgid == proc.pid:
        kill_group(stat.pgid)


__all__ = [
    "KILL_TIMEOUT_S", "Proc", "alive", "become_subreaper", "children", "descendants", "environ_mark",
    "kill_all", "kill_group", "kill_tree", "mark_env", "marked", "marked_elsewhere", "proc_of",
    "reap_unknown", "send_signal", "set_death_signal", "weaker",
]
