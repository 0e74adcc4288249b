"""``mesh bench --peers``: mesh and each peer in turns, so that both have the same machine at one time."""

from __future__ import annotations

import statistics
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from mesh.cli import measure, measure_node
from mesh.cli.bench_lab import TIMEOUT_S, Absent, Lab, Pair, Session, Stage, cpu_s, note, number, session
from mesh.cli.bench_rivals import MEASURED, PeerEntry, PeerFailed, PeerProcess, entries, peer_process
from mesh.cli.measure import COROUTINES, MANY, Figure
from mesh.errors import ConfigError

if TYPE_CHECKING:
    import mesh

#: Each measurement lasts about so long, whatever the speed of what is measured.
SECONDS, SECONDS_QUICK = 0.6, 0.1
PROBE_CALLS = 2 * COROUTINES
KEYS = 5_000


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
            failed = Absent(self.name, f"failed: {exc}", "")
            if failed not in lab.absent:
                lab.absent.append(failed)
            note(f"  failed: {exc}")

    def _rounds(self, lab: Lab, figure: str, ours: _Ours, peer: PeerProcess) -> None:
        """Measure in turns; who begins alternates."""
        sides: list[Side] = [ours, peer]
        counts = [_calls(side, figure, self._seconds) for side in sides]
        found: list[tuple[Figure, Figure]] = []
        for turn in range(lab.rounds):
            both = {}
            for place in (0, 1) if turn % 2 == 0 else (1, 0):
                both[place] = _with_cpu(sides[place], figure, counts[place])
            found.append((both[0], both[1]))
        pair = _pair(self.name, figure, found)
        lab.pairs.append(pair)
        note(
            f"  {pair.measured}: mesh {number(pair.mesh)}, {pair.peer} {number(pair.theirs)} {pair.unit}, "
            f"ratio {pair.ratio:.2f}"
        )


class Side(Protocol):
    """One of the two."""

    def measure(self, figure: str, count: int) -> Figure:
        """Measure one figure with so many calls (keys)."""

    def cpu_s(self) -> float | None:
        """CPU seconds of all its processes so far, client and servers."""


def _calls(side: Side, figure: str, seconds: float) -> int:
    """How many calls take about so long; the probe also warms up."""
    probe = side.measure(figure, PROBE_CALLS)
    rate = 1e6 / probe.value if probe.unit == "us" else probe.value
    return max(PROBE_CALLS, int(rate * seconds))


def _with_cpu(side: Side, figure: str, count: int) -> Figure:
    """A figure and what each call took of the processors, in all processes of that side."""
    before = side.cpu_s()
    found = side.measure(figure, count)
    after = side.cpu_s()
    if found.unit == "us" or before is None or after is None:
        return found
    return found._replace(details=found.details | {"cpu_us": (after - before) / count * 1e6})


def _pair(peer: str, figure: str, found: list[tuple[Figure, Figure]]) -> Pair:
    ratios = [ours.value / theirs.value for ours, theirs in found]
    measured, unit = MEASURED[figure]
    details: dict[str, Any] = {}
    for name in ("p99_us", "cpu_us"):
        for place, side in enumerate(("mesh", "their")):
            values = [both[place].details[name] for both in found if name in both[place].details]
            if values:
                details[f"{side}_{name}"] = round(statistics.median(values), 1)
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
        self._node: int = blocking.status()["pid"]
        opened.run(measure.fill(opened.client, self._names))

    def cpu_s(self) -> float | None:
        node = cpu_s(self._node)
        return None if node is None else node + time.process_time()

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
        if figure == "conversations":
            return self._opened.run(measure_node.run_once(client, count))
        return self._opened.run(measure.get_many(client, names, max(count // MANY, measure.LISTS_IN_FLIGHT)))


__all__ = ["KEYS", "PROBE_CALLS", "SECONDS", "SECONDS_QUICK", "Contest", "Side", "stages"]
