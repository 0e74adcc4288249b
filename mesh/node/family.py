"""The processes of a supervisor: forked, heard over their pipes, signalled, collected, swept.

Knows processes, pipes and logs, and nothing of restarts: that is decided in ``core/supervisor.py``.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mesh.core.supervisor import ChildSpec
from mesh.log import Log
from mesh.node.child import Child, Control
from mesh.node.fork import LogFile, Main, cause_of, fork_child
from mesh.node.reaper import children, kill_group, kill_tree

#: How long one look for strays may hold up the loop; the next turn goes on with it.
SWEEP_S = 1.0
Hear = Callable[[str, dict[str, Any]], None]


class Death(NamedTuple):
    """A child whose end the kernel told us."""

    name: str
    pid: int
    cause: dict[str, Any]


class Family:
    """The children that have a process, and the strays that come back to us."""

    def __init__(
        self,
        specs: Iterable[ChildSpec],
        *,
        folder: Path,
        log_bytes: int,
        selector: selectors.BaseSelector,
        hear: Hear,
        log: Log,
    ) -> None:
        self._kinds = {spec.name: spec.kind for spec in specs}
        self._logs = {name: LogFile(folder / f"{name}.log", log_bytes) for name in self._kinds}
        self._selector = selector
        self._hear = hear
        self._log = log
        self._controls: dict[str, Control] = {}
        self._names: dict[int, str] = {}
        self._foreign = set(children(os.getpid()))  #: whose parent we became by exec; not ours to end

    @property
    def pids(self) -> dict[str, int]:
        """The processes that were not collected yet, by name."""
        return {name: pid for pid, name in self._names.items()}

    def spawn(self, child_for: Callable[[Control], Child], main: Main) -> int:
        """Fork a child, listen to its pipe, and return its pid.

        Raises:
            OSError: there is no child.
        """
        ours, theirs = socket.socketpair()
        try:
            child = child_for(Control(theirs))
            pid = fork_child(child, main, self._logs[child.name])
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        name = child.name
        self._names[pid] = name
        self._controls[name] = Control(ours)
        self._selector.register(ours, selectors.EVENT_READ, lambda: self.hear(name))
        return pid

    def send(self, name: str, t: str, **fields: Any) -> bool:
        """Send one message to a child; False when it was not taken."""
        control = self._controls.get(name)
        return control is not None and control.send(t, **fields)

    def flush(self) -> None:
        """Send on what the pipes could not take at once."""
        for control in self._controls.values():
            control.flush()

    def hear(self, name: str) -> None:
        """Hand over every message of a child. What is no message proves that it went astray: it is killed."""
        control = self._controls.get(name)
        if control is None:
            return
        try:
            messages = control.receive()
        except ValueError as exc:
            self._log.write("kills a child that sends no messages", child=name, error=str(exc))
            self.kill(name)
            return
        for message in messages:
            self._hear(name, message)
        if control.closed:
            self._hang_up(name)

    def stop(self, name: str, *, again: bool = False) -> None:
        """Ask a child to drain and exit; wake it if it is stopped."""
        self.send(name, "stop", again=again)
        for signum in (signal.SIGTERM, signal.SIGCONT):
            self._signal(name, signum)

    def kill(self, name: str) -> None:
        """SIGKILL a child and its group. It is not dead before ``deaths`` says so."""
        pid = self.pids.get(name)
        if pid is not None:
            kill_group(pid)
            self._signal(name, signal.SIGKILL)

    def deaths(self) -> Iterator[Death]:
        """Every death that the kernel has for us; a dead child's last words were heard before."""
        while (collected := _next_dead()) is not None:
            pid, status = collected
            self._foreign.discard(pid)
            name = self._names.pop(pid, None)
            if name is None:
                continue
            self.hear(name)
            self._hang_up(name)
            kill_group(pid)
            if self._kinds[name] == "runner":
                self.sweep()
            yield Death(name, pid, cause_of(status, self._logs[name]))

    def sweep(self) -> None:
        """Kill what came back to us from a dead runner; one cheap look when there is nothing."""
        keep = self._foreign.union(self._names)
        if keep.issuperset(children(os.getpid())):
            return
        survivors = kill_tree(keep=keep, reap=True, timeout_s=SWEEP_S)
        if survivors:
            self._log.write("strays do not die yet", pids=[proc.pid for proc in survivors])

    def bound_logs(self) -> None:
        """Keep every log within its limit."""
        for log in self._logs.values():
            log.bound()

    def close(self) -> None:
        """Kill whoever is left, and all below."""
        for pid in self._names:
            kill_group(pid)
        survivors = kill_tree(keep=self._foreign, reap=True)
        if survivors:
            self._log.write("processes survive SIGKILL", pids=[proc.pid for proc in survivors])
        for name in list(self._controls):
            self._hang_up(name)

    def _hang_up(self, name: str) -> None:
        control = self._controls.pop(name, None)
        if control is not None:
            self._selector.unregister(control)
            control.close()

    def _signal(self, name: str, signum: int) -> None:
        """Safe: a pid that we have not collected is still the child's."""
        pid = self.pids.get(name)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signum)


def _next_dead() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


__all__ = ["SWEEP_S", "Death", "Family"]
