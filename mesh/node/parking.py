"""Parked reads of a partition: taken in, woken after a commit, answered empty in the end.

Rules of this file:

1. A WAIT payload holds any number of calls, and each is answered as soon as there is something to say: what
   one commit settled leaves together, in one reply with Flag.MORE until the last call has its answer.
2. Who waits for a run may have its events with it. They come from memory where its session's log began while
   somebody waited (``tails.py``), else from the store; where they are too many they are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mesh.core import run as runs
from mesh.core import wire
from mesh.core.access import AS, envelope
from mesh.core.events import TYPE_CODE
from mesh.core.partition import Partition
from mesh.core.records import TERMINAL
from mesh.core.run import RunState
from mesh.core.state import EventRow, Work
from mesh.core.waiting import Group, Waiter, Waiters
from mesh.errors import InvalidArgument, MeshError, NotFound, RemoteProtocolError
from mesh.node.reads import Reads, checked_filters, encode_events, encode_rows, seen
from mesh.node.tails import Tails
from mesh.store.sqlite import StoredEvent

_EMPTY_EVENTS = wire.OK + b"\x92\x90\xc3"
_DRAINED = wire.ok([0, 0])
_ACCESS_CHANGED = TYPE_CODE["access_changed"]
MORE = int(wire.Flag.MORE)
#: What ``run.wait`` may bring along: the events of the run, or of its whole session.
WITH_EVENTS = (None, "run", "session")


class Parking:
    """WAIT payloads."""

    def __init__(
        self, waiters: Waiters, reads: Reads, partition: Partition,
        reply: Callable[[bytes, int, int, bytes], None],
    ) -> None:
        self.waiters = waiters
        self.reads = reads
        self.state = reads.state
        self.partition = partition
        self.tails = Tails()
        #: WAIT payloads of this turn: (client, header, deadline_ms, body)
        self.waits: list[tuple[bytes, wire.Header, int, bytes]] = []
        self._reply = reply
        self._answered: dict[Group, None] = {}

    def take_in(self) -> None:
        """After a commit and before ``wake``: what it made is seen, and what it appended will be heard."""
        for wait in self.waits:
            self.on_wait(*wait)
        self.waits.clear()

    def on_wait(self, client: bytes, header: wire.Header, deadline_ms: int, body: bytes) -> None:
        """Answer at once what there is to say, and park the rest until there is, or time is over."""
        try:
            calls = wire.decode_calls(body)
            if not calls:
                raise RemoteProtocolError("a WAIT payload holds at least one call")
        except MeshError as error:
            self._answer(Group(client, header.request_id, 1), 0, wire.failure(error))
            self.flush()
            return
        group = Group(client, header.request_id, len(calls))
        deadline_s = min(deadline_ms / 1000, self.state.mono + wire.WAIT_MS_MAX / 1000)
        for index, (op, args) in enumerate(calls):
            try:
                answer = self._look(Waiter(group, index, deadline_s), op, args)
            except MeshError as error:
                answer = wire.failure(error)
            except Exception:  # noqa: BLE001 - as in ``Partition.read_one``: a bug harms one call
                answer = self.partition.bug(op)
            if answer is not None:
                self._answer(group, index, answer)
        self.flush()

    def _look(self, waiter: Waiter, op: str, args: list[Any]) -> bytes | None:
        """What there is to say now; None when the read was parked."""
        if op == AS:
            credentials, op, args = envelope(args)
            with self.partition.ops.driving.presenting(credentials):
                return self._look(waiter, op, args)
        self.partition.ops.driving.check(op, args)
        if op == "session.wait":
            return self._session_wait(waiter, args)
        if op == "run.wait":
            return self._run_wait(waiter, args)
        if op in ("session.drain", "partition.drain"):
            return self._drain(waiter, op, args)
        raise InvalidArgument(f"unknown op {op!r:.60} for a WAIT payload", code="unknown_op")

    def _session_wait(self, waiter: Waiter, args: list[Any]) -> bytes | None:
        if len(args) != 2:
            raise InvalidArgument(f"expected 2 arguments, not {len(args)}")
        filters = checked_filters(args[1])
        session = seen(self.state, args[0])
        waiter.key, waiter.filters, waiter.seen = ("session", session.id), filters, session.seq
        if (filters.get("after") or 0) < session.seq:
            found, complete = self.reads.find(session.id, session.n, filters)
            if found:
                return wire.OK + encode_events(session.id, found, complete, session.pruned_to)
        self.waiters.park(waiter)
        return None

    def _run_wait(self, waiter: Waiter, args: list[Any]) -> bytes | None:
        if not 1 <= len(args) <= 2:
            raise InvalidArgument(f"expected 1 or 2 arguments, not {len(args)}")
        events = args[1] if len(args) == 2 else None
        if events not in WITH_EVENTS:
            raise InvalidArgument(f"events must be nil, 'run' or 'session', not {events!r:.60}")
        waiter.key, waiter.filters = ("run", args[0]), {"events": events}
        try:
            run = self.state.run(args[0])
        except NotFound:
            if not self.partition.parked:  # else the run may be one of those that wait for a runner
                raise
        else:
            if run.status in TERMINAL:
                return self._ended(run, events, None)
            waiter.filters["session"] = run.session_id
        self.waiters.park(waiter)
        if events is not None and "session" in waiter.filters:
            self.tails.begin(run.session_id, waiter)
        return None

    def _ended(self, run: RunState, events: str | None, rows: list[EventRow] | None) -> bytes:
        """A terminal run, with its events if they were wanted and are not too many."""
        values = runs.to_wire(run, self.state.redactor)
        if events is None:
            return wire.ok(values)
        session = self.state.session(run.session_id)
        run_id = run.id if events == "run" else None
        found: list[EventRow] | list[StoredEvent]
        if rows is not None and len(rows) == session.seq:
            found = rows if run_id is None else [row for row in rows if row.run_id == run_id]
        else:
            found, complete = self.reads.find(session.id, session.n, {"codes": (), "run_id": run_id})
            if not complete:
                return wire.ok(values)
        pairs = wire.repack(values)[len(wire.map_header(len(values))):]
        header = wire.map_header(len(values) + 1)
        return b"".join((wire.OK, header, pairs, b"\xa6events", encode_rows(session.id, found)))

    def wake(self, events: list[EventRow], settled: list[str]) -> None:
        """After a commit: answer who waited for these events or runs."""
        if len(self.waiters) == 0:
            return
        by_session: dict[str, list[EventRow]] = {}
        for event in events:
            if event.type == _ACCESS_CHANGED:
                self._ask_again(event.session_id)
            rows = by_session.get(event.session_id)
            if rows is None:
                by_session[event.session_id] = [event]
            else:
                rows.append(event)
        for session_id, rows in by_session.items():
            for waiter in self.waiters.of(("session", session_id)):
                found, complete = self.reads.matching(rows, waiter.filters, waiter.seen)
                if found:
                    self._finish(waiter, wire.OK + encode_events(session_id, found, complete))
            self.tails.extend(session_id, rows)
        for run in map(self.state.run, settled):
            self._wake_drained(run.session_id)
            for waiter in self.waiters.of(("run", run.id)):
                self._finish_run(waiter, run)
        self.flush()

    def _ask_again(self, session_id: str) -> None:
        """Its token changed: who waits is answered empty, and shows what he has when he parks again."""
        for waiter in self.waiters.about(session_id):
            if "session" in waiter.filters:
                self.tails.end(session_id, waiter)
            self._finish(waiter, wire.OK_NIL if waiter.key[0] == "run" else _EMPTY_EVENTS)

    def _drain(self, waiter: Waiter, op: str, args: list[Any]) -> bytes | None:
        wanted = 1 if op == "session.drain" else 0
        if len(args) != wanted:
            raise InvalidArgument(f"expected {wanted} arguments, not {len(args)}")
        scope = self.state.session(args[0]).id if args else ""
        if self._is_drained(scope):
            return _DRAINED
        waiter.key = ("drain", scope)
        self.waiters.park(waiter)
        return None

    def _is_drained(self, scope: str) -> bool:
        if scope:
            return self.state.work_of(scope) == Work()
        return not (self.state.work or self.partition.parked)

    def _left(self, scope: str) -> bytes:
        """How many runs execute and wait."""
        works = [self.state.work_of(scope)] if scope else list(self.state.work.values())
        return wire.ok([sum(len(work.running) for work in works), sum(len(work.waiting) for work in works)])

    def _wake_drained(self, session_id: str) -> None:
        for scope in (session_id, ""):
            waiters = self.waiters.of(("drain", scope))
            if waiters and self._is_drained(scope):
                for waiter in waiters:
                    self._finish(waiter, _DRAINED)

    def _finish_run(self, waiter: Waiter, run: RunState) -> None:
        events = waiter.filters["events"]
        rows = self.tails.end(run.session_id, waiter) if events is not None else None
        try:
            answer = self._ended(run, events, rows)
        except MeshError as error:
            answer = wire.failure(error)
        self._finish(waiter, answer)

    def _finish(self, waiter: Waiter, part: bytes) -> None:
        self.waiters.finish(waiter)
        self._answer(waiter.group, waiter.index, part)

    def expire(self, now_s: float) -> None:
        """Answer empty whose time is over."""
        for waiter in self.waiters.expired(now_s):
            if "session" in waiter.filters:
                self.tails.end(waiter.filters["session"], waiter)
            kind, scope = waiter.key
            if kind == "drain":
                self._finish(waiter, self._left(scope))
            else:
                self._finish(waiter, wire.OK_NIL if kind == "run" else _EMPTY_EVENTS)
        self.flush()

    # --- replies ---

    def _answer(self, group: Group, index: int, part: bytes) -> None:
        group.add(index, part)
        self._answered[group] = None
        if group.bytes > self.reads.page_bytes:
            self._send(group)

    def flush(self) -> None:
        """Send what was answered: one reply for each payload."""
        for group in list(self._answered):
            self._send(group)

    def _send(self, group: Group) -> None:
        del self._answered[group]
        self._reply(group.client, group.request_id, MORE if group.left else 0, group.take())


__all__ = ["WITH_EVENTS", "Parking"]
