"""Fuzz targets of the node: the router's decisions, and a partition without its database."""

from __future__ import annotations

import traceback
from typing import Any, NamedTuple

from dice import Dice

from mesh.config import RoutesSection
from mesh.core import mailbox, wire
from mesh.core.live import Live
from mesh.core.ops import CATALOGUE
from mesh.core.partition import Partition
from mesh.core.pending import Pending
from mesh.core.queueing import Queue
from mesh.core.receipts import Receipt, Receipts
from mesh.core.router import Actor, Router
from mesh.core.routes import RouteTable
from mesh.core.runners import Runners
from mesh.core.session_ops import SessionOps
from mesh.core.slots import even_map, run_id_for
from mesh.core.state import RunnerEntry, State
from mesh.errors import MeshError

AGENTS: dict[str, dict[str, Any]] = {"echo": {"provider": "echo"}}
ENTRIES = [{"name": "echo", "provider": "echo", "problem": None, "idempotent": False, "capabilities": []}]
_NAMES = tuple(op.name for op in CATALOGUE if op.kind != "wait")
_RUNS = tuple(run_id_for(sid, f"{n:029x}") for sid in ("s1", "s2") for n in range(3))


# --- the router ---


def router(data: bytes) -> None:
    """Anything from clients and actors: forwarded, answered, refused or counted; the counts stay true."""
    dice = Dice(data)
    core = Router(
        slot_map=even_map(2), map_version=1, boot=9, runners=1, inflight_max=6, inflight_bytes_max=500,
        waits_max=6,
    )  # fmt: skip
    forwarded: list[Forwarded] = []
    while not dice.empty:
        match dice.below(4):
            case 0:
                index, incarnation = dice.below(3), dice.below(4)
                identity = mailbox.identity(mailbox.PARTITION, index, incarnation)
                message = ["ready", "P", index, incarnation, 100 + incarnation, {}]
                told = core.on_own(identity, _packed(dice.value() if dice.below(4) == 0 else message))
                if told is not None and told[0] == "ready":
                    core.on_ready(identity, told)
                elif told is not None and told[0] == "took":
                    core.partitions[0].credit.took(told[1])
            case 1:
                _to_router(core, dice, forwarded)
            case _:
                _from_client(core, dice, forwarded)
        for actor in core.partitions:
            held = [f for f in forwarded if f.actor is actor and f.identity == actor.identity]
            waits = sum(f.payload[3] == wire.Kind.WAIT for f in held)
            assert (actor.inflight.waits, actor.inflight.payloads) == (waits, len(held) - waits)
            assert actor.inflight.waits <= 6 and actor.inflight.payloads <= 6
            assert actor.inflight.bytes == sum(len(f.payload) for f in held if f.payload[3] != wire.Kind.WAIT)
        wire.pack([core.partition_rows(), core.runner_rows(), core.runner_roster(), core.counters])


class Forwarded(NamedTuple):
    """A request that was forwarded and not answered."""

    actor: Actor
    identity: bytes
    client: bytes
    payload: bytes


def _packed(value: Any) -> bytes:
    try:
        return wire.pack(value)
    except MeshError:
        return b"\xc1"


def _from_client(core: Router, dice: Dice, forwarded: list[Forwarded]) -> None:
    client = bytes((1 + dice.below(3),)) * 16
    payload = dice.take(dice.below(64))
    if dice.below(4):
        payload = (
            wire.encode_header(
                dice.pick((1, 2, 3)),
                flags=dice.pick((0, 1, 255)),
                address=dice.number(16),
                map_version=dice.pick((0, 1, 2)),
                remaining_ms=dice.number(32),
                request_id=dice.number(64),
                number=dice.number(64),
                done_below=dice.number(64),
            )
            + payload
        )
    try:
        identity, frame, actor = core.on_client(client, payload, 2**40)
    except MeshError as error:
        assert core.refusal(payload, error)
        return
    if identity is None:
        assert actor is None and wire.decode_header(frame).kind == wire.Kind.REPLY
    else:
        assert actor is not None and frame[:16] == client and frame.endswith(payload)
        if dice.below(4) == 0:
            core.undelivered(actor, frame, full=bool(dice.below(2)))
        else:
            forwarded.append(Forwarded(actor, identity, client, payload))


