"""A run of a router: one agent after the other, until one says its first word; then it is that one's run.

Rules of this file:

1. Nothing is in the log before a first *word*: a text, a tool's event, an output. What an agent says before
   about itself (its session, tokens, an error) waits for that, and is dropped when another one is tried; what
   it used is paid for, and counts.
2. Another agent is tried only while nothing happened: no word, no tool for which it asked (there the run
   begins in the log, too), no steering prompt that was taken. A router that is declared ``idempotent`` goes
   on also after that; what was said is closed as partial, and a second ``run_started`` begins anew.
3. Each attempt has a context of its own: what one agent does to its options, or a thread of it that is late,
   is not the next one's.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from mesh.core.manifest import negotiate
from mesh.core.routing import Course, Ticket
from mesh.core.run import COMPACT
from mesh.errors import MeshError, RunError
from mesh.node.continuing import begin_run, close
from mesh.node.ending import failure, raised
from mesh.node.report import Report
from mesh.providers.base import Piece, Provider, RunContext
from mesh.providers.permission import Blocking
from mesh.providers.router import HINT, Router

if TYPE_CHECKING:
    from mesh.node.drive import Drive, Host

#: How long an agent is waited for that is still being loaded.
LOADING_S = 30.0
#: So many things an agent may say about itself before its first word; what follows counts as one.
HELD_MAX = 64
#: What is no word yet.
_ABOUT = frozenset(("run_started", "token_usage_updated", "error_occurred"))
_END: Any = object()


class Attempt:
    """An agent that spoke, or ended without a word."""

    def __init__(self, provider: Provider, context: RunContext) -> None:
        self.provider = provider
        self.context = context
        self.stream: AsyncIterator[Piece]
        self.said: dict[str, Any] = {}
        self.why: str | None = None  #: it replays although it should resume
        self.held: list[Piece] = []
        self.tickets: list[tuple[Course, Ticket]] = []  #: the innermost router first

    def spent(self) -> Report:
        """What it says that it used, as far as that was not written."""
        report = Report(lambda _: None)
        report.mode = self.provider.usage_mode
        report.provider = self.provider.name
        with suppress(MeshError):
            report.tell(self.said)
            for piece in self.held:
                data = piece.get("data") if isinstance(piece, dict) else None
                if isinstance(piece, dict) and isinstance(data, dict):
                    (report.count if piece.get("type") == "token_usage_updated" else report.tell)(data)
        return report

    def succeeded(self) -> None:
        """The run ended well."""
        for course, ticket in self._back():
            course.succeeded(ticket, time.monotonic())

    def failed(self, exc: Exception) -> bool:
        """The run failed; whether its outermost router may try another agent."""
        code, message = told(exc)
        again = [course.failed(ticket, code, message, time.monotonic()) for course, ticket in self._back()]
        return bool(again) and again[-1]

    def drop(self) -> None:
        """Give back what was not given back yet, without a word on the agents."""
        for course, ticket in self._back():
            course.routing.dropped(ticket)

    def _back(self) -> list[tuple[Course, Ticket]]:
        tickets, self.tickets = self.tickets, []
        return tickets


class Routed:
    """One attempt of one run of a router."""

    def __init__(
        self, drive: Drive, host: Host, router: Router, session: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:
        self._drive = drive
        self._host = host
        self._router = router
        self._session = session
        self._options = options
        self._course: Course | None = None
        self._attempt: Attempt | None = None  #: the one under way, or the last
        self._logged: Attempt | None = None  #: the one that the last ``run_started`` is about
        self._failed: Attempt | None = None  #: one whose tokens are to be counted
        self._began_at = time.time()
        self._happened = False  #: something that cannot be taken back
        self._timers: list[asyncio.Timeout] = []
        drive.pieces.opening = self._open

    async def execute(self) -> None:
        """Have the run done by the first agent that can; returns when that one is done.

        Raises:
            RunError: ``validation_error``: what the run says about its routing is wrong;
                ``missing_required_capability``, ``provider_unavailable``: nobody can take it.
            Exception: the last agent's failure.
        """
        await self._known(self._router)
        context = self._drive.context
        course = self._course = self._router.course(context, self._options)
        while not await self._spoken(await self._first(self._router, course, context)):
            pass

    async def _known(self, router: Router) -> None:
        """A run that requires something waits, within bounds, for agents that are still being loaded."""
        wants = self._options.get("required_capabilities") or self._options.get("optional_capabilities")
        if wants and router.waits_for:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOADING_S):
                    await self._host.registry.loaded(router.waits_for)

    # --- until the first word ---

    async def _first(self, router: Router, course: Course, context: RunContext) -> Attempt:
        """Try one agent of a router after the other, until one speaks."""
        last: Exception | None = None
        while (ticket := course.next(time.monotonic())) is not None:
            self._drive.heard()
            try:
                attempt = await self._within(router, course, ticket.agent, context)
            except Exception as exc:
                again = False
                if self._drive.ending is None:
                    again = course.failed(ticket, *told(exc), time.monotonic())
                else:  # that is how it took its end
                    course.routing.dropped(ticket)
                self._pay()
                if not again or self._drive.ending is not None:
                    raise
                if (self._happened or self._drive.steering.count) and not self._router.idempotent:
                    raise
                last = exc
            except BaseException:
                course.routing.dropped(ticket)
                self._pay()
                raise
            else:
                attempt.tickets.append((course, ticket))
                return attempt
        raise last or nobody(self._drive.info.agent, course, self._options)

    def _pay(self) -> None:
        failed, self._failed = self._failed, None
        if failed is not None:
            self._drive.pieces.paid(failed.spent())

    async def _within(self, router: Router, course: Course, agent: str, context: RunContext) -> Attempt:
        """Try one agent, for as long as its router lets it be silent."""
        limit_s = router.rules.first_word_s
        context = self._context(agent, course, context)
        if limit_s is None:
            return await self._try(course, agent, context)
        try:
            async with asyncio.timeout(limit_s) as timer:
                self._timers.append(timer)
                try:
                    with context.paused.stopping(timer):
                        return await self._try(course, agent, context)
                finally:
                    self._timers.remove(timer)
        except TimeoutError as exc:
            if not timer.expired():
                raise
            message = f"agent {agent!r} said nothing for {limit_s:g} s (first_word_s)"
            raise RunError(message, code="provider_timeout", details={"first_word_s": limit_s}) from exc

    async def _try(self, course: Course, agent: str, context: RunContext) -> Attempt:
        inner = self._host.registry.router(agent)
        if inner is None:
            return await self._hear(agent, context)
        await self._known(inner)
        course.inner = inner.course(context, self._options)
        return await self._first(inner, course.inner, context)

    def _context(self, agent: str, course: Course, context: RunContext) -> RunContext:
        own = copy.copy(context)
        own.session = msgspec.structs.replace(context.session, agent=agent)
        own.options = {key: value for key, value in context.options.items() if key != HINT}
        own.options |= course.wish.options.get(agent, {})
        own.cancelled = context.cancelled.child()
        own.guard, own.blocking = self._permit, Blocking()
        return own

    async def _permit(self, tool: str, tool_input: Any, tool_call_id: str | None) -> None:
        """A tool is about to be used: from here there is no other agent, and no hurry to speak."""
        self._happened = True
        for timer in self._timers:
            self._drive.context.paused.let_go(timer)
        if self._attempt is not None:
            self._log(self._attempt)
        guard = self._drive.context.guard
        if guard is not None:
            await guard(tool, tool_input, tool_call_id)

    async def _hear(self, agent: str, context: RunContext) -> Attempt:
        """Begin with an agent, and listen up to its first word."""
        self._attempt = None
        attempt = self._attempt = Attempt(await self._loaded(agent), context)
        try:
            await self._begin(attempt)
            while not (attempt.held and is_word(attempt.held[-1])) and len(attempt.held) < HELD_MAX:
                piece = await anext(attempt.stream, _END)
                if piece is _END:
                    break
                attempt.held.append(piece)
        except BaseException:
            context.cancelled.set()
            if hasattr(attempt, "stream"):
                await close(attempt.stream)
            self._failed = attempt
            raise
        return attempt

    async def _loaded(self, agent: str) -> Provider:
        ready = self._host.registry.ready(agent)
        if ready is not None:
            return ready
        try:
            async with asyncio.timeout(LOADING_S) as timer:
                return await self._host.registry.provider(agent)
        except TimeoutError as exc:
            if not timer.expired():
                raise
            message = f"agent {agent!r} is still being loaded after {LOADING_S:g} s"
            raise RunError(message, code="provider_unavailable") from exc

    async def _begin(self, attempt: Attempt) -> None:
        """Begin the provider's run with its part of the conversation."""
        provider, context, registry = attempt.provider, attempt.context, self._host.registry
        attempt.said = provider.started(context)
        mode, opts = registry.continuation(self._drive.info.agent)
        if mode is None:
            mode, opts = registry.continuation(context.session.agent)
        if "continuation" in self._options:
            mode = self._options["continuation"] or None
        opts = self._options.get("continuation_opts") or opts
        begun = await begin_run(self._host.transcripts, context, self._session, provider, mode, opts)
        attempt.stream, attempt.why = begun.stream, begun.why
        attempt.said = attempt.said | begun.said
        if begun.first is not None:
            attempt.held.append(begun.first)

    # --- from the first word on ---

    async def _spoken(self, attempt: Attempt) -> bool:
        """Let an agent speak to its end. False when another one shall begin anew."""
        drive = self._drive
        try:
            self._start(attempt)
            await drive.pull(attempt.stream, attempt.held)
            if drive.ending is None:
                attempt.succeeded()
            return True
        except Exception as exc:
            if drive.ending is not None or not attempt.failed(exc) or not self._router.idempotent:
                raise
            attempt.context.cancelled.set()
            return False
        finally:
            await close(attempt.stream)
            attempt.drop()

    def _start(self, attempt: Attempt) -> None:
        for course, ticket in attempt.tickets:
            course.routing.spoke(ticket)
        self._log(attempt)
        if attempt.why is not None:
            said = {"error_message": attempt.why, "recovered_by": "replay"}
            self._drive.pieces.emit("error_recovered", said)
        if self._drive.workspace is not None:
            self._drive.workspace.tell(self._drive.pieces)
        self._drive.heard()

    def _log(self, attempt: Attempt) -> None:
        """Write ``run_started`` of an agent, once."""
        if attempt is self._logged:
            return
        if self._logged is not None:
            self._drive.pieces.start_over()
        said, self._logged = attempt.said, attempt
        if COMPACT in self._options:
            said = said | {"purpose": "compaction"}
        said = said | negotiated(attempt.provider, self._options)
        self._drive.pieces.begin(attempt.provider, said, self._way(), self._began_at)
        self._began_at = time.time()

    def _open(self) -> None:
        """Write ``run_started`` before any agent's first word: about the one that is tried, or was last."""
        attempt = self._attempt
        with suppress(MeshError):  # it said about itself what cannot be kept
            if attempt is not None:
                return self._log(attempt)
        provider = None if attempt is None else attempt.provider
        return self._drive.pieces.begin(provider, {}, self._way(), self._began_at)

    def _way(self) -> dict[str, Any] | None:
        return None if self._course is None else self._course.to_map()


