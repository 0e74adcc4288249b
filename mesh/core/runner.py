"""What a runner remembers about its talk with the partitions: commands taken, batches not yet stored.

Rules of this file:

1. A command is executed once and in order per partition epoch. A gap is not jumped: what lies behind it
   waits until the sender repeats it. A newer epoch counts from 1 again; an older one is not listened to.
2. A batch is encoded once and kept until its number is known to be in the log. It can be sent any number
   of times; ``(run, attempt, n)`` makes the repetition harmless.
3. The bytes of everything that is kept are counted, so that somebody can stop the providers in time.
4. The last batch of an attempt carries its settlement, and nothing follows it.

No sockets, no clock: time comes as an argument, bytes go out as return values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from math import inf
from typing import Any

import msgspec

from mesh.core.frames import Frames
from mesh.core.wire import array_header, pack, repack

#: A batch is cut when it reaches one of these.
BATCH_EVENTS_MAX = 1_024
BATCH_BYTES_MAX = 256 * 1024
#: How much of one run is sent again per look when nothing was acknowledged.
RESEND_BYTES_MAX = 1024 * 1024
RESEND_AFTER_S = 1.0
#: Frames of several batches or messages are at most so large.
FRAME_BYTES = 2 * 1024 * 1024
_BATCH = array_header(6) + pack("batch")
_MANY = array_header(2) + pack("many")
_NIL = pack(None)
_ARRAYS = [array_header(count) for count in range(16)]

#: A run and its attempt: what every batch and every answer names.
Key = tuple[str, int]


class Inbox:
    """The numbered commands of one partition."""

    __slots__ = ("done", "epoch")

    def __init__(self) -> None:
        self.epoch = 0
        self.done = 0

    def heard(self, epoch: int) -> bool:
        """Note the sender's epoch. True when it is newer than all before: its numbers begin at 1."""
        if epoch <= self.epoch:
            return False
        self.epoch, self.done = epoch, 0
        return True

    def take(self, epoch: int, first: int, commands: Sequence[Any]) -> list[Any]:
        """The commands to execute now: those that are new and follow without a gap.

        They count as done at once; acknowledge ``done`` afterwards, also when the list is empty.
        """
        self.heard(epoch)
        if epoch != self.epoch or first > self.done + 1:
            return []
        fresh = list(commands[self.done + 1 - first:])
        self.done += len(fresh)
        return fresh


class Batch(msgspec.Struct, gc=False):
    """One numbered batch, encoded."""

    n: int
    message: bytes
    size: int  #: of its events and its settlement: what is counted
    waits: int  #: what of it counts in the frames of its partition
    made_s: float
    sent_s: float


