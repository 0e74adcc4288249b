"""Signals as data, for a loop of one thread."""

from __future__ import annotations

import signal
import socket
from contextlib import suppress
from typing import Any

from mesh.node.fork import HANDLED


class Wakeup:
    """While entered, each handled signal makes ``fileno`` readable and is counted; nothing else happens."""

    def __init__(self) -> None:
        self.asked = 0  #: how often somebody asked us to stop
        self.hard = False  #: a second Ctrl-C: do not wait for anybody
        self._in, self._out = socket.socketpair()
        for end in (self._in, self._out):
            end.setblocking(False)
        self._old: list[tuple[int, Any]] = []
        self._old_fd = -1

    def __enter__(self) -> Wakeup:
        self._old = [(signum, signal.signal(signum, self._note)) for signum in HANDLED]
        self._old_fd = signal.set_wakeup_fd(self._out.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._old_fd)
        for signum, handler in self._old:
            signal.signal(signum, handler)
        self._in.close()
        self._out.close()

    def fileno(self) -> int:
        """Readable after a signal."""
        return self._in.fileno()

    def drain(self) -> None:
        """Forget the bytes; what they meant is in ``asked``."""
        with suppress(BlockingIOError):
            while self._in.recv(4096):
                pass

    def _note(self, signum: int, _frame: object) -> None:
        if signum != signal.SIGCHLD:
            self.hard = self.hard or (signum == signal.SIGINT and self.asked > 0)
            self.asked += 1


__all__ = ["Wakeup"]