def is_word(piece: Any) -> bool:
    """Whether somebody sees or feels what an agent said."""
    kind = piece.get("type") if isinstance(piece, dict) else None
    return bool(piece) and not (isinstance(kind, str) and kind in _ABOUT)


def told(exc: Exception) -> tuple[str, str]:
    """Code and message of an agent's failure, as its run would have them."""
    error = (failure(exc) if isinstance(exc, RunError) else raised(exc)).error or {}
    return error["code"], error["message"]


def nobody(router: str, course: Course, options: Mapping[str, Any]) -> RunError:
    """Why no agent of a router was tried."""
    reasons = "; ".join(f"{row['agent']}: {row['why']}" for row in course.skipped) or "it excludes them all"
    message = f"no agent of router {router!r} can take the run: {reasons}"
    details: dict[str, Any] = {"skipped": course.skipped}
    if not course.order and course.skipped:
        details["missing"] = list(options.get("required_capabilities") or ())
        return RunError(message, code="missing_required_capability", details=details)
    wait_s = course.routing.retry_after_s(course.order, time.monotonic())
    if wait_s is not None:
        details["retry_after_ms"] = round(wait_s * 1000)
    return RunError(message, code="provider_unavailable", details=details)


def negotiated(provider: Provider, options: Mapping[str, Any]) -> dict[str, Any]:
    """What ``run_started`` says of the capabilities that the run would like; nothing when it names none."""
    optional = options.get("optional_capabilities")
    if not optional:
        return {}
    required = options.get("required_capabilities") or ()
    return {"capabilities": negotiate(provider.capabilities, required, optional).to_map()}


__all__ = ["HELD_MAX", "LOADING_S", "Attempt", "Routed", "is_word", "negotiated", "nobody", "told"]
