"""The partition process: the single writer of its slots. A synchronous loop, no asyncio.

take what waits -> answer reads -> decide writes -> commit once -> reply -> publish -> wake waiters -> perform
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from typing import Any

from mesh.core import mailbox, wire
from mesh.core.live import Live
from mesh.core.partition import Partition, Pending
from mesh.core.receipts import Receipts
from mesh.core.records import StopReason
from mesh.core.route_record import rebase
from mesh.core.routes import RouteTable
from mesh.core.session_ops import SessionOps
from mesh.core.state import RunnerEntry, State
from mesh.core.waiting import Waiters
from mesh.errors import DeadlineExceeded, MeshError, RemoteProtocolError, StoreError
from mesh.net import sockets
from mesh.node.backup import Backups
from mesh.node.child import Child
from mesh.node.outbox import Outboxes
from mesh.node.parking import Parking
from mesh.node.publishing import Publisher
from mesh.node.reads import Reads
from mesh.store.sqlite import WAL_BYTES_MAX, Store

TICK_S = 1.0
#: READY is repeated this often: a new router knows all its actors after so long at most.
READY_S = 0.1
ROUTES_PER_LOAD = 2_000
ROUTES_PER_SWEEP = 2_000
IDLE_PER_TICK = 1_000
#: Guesses and expiries that nobody waits for ride with the next commit, or are flushed after this time.
LAZY_FLUSH_S = 0.2
CACHE_MAX = 20_000
SWEEP_S = 30.0
INCARNATIONS_PER_BOOT = 1_000_000
#: The exit status when memory and disk might differ: the next incarnation recovers from the disk.
EX_INCONSISTENT = 70

READ, WRITE, WAIT = int(wire.Kind.READ), int(wire.Kind.WRITE), int(wire.Kind.WAIT)


class PartitionProcess:
    """Sockets, clock and store around the pure partition."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.index = child.index
        config, limits = child.config, child.config.limits
        self.store = Store(child.data_dir / f"partition-{child.index}.db")
        self.boot_id = _boot_id()
        self.offset_ms = int(time.time() * 1000) - _boot_ms()
        self.epoch = self.store.acquire(boot_id=self.boot_id, offset_ms=self.offset_ms)
        self.state = State(self.store, partition=child.index, epoch=self.epoch, node=config.node.name)
        self.routes = RouteTable(config.routes, route_bytes_max=limits.route_bytes, partition=child.index)
        self.live = Live(self.state, max_live=config.sessions.max_live, queue_max=config.sessions.queue_max)
        self.ops = SessionOps(self.state, self.live, agents=config.agents, input_bytes_max=limits.input_bytes)
        self.receipts = Receipts(self.store.receipts, open_max=limits.receipts_per_client)
        self.reads = Reads(self.state, self.store, page_bytes=limits.page_bytes,
                           routes_config=config.to_map()["routes"] | {"partition_count": config.node.partitions})
        self.partition = Partition(
            self.state, self.routes, self.live, self.ops, self.receipts, reads=self.reads.table,
            slot_map=child.slot_map, index=child.index, log_bug=_log_bug,
        )
        self.reads.partition = self.partition
        self.reads.info = self.stats
        ctx = sockets.context()
        identity = mailbox.identity(mailbox.PARTITION, child.index, self.epoch)
        self.socket = sockets.dealer_socket(ctx, child.back_endpoint, identity)
        self.publisher = Publisher(sockets.publisher_socket(ctx, child.feed_in_endpoint), self.state)
        self.reads.echo = self.publisher.echo
        self.waiters = Waiters(partition_max=limits.waiters_per_partition, client_max=limits.waiters_per_client)
        self.parking = Parking(self.waiters, self.reads, self.partition, self._reply)
        self.outboxes = Outboxes(self.state, self._send_actor)
        self.backups = Backups(self.store, child.index, self.state)
        self.router_boot = 0
        self.degraded: str | None = None
        self.load_after: str | None = ""
        self.dropped = 0
        self.lazy_since: float | None = None
        self.sweeping = False
        self.next_prune_s = self.next_sweep_s = 0.0
        self.writes: list[tuple[Pending, int]] = []
        self.waits: list[tuple[bytes, wire.Header, int, bytes]] = []
        self.answers: list[tuple[int, int, list[Any]]] = []
        self.stopping = False
        self._last_stats: dict[str, Any] = {}

    # --- starting ---

    def recover(self) -> None:
        """Load what is live and active, and settle what a dead node left behind. Routes load later."""
        counters = self.store.counters()
        self.state.pos, self.state.lseq = counters["pos"], counters["lseq"]
        self.state.next_session, self.state.next_run = counters["next_session"], counters["next_run"]
        self.state.session_count = counters["sessions"]
        self._clock()
        self.routes.loading = True
        self.routes.fetch = self._fetch_route
        owned = self.partition.owns_session
        for session in self.store.live_sessions():
            if owned(session.id):
                self.state.sessions[session.id] = session
                self.state.live[session.id] = self.state.mono
        active = [run for run in self.store.active_runs() if owned(run.session_id)]
        self.parking.recover(active)
        self.partition.begin()
        boot = self.child.node_boot
        for session_id in list(self.state.live):
            if self.state.session(session_id).runner_incarnation // INCARNATIONS_PER_BOOT != boot:
                self.live.take_down(self.state.session(session_id), StopReason.NODE_LOST)
        for run in active:
            claimed = run.runner is not None and run.status in ("running", "waiting_approval")
            if claimed and run.runner_incarnation // INCARNATIONS_PER_BOOT != boot:
                self.live.settle_lost(self.state.run(run.id))
        self._commit()

    def _fetch_route(self, key: str) -> bytes | None:
        row = self.store.route(key)
        if row is None:
            return None
        record, offset_ms, boot_id = row
        return record if boot_id == self.boot_id else rebase(record, offset_ms - self.offset_ms, self.partition.boot_ms)

    def _load_routes(self) -> None:
        """Load the next rows behind the first answers."""
        assert self.load_after is not None
        rows = self.store.routes(self.load_after, ROUTES_PER_LOAD)
        groups: dict[int, list[tuple[str, bytes]]] = {}
        for key, record, offset_ms, boot_id in rows:
            shift = 0 if boot_id == self.boot_id else offset_ms - self.offset_ms
            groups.setdefault(shift, []).append((key, record))
        for shift, group in groups.items():
            self.routes.load(group, shift, now_ms=self.partition.boot_ms)
        self.load_after = rows[-1][0] if len(rows) == ROUTES_PER_LOAD else None
        if self.load_after is None:
            self.routes.loaded()

    # --- the loop ---

    def serve(self) -> None:
        """Run batches until told to stop, or until the supervisor is gone."""
        control = self.child.control
        poller = sockets.Poller()
        poller.register(self.socket, sockets.POLLIN)
        poller.register(self.publisher.socket, sockets.POLLIN)
        poller.register(control.fileno(), sockets.POLLIN)
        self._clock()
        self._last_stats = self.stats()
        control.send("ready", epoch=self.epoch, pid=os.getpid())
        next_tick = next_ready = self.state.mono
        while not self.stopping:
            ready = dict(poller.poll(self._timeout_ms(min(next_tick, next_ready))))
            self._clock()
            if self.state.mono >= next_ready:
                next_ready = self.state.mono + (READY_S if self.router_boot else READY_S / 10)
                self._ready()
            if control.fileno() in ready:
                messages = control.receive()
                if control.closed:
                    os._exit(1)  # the supervisor is dead: nobody would restart or stop us
                self.stopping = any(message["t"] == "stop" for message in messages)
            if self.publisher.socket in ready:
                self.publisher.take_subscriptions()
            self._batch()
            if self.state.mono >= next_tick:
                next_tick = self.state.mono + TICK_S
                self._tick()
        self._shut_down()

    def _timeout_ms(self, next_tick: float) -> int:
        if self.load_after is not None or self.backups.active or self.sweeping:
            return 0
        due = min(next_tick, self.waiters.next_deadline_s() or next_tick)
        if self.lazy_since is not None:
            due = min(due, self.lazy_since + LAZY_FLUSH_S)
        return max(0, int((due - self.state.mono) * 1000) + 1)

    def _clock(self) -> None:
        self.state.now = time.time()
        self.state.mono = time.monotonic()
        self.partition.boot_ms = _boot_ms()

    def _batch(self) -> None:
        """One turn: everything that waits, bounded."""
        self.partition.begin()
        limits = self.child.config.limits
        recv, nowait = self.socket.recv, sockets.NOWAIT
        size = 0
        for _ in range(limits.batch_payloads):
            try:
                frame = recv(nowait)
            except sockets.Again:
                break
            size += len(frame)
            if frame[0]:
                self._on_client(frame)
            else:
                self._on_actor(frame)
            if size > limits.batch_bytes:
                break
        self._decide()
        self._commit()
        for client, header, deadline_ms, body in self.waits:
            self.parking.on_wait(client, header, deadline_ms, body)
        self.waits.clear()
        self.parking.expire(self.state.mono)
        self._housekeeping()

    def _on_client(self, frame: bytes) -> None:
        client = frame[:16]
        (deadline_ms,) = wire.DEADLINE.unpack_from(frame, 16)
        header = wire.Header._make(wire.HEADER.unpack_from(frame, wire.ACTOR_PREFIX_BYTES)[2:])
        size = len(frame) - wire.ACTOR_PREFIX_BYTES
        body = frame[wire.ACTOR_PREFIX_BYTES + wire.HEADER_BYTES :]
        try:
            if header.kind == WAIT:
                self.waits.append((client, header, deadline_ms, body))
                return
            if deadline_ms <= self.state.mono * 1000:
                raise DeadlineExceeded("the time limit passed before the partition took the request")
            calls = wire.decode_calls(body)
            if header.kind == READ:
                self._reply(client, header.request_id, READ, size, self.partition.read(calls))
            else:
                pending = Pending(client, header, size, calls, deadline_ms / 1000)
                self.writes.append((pending, header.done_below))
        except MeshError as error:
            self._refuse(client, header.request_id, header.kind, size, error)

    def _decide(self) -> None:
        if self.degraded is not None:
            error = StoreError(f"this partition cannot write now: {self.degraded}", details={"reason": self.degraded})
            for pending, _ in self.writes:
                self._refuse(pending.client, pending.request_id, WRITE, pending.size, error)
            self.writes.clear()
            return
        for pending, done_below in self.writes:
            try:
                body = self.partition.write(pending, done_below)
            except MeshError as error:
                self._refuse(pending.client, pending.request_id, WRITE, pending.size, error)
                continue
            if body == b"":  # in progress: the first one will be answered; this one leaves the count
                self._refuse(pending.client, 0, WRITE, pending.size, MeshError(code="timeout"))
            elif body is not None:
                self._reply(pending.client, pending.request_id, WRITE, pending.size, body)
        self.writes.clear()
        if self.partition.parked:
            self.partition.retry_parked()

    # --- the commit and what follows it ---

    def _commit(self) -> None:
        state, partition = self.state, self.partition
        partition.resolve()
        if not (state.changed or self.receipts.dirty or partition.route_written or self._lazy_due()):
            self._perform()
            return
        dirty, settled = self.receipts.drain()
        routes = self.routes.take_dirty()
        config = self.child.config
        power = (state.changed and config.sessions.durability == "power") or (
            partition.route_written and config.routes.durability == "power")
        try:
            self.store.commit(state, routes, dirty, settled, power=power)
        except StoreError as error:
            self.routes.put_back(routes)
            self._failed(error, dirty)
            return
        self.lazy_since = None
        for pending, body in partition.finish():
            self._reply(pending.client, pending.request_id, pending.kind, pending.size, body)
        self._perform()

    def _lazy_due(self) -> bool:
        if not self.routes.dirty or self.degraded is not None:
            return False
        if self.lazy_since is None:
            self.lazy_since = self.state.mono
        return self.state.mono - self.lazy_since >= LAZY_FLUSH_S

    def _perform(self) -> None:
        """What a commit allows: tell runners, publish, wake who waits."""
        state = self.state
        for runner, incarnation, message in self.answers:
            self._send_actor(wire.actor_id(mailbox.RUNNER, runner, incarnation), message)
        self.answers.clear()
        if state.commands:
            self.outboxes.add(state.commands)
        if self.partition.effects:
            self.backups.begin(self.partition.effects)
            self.partition.effects.clear()
        self.publisher.publish_batch(self.routes)
        if state.events or state.settled:
            self.parking.wake(state.events, state.settled)
        state.end_batch()

    def _failed(self, error: StoreError, dirty: dict[Any, Any]) -> None:
        """The transaction failed: the batch never happened."""
        if error.code == "stale_epoch":
            print(f"mesh: {error}", file=sys.stderr, flush=True)
            os._exit(EX_INCONSISTENT)
        try:
            refused = self.partition.fail(error.message, dirty)
        except Exception:
            traceback.print_exc()
            os._exit(EX_INCONSISTENT)
        for pending, refusal in refused:
            self._refuse(pending.client, pending.request_id, pending.kind, pending.size, refusal)
        self.answers.clear()
        self.partition.effects.clear()
        self.state.end_batch()
        self.degraded = error.message
        print(f"mesh: partition {self.index} is degraded: {error}", file=sys.stderr, flush=True)

    def _reply(self, client: bytes, request_id: int, kind: int, size: int, body: bytes) -> None:
        header = wire.encode_header(
            wire.Kind.REPLY, answers=kind, address=self.index, map_version=self.child.map_version,
            remaining_ms=size, request_id=request_id, number=self.router_boot, done_below=self.epoch,
        )
        self._send(client + header + body)

    def _refuse(self, client: bytes, request_id: int, kind: int, size: int, error: MeshError) -> None:
        header = wire.encode_header(
            wire.Kind.REPLY, flags=wire.Flag.REFUSED, answers=kind, address=self.index,
            map_version=self.child.map_version, remaining_ms=size, request_id=request_id,
            number=self.router_boot, done_below=self.epoch,
        )
        self._send(client + header + wire.pack(error.to_map()))

    def _send_actor(self, peer: bytes, message: list[Any]) -> None:
        self._send(peer + wire.pack(message))

    def _send(self, frame: bytes) -> None:
        try:
            self.socket.send(frame, sockets.NOWAIT)
        except sockets.Again:
            self.dropped += 1  # no router now: clients and runners send again what was not answered

    # --- actors ---

    def _on_actor(self, frame: bytes) -> None:
        kind, index, incarnation = wire.parse_actor_id(frame[:16])
        try:
            message = wire.unpack(frame[24:])
            messages = message[1] if message[0] == "many" else [message]
            for one in messages:
                if kind == mailbox.ROUTER:
                    self._on_router(one)
                elif kind == mailbox.RUNNER and self.degraded is None:
                    self._on_runner(index, incarnation, one)
        except (RemoteProtocolError, LookupError, TypeError, ValueError):
            traceback.print_exc()

    def _on_router(self, message: list[Any]) -> None:
        if message[0] == "welcome":
            self.router_boot = message[1]
        elif message[0] == "roster":
            entries = {row[0]: RunnerEntry(*row[1:]) for row in message[1]}
            if self.degraded is None:
                self._guarded(lambda: self.live.on_roster(entries))
            self.state.runners = entries
            self.outboxes.on_roster(entries)
            self.partition.retry_parked()

    def _on_runner(self, index: int, incarnation: int, message: list[Any]) -> None:
        match message[0]:
            case "batch":
                answer = self._guarded(lambda: self.live.on_batch(index, incarnation, message))
                if answer is not None:
                    self.answers.append((index, incarnation, answer))
            case "acks":
                self.outboxes.on_acks(index, incarnation, message[1], message[2])
            case "catalogue":
                self.ops.on_catalogue(index, message[1], message[2])
                self.partition.retry_parked()
            case "lost":
                self._guarded(lambda: self.live.on_lost(index, incarnation, message[1]))

    def _guarded(self, work: Any) -> Any:
        """A bug in the handling of one message undoes that message alone."""
        mark = self.state.mark()
        try:
            return work()
        except Exception:  # noqa: BLE001 - one of the two places that catch broadly
            self.state.back_to(mark)
            traceback.print_exc()
            return None

    # --- time ---

    def _tick(self) -> None:
        self.child.control.send("beat", lag_ms=0)
        self._last_stats = self.stats()
        self.partition.begin()
        if self.degraded is not None:
            self._probe()
        else:
            self._guarded(self.ops.tick)
            self._guarded(self._retire_idle)
            for session_id in [s for s, work in self.state.work.items() if work.running is None]:
                self.live.start_next(session_id)
            if self.partition.parked:
                self.partition.retry_parked()
            self._commit()
        self.outboxes.resend(self.state.mono)
        self.publisher.head(self.reads.head())
        self.state.trim(CACHE_MAX)
        if self.state.mono >= self.next_prune_s:
            self.sweeping = True
            self.next_prune_s = self.state.mono + self.child.config.routes.prune_interval_ms / 1000
        if self.state.mono >= self.next_sweep_s and self.degraded is None:
            self.next_sweep_s = self.state.mono + SWEEP_S
            self._sweep()

    def _retire_idle(self) -> None:
        idle_s = self.child.config.sessions.idle_timeout_s
        if idle_s <= 0:
            return
        for session_id, at in list(zip(self.state.live, self.state.live.values(), strict=True))[:IDLE_PER_TICK]:
            if self.state.mono - at < idle_s:
                return
            if session_id in self.state.work:
                self.state.touch(session_id)
            else:
                self.live.take_down(self.state.session(session_id), StopReason.IDLE)

    def _probe(self) -> None:
        try:
            self.store.probe()
        except StoreError as error:
            self.degraded = error.message
            return
        self.degraded = None
        print(f"mesh: partition {self.index} can write again", file=sys.stderr, flush=True)
        self.live.on_roster(self.state.runners)
        self._commit()

    def _sweep(self) -> None:
        limits = self.child.config.limits
        self.receipts.silent(self.state.mono, limits.client_silence_s)
        try:
            self.store.sweep(
                silent_before=int(self.state.now - limits.client_silence_s - SWEEP_S),
                lifecycle_below=self.state.lseq - limits.lifecycle_kept + 1,
            )
            self.store.save_counters(self.state, self.child.node_boot)
            self.store.checkpoint()
        except StoreError as error:
            self.degraded = error.message

    def _housekeeping(self) -> None:
        """Small steps between batches."""
        if self.load_after is not None:
            self._load_routes()
        elif self.sweeping:
            self.sweeping = self.routes.sweep(self.partition.boot_ms, ROUTES_PER_SWEEP) >= ROUTES_PER_SWEEP
        if self.backups.active:
            self.partition.begin()
            self.backups.step()
            self._commit()
        if self.store.wal_bytes_estimate() > WAL_BYTES_MAX:
            self.store.checkpoint()

    def _ready(self) -> None:
        message = ["ready", mailbox.PARTITION.decode(), self.index, self.epoch, os.getpid(), self._last_stats]
        self._send_actor(wire.ROUTER_ID, message)

    def stats(self) -> dict[str, Any]:
        """The counters that ``partitions.info`` and ``mesh status`` show."""
        return {
            "index": self.index, "epoch": self.epoch, "pid": os.getpid(), "routes": self.routes.count,
            "sessions": self.state.session_count, "live": len(self.state.live), "waiters": len(self.waiters),
            "runs_active": sum(1 for work in self.state.work.values() if work.running),
            "queue_depth": sum(len(work.queue) for work in self.state.work.values()),
            "pos": self.state.pos, "lseq": self.state.lseq, "degraded": self.degraded, "dropped": self.dropped,
            "loading": self.load_after is not None,
        }

    def _shut_down(self) -> None:
        """Stopped by the supervisor: the runners are gone; end what is live and leave a clean file."""
        self._batch()
        self.partition.begin()
        for session_id in list(self.state.live):
            self.live.take_down(self.state.session(session_id), StopReason.SHUTDOWN)
        self._commit()
        self._send_actor(wire.ROUTER_ID, ["bye"])
        self.store.save_counters(self.state, self.child.node_boot)
        self.store.close()
        time.sleep(0.02)  # let ZeroMQ's thread put the last messages on the wire; LINGER is 0


def _boot_ms() -> int:
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime_ns(clock) // 1_000_000


def _boot_id() -> str:
    """The machine's boot: stored boot times mean something only within one."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return str(int(time.time() - time.monotonic()) // 10)


def _log_bug(op: str) -> None:
    print(f"mesh: {op} raised:\n{traceback.format_exc()}", file=sys.stderr, flush=True)


def main(child: Child) -> None:
    """Run a partition until it is told to stop."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the control pipe says stop, in the supervisor's order
    process = PartitionProcess(child)
    process.recover()
    process.serve()


__all__ = ["PartitionProcess", "main"]
