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
4. If the transaction fails, the batch never happened: the memory is put back and every write payload in
   it is refused with ``store_unavailable``. Where an earlier batch committed some of its parts already,
   those keep their answer and the others get that error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mesh.core import wire
from mesh.core.access import AS, NEEDS, NODE, SHOWING, Credentials, envelope, unwrapped
from mesh.core.audit import AUDITED, entries
from mesh.core.live import NoRunner
from mesh.core.moved import elsewhere
from mesh.core.pending import ASK_AGAIN, REPLY_BYTES_MAX, PartOf, Pending, too_much, was_cut
from mesh.core.receipts import Key, Receipt, Receipts
from mesh.core.routes import RouteTable
from mesh.core.session_ops import SessionOps
from mesh.core.slots import RUN_ID, route_slot, run_slot, session_slot
from mesh.core.state import State
from mesh.errors import DeadlineExceeded, InvalidArgument, MeshError, StoreError, Unavailable, shown

#: A call that waits for a runner is given up at its payload's deadline, or after this time.
PARKED_S_MAX = 30.0
PARKED_MAX = 10_000


class Partition:
    """The deciding half of a partition. The shell feeds it, commits, and sends what it returns."""

    def __init__(
        self, state: State, routes: RouteTable, ops: SessionOps, receipts: Receipts, *,
        reads: dict[str, Callable[[list[Any], int], bytes]], slot_map: bytes, index: int,
        log_bug: Callable[[str], None],
    ) -> None:
        self.state = state
        self.routes = routes
        self.live, self.queue, self.runners = ops.live, ops.queue, ops.runners
        self.ops = ops
        self.receipts = receipts
        self.slot_map = slot_map
        self.index = index
        self.log_bug = log_bug
        self.boot_ms = 0
        self.batch_mark = state.mark()
        self.route_written = False
        self.complete: dict[Key, Pending] = {}  #: to be answered after the commit
        self.open: dict[Key, Pending] = {}  #: waiting for something
        self.parked: list[tuple[Pending, int, float]] = []
        self.effects: list[tuple[str, Any, PartOf]] = []
        self.reads: dict[str, Callable[[list[Any], int], bytes]] = {
            "route.get": routes.get, "route.resolve": routes.resolve, "route.get_many": routes.get_many,
            "route.resolve_many": routes.resolve_many, "route.list": routes.list, AS: self._read_as,
            "budget.used": self.runners.spent.read,
        }
        self.add_reads(reads)
        self.route_writes: dict[str, Callable[[list[Any], int, list[Any]], bytes]] = {
            "route.set": routes.set, "route.delete": routes.delete, "route.set_many": routes.set_many,
            "route.prune": routes.prune,
        }
        self.writes = {
            **ops.driving.guarded_writes(ops.writes), "partition.backup": self._backup,
            "maintenance.run": self._maintenance, AS: self._write_as,
        }
        routes.check_owner, routes.on_bug = self._check_owner, self.bug
        ops.owns = ops.importing.owns = self.owns_session

    # --- with credentials ---

    def _write_as(self, args: list[Any], part: PartOf) -> bytes | None:
        credentials, op, inner = envelope(args)
        if op not in self.writes:
            return self._unknown(op)
        part.pending.audited = part.pending.audited or op in AUDITED
        with self.ops.driving.presenting(credentials):
            return self.writes[op](inner, part)

    def _read_as(self, args: list[Any], _now: int) -> bytes:
        credentials, op, inner = envelope(args)
        if op not in NEEDS and op not in SHOWING:
            return self._unknown(op)
        with self.ops.driving.presenting(credentials):
            return self.read_one(op, inner)

    def read_inside(self, op: str, args: list[Any]) -> bytes:
        """Answer one read of the node itself. For a run it sees all of the run's session; of the original of
        a fork (a call with credentials) what the fork's maker was allowed to see."""
        shown_by = Credentials(proof=args[0]) if op == AS else NODE
        op, args = unwrapped(op, args) if op == AS else (op, args)
        with self.ops.driving.presenting(shown_by):
            return self.read_one(op, args)

    # --- reads ---

    def add_reads(self, table: dict[str, Callable[[list[Any], int], bytes]]) -> None:
        """Answer these reads, too; those of one session are refused to whom it does not open."""
        self.reads.update(self.ops.driving.guarded_reads(table))

    def read(self, calls: list[Any]) -> tuple[bytes, bool]:
        """Answer the calls of a READ payload: the body of the reply, and whether some found no room in it.

        Calls of many callers may share a payload: what would fit alone is to be asked again.
        """
        parts: list[bytes] = []
        size, full = 0, False
        for op, args in calls:
            answer = self.read_one(op, args) if not full else b""
            if size + len(answer) > REPLY_BYTES_MAX:
                full, answer = bool(parts), _TOO_MUCH
            parts.append(ASK_AGAIN if full else answer)
            size += len(parts[-1])
        return wire.join_replies(parts), full or (size > _CUT_FROM and was_cut(parts))

    def read_one(self, op: str, args: list[Any]) -> bytes:
        """Answer one read."""
        handler = self.reads.get(op)
        if handler is None:
            return self._unknown(op)
        try:
            return handler(args, self.boot_ms)
        except MeshError as error:
            return wire.failure(error)
        except Exception:  # noqa: BLE001 - one of the few places that catch broadly: a bug harms one call
            return self.bug(op)

    def _unknown(self, op: str) -> bytes:
        known = op in self.writes or op in self.route_writes or op in self.reads
        why = "it is of another kind" if known else "see the catalogue"
        return wire.failure(InvalidArgument(f"unknown op {shown(op, 60)} for this kind of payload: {why}",
                                            code="unknown_op"))

    def bug(self, op: str) -> bytes:
        """The answer of a call that failed through our own fault; call it inside ``except``."""
        self.log_bug(op)
        return wire.failure(
            MeshError(f"{op} failed inside the node; its log has the details", code="internal_error")
        )

    # --- writes ---

    def write(self, pending: Pending, done_below: int) -> bytes | None:
        """Decide a WRITE payload. Returns the body when it was answered before, nothing (``b""``) when it is
        being worked on; else None: it is answered by ``finish`` after the commit, or later.

        Raises:
            MeshError: the whole payload is refused.
        """
        if pending.deadline_s <= self.state.mono:
            raise DeadlineExceeded("the time limit passed before the partition took the request")
        key = pending.key
        waiting = self.open.get(key) or self.complete.get(key)
        if waiting is not None:
            waiting.request_id = pending.request_id
            return b""
        receipt = self.receipts.admit(*key, done_below, self.state.mono)
        if isinstance(receipt, Receipt):
            if receipt.complete:
                return self._again(receipt)
            self._resume(pending, receipt)
        self.receipts.begin(*key)
        self.open[key] = pending
        for index, part in enumerate(pending.parts):
            if part is not None:
                continue
            if pending.moved and self._is_elsewhere(*pending.calls[index]):
                pending.parts[index] = wire.failure(elsewhere())
            else:
                self._call(pending, index)
        self._record(pending)
        return None

    def repeated(self, pending: Pending, done_below: int) -> bytes | None:
        """The body of a payload that was answered before, while nothing can be written, or None."""
        if pending.key in self.open:
            return None
        receipt = self.receipts.admit(*pending.key, done_below, self.state.mono)
        return self._again(receipt) if isinstance(receipt, Receipt) and receipt.complete else None

    def _again(self, receipt: Receipt) -> bytes:
        return wire.join_replies([part for part in receipt.parts if part is not None])

    def _resume(self, pending: Pending, receipt: Receipt) -> None:
        """An earlier incarnation committed some parts: only the others are executed."""
        if len(receipt.parts) != len(pending.parts):
            raise InvalidArgument(f"request number {pending.number} came before, with other calls")
        pending.parts = list(receipt.parts)
        pending.answer_bytes = sum(len(part) for part in receipt.parts if part is not None)

    def _call(self, pending: Pending, index: int, parked_until_s: float | None = None) -> None:
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
                if pending.held and _scope(op, args) in pending.held:
                    raise NoRunner
                if op in AUDITED:
                    pending.audited = True
                answer = self.writes[op](args, PartOf(state, pending, index))
            else:
                answer = self._unknown(op)
            if answer is not None and not pending.fits(answer):
                raise too_much()
        except NoRunner:
            self._undo(mark, full_mark)
            answer = self._park(pending, index, parked_until_s)
        except MeshError as error:
            self._undo(mark, full_mark)
            answer = wire.failure(error)
        except Exception:  # noqa: BLE001 - see above
            self._undo(mark, full_mark)
            answer = self.bug(op)
        pending.parts[index] = answer

    def _undo(self, mark: int, full_mark: tuple[int, ...]) -> None:
        if full_mark:
            self.state.back_to(full_mark)
        else:
            self.state.undo_to(mark)

    def _park(self, pending: Pending, index: int, until_s: float | None) -> bytes | None:
        """Nobody can host the session now: try again when the runners change."""
        if len(self.parked) >= PARKED_MAX:
            return wire.failure(Unavailable("no runner is ready", code="session_unavailable"))
        if until_s is None:
            until_s = min(pending.deadline_s, self.state.mono + PARKED_S_MAX)
        self.parked.append((pending, index, until_s))
        scope = _scope(*pending.calls[index])
        if scope is not None:
            pending.held.add(scope)
        return None

    def retry_parked(self) -> None:
        """The runners changed: try the calls that wait for one once more, in their order; those whose runner
        is down are told."""
        self.expire_parked()
        if not any(entry.state in ("ready", "down") for entry in self.state.runners.values()):
            return
        parked, self.parked = self.parked, []
        for pending, _, _ in parked:
            pending.held = set()
        for pending, index, until_s in parked:
            counted = pending.answer_bytes
            self._call(pending, index, until_s)
            answer, pending.parts[index] = pending.parts[index], None
            pending.answer_bytes = counted  # ``resolve`` counts it
            if answer is not None:
                self.state.resolutions.append((pending, index, answer))

    def expire_parked(self) -> None:
        """Give up the parked calls whose time is over."""
        parked, self.parked = self.parked, []
        for pending, index, until_s in parked:
            if pending.over:
                continue
            if until_s > self.state.mono:
                self.parked.append((pending, index, until_s))
                continue
            error = Unavailable("no runner was ready in time; see: mesh status", code="session_unavailable")
            self.state.resolutions.append((pending, index, wire.failure(error)))

    def _record(self, pending: Pending) -> None:
        """Write the receipt of what is answered; a complete payload leaves after the commit."""
        self.receipts.record(*pending.key, tuple(pending.parts))
        if None not in pending.parts:
            self.open.pop(pending.key, None)
            self.complete[pending.key] = pending

    def resolve(self) -> None:
        """Fill the parts that were answered in this batch, before it is committed."""
        for pending, index, answer in self.state.resolutions:
            if pending.over or pending.parts[index] is not None:
                continue
            if not pending.fits(answer):
                answer = wire.failure(too_much())
            pending.parts[index] = answer
            self._record(pending)
        for pending in self.complete.values():
            if pending.audited:
                state = self.state
                state.audit += entries(pending.client, pending.calls, pending.parts, state.now)

    # --- the two ends of a batch ---

    def begin(self) -> None:
        """A new batch: this is what a failing transaction goes back to."""
        self.batch_mark = self.state.mark()
        self.route_written = False

    def finish(self) -> list[tuple[Pending, bytes]]:
        """After the commit: the answers that may leave."""
        self.receipts.committed()
        done = [(pending, pending.body()) for pending in self.complete.values()]
        for pending, _ in done:
            pending.over = True
        self.complete = {}
        return done

    def fail(self, reason: str, dirty: dict[Key, Receipt]) -> list[tuple[Pending, bytes | StoreError]]:
        """The transaction failed: put everything back, and answer the payloads whose receipts were in it."""
        self.state.back_to(self.batch_mark)
        error = StoreError(f"the store refused the write: {reason}", details={"reason": reason})
        answers: list[tuple[Pending, bytes | StoreError]] = []
        for key in dirty:
            pending = self.open.pop(key, None) or self.complete.pop(key, None)
            former = self.receipts.undo(*key)
            if pending is None:
                continue
            pending.over = True
            if former is None:
                answers.append((pending, error))
                continue
            refused = wire.failure(error)
            pending.parts = [refused if part is None else part for part in former.parts]
            answers.append((pending, pending.body()))
        self.complete = {}
        return answers

    # --- the partition's own ops ---

    def _check_owner(self, key: str) -> None:
        """Refuse a key that another partition owns: a client with a wrong hash would lose it there."""
        if self.slot_map[route_slot(key)] != self.index:
            raise elsewhere()

    def _is_elsewhere(self, op: str, args: list[Any]) -> bool:
        slot = _scope(op, args)
        return slot is not None and self.slot_map[slot] != self.index

    def owns_session(self, session_id: str) -> bool:
        """Whether the session's slot is ours."""
        return self.slot_map[session_slot(session_id)] == self.index

    def _backup(self, args: list[Any], part: PartOf) -> bytes | None:
        if len(args) != 1 or type(args[0]) is not str or not args[0]:
            raise InvalidArgument("backup takes one argument: a folder on the node's machine")
        self.effects.append(("backup", args[0], part))
        return None

    def _maintenance(self, args: list[Any], part: PartOf) -> bytes | None:
        if args:
            raise InvalidArgument(f"expected no arguments, not {len(args)}")
        self.effects.append(("maintenance", None, part))
        return None


def _scope(op: str, args: list[Any]) -> int | None:
    """The slot that a call on a session or a run is about: calls of one list stay in order there."""
    op, args = unwrapped(op, args) if op == AS else (op, args)
    if args and type(args[0]) is str:
        if op.startswith("session."):
            return session_slot(args[0])
        if op.startswith("run.") and RUN_ID.match(args[0]):
            return run_slot(args[0])
    return None


_TOO_MUCH = wire.failure(too_much())
#: Less than this no list is cut.
_CUT_FROM = 64 * 1024

__all__ = ["PARKED_MAX", "PARKED_S_MAX", "Partition"]
