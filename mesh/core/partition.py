"""One batch of a partition: requests in, decisions, then writes, replies, publications and commands out.

Rules of this file:

1. Reads of a batch are answered first, against memory and store as the last commit left them; writes are
   decided after them, in order of arrival, and answered after the commit. So nobody ever sees what is not
   committed, and reads never wait for the disk. (Order is promised for calls awaited one after another, and
   inside one list: both hold.)
2. An exception in one call undoes that call alone. A ``MeshError`` is its answer; anything else is our bug:
   ``internal_error``, with the traceback in the log.
3. A write payload is answered whole: when a call waits for something (a run to settle), its part stays open
   and the rest is kept in the receipt.
4. If the transaction fails, the batch never happened: every write payload in it is refused with
   ``store_unavailable`` and the memory is put back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mesh.core import wire
from mesh.core.live import Live, NoRunner
from mesh.core.receipts import Receipt, Receipts
from mesh.core.routes import RouteTable
from mesh.core.session_ops import SessionOps
from mesh.core.slots import route_slot, session_slot
from mesh.core.state import State
from mesh.errors import DeadlineExceeded, InvalidArgument, MeshError, StoreError, Unavailable

#: A call that waits for a runner is given up at its payload's deadline, or after this time.
PARKED_S_MAX = 30.0
PARKED_MAX = 10_000


class Pending:
    """A write payload on its way to its answer."""

    __slots__ = ("calls", "client", "deadline_s", "kind", "number", "parts", "refused", "request_id", "size")

    def __init__(
        self, client: bytes, header: wire.Header, size: int, calls: list[Any], deadline_s: float
    ) -> None:
        self.client = client
        self.request_id = header.request_id
        self.number = header.number
        self.kind = header.kind
        self.size = size
        self.calls = calls
        self.parts: list[bytes | None] = [None] * len(calls)
        self.deadline_s = deadline_s
        self.refused = False


class PartOf:
    """The place of one answer in a pending payload."""

    __slots__ = ("_index", "_state", "pending")

    def __init__(self, state: State, pending: Pending, index: int) -> None:
        self._state = state
        self._index = index
        self.pending = pending

    def resolve(self, answer: bytes) -> None:
        """Give the answer; it leaves with this batch's commit."""
        self._state.resolutions.append((self.pending, self._index, answer))


