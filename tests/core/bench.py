"""A partition without its process: the deciding core over a real store, and runners that are plain values."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apsw

from mesh.config import RoutesSection
from mesh.core import events as ev
from mesh.core import wire
from mesh.core.hosting import Hosting
from mesh.core.live import Live
from mesh.core.partition import Partition
from mesh.core.pending import Pending
from mesh.core.queueing import Queue
from mesh.core.receipts import Receipts
from mesh.core.routes import RouteTable
from mesh.core.runner import Inbox
from mesh.core.runners import Runners
from mesh.core.session_ops import SessionOps
from mesh.core.slots import even_map, run_id_for
from mesh.core.state import State
from mesh.errors import ClientExpired, MeshError, StoreError
from mesh.log import Log
from mesh.node.actors import Actors
from mesh.node.outbox import Outboxes
from mesh.node.recovery import Recovery
from mesh.store.sqlite import Store

AGENTS: dict[str, dict[str, Any]] = {
    "echo": {"provider": "echo"}, "again": {"provider": "echo", "idempotent": True},
}
CATALOGUE = [
    {"name": name, "provider": "echo", "problem": None, "idempotent": name == "again",
     "capabilities": [{"name": "streaming", "type": "sampling", "enabled": True}, *(
         {"name": able, "type": "tool", "enabled": True} for able in ("pause", "resume") if name == "again")]}
    for name in AGENTS
]


class FlakyStore(Store):
    """A store whose next transaction fails when told so, after everything was written into it."""

    fail_next = False

    def _end(self) -> None:
        if self.fail_next:
            self.fail_next = False
            raise apsw.FullError("database or disk is full")
        super()._end()


class Runner:
    """One incarnation of a runner: takes numbered commands, executes what it is told, remembers batches."""

    def __init__(self, index: int, incarnation: int) -> None:
        self.index = index
        self.incarnation = incarnation
        self.inbox = Inbox()
        self.runs: dict[str, tuple[int, int]] = {}  # run -> attempt, batches made
        self.cancelled: set[str] = set()
        self.reasons: dict[str, str] = {}
        self.steered: set[str] = set()  # runs that were told of steering prompts
        self.told: list[str] = []  # pause and resume
        self.takes: dict[tuple[str, int], int] = {}
        self.heard: dict[tuple[str, int], list[str]] = {}
        self.started: list[tuple[str, int]] = []
        self.said: list[list[Any]] = []

    def take(self, message: list[Any]) -> None:
        _, epoch, first, commands = message
        for name, *args in self.inbox.take(epoch, first, commands):
            if name == "run":
                run_id, attempt = args[0], args[1]
                if run_id not in self.runs:
                    self.runs[run_id] = (attempt, 0)
                    self.started.append((run_id, attempt))
            elif name == "cancel":
                if args[0] in self.runs:
                    self.cancelled.add(args[0])
                    self.reasons.setdefault(args[0], args[2])
                else:
                    self.said.append(["lost", [[args[0], args[1]]]])
            elif name == "steer":
                self.steered.add(args[0])
            elif name in ("pause", "resume"):
                self.told.append(name)
            elif name == "known":
                lost = [[r, a] for r, a in args[0] if self.runs.get(r, (None,))[0] != a]
                if lost:
                    self.said.append(["lost", lost])
            elif name == "reload":
                self.said.append(["catalogue", args[0], CATALOGUE])
        self.said.append(["acks", self.inbox.epoch, self.inbox.done])

    def batch(self, run_id: str, status: str | None) -> list[Any]:
        """The next batch of a run: one event, or the terminal one with the settlement."""
        attempt, made = self.runs[run_id]
        kind = "message_streamed" if status is None else ev.RUN_TERMINAL_EVENT[status]
        settle = (
            None
            if status is None
            else {
                "status": status,
                "output": {"content": "x"},
                "token_usage": {},
                "cost_usd": None,
                "error": None
                if status == "completed"
                else {"code": "provider_error", "message": "m", "details": {}},
                "provider_metadata": {"provider": "echo"},
            }
        )
        fragment = ev.encode_fragment(kind, "s", run_id, {}, ts=1.0)
        return ["batch", run_id, attempt, made + 1, [[ev.TYPE_CODE[kind], 1.0, fragment]], settle]


class Bench:
    """Feeds one partition and keeps what it sends."""

    def __init__(
        self, folder: Path, *, runners: int = 1, queue_max: int = 5, max_live: int = 100,
        isolated: Iterable[str] = (),
    ) -> None:
        self.path = folder / "partition-0.db"
        self.queue_max, self.max_live = queue_max, max_live
        self.tables = {name: {**AGENTS[name], "isolation": "process"} for name in isolated}
        self.hosting = Hosting(runners, self.tables)
        self.node_boot = 1
        self.now = 1_000_000.0
        self.mono = 1_000.0
        self._spawned = itertools.count(1)
        self._requests = itertools.count(1)
        self.client = bytes(15) + b"\x01"
        self.number = 0
        self.replies: dict[int, Any] = {}  # request id -> calls' answers, or the error
        self.bugs: list[str] = []
        self.sent: dict[int, deque[list[Any]]] = {}
        self.runners: dict[int, Runner | None] = {}
        self.states: dict[int, tuple[int, str]] = {}  # place -> incarnation, roster state
        for index in range(self.hosting.count):
            self.spawn(index)
        self.open()
        self.roster()
        self.catalogue()

    # --- lives ---

    def open(self) -> None:
        """A new incarnation of the partition, recovered from the file."""
        self.store = FlakyStore(self.path)
        epoch = self.store.acquire(boot_id="boot", offset_ms=0)
        self.state = State(self.store, partition=0, epoch=epoch, node="mesh", hosting=self.hosting)
        runners = Runners(Queue(Live(self.state, max_live=self.max_live), queue_max=self.queue_max))
        self.ops = SessionOps(runners, agents={**AGENTS, **self.tables}, input_bytes_max=1 << 20)
        self.receipts = Receipts(self.store.receipts, open_max=4096)
        self.partition = Partition(
            self.state, RouteTable(RoutesSection(), route_bytes_max=65536, partition=0), self.ops,
            self.receipts, reads={}, slot_map=even_map(1), index=0, log_bug=self._bug,
        )
        self.outboxes = Outboxes(self.state, self._send)
        self.actors = Actors(self.partition, self.outboxes, Log("bench"), on_welcome=lambda boot: None)
        self.sent = {index: deque() for index in self.states}
        self._clock()
        recovery = Recovery(
            self.store, self.partition, Log("bench"), node_boot=self.node_boot, boot_id="boot", offset_ms=0
        )
        recovery.load()
        self.partition.begin()
        recovery.settle()
        self._commit()

    def kill(self) -> None:
        """kill -9 of the partition: what is not in the file is gone; the next incarnation recovers."""
        self.store.connection.close()
        self.open()
        self.roster()
        self.catalogue()

    def kill_node(self) -> None:
        """The whole node dies and starts again."""
        self.store.connection.close()
        self.node_boot += 1
        for index in self.states:
            self.spawn(index)
        self.open()
        self.roster()
        self.catalogue()

    def spawn(self, index: int) -> None:
        incarnation = self.node_boot * 1_000_000 + next(self._spawned)
        self.runners[index] = Runner(index, incarnation)
        self.states[index] = (incarnation, "ready")
        self.sent[index] = deque()

    def crash_runner(self, index: int, state: str = "restarting") -> None:
        """The runner's process is dead, by the supervisor's word."""
        incarnation, _ = self.states[index]
        self.runners[index] = None
        self.states[index] = (incarnation, state)
        self.sent[index].clear()

    def roster(self) -> None:
        """The router tells the partition who is there."""
        rows = [[i, inc, 100 + inc if self.runners[i] else None, state, self.runners[i] is not None]
                for i, (inc, state) in self.states.items()]
        self._actor(wire.ROUTER_ID, ["roster", rows])

    def catalogue(self) -> None:
        for runner in self.runners.values():
            if runner is not None:
                listed = self.hosting.listed(runner.index, {**AGENTS, **self.tables})
                self.say(runner, ["catalogue", None, [row for row in CATALOGUE if row["name"] in listed]])

    def say(self, runner: Runner, message: list[Any]) -> None:
        self._actor(wire.actor_id(b"R", runner.index, runner.incarnation), message)

    # --- one turn ---

    def _clock(self) -> None:
        self.state.now, self.state.mono = self.now, self.mono
        self.partition.boot_ms = int(self.mono * 1000)

    def _actor(self, peer: bytes, message: list[Any]) -> None:
        self.turn(frames=[peer + bytes(8) + wire.pack(message)])

    def turn(self, *, frames: Any = (), writes: Any = ()) -> None:
        """One batch of the loop."""
        self._clock()
        self.partition.begin()
        for frame in frames:
            self.actors.take(frame, writable=True)
        for pending, done_below in writes:
            try:
                body = self.partition.write(pending, done_below)
            except MeshError as error:
                self.replies[pending.request_id] = error
                continue
            if body:
                self.replies[pending.request_id] = wire.unpack(body)
        if self.actors.news:
            self.actors.news = False
            self.partition.retry_parked()
        self._commit()

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.mono += seconds
        self._clock()
        self.partition.begin()
        self.actors.guarded(self.ops.tick)
        self.actors.guarded(self.ops.queue.start_waiting)
        self.partition.expire_parked()
        self._commit()
        self.outboxes.resend(self.mono)

    def _commit(self) -> None:
        state = self.state
        self.partition.resolve()
        if state.changed or self.receipts.dirty:
            dirty, settled = self.receipts.drain()
            try:
                self.store.commit(state, {}, dirty, settled, power=False)
            except StoreError as error:
                for pending, answer in self.partition.fail(error.message, dirty):
                    self.replies[pending.request_id] = (
                        wire.unpack(answer) if isinstance(answer, bytes) else answer
                    )
                self.actors.answers.clear()
                state.end_batch()
                return
            for pending, body in self.partition.finish():
                self.replies[pending.request_id] = wire.unpack(body)
        for (index, incarnation), answers in self.actors.answers.items():
            for answer in answers:
                self._answered(index, incarnation, wire.unpack(answer))
        self.actors.answers.clear()
        if state.commands:
            self.outboxes.add(state.commands)
        state.end_batch()

    def _answered(self, index: int, incarnation: int, message: list[Any]) -> None:
        runner = self.runners[index]
        if runner is None or runner.incarnation != incarnation or message[1] not in runner.runs:
            return
        kind, run_id, attempt, *n = message
        if runner.runs[run_id][0] != attempt:
            return
        if kind == "fenced":
            del runner.runs[run_id]
        elif kind == "taken":
            number, texts = n
            if texts and number == runner.takes.get((run_id, attempt), 0) + 1:
                runner.takes[run_id, attempt] = number
                runner.heard.setdefault((run_id, attempt), []).extend(texts)
        elif kind == "stored":
            runner.runs[run_id] = (attempt, max(n[0], runner.runs[run_id][1]))

    def _send(self, peer: bytes, message: bytes) -> None:
        _, index, incarnation = wire.parse_actor_id(peer)
        if self.runners[index] is not None and self.runners[index].incarnation == incarnation:
            self.sent[index].append(wire.unpack(message))

    def deliver(self) -> None:
        """Every runner takes what was sent to it, and what it says about it is heard."""
        for index, runner in list(self.runners.items()):
            if runner is None:
                continue
            while self.sent[index]:
                runner.take(self.sent[index].popleft())
            said, runner.said = runner.said, []
            for message in said:
                self.say(runner, message)

    def progress(self, runner: Runner, run_id: str, status: str | None = None) -> None:
        """A run says something, or ends."""
        settles = status is not None
        self.say(runner, runner.batch(run_id, status))
        if settles and run_id in runner.runs and self.status(run_id) not in ("running", "paused"):
            del runner.runs[run_id]

    def take(self, runner: Runner, run_id: str) -> list[str]:
        """A run takes its steering prompts; all it heard so far."""
        key = run_id, runner.runs[run_id][0]
        self.say(runner, ["take", *key, runner.takes.get(key, 0) + 1])
        return runner.heard.get(key, [])

    # --- calls ---

    def post(
        self, *calls: list[Any], number: int | None = None, done_below: int = 1, limit_s: float = 1e6
    ) -> int:
        """Send a write payload; its answer is (or will be) in ``replies``."""
        if number is None:
            self.number += 1
            number = self.number
        request = next(self._requests)
        header = wire.Header(2, 0, 0, 0, 0, 0, request, number, done_below)
        pending = Pending(self.client, header, 0, wire.unpack(wire.pack(list(calls))), self.mono + limit_s)
        self.turn(writes=[(pending, done_below)])
        answer = self.replies.get(request)
        if isinstance(answer, ClientExpired):
            self.client = (int.from_bytes(self.client, "big") + 1).to_bytes(16, "big")
            self.number = 0
        return request

    def call(self, op: str, *args: Any) -> Any:
        """One write, whose answer must be there at once."""
        answers = self.replies[self.post([op, list(args)])]
        if isinstance(answers, MeshError):
            raise answers
        status, value = answers[0]
        if status:
            raise AssertionError(value["code"])
        return value

    def code(self, op: str, *args: Any) -> str:
        """The error code of one write."""
        answers = self.replies[self.post([op, list(args)])]
        if isinstance(answers, MeshError):
            return answers.code
        status, value = answers[0]
        return value["code"] if status else "ok"

    def status(self, run_id: str) -> str:
        return self.state.run(run_id).status.value

    def _bug(self, op: str) -> None:
        import traceback
        self.bugs.append(f"{op}: {traceback.format_exc()}")

    # --- what the file says ---

    def rows(self, sql: str, *args: Any) -> list[Any]:
        return self.store.connection.execute(sql, args).fetchall()

    def lifecycle(self, session_id: str) -> list[str]:
        """started, stopped, restarted of one session, in order; stopped with its reason."""
        said = []
        for topic, payload in self.store.feed_lifecycle(0, 10**6):
            _, what, sid = topic.split(".", 2)
            if sid == session_id and what != "status":
                reason = wire.unpack(payload).get("reason")
                said.append(f"{what} {reason}" if what == "stopped" else what)
        return said

    def events(self, session_id: str) -> list[str]:
        return [
            ev.EVENT_TYPES[code]
            for (code,) in self.rows(
                "SELECT e.type FROM event e JOIN session s ON s.n = e.session WHERE s.id = ? ORDER BY e.seq",
                session_id,
            )
        ]


def new_run_id(session_id: str, n: int) -> str:
    return run_id_for(session_id, f"{n:029x}")


def opened(tmp_path: Path) -> Iterator[Bench]:
    """The body of a fixture: a bench that must not have met a bug when its test is over."""
    made = Bench(tmp_path)
    yield made
    made.store.connection.close()
    assert not made.bugs, made.bugs


def started(bench: Bench, **fields: Any) -> Runner:
    """Start the session ``s`` on the agent ``echo``; the runner that hosts it."""
    bench.call("session.start", "s", "echo", fields or None)
    runner = bench.runners[0]
    assert runner is not None
    return runner

