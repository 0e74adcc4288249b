"""The partition process: the single writer of its slots. A synchronous loop, no asyncio.

take what waits -> answer reads -> decide writes -> commit once -> reply -> publish -> wake waiters -> perform
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from typing import Any

from mesh.core import mailbox, wire
from mesh.core.admission import share
from mesh.core.audit import own_entry
from mesh.core.live import Live
from mesh.core.partition import Partition
from mesh.core.pending import Pending
from mesh.core.prices import Prices
from mesh.core.queueing import Queue
from mesh.core.receipts import Key, Receipt, Receipts
from mesh.core.records import StopReason
from mesh.core.routes import RouteTable
from mesh.core.runner import join_many
from mesh.core.runners import Runners
from mesh.core.session_ops import SessionOps
from mesh.core.state import State
from mesh.core.waiting import Waiters
from mesh.errors import DeadlineExceeded, MeshError, StoreError
from mesh.log import Log
from mesh.net import sockets
from mesh.node import clock
from mesh.node.actors import Actors
from mesh.node.backup import Backups
from mesh.node.child import Child
from mesh.node.counters import counters
from mesh.node.health import Health, cannot_start
from mesh.node.inbox import Inbox
from mesh.node.outbox import Outboxes
from mesh.node.parking import Parking
from mesh.node.publishing import Publisher
from mesh.node.queries import Queries
from mesh.node.reads import Reads
from mesh.node.recovery import INCARNATIONS_PER_BOOT, Recovery
from mesh.node.replies import Replies
from mesh.node.upkeep import Upkeep
from mesh.store.sqlite import Store

TICK_S = 1.0
#: READY is repeated this often: a new router knows all its actors after so long at most.
READY_S = 0.1
#: Guesses and expiries that nobody waits for ride with the next commit, or are flushed after this time.
LAZY_FLUSH_S = 0.2
#: The exit status when memory and disk might differ: the next incarnation recovers from the disk.
EX_INCONSISTENT = 70

READ, WRITE, WAIT = int(wire.Kind.READ), int(wire.Kind.WRITE), int(wire.Kind.WAIT)
MORE = int(wire.Flag.MORE)


class PartitionProcess:
    """Sockets, clock and store around the pure partition."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.index = child.index
        self.log = Log(child.name)
        config, limits = child.config, child.config.limits
        self.store = Store(child.data_dir / f"partition-{child.index}.db", self._takes_long)
        boot_id, offset_ms = clock.boot_id(), int(time.time() * 1000) - clock.boot_ms()
        self.health = Health(self.store, self.log, boot_id=boot_id, offset_ms=offset_ms,
                             starts=child.incarnation % INCARNATIONS_PER_BOOT,
                             progress=lambda note: child.control.send("progress", note=note))
        self.epoch = self.health.acquire()
        self.state = State(self.store, partition=child.index, epoch=self.epoch, node=config.node.name,
                           redactor=config.redaction.redactor(), hosting=config.hosting())
        mine = share(config.sessions.max_live, child.index, config.node.partitions)
        self.live = Live(self.state, max_live=max(1, mine))
        queue = Queue(self.live, queue_max=config.sessions.queue_max, slots=config.sessions.slots)
        runners = Runners(queue, Prices(config.prices))
        self.reads = Reads(
            self.state, self.store, page_bytes=limits.page_bytes, map_version=child.map_version,
            routes_config=config.to_map()["routes"] | {"partition_count": config.node.partitions},
        )
        self.receipts = Receipts(self.store.receipts, open_max=limits.receipts_per_client)
        self.partition = Partition(
            self.state,
            RouteTable(config.routes, route_bytes_max=limits.route_bytes, partition=child.index),
            SessionOps(runners, agents=config.agents, input_bytes_max=limits.input_bytes),
            self.receipts, reads=self.reads.table, slot_map=child.slot_map, index=child.index,
            log_bug=lambda op: self.log.write("a call failed", op=op, trace=traceback.format_exc()),
        )
        self.reads.partition, self.reads.info = self.partition, lambda: counters(self)
        self.partition.add_reads(Queries(self.state, self.store, self.partition.owns_session,
                                         page_bytes=limits.page_bytes).table)
        self._connect()
        self.recovery = Recovery(self.store, self.partition, self.log, node_boot=child.node_boot,
                                 boot_id=boot_id, offset_ms=offset_ms)
        self.upkeep = Upkeep(self.store, self.partition, config, child.node_boot, self.replies.tell_partition)
        self.actors.on_tags = self.upkeep.retention.tags.take
        self.backups = Backups(self.store, child.index)
        self.lazy_since: float | None = None
        self.stopping: dict[str, Any] | None = None
        self._last_stats: dict[str, Any] = {}

    def _takes_long(self, note: str) -> None:
        """Who waits for this start is told, and goes on waiting."""
        self.log.write(note)
        self.child.control.send("progress", note=note)

    def _connect(self) -> None:
        """The mailbox and the feed, and who uses them."""
        child, limits = self.child, self.child.config.limits
        ctx = sockets.context(patient=True)
        identity = mailbox.identity(mailbox.PARTITION, child.index, self.epoch)
        # All that may be answered at once fits into the pipe: a reply is not lost while the router lives.
        most = sockets.HWM_FRAMES + limits.inflight_per_partition + limits.waiters_per_partition
        hwm = min(most, sockets.HWM_MAX)
        self.socket = sockets.dealer_socket(ctx, child.back_endpoint, identity, hwm=hwm)
        self.replies = Replies(
            self.socket, index=child.index, epoch=self.epoch, map_version=child.map_version
        )
        self.inbox = Inbox(self.socket, limits)
        self.publisher = Publisher(sockets.publisher_socket(ctx, child.feed_in_endpoint), self.state, limits)
        self.reads.echo = self.publisher.echo
        self.waiters = Waiters(
            partition_max=limits.waiters_per_partition, client_max=limits.waiters_per_client
        )
        self.parking = Parking(self.waiters, self.reads, self.partition, self.replies.reply_wait)
        self.outboxes = Outboxes(self.state, lambda peer, message: self.replies.send(peer + message))
        self.actors = Actors(self.partition, self.outboxes, self.log, on_welcome=self.replies.welcomed)
        self.questions = self.actors.questions
        self.actor_frames: list[bytes] = []
        self.writes: list[tuple[Pending, int]] = []

    @property
    def degraded(self) -> str | None:
        """Why nothing can be written now."""
        return self.health.reason

    # --- the loop ---

    def recover(self) -> None:
        """Load what is live and active, and settle what a dead node left behind. Routes load later."""
        self._clock()
        try:
            self.recovery.load()
        except StoreError as error:
            if not self.recovery.ready:
                raise
            self.health.failed(error)
        if self.degraded is None:
            self._settle_former_life()

    def _settle_former_life(self) -> None:
        self.partition.begin()
        self.recovery.settle()
        self.recovery.settled = True
        self._commit()
        if self.degraded is not None:
            self.recovery.settled = False  # when the store can be written again

    def serve(self) -> None:
        """Run batches until told to stop, or until the supervisor is gone."""
        control = self.child.control
        poller = sockets.Poller()
        poller.register(self.socket, sockets.POLLIN)
        poller.register(self.publisher.socket, sockets.POLLIN)
        poller.register(control.fileno(), sockets.POLLIN)
        self._clock()
        self._last_stats = counters(self)
        control.send("ready", epoch=self.epoch, pid=os.getpid())
        next_tick = next_ready = self.state.mono
        while not self.stopping:
            ready = dict(poller.poll(self._timeout_ms(min(next_tick, next_ready))))
            self._clock()
            if self.state.mono >= next_ready:
                next_ready = self.state.mono + (READY_S if self.replies.router_boot else READY_S / 10)
                self._ready()
            if control.fileno() in ready:
                messages = control.receive()
                if control.closed:
                    os._exit(1)  # the supervisor is dead: nobody would restart or stop us
                self.stopping = next((m for m in messages if m["t"] == "stop"), None)
            if self.publisher.socket in ready:
                self.publisher.take_subscriptions()
            self._batch()
            if self.state.mono >= next_tick:
                next_tick = self.state.mono + TICK_S
                self._tick()
        self._shut_down()

    def _timeout_ms(self, next_tick: float) -> int:
        upkeep = self.upkeep.busy and self.degraded is None
        if self.inbox.crowded or self.recovery.loading or self.backups.active or upkeep or self.questions:
            return 0
        due = min(next_tick, self.waiters.next_deadline_s() or next_tick)
        if self.upkeep.retention.due_s is not None and self.degraded is None:
            due = min(due, self.upkeep.retention.due_s)
        if self.lazy_since is not None and self.degraded is None:
            due = min(due, self.lazy_since + LAZY_FLUSH_S)
        return max(0, int((due - self.state.mono) * 1000) + 1)

    def _clock(self) -> None:
        self.state.now = time.time()
        self.state.mono = time.monotonic()
        self.partition.boot_ms = clock.boot_ms()

    def _batch(self) -> None:
        """One turn: what waits, bounded and fair."""
        self.partition.begin()
        for frame in self.inbox.turn() if self.replies.has_room() else ():
            if frame[0]:
                self._on_client(frame)
            else:
                self.actor_frames.append(frame)
            if self.replies.full:
                break
        if taken := self.inbox.to_be_told():
            self.replies.took(taken)
        self._decide()
        self._commit()
        self.parking.take_in()
        self.parking.expire(self.state.mono)
        self.questions.answer(self.replies.send)
        self._housekeeping()

    def _on_client(self, frame: bytes) -> None:
        """Answer a read, keep the rest for its turn. Nothing of this batch is decided yet."""
        client = frame[:16]
        (deadline_ms,) = wire.DEADLINE.unpack_from(frame, 16)
        header = wire.Header._make(wire.HEADER.unpack_from(frame, wire.ACTOR_PREFIX_BYTES)[2:])
        size = len(frame) - wire.ACTOR_PREFIX_BYTES
        body = frame[wire.ACTOR_PREFIX_BYTES + wire.HEADER_BYTES :]
        try:
            if header.kind == WAIT:
                self.parking.waits.append((client, header, deadline_ms, body))
                return
            if deadline_ms <= self.state.mono * 1000:
                raise DeadlineExceeded("the time limit passed before the partition took the request")
            calls = wire.decode_calls(body)
            if self.recovery.partial or self.store.unfilled:
                self.recovery.refuse_partial(calls)
            if header.kind == READ:
                body, full = self.partition.read(calls)
                self.replies.reply(client, header.request_id, READ, size, body, MORE if full else 0)
            else:
                pending = Pending(client, header, size, calls, deadline_ms / 1000, self.index)
                self.writes.append((pending, header.done_below))
        except MeshError as error:
            self.replies.refuse(client, header.request_id, header.kind, size, error)

    def _decide(self) -> None:
        for frame in self.actor_frames:
            self.actors.take(frame, writable=self.degraded is None)
        self.actor_frames.clear()
        for pending, done_below in self.writes:
            try:
                body = self._decide_one(pending, done_below)
            except MeshError as error:
                self.replies.refuse(pending.client, pending.request_id, WRITE, pending.size, error)
                continue
            if body == b"":  # in progress: the first one will be answered; this one leaves the count
                self.replies.refuse(pending.client, 0, WRITE, pending.size, MeshError(code="timeout"))
            elif body is not None:
                self.replies.reply(pending.client, pending.request_id, WRITE, pending.size, body,
                                   pending.reply_flags)
        self.writes.clear()
        if self.actors.news and self.degraded is None:
            self.actors.news = False
            self.partition.retry_parked()

    def _decide_one(self, pending: Pending, done_below: int) -> bytes | None:
        if self.degraded is None:
            return self.partition.write(pending, done_below)
        body = self.partition.repeated(pending, done_below)
        if body is None:
            raise StoreError(
                f"this partition cannot write now: {self.degraded}", details={"reason": self.degraded}
            )
        return body

    # --- the commit and what follows it ---

    def _commit(self) -> None:
        state, partition = self.state, self.partition
        partition.resolve()
        if not (state.changed or self.receipts.dirty or partition.route_written or self._lazy_due()):
            self._perform()
            return
        dirty, settled = self.receipts.drain()
        routes = partition.routes.take_dirty()
        config = self.child.config
        power = (state.changed and config.sessions.durability == "power") or (
            partition.route_written and config.routes.durability == "power")
        try:
            self.store.commit(state, routes, dirty, settled, power=power)
        except StoreError as error:
            partition.routes.put_back(routes)
            self._failed(error, dirty)
            return
        self.lazy_since = None
        for pending, body in partition.finish():
            self.replies.reply(pending.client, pending.request_id, pending.kind, pending.size, body,
                               pending.reply_flags)
        self._perform()

    def _lazy_due(self) -> bool:
        if not self.partition.routes.dirty or self.degraded is not None:
            return False
        if self.lazy_since is None:
            self.lazy_since = self.state.mono
        return self.state.mono - self.lazy_since >= LAZY_FLUSH_S

    def _perform(self) -> None:
        """What a commit allows: tell runners, publish, wake who waits."""
        state = self.state
        for (runner, incarnation), answers in self.actors.answers.items():
            self.replies.send(wire.actor_id(mailbox.RUNNER, runner, incarnation) + join_many(answers))
        self.actors.answers.clear()
        if state.commands:
            self.outboxes.add(state.commands)
        self.publisher.publish_batch(self.partition.routes)
        self.parking.take_in()
        if state.events or state.settled:
            self.parking.wake(state.events, state.settled)
        state.end_batch()
        if self.partition.effects:
            effects, self.partition.effects = self.partition.effects, []
            self.backups.begin([e for e in effects if e[0] == "backup"])  # may resolve: in the next batch
            for _, _, part in (e for e in effects if e[0] == "maintenance"):
                self.upkeep.retention.ask(part)

    def _failed(self, error: StoreError, dirty: dict[Key, Receipt]) -> None:
        """The transaction failed: the batch never happened."""
        if error.code == "stale_epoch":
            self.log.write("leaving", why=error.message)
            os._exit(EX_INCONSISTENT)
        try:
            answers = self.partition.fail(error.message, dirty)
        except Exception:  # noqa: BLE001 - memory and disk might differ from here on
            self.log.write("a batch could not be undone", trace=traceback.format_exc())
            os._exit(EX_INCONSISTENT)
        for pending, answer in answers:
            if isinstance(answer, bytes):
                self.replies.reply(pending.client, pending.request_id, pending.kind, pending.size, answer,
                                   pending.reply_flags)
            else:
                self.replies.refuse(pending.client, pending.request_id, pending.kind, pending.size, answer)
        self.actors.answers.clear()
        self.partition.effects.clear()
        self.state.end_batch()
        self.health.failed(error)

    # --- time ---

    def _tick(self) -> None:
        self.child.control.send("beat", lag_ms=0)
        self._last_stats = counters(self)
        guarded = self.actors.guarded
        self.partition.begin()
        if self.degraded is not None:
            self._probe()
        if self.degraded is None:
            guarded(self.partition.ops.tick)
            guarded(self.upkeep.retire_idle)
            guarded(self.partition.queue.start_waiting)
        self.partition.expire_parked()
        self._commit()
        self.outboxes.resend(self.state.mono)
        self.health.unless_damaged(lambda: self.publisher.head(self.reads.head()))
        self.health.unless_refused(self.upkeep.tick)
        guarded(lambda: self.health.tell(self.publisher.tell))

    def _probe(self) -> None:
        """Try whether the store takes a write again; then catch up."""
        if not self.health.probe():
            return
        if not self.recovery.settled:
            self._settle_former_life()
            self.partition.begin()
        if self.degraded is None:
            self.actors.news = True
            self.outboxes.compare_now()
            self.actors.guarded(lambda: self.partition.runners.on_roster(self.state.runners))

    def _housekeeping(self) -> None:
        """Small steps between batches."""
        if self.recovery.loading:
            self.recovery.load_routes()
        if self.backups.active:
            self.partition.begin()
            self.backups.step()
            self._commit()
        due_s = self.upkeep.retention.due_s
        if due_s is not None and self.state.mono >= due_s and self.degraded is None:
            self.partition.begin()
            self.health.unless_refused(self.upkeep.retention.step)
            self._commit()
        self.health.unless_refused(self.upkeep.step)

    def _ready(self) -> None:
        stats = {**self._last_stats, "taken": self.inbox.taken}
        message = ["ready", mailbox.PARTITION.decode(), self.index, self.epoch, os.getpid(), stats]
        self.replies.send(wire.ROUTER_ID + wire.pack(message))

    def _shut_down(self) -> None:
        """Stopped by the supervisor: leave a clean file. When the node stops, the runners are gone: end
        what is live. When it is a restart by hand, they go on."""
        self._batch()
        self.partition.begin()
        self.partition.route_written = True  # what is lazy is written now
        again = bool(self.stopping and self.stopping.get("again"))
        if again:
            self.state.audit.append(own_entry("partition.restart", f"partition-{self.index}", self.state.now))
        for session_id in () if again else list(self.state.live):
            self.live.take_down(self.state.session(session_id), StopReason.SHUTDOWN)
        self._commit()
        self.replies.send(wire.ROUTER_ID + wire.pack(["bye"]))
        self.health.unless_refused(lambda: self.store.save_counters(self.state, self.child.node_boot))
        self.store.close()
        time.sleep(0.02)  # let ZeroMQ's thread put the last messages on the wire; LINGER is 0


def main(child: Child) -> None:
    """Run a partition until it is told to stop."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the control pipe says stop, in the supervisor's order
    try:
        process = PartitionProcess(child)
        process.recover()
    except StoreError as error:
        raise SystemExit(cannot_start(child, error)) from error
    process.serve()


__all__ = ["EX_INCONSISTENT", "PartitionProcess", "main"]
