"""One command of the operating system, from its start until every process of it is gone.

The order at its end: the command exits; its pipes get ``DRAIN_S`` to close; whoever is left of it (a
background job, a daemon of its own session) is killed; what the pipes still hold is read to the end. So no
output is lost and no process is left. A timeout or a cancellation sends SIGTERM first, and SIGKILL after
``TERM_S``.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple, Protocol

from mesh.providers.base import ProviderFailure, provider_error

#: Chunks read and not yet taken by the run; then reading pauses, the pipe fills and the command waits.
CHUNKS_MAX = 8
#: After the command's end: how long its pipes may stay open in other hands before those are killed.
DRAIN_S = 0.2
#: How long SIGTERM gets before SIGKILL, and how long the killed are waited for.
TERM_S = 2.0
GONE_S = 1.5
_LOOK_S = 0.01
_STREAMS = {1: "stdout", 2: "stderr"}


class Processes(Protocol):
    """How the processes of a run are found and signalled; given in by the node."""

    def begin(self, leader: int) -> None:
        """A command started: ``leader`` is its process and its group."""

    def living(self, leader: int | None, run_id: str) -> Sequence[Any]:
        """Every living process of the run: its group, those below its leader, those that carry its mark."""

    def signal(self, procs: Sequence[Any], signum: int) -> None:
        """Signal these processes."""

    def end(self, leader: int) -> None:
        """The command is over; collect what came back to us as an orphan."""


class Command(NamedTuple):
    """What is to be executed."""

    argv: list[str]
    shown: str
    cwd: str
    env: dict[str, str]
    timeout_s: float
    direct: bool  #: without a shell
    stdin: bool = False  #: ``write`` reaches it; else its stdin is empty


class _Pipe:
    """One pipe's text so far: decoded as it comes, and bounded."""

    def __init__(self, bytes_max: int) -> None:
        self.dropped = 0
        self._left = bytes_max
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._parts: list[str] = []

    @property
    def text(self) -> str:
        """All that was kept."""
        return "".join(self._parts)

    def take(self, chunk: bytes, final: bool = False) -> str:
        """Keep what still fits and return its text; half a character waits for its rest."""
        kept = chunk[: self._left]
        self.dropped += len(chunk) - len(kept)
        self._left -= len(kept)
        text = self._decode(kept, final)
        if text:
            self._parts.append(text)
        return text


class _Link(asyncio.SubprocessProtocol):
    """What the loop tells about a process: chunks of its pipes, their ends, its exit."""

    def __init__(self) -> None:
        self.chunks: deque[tuple[int, bytes]] = deque()
        self.open = {1, 2}
        self.exited = False
        self.transport: asyncio.SubprocessTransport | None = None
        self._paused = False
        self._room = asyncio.Event()  #: its stdin takes more, or is closed
        self._room.set()
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self.transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.chunks.append((fd, data))
        if len(self.chunks) >= CHUNKS_MAX and not self._paused:
            self._pause(True)
        self._wake()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002
        self.open.discard(fd)
        if fd == 0:
            self._room.set()
        self._wake()

    def process_exited(self) -> None:
        self.exited = True
        self._wake()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def stdin(self) -> asyncio.WriteTransport | None:
        """Where its stdin is written to; None when it was closed, by us or by it."""
        pipe = self.transport.get_pipe_transport(0) if self.transport is not None else None
        return pipe if isinstance(pipe, asyncio.WriteTransport) and not pipe.is_closing() else None

    async def written(self) -> None:
        """Return when its stdin has room again, or nobody reads it any more."""
        await self._room.wait()

    def take(self) -> tuple[int, bytes]:
        """The oldest chunk; reading goes on when there is room again."""
        chunk = self.chunks.popleft()
        if self._paused and not self.chunks:
            self._pause(False)
        return chunk

    def _pause(self, paused: bool) -> None:
        self._paused = paused
        for fd in self.open:
            pipe = self.transport.get_pipe_transport(fd) if self.transport is not None else None
            if isinstance(pipe, asyncio.ReadTransport) and not pipe.is_closing():
                (pipe.pause_reading if paused else pipe.resume_reading)()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def changed(self, within_s: float) -> None:
        """Return at the next news, or after ``within_s``."""
        self._waiter = asyncio.get_running_loop().create_future()
        await asyncio.wait((self._waiter,), timeout=max(0.0, within_s))


