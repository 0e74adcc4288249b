"""Which agent of a router takes a run: the order of those that can, their circuits, and who stays with whom.

Rules of this file:

1. Time and chance are arguments. Nothing here waits; the shell (``node/routed.py``) tries the agent that
   ``Course.next`` names and says how it went.
2. Only a *fault* of a provider counts against an agent. What is the caller's (validation, policy, a cancel, a
   limit of the run) says nothing about the agent, and no other agent is tried for it.
3. A circuit is closed; open, for ``cooldown_s`` after ``failures`` faults in a row; then half open: exactly
   one run at a time is let through, the probe. Its first word closes the circuit, with one more fault enough
   to open it again; a run that ends well forgets all faults. A fault while it is not closed opens it anew.
4. Every ticket comes back, once: ``succeeded``, ``failed`` or ``dropped``. Else a probe would block for ever.

Source: spec of sessions 7.2. One circuit stands for its health and its breaker: ``failures = 1`` is the
reference's cooldown after any fault.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mesh.core.manifest import Negotiation
from mesh.core.routing_rules import Rules, Wish

#: Keys that a router remembers an agent for; the one that was used least recently goes first.
STICKY_MAX = 10_000
#: What says that the provider, and not the caller, is at fault.
FAULTS = frozenset((
    "dependency_not_available", "provider_authentication_failed", "provider_error", "provider_quota_exceeded",
    "provider_rate_limited", "provider_timeout", "provider_unavailable",
))
_MESSAGE_CHARS_MAX = 400


class Ticket(NamedTuple):
    """One attempt of one run with one agent."""

    agent: str
    number: int


class Circuit:
    """What one agent's last runs say about the next one."""

    __slots__ = ("active", "faults", "last_code", "open_until_s", "probe", "total_faults")

    def __init__(self) -> None:
        self.faults = 0  #: in a row
        self.open_until_s: float | None = None  #: None: closed
        self.probe = 0  #: the number of the ticket that probes
        self.active = 0  #: tickets that did not come back
        self.total_faults = 0
        self.last_code: str | None = None  #: of the last fault

    def state(self, now_s: float) -> str:
        """``closed``, ``open`` or ``half_open``."""
        if self.open_until_s is None:
            return "closed"
        return "open" if now_s < self.open_until_s else "half_open"

    def refuses(self, now_s: float) -> str | None:
        """Why no run is let through now."""
        state = self.state(now_s)
        if state == "open" and self.open_until_s is not None:
            return f"its circuit is open for {self.open_until_s - now_s:.3g} s"
        return "its circuit is half open, and a probe is under way" if self.probe else None

    def close(self, faults: int) -> None:
        """Let all runs through again."""
        self.open_until_s, self.probe, self.faults = None, 0, faults


class Routing:
    """What one router knows of its agents, in one runner."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.circuits = {agent: Circuit() for agent in rules.agents}
        self._sticky: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._tickets = 0

    def course(
        self, wish: Wish, able: Mapping[str, Negotiation], *, now_s: float, chance: float
    ) -> Course:
        """The agents in the order in which they are tried for a run.

        ``able`` says for each what it has of what the run wants; empty, the run wants nothing in particular.
        ``chance`` is in [0, 1).
        """
        order = list(wish.agents)
        if wish.strategy == "weighted":
            order = list(shuffled(order, wish.weights, chance))
        skipped = []
        if able:
            skipped = [
                {"agent": agent, "why": f"it has no {', '.join(able[agent].missing)}"}
                for agent in order if able[agent].missing
            ]
            order = [agent for agent in order if not able[agent].missing]
            order.sort(key=lambda agent: len(able[agent].unsupported))
        stays = self._stays(wish.sticky, now_s)
        if stays in order:
            order.remove(stays)
            order.insert(0, stays)
        return Course(self, wish, order, skipped)

    def _stays(self, key: str | None, now_s: float) -> str:
        agent, until_s = self._sticky.get(key or "", ("", 0.0))
        return agent if now_s < until_s else ""

    def begin(self, agent: str) -> Ticket:
        """Take a place with an agent that does not refuse."""
        circuit = self.circuits[agent]
        self._tickets += 1
        circuit.active += 1
        if circuit.open_until_s is not None:
            circuit.probe = self._tickets
        return Ticket(agent, self._tickets)

    def spoke(self, ticket: Ticket) -> None:
        """The agent said its first word: a probe has its answer, though the run goes on for long."""
        circuit = self.circuits[ticket.agent]
        if circuit.probe == ticket.number:
            circuit.close(self.rules.failures - 1)

    def succeeded(self, ticket: Ticket, sticky: str | None, now_s: float) -> None:
        """The run ended well; who comes with the same key gets the same agent for a while."""
        circuit = self.circuits[ticket.agent]
        circuit.active -= 1
        circuit.close(0)
        if sticky is not None:
            self._sticky[sticky] = (ticket.agent, now_s + self.rules.sticky_ttl_s)
            self._sticky.move_to_end(sticky)
            while len(self._sticky) > STICKY_MAX:
                self._sticky.popitem(last=False)

    def failed(self, ticket: Ticket, code: str, now_s: float) -> None:
        """The run failed; a code that is no fault of the provider changes nothing but the ticket."""
        if code not in FAULTS:
            return self.dropped(ticket)
        circuit = self.circuits[ticket.agent]
        circuit.active -= 1
        circuit.faults += 1
        circuit.total_faults += 1
        circuit.last_code = code
        if circuit.probe == ticket.number:
            circuit.probe = 0
        if circuit.faults >= self.rules.failures:
            circuit.open_until_s = now_s + self.rules.cooldown_s
        return None

    def dropped(self, ticket: Ticket) -> None:
        """The run ended without a word on the agent: cancelled, refused, out of time."""
        circuit = self.circuits[ticket.agent]
        circuit.active -= 1
        if circuit.probe == ticket.number:
            circuit.probe = 0

    def retry_after_s(self, agents: Sequence[str], now_s: float) -> float | None:
        """When the first of these agents may be tried again, if a circuit is what stops it."""
        waits = (self.circuits[agent].open_until_s for agent in agents)
        return min((max(0.0, until_s - now_s) for until_s in waits if until_s is not None), default=None)

    def view(self, now_s: float) -> list[dict[str, Any]]:
        """Each agent's circuit, for people."""
        rows = []
        for agent, circuit in self.circuits.items():
            until_s = circuit.open_until_s
            rows.append({
                "agent": agent, "state": circuit.state(now_s), "failures": circuit.faults,
                "faults": circuit.total_faults, "last_code": circuit.last_code, "active": circuit.active,
                "open_ms": 0 if until_s is None else round(max(0.0, until_s - now_s) * 1000),
            })
        return rows


