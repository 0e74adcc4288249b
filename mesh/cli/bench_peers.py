"""``mesh bench --peers``: mesh and each peer in turns, so that both have the same machine at the same time.

Peers live in tests/bench of the checkout, since they are no part of the package. Each is measured by a
process of its own (``tests/bench/peers.py serve NAME``), which ends, with all servers, when its stdin does.
"""

from __future__ import annotations

import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mesh.cli import measure
from mesh.cli.bench_lab import TIMEOUT_S, Absent, Lab, Pair, Session, Stage, note, number, session
from mesh.cli.measure import COROUTINES, MANY, Figure
from mesh.errors import ConfigError, MeshError

if TYPE_CHECKING:
    import mesh

CHECKOUT = Path(__file__).resolve().parents[2]
SCRIPT = CHECKOUT / "tests" / "bench" / "peers.py"
#: Ray takes some seconds to start, more on a busy machine.
START_S, ANSWER_S, STOP_S = 90.0, 120.0, 15.0
#: How often it is looked at whether a process that is silent has ended.
LOOK_S = 0.2
#: Each measurement lasts about so long, whatever the speed of what is measured.
SECONDS, SECONDS_QUICK = 1.0, 0.1
PROBE_CALLS = 2 * COROUTINES
KEYS = 5_000
#: figure of a peer -> what it is called in the table, and its unit
MEASURED = {
    "one": ("one read at a time, p50", "us"),
    "one_blocking": ("one blocking read at a time, p50", "us"),
    "concurrent": (f"{COROUTINES} reads in flight, one client", "/s"),
    "set_concurrent": (f"{COROUTINES} writes in flight, one client", "/s"),
    "list_of_100": ("reads in lists of 100, keys", "/s"),
    "pipeline_of_256": ("reads in pipelines of 256, keys", "/s"),
    "durable": (f"{COROUTINES} writes in flight, each synced to disk", "/s"),
}


class PeerEntry(NamedTuple):
    """A peer as tests/bench lists it."""

    name: str
    missing: list[str]
    install: str
    uvloop: bool


def stages(lab: Lab, chosen: tuple[str, ...], seconds: float) -> list[Stage]:
    """A stage per peer that is here; the others are noted as absent.

    Raises:
        ConfigError: no checkout beside the package, or no peer of a chosen name.
    """
    found = []
    for entry in _chosen(entries(), chosen):
        if entry.missing:
            lab.absent.append(
                Absent(entry.name, f"not installed: {', '.join(entry.missing)}", entry.install)
            )
            continue
        for fast in (False, True) if entry.uvloop and find_spec("uvloop") is not None else (False,):
            contest = Contest(entry, seconds, fast)
            found.append(Stage("process", contest.name, contest.routes))
            if entry.name == "redis.asyncio":
                found.append(Stage("power", f"{contest.name}, synced to disk", contest.durable))
    return found


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


def _chosen(listed: list[PeerEntry], chosen: tuple[str, ...]) -> list[PeerEntry]:
    names = {entry.name.lower(): entry for entry in listed}
    unknown = next((name for name in chosen if name.lower() not in names), None)
    if unknown is not None:
        known = ", ".join(entry.name for entry in listed)
        raise ConfigError(f"no peer is called {unknown!r}; there are: {known}")
    return [names[name.lower()] for name in dict.fromkeys(chosen)] if chosen else listed


