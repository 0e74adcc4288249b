"""The processes that measure peers: ``tests/bench/peers.py serve NAME``, one for each.

Peers live in tests/bench of the checkout, since they are no part of the package. Their process ends, with all
servers, when its stdin does; so they end with ``mesh bench``, however that ends.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from mesh.cli.bench_lab import cpu_s
from mesh.cli.measure import COROUTINES, Figure
from mesh.errors import ConfigError, MeshError

CHECKOUT = Path(__file__).resolve().parents[2]
SCRIPT = CHECKOUT / "tests" / "bench" / "peers.py"
#: Ray takes some seconds to start, more on a busy machine.
START_S, ANSWER_S, STOP_S = 90.0, 120.0, 15.0
#: How often it is looked at whether a process that is silent has ended.
LOOK_S = 0.2
#: figure of a peer -> what it is called in the table, and its unit
MEASURED = {
    "one": ("one read at a time, p50", "us"),
    "one_blocking": ("one blocking read at a time, p50", "us"),
    "concurrent": (f"{COROUTINES} reads in flight, one client", "/s"),
    "set_concurrent": (f"{COROUTINES} writes in flight, one client", "/s"),
    "list_of_100": ("reads in lists of 100, keys", "/s"),
    "pipeline_of_256": ("reads in pipelines of 256, keys", "/s"),
    "durable": (f"{COROUTINES} writes in flight, each synced to disk", "/s"),
    "conversations": ("conversations of 7 events, stored and read back", "/s"),
}


class PeerEntry(NamedTuple):
    """A peer as tests/bench lists it."""

    name: str
    missing: list[str]
    install: str
    uvloop: bool


def entries() -> list[PeerEntry]:
    """All peers.

    Raises:
        ConfigError: this mesh was not started from a checkout.
    """
    if not SCRIPT.is_file():
        raise ConfigError(
            f"the peers are part of the source, and {SCRIPT} is not there",
            details={"hint": "run bin/mesh bench --peers in a checkout of mesh"},
        )
    listed = subprocess.run(
        [sys.executable, str(SCRIPT), "list"], capture_output=True, text=True, check=False, env=_environ()
    )
    if listed.returncode:
        raise MeshError(f"cannot list the peers: {_last_line(listed.stderr)}", code="internal_error")
    return [PeerEntry(**row) for row in json.loads(listed.stdout)]


class PeerFailed(Exception):
    """A peer did not start, or ended."""


class PeerProcess:
    """The process that measures one peer."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._process, self._log = process, log
        self.figures: list[str] = self._answer(START_S)["figures"]

    def measure(self, figure: str, count: int) -> Figure:
        """One figure of the peer.

        Raises:
            PeerFailed: it ended, or did not answer.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"figure": figure, "count": count}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as exc:
            raise PeerFailed(self._why()) from exc
        answer = self._answer(ANSWER_S)
        measured, unit = MEASURED[figure]
        return Figure(measured, answer["value"], unit, answer["details"])

    def cpu_s(self) -> float | None:
        """See ``Side``."""
        return cpu_s(self._process.pid)

    def _answer(self, limit_s: float) -> dict[str, Any]:
        until_s = time.monotonic() + limit_s
        line = b""
        while not line.endswith(b"\n"):
            more = _read_more(self._process, until_s)
            if not more:
                raise PeerFailed(f"no answer within {limit_s:g} s" if more is None else self._why())
            line += more
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerFailed(str(answer["error"]))
        return answer

    def _why(self) -> str:
        self._log.seek(0)
        return _last_line(self._log.read().decode(errors="replace")) or "it ended"


def _read_more(process: subprocess.Popen[bytes], until_s: float) -> bytes | None:
    """What it printed; empty when it ended, None when it is late.

    Its end is that of the process: a server of it may hold its stdout open.
    """
    assert process.stdout is not None
    while True:
        ended = _ended(process)
        ready, _, _ = select.select([process.stdout], [], [], 0 if ended else LOOK_S)
        if ready:
            return os.read(process.stdout.fileno(), select.PIPE_BUF)
        if ended:
            return b""
        if time.monotonic() > until_s:
            return None


def _ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it ended. It is not collected yet: so the number of its group stays its own."""
    if process.returncode is not None:
        return True
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@contextmanager
def peer_process(name: str, fast: bool) -> Iterator[PeerProcess]:
    """Start what measures a peer, and end it and every server of it.

    Raises:
        PeerFailed: it did not start.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), "serve", name, *(["uvloop"] if fast else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environ(),
            start_new_session=True,  # Ctrl-C is ours to handle: it ends in order
        )
        try:
            yield PeerProcess(process, log)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close its stdin and wait; then kill what is left of its group, and collect the leader last."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.close()
    except OSError:
        pass  # it had ended
    try:
        until_s = time.monotonic() + STOP_S
        while not _ended(process) and time.monotonic() < until_s:
            time.sleep(LOOK_S / 10)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # macOS says so of a group of zombies
        process.stdout.close()
        process.wait()


def _environ() -> dict[str, str]:
    """The peer's process finds the same mesh as we."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(CHECKOUT), *filter(None, sys.path)))}


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


__all__ = [
    "ANSWER_S",
    "CHECKOUT",
    "LOOK_S",
    "MEASURED",
    "SCRIPT",
    "START_S",
    "STOP_S",
    "PeerEntry",
    "PeerFailed",
    "PeerProcess",
    "entries",
    "peer_process",
]