class Course:
    """The way of one run through the agents of one router."""

    def __init__(self, routing: Routing, wish: Wish, order: list[str], skipped: list[dict[str, Any]]) -> None:
        self.routing = routing
        self.wish = wish
        self.order = order
        self.skipped = skipped
        self.tried: list[dict[str, Any]] = []
        self.routed_to: str | None = None  #: who is tried now, or was last
        self.inner: Course | None = None  #: when that is a router, too
        self._left = list(order)

    @property
    def over(self) -> bool:
        """Whether nobody else may be tried."""
        return not self._left or len(self.tried) >= self.wish.max_attempts

    def next(self, now_s: float) -> Ticket | None:
        """The next agent to try; None when there is none, or no attempt is left."""
        while not self.over:
            agent = self._left.pop(0)
            why = self.routing.circuits[agent].refuses(now_s)
            if why is None:
                self.routed_to, self.inner = agent, None
                return self.routing.begin(agent)
            self.skipped.append({"agent": agent, "why": why})
        return None

    def failed(self, ticket: Ticket, code: str, message: str, now_s: float) -> bool:
        """An attempt failed; whether that is a reason to try somebody else."""
        self.tried.append({
            "agent": ticket.agent, "error_code": code, "error_message": message[:_MESSAGE_CHARS_MAX],
        })
        self.routing.failed(ticket, code, now_s)
        return code in FAULTS and not self.over

    def succeeded(self, ticket: Ticket, now_s: float) -> None:
        """The run ended well."""
        self.routing.succeeded(ticket, self.wish.sticky, now_s)

    def to_map(self) -> dict[str, Any]:
        """What the run says of its way."""
        said: dict[str, Any] = {
            "routed_to": self.routed_to, "attempt": len(self.tried) + (not self._gave_up),
            "candidates": self.order,
        }
        if self.tried:
            said |= {"tried": self.tried}
        if self.skipped:
            said |= {"skipped": self.skipped}
        if self.inner is not None:
            inner = self.inner.to_map()
            said |= {"routed_to": inner["routed_to"], "inner": inner}
        return said

    @property
    def _gave_up(self) -> bool:
        return self.routed_to is None or (bool(self.tried) and self.tried[-1]["agent"] == self.routed_to)


def shuffled(agents: Sequence[str], weights: Mapping[str, float], chance: float) -> Iterator[str]:
    """All agents, each time one of those left in proportion to its weight (1 unless it has one).

    One number in [0, 1) is enough: what is left of it, within the share that it fell into, is as good a
    number for the next choice.
    """
    left = {agent: weights.get(agent, 1.0) for agent in agents}
    while left:
        mark = chance * sum(left.values())
        for agent, weight in left.items():  # noqa: B007
            if mark < weight:
                break
            mark -= weight
        chance = min(max(mark / left.pop(agent), 0.0), _BELOW_ONE)
        yield agent


_BELOW_ONE = 1.0 - 2.0**-53

__all__ = ["FAULTS", "STICKY_MAX", "Circuit", "Course", "Routing", "Ticket", "shuffled"]