class RunLog:
    """What one attempt of a run has said and the log has not confirmed."""

    __slots__ = (
        "_note", "_prefix", "batches", "frames", "key", "next_n", "open", "open_bytes", "partition",
        "settlement",
    )

    def __init__(self, key: Key, partition: int, frames: Frames | None = None) -> None:
        self.key = key
        self.partition = partition
        self.frames = frames or Frames()  #: its partition's
        self.next_n = 1
        self.batches: deque[Batch] = deque()
        self.open: list[bytes] = []  #: for the next batch
        self.open_bytes = 0
        self.settlement: bytes | None = None  #: afterwards nothing is accepted
        self._note: Callable[[], bytes] | None = None
        self._prefix = _BATCH + repack(key[0]) + repack(key[1])

    @property
    def kept_bytes(self) -> int:
        """Of everything that is kept."""
        last = len(self.settlement) if self.settlement is not None and self.open else 0
        return sum(batch.size for batch in self.batches) + self.open_bytes + last

    def note(self, report: Callable[[], bytes]) -> None:
        """Have the next batch carry a report of what the run used so far; it is made when the batch is."""
        self._note = report

    def settle(self, settle: bytes) -> None:
        """Give the settlement; it leaves with the last batch, behind the terminal event added last."""
        assert self.settlement is None, "a second settlement"
        assert self.open, "a settlement without its terminal event"
        self.settlement = settle
        self._note = None  # it says as much
        self.frames.bytes += len(settle)

    def close(self, now_s: float) -> list[Batch]:
        """Turn what was added into batches, in order."""
        events, size = self.open, self.open_bytes
        if not events:
            return []
        self.open, self.open_bytes = [], 0
        if size <= BATCH_BYTES_MAX and len(events) <= BATCH_EVENTS_MAX:
            return [self._batch(events, size, True, now_s)]
        return [self._batch(*cut, now_s) for cut in _cut(events)]

    def _batch(self, events: list[bytes], size: int, last: bool, now_s: float) -> Batch:
        report = _NIL
        if last:
            if self.settlement is not None:
                report = self.settlement
                size += len(report)
            elif self._note is not None:
                report, self._note = self._note(), None
        n = self.next_n
        count = len(events)
        header = _ARRAYS[count] if count < 16 else array_header(count)
        message = b"".join((self._prefix, repack(n), header, *events, report))
        batch = Batch(n, message, size, size, now_s, now_s)
        self.batches.append(batch)
        self.next_n = n + 1
        return batch

    def stored(self, n: int) -> int:
        """Forget the batches up to ``n``; how many bytes that was."""
        batches, size, waited = self.batches, 0, 0
        while batches and batches[0].n <= n:
            batch = batches.popleft()
            size += batch.size
            waited += batch.waits
        self.frames.bytes -= waited
        return size

    def drop(self) -> int:
        """Forget everything; how many bytes that was."""
        size = self.kept_bytes
        self.frames.bytes -= size - sum(batch.size - batch.waits for batch in self.batches)
        self.batches.clear()
        self.open, self.open_bytes = [], 0
        return size

    @property
    def finished(self) -> bool:
        """Whether everything, the settlement included, is in the log."""
        return self.settlement is not None and not self.open and not self.batches

    def since(self, n: int, now_s: float) -> list[bytes] | None:
        """The batches from ``n`` on, to be sent again; None when some of them were forgotten."""
        if n < (self.batches[0].n if self.batches else self.next_n):
            return None
        again = [batch for batch in self.batches if batch.n >= n]
        for batch in again:
            batch.sent_s = now_s
        return [batch.message for batch in again]

    def overdue(self, now_s: float) -> list[bytes]:
        """The oldest batches when they were sent long ago, at most ``RESEND_BYTES_MAX`` and at least one."""
        again: list[bytes] = []
        room = RESEND_BYTES_MAX
        for batch in self.batches:
            if now_s - batch.sent_s < RESEND_AFTER_S or room <= 0:
                break
            batch.sent_s = now_s
            self.frames.bytes -= batch.waits  # its partition is not there, or it alone is refused
            batch.waits = 0
            again.append(batch.message)
            room -= len(batch.message)
        return again


def _cut(events: list[bytes]) -> Iterator[tuple[list[bytes], int, bool]]:
    """Cut events into batches within the bounds: (events, bytes, whether it is the last). An event that is
    larger is a batch of its own."""
    batch: list[bytes] = []
    size = 0
    for event in events:
        if batch and (size + len(event) > BATCH_BYTES_MAX or len(batch) == BATCH_EVENTS_MAX):
            yield batch, size, False
            batch, size = [], 0
        batch.append(event)
        size += len(event)
    yield batch, size, True


