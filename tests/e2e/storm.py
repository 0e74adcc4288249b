"""A storm: clients that work and keep a history, and a hand that kills processes of the node meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mesh

#: Errors that a caller may meet while processes die. Anything else is a bug.
EXPECTED = frozenset(
    (
        "timeout", "partition_unavailable", "overloaded", "session_unavailable", "node_unreachable",
        "outcome_unknown", "restart_exhausted", "cancelled", "queue_full",
        "invalid_transition", "session_paused", "session_closed", "session_not_active", "not_found",
    )
)
PROMPTS = (("counter", "3"), ("sleeper", "0.3"), ("safe", "1"), ("plain", "text"), ("echo", "word"),
           ("shell", "echo a; sleep 0.3; echo b"))
CALL_S = 8.0


class History:
    """Everything that was tried and what came of it."""

    def __init__(self) -> None:
        self.acked: dict[str, int] = {}  #: route key -> last acknowledged number
        self.open: dict[str, set[int]] = {}  #: numbers sent since then without an answer
        self.sessions: set[str] = set()
        self.maybe_sessions: set[str] = set()
        self.runs: dict[str, set[str]] = {}
        self.maybe_runs: Counter[str] = Counter()
        self.completed: set[str] = set()  #: runs whose success a caller was told
        self.errors: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.problems: list[str] = []
        self.kills: list[str] = []

    def failed(self, what: str, error: mesh.MeshError) -> None:
        self.errors[f"{what}: {error.code}"] += 1
        if error.code not in EXPECTED:
            self.problems.append(f"{what} raised {error.code}: {error.message} {error.details}")

    def read_route(self, key: str, number: Any, how: str) -> None:
        """A single-writer key holds the last acknowledged number, or one that was tried since."""
        allowed = self.open.get(key, set()) | ({self.acked[key]} if key in self.acked else set())
        if number not in allowed:
            self.problems.append(f"{how} of {key} gave {number}, not one of {sorted(allowed)}")


class Worker:
    """The choices of one client, the same for both kinds of client; ``call`` performs one method."""

    def __init__(self, name: str, seed: str, history: History) -> None:
        self.name = name
        self.random = random.Random(seed)
        self.history = history
        self.count = 0
        self.session: str | None = None

    def step(self) -> Iterator[tuple[str, Any]]:
        """One operation: yields the method's name with its arguments, is sent the outcome."""
        chance = self.random.random()
        if chance < 0.4:
            yield from self._route()
        elif chance < 0.5:
            yield from self._once()
        elif self.session is None:
            yield from self._start()
        elif chance < 0.8:
            yield from self._run()
        elif chance < 0.9:
            yield from self._stop()
        elif chance < 0.93:
            yield from self._complete()

    def _route(self) -> Any:
        history = self.history
        self.count += 1
        key, number = f"t:{self.name}:room_{self.random.randrange(6)}", self.count
        if self.random.random() < 0.3:
            yield from self._set_many(number)
        else:
            history.open.setdefault(key, set()).add(number)
            error = yield "routes.set", (key, {"external_room_id": "x", "n": number})
            if error is None:
                history.acked[key], history.open[key] = number, set()
        found = yield "routes.get", (key,)
        if isinstance(found, mesh.RouteRecord):
            history.read_route(key, found.route["n"], "get")
        elif key in history.acked and found.code == "not_found":
            history.problems.append(f"{key} was acknowledged and is not there")
        hit = yield "routes.resolve", (key, [{"external_room_id": "lobby"}])
        if isinstance(hit, mesh.Resolution) and hit.source == "state_hit":
            history.read_route(key, hit.route["n"], "resolve")

    def _set_many(self, number: int) -> Any:
        history = self.history
        keys = [f"t:{self.name}:room_{i}" for i in range(6)]
        for key in keys:
            history.open.setdefault(key, set()).add(number)
        errors = yield "routes.set_many", ([(key, {"external_room_id": "x", "n": number}) for key in keys],)
        if isinstance(errors, mesh.MeshError):
            return
        for key, error in zip(keys, errors, strict=True):
            if error is None:
                history.acked[key], history.open[key] = number, set()
            else:
                history.failed("set_many", error)

    def _start(self) -> Any:
        self.count += 1
        sid, agent = f"{self.name}-{self.count}", self.random.choice(PROMPTS)[0]
        error = yield "sessions.start", (agent,), {"id": sid}
        if isinstance(error, mesh.MeshError):
            self.history.maybe_sessions.add(sid)
            return
        self.history.sessions.add(sid)
        self.session = sid
        self.text = dict(PROMPTS)[agent]

    def _submitted(self, sid: str, answer: Any) -> str | None:
        if isinstance(answer, mesh.MeshError):
            self.history.maybe_runs[sid] += 1
            if answer.code in ("restart_exhausted", "session_closed", "session_not_active"):
                self.session = None
            return None
        run_id: str = answer.run_id if isinstance(answer, mesh.Prompted) else answer.id
        self.history.runs.setdefault(sid, set()).add(run_id)
        return run_id

    def _run(self) -> Any:
        sid = self.session
        assert sid is not None
        how = self.random.choice(("sessions.prompt", "runs.submit", "runs.create"))
        run_id = self._submitted(sid, (yield how, (sid, self.text)))
        if run_id is None:
            return
        if how == "runs.create":
            result = yield "runs.execute", (run_id,)
            if isinstance(result, mesh.RunResult):
                self.history.completed.add(run_id)
            return
        chance = self.random.random()
        if chance < 0.2:
            yield "runs.cancel", (run_id,)
        elif chance < 0.6:
            result = yield "runs.wait", (run_id,)
            if isinstance(result, mesh.RunResult):
                self.history.completed.add(run_id)

    def _once(self) -> Any:
        self.count += 1
        sid = f"{self.name}-once-{self.count}"
        result = yield "run_once", self.random.choice(PROMPTS), {"id": sid}
        if isinstance(result, mesh.RunResult):
            self.history.sessions.add(sid)
            self.history.runs.setdefault(sid, set()).add(result.run_id)
            self.history.completed.add(result.run_id)
            seqs = [event.seq for event in result.events]
            if seqs != list(range(1, len(seqs) + 1)):
                self.history.problems.append(f"run_once of {sid} gave events {seqs}")
        else:
            self.history.maybe_sessions.add(sid)
            self.history.maybe_runs[sid] += 1

    def _stop(self) -> Any:
        sid = self.session
        stopped = yield "sessions.stop", (sid,)
        resumed = yield "sessions.resume", (sid,)
        if stopped is None and isinstance(resumed, mesh.MeshError) and resumed.code == "invalid_transition":
            self.session = None  # failed meanwhile: restart_exhausted
        if isinstance(resumed, mesh.MeshError):
            self.session = None

    def _complete(self) -> Any:
        yield "sessions.complete", (self.session,)
        self.session = None


