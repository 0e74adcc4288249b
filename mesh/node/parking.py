"""Parked reads of a partition: taken in, woken after a commit, answered empty in the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mesh.core import run as runs
from mesh.core import wire
from mesh.core.partition import Partition
from mesh.core.records import TERMINAL
from mesh.core.state import EventRow
from mesh.core.waiting import Waiter, Waiters
from mesh.errors import InvalidArgument, MeshError, NotFound, RemoteProtocolError
from mesh.node.reads import Reads, checked_filters, encode_events

_EMPTY_EVENTS = wire.OK + b"\x92\x90\xc3"
WAIT = int(wire.Kind.WAIT)


class Parking:
    """WAIT payloads: one call each."""

    def __init__(
        self, waiters: Waiters, reads: Reads, partition: Partition,
        reply: Callable[[bytes, int, int, int, bytes], None],
    ) -> None:
        self.waiters = waiters
        self.reads = reads
        self.state = reads.state
        self.partition = partition
        self._reply = reply

    def on_wait(self, client: bytes, header: wire.Header, deadline_ms: int, body: bytes) -> None:
        """Answer at once when there is something to say, else park until there is, or time is over."""
        try:
            calls = wire.decode_calls(body)
            if len(calls) != 1:
                raise RemoteProtocolError("a WAIT payload holds one call")
            (op, args), = calls
        except MeshError as error:
            self._answer(client, header.request_id, wire.failure(error))
            return
        try:
            deadline_s = min(deadline_ms / 1000, self.state.mono + wire.WAIT_MS_MAX / 1000)
            answer = self._look(client, header.request_id, op, args, deadline_s)
        except MeshError as error:
            answer = wire.failure(error)
        except Exception:  # noqa: BLE001 - as in ``Partition.read_one``: a bug harms one call
            answer = self.partition.bug(op)
        if answer is not None:
            self._answer(client, header.request_id, answer)

    def _look(self, client: bytes, request: int, op: str, args: list[Any], deadline_s: float) -> bytes | None:
        """What there is to say now; None when the read was parked."""
        if op == "session.wait":
            answer, waiter = self._session_wait(client, request, args, deadline_s)
        elif op == "run.wait":
            answer, waiter = self._run_wait(client, request, args, deadline_s)
        else:
            raise InvalidArgument(f"unknown op {op!r:.60} for a WAIT payload", code="unknown_op")
        if answer is None:
            self.waiters.park(waiter)
        return answer

    def _answer(self, client: bytes, request_id: int, part: bytes) -> None:
        self._reply(client, request_id, WAIT, 0, b"\x91" + part)

    def _session_wait(
        self, client: bytes, request: int, args: list[Any], deadline_s: float
    ) -> tuple[bytes | None, Waiter]:
        if len(args) != 2:
            raise InvalidArgument(f"expected 2 arguments, not {len(args)}")
        filters = checked_filters(args[1])
        session = self.state.session(args[0])
        waiter = Waiter(
            client, request, ("session", session.id), filters, deadline_s=deadline_s, seen=session.seq
        )
        if (filters.get("after") or 0) >= session.seq:
            return None, waiter
        found, complete = self.reads.find(session.id, session.n, filters)
        return (wire.OK + encode_events(session.id, found, complete) if found else None), waiter

    def _run_wait(
        self, client: bytes, request: int, args: list[Any], deadline_s: float
    ) -> tuple[bytes | None, Waiter]:
        if len(args) != 1:
            raise InvalidArgument(f"expected 1 argument, not {len(args)}")
        waiter = Waiter(client, request, ("run", args[0]), {}, deadline_s=deadline_s)
        try:
            run = self.state.run(args[0])
        except NotFound:
            if self.partition.parked:  # the run may be one of those that wait for a runner
                return None, waiter
            raise
        return (wire.ok(runs.to_wire(run)) if run.status in TERMINAL else None), waiter

    def wake(self, events: list[EventRow], settled: list[str]) -> None:
        """After a commit: answer who waited for these events or runs."""
        if len(self.waiters) == 0:
            return
        by_session: dict[str, list[EventRow]] = {}
        for event in events:
            by_session.setdefault(event.session_id, []).append(event)
        for session_id, rows in by_session.items():
            for waiter in self.waiters.of(("session", session_id)):
                found, complete = self.reads.matching(rows, waiter.filters, waiter.seen)
                if found:
                    self._finish(waiter, wire.OK + encode_events(session_id, found, complete))
        for run_id in settled:
            for waiter in self.waiters.of(("run", run_id)):
                self._finish(waiter, wire.ok(runs.to_wire(self.state.run(run_id))))

    def _finish(self, waiter: Waiter, part: bytes) -> None:
        self.waiters.finish(waiter)
        self._answer(waiter.client, waiter.request, part)

    def expire(self, now_s: float) -> None:
        """Answer empty whose time is over."""
        for waiter in self.waiters.expired(now_s):
            self._finish(waiter, wire.OK_NIL if waiter.key[0] == "run" else _EMPTY_EVENTS)


__all__ = ["Parking"]
