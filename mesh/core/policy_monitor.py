"""What a run used so far, held against its policy: a machine that events and a timer drive.

Rules of this file:

1. Each limit is broken once, at the first count that is over it; each call of a tool is judged once,
   however many events tell of it. A second start under one id is another call.
2. Time is told by the caller: ``due_ms`` says when the next limit on duration breaks, so that a provider
   that says nothing is stopped in time, too.
3. What is told are totals, never differences: who counts tokens (``core/usage.py``) knows which is which.
4. A sum over a session or a tag is this run's and what others used; ``know`` tells how much that is.
5. A cost that nobody knows breaks no limit; that it is not enforced is said once, in ``warnings``.
6. A call that a rule asks about and that is only reported is a violation of the kind ``approval_required``:
   too late to prevent it, in time to stop the run. One that a human approved is not asked about again.
7. ``excess`` asks before a call whether its most would fit, beside what was used and what is ``held``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mesh.core.judging import ALLOWED, Judge, Verdict
from mesh.core.policy import LIMITS, Action, Limit, Policy
from mesh.core.records import Record

#: Events of a tool's call: the first one that is seen of a call is judged.
_STARTED = "tool_call_started"
_TOOL_EVENTS = frozenset((_STARTED, "tool_call_completed", "tool_call_failed"))
#: Sums of costs are floats: a budget that is used up to the cent is not exceeded.
EXACT = 1e-9
#: Calls without an id are told apart by nothing: each of their events is judged, and this many are counted.
CALLS_MAX = 100_000
MISSING_RATES = "missing_cost_rates"


class Violation(Record, frozen=True):
    """One thing that a policy forbids and that happened, or was about to."""

    policy: str
    kind: str  #: ``budget_exceeded``, ``tool_denied`` or ``approval_required``
    action: Action
    details: dict[str, Any]

    def data(self) -> dict[str, Any]:
        """The data of its ``policy_violation`` event."""
        data: dict[str, Any] = self.to_map()
        return data


class Monitor:
    """One run under one policy."""

    __slots__ = (
        "_before",
        "_broken",
        "_counted",
        "_judged",
        "_limits",
        "_permitted",
        "_rules",
        "_seen",
        "_started",
        "_timed",
        "_trusted",
        "_unnamed",
        "calls",
        "held",
        "policy",
        "reserved",
        "totals",
        "violations",
        "warnings",
    )

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.totals: dict[str, float] = {kind.metric: 0 for kind in LIMITS.values()}
        self.violations: list[Violation] = []
        self.warnings: list[str] = []
        self.held: dict[str, float] = {}  #: reserved for calls that are being made, by metric
        self.reserved: set[str] = set()  #: metrics of which something was held
        self.calls = {"asked": 0, "observed": 0}  #: of tools: judged before they ran, or by their report
        self._unnamed: dict[str, int] = {}  #: asked without an id, and not reported yet
        self._before: Mapping[str, Mapping[str, float]] = {}
        self._rules = Judge(policy)
        self._limits: dict[str, list[Limit]] = {}
        for limit in policy.limits:
            self._limits.setdefault(limit.metric, []).append(limit)
        self._timed = sorted(self._limits.pop("duration_ms", []), key=self._left_ms)
        self._counted = {row.event: row.metric for row in LIMITS.values() if row.event is not None}
        self._broken: set[Limit] = set()
        self._seen: set[str] = set()
        self._started: set[str] = set()
        self._judged: set[str] = set()
        self._trusted: set[str] = set()
        self._permitted: dict[str, int] = {}

    def _used_before(self, limit: Limit) -> float:
        return self._before.get(limit.scope, {}).get(limit.metric, 0)

    def _left_ms(self, limit: Limit) -> float:
        return limit.most - self._used_before(limit)

    @property
    def due_ms(self) -> float | None:
        """The run's age at which ``on_time`` has something to say; None when it never will."""
        return max(0.0, self._left_ms(self._timed[0])) if self._timed else None

    def on_time(self, age_ms: float) -> list[Violation]:
        """The run is so old now."""
        self.totals["duration_ms"] = age_ms
        broken = []
        while self._timed and age_ms > self._left_ms(self._timed[0]):
            limit = self._timed.pop(0)
            broken.append(self._exceeded(limit, age_ms + self._used_before(limit)))
        return broken

    @property
    def costs(self) -> bool:
        """Whether it matters what the run costs."""
        return "cost_usd" in self._limits

    def on_event(self, event_type: str, data: Mapping[str, Any]) -> list[Violation]:
        """An event of the provider: it may count, and a tool's call is judged."""
        if event_type in _TOOL_EVENTS:
            return self._on_tool(event_type, data)
        return self._count(self._counted[event_type]) if event_type in self._counted else []

    def _on_tool(self, event_type: str, data: Mapping[str, Any]) -> list[Violation]:
        call_id = data.get("tool_call_id")
        if isinstance(call_id, str):
            if call_id in self._seen and not (event_type == _STARTED and call_id in self._started):
                return []
            if len(self._seen) < CALLS_MAX:
                self._seen.add(call_id)
                if event_type == _STARTED:
                    self._started.add(call_id)
        elif event_type != _STARTED:
            return []
        broken = self._count("tool_calls")
        name = data.get("tool_name", data.get("name"))
        if isinstance(name, str) and call_id not in self._judged:
            self._report(name)
            verdict = self._judge(name, data.get("tool_input"))
            if verdict.effect == "deny":
                broken.append(self.denied(name, verdict))
            elif verdict.effect == "ask" and not self._was_permitted(name):
                broken.append(self._unasked(name, verdict))
        elif event_type == _STARTED:
            self._judged.discard(call_id)  # that was about this call; one after it under its id is new
        return broken

    def _report(self, tool: str) -> None:
        """A call is told of; unless it was asked for without an id, it was not asked for."""
        name = tool.casefold()
        if self._unnamed.get(name):
            self._unnamed[name] -= 1
        else:
            self.calls["observed"] += 1

    def _judge(self, tool: str, tool_input: Any) -> Verdict:
        verdict = self._rules(tool, tool_input)
        trusted = verdict.effect == "ask" and tool.casefold() in self._trusted
        return ALLOWED if trusted else verdict

    def trust(self, tool: str) -> None:
        """A human approved this tool, whatever its input: rules that ask allow it from now on."""
        self._trusted.add(tool.casefold())

    def permitted(self, tool: str, call_id: str | None) -> None:
        """A human approved one call; of one without an id the next report of the tool is about it."""
        name = tool.casefold()
        if call_id is None:
            self._permitted[name] = self._permitted.get(name, 0) + 1
        elif len(self._judged) < CALLS_MAX:
            self._judged.add(call_id)

    def refused(self, call_id: str | None) -> None:
        """A human denied this call: that it failed, which its agent will report, is no second question."""
        if call_id is not None and len(self._judged) < CALLS_MAX:
            self._judged.add(call_id)

    def _was_permitted(self, tool: str) -> bool:
        left = self._permitted.get(tool.casefold(), 0)
        if left:
            self._permitted[tool.casefold()] = left - 1
        return left > 0

    def _unasked(self, tool: str, verdict: Verdict) -> Violation:
        assert verdict.rule is not None
        listed = [pattern.tool for pattern in verdict.rule.tools]
        details = {"tool_name": tool, "rule": verdict.rule.effect, "list": listed}
        return self._violated("approval_required", details, Action.PAUSE)

    def _count(self, metric: str) -> list[Violation]:
        self.totals[metric] += 1
        return self._check(metric)

    def on_usage(self, total_tokens: float, cost_usd: float | None) -> list[Violation]:
        """What the run used up to now; a cost of None is unknown."""
        broken: list[Violation] = []
        if total_tokens > self.totals["total_tokens"]:
            self.totals["total_tokens"] = total_tokens
            broken = self._check("total_tokens")
        if cost_usd is not None:
            if cost_usd > self.totals["cost_usd"]:
                self.totals["cost_usd"] = cost_usd
                broken += self._check("cost_usd")
        elif "cost_usd" in self._limits and not self.warnings:
            self.warnings.append(MISSING_RATES)
        return broken

    def know(self, before: Mapping[str, Mapping[str, float]]) -> list[Violation]:
        """Others used so much: scope (``session``, ``tag:NAME``) -> metric -> number, this run left out."""
        self._before = before
        self._timed.sort(key=self._left_ms)
        broken = self.on_time(self.totals["duration_ms"])
        return broken + [violation for metric in self.totals for violation in self._check(metric)]

    def excess(self) -> list[Violation]:
        """What would not fit if all that is held was used: the call that holds it must not be made then."""
        broken = []
        for metric, amount in self.held.items():
            for limit in self._limits.get(metric, ()):
                used = self.totals[metric] + self._used_before(limit) + amount
                if used - limit.most > EXACT and limit not in self._broken:
                    broken.append(self._exceeded(limit, used))
        return broken

    def left(self, metric: str) -> float | None:
        """What may still be used and is not held; None when no limit that could end the run is about it."""
        if self.policy.action not in (Action.CANCEL, Action.PAUSE):
            return None
        here = self.totals[metric] + self.held.get(metric, 0)
        found = [
            limit.most - here - self._used_before(limit)
            for limit in self._limits.get(metric, ()) if limit not in self._broken
        ]
        return max(0, min(found)) if found else None

    def on_request(self, tool: str, tool_input: Any, call_id: str | None) -> Verdict:
        """May this call be made? For who asks before a tool runs; its events are not judged again."""
        verdict = self._judge(tool, tool_input)
        self.calls["asked"] += 1
        name = tool.casefold()
        if call_id is None and (name in self._unnamed or len(self._unnamed) < CALLS_MAX):
            self._unnamed[name] = self._unnamed.get(name, 0) + 1
        if verdict.effect != "ask" and call_id is not None and len(self._judged) < CALLS_MAX:
            self._judged.add(call_id)
        return verdict

    def denied(self, tool: str, verdict: Verdict) -> Violation:
        """A call that a rule forbids, as a violation."""
        assert verdict.rule is not None
        rule = verdict.rule
        listed = [pattern.tool for pattern in rule.tools]
        details = {"tool_name": tool, "rule": rule.effect, "list": listed}
        return self._violated("tool_denied", details)

    def _check(self, metric: str) -> list[Violation]:
        broken = []
        for limit in self._limits.get(metric, ()):
            used = self.totals[metric] + (self._used_before(limit) if self._before else 0)
            if used - limit.most > EXACT and limit not in self._broken:
                broken.append(self._exceeded(limit, used))
        return broken

    def _exceeded(self, limit: Limit, actual: float) -> Violation:
        self._broken.add(limit)
        return self._violated("budget_exceeded", {
            "metric": limit.metric, "actual": actual, "limit": limit.most, "scope": limit.scope,
        })

    def _violated(self, kind: str, details: dict[str, Any], action: Action | None = None) -> Violation:
        violation = Violation(self.policy.name, kind, action or self.policy.action, details)
        self.violations.append(violation)
        return violation

    def _enforcement(self) -> dict[str, Any]:
        """How each part of the policy was kept: what was prevented, and what seen when it was done."""
        found: dict[str, Any] = {
            limit.metric: "timer" if limit.metric == "duration_ms"
            else "reserved" if limit.metric in self.reserved else "counted"
            for limit in self.policy.limits
        }
        return found | ({"tool_rules": dict(self.calls)} if self.policy.rules else {})

    def result(self) -> dict[str, Any]:
        """What a run's result says of its policy."""
        return {
            "policy": self.policy.name, "action": self.policy.action.value,
            "violations": [violation.data() for violation in self.violations],
            "enforcement": self._enforcement(),
            "metadata": {**self.policy.metadata, **({"warnings": self.warnings} if self.warnings else {})},
        }


__all__ = ["CALLS_MAX", "EXACT", "MISSING_RATES", "Monitor", "Violation"]