def _method(client: Any, name: str) -> Callable[..., Any]:
    for part in name.split("."):
        client = getattr(client, part)
    found: Callable[..., Any] = client
    return found


def _ask(client: Any, request: tuple[Any, ...]) -> Any:
    name, args, *options = request
    return _method(client, name)(*args, **{"timeout_s": CALL_S, **(options[0] if options else {})})


def work(worker: Worker, client: mesh.Client, over: threading.Event) -> None:
    """Let a worker work with a blocking client."""
    while not over.is_set():
        steps, outcome = worker.step(), None
        while True:
            try:
                request = steps.send(outcome)  # type: ignore[attr-defined]
            except StopIteration:
                break
            try:
                outcome = _ask(client, request)
                worker.history.done[request[0]] += 1
            except mesh.MeshError as error:
                outcome = error
                worker.history.failed(request[0], error)


async def work_async(worker: Worker, client: mesh.AsyncClient, over: threading.Event) -> None:
    """Let a worker work with an asyncio client."""
    while not over.is_set():
        steps, outcome = worker.step(), None
        while True:
            try:
                request = steps.send(outcome)  # type: ignore[attr-defined]
            except StopIteration:
                break
            try:
                outcome = await _ask(client, request)
                worker.history.done[request[0]] += 1
            except mesh.MeshError as error:
                outcome = error
                worker.history.failed(request[0], error)
        await asyncio.sleep(0)


