"""A run's policy at work: what breaks it becomes an event, and the policy's action follows.

What is decided stands in ``core/policy.py`` and ``core/policy_monitor.py``; here are timer, events and end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mesh.core import usage
from mesh.core.policy import Action, Policy, preflight
from mesh.core.policy_monitor import Monitor, Violation
from mesh.core.prices import Prices
from mesh.errors import RunError
from mesh.node.ending import Ending, error_map

Emit = Callable[[str, dict[str, Any]], None]


class Guard:
    """The policy of one attempt of a run. Everything happens on the runner's loop."""

    def __init__(self, policy: Policy, prices: Prices, *, emit: Emit, stop: Callable[[Ending], None]) -> None:
        self.policy = policy
        self.monitor = Monitor(policy)
        self._prices = prices
        self._emit = emit
        self._stop = stop
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._began_s = 0.0
        self._asked = False

    def begin(self) -> None:
        """The run is about to start: its time counts from here.

        Raises:
            RunError: ``policy_violation``; nothing can be done under this policy.
        """
        preflight(self.policy)
        self._began_s = self._loop.time()
        self._watch()

    def _watch(self) -> None:
        due_ms = self.monitor.due_ms
        if due_ms is not None:
            # One ms late: a limit is broken by what is over it.
            self._timer = self._loop.call_at(self._began_s + (due_ms + 1) / 1000, self._look)

    def _look(self) -> None:
        self._act(self.monitor.on_time((self._loop.time() - self._began_s) * 1000))
        self._watch()

    def on_event(self, event_type: str, data: Mapping[str, Any]) -> None:
        """The agent wrote an event."""
        self._act(self.monitor.on_event(event_type, data))

    def on_usage(self, used: usage.Counts, provider: str | None, model: str | None) -> None:
        """The agent said what it used; ``used`` are the counts of the run so far."""
        tokens = used.get(usage.TOTAL, used.get(usage.INPUT, 0) + used.get(usage.OUTPUT, 0))
        self._act(self.monitor.on_usage(tokens, self._prices.cost(provider, model, used).usd))

    def permit(self, tool: str, tool_input: Any, call_id: str | None) -> None:
        """May this tool be called? Asked before it runs.

        Raises:
            RunError: ``tool_permission_denied``; the tool must not be called.
        """
        verdict = self.monitor.on_request(tool, tool_input, call_id)
        if verdict.effect == "allow":
            return
        violation = self.monitor.denied(tool, verdict)
        self._act([violation])
        raise RunError(f"policy {self.policy.name!r:.80} does not allow {tool!r:.80}",
                       code="tool_permission_denied", details=violation.details)

    def _act(self, violations: Sequence[Violation]) -> None:
        for violation in violations:
            self._emit("policy_violation", violation.data())
        if violations and self.policy.action == Action.CANCEL:
            self._stop(self._ending())
        elif violations and self.policy.action == Action.REQUEST_APPROVAL and not self._asked:
            self._asked = True
            first = violations[0]
            self._emit("tool_approval_requested", {
                "tool_name": first.details.get("tool_name"), "policy_name": self.policy.name,
                "violation_kind": first.kind,
            })

    def _ending(self) -> Ending:
        kinds = ", ".join(dict.fromkeys(violation.kind for violation in self.monitor.violations))
        message = f"the run broke its policy {self.policy.name!r:.80}: {kinds}"
        violations = [violation.data() for violation in self.monitor.violations]
        details = {"policy": self.policy.name, "violations": violations}
        return Ending("failed", error_map("policy_violation", message, details))

    def end(self) -> dict[str, Any]:
        """The run is over; what its result says of the policy."""
        if self._timer is not None:
            self._timer.cancel()
        return self.monitor.result()


__all__ = ["Guard"]
