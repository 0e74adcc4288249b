"""The stages of ``mesh bench`` that measure mesh alone."""

from __future__ import annotations

from importlib.util import find_spec
from shutil import which

from mesh.cli import measure, measure_guards, measure_node, measure_sessions
from mesh.cli.bench_lab import AGENT, GATE, ROUTED, TIMEOUT_S, Lab, Session, Stage, session

#: Events a second at which their delay is measured.
PACE = 10_000
#: A thousand runs stream for so long.
STREAM_S = 10.0
KEYS = 5_000
#: How many calls each measurement makes; --quick makes a tenth.
CALLS = {
    "one_by_one": 2_000,
    "gets": 200_000,
    "sets": 100_000,
    "get_many": 5_000,
    "threads": 40_000,
    "wire": 60_000,
    "durable": 100_000,
    "run_once": 3_000,
    "routed": 300,
    "events": 40_000,
    "approvals": 200,
    "policy": 100_000,
    "files": 10_000,
    "log": 100_000,
    "idle": 10_000,
    "routes": 10_000,
    "sessions": 1_000,
    "memory": 500_000,
}
#: Memory is compared between this share of the routes and all of them.
MEMORY_FIRST = 20


def stages(only: tuple[str, ...], *, remote: bool) -> list[Stage]:
    """What is measured, in this order. A node that is not ours is asked, and never killed or flooded."""
    found = []
    if "routes" in only:
        found.append(Stage("process", "routes, one asyncio client", routes))
        if find_spec("uvloop") is not None:
            found.append(Stage("process", "routes, one asyncio client on uvloop", routes_uvloop))
        if not remote:
            found.append(Stage("process", "routes, the blocking client and the bare wire", routes_others))
            found.append(Stage("power", "routes, synced to disk", routes_durable))
    if "sessions" in only:
        found.append(Stage("process", "runs", runs))
        if not remote:
            found.append(Stage("process", "runs through a router", routed))
            found.append(Stage("process", "events, from the agent to a listener", events))
            found.append(Stage("power", "approvals, synced to disk", approvals))
            found.append(Stage("process", "a policy, and a large workspace", guards))
            found.append(Stage("process", "a long log, and many runs that stream", logs))
            found.append(Stage("fresh", "live idle sessions", idle))
    if "node" in only and not remote:
        found.append(Stage("fresh", "a killed partition", killed))
        found.append(Stage("fresh", "memory", memory))
    return found


