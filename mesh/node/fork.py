"""Turn a forked copy of the supervisor into a child, and read afterwards why it died.

Between fork and ``main`` a child makes itself independent: its own session and process group, its own
log, no inherited descriptor but its control pipe, default signals, and a kernel's word that it will not
outlive its supervisor. Nothing of the supervisor's stack is ever unwound in a child: it leaves by
``os._exit`` alone.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mesh.log import redacted
from mesh.node.child import Child
from mesh.node.reaper import become_subreaper, set_death_signal
from mesh.node.title import set_title

#: Children make next to no cycles, and keep tens of thousands of objects: with Python's own (700, 10, 10) the
#: collector took 7 % of a partition's time under run_once, in pauses of the whole heap.
GC_THRESHOLDS = (10_000, 10, 50)
Main = Callable[[Child], None]
#: Signals that the supervisor handles; blocked over a fork, so that no copy of a handler runs in a child.
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
CAUSE_LINES_MAX = 20
CAUSE_BYTES_MAX = 2_048
#: How long a thread that was waited for may stay in the kernel's list.
THREAD_END_S = 1.0


class LogFile:
    """A child's ``logs/<name>.log``: bounded, one older file kept, and where its present life begins."""

    def __init__(self, path: Path, bytes_max: int) -> None:
        self.path = path
        self._older = path.with_name(path.name + ".1")
        self._bytes_max = bytes_max
        self._begin = 0

    def open(self) -> int:
        """A descriptor for a new life of the child, at the end of the file."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.bound()
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._begin = os.fstat(fd).st_size
        return fd

    def bound(self) -> None:
        """Move the contents to the older file when there is too much; writers keep their descriptor."""
        with suppress(OSError):
            if self.path.stat().st_size > self._bytes_max:
                shutil.copyfile(self.path, self._older)
                os.truncate(self.path, 0)
                self._begin = 0

    def last_lines(self) -> str:
        """The end of what the present life of the child wrote."""
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(min(self._begin, size), size - CAUSE_BYTES_MAX))
                text = file.read(CAUSE_BYTES_MAX).decode(errors="replace")
        except OSError:
            return ""
        return redacted("\n".join(text.strip().splitlines()[-CAUSE_LINES_MAX:]))


def fork_child(child: Child, main: Main, log: LogFile) -> int:
    """Fork, run ``main(child)`` in the copy, and return its pid.

    Raises:
        OSError: the machine is out of processes or memory; there is no child.
    """
    _check_alone()
    supervisor = os.getpid()
    errors = log.open()
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        pid = os.fork()
        if pid == 0:
            _live(child, main, errors, supervisor)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        os.close(errors)
    return pid


def _check_alone() -> None:
    """A thread that held a lock at fork would hold it for ever in the copy."""
    until_s = time.monotonic() + THREAD_END_S
    while (threads := _threads()) > 1 and time.monotonic() < until_s:
        time.sleep(0)
    assert threads == 1, f"a supervisor must have one thread to fork safely, not {threads}"


def _threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208
    except OSError:
        return threading.active_count()


def cause_of(status: int, log: LogFile) -> dict[str, Any]:
    """Why a child died, as the roster tells it; ``status`` is what ``waitpid`` gave."""
    code = os.waitstatus_to_exitcode(status)
    return {
        "exit_status": code if code >= 0 else None,
        "signal": signal_name(-code) if code < 0 else None,
        "stderr": log.last_lines(),
        "at": time.time(),
    }


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9; real-time signals have only their number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def _live(child: Child, main: Main, errors: int, supervisor: int) -> None:
    """The whole life of a child. Does not return."""
    status = 1
    try:
        _become_independent(child, errors, supervisor)
        main(child)
        status = 0
    except SystemExit as exc:
        status = exc.code if isinstance(exc.code, int) else 0 if exc.code is None else 1
    except BaseException:  # noqa: BLE001 - the last one who can tell why this process ends
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status & 0xFF)


def _become_independent(child: Child, errors: int, supervisor: int) -> None:
    os.setsid()
    set_title(f"mesh {child.title}")
    gc.set_threshold(*GC_THRESHOLDS)
    _redirect(errors)
    _close_others(child.control.fileno())
    signal.set_wakeup_fd(-1)
    for signum in HANDLED:
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    if child.kind == "runner":
        # SIGCONT: even a stopped runner wakes, sees the end of its pipe, and takes its commands with it.
        become_subreaper()
        set_death_signal(signal.SIGCONT)
    else:
        set_death_signal(signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(1)


def _redirect(errors: int) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    # What the supervisor's own stdout and stderr objects hold back must not appear in two places.
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115


def _close_others(control: int) -> None:
    for name in os.listdir("/dev/fd"):  # noqa: PTH208
        fd = int(name)
        if fd > 2 and fd != control:
            with suppress(OSError):
                os.close(fd)


__all__ = ["HANDLED", "THREAD_END_S", "LogFile", "Main", "cause_of", "fork_child", "signal_name"]
