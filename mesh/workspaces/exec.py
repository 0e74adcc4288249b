"""Commands for agents: run one, or stream it. Its whole process group is gone at the end, and what it had
said when its time was over is kept.

The runner of processes is the ``shell`` agent's own (``providers/execution.py``).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mesh.core.records import Record
from mesh.errors import InvalidArgument, RunError
from mesh.proc import Stat, process_table
from mesh.providers.execution import Command, Execution

TIMEOUT_S = 30.0
OUTPUT_BYTES = 1_048_576


class Executed(Record, frozen=True):
    """What a command left. A non-zero exit is no error; 124 is a timeout, 128 + n a death by signal n."""

    command: str
    args: tuple[str, ...]
    cwd: str
    exit_code: int
    stdout: str  #: stderr merged into it, as it came; cut at the cap
    stderr: str
    duration_ms: int
    timed_out: bool
    truncated: bool = False


class Chunk(Record, frozen=True):
    """A piece of a stream: ``stdout`` with bytes, at the end ``exit`` with the code; ``error`` alone when the
    command could not be started."""

    kind: str
    data: bytes = b""
    exit_code: int | None = None
    error: dict[str, Any] | None = None


class _Group:
    """The processes of a command: its group, and those below its leader."""

    def begin(self, leader: int) -> None:
        """Nothing to remember."""

    def living(self, leader: int | None, run_id: str) -> Sequence[Stat]:  # noqa: ARG002
        """Who is left of it."""
        table = process_table()
        found = {leader}
        while True:
            more = {stat.pid for stat in table if stat.ppid in found or stat.pgid == leader} - found
            if not more:
                break
            found |= more
        return [stat for stat in table if stat.pid in found and stat.state not in "ZX"]

    def signal(self, procs: Sequence[Stat], signum: int) -> None:
        """Signal them, the groups of leaders too."""
        for stat in procs:
            with suppress(OSError):
                (os.killpg if stat.pid == stat.pgid else os.kill)(stat.pid, signal.Signals(signum))

    def end(self, leader: int) -> None:
        """Nothing to forget."""


async def run(
    command: str, args: Sequence[str] = (), *, cwd: str | os.PathLike[str] | None = None,
    timeout_s: float = TIMEOUT_S, max_output_bytes: int = OUTPUT_BYTES, env: Mapping[str, str] | None = None,
    on_output: Callable[[bytes], Any] | None = None,
) -> Executed:
    """Run a command to its end. ``env`` is added to ours; ``on_output`` sees all bytes, also beyond the cap.

    Raises:
        InvalidArgument: ``validation_error``: an argument, or the folder.
        RunError: ``command_not_found``, or ``command_failed``: it cannot be started.
    """
    execution, asked = _made(command, args, cwd, timeout_s, env)
    kept = bytearray()
    truncated = False
    try:
        await _started(execution, asked)
        async for _, chunk in execution.chunks():
            left = max(0, max_output_bytes - len(kept))
            kept += chunk[:left]
            truncated = truncated or len(chunk) > left
            if on_output is not None:
                with suppress(Exception):  # a listener's trouble is not the command's
                    on_output(chunk)
    finally:
        await execution.end()
    return Executed(
        command, tuple(args), asked.cwd, execution.exit_code, kept.decode(errors="replace"), "",
        execution.duration_ms, execution.timed_out, truncated,
    )


async def run_streaming(
    command: str, args: Sequence[str] = (), *, cwd: str | os.PathLike[str] | None = None,
    timeout_s: float = TIMEOUT_S, env: Mapping[str, str] | None = None,
) -> AsyncIterator[Chunk]:
    """Run a command and yield what it says; ``timeout_s`` is how long it may be silent. Nothing is started
    before the first piece is asked for; leaving early ends the command."""
    try:
        execution, asked = _made(command, args, cwd, timeout_s, env)
    except InvalidArgument as exc:
        yield Chunk("error", error=exc.to_map())
        return
    try:
        try:
            await _started(execution, asked)
        except (InvalidArgument, RunError) as exc:
            yield Chunk("error", error=exc.to_map())
            return
        async for _, data in execution.chunks(idle=True):
            yield Chunk("stdout", data)
    finally:
        await execution.end()
    yield Chunk("exit", exit_code=execution.exit_code)


def _made(
    command: str, args: Sequence[str], cwd: str | os.PathLike[str] | None, timeout_s: float,
    env: Mapping[str, str] | None,
) -> tuple[Execution, Command]:
    words = [command, *args]
    if not command or not all(isinstance(word, str) and "\0" not in word for word in words):
        raise InvalidArgument("a command and its arguments are texts without NUL characters")
    if not timeout_s > 0:
        raise InvalidArgument(f"timeout_s must be more than 0, not {timeout_s!r:.40}")
    folder = str(Path.cwd() if cwd is None else Path(cwd).expanduser())
    if not os.path.isdir(folder):  # noqa: PTH112
        raise InvalidArgument(f"cwd: no such folder: {folder}")
    asked = Command(words, " ".join(words), folder, {**os.environ, **(env or {})}, timeout_s, True)
    return Execution(_Group(), f"exec-{time.monotonic_ns()}", 0), asked


async def _started(execution: Execution, asked: Command) -> None:
    try:
        await execution.start(asked)
    except RunError as exc:
        raise RunError(exc.message, code=exc.code, details=exc.details) from exc


__all__ = ["OUTPUT_BYTES", "TIMEOUT_S", "Chunk", "Executed", "run", "run_streaming"]
