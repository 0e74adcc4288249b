"""One attempt of one run: from what its provider yields to numbered events, ending in exactly one settlement.

Rules of this file:

1. Whoever ends a run first decides how it ended: the provider, a cancel, a deadline, the node's shutdown.
   What the provider says later is refused, and counted.
2. A cancelled provider gets ``CANCEL_S`` to clean up. Then the run is settled without it.
3. Nothing that an agent does or yields harms another run: whatever it raises, ``SystemExit`` included, is
   this run's failure.
4. Without a policy, what a drive is made of does not point back to it when it is over, so that it is freed at
   once: left to the collector, the forty objects of each run cost a sixth of the runner's time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

from mesh.core.approval import APPROVED_TOOLS, NODE, ONCE
from mesh.core.policy import Policy, provider_options
from mesh.core.prices import Prices
from mesh.core.run import COMPACT
from mesh.core.runner import Key, RunLog
from mesh.errors import MeshError, RunError
from mesh.node.asking import Tag
from mesh.node.by_hand import Questions
from mesh.node.continuing import Transcripts, able, begin_run, close
from mesh.node.ending import Ending, cancelled, error_map, failure, raised, timed_out
from mesh.node.guard import Guard
from mesh.node.pieces import Pieces, Sink, is_output
from mesh.node.routed import Routed, negotiated
from mesh.node.spending import Account, Read
from mesh.node.ws_drive import RunWorkspace, Workspaces
from mesh.providers.base import Piece, Provider, RunContext, SessionInfo
from mesh.providers.live import Steering

#: How long a cancelled provider may clean up; the callers of ``cancel`` are promised 5 s.
CANCEL_S = 4.0
#: After so many pieces in one go the other runs get their turn.
PIECES_PER_TURN = 32
#: ``session_id run_id`` of what executes now; what it prints is marked with it.
RUN_TAG: ContextVar[str] = ContextVar("mesh_run", default="")


class Host(Sink, Protocol):
    """What a drive needs of its runner."""

    states: dict[str, dict[str, Any]]
    workspaces: Workspaces
    late: int  #: pieces of providers whose run was over
    prices: Prices
    transcripts: Transcripts
    read: Read

    def partitions(self) -> int:
        """How many the node has."""

    async def room(self, log: RunLog) -> None:
        """Return when there is room for more unconfirmed events of this log."""

    def ask(
        self, key: Key, tag: Tag, partition: int, make: Callable[[], list[Any]],
        answered: Callable[..., None],
    ) -> None:
        """Ask the run's partition something, behind what the run said so far."""

    def ended(self, drive: Drive) -> None:
        """The provider of a drive is done; nothing of it executes any more."""


