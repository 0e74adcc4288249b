"""Latency under load, and what one client or one partition can do to the others.

    python tests/bench/latency.py [--json FILE] [--png docs/latency.png] [--seconds 4]

Two questions, a node of two partitions, every generator a process of its own (``traffic.py``):

1. How long does a call take at 25, 50 and 75 % of the most that two clients get answered? Open loop: calls
   are issued on a Poisson schedule and counted from their scheduled moment, so waiting for a stalled node
   counts.
2. A modest client asks 400 times a second. How does its latency change beside a flood (4 000 calls of one
   client in flight; payloads of 500 calls over the bare wire; thousands of single calls), beside a client
   that never reads, and when the other partition stands still or is slow? Each is compared with the calm
   runs (``x calm``). A flood keeps four processes busy, its own, the router and two partitions, half of the
   time at least (``core/pace.py``): on a machine with few cores that alone is much of it. So beside each
   flood stands its control (``control.py``): the same payloads through a bare star of ZeroMQ sockets, as many
   processes, which burn for each payload the CPU that was just measured here, while the modest client asks a
   mesh that nobody else asks. ``x control`` is what mesh adds to that: its queues, and its own wake-ups.

``late`` is the generator's own lateness in issuing (timers, its share of the CPU): the floor of the run. The
modest client runs with priority where it may (``nice``), since it is the instrument.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from traffic import ROUTE, SHARES, Child, cpu_us, keys

import mesh

GENERATORS = 2
LOADS = (0.25, 0.5, 0.75)
MODEST_PER_S = 400
INFLIGHT = 256
NICE = -10
#: When all processes are warm, they begin together after so long.
SOON_S = 0.2
#: A slow partition stands still for this long, and then runs for as long.
SLOW_S = 0.02
#: What changes the life of the modest client: (name, the roles beside it).
BESIDE: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "calm": [],
    "4 CPU burners": [("burn", {})] * 4,
    "flood: 4 000 calls in flight": [("flood", {"inflight": 4_000})],
    "flood: 400 x 500 calls, raw": [("raw", {"calls": 500, "inflight": 400})],
    "flood: 3 000 x 1 call, raw": [("raw", {"calls": 1, "inflight": 3_000})],
    "client that never reads": [("raw", {"calls": 50, "inflight": 400, "deaf": True})],
    "partition 1 stands still": [("paced", {"rate": MODEST_PER_S})],
    "partition 1 is slow": [("paced", {"rate": MODEST_PER_S})],
    "calm again": [],
}
FLOODS = [name for name in BESIDE if name.startswith("flood")]
#: What a call of these floods has in its payload, and its answer in the reply: about so many bytes.
CALL_BYTES, ANSWER_BYTES = 35, 110
#: In these the measured client asks partition 0 alone; the one beside it asks both, and waits for the other.
BROKEN = {"partition 1 stands still", "partition 1 is slow"}


class Bench:
    """One node and the processes of load beside it."""

    def __init__(self, node: mesh.LocalNode, client: mesh.Client, seconds: float) -> None:
        self.common = {"address": node.address, "partitions": 2}
        self.seconds = seconds
        self.client = client
        self.pids = [partition.pid for partition in client.partitions.list()]
        self.router_pid = client.status()["router"]["pid"]

    def together(
        self, roles: list[tuple[str, dict[str, Any]]],
        beside: Callable[[threading.Event], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Run some roles at the same time, from when all are warm; their results."""
        children = [
            Child(role, **{**self.common, "seed": n, "seconds": self.seconds, "gated": True, **spec})
            for n, (role, spec) in enumerate(roles)
        ]
        for child in children:
            child.ready()
        at_s = time.monotonic() + SOON_S
        for child in children:
            child.begin(at_s)
        with self._beside(beside, threading.Event()):
            return [child.result() for child in children]

    def maximum(self) -> float:
        """Calls per second that two clients of 256 calls in flight each get answered."""
        roles = [("closed", {"inflight": INFLIGHT})] * GENERATORS
        return sum(found["rate"] for found in self.together(roles))

    def at_load(self, rate: float) -> dict[str, Any]:
        """The latencies at so many calls per second; of the two generators the worse one."""
        found = self.together([("paced", {"rate": rate / GENERATORS})] * GENERATORS)
        return max(found, key=lambda one: one["all"]["p99"])

    def modest(self, name: str) -> dict[str, Any]:
        """The modest client beside what ``name`` says."""
        spec = {"rate": MODEST_PER_S, "nice": NICE, "only": 0 if name in BROKEN else None}
        broken = {"partition 1 stands still": self._still, "partition 1 is slow": self._slow}.get(name)
        before = self._used()
        found, *others = self.together([("paced", spec), *BESIDE[name]], broken)
        found["others"] = others
        found["used"] = {what: after - before[what] for what, after in self._used().items()}
        return found

    def _used(self) -> dict[str, float]:
        """So far: microseconds of CPU of the router and of all partitions, and payloads."""
        return {"router": cpu_us(self.router_pid)[0], "worker": sum(cpu_us(pid)[0] for pid in self.pids),
                "payloads": self.client.status()["router"]["requests"]}

    def control(self, name: str, flood: dict[str, Any], calm: dict[str, Any]) -> dict[str, Any]:
        """The modest client beside processes that do as much as a flood that was measured, without mesh."""
        spec, (own,) = BESIDE[name][0][1], flood["others"]
        used = flood["used"]
        payloads = max(1.0, used["payloads"] - calm["used"]["payloads"])
        calls = max(1.0, own["calls"] / payloads)
        inflight = spec["inflight"] if "calls" in spec else max(2, round(spec["inflight"] / calls))
        us = {"router": used["router"] / payloads, "worker": used["worker"] / payloads,
              "load": own["cpu_us"] / payloads}
        with tempfile.TemporaryDirectory() as folder:
            same = {"script": str(Path(__file__).parent / "control.py"), "endpoint": f"ipc://{folder}/",
                    "inflight": inflight, "bytes": 40 + round(CALL_BYTES * calls), "us": us,
                    "reply_bytes": 40 + round(ANSWER_BYTES * calls)}
            measured: tuple[str, dict[str, Any]] = ("paced", {"rate": MODEST_PER_S, "nice": NICE})
            found, _, own = self.together([measured, ("star", same), ("flood", same)])
        return {**found, "us": us, "payloads": own["payloads"], "flood_payloads": payloads}

    @contextlib.contextmanager
    def _beside(
        self, work: Callable[[threading.Event], None] | None, stop: threading.Event
    ) -> Iterator[None]:
        thread = threading.Thread(target=work, args=(stop,)) if work is not None else None
        if thread is not None:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            if thread is not None:
                thread.join()

    def _still(self, stop: threading.Event) -> None:
        """Freeze partition 1 when the others have begun; shorter than the supervisor's patience."""
        stop.wait(SOON_S + 0.2)
        self._stopped(stop, self.seconds - 0.5)

    def _slow(self, stop: threading.Event) -> None:
        while not stop.wait(SLOW_S):
            self._stopped(stop, SLOW_S)

    def _stopped(self, stop: threading.Event, seconds: float) -> None:
        os.kill(self.pids[1], signal.SIGSTOP)
        try:
            stop.wait(seconds)
        finally:
            os.kill(self.pids[1], signal.SIGCONT)


