"""The memory of one partition, and the batch that changes it.

Rules of this file:

1. Sessions and runs are immutable values in dicts; changing one records what was there before. A
   request that raises is undone to its mark; a transaction that fails undoes the whole batch. Two numbers
   alone are changed in place, a session's ``seq`` and a run's ``batch``, by the runner's batches: two copies
   of some thirty fields for each event were a third of what a partition does for a stream.
2. A batch collects what the one transaction writes: sessions and runs (the last value of each), events and
   lifecycle messages (in order), and, beside it, what happens only after the commit: commands to runners,
   publications, settled runs.
3. ``pos`` and ``lseq`` are contiguous in this partition, ``seq`` in each session; all three are undone with
   the batch, so a hole in them means a lost message and nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import force_setattr

from mesh.core import events as ev
from mesh.core import wire
from mesh.core.access import NOBODY, Credentials
from mesh.core.announced import Announced, Message
from mesh.core.audit import Entry
from mesh.core.hosting import Hosting
from mesh.core.loader import Loader
from mesh.core.newest import Newest
from mesh.core.redact import Redactor
from mesh.core.run import RunState, agent_of
from mesh.core.session import SessionState, handle_map
from mesh.core.slots import run_key
from mesh.errors import InvalidArgument, NotFound, shown


class EventRow(msgspec.Struct, frozen=True, gc=False):
    """One appended event on its way to the store. A named tuple is made by a Python function: three times the
    price, for each event there is."""

    pos: int
    session: int
    session_id: str
    seq: int
    type: int
    run: int
    run_id: str | None
    ts: float
    fragment: bytes


class Work(NamedTuple):
    """What a session has to do: the runs that execute, those that wait, in order, and the steering prompts
    that nobody took yet, in order."""

    running: tuple[str, ...] = ()
    queue: tuple[str, ...] = ()
    steering: tuple[str, ...] = ()

    @property
    def waiting(self) -> tuple[str, ...]:
        """Everything that has not begun."""
        return self.steering + self.queue

    def without(self, run_id: str) -> Work:
        """The rest, when a run is over."""
        if self.running == (run_id,) and not (self.queue or self.steering):
            return _IDLE
        return Work(*(tuple(r for r in part if r != run_id) if run_id in part else part for part in self))


class RunnerEntry(NamedTuple):
    """The present holder of a runner's place, by the supervisor's word."""

    incarnation: int
    pid: int | None
    state: str
    reachable: bool


_IDLE = Work()


class State:
    """Caches, counters and the open batch of one partition."""

    def __init__(
        self, loader: Loader, *, partition: int, epoch: int, node: str, redactor: Redactor | None = None,
        hosting: Hosting | None = None,
    ) -> None:
        self.loader = loader
        self.redactor = redactor or Redactor()
        self.partition = partition
        self.epoch = epoch
        self.node = node
        self.sessions: OrderedDict[str, SessionState] = OrderedDict()
        self.runs: OrderedDict[str, RunState] = OrderedDict()
        self.newest_session, self.newest_run = Newest(loader.newest_session), Newest(loader.newest_run)
        self.work: dict[str, Work] = {}
        self.live: dict[str, bool] = {}
        #: The live sessions that have nothing to do, and since when, on the monotonic clock: see ``idlest``.
        self.idle: OrderedDict[str, float] = OrderedDict()
        self._torn = False  #: an undo put an old one behind newer ones
        self.runners: dict[int, RunnerEntry] = {}
        self.hosting = hosting or Hosting()
        self.leases: dict[str, float] = {}  #: session -> until when its driver has it, on the monotonic clock
        self.presented: Credentials = NOBODY  #: what the caller shows whose call is being decided
        self.pos = self.lseq = 0
        self.next_session = self.next_run = 1
        self.session_count = 0
        self.now = 0.0  #: wall time of this batch, seconds
        self.provider_of: Callable[[str], str] = str  #: agent -> provider, set by the catalogue
        self.mono = 0.0  #: monotonic time of this batch, seconds
        self.stamp = b"".join((
            b"\xa9partition", wire.pack(partition), b"\xa5epoch", wire.pack(epoch),
            b"\xa4node", wire.pack(node),
        ))
        self._reset()

    def _reset(self) -> None:
        self.undo: list[Callable[[], object] | tuple[Any, ...]] = []
        self.events: list[EventRow] = []
        self.lifecycle: list[Message] = []
        self.dirty_sessions: dict[str, bool] = {}
        self.dirty_runs: dict[str, bool] = {}
        self.progress: list[RunState] = []  #: runs whose ``batch`` grew
        self.commands: list[tuple[int, list[Any]]] = []
        self.settled: list[str] = []
        self.resolutions: list[tuple[Any, int, bytes]] = []
        self.audit: list[Entry] = []
        self.spent: dict[tuple[int, str], dict[str, float]] = {}  #: by slot and tag: used by runs that ended
        self.quiet: set[str] = set()  #: sessions whose events are not published: they are imported, not new

    # --- reading ---

    def session(self, session_id: str) -> SessionState:
        """The session, from memory or the store.

        Raises:
            NotFound: ``session_not_found``.
            InvalidArgument: not a text.
        """
        found = self.sessions.get(session_id) if type(session_id) is str else None
        if found is None:
            found = self.loader.session(_checked_text(session_id, "session id"))
            if found is None:
                raise NotFound(f"no session {shown(session_id, 140)}", code="session_not_found")
            self.sessions[session_id] = found
        return found

    def run(self, run_id: str) -> RunState:
        """The run, from memory or the store.

        Raises:
            NotFound: ``run_not_found``.
            InvalidArgument: not a text.
        """
        found = self.runs.get(run_id) if type(run_id) is str else None
        if found is None:
            found = self.loader.run(_checked_text(run_id, "run id"))
            if found is None:
                raise NotFound(f"no run {shown(run_id, 60)}", code="run_not_found")
            self.runs[run_id] = found
        return found

    def has_session(self, session_id: str) -> bool:
        """Whether the id was ever used."""
        if session_id in self.sessions:
            return True
        return not self.newest_session.precedes(session_id) and self.loader.has_session(session_id)

    def has_run(self, run_id: str) -> bool:
        """Whether the id was ever used."""
        if run_id in self.runs:
            return True
        return not self.newest_run.precedes(run_key(run_id)) and self.loader.has_run(run_id)

    def event_type(self, session: SessionState, seq: int) -> int | None:
        """The type's code of an event of the log, this batch included; None when there is none."""
        for row in self.events:
            if row.session == session.n and row.seq == seq:
                return row.type
        return self.loader.event_type(session.n, seq) if 0 < seq <= session.seq else None

    def work_of(self, session_id: str) -> Work:
        """What the session has to do."""
        return self.work.get(session_id, _IDLE)

    def pid_of(self, session: SessionState) -> int | None:
        """The process that hosts the live session."""
        entry = self.runners.get(session.runner) if session.runner is not None else None
        return entry.pid if entry is not None else None

    def ready_runners(self) -> list[int]:
        """The runners that can take work now."""
        return [index for index, entry in self.runners.items() if entry.reachable and entry.state == "ready"]

    # --- changing ---

    def put_session(self, session: SessionState) -> SessionState:
        """Replace a session; undone with the batch."""
        session_id, undo = session.id, self.undo
        former = self.sessions.get(session_id)
        undo.append((self.sessions, session_id, former))
        self.sessions[session_id] = session
        if session_id not in self.dirty_sessions:
            undo.append((self.dirty_sessions, session_id, None))
            self.dirty_sessions[session_id] = True
        was_live = former is not None and former.runner is not None
        if was_live != (session.runner is not None):
            undo.append((self.live, session_id, self.live.pop(session_id, None)))
            if not was_live:
                self.live[session_id] = True
            self._put_idle(session_id, not was_live and session_id not in self.work)
        return session

    def put_run(self, run: RunState) -> RunState:
        """Replace a run; undone with the batch."""
        run_id, undo = run.id, self.undo
        undo.append((self.runs, run_id, self.runs.get(run_id)))
        self.runs[run_id] = run
        if run_id not in self.dirty_runs:
            undo.append((self.dirty_runs, run_id, None))
            self.dirty_runs[run_id] = True
        return run

    def keep_run(self, run: RunState) -> None:
        """Replace a run in memory alone: its row stays older until the next ``put_run``."""
        self._put(self.runs, run.id, self.runs.get(run.id), run)

    def put_progress(self, run: RunState, batch: int) -> None:
        """Remember the runner's last batch: a small row of its own, since the run's row holds its input."""
        self.stream(self.runs[run.id], (), batch)

    def stream(self, run: RunState, rows: Sequence[Sequence[Any]], batch: int) -> None:
        """Append the runner's next batch of a run that goes on as it did: no call but those that it needs."""
        session = self.sessions.get(run.session_id) or self.session(run.session_id)
        pos, seq, n, session_id, run_n, run_id = self.pos, session.seq, session.n, session.id, run.n, run.id
        self.undo.append((session, seq, run, run.batch))
        events = self.events
        for code, ts, fragment in rows:
            pos += 1
            seq += 1
            events.append(EventRow(pos, n, session_id, seq, code, run_n, run_id, ts, fragment))
        self.pos = pos
        force_setattr(session, "seq", seq)
        force_setattr(run, "batch", batch)
        self.progress.append(run)

    def put_work(self, session_id: str, work: Work) -> None:
        """Replace what a session has to do; undone with the batch."""
        self.undo.append((self.work, session_id, self.work.get(session_id)))
        if work == _IDLE:
            self.work.pop(session_id, None)
            self._put_idle(session_id, session_id in self.live)
        else:
            self.work[session_id] = work
            if session_id in self.idle:
                self._put_idle(session_id, False)

    def _put_idle(self, session_id: str, idle: bool) -> None:
        """From now on the session is live and has nothing to do, or not."""
        since = self.idle.pop(session_id, None)
        self.undo.append((self.idle, session_id, None) if since is None else partial(
            self._idle_again, session_id, since))
        if idle:
            self.idle[session_id] = self.mono

    def _idle_again(self, session_id: str, since: float) -> None:
        self.idle[session_id] = since
        self._torn = True

    def idlest(self) -> Iterable[tuple[str, float]]:
        """The live sessions that have nothing to do, longest idle first, and since when."""
        if self._torn:
            for session_id in sorted(self.idle, key=self.idle.__getitem__):
                self.idle.move_to_end(session_id)
            self._torn = False
        return self.idle.items()

    def _put(self, table: dict[Any, Any], key: Any, former: Any, value: Any) -> None:
        self.undo.append((table, key, former))
        table[key] = value

    def append(
        self, session_id: str, event_type: str, data: dict[str, Any], *, run: RunState | None = None,
        provider: str | None = None,
    ) -> None:
        """Append an event that the partition itself is the author of."""
        row = self.own_event(self.sessions[session_id], event_type, data, run, provider)
        self.append_rows(session_id, (row,), run)

    def own_event(
        self, session: SessionState, event_type: str, data: dict[str, Any], run: RunState | None = None,
        provider: str | None = None,
    ) -> tuple[int, float, bytes]:
        """An event that the partition itself is the author of, encoded: a row for ``append_rows``."""
        if data:
            data, _ = self.redactor.event(event_type, data)
        if run is not None:
            provider = provider or run.provider or self.provider_of(agent_of(run, session.agent))
        correlation_id = session.metadata.get("correlation_id")
        return ev.TYPE_CODE[event_type], self.now, ev.encode_fragment(
            event_type, session.id, None if run is None else run.id, data, ts=self.now,
            provider=provider or self.provider_of(session.agent),
            correlation_id=correlation_id if type(correlation_id) is str else None,
        )

    def append_rows(
        self, session_id: str, rows: Sequence[Sequence[Any]], run: RunState | None
    ) -> None:
        """Append encoded events, each ``(type code, ts, fragment)``, in this order."""
        session = self.sessions[session_id]
        self.undo.append((self.sessions, session_id, session))
        self.sessions[session_id] = self._grown(session, rows, run)

    def put_logged(self, session: SessionState, rows: Sequence[Sequence[Any]]) -> SessionState:
        """Replace a session together with the events that tell of it: one change instead of two."""
        return self.put_session(self._grown(session, rows, None))

    def _grown(
        self, session: SessionState, rows: Sequence[Sequence[Any]], run: RunState | None
    ) -> SessionState:
        pos, seq, n, session_id = self.pos, session.seq, session.n, session.id
        run_n, run_id = (0, None) if run is None else (run.n, run.id)
        for code, ts, fragment in rows:
            pos += 1
            seq += 1
            self.events.append(EventRow(pos, n, session_id, seq, code, run_n, run_id, ts, fragment))
        self.pos = pos
        return msgspec.structs.replace(session, seq=seq)

    def announce(self, what: str, session: SessionState, **fields: Any) -> None:
        """A lifecycle message: stored and numbered with the batch, published after the commit."""
        self.lseq += 1
        handle = None if session.runner is None else handle_map(session, self.pid_of(session))
        self.lifecycle.append((what, Announced(
            self.now, self.partition, self.epoch, self.node, self.lseq, session.id, session.agent_id,
            session.agent, session.status, handle, **fields,
        )))

    # --- the batch ---

    def mark(self) -> tuple[int, ...]:
        """A point to go back to."""
        return (
            len(self.undo),
            len(self.events),
            len(self.progress),
            len(self.lifecycle),
            len(self.commands),
            len(self.settled),
            len(self.resolutions),
            self.pos,
            self.lseq,
            self.next_session,
            self.next_run,
            self.session_count,
        )

    def back_to(self, mark: tuple[int, ...]) -> None:
        """Undo everything since the mark."""
        undo, events, progress, lifecycle, commands, settled, resolutions, *counters = mark
        self.undo_to(undo)
        del self.progress[progress:]
        del self.events[events:], self.lifecycle[lifecycle:], self.commands[commands:], self.settled[settled:]
        del self.resolutions[resolutions:]
        self.pos, self.lseq, self.next_session, self.next_run, self.session_count = counters

    def undo_to(self, mark: int) -> None:
        """Undo the last changes, down to so many. A change is (table, key, former value), or (session, former
        seq, run, former batch), or a function."""
        undo = self.undo
        while len(undo) > mark:
            change = undo.pop()
            if type(change) is not tuple:
                change()  # type: ignore[operator]
            elif len(change) == 3:
                _place(*change)
            else:
                session, seq, run, batch = change
                force_setattr(session, "seq", seq)
                force_setattr(run, "batch", batch)

    @property
    def changed(self) -> bool:
        """Whether the batch has something to write."""
        return bool(self.events or self.lifecycle or self.dirty_sessions or self.dirty_runs or self.progress)

    def end_batch(self) -> None:
        """The batch is committed (or undone): begin the next one."""
        self._reset()

    def trim(self, keep_max: int, step: int) -> None:
        """Forget cached sessions and runs that nothing needs, oldest first; a bounded step per call.

        Only between batches: what is not committed must stay.
        """
        runs, sessions = self.runs, self.sessions
        for _ in range(min(step, len(runs) - keep_max)):
            run_id, run = next(iter(runs.items()))
            if run.ended_at is None and run.session_id in self.work:
                runs.move_to_end(run_id)
            else:
                del runs[run_id]
                self.newest_run.left(run_key(run_id))
        for _ in range(min(step, len(sessions) - keep_max)):
            session_id, session = next(iter(sessions.items()))
            if session.live or session_id in self.work:
                sessions.move_to_end(session_id)
            else:
                del sessions[session_id]
                self.newest_session.left(session_id)


def _checked_text(value: Any, what: str) -> str:
    if type(value) is not str:
        raise InvalidArgument(f"a {what} is a text, not {type(value).__name__}", code="invalid_id")
    return value


def _place(table: dict[Any, Any], key: Any, value: Any) -> None:
    """Put a value where it was; None means that nothing was there."""
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value


__all__ = ["EventRow", "RunnerEntry", "State", "Work"]
