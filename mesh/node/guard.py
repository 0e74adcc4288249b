"""A run's policy at work: what breaks it becomes an event, and the policy's action follows.

What is decided stands in ``core/policy.py`` and ``core/policy_monitor.py``; here are timer, events and end,
and in ``by_hand.py`` what humans are asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mesh.core import approval, usage
from mesh.core.plain import plain
from mesh.core.policy import Action, Policy, preflight
from mesh.core.policy_monitor import Monitor, Violation
from mesh.core.prices import Prices
from mesh.errors import InvalidArgument, RunError, shown
from mesh.node.by_hand import Questions
from mesh.node.ending import Ending, error_map
from mesh.node.spending import Account, Spending

Emit = Callable[[str, dict[str, Any]], None]
CALL_ID_CHARS_MAX = 200


class Guard:
    """The policy of one attempt of a run. Everything happens on the runner's loop."""

    def __init__(
        self, policy: Policy, prices: Prices, questions: Questions, *, emit: Emit,
        stop: Callable[[Ending], None], trusted: Any = (), account: Account | None = None,
    ) -> None:
        self.policy = policy
        self.monitor = Monitor(policy)
        for tool in trusted if isinstance(trusted, list) else ():
            if isinstance(tool, str):
                self.monitor.trust(tool)
        self.questions = questions
        questions.on_change = self._turn_clock
        self._prices = prices
        self._emit = emit
        self._stop = stop
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._began_s = 0.0
        self._waited_s = 0.0  #: of the time since then, for humans
        self._asked = False
        self._over = False
        self._paid: tuple[float, float | None] = (0, 0.0)  #: tokens and USD, of agents that gave up
        self._used_up: list[Violation] = []
        self._ended_by: RunError | None = None
        self.spending = Spending(
            self.monitor, account, act=self._act_and_watch, refuse=self._refuse, free=self._free
        )

    async def begin(self) -> None:
        """The run is about to start: its time counts from here.

        Raises:
            RunError: ``policy_violation``; nothing can be done under this policy, or a budget that it shares
                is used up. ``partition_unavailable``: whether it is cannot be told.
        """
        preflight(self.policy)
        self._used_up = await self.spending.open()
        if self._used_up and self.policy.action == Action.CANCEL:
            raise self._broken()
        self._began_s = self._loop.time()
        self._watch()

    def begun(self) -> None:
        """The log has the run's beginning: follow what was found before it."""
        used_up, self._used_up = self._used_up, []
        self._act(used_up)

    def _watch(self) -> None:
        due_ms = self.monitor.due_ms
        if due_ms is not None and not self._over and not self.questions.waiting:
            # One ms late: a limit is broken by what is over it.
            due_s = self._began_s + self._waited_s + (due_ms + 1) / 1000
            self._timer = self._loop.call_at(due_s, self._look)

    @property
    def age_ms(self) -> float:
        """How long the run has been at work; what it waited for humans is left out."""
        return (self._loop.time() - self._began_s - self._waited_s) * 1000 if self._began_s else 0.0

    def _look(self) -> None:
        self._act(self.monitor.on_time(self.age_ms))
        self._watch()

    def _turn_clock(self, waited_s: float) -> None:
        """The run begins or ceases to wait for a human: that time does not count."""
        self._waited_s += waited_s
        if self._timer is not None:
            self._timer.cancel()
        self._watch()

    def on_event(self, event_type: str, data: Mapping[str, Any]) -> None:
        """The agent wrote an event."""
        broken = self.monitor.on_event(event_type, data)
        if broken:
            self._act(broken, about=data)
        self.spending.reported()

    def on_usage(self, used: usage.Counts, provider: str | None, model: str | None) -> None:
        """The agent said what it used; ``used`` are the counts of the run so far."""
        broken = self.monitor.on_usage(*self._sums(used, provider, model))
        if broken:
            self._act(broken)

    def paid(self, used: usage.Counts, provider: str | None, model: str | None) -> None:
        """That was used by an agent from whom another one takes over: it counts beside what comes."""
        self._paid = self._sums(used, provider, model)
        violations = self.monitor.on_usage(*self._paid)
        if self.policy.action == Action.CANCEL:
            self._act(violations)
        else:
            self._used_up += violations

    def _sums(
        self, used: usage.Counts, provider: str | None, model: str | None
    ) -> tuple[float, float | None]:
        tokens = used.get(usage.TOTAL, used.get(usage.INPUT, 0) + used.get(usage.OUTPUT, 0))
        usd = self._prices.cost(provider, model, used).usd if self.monitor.costs else None
        paid_tokens, paid_usd = self._paid
        return tokens + paid_tokens, None if usd is None or paid_usd is None else usd + paid_usd

    async def permit(self, tool: str, tool_input: Any, call_id: str | None) -> None:
        """May this tool be called? Asked before it runs; returns when it may, perhaps after a human said so.

        Raises:
            RunError: ``tool_permission_denied``; the tool must not be called.
            InvalidArgument: the question makes no sense; nor must it then.
        """
        if type(tool) is not str or not tool:
            raise InvalidArgument(f"a tool is named by a non-empty str, not {shown(tool, 60)}")
        if call_id is not None and not (type(call_id) is str and 0 < len(call_id) <= CALL_ID_CHARS_MAX):
            raise InvalidArgument(f"tool_call_id must be a non-empty str, not {shown(call_id, 60)}")
        await self._free()
        verdict = self.monitor.on_request(tool, tool_input, call_id)
        if verdict.effect == "ask":
            await self._permit_by_hand(tool, tool_input, call_id)
        elif verdict.effect == "deny":
            violation = self.monitor.denied(tool, verdict)
            self._act([violation], prevented=True)
            await asyncio.sleep(0)  # an agent whose run that ended hears of it here, not where it cleans up
            raise RunError(f"policy {self.policy.name!r:.80} does not allow {tool!r:.80}",
                           code="tool_permission_denied", details=violation.details)

    async def _permit_by_hand(self, tool: str, tool_input: Any, call_id: str | None) -> None:
        name = self.questions.name(call_id)
        request = self._request(tool, tool_input, "approval_required")
        request["digest"] = approval.digest(tool, plain(tool_input, "tool_input"))
        decision = await self.questions.decision(name, request)
        if decision["approved"]:
            self._approved(tool, call_id, decision["scope"])
            return
        self.monitor.refused(call_id)
        details = {"tool_name": tool, "tool_call_id": decision.get("name", name), "by": decision["by"],
                   "reason": decision["reason"]}
        raise RunError(f"{tool!r:.80} was denied{_who(decision)}", code="tool_permission_denied",
                       details=details)

    def _approved(self, tool: str, call_id: str | None, scope: str) -> None:
        if scope == approval.ONCE:
            self.monitor.permitted(tool, call_id)
        else:
            self.monitor.trust(tool)

    def _request(self, tool: str | None, tool_input: Any, kind: str) -> dict[str, Any]:
        policy = self.policy
        return {
            "tool_name": tool, "tool_input": approval.shown_input(plain(tool_input, "tool_input")),
            "policy_name": policy.name, "violation_kind": kind,
            "limit_s": policy.approval_s or approval.LIMIT_S,
            "default": policy.approval_default or approval.DENY,
        }

    def _act_and_watch(self, violations: Sequence[Violation]) -> None:
        """Others used something: the limits on time may be nearer, too."""
        self._act(violations)
        if self._timer is not None:
            self._timer.cancel()
        self._watch()

    async def _refuse(self, broken: Sequence[Violation]) -> None:
        """A call would exceed a budget: return only when it may be made nevertheless.

        Raises:
            RunError: ``policy_violation``.
        """
        self._act(broken, prevented=True)
        action = self.policy.action
        if action == Action.PAUSE:
            request = self._request(None, broken[0].details, broken[0].kind)
            decision = await self.questions.decision(self.questions.name(None), request)
            if decision["approved"]:
                return
            self._stop(self._ending(_who(decision)))
        if action in (Action.PAUSE, Action.CANCEL):
            raise self._broken()

    def _broken(self) -> RunError:
        error = self._ending().error or {}
        return RunError(error["message"], code=error["code"], details=error["details"])

    def _act(
        self, violations: Sequence[Violation], *, prevented: bool = False,
        about: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Say what was violated and follow; ``about``: the event that did it."""
        for violation in violations:
            self._emit("policy_violation", violation.data())
        actions = {violation.action for violation in violations}
        if Action.CANCEL in actions:
            self._stop(self._ending())
            return
        if Action.REQUEST_APPROVAL in actions and not self._asked:
            self._asked = True
            first = violations[0]
            tool = first.details.get("tool_name")
            self._emit("tool_approval_requested", {
                "tool_name": tool, "tool_call_id": about.get("tool_call_id") if tool else None,
                "tool_input": approval.shown_input(about.get("tool_input")) if tool else None,
                "policy_name": self.policy.name, "violation_kind": first.kind,
            })
        for violation in violations:
            if violation.action == Action.PAUSE and not prevented:
                self._pause(violation)

    def _pause(self, violation: Violation) -> None:
        """Ask whether the run may go on; until then nothing more is taken from its agent."""
        tool = violation.details.get("tool_name")
        name = self.questions.name(None)

        def decided(decision: dict[str, Any]) -> None:
            if not decision["approved"]:
                self._ended_by = self._broken()
                self._stop(self._ending(_who(decision)))
            elif tool is not None and decision["scope"] != approval.ONCE:
                self.monitor.trust(tool)

        self.questions.hold(name, self._request(tool, violation.details, violation.kind), decided)

    async def _free(self) -> None:
        """Return when no human is asked whether the run may go on.

        Raises:
            RunError: ``policy_violation``; it may not.
        """
        await self.questions.free()
        if self._ended_by is not None:
            raise RunError(self._ended_by.message, code=self._ended_by.code, details=self._ended_by.details)

    def _ending(self, who: str = "") -> Ending:
        kinds = ", ".join(dict.fromkeys(violation.kind for violation in self.monitor.violations))
        message = f"the run broke its policy {self.policy.name!r:.80}: {kinds}"
        if who:
            message += f"; that it goes on was denied{who}"
        violations = [violation.data() for violation in self.monitor.violations]
        details = {"policy": self.policy.name, "violations": violations}
        return Ending("failed", error_map("policy_violation", message, details))

    def end(self) -> dict[str, Any]:
        """The run is over; what its result says of the policy."""
        self._over = True
        self.spending.end()
        if self._timer is not None:
            self._timer.cancel()
        return self.monitor.result()


def _who(decision: Mapping[str, Any]) -> str:
    by, reason = decision["by"], decision["reason"]
    return (f" by {by}" if by else "") + (f": {reason}" if reason else "")


__all__ = ["CALL_ID_CHARS_MAX", "Guard"]