class Outbox:
    """The logs of all runs of this runner, and what they cost together."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.logs: dict[Key, RunLog] = {}
        self.frames: dict[int, Frames] = {}
        self.bytes = 0

    @property
    def full(self) -> bool:
        """Whether all providers have to wait until something was stored."""
        return self.bytes > self._bytes_max

    def has_room(self, log: RunLog) -> bool:
        """Whether the provider of an attempt may say more."""
        return self.bytes <= self._bytes_max and log.frames.bytes <= log.frames.most

    def begin(self, key: Key, partition: int) -> RunLog:
        """Start the log of an attempt that belongs to ``partition``."""
        frames = self.frames.setdefault(partition, Frames())
        log = self.logs[key] = RunLog(key, partition, frames)
        return log

    def add(self, log: RunLog, event: bytes) -> None:
        """Keep an encoded event; it leaves with the next ``close`` of its log."""
        assert log.settlement is None, "an event after the settlement"
        log.open.append(event)
        size = len(event)
        log.open_bytes += size
        log.frames.bytes += size
        self.bytes += size

    def settle(self, log: RunLog, settle: bytes) -> None:
        """Keep the encoded settlement; the event added last must be the terminal one."""
        log.settle(settle)
        self.bytes += len(settle)

    def close(self, log: RunLog, now_s: float) -> list[bytes]:
        """The messages of a log's new batches."""
        return [batch.message for batch in log.close(now_s)]

    def frame(self, partition: int, logs: Iterable[RunLog], now_s: float) -> list[bytes]:
        """The new batches of many logs of a partition, in as few messages as may be."""
        entries = [(log, batch) for log in logs for batch in log.close(now_s)]
        messages = [batch.message for _, batch in entries]
        frames = self.frames.setdefault(partition, Frames())
        if sum(map(len, messages)) <= FRAME_BYTES:
            return [frames.encode(messages, entries, now_s)] if messages else []
        made, at = [], 0
        for group in groups(messages, FRAME_BYTES):
            made.append(frames.encode(group, entries[at:at + len(group)], now_s))
            at += len(group)
        return made

    def framed(self, partition: int, number: int, missing: Collection[int], now_s: float) -> list[Key]:
        """A frame was answered: forget what is stored. Returns the attempts that ended here with it."""
        frames = self.frames.get(partition)
        entries = () if frames is None else frames.answered(number, missing, now_s)
        return [log.key for log, batch in entries if self._stored(log, batch.n)]

    def stored(self, key: Key, n: int) -> bool:
        """Batch ``n`` and all below are in the log. True when that ends the attempt here."""
        log = self.logs.get(key)
        return log is not None and self._stored(log, n)

    def _stored(self, log: RunLog, n: int) -> bool:
        stored = log.stored(n)
        self.bytes -= stored
        if log.settlement is not None and stored and log.finished:
            del self.logs[log.key]
            return True
        return False

    def drop(self, key: Key) -> None:
        """Forget an attempt that is over elsewhere (fenced, or superseded)."""
        log = self.logs.pop(key, None)
        if log is not None:
            self.bytes -= log.drop()

    def of_partition(self, partition: int | None, now_s: float) -> list[tuple[int, list[bytes]]]:
        """Everything unconfirmed of one partition (None: of all), because its mailbox may have lost it."""
        for index, frames in self.frames.items():
            if partition in (None, index):
                frames.forget(inf)
        return [
            (log.partition, log.since(log.batches[0].n, now_s) or [])
            for log in self.logs.values()
            if log.batches and (partition is None or log.partition == partition)
        ]

    def unstored(self, since_s: float) -> list[Key]:
        """The attempts that still produce, though what they said before that time is not stored."""
        return [
            key for key, log in self.logs.items()
            if log.batches and log.batches[0].made_s <= since_s and log.settlement is None
        ]

    def overdue(self, now_s: float) -> list[tuple[int, list[bytes]]]:
        """What was sent and not confirmed for ``RESEND_AFTER_S``."""
        for frames in self.frames.values():
            frames.forget(now_s - RESEND_AFTER_S)
        return [
            (log.partition, again)
            for log in self.logs.values()
            if log.batches and (again := log.overdue(now_s))
        ]


def encode_event(code: int, ts: float, fragment: bytes) -> bytes:
    """One ``[type code, ts, fragment]`` of a batch."""
    return repack((code, ts, fragment))


def join_many(messages: Sequence[bytes]) -> bytes:
    """One message from several encoded ones."""
    return messages[0] if len(messages) == 1 else b"".join((_MANY, array_header(len(messages)), *messages))


def groups(messages: Sequence[bytes], bytes_max: int) -> Iterator[list[bytes]]:
    """Cut messages into groups of at most ``bytes_max``; a larger one stands alone."""
    group: list[bytes] = []
    size = 0
    for message in messages:
        if group and size + len(message) > bytes_max:
            yield group
            group, size = [], 0
        group.append(message)
        size += len(message)
    if group:
        yield group


__all__ = [
    "BATCH_BYTES_MAX", "BATCH_EVENTS_MAX", "FRAME_BYTES", "RESEND_AFTER_S", "RESEND_BYTES_MAX", "Batch",
    "Inbox", "Key", "Outbox", "RunLog", "encode_event", "groups", "join_many",
]
