"""Attaching, on asyncio: a seat at a session, as ``_surface_attach`` plans it."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from mesh.client import _surface_attach as plans
from mesh.client._aio_approvals import AsyncApprovals
from mesh.client._aio_link import AsyncLink
from mesh.client._aio_runs import AsyncRuns
from mesh.client._payload import Call, Pair
from mesh.client._surface import Plan, check_function, check_timeout
from mesh.core.approval import Approval
from mesh.core.attached import Claim, Snapshot
from mesh.core.records import Event, Prompted
from mesh.errors import MeshError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.client._aio_sessions import AsyncSessions


class AsyncKeyedLink(AsyncLink):
    """The same connection; what goes over it about sessions shows credentials."""

    def __init__(self, link: AsyncLink, shown: plans.Shown) -> None:  # the connection is the other link's
        self.link: AsyncLink = link.link if isinstance(link, AsyncKeyedLink) else link
        self.shown = shown
        self.address, self.timeout_s = link.address, link.timeout_s
        self.listeners = link.listeners

    def call(self, kind: int, slot: int, call: Call, timeout_s: float | None = None) -> asyncio.Future[Pair]:
        """Queue a call, with credentials."""
        return self.link.call(kind, slot, self.shown.call(call), timeout_s)

    async def drive(self, plan: Plan, timeout_s: float | None = None) -> Any:
        """Perform a plan, each of its calls with credentials."""
        return await self.link.drive(self.shown.plan(plan), timeout_s)


class AsyncAttachment:
    """A seat at a session: how it stood (``snapshot``), what is said from there on, and the right to act.

    Iterating gives every event behind ``seq`` once, in order, live, over restarts of anything. ``sessions``,
    ``runs`` and ``approvals`` are the client's groups with this seat's rights: a viewer sees everything, and
    whatever only the driver may do is ``not_driver``. The driver's lease is renewed in the background, as
    long as the attachment lives. It is an async context manager; leaving it detaches.
    """

    def __init__(
        self, link: AsyncLink, seat: plans.Seat, snapshot: Snapshot, groups: type[AsyncSessions]
    ) -> None:
        self.snapshot = snapshot
        self._seat = seat
        self._link = link.link if isinstance(link, AsyncKeyedLink) else link
        keyed = AsyncKeyedLink(self._link, seat)
        self.sessions = groups(keyed)
        self.runs = AsyncRuns(keyed)
        self.approvals = AsyncApprovals(keyed)
        self._renewal: asyncio.Task[None] | None = None
        self._begin()

    @property
    def id(self) -> str:
        """The session's id."""
        return self._seat.id

    @property
    def role(self) -> str:
        """``driver`` or ``viewer``: who was the driver is a viewer as soon as he learnt that he is not."""
        return self._seat.role

    @property
    def seq(self) -> int:
        """The last event that was given out: attach with ``after=seq`` to go on there."""
        return self._seat.seq

    @property
    def claimed(self) -> Claim | None:
        """The claim of this seat, while it drives."""
        return self._seat.claimed

    def _begin(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
        if self._seat.claimed is not None:
            loop = asyncio.get_running_loop()
            self._renewal = loop.create_task(_keep(self._link, self._seat))
            weakref.finalize(self, _cancel, loop, self._renewal)

    async def claim(self, *, takeover: bool = False, timeout_s: float | None = None) -> None:
        """Become the driver; nothing changes for one who is.

        Raises:
            InvalidState: ``driver_taken``, somebody else is; details say who. ``session_closed``.
        """
        await self._link.drive(self._seat.claim(takeover, timeout_s), timeout_s)
        self._begin()

    async def release(self, *, timeout_s: float | None = None) -> bool:
        """Become a viewer; whether this was the driver."""
        had: bool = await self._link.drive(self._seat.leave(timeout_s), timeout_s)
        return had

    async def detach(self, *, timeout_s: float | None = None) -> None:
        """Leave the seat; the session and its runs go on. Where nobody answers, a lease ends by itself."""
        if self._renewal is not None:
            self._renewal.cancel()
        try:
            await self.release(timeout_s=timeout_s)
        except MeshError:
            return

    async def set_token(self, token: str | None, *, timeout_s: float | None = None) -> None:
        """Give the session another token, or none; this seat shows it from now on."""
        await self._link.drive(self._seat.change_token(token, timeout_s), timeout_s)

    async def prompt(
        self, text: str, *, queue: str = "follow_up", on_busy: str = "enqueue", timeout_s: float | None = None
    ) -> Prompted:
        """``sessions.prompt``, with this seat's right."""
        return await self.sessions.prompt(
            self.id, text, queue=queue, on_busy=on_busy, timeout_s=timeout_s)

    async def interrupt(self, *, timeout_s: float | None = None) -> Sequence[str]:
        """``sessions.interrupt``, with this seat's right."""
        return await self.sessions.interrupt(self.id, timeout_s=timeout_s)

    async def abort(self, *, timeout_s: float | None = None) -> int:
        """``sessions.abort``, with this seat's right."""
        return await self.sessions.abort(self.id, timeout_s=timeout_s)

    async def approve(
        self, run_id: str, tool_call_id: str, *, scope: str = "once", timeout_s: float | None = None
    ) -> Approval:
        """``approvals.approve``, with this seat's right and under its name."""
        return await self.approvals.approve(
            run_id, tool_call_id, scope=scope, by=self._seat.by, timeout_s=timeout_s)

    async def deny(
        self, run_id: str, tool_call_id: str, reason: str | None = None, *, timeout_s: float | None = None
    ) -> Approval:
        """``approvals.deny``, with this seat's right and under its name."""
        return await self.approvals.deny(
            run_id, tool_call_id, reason, by=self._seat.by, timeout_s=timeout_s)

    async def stream(
        self, *, stop_when: Callable[[Event], bool] | None = None, timeout_s: float | None = None
    ) -> AsyncIterator[Event]:
        """What is said behind ``seq``: each event once. Goes on there when it is called again.

        Ends behind the first event for which ``stop_when`` is true. ``timeout_s`` is the longest silence.
        """
        check_function(stop_when, "stop_when")
        check_timeout(timeout_s)
        seat = self._seat
        while True:
            if not seat.ready:
                await self._link.drive(seat.page(timeout_s))
            event = seat.ready.popleft()
            seat.heard(event)
            yield event
            if stop_when is not None and stop_when(event):
                return

    def __aiter__(self) -> AsyncIterator[Event]:
        return self.stream()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.detach()


async def _keep(link: AsyncLink, seat: plans.Seat) -> None:
    """Renew until the right is lost, given back, or the client closed."""
    while seat.claimed is not None:
        await asyncio.sleep(seat.renew_every_s)
        await link.drive(seat.renew(seat.renew_every_s))


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    """The attachment was forgotten without being detached; perhaps in another thread, or behind its loop."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(task.cancel)


class AsyncAttaching:
    """What ``client.sessions`` knows of seats: attaching, claims, tokens."""

    _link: AsyncLink

    async def attach(
        self,
        id: str,
        *,
        role: str = "viewer",
        after: int | None = None,
        token: str | None = None,
        by: str | None = None,
        ttl_s: float | None = None,
        takeover: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncAttachment:
        """Take a seat: a snapshot, and every event behind it (or behind ``after``), gapless and live.

        As ``driver`` it claims the session: from then on nobody else may prompt it, stop what it does or
        answer what it asks. The lease lasts ``ttl_s`` (30) after its last renewal. ``by`` is the name others
        see. The seat of a client that shows a driver's key drives with that one, which is not given back
        when it detaches.

        Raises:
            InvalidState: ``driver_taken``; ``takeover`` takes the right from who has it, and he is told.
            NotAllowed: ``unauthorized``, the session has another token.
            InvalidArgument: ``invalid_role``, ``invalid_cursor``.
        """
        link, lent = self._link, None
        if isinstance(link, AsyncKeyedLink):
            token, lent, link = token or link.shown.token, link.shown.key, link.link
        seat = plans.Seat(id, role, token=token, by=by, ttl_s=ttl_s, lent=lent)
        found: Snapshot = await link.drive(seat.open(after, takeover, timeout_s), timeout_s)
        return AsyncAttachment(link, seat, found, cast(Any, type(self)))

    async def claim(
        self,
        id: str,
        *,
        key: str | None = None,
        by: str | None = None,
        ttl_s: float | None = None,
        takeover: bool = False,
        timeout_s: float | None = None,
    ) -> Claim:
        """Claim a session for whoever has the key: ``Client(driver=claim.key)`` acts with it, in any process.

        Nobody renews it but the calls that use it, and ``renew``. With the driver's own key: his time begins
        anew.

        Raises:
            InvalidState: ``driver_taken``; ``takeover`` takes it from who has it. ``session_closed``.
        """
        plan = plans.claim(id, key, by=by, ttl_s=ttl_s, takeover=takeover, timeout_s=timeout_s)
        claimed: Claim = await self._link.drive(plan, timeout_s)
        return claimed

    async def renew(self, id: str, key: str, *, timeout_s: float | None = None) -> Claim:
        """Have the lease last as long from now on.

        Raises:
            NotAllowed: ``not_driver``, the key is not the driver's any more.
        """
        claimed: Claim = await self._link.drive(plans.renew(id, key, timeout_s), timeout_s)
        return claimed

    async def release(self, id: str, key: str, *, timeout_s: float | None = None) -> bool:
        """Give the right back; whether the key was the driver's."""
        had: bool = await self._link.drive(plans.release(id, key, timeout_s), timeout_s)
        return had

    async def set_token(self, id: str, token: str | None, *, timeout_s: float | None = None) -> None:
        """Give a session another token (``mesh.new_token()``), or none: then it is everybody's.

        Of a protected session its present token is needed: ``Client(token=...)`` or an attachment.
        """
        await self._link.drive(plans.set_token(id, token, timeout_s), timeout_s)


def keyed(link: AsyncLink, token: Any, driver: Any) -> AsyncLink:
    """The link of a client that shows credentials; the same one when there are none."""
    return link if token is None and driver is None else AsyncKeyedLink(link, plans.Shown(token, driver))


__all__ = ["AsyncAttaching", "AsyncAttachment", "AsyncKeyedLink", "keyed"]