class Contest:
    """One peer against mesh, on the same event loop."""

    def __init__(self, entry: PeerEntry, seconds: float, fast: bool) -> None:
        self._entry, self._seconds, self._fast = entry, seconds, fast
        self.name = f"{entry.name} (uvloop)" if fast else entry.name

    def routes(self, lab: Lab, address: str) -> None:
        """All that is not about disks."""
        self._compare(lab, address, [name for name in MEASURED if name != "durable"])

    def durable(self, lab: Lab, address: str) -> None:
        """Writes that both sync to disk before they answer."""
        self._compare(lab, address, ["durable"])

    def _compare(self, lab: Lab, address: str, wanted: list[str]) -> None:
        import mesh

        try:
            with (
                peer_process(self._entry.name, self._fast) as peer,
                session(address, uvloop=self._fast) as opened,
                mesh.Client(address, timeout_s=TIMEOUT_S) as blocking,
            ):
                ours = _Ours(opened, blocking)
                for figure in wanted:
                    if figure in peer.figures:
                        self._rounds(lab, figure, ours, peer)
        except PeerFailed as exc:
            lab.absent.append(Absent(self.name, f"failed: {exc}", self._entry.install))
            note(f"  failed: {exc}")

    def _rounds(self, lab: Lab, figure: str, ours: _Ours, peer: PeerProcess) -> None:
        """Measure in turns; who begins alternates."""
        sides: list[Callable[[str, int], Figure]] = [ours.measure, peer.measure]
        counts = [_calls(side, figure, self._seconds) for side in sides]
        found: list[tuple[Figure, Figure]] = []
        for turn in range(lab.rounds):
            both = {}
            for place in (0, 1) if turn % 2 == 0 else (1, 0):
                both[place] = sides[place](figure, counts[place])
            found.append((both[0], both[1]))
        pair = _pair(self.name, figure, found)
        lab.pairs.append(pair)
        note(
            f"  {pair.measured}: mesh {number(pair.mesh)}, {pair.peer} {number(pair.theirs)} {pair.unit}, "
            f"ratio {pair.ratio:.2f}"
        )


def _calls(side: Callable[[str, int], Figure], figure: str, seconds: float) -> int:
    """How many calls take about so long; the probe also warms up."""
    probe = side(figure, PROBE_CALLS)
    rate = 1e6 / probe.value if probe.unit == "us" else probe.value
    return max(PROBE_CALLS, int(rate * seconds))


def _pair(peer: str, figure: str, found: list[tuple[Figure, Figure]]) -> Pair:
    ratios = [ours.value / theirs.value for ours, theirs in found]
    measured, unit = MEASURED[figure]
    details: dict[str, Any] = {}
    if unit == "us":
        for place, name in enumerate(("mesh_p99_us", "their_p99_us")):
            details[name] = round(statistics.median(both[place].details["p99_us"] for both in found), 1)
    return Pair(
        peer=peer,
        figure=figure,
        measured=measured,
        unit=unit,
        mesh=statistics.median(ours.value for ours, _ in found),
        theirs=statistics.median(theirs.value for _, theirs in found),
        ratio=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
        rounds=len(found),
        details=details,
    )


class _Ours:
    """The same measurements of mesh."""

    def __init__(self, opened: Session, blocking: mesh.Client) -> None:
        self._opened, self._blocking = opened, blocking
        self._names = measure.keys(KEYS)
        opened.run(measure.fill(opened.client, self._names))

    def measure(self, figure: str, count: int) -> Figure:
        client, names = self._opened.client, self._names
        if figure == "one_blocking":
            return measure.one_by_one_blocking(self._blocking, names, count)
        if figure == "one":
            return self._opened.run(measure.one_by_one(client, names, count))
        if figure == "concurrent":
            return self._opened.run(measure.gets(client, names, count))
        if figure in ("set_concurrent", "durable"):
            return self._opened.run(measure.sets(client, names, count))
        return self._opened.run(measure.get_many(client, names, max(count // MANY, measure.LISTS_IN_FLIGHT)))


class PeerFailed(Exception):
    """A peer did not start, or ended."""


class PeerProcess:
    """The process that measures one peer."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
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
        return _last_line(self._log.read_text(encoding="utf-8", errors="replace")) or "it ended"


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
    with tempfile.NamedTemporaryFile(prefix="mesh-bench-", suffix=".log") as log:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), "serve", name, *(["uvloop"] if fast else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environ(),
            start_new_session=True,  # Ctrl-C is ours to handle: it ends in order
        )
        try:
            yield PeerProcess(process, Path(log.name))
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
    "KEYS",
    "LOOK_S",
    "MEASURED",
    "PROBE_CALLS",
    "SCRIPT",
    "SECONDS",
    "SECONDS_QUICK",
    "START_S",
    "STOP_S",
    "Contest",
    "PeerEntry",
    "PeerFailed",
    "PeerProcess",
    "entries",
    "peer_process",
    "stages",
]
