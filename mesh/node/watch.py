"""The runner's second thread: it stays awake when an agent blocks the loop.

It says the heartbeat, with the lag of the loop; it hears the supervisor's word and its death; and it names
the agent that blocks. When the supervisor is gone, everything below the runner is killed first, and the
runner last.
"""

from __future__ import annotations

import asyncio
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from mesh.log import Log
from mesh.node import reaper
from mesh.node.child import Child

#: How often the loop shows that it lives, and how late that is called a block.
TICK_S = 0.25
BLOCKED_S = 1.0


class Watch:
    """Watches one loop. Made and started on it."""

    def __init__(
        self, child: Child, log: Log, *, on_stop: Callable[[], None],
        on_unblocked: Callable[[asyncio.Task[Any], str], None],
    ) -> None:
        self._child = child
        self._log = log
        self._on_stop = on_stop
        self._on_unblocked = on_unblocked
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._ticked_s = time.monotonic()
        self._blocked: tuple[asyncio.Task[Any], str] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        self.lag_ms = 0
        self._worst_ms = 0  # since the last beat

    def start(self) -> None:
        """Begin to tick and to watch."""
        self._tick()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def end(self) -> None:
        """The runner is done; the end of the pipe means nothing any more."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        lag_s = time.monotonic() - self._ticked_s
        blocked, self._blocked = self._blocked, None
        self._ticked_s = time.monotonic()
        self._timer = self._loop.call_later(TICK_S, self._tick)
        if blocked is not None and lag_s >= BLOCKED_S:
            self.lag_ms = int(lag_s * 1000)
            self._on_unblocked(*blocked)

    def _watch(self) -> None:
        control = self._child.control
        poller = select.poll()
        poller.register(control.fileno(), select.POLLIN)
        period_s = self._child.config.supervision.heartbeat_s
        beat_s = time.monotonic()
        while not self._ended:
            before_s = time.monotonic()
            poller.poll(min(TICK_S, period_s) * 1000)
            now_s = time.monotonic()
            for message in control.receive():
                if message.get("t") == "stop":
                    self._call(self._on_stop)
            if control.closed:
                self._orphaned()
                return
            if now_s - before_s < BLOCKED_S / 2:  # else the machine slept, and not the loop alone
                self._look(now_s)
            if now_s - beat_s >= period_s:
                beat_s = now_s
                control.send("beat", lag_ms=self._worst_ms)
                self._worst_ms = 0

    def _look(self, now_s: float) -> None:
        lag_s = max(0.0, now_s - self._ticked_s - TICK_S)
        self.lag_ms = int(lag_s * 1000)
        self._worst_ms = max(self._worst_ms, self.lag_ms)
        if lag_s < BLOCKED_S or self._blocked is not None:
            return
        task = asyncio.current_task(self._loop)
        if task is None:
            return
        where = _place(sys._current_frames().get(self._loop_thread))
        self._blocked = (task, where)
        self._log.write("the loop is blocked", lag_ms=self.lag_ms, task=task.get_name(), at=where)

    def _call(self, function: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop is closed already
            return

    def _orphaned(self) -> None:
        if self._ended:
            return
        self._log.write("the supervisor is gone: ending all commands, then this runner")
        reaper.kill_tree()
        os._exit(1)


def _place(frame: FrameType | None) -> str:
    """Where a thread executes: the innermost line that is not of the standard library, else the innermost."""
    library = os.path.dirname(os.__file__)  # noqa: PTH120
    innermost = frame
    while frame is not None:
        if not frame.f_code.co_filename.startswith((library, "<")):
            return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return "?" if innermost is None else f"{innermost.f_code.co_filename}:{innermost.f_lineno}"


__all__ = ["BLOCKED_S", "TICK_S", "Watch"]