def _to_router(core: Router, dice: Dice, forwarded: list[Forwarded]) -> None:
    """A frame on the back socket: a true answer, or anything from anybody."""
    if forwarded and dice.below(2):
        actor, identity, client, payload = forwarded.pop(dice.below(len(forwarded)))
        header = wire.decode_header(payload)
        reply = wire.encode_header(wire.Kind.REPLY, answers=header.kind, remaining_ms=len(payload))
        assert core.on_reply(identity, client + reply) == (actor.identity == identity)
        refused = core.unread(reply, 9)
        assert (refused is None) == (header.kind == wire.Kind.WRITE)
        return
    identity = dice.pick((b"p0.e1", b"p1.e2", b"r0.e1", b"zz", b""))
    if core.by_identity.get(identity) is not None:
        return  # our own actors say what they must
    frame = dice.take(dice.below(64))
    core.on_reply(identity, frame)
    core.on_actor(identity, frame)
    core.on_own(identity, frame)


# --- a partition ---


class Memory:
    """A store that keeps nothing: what is not in the caches was never there."""

    def session(self, session_id: str) -> None:
        return None

    def run(self, run_id: str) -> None:
        return None

    def event_type(self, session: int, seq: int) -> int | None:
        return None

    def has_session(self, session_id: str) -> bool:
        return False

    def runs_of(self, session: int) -> list[Any]:
        return []

    def spent_by_tag(self, tag: str) -> list[dict[str, float]]:
        return []

    def newest_session(self, scope: str) -> str:
        return "\U0010ffff"

    def newest_run(self, scope: str) -> str:
        return "\U0010ffff"

    def has_run(self, run_id: str) -> bool:
        return False

    def receipts(self, client: bytes) -> list[tuple[int, Receipt]]:
        return []


class Mini:
    """The deciding core over nothing, one runner, and dice for a client."""

    def __init__(self) -> None:
        memory = Memory()
        self.state = State(memory, partition=0, epoch=1, node="mesh")
        runners = Runners(Queue(Live(self.state, max_live=3), queue_max=2))
        self.bugs: list[str] = []
        self.receipts = Receipts(memory.receipts, open_max=8)
        self.routes = RouteTable(RoutesSection(max_entries_per_partition=3), route_bytes_max=300, partition=0)
        self.partition = Partition(
            self.state,
            self.routes,
            SessionOps(runners, agents=AGENTS, input_bytes_max=2000),
            self.receipts,
            reads={},
            slot_map=even_map(1),
            index=0,
            log_bug=lambda op: self.bugs.append(f"{op}: {traceback.format_exc()}"),
        )
        self.state.now, self.state.mono, self.partition.boot_ms = 1e9, 1000.0, 1_000_000
        self.state.runners = {0: RunnerEntry(5, 77, "ready", True)}
        self.partition.ops.on_catalogue(0, None, ENTRIES)
        self.seqs: dict[str, int] = {}
        self.pos = 0

    def turn(self, dice: Dice) -> None:
        """One batch: reads, writes, the commit or its failure."""
        self.state.mono += 0.01
        self.partition.boot_ms += dice.pick((10, 10, 2_000_000))
        self.partition.begin()
        marked = self._memory()
        for _ in range(1 + dice.below(3)):
            try:
                calls = wire.decode_calls(_body(dice))
                pairs_of(self.partition.read(calls)[0], len(calls))
                self._write(dice, calls)
            except MeshError:
                pass
        core = self.partition
        for work in (core.ops.tick, core.queue.start_waiting, core.retry_parked):
            work()
        self._commit(dice.below(8) == 0, marked)
        assert not self.bugs, self.bugs[0]

    def _write(self, dice: Dice, calls: list[Any]) -> None:
        number, done_below = (
            dice.pick((1, 2, 3, 4, 5, 0, 2**63, 2**64 - 1)),
            dice.pick((0, 1, 1, 1, 9, 2**64 - 1)),
        )
        header = wire.Header(wire.Kind.WRITE, 0, 0, 0, 0, 0, 1, number, done_below)
        client = bytes([1 + dice.below(40)]) * 16
        self.partition.write(Pending(client, header, 0, calls, self.state.mono + 5), done_below)

    def _memory(self) -> Any:
        state = self.state
        return (
            dict(state.sessions),
            dict(state.runs),
            dict(state.work),
            state.pos,
            state.lseq,
            sorted(state.live),
            dict(state.idle),
        )

    def _commit(self, fails: bool, marked: Any) -> None:
        self.partition.resolve()
        dirty, _ = self.receipts.drain()
        if fails:
            for _, answer in self.partition.fail("no room", dirty):
                assert isinstance(answer, MeshError) or pairs_of(answer) is not None
            assert self._memory()[:5] == marked[:5]
        else:
            self._check_log()
            for pending, body in self.partition.finish():
                pairs_of(body, len(pending.calls))
        self.routes.take_dirty()
        self.routes.notes.clear()
        self.state.end_batch()

    def _check_log(self) -> None:
        """Seq and pos have no hole, and every value of the batch can be stored."""
        for event in self.state.events:
            assert event.seq == self.seqs.get(event.session_id, 0) + 1 and event.pos == self.pos + 1
            self.seqs[event.session_id], self.pos = event.seq, event.pos
        assert self.state.pos == self.pos
        assert len(self.state.live) <= 3
        from mesh.core import run as runs
        from mesh.core import session as sessions

        for session_id in self.state.dirty_sessions:
            stored = self.state.sessions[session_id]
            assert sessions.decode(sessions.encode(stored)).id == session_id
        for run_id in self.state.dirty_runs:
            assert runs.decode(runs.encode(self.state.runs[run_id])).id == run_id


