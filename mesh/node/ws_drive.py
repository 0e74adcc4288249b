"""Workspaces of runs, on the runner's loop: what blocks happens in threads, a few at a time.

What a run does with its workspace stands in ``workspaces/job.py``. This is where it waits: for a folder that
somebody has, for a thread, and at its end for its own thread, whatever the run was told meanwhile.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mesh.config import LimitsSection
from mesh.core.runner import Key
from mesh.core.workspace import LOCK_WAIT_S
from mesh.errors import MeshError, RunError
from mesh.log import Log
from mesh.node.ending import Ending, failure
from mesh.node.pieces import Pieces
from mesh.providers.execution import Processes

if TYPE_CHECKING:
    from mesh.workspaces.base import Base
    from mesh.workspaces.job import Job

T = TypeVar("T")
#: Threads that work on workspaces at a time; the other runs wait.
THREADS_MAX = 8
#: Pauses between two tries of a run that waits for its folder.
LOOK_S = 0.02
LOOK_MAX_S = 0.25


class Workspaces:
    """The workspaces of a runner's runs. Nothing of them is loaded before the first one."""

    def __init__(self, data_dir: Path, limits: LimitsSection, processes: Processes, log: Log) -> None:
        self._processes = processes
        self._log = log
        self._folder = data_dir / "workspaces"
        self._limits = limits
        self.threads = asyncio.Semaphore(THREADS_MAX)

    @cached_property
    def base(self) -> Base:
        """What the runs share."""
        from mesh.workspaces.base import Base

        return Base(
            self._folder, self._limits.workspace_files, self._limits.workspace_bytes,
            end_processes=self._end_processes, tell=self._tell,
        )

    def recover(self) -> None:
        """Finish in the background what dead runs intended; a run that wants their folder does it first."""
        if self._folder.is_dir():
            threading.Thread(target=self._sweep, name="recover workspaces", daemon=True).start()

    def begin(self, key: Key, options: dict[str, Any]) -> RunWorkspace:
        """The workspace of a run that begins."""
        from mesh.workspaces.job import Job

        return RunWorkspace(self, Job(self.base, key[0], key[1], options))

    def _sweep(self) -> None:
        from mesh.workspaces.base import sweep

        try:
            sweep(self.base)
        except (MeshError, OSError) as exc:
            self._tell(f"the workspaces of dead runs cannot be looked at: {exc}", str(self._folder))

    def _end_processes(self, run_id: str) -> None:
        """A dead run's commands may still be writing."""
        self._processes.signal(self._processes.living(None, run_id), signal.SIGKILL)

    def _tell(self, what: str, path: str) -> None:
        self._log.write(what[:500], workspace=path)


class RunWorkspace:
    """One run's workspace: ``open`` before its provider, ``close`` after it, in any case."""

    def __init__(self, shared: Workspaces, job: Job) -> None:
        self._shared = shared
        self._job = job
        self._loop = asyncio.get_running_loop()
        self._busy: asyncio.Future[Any] | None = None
        self.opening = True  #: what the run waits for is no silence of its agent

    async def open(self, pieces: Pieces) -> str:
        """Have the folder alone and take its state; where the run works.

        Raises:
            MeshError: the run must not begin. ``workspace_busy``: somebody had the folder for too long.
        """
        job, look_s = self._job, LOOK_S
        wait_s: float = job.options.get("lock_wait_s", LOCK_WAIT_S)
        until_s = self._loop.time() + wait_s
        while not await self._do(job.take):
            if self._loop.time() >= until_s:
                raise RunError(
                    f"another run had the workspace for {wait_s:g} s: {job.path}", code="workspace_busy"
                )
            await asyncio.sleep(look_s)
            look_s = min(2 * look_s, LOOK_MAX_S)
        await self._do(job.open)
        pieces.workspace = job.facts
        self.opening = False
        return str(job.path)

    def tell(self, pieces: Pieces) -> None:
        """Write what is known as events."""
        for event_type, data in self._job.events:
            pieces.emit(event_type, data)
        self._job.events.clear()

    async def close(self, ending: Ending, pieces: Pieces) -> Ending:
        """Look, undo where that was asked for, and give the folder back. Returns how the run ends."""
        await self._to_the_end(self._busy)
        work = self._loop.create_task(self._do(self._job.close, ending.status == "completed"))
        problem = await self._to_the_end(work)
        self.tell(pieces)
        if problem is not None and ending.status == "completed":
            return failure(problem)._replace(output=ending.output)
        return ending

    async def _do(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in a thread; when we are cancelled it is told to stop."""
        async with self._shared.threads:
            future: asyncio.Future[T] = self._loop.create_future()
            self._busy = future
            threading.Thread(
                target=self._call, args=(future, function, args), name="workspace", daemon=True
            ).start()
            try:
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                self._job.stop.set()
                raise

    def _call(self, future: asyncio.Future[T], function: Callable[..., T], args: tuple[Any, ...]) -> None:
        try:
            done: Callable[[], None] = _setting(future, function(*args), None)
        except BaseException as exc:  # noqa: BLE001  told to whoever waits
            done = _setting(future, None, exc)
        try:
            self._loop.call_soon_threadsafe(done)
        except RuntimeError:  # the loop is closed: the next start finishes it
            return

    async def _to_the_end(self, work: asyncio.Future[T] | None) -> T | None:
        """Wait for it, also when the run is told to stop meanwhile: the folder must be given back."""
        while work is not None and not work.done():
            try:
                await asyncio.wait((work,))
            except asyncio.CancelledError:
                continue
        if work is None or work.cancelled():
            return None
        error = work.exception()
        if error is not None and work is not self._busy:
            raise error
        return None if error is not None else work.result()


def _setting(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> Callable[[], None]:
    def done() -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    return done


__all__ = ["LOOK_MAX_S", "LOOK_S", "THREADS_MAX", "RunWorkspace", "Workspaces"]