class Drive:
    """Drives one attempt. Everything happens on the runner's loop."""

    def __init__(
        self, host: Host, key: Key, *, partition: int, session: dict[str, Any], run_input: Any,
        options: dict[str, Any],
    ) -> None:
        self.key = key
        self.partition = partition
        self.steering = Steering(partial(_ask_steering, host, key, partition))
        self.info = _info(session)
        self.context = RunContext(
            key[0], self.info, run_input, attempt=key[1], options=options.get("provider_opts"),
            states=host.states, late=partial(_late, host),
            steering=self.steering,
        )
        self.pieces = Pieces(host, key, partition, self.info)
        if options.get("policies"):
            policy = Policy.from_map(options["policies"][0])
            questions = Questions(self._ask, host.redactor.text)
            account = Account(policy, key, self.info.id, partition, read=host.read, ask=self._ask_account,
                              partitions=host.partitions)
            self.pieces.guard = guard = Guard(
                policy, host.prices, questions, emit=self.pieces.follow, stop=self.stop,
                trusted=self.info.metadata.get(APPROVED_TOOLS), account=account,
            )
            self.context.guard, self.context.budget = guard.permit, guard.spending
            self.context.rules = provider_options(policy)
        given = options.get("workspace")
        self.workspace = None if given is None else host.workspaces.begin(key, given)
        self.ending: Ending | None = None
        self.task: asyncio.Task[None] | None = None
        self._host = host
        self._session = session
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._deadline_s: float | None = options.get("deadline_s")
        self._idle_s: float | None = options.get("idle_s")
        self._heard_s = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None
        self._timers: list[asyncio.TimerHandle] = []

    @property
    def settled(self) -> bool:
        """Whether the run has its end."""
        return self.pieces.settled

    @property
    def asks_again(self) -> bool:
        """Whether it waits for a human and may be executed again: its question need not end with us."""
        guard, registry, agent = self.pieces.guard, self._host.registry, self.info.agent
        provider = registry.ready(agent) or registry.router(agent)
        asks = guard is not None and guard.questions.waiting
        return asks and provider is not None and provider.idempotent

    def start(self) -> None:
        """Begin to execute."""
        self.task = self._loop.create_task(self._main())
        self.task.add_done_callback(self._done)
        if self._deadline_s is not None:
            ending = timed_out("the run took longer than its", "deadline_s", self._deadline_s)
            self._timers.append(self._loop.call_later(self._deadline_s, self.stop, ending))
            self.context.deadline_at = self._loop.time() + self._deadline_s
        if self._idle_s is not None:
            self._heard_s = self._loop.time()
            self._look(self._idle_s)

    def _look(self, idle_s: float) -> None:
        """Stop a provider that said nothing for its time; what it waits for us does not count."""
        opening = self.workspace is not None and self.workspace.opening
        guard = self.pieces.guard
        asking = guard is not None and guard.questions.waiting
        waits = not self._host.outbox.has_room(self.pieces.log)
        if waits or self.context.paused or opening or asking:
            self._heard_s = self._loop.time()
        elif guard is not None:
            self._heard_s = max(self._heard_s, guard.questions.over_s)
        left_s = self._heard_s + idle_s - self._loop.time()
        if left_s <= 0:
            self.stop(timed_out("the agent said nothing for", "idle_s", idle_s))
        elif self.ending is None and not self.settled:
            self._idle_timer = self._loop.call_later(left_s, self._look, idle_s)

    def stop(self, ending: Ending) -> None:
        """End the run from outside; settled when the provider is done, after ``CANCEL_S`` in any case."""
        if self.settled or self.ending is not None:
            return
        self._give_up(ending)
        if self.task is not None:
            self.task.cancel()
        else:  # it still waits for its turn
            self._settle(ending)
            self._host.ended(self)

    def drop(self) -> None:
        """The attempt is over elsewhere: stop the provider and say nothing more."""
        self.stop(cancelled())
        self.pieces.drop()

    def report(self, event_type: str, data: dict[str, Any]) -> None:
        """Write an event about the run, from outside of it."""
        if self.pieces.begun and not self.settled:
            self.pieces.emit(event_type, data)

    def _ask(
        self, name: str, request: dict[str, Any] | None, answered: Callable[[dict[str, Any]], None]
    ) -> None:
        if self.ending is not None or self.settled:  # the end of the run closes what is open
            answered({"approved": False, "scope": ONCE, "by": NODE, "reason": "the run is over",
                      "name": name})
            return
        self.pieces.release()  # what was said before stands before the question
        log, shown = self.pieces.log, self._host.redactor.data(request)
        self._host.ask(self.key, name, self.partition,
                       lambda: ["ask", *self.key, log.next_n - 1, name, shown], answered)

    def _ask_account(
        self, tag: int, make: Callable[[], list[Any]], answered: Callable[..., None]
    ) -> None:
        if not self.settled:
            log = self.pieces.log
            self._host.ask(self.key, tag, self.partition, lambda: [*make(), log.next_n - 1], answered)

    # --- from the provider to the log ---

    async def _main(self) -> None:
        RUN_TAG.set(f"{self.info.id} {self.key[0]}")
        try:
            ending = await (self._execute() if self.workspace is None else self._execute_in(self.workspace))
        except asyncio.CancelledError:
            ending = Ending("failed", error_map("provider_error", "the agent cancelled its own task"))
        except MeshError as exc:
            ending = failure(exc)
        if self.workspace is not None:  # now it is decided how the run ends; its folder is looked at first
            self.pieces.ensure_begun()
            self.ending = self.ending or ending
            self.ending = await self.workspace.close(self.ending, self.pieces)
        self._settle(ending)

    async def _execute_in(self, workspace: RunWorkspace) -> Ending:
        try:
            self.context.workspace = await workspace.open(self.pieces)
        except MeshError:
            raise
        except Exception as exc:  # noqa: BLE001  whatever it is, the folder is given back
            return raised(exc)
        return await self._execute()

    async def _execute(self) -> Ending:
        registry = self._host.registry
        agent = self.info.agent
        provider = registry.ready(agent)
        router = registry.router(agent) if provider is None else None
        if provider is None and router is None:
            provider = await registry.provider(agent)
        try:
            if self.pieces.guard is not None:
                await self.pieces.guard.begin()
            if provider is None:
                assert router is not None
                await Routed(self, self._host, router, self._session, self._options).execute()
            else:
                stream, first = await self._begin(provider)
                if self.workspace is not None:
                    self.workspace.tell(self.pieces)
                await self.pull(stream, () if first is None else (first,))
        except (GeneratorExit, asyncio.CancelledError):  # the loop is gone; the run is over
            raise
        except BaseException as exc:  # noqa: BLE001  rule 3
            return failure(exc) if isinstance(exc, RunError) else raised(exc)
        return self.ending or self.pieces.completed()

    async def _begin(self, provider: Provider) -> tuple[AsyncIterator[Piece], Piece | None]:
        """Write ``run_started``; what the provider yields, and its first word when that was heard already."""
        context, registry = self.context, self._host.registry
        about = provider.started(context)
        if "optional_capabilities" in self._options:
            about = about | negotiated(provider, self._options)
        mode, opts = registry.continuation(context.session.agent)
        if "continuation" in self._options:
            mode = self._options["continuation"] or None
        if mode is None and not able(provider):
            self.pieces.begin(provider, about)
            return provider.run(context), None
        opts = self._options.get("continuation_opts") or opts
        begun = await begin_run(self._host.transcripts, context, self._session, provider, mode, opts)
        if COMPACT in self._options:
            about = about | {"purpose": "compaction"}
        try:
            self.pieces.begin(provider, about | begun.said)
        except BaseException:
            await close(begun.stream)
            raise
        if begun.why is not None:
            self.pieces.emit("error_recovered", {"error_message": begun.why, "recovered_by": "replay"})
        self.heard()
        return begun.stream, begun.first

    def heard(self) -> None:
        """The provider said something, or another one begins: its time of silence counts from here."""
        self._heard_s = self._loop.time()

    async def pull(self, stream: AsyncIterator[Piece], held: Sequence[Piece]) -> None:
        """Take every piece the provider yields, ``held`` first, as fast as they are stored elsewhere."""
        pieces, outbox = self.pieces, self._host.outbox
        log, guard, take = pieces.log, pieces.guard, pieces.take
        timed = self._idle_s is not None
        count = 0
        try:
            if guard is not None:
                guard.begun()
                await guard.questions.free()
            for piece in held:
                if self.ending is not None:
                    _late(self._host)
                    return
                if not self._taken(piece):
                    return
            async for piece in stream:
                if self.ending is not None or (pieces.closed and not is_output(piece)):
                    _late(self._host)
                    return
                try:  # as _taken, without its call
                    take(piece)
                except MeshError as exc:
                    self._give_up(failure(exc))
                    return
                if guard is not None and guard.questions.held:
                    await guard.questions.free()
                count += 1
                if count % PIECES_PER_TURN == 0:
                    await asyncio.sleep(0)
                if not outbox.has_room(log):
                    await self._host.room(log)
                if timed:
                    self._heard_s = self._loop.time()
            if guard is not None:
                await guard.questions.free()
        finally:
            if self.ending is not None:
                await self._heard_of()
            await close(stream)

    async def _heard_of(self) -> None:
        """Take the cancel of a run that a piece of its own ended: it would hit the provider's cleaning up."""
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        if self.task is not None:
            self.task.uncancel()  # for the timeouts and task groups of that cleaning up, it is over

    def _taken(self, piece: Piece) -> bool:
        try:
            self.pieces.take(piece)
        except MeshError as exc:
            self._give_up(failure(exc))
            return False
        return True

    # --- the end ---

    def _give_up(self, ending: Ending) -> None:
        """The run is over; its provider has ``CANCEL_S`` to notice."""
        self.ending = ending
        self.context.cancelled.set()
        self._timers.append(self._loop.call_later(CANCEL_S, self._settle, ending))

    def _settle(self, ending: Ending) -> None:
        """Write the terminal event and the settlement, once."""
        if self.settled:
            return
        for timer in (*self._timers, self._idle_timer):
            if timer is not None:
                timer.cancel()
        self.pieces.settle(self.ending or ending)

    def _done(self, task: asyncio.Task[None]) -> None:
        """The task is over. One that was cancelled before its first step settles here."""
        if not task.cancelled() and task.exception() is not None:
            self._settle(raised(task.exception()))
        self._settle(cancelled())
        self._host.ended(self)


def _ask_steering(host: Host, key: Key, partition: int, steering: Steering) -> None:
    """Take the steering prompts that wait."""
    number, taken = steering.open, steering.taken
    host.ask(key, number, partition, lambda: ["take", *key, number], lambda texts: taken(number, texts))


def _late(host: Host) -> None:
    """Something came from a provider whose run is over."""
    host.late += 1


def _info(session: dict[str, Any]) -> SessionInfo:
    return SessionInfo(
        id=session["id"], agent=session["agent"], agent_id=session.get("agent_id") or "",
        incarnation=session.get("incarnation") or 0, context=session.get("context") or {},
        metadata=session.get("metadata") or {}, tags=tuple(session.get("tags") or ()),
    )


__all__ = ["CANCEL_S", "RUN_TAG", "Drive", "Host"]