def _body(dice: Dice) -> bytes:
    if dice.below(8) == 0:
        return dice.take(dice.below(64))
    calls = []
    if dice.below(8) == 0:
        return _deep_body(dice)
    for _ in range(1 + dice.below(3)):
        op = dice.pick(_NAMES)
        calls.append([op, _args(dice, op)])
    try:
        return wire.pack(calls)
    except MeshError:
        return b"\x90"


def _deep_body(dice: Dice) -> bytes:
    """One call with an argument that is nested as deep as the decoder goes: our packer would not send it."""
    op = dice.pick(_NAMES)
    try:
        args = [wire.pack(arg) for arg in _args(dice, op)]
    except MeshError:
        args = []
    if dice.below(2):
        args = args[: dice.below(3)]
    deep = dice.pick((b"\x91", b"\x81\xa1d")) * (900 + dice.below(130)) + b"\xc0"
    return b"".join((b"\x91\x92", wire.pack(op), wire.array_header(len(args) + 1), *args, deep))


def _args(dice: Dice, op: str) -> list[Any]:
    """Arguments that fit now and then, so that what lies behind the checks is reached."""
    plausible: dict[str, tuple[Any, ...]] = {
        "route": (("a:b:c", "a:b:c:d", "x:y:z"),),
        "session": (("s1", "s2", "s.3"),),
    }
    family = op.split(".", maxsplit=1)[0]
    args: list[Any] = []
    if dice.below(8):
        if family in plausible:
            args.append(dice.pick(plausible[family][0]))
            second = {"session.prompt": _RUNS, "session.fail": ("why",)}.get(op, ("echo",))
            if op == "route.set":
                args.append({"external_room_id": dice.value(1)})
            elif (
                op not in ("session.get",)
                and dice.below(4)
                and op.startswith(("session.c", "session.s", "session.p", "session.f"))
            ):
                args.append(dice.pick(second))
        elif family == "run":
            args.append(dice.pick(_RUNS))
            if op in ("run.submit", "run.create", "run.once"):
                args += [dice.pick(("s1", "s2", "s.3")), *(["echo"] if op == "run.once" else []), "hi"]
    while dice.below(3) == 0 and not dice.empty:
        args.append(dice.value())
    return args


def pairs_of(body: bytes, count: int | None = None) -> Any:
    """The answers of a body: whole, of the promised shape, and no bug among them."""
    pairs = wire.unpack(body)
    assert count is None or len(pairs) == count
    for status, value in pairs:
        assert status in (0, 1)
        if status:
            assert set(value) == {"code", "message", "details"} and value["code"] != "internal_error", value
    return pairs


def partition(data: bytes) -> None:
    """Any calls: each is answered or refused by name; the log has no hole; a failed commit leaves nothing."""
    dice, mini = Dice(data), Mini()
    while not dice.empty:
        mini.turn(dice)


__all__ = ["Mini", "pairs_of", "partition", "router"]