class Execution:
    """One command. ``start``, then ``pieces`` to the end, then ``end`` in any case."""

    def __init__(
        self, processes: Processes, run_id: str, bytes_max: int, *, provider: str = "shell",
        term_s: float = TERM_S,
    ) -> None:
        self._processes = processes
        self._provider = provider
        self._term_s = term_s
        self._run_id = run_id
        self._link = _Link()
        self._began_s = self._since_s = time.monotonic()
        self._pipes = {1: _Pipe(bytes_max), 2: _Pipe(bytes_max)}
        self._started = False
        self._over = False
        self.command = Command([], "", "", {}, 0.0, False)
        self.timed_out = False
        self.duration_ms = 0

    @property
    def stdout(self) -> str:
        """What stdout said, as far as it was kept."""
        return self._pipes[1].text

    @property
    def stderr(self) -> str:
        """What stderr said, as far as it was kept."""
        return self._pipes[2].text

    @property
    def truncated(self) -> bool:
        """Whether anything was not kept."""
        return any(pipe.dropped for pipe in self._pipes.values())

    @property
    def exit_code(self) -> int:
        """As a shell would say it: 128 + n for a death by signal n, 124 for a timeout."""
        code = None if self._link.transport is None else self._link.transport.get_returncode()
        if self.timed_out or code is None:
            return 124
        return code if code >= 0 else 128 - code

    async def start(self, command: Command) -> None:
        """Start it in a session and group of its own.

        Raises:
            ProviderFailure: ``command_not_found``, ``command_failed``, or a wrong folder.
        """
        self.command = command
        if not os.path.isdir(command.cwd):  # noqa: PTH112, ASYNC240  one stat
            raise ProviderFailure(f"cwd: no such folder: {command.cwd}", code="validation_error")
        self._started = True
        try:
            await self._spawn(command)
        except OSError as exc:
            self._over = True
            code = "command_not_found" if isinstance(exc, FileNotFoundError) else "command_failed"
            message = f"{command.argv[0]}: {exc.strerror}"
            raise ProviderFailure(
                message, code=code, provider_error=provider_error(self._provider, "process_error", message)
            ) from exc
        finally:
            leader = self._leader()
            if leader is not None:
                self._processes.begin(leader)

    async def _spawn(self, command: Command) -> None:
        """Start the process; a cancellation waits until that is done.

        asyncio, cancelled in between, waits for the ends of pipes that it never closes when a grandchild
        holds them (seen with 3.11).
        """
        starting = asyncio.ensure_future(asyncio.get_running_loop().subprocess_exec(
            lambda: self._link, *command.argv,
            stdin=asyncio.subprocess.PIPE if command.stdin else asyncio.subprocess.DEVNULL,
            cwd=command.cwd, env=command.env, start_new_session=True,
        ))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait((starting,))
            raise

    def _leader(self) -> int | None:
        return None if self._link.transport is None else self._link.transport.get_pid()

    async def write(self, data: bytes) -> bool:
        """Give it to the command's stdin; False when nobody reads that any more."""
        pipe = self._link.stdin()
        if pipe is None:
            return False
        pipe.write(data)
        await self._link.written()
        return True

    def close_stdin(self, last: bytes = b"") -> None:
        """What was written and ``last`` is all; the command sees the end of it when it has read that."""
        pipe = self._link.stdin()
        if pipe is not None:
            pipe.write(last)
            pipe.close()

    async def pieces(self) -> AsyncIterator[tuple[str, str]]:
        """Yield (stream, text) until the command and all its processes are gone and the pipes are empty."""
        async for fd, chunk in self.chunks():
            if text := self._pipes[fd].take(chunk):
                yield _STREAMS[fd], text
        for fd, pipe in self._pipes.items():
            if text := pipe.take(b"", final=True):
                yield _STREAMS[fd], text

    async def chunks(self, *, idle: bool = False) -> AsyncIterator[tuple[int, bytes]]:
        """Yield (1 or 2, bytes) as they come, nothing is kept; ``idle``: the time limit is one of silence.

        ``self.command`` may be given another limit meanwhile.
        """
        self._since_s = self._began_s
        async for piece in self._until(exited=True, idle=idle):
            yield piece
        self.timed_out = not self._link.exited
        if not self.timed_out:
            async for piece in self._until(DRAIN_S):
                yield piece
        await self._kill(self._term_s if self.timed_out else 0.0)
        async for piece in self._until(DRAIN_S):
            yield piece
        self.duration_ms = int((time.monotonic() - self._began_s) * 1000)

    async def _until(
        self, within_s: float | None = None, *, exited: bool = False, idle: bool = False
    ) -> AsyncIterator[tuple[int, bytes]]:
        """Yield what comes until the exit (``exited``) or the end of both pipes, or until the time is over.

        What was read is always yielded; time passes only while nothing is there.
        """
        link = self._link
        if within_s is not None:
            self._since_s = time.monotonic()
        while True:
            while link.chunks:
                yield link.take()
                if idle:
                    self._since_s = time.monotonic()
            limit_s = self.command.timeout_s if within_s is None else within_s
            left_s = self._since_s + limit_s - time.monotonic()
            if (link.exited if exited else not link.open) or left_s <= 0:
                return
            await link.changed(left_s)

    async def end(self) -> None:
        """Leave nothing, and close our ends of the pipes, whatever happened before."""
        try:
            if self._started and not self._over:
                try:
                    await self._kill(self._term_s)
                except asyncio.CancelledError:  # who waits for us waits no longer: no more patience, either
                    await self._kill(0.0)
                    raise
        finally:
            if self._link.transport is not None:
                self._link.transport.close()

    async def _kill(self, patience_s: float) -> None:
        """SIGTERM for ``patience_s`` (0: none), then SIGKILL, until all processes of the run are gone."""
        began_s = time.monotonic()
        leader = self._leader()
        asked: set[Any] = set()
        while living := self._processes.living(leader, self._run_id):
            spent_s = time.monotonic() - began_s
            if spent_s >= patience_s + GONE_S:
                break  # in uninterruptible sleep: the kernel will end it, nobody else can
            if spent_s >= patience_s:
                self._processes.signal(living, signal.SIGKILL)
            else:
                self._processes.signal([proc for proc in living if proc not in asked], signal.SIGTERM)
                asked.update(living)
            await asyncio.sleep(_LOOK_S)
        until_s = began_s + patience_s + GONE_S
        while leader is not None and not self._link.exited and time.monotonic() < until_s:
            await self._link.changed(_LOOK_S)
        if leader is not None:
            self._processes.end(leader)
        self._over = True


__all__ = ["CHUNKS_MAX", "DRAIN_S", "GONE_S", "TERM_S", "Command", "Execution", "Processes"]