class Killer:
    """Kills and freezes children of a node at random moments."""

    def __init__(self, client: mesh.Client, seed: str, history: History) -> None:
        self.client = client
        self.random = random.Random(seed)
        self.history = history
        self.pace_s = self.random.choice((0.02, 0.1, 0.4, 1.2))
        self.frozen: dict[int, float] = {}
        self.children: list[dict[str, Any]] = []

    def run(self, until_s: float) -> None:
        """Storm until that time; afterwards nobody is frozen by us."""
        while (now_s := time.monotonic()) < until_s:
            for pid in [pid for pid, at in self.frozen.items() if at <= now_s]:
                self._signal(pid, signal.SIGCONT)
                del self.frozen[pid]
            try:
                self.children = self.client.status(timeout_s=0.5)["children"]
            except mesh.MeshError:
                pass
            for _ in range(self.random.choice((1, 1, 1, 2, 5))):
                self._strike(now_s)
            time.sleep(self.random.expovariate(1 / self.pace_s))
        for pid in self.frozen:
            self._signal(pid, signal.SIGCONT)

    def _strike(self, now_s: float) -> None:
        ready = [child for child in self.children if child["pid"] and child["state"] == "ready"]
        if not ready:
            return
        child = self.random.choice(ready)
        if self.random.random() < 0.75:
            self._signal(child["pid"], signal.SIGKILL)
            self.history.kills.append(f"{child['name']} killed")
            return
        self._signal(child["pid"], signal.SIGSTOP)
        self.history.kills.append(f"{child['name']} frozen")
        if self.random.random() < 0.6:
            self.frozen[child["pid"]] = now_s + self.random.uniform(0.05, 3.0)

    def _signal(self, pid: int, number: int) -> None:
        try:  # a pid that is used again belongs to somebody else
            if b"MESH_MARK=" in Path(f"/proc/{pid}/environ").read_bytes():
                os.kill(pid, number)
        except OSError:
            pass


def sing(client: mesh.Client, history: History, over: threading.Event) -> None:
    """Prompt one session all the time, so that those who listen to it have something to hear."""
    while not over.wait(0.1):
        try:
            history.runs["one"].add(client.sessions.prompt("one", "2").run_id)
        except mesh.MeshError as error:
            history.maybe_runs["one"] += 1
            history.failed("sing", error)


def rage(node: mesh.LocalNode, killer: Killer, history: History, seed: str, duration_s: float) -> None:
    """Workers work while the killer kills; returns when all of them are done."""
    over = threading.Event()
    clients = [node.client(timeout_s=CALL_S), mesh.Client(node.tcp_address, timeout_s=CALL_S)]
    workers = [
        threading.Thread(target=work, args=(Worker(f"w{n}", f"{seed} w{n}", history), clients[n % 2], over))
        for n in range(4)
    ]

    async def asynchronous() -> None:
        async with node.async_client(timeout_s=CALL_S) as client:
            await asyncio.gather(*(
                work_async(Worker(f"a{n}", f"{seed} a{n}", history), client, over) for n in range(4)
            ))

    workers.append(threading.Thread(target=asyncio.run, args=(asynchronous(),)))
    workers.append(threading.Thread(target=sing, args=(clients[0], history, over)))
    crashed: list[BaseException] = []
    former, threading.excepthook = threading.excepthook, lambda args: crashed.append(args.exc_value)
    for thread in workers:
        thread.start()
    try:
        killer.run(time.monotonic() + duration_s)
    finally:
        over.set()
        for thread in workers:
            thread.join(60)
        threading.excepthook = former
        history.problems += [f"thread {thread.name} did not end" for thread in workers if thread.is_alive()]
        history.problems += [f"a worker crashed: {error!r}" for error in crashed]
        for client in clients:
            client.close()