class Partition:
    """The deciding half of a partition. The shell feeds it, commits, and sends what it returns."""

    def __init__(
        self, state: State, routes: RouteTable, live: Live, ops: SessionOps, receipts: Receipts, *,
        reads: dict[str, Callable[[list[Any], int], bytes]], slot_map: bytes, index: int,
        log_bug: Callable[[str], None],
    ) -> None:
        self.state = state
        self.routes = routes
        self.live = live
        self.ops = ops
        self.receipts = receipts
        self.slot_map = slot_map
        self.index = index
        self.log_bug = log_bug
        self.boot_ms = 0
        self.batch_mark = state.mark()
        self.route_written = False
        self.pending: list[Pending] = []  #: decided in this batch and complete
        self.open: dict[tuple[bytes, int], Pending] = {}  #: waiting for something
        self.parked: list[tuple[Pending, int, float]] = []
        self.effects: list[tuple[str, Any, PartOf]] = []
        self.reads = {
            "route.get": routes.get, "route.resolve": routes.resolve, "route.get_many": routes.get_many,
            "route.resolve_many": routes.resolve_many, "route.list": routes.list, **reads,
        }
        self.route_writes: dict[str, Callable[[list[Any], int, list[Any]], bytes]] = {
            "route.set": self._set, "route.delete": self._delete, "route.set_many": routes.set_many,
            "route.prune": routes.prune,
        }
        self.writes = {**ops.writes, "partition.backup": self._backup}

    # --- reads ---

    def read(self, calls: list[Any]) -> bytes:
        """Answer the calls of a READ payload: the body of the reply."""
        parts = []
        now_ms = self.boot_ms
        for op, args in calls:
            try:
                parts.append(self.reads[op](args, now_ms))
            except MeshError as error:
                parts.append(wire.failure(error))
            except KeyError:
                parts.append(self._unknown(op) if op not in self.reads else self._bug(op))
            except Exception:  # noqa: BLE001 - one of the two places that catch broadly: a bug harms one call
                parts.append(self._bug(op))
        return wire.join_replies(parts)

    def _unknown(self, op: str) -> bytes:
        known = op in self.writes or op in self.route_writes or op in self.reads
        why = "it is of another kind" if known else "see the catalogue"
        return wire.failure(InvalidArgument(f"unknown op {op!r:.60} for this kind of payload: {why}",
                                            code="unknown_op"))

    def _bug(self, op: str) -> bytes:
        self.log_bug(op)
        return wire.failure(MeshError(f"{op} failed inside the node; its log has the details", code="internal_error"))

    # --- writes ---

    def write(self, pending: Pending, done_below: int) -> bytes | None:
        """Decide a WRITE payload. Returns the body when it was answered before; else None: it is answered
        by ``finish`` after the commit, or later.

        Raises:
            MeshError: the whole payload is refused.
        """
        if pending.deadline_s <= self.state.mono:
            raise DeadlineExceeded("the time limit passed before the partition took the request")
        receipt = self.receipts.admit(pending.client, pending.number, done_below, self.state.mono)
        key = (pending.client, pending.number)
        if receipt is True or key in self.open:
            waiting = self.open.get(key)
            if waiting is not None:
                waiting.request_id = pending.request_id
            return b""
        if isinstance(receipt, Receipt):
            if receipt.complete:
                return wire.join_replies([part for part in receipt.parts if part is not None])
            if len(receipt.parts) == len(pending.parts):
                pending.parts = list(receipt.parts)
        self.receipts.begin(*key)
        self.open[key] = pending
        for index, part in enumerate(pending.parts):
            if part is None:
                self._call(pending, index)
        self._record(pending)
        return None

    def _call(self, pending: Pending, index: int) -> None:
        op, args = pending.calls[index]
        state = self.state
        route_write = self.route_writes.get(op)
        mark = len(state.undo) if route_write is not None else 0
        full_mark = state.mark() if route_write is None else ()
        answer: bytes | None
        try:
            if route_write is not None:
                self.route_written = True
                answer = route_write(args, self.boot_ms, state.undo)
            elif op in self.writes:
                answer = self.writes[op](args, PartOf(state, pending, index))
            else:
                answer = self._unknown(op)
        except NoRunner:
            state.back_to(full_mark)
            answer = self._park(pending, index)
        except MeshError as error:
            self._undo(mark, full_mark)
            answer = wire.failure(error)
        except Exception:  # noqa: BLE001 - see above
            self._undo(mark, full_mark)
            answer = self._bug(op)
        pending.parts[index] = answer

    def _undo(self, mark: int, full_mark: tuple[int, ...]) -> None:
        if full_mark:
            self.state.back_to(full_mark)
        else:
            while len(self.state.undo) > mark:
                self.state.undo.pop()()

    def _park(self, pending: Pending, index: int) -> bytes | None:
        """Nobody can host the session now: try again when the runners change."""
        if len(self.parked) >= PARKED_MAX:
            return wire.failure(Unavailable("no runner is ready", code="session_unavailable"))
        self.parked.append((pending, index, min(pending.deadline_s, self.state.mono + PARKED_S_MAX)))
        return None

    def retry_parked(self) -> None:
        """Try the calls that wait for a runner once more; give up those whose time is over."""
        parked, self.parked = self.parked, []
        for pending, index, deadline_s in parked:
            if pending.refused:
                continue
            if deadline_s <= self.state.mono:
                error = Unavailable("no runner was ready in time; see: mesh status", code="session_unavailable")
                self.state.resolutions.append((pending, index, wire.failure(error)))
                continue
            self._call(pending, index)
            answer = pending.parts[index]
            if answer is not None:
                pending.parts[index] = None
                self.state.resolutions.append((pending, index, answer))

    def _record(self, pending: Pending) -> None:
        """Write the receipt of what is answered; a complete payload leaves after the commit."""
        self.receipts.record(pending.client, pending.number, Receipt(tuple(pending.parts)))
        if None not in pending.parts:
            self.open.pop((pending.client, pending.number), None)
            self.pending.append(pending)

    def resolve(self) -> None:
        """Fill the parts that were answered in this batch, before it is committed."""
        for pending, index, answer in self.state.resolutions:
            if pending.refused or pending.parts[index] is not None:
                continue
            pending.parts[index] = answer
            self._record(pending)

    # --- the two ends of a batch ---

    def begin(self) -> None:
        """A new batch: this is what a failing transaction goes back to."""
        self.batch_mark = self.state.mark()
        self.route_written = False

    def finish(self) -> list[tuple[Pending, bytes]]:
        """After the commit: the answers that may leave."""
        done = [(p, wire.join_replies([part for part in p.parts if part is not None])) for p in self.pending]
        self.pending = []
        return done

    def fail(
        self, reason: str, dirty: dict[tuple[bytes, int], Receipt]
    ) -> list[tuple[Pending, StoreError]]:
        """The transaction failed: put everything back and refuse the payloads whose receipts were in it."""
        resolved = list(self.state.resolutions)
        self.state.back_to(self.batch_mark)
        refused = {id(p): p for p in self.pending}
        for key in dirty:
            pending = self.open.pop(key, None)
            if pending is not None:
                refused[id(pending)] = pending
            self.receipts.undo(*key)
        for pending, index, _ in resolved:
            pending.parts[index] = None
        for pending in refused.values():
            pending.refused = True
        self.pending = []
        error = StoreError(f"the store refused the write: {reason}", details={"reason": reason})
        return [(pending, error) for pending in refused.values()]

    # --- the partition's own ops ---

    def owns_route(self, key: Any) -> None:
        """Refuse a key that another partition owns: a client with a wrong hash would lose it there.

        Raises:
            InvalidArgument: ``invalid_argument``.
        """
        if type(key) is str and self.slot_map[route_slot(key)] != self.index:
            raise InvalidArgument(f"key {key!r:.80} belongs to partition {self.slot_map[route_slot(key)]}",
                                  code="invalid_argument")

    def owns_session(self, session_id: str) -> bool:
        """Whether the session's slot is ours."""
        return self.slot_map[session_slot(session_id)] == self.index

    def _set(self, args: list[Any], now_ms: int, undo: list[Any]) -> bytes:
        if args:
            self.owns_route(args[0])
        return self.routes.set(args, now_ms, undo)

    def _delete(self, args: list[Any], now_ms: int, undo: list[Any]) -> bytes:
        if args:
            self.owns_route(args[0])
        return self.routes.delete(args, now_ms, undo)

    def _backup(self, args: list[Any], part: PartOf) -> bytes | None:
        if len(args) != 1 or type(args[0]) is not str or not args[0]:
            raise InvalidArgument("backup takes one argument: a folder on the node's machine")
        self.effects.append(("backup", args[0], part))
        return None


__all__ = ["PARKED_MAX", "PARKED_S_MAX", "PartOf", "Partition", "Pending"]