def routes(lab: Lab, address: str) -> None:
    """Latency and rates of one AsyncClient."""
    names, calls = measure.keys(KEYS), lab.calls
    with session(address) as opened:
        client = opened.client
        opened.run(measure.fill(client, names))
        for _ in range(lab.rounds):
            for what in ("get", "resolve", "set"):
                lab.add(opened.run(measure.one_by_one(client, names, calls["one_by_one"], what)))
            _rates(lab, opened, names, "")
            lab.add(opened.run(measure.resolves(client, names, calls["gets"])))
            lab.add(opened.run(measure.get_many(client, names, calls["get_many"])))
            lab.add(opened.run(measure.set_many(client, names, calls["get_many"] // 4)))


def routes_uvloop(lab: Lab, address: str) -> None:
    """The rates again with the faster event loop."""
    names = measure.keys(KEYS)
    with session(address, uvloop=True) as opened:
        opened.run(measure.fill(opened.client, names))
        for _ in range(lab.rounds):
            _rates(lab, opened, names, " (uvloop)")


def _rates(lab: Lab, opened: Session, names: list[str], mark: str) -> None:
    lab.add(opened.run(measure.gets(opened.client, names, lab.calls["gets"], mark)))
    lab.add(opened.run(measure.sets(opened.client, names, lab.calls["sets"], mark)))


def routes_others(lab: Lab, address: str) -> None:
    """Without asyncio: the blocking client, alone and shared by threads, and no client at all."""
    import mesh
    from mesh.cli import bench_wire

    names, calls = measure.keys(KEYS), lab.calls
    with mesh.Client(address, timeout_s=TIMEOUT_S) as client:
        client.routes.set_many([(name, measure.ROUTE) for name in names])
        for _ in range(lab.rounds):
            lab.add(measure.one_by_one_blocking(client, names, calls["one_by_one"]))
            lab.add(measure_node.threads(client, names, calls["threads"]))
            lab.add(bench_wire.one_by_one(address, names, calls["one_by_one"]))
            lab.add(bench_wire.uncoalesced(address, calls["wire"]))


def routes_durable(lab: Lab, address: str) -> None:
    """Writes that survive a power failure."""
    names = measure.keys(KEYS)
    for mark in ["", " (uvloop)"] if find_spec("uvloop") is not None else [""]:
        with session(address, uvloop=bool(mark)) as opened:
            for _ in range(lab.rounds):
                count = lab.calls["durable"]
                lab.add(opened.run(measure.sets(opened.client, names, count, f" (fsync){mark}")))


def runs(lab: Lab, address: str) -> None:
    """Whole conversations."""
    with session(address) as opened:
        for _ in range(lab.rounds):
            lab.add(opened.run(measure_node.run_once(opened.client, lab.calls["run_once"])))


def routed(lab: Lab, address: str) -> None:
    """What a router adds to a run."""
    with session(address) as opened:
        for _ in range(lab.rounds):
            lab.add(opened.run(measure_node.routed(opened.client, ROUTED, lab.calls["routed"])))


def approvals(lab: Lab, address: str) -> None:
    """From a client's answer to the agent that waited for it."""
    with session(address) as opened:
        for _ in range(lab.rounds):
            lab.add(opened.run(measure_node.approved(opened.client, GATE, lab.calls["approvals"])))


def guards(lab: Lab, address: str) -> None:  # noqa: ARG001  no node is asked
    """What a policy adds to an event, and a workspace to a run."""
    for _ in range(lab.rounds):
        lab.add(measure_guards.policy(lab.calls["policy"]))
    if which("git"):
        lab.add(measure_guards.workspace(lab.calls["files"]))


def events(lab: Lab, address: str) -> None:
    """From an agent's ``yield`` to a listener, through the disk."""
    count = lab.calls["events"]
    with session(address) as opened:
        for _ in range(lab.rounds):
            lab.add(opened.run(measure_node.delivered_events(opened.client, AGENT, count)))
            lab.add(opened.run(measure_node.delivered_events(opened.client, AGENT, count // 2, PACE)))


def logs(lab: Lab, address: str) -> None:
    """A log is read back; a thousand of them are written and heard at once."""
    with session(address) as opened:
        for _ in range(lab.rounds):
            lab.add(opened.run(measure_sessions.read_log(opened.client, AGENT, lab.calls["log"])))
            seconds = STREAM_S * lab.calls["log"] / CALLS["log"]
            lab.add(*opened.run(measure_sessions.streams(opened.client, AGENT, seconds)))


def idle(lab: Lab, address: str) -> None:
    """What sessions take that are live and do nothing."""
    with session(address) as opened:
        lab.add(*opened.run(measure_sessions.idle_sessions(opened.client, lab.calls["idle"])))


def killed(lab: Lab, address: str) -> None:
    """What a killed partition costs. ``CALLS`` says what it holds, so there is twice as much."""
    names = measure.keys(2 * lab.calls["routes"])
    with session(address) as opened:
        opened.run(_prepared(opened, names, 2 * lab.calls["sessions"]))
        for _ in range(lab.rounds):
            lab.add(*opened.run(measure_node.restart(opened.client, names)))


async def _prepared(opened: Session, names: list[str], sessions: int) -> None:
    await measure.fill(opened.client, names)
    await measure_node.add_sessions(opened.client, sessions)


def memory(lab: Lab, address: str) -> None:
    """What a route takes."""
    count = lab.calls["memory"]
    with session(address) as opened:
        lab.add(*opened.run(measure_node.memory(opened.client, [count // MEMORY_FIRST, count])))


__all__ = [
    "CALLS",
    "KEYS",
    "MEMORY_FIRST",
    "PACE",
    "STREAM_S",
    "events",
    "guards",
    "idle",
    "killed",
    "logs",
    "memory",
    "routes",
    "routes_durable",
    "routes_others",
    "routes_uvloop",
    "runs",
    "stages",
]