def run(seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Both questions; says what it is doing."""
    with mesh.LocalNode() as node, node.client() as client:
        client.routes.set_many([(key, ROUTE) for key in keys()])
        bench = Bench(node, client, seconds)
        say("the maximum")
        maximum = bench.maximum()
        loads = {}
        for share in LOADS:
            say(f"{share:.0%} of {maximum:,.0f}/s")
            loads[f"{share:.0%}"] = bench.at_load(share * maximum)
        modest = {}
        for name in BESIDE:
            say(f"modest client: {name}")
            modest[name] = bench.modest(name)
        controls = {}
        for name in FLOODS:
            say(f"modest client: the control of {name}")
            controls[name] = bench.control(name, modest[name], modest["calm"])
    calm = (modest["calm"]["all"]["p99"] + modest["calm again"]["all"]["p99"]) / 2
    for name, found in modest.items():
        found["p99_to_calm"] = round(found["all"]["p99"] / calm, 2)
        if name in controls:
            controls[name]["p99_to_calm"] = round(controls[name]["all"]["p99"] / calm, 2)
            found["p99_to_control"] = round(found["all"]["p99"] / controls[name]["all"]["p99"], 2)
    return {"maximum": round(maximum), "cores": os.cpu_count(), "loads": loads, "modest": modest,
            "controls": controls}


def table(found: dict[str, Any]) -> str:
    """The result for people."""
    columns = ("p50", "p99", "p99.9", "max")
    heads = "".join(f"{column:>9}" for column in columns) + f"{'late p99':>10}"
    lines = [f"maximum of {GENERATORS} clients, {INFLIGHT} in flight each: {found['maximum']:,}/s"
             f" (3 reads to 1 write, {found['cores']} cores)", "",
             f"{'open loop, ms':30}{'calls/s':>10}{heads}"]
    for share, row in found["loads"].items():
        lines.append(_line(share + " of the maximum", row, GENERATORS * row["rate"], columns))
    lines += ["", f"{'modest client, ms':30}{'calls/s':>10}{heads}{'x calm':>8}{'x control':>10}"]
    for name, row in found["modest"].items():
        lines.append(_line(name, row, row["rate"], columns) + f"{row['p99_to_calm']:>8.2f}")
        if control := found["controls"].get(name):
            lines[-1] += f"{row['p99_to_control']:>10.2f}"
            lines.append(_line("  its control, without mesh", control, control["rate"], columns)
                         + f"{control['p99_to_calm']:>8.2f}")
    return "\n".join(lines)


def _line(name: str, row: dict[str, Any], rate: float, columns: tuple[str, ...]) -> str:
    figures = "".join(f"{row['all'][column]:>9.2f}" for column in columns)
    failed = f"  {row['errors']}" if row["errors"] else ""
    return f"{name:30}{rate:>10,.0f}{figures}{row['late']['p99']:>10.2f}{failed}"


def plot(found: dict[str, Any], path: Path) -> None:
    """The curves: how long the slowest share of the calls took."""
    from pictures import finish, panels

    figure, (left, right) = panels(1, 2, "Latency under load: open loop, counted from the scheduled moment")
    for share, row in found["loads"].items():
        left.plot(*_curve(row["all"]), label=f"{share} of {found['maximum']:,}/s")
    left.plot(*_curve(found["loads"]["50%"]["late"]), "k:", label="the generator's own lateness at 50%")
    left.set_title("Two clients, 3 reads to 1 write")
    for name, row in found["modest"].items():
        if name != "calm again":
            style = {"calm": "k-", "4 CPU burners": "k--"}.get(name, "-")
            right.plot(*_curve(row["all"]), style, label=name)
    right.set_title(f"A modest client ({MODEST_PER_S}/s), and what is beside it")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("percentile")
        axes.set_ylabel("ms")
        axes.set_xticks([2, 10, 100, 1_000], ["50", "90", "99", "99.9"])
        axes.set_xlim(1.1, 2_000)
    finish(figure, path)


def _curve(row: dict[str, Any]) -> tuple[list[float], list[float]]:
    """(1 / share of the slower calls, ms): equal steps for each nine; no point beyond what was counted."""
    points = [(1 / (1 - s), ms) for s, ms in zip(SHARES, row["curve"], strict=True)]
    points = [(x, ms) for x, ms in points if x <= row["count"] / 3]
    return [x for x, _ in points], [ms for _, ms in points]


def main() -> None:
    parser = argparse.ArgumentParser(description="latency under load; see the module's text")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--png", type=Path, help="write the plot here")
    parser.add_argument("--from-json", type=Path, help="measure nothing: table and plot of an earlier result")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each measurement")
    options = parser.parse_args()
    if options.from_json:
        found = json.loads(options.from_json.read_text())
    else:
        found = run(options.seconds, lambda what: print("...", what, flush=True))
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found) + "\n")
    if options.png:
        plot(found, options.png)


if __name__ == "__main__":
    main()
