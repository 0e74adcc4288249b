"""One git command: bounded in time and output, its process group gone at the end."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import IO, NamedTuple

from mesh.errors import RunError, StoreError
from mesh.workspaces.files import Stop, storage

#: The longest that one command may take.
GIT_TIMEOUT_S = 120.0
#: The variable by which the processes of a run are known (``providers/shell.py``).
MARK = "MESH_RUN"
_LOOK_S = 0.1
#: From the end of its output to its exit.
_EXIT_S = 10.0
_CHUNK = 1 << 20
_STDERR_BYTES_MAX = 4_096
#: What a repository's own settings must not change about our commands, and no program of theirs is run for
#: speed or looks.
_SETTINGS = (
    "core.fsmonitor=false", "core.untrackedCache=false", "core.splitIndex=false", "core.hooksPath=/dev/null",
    "core.safecrlf=false", "core.quotePath=false", "advice.addEmbeddedRepo=false", "gc.auto=0",
    "core.logAllRefUpdates=false",
)
_CONFIG = [word for setting in _SETTINGS for word in ("-c", setting)]


class Said(NamedTuple):
    """What a command left."""

    code: int
    out: bytes
    dropped: int  #: bytes of output beyond the cap
    err: str


class Git:
    """Commands in one folder."""

    def __init__(self, cwd: str, stop: Stop, index: str | None = None, run_id: str = "") -> None:
        self.cwd = cwd
        self.stop = stop
        self._env = _environment()
        if run_id:  # so that it is found when its runner dies
            self._env[MARK] = run_id
        if index is not None:
            self._env["GIT_INDEX_FILE"] = index

    def try_run(
        self, *args: str, stdin: bytes = b"", cap: int | None = None, cwd: str | None = None
    ) -> Said:
        """Run it, whatever its exit code; output beyond ``cap`` is counted and dropped.

        Raises:
            RunError: ``dependency_not_available``, there is no git; ``cancelled``.
            StoreError: ``storage_error``, it took too long or cannot be started.
        """
        self.stop.check()
        with ExitStack() as stack:
            stack.enter_context(storage("cannot run git"))
            errors = stack.enter_context(tempfile.TemporaryFile())
            given: IO[bytes] | int = subprocess.DEVNULL
            if stdin:
                given = stack.enter_context(tempfile.TemporaryFile())
                given.write(stdin)
                given.seek(0)
            process = self._start(args, given, errors, cwd)
            patience_s = 0.0
            try:
                out, dropped = self._read(process, args[0], cap)
                patience_s = _EXIT_S
            finally:
                _end(process, patience_s)
            errors.seek(0)
            said = errors.read(_STDERR_BYTES_MAX).decode(errors="replace").strip()
        return Said(process.returncode, out, dropped, said)

    def run(self, *args: str, **options: object) -> bytes:
        """Run it and give its output.

        Raises:
            StoreError: ``storage_error`` with git's own words.
        """
        said = self.try_run(*args, **options)  # type: ignore[arg-type]  # the keywords of try_run
        if said.code != 0:
            raise failed(args[0], said)
        return said.out

    def _start(
        self, args: Sequence[str], given: IO[bytes] | int, errors: IO[bytes], cwd: str | None
    ) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                ["git", *_CONFIG, *args], cwd=cwd or self.cwd, env=self._env, stdin=given,
                stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
            )
        except FileNotFoundError as exc:
            if os.path.isdir(cwd or self.cwd):  # noqa: PTH112  one stat
                raise RunError("git is not installed", code="dependency_not_available") from exc
            raise StoreError(f"the workspace is gone: {self.cwd}", code="storage_error") from exc
        except OSError as exc:
            raise StoreError(f"git cannot be started: {exc.strerror}", code="storage_error") from exc

    def _read(self, process: subprocess.Popen[bytes], name: str, cap: int | None) -> tuple[bytes, int]:
        assert process.stdout is not None
        fd, left, dropped = process.stdout.fileno(), cap, 0
        chunks: list[bytes] = []
        until_s = time.monotonic() + GIT_TIMEOUT_S
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            while True:
                if not selector.select(_LOOK_S):
                    self.stop.check()
                    if time.monotonic() > until_s:
                        raise StoreError(f"git {name} took over {GIT_TIMEOUT_S:g} s", code="storage_error")
                    continue
                chunk = os.read(fd, _CHUNK)
                if not chunk:
                    return b"".join(chunks), dropped
                kept = chunk if left is None else chunk[:left]
                dropped += len(chunk) - len(kept)
                if left is not None:
                    left -= len(kept)
                chunks.append(kept)


def failed(name: str, said: Said) -> StoreError:
    """A git command's failure as an error."""
    words = said.err.splitlines()[-1] if said.err else f"exit code {said.code}"
    return StoreError(f"git {name}: {words[:500]}", code="storage_error", details={"exit_code": said.code})


def _end(process: subprocess.Popen[bytes], patience_s: float) -> None:
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _environment() -> dict[str, str]:
    """Ours, without what would point git elsewhere; who commits is no person."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER")
           for what, value in (("NAME", "mesh"), ("EMAIL", "mesh@localhost"))}
    return env | who | {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}


__all__ = ["GIT_TIMEOUT_S", "MARK", "Git", "Said", "failed"]
