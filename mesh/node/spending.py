"""What a run spends of budgets that others spend from: asked before its calls, looked at now and then.

Rules of this file:

1. A run whose policy counts itself alone asks nobody anything.
2. Who reserves stores what he holds first and asks for the sums then (rule 3 of ``core/spent.py``). When they
   cannot be told in time, the call must not be made: a budget that nobody knows is no budget.
3. A reservation ends with its block; what the run holds after that is told, and waited for by nobody.
4. Calls of one run are judged one at a time: while a human is asked about one, no other one exceeds the same
   budget; and a run that was refused one makes no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mesh.core.policy import Policy
from mesh.core.policy_monitor import Monitor, Violation
from mesh.core.runner import Key
from mesh.core.spent import Sums, added
from mesh.errors import MeshError, RunError

#: How long a run waits for a sum; a partition that restarts needs a fraction of it.
WAIT_S = 5.0
#: While an agent reports what it used, what others used is asked for at most so often.
LOOK_S = 1.0

Read = Callable[[int, str, list[Any]], Awaitable[Any]]
#: Ask a run's partition: (tag, what makes the message, what is called with the answer).
Ask = Callable[[int, Callable[[], list[Any]], Callable[..., None]], None]


class Account:
    """The sums that one run shares with others, at the partitions."""

    def __init__(
        self, policy: Policy, key: Key, session_id: str, partition: int, *, read: Read, ask: Ask,
        partitions: Callable[[], int],
    ) -> None:
        scopes = {limit.scope for limit in policy.limits}
        self._session = session_id if "session" in scopes else None
        self._tags = sorted(scope.removeprefix("tag:") for scope in scopes if scope.startswith("tag:"))
        self._key = key
        self._partition = partition
        self._read = read
        self._ask = ask
        self._partitions = partitions
        self._number = 0

    @property
    def shared(self) -> bool:
        """Whether a limit is about more than this run."""
        return bool(self._session or self._tags)

    async def used(self) -> dict[str, Sums]:
        """Scope -> metric -> what all but this attempt used, and hold.

        Raises:
            RunError: ``partition_unavailable``: somebody does not answer.
        """
        asked = range(self._partitions()) if self._tags else (self._partition,)
        found: dict[str, Sums] = await self._in_time(self._all(list(asked)))
        return found

    async def _all(self, partitions: list[int]) -> dict[str, Sums]:
        found: dict[str, Sums] = {}
        for answer in await asyncio.gather(*map(self._one, partitions)):
            for scope, sums in answer.items():
                found[scope] = added(found.get(scope, {}), sums)
        return found

    async def _one(self, partition: int) -> dict[str, Sums]:
        session = self._session if partition == self._partition else None
        args = [session, self._tags, self._key[0]]
        found: dict[str, Sums] = await self._read(partition, "budget.used", args)
        return found

    async def hold(self, held: Mapping[str, float]) -> None:
        """Return when it is stored what the run holds now.

        Raises:
            RunError: ``partition_unavailable``.
        """
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.tell(held, lambda _: None if stored.done() else stored.set_result(None))
        await self._in_time(stored)

    def tell(self, held: Mapping[str, float], stored: Callable[..., None] = lambda _: None) -> None:
        """The run holds so much now."""
        self._number += 1
        message = ["hold", *self._key, self._number, dict(held)]
        self._ask(-self._number, lambda: message, stored)

    async def _in_time(self, answer: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(WAIT_S):
                return await answer
        except (TimeoutError, MeshError) as exc:
            message = f"what the budgets of the session and its tags still hold cannot be told: {exc}"
            raise RunError(message.rstrip(": "), code="partition_unavailable") from exc


class Spending:
    """One run's use of its budgets. ``act`` follows violations, ``refuse`` does before a call; ``free`` waits
    while a human is asked whether the run may go on."""

    def __init__(
        self, monitor: Monitor, account: Account | None, *, act: Callable[[list[Violation]], None],
        refuse: Callable[[list[Violation]], Awaitable[None]], free: Callable[[], Awaitable[None]],
    ) -> None:
        self._monitor = monitor
        self._account = account if account is not None and account.shared else None
        self._act = act
        self._refuse = refuse
        self._free = free
        self._loop = asyncio.get_running_loop()
        self._judging = asyncio.Lock()
        self._refused: RunError | None = None
        self._looked_s = 0.0
        self._look: asyncio.TimerHandle | asyncio.Task[None] | None = None

    async def open(self) -> list[Violation]:
        """Learn what others used before the run begins; what is used up already."""
        if self._account is None:
            return []
        self._looked_s = self._loop.time()
        return self._monitor.know(await self._account.used())

    def left(self, metric: str) -> float | None:
        """What may still be used, by what is known of the others; None: nothing limits it."""
        return self._monitor.left(metric)

    async def reserve(self, amounts: Mapping[str, float]) -> None:
        """Hold so much for a call that is about to be made; ``release`` gives it back.

        Raises:
            RunError: ``policy_violation``: it does not fit; ``partition_unavailable``: nobody knows.
        """
        self._hold(amounts, 1)
        try:
            account = self._account
            if account is not None:
                await account.hold(self._monitor.held)
                self._act(self._monitor.know(await account.used()))
            async with self._judging:
                await self._free()
                await self._judge()
        except BaseException:
            self.release(amounts)
            raise

    async def _judge(self) -> None:
        former = self._refused
        if former is not None:
            raise RunError(former.message, code=former.code, details=former.details)
        broken = self._monitor.excess()
        try:
            if broken:
                await self._refuse(broken)
        except RunError as error:
            self._refused = error
            await asyncio.sleep(0)  # an agent whose run that ended hears of it here, not where it cleans up
            raise

    def release(self, amounts: Mapping[str, float]) -> None:
        """The call was made, and what it used was reported; or it was not made."""
        self._hold(amounts, -1)
        if self._account is not None:
            self._account.tell(self._monitor.held)

    def _hold(self, amounts: Mapping[str, float], sign: int) -> None:
        self._monitor.reserved.update(amounts)
        held = added(self._monitor.held, amounts, sign)
        self._monitor.held = {metric: amount for metric, amount in held.items() if amount > 0}

    def reported(self) -> None:
        """The agent used something: look soon what others did."""
        if self._account is not None and self._look is None:
            wait_s = max(0.0, self._looked_s + LOOK_S - self._loop.time())
            self._look = self._loop.call_later(wait_s, self._begin)

    def _begin(self) -> None:
        self._look = self._loop.create_task(self._again())

    async def _again(self) -> None:
        assert self._account is not None
        try:
            before = await self._account.used()
        except RunError:
            return  # what was known last holds; who reserves is refused
        finally:
            self._looked_s, self._look = self._loop.time(), None
        self._act(self._monitor.know(before))

    def end(self) -> None:
        """The run is over."""
        if self._look is not None:
            self._look.cancel()
        self._look, self._account = None, None


__all__ = ["LOOK_S", "WAIT_S", "Account", "Spending"]
