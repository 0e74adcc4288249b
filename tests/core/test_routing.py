"""Which agent takes a run: order, circuits, stickiness, and the tables that say so."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from mesh.core.manifest import Negotiation, negotiate
from mesh.core.routing import FAULTS, STICKY_MAX, Course, Routing, Ticket, shuffled
from mesh.core.routing_rules import Rules, checked_rules, checked_wish, circle_of
from mesh.errors import ConfigError, InvalidArgument

FULL = Negotiation((), (), ())
FAULT = "provider_timeout"


def routing(*agents: str, **rules: Any) -> Routing:
    return Routing(Rules(agents or ("a", "b", "c"), **rules))


def course(
    made: Routing, now_s: float = 0.0, *, hints: Any = None, chance: float = 0.0, session: str = "ses_1",
    context: dict[str, Any] | None = None, able: dict[str, Negotiation] | None = None,
) -> Course:
    wish = checked_wish(made.rules, hints, session, context or {})
    known = dict.fromkeys(made.rules.agents, FULL) | (able or {})
    return made.course(wish, known, now_s=now_s, chance=chance)


def first(made: Routing, now_s: float = 0.0, **asked: Any) -> Ticket:
    ticket = course(made, now_s, **asked).next(now_s)
    assert ticket is not None
    return ticket


def fault(made: Routing, now_s: float = 0.0, code: str = FAULT) -> str:
    """One run through the router that fails at its first agent; which one that was."""
    ticket = first(made, now_s)
    made.failed(ticket, code, now_s)
    return ticket.agent


def test_agents_are_tried_in_their_order_while_attempts_are_left() -> None:
    """If each agent fails, then the next one is tried, max_attempts in all."""
    way = course(routing("a", "b", "c", max_attempts=2))
    tried = []
    while (ticket := way.next(0.0)) is not None:
        tried.append(ticket.agent)
        assert way.failed(ticket, FAULT, "boom", 0.0) == (len(tried) < 2)
    assert tried == ["a", "b"]
    assert way.to_map() == {
        "routed_to": "b", "attempt": 2, "candidates": ["a", "b", "c"],
        "tried": [{"agent": "a", "error_code": FAULT, "error_message": "boom"},
                  {"agent": "b", "error_code": FAULT, "error_message": "boom"}],
    }


@pytest.mark.parametrize("code", [
    "validation_error", "policy_violation", "tool_permission_denied", "cancelled", "command_failed",
    "limit_exceeded",
])
def test_failure_that_is_the_callers_tries_nobody_else_and_counts_for_nothing(code: str) -> None:
    """If a run fails by its caller's doing, then its agent stays as healthy as it was."""
    made = routing("a", "b", failures=1)
    way = course(made)
    ticket = way.next(0.0)
    assert ticket is not None and not way.failed(ticket, code, "", 0.0)
    assert made.circuits["a"].faults == 0 and first(made).agent == "a"


def test_circuit_opens_after_faults_in_a_row_and_a_success_forgets_them() -> None:
    """If an agent fails `failures` times in a row, then runs go elsewhere; a success between begins anew."""
    made = routing("a", "b", failures=2)
    assert fault(made) == "a"
    made.succeeded(first(made), None, 0.0)
    assert [fault(made), fault(made), first(made).agent] == ["a", "a", "b"]
    assert made.circuits["a"].state(0.0) == "open"


def test_cooldown_of_one_fault_is_the_references_health() -> None:
    """If failures is 1, then a failed agent is left alone for cooldown_s (case F06)."""
    made = routing("a", "b", failures=1, cooldown_s=0.2)
    assert fault(made, 0.0) == "a"
    made.succeeded(first(made, 0.1), None, 0.1)
    assert made.circuits["b"].active == 0
    assert first(made, 0.25).agent == "a"


def test_half_open_circuit_lets_exactly_one_probe_through() -> None:
    """If the cooldown is over, then one run probes, and others go elsewhere until it came back."""
    made = routing("a", "b", failures=1, cooldown_s=10)
    fault(made)
    probe = first(made, 11.0)
    assert probe.agent == "a"
    others = [course(made, 11.0) for _ in range(3)]
    assert [way.next(11.0).agent for way in others] == ["b"] * 3  # type: ignore[union-attr]
    assert others[0].skipped[0]["why"].endswith("a probe is under way")
    made.failed(probe, FAULT, 12.0)
    assert first(made, 21.9).agent == "b" and first(made, 22.0).agent == "a"


def test_probe_that_ends_without_a_verdict_makes_room_for_the_next() -> None:
    """If a probe is cancelled, or fails by its caller's doing, then the next run probes."""
    made = routing("a", "b", failures=1, cooldown_s=10)
    fault(made)
    made.dropped(first(made, 11.0))
    probe = first(made, 11.0)
    made.failed(probe, "validation_error", 11.0)
    assert first(made, 11.0).agent == "a" and made.circuits["a"].state(11.0) == "half_open"


def test_first_word_of_a_probe_closes_the_circuit_but_one_more_fault_opens_it() -> None:
    """If a probe speaks, then others may come, and when it fails all the same the circuit is open again."""
    made = routing("a", "b", failures=3, cooldown_s=10)
    for _ in range(3):
        fault(made)
    probe = first(made, 11.0)
    made.spoke(probe)
    assert made.circuits["a"].state(11.0) == "closed" and first(made, 11.0).agent == "a"
    made.failed(probe, FAULT, 12.0)
    assert made.circuits["a"].state(12.0) == "open"


def test_late_fault_of_another_run_does_not_free_the_probes_place() -> None:
    """If an old run fails while a probe is under way, then there is still one probe at most."""
    made = routing("a", failures=1, cooldown_s=10)
    old = first(made)
    fault(made)
    probe = first(made, 11.0)
    made.failed(old, FAULT, 12.0)
    assert course(made, 30.0).next(30.0) is None
    made.dropped(probe)
    assert first(made, 30.0).agent == "a"


def test_nobody_left_says_when_to_try_again() -> None:
    """If all circuits are open, then no agent is named, and the soonest end of a cooldown is known."""
    made = routing("a", "b", failures=1, cooldown_s=10)
    fault(made, 0.0)
    fault(made, 4.0)
    way = course(made, 5.0)
    assert way.next(5.0) is None and [row["agent"] for row in way.skipped] == ["a", "b"]
    assert made.retry_after_s(way.order, 5.0) == 5.0
    assert way.to_map()["attempt"] == 0 and way.to_map()["routed_to"] is None


def test_hints_of_a_run_change_its_order_alone() -> None:
    """If a run prefers or excludes agents, then its own order changes, and nobody else's."""
    made = routing("a", "b", "c")
    assert course(made, hints={"prefer": ["c"], "exclude": ["a"]}).order == ["c", "b"]
    assert course(made, hints={"max_attempts": 1}).wish.max_attempts == 1
    assert course(made, hints={"exclude": ["a", "b", "c"]}).next(0.0) is None
    assert course(made).order == ["a", "b", "c"]


def test_agents_that_cannot_are_left_out_and_those_that_can_do_more_come_first() -> None:
    """If a required type is missing, then the agent is skipped; a missing optional one puts it behind."""
    able = {"a": Negotiation(("tool",), (), ()), "b": Negotiation((), ("prompt",), ("tool",))}
    way = course(routing("a", "b", "c"), able=able)
    assert way.order == ["c", "b"]
    assert way.skipped == [{"agent": "a", "why": "it has no tool"}]


def test_sticky_key_keeps_its_agent_until_its_time_is_over() -> None:
    """If a run succeeded, then who comes with the same key gets its agent, for sticky_ttl_s."""
    made = routing("a", "b", sticky="user", sticky_ttl_s=60)
    ann = {"context": {"user": "ann"}}
    way = course(made, **ann, hints={"prefer": ["b"]})
    ticket = way.next(0.0)
    assert ticket is not None
    way.succeeded(ticket, 0.0)
    assert first(made, 59.0, **ann).agent == "b"
    assert first(made, 60.0, **ann).agent == "a"
    assert first(made, 1.0, context={"user": "bob"}).agent == "a"
    assert first(made, 1.0).agent == "a"  # no such entry: sticks to nobody


def test_sticky_agent_that_cannot_now_is_passed_over() -> None:
    """If the agent that a key sticks to has an open circuit, then the run goes on to the next."""
    made = routing("a", "b", sticky=True, failures=1)
    made.succeeded(first(made), "session ses_1", 0.0)
    fault(made)
    assert first(made).agent == "b"


def test_failed_run_does_not_stick() -> None:
    """If a run failed, then nothing is remembered for its key."""
    made = routing("a", "b", sticky=True)
    made.failed(first(made, hints={"prefer": ["b"]}), FAULT, 0.0)
    assert first(made).agent == "a"


def test_memory_of_sticky_keys_is_bounded() -> None:
    """If more keys come than are kept, then the oldest are forgotten."""
    made = routing("a", "b", sticky=True)
    for n in range(STICKY_MAX + 10):
        made.succeeded(first(made, hints={"prefer": ["b"]}), f"session {n}", 0.0)
    assert len(made._sticky) == STICKY_MAX
    assert first(made, session="0").agent == "a"
    assert first(made, session=str(STICKY_MAX)).agent == "b"


@given(st.permutations("abcd"), st.floats(0, 1, exclude_max=True),
       st.dictionaries(st.sampled_from("abcd"), st.floats(1e-6, 1e6)))
def test_weighted_order_holds_each_agent_once(agents: list[str], chance: float, weights: Any) -> None:
    """If agents are shuffled by weight, then each is there exactly once, whatever the weights."""
    assert sorted(shuffled(agents, weights, chance)) == sorted(agents)


def test_weights_are_shares_of_the_first_and_of_the_second_place() -> None:
    """If weights are 6, 3 and 1, then so many tenths begin with each, and the rest keep their proportion."""
    weights, count = {"a": 6, "b": 3, "c": 1}, 10_000
    orders = [tuple(shuffled(list("abc"), weights, (n + 0.5) / count)) for n in range(count)]
    firsts = Counter(order[0] for order in orders)
    assert [firsts[a] for a in "abc"] == pytest.approx([6_000, 3_000, 1_000], abs=2)
    seconds = Counter(order[1] for order in orders if order[0] == "a")
    assert [seconds[a] for a in "bc"] == pytest.approx([4_500, 1_500], abs=4)


AGENTS = {"a": {"provider": "echo"}, "b": {"provider": "shell"}}


def tables(**router: Any) -> dict[str, Any]:
    return {**AGENTS, "r": {"provider": "router", "agents": ["a", "b"], **router}}


@pytest.mark.parametrize(("router", "named"), [
    ({"agents": []}, "agents"),
    ({"agents": "a"}, "agents"),
    ({"agents": ["a", "zz"]}, "no agent 'zz'"),
    ({"agents": ["a", 3]}, "no agent 3"),
    ({"agents": ["a", "a"]}, "twice"),
    ({"agents": ["r"]}, "r -> r"),
    ({"agents": ["a"] * 65}, "at most 64"),
    ({"strategy": "best"}, "strategy"),
    ({"strategy": ["prefer"]}, "strategy"),
    ({"weights": {"a": 0}}, "weights.a"),
    ({"weights": {"a": -1}}, "weights.a"),
    ({"weights": {"a": True}}, "weights.a"),
    ({"weights": {"a": float("nan")}}, "weights.a"),
    ({"weights": {"x": 1}}, "no agent 'x'"),
    ({"weights": [1, 2]}, "weights"),
    ({"max_attempts": 0}, "max_attempts"),
    ({"failures": 1.5}, "failures"),
    ({"cooldown_s": 0}, "cooldown_s"),
    ({"cooldown_s": float("inf")}, "cooldown_s"),
    ({"first_word_s": "1"}, "first_word_s"),
    ({"sticky_ttl_s": -1}, "sticky_ttl_s"),
    ({"sticky": 3}, "sticky"),
    ({"sticky": ""}, "sticky"),
])
def test_wrong_table_is_refused_and_names_its_key(router: dict[str, Any], named: str) -> None:
    """If a router's table is wrong, then it is a ConfigError that names what is wrong."""
    with pytest.raises(ConfigError, match=named):
        checked_rules("r", tables(**router))


def test_routers_in_a_circle_are_refused_and_the_circle_is_shown() -> None:
    """If routers lead back to each other, then each of them is refused; a router outside of it is not."""
    around = {**AGENTS, "r": {"provider": "router", "agents": ["a", "s"]},
              "s": {"provider": "router", "agents": ["t", "b"]}, "t": {"provider": "router", "agents": ["r"]},
              "out": {"provider": "router", "agents": ["r", "a"]}}
    for name in "rst":
        with pytest.raises(ConfigError, match="leads back to itself"):
            checked_rules(name, around)
    assert circle_of("r", around) == ["r", "s", "t", "r"]
    assert checked_rules("out", around).agents == ("r", "a")


def test_routers_of_routers_without_a_circle_are_fine() -> None:
    """If a router names another one that leads elsewhere, then both are right."""
    nested = tables() | {"top": {"provider": "router", "agents": ["r", "a"]}}
    assert checked_rules("top", nested).agents == ("r", "a")


@pytest.mark.parametrize("hints", [
    [], "a", {"prefers": ["a"]}, {"prefer": "a"}, {"prefer": ["x"]}, {"exclude": [None]}, {"max_attempts": 0},
    {"weights": {"a": -1}}, {"strategy": "any"}, {"sticky": []}, {"options": {"x": {}}},
    {"options": {"a": 3}}, {3: 4},
])
def test_wrong_hint_is_the_callers_mistake(hints: Any) -> None:
    """If a run's routing makes no sense, then it is refused, and nothing is tried."""
    with pytest.raises(InvalidArgument, match="routing"):
        checked_wish(checked_rules("r", tables()), hints, "ses_1", {})


def test_f02_disabled_capability_counts_as_missing() -> None:
    """If the only capability of a required type is disabled, then it is missing (case F02)."""
    have = [{"name": "x", "type": "tool", "enabled": False}, {"name": "y", "type": "prompt"}]
    found = negotiate(have, ["tool", "prompt"], ["resource", "prompt"])
    assert found == Negotiation(("tool",), ("resource",), ("prompt",))
    assert (found.status, negotiate(have, ["prompt"]).status) == ("degraded", "full")
    assert found.to_map()["warnings"] == ["optional capability 'resource' is not there"]


class CircuitMachine(RuleBasedStateMachine):
    """Any history of runs: what circuits promise holds at every step."""

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.made = routing("a", "b", failures=2, cooldown_s=10, max_attempts=2, sticky=True)
        self.now_s = 0.0
        self.open: set[int] = set()
        self.faults = {"a": 0, "b": 0}  # the model: in a row
        self.blocked_s = {"a": -1.0, "b": -1.0}  # the model: until when nobody may be let through

    @rule(target=tickets)
    def begin(self) -> Any:
        way = course(self.made, self.now_s)
        ticket = way.next(self.now_s)
        if ticket is None:
            assert way.order == ["a", "b"] and len(way.skipped) == 2
            return ()
        assert self.blocked_s[ticket.agent] <= self.now_s
        self.open.add(ticket.number)
        return (ticket,)

    @rule(tickets=tickets)
    def speak(self, tickets: tuple[Ticket, ...]) -> None:
        for ticket in tickets:
            if ticket.number in self.open:
                self.made.spoke(ticket)

    @rule(tickets=consumes(tickets))
    def succeed(self, tickets: tuple[Ticket, ...]) -> None:
        for ticket in tickets:
            self.open.remove(ticket.number)
            self.made.succeeded(ticket, None, self.now_s)
            self.faults[ticket.agent], self.blocked_s[ticket.agent] = 0, -1.0
            assert self.made.circuits[ticket.agent].state(self.now_s) == "closed"

    @rule(tickets=consumes(tickets), code=st.sampled_from((FAULT, "validation_error", "cancelled")))
    def fail(self, tickets: tuple[Ticket, ...], code: str) -> None:
        for ticket in tickets:
            self.open.remove(ticket.number)
            circuit = self.made.circuits[ticket.agent]
            before = circuit.faults, circuit.open_until_s
            self.made.failed(ticket, code, self.now_s)
            if code not in FAULTS:
                assert (circuit.faults, circuit.open_until_s) == before
            elif circuit.state(self.now_s) == "open":
                self.blocked_s[ticket.agent] = self.now_s + 10
            else:
                assert circuit.faults < 2

    @rule(tickets=consumes(tickets))
    def drop(self, tickets: tuple[Ticket, ...]) -> None:
        for ticket in tickets:
            self.open.remove(ticket.number)
            self.made.dropped(ticket)

    @rule(by_s=st.sampled_from((0.5, 5.0, 10.0)))
    def wait(self, by_s: float) -> None:
        self.now_s += by_s

    @precondition(lambda self: not self.open)
    @rule()
    def a_probe_is_always_possible_in_the_end(self) -> None:
        """When nothing is under way, the end of the cooldown lets somebody through."""
        self.now_s += 10.0
        for agent, circuit in self.made.circuits.items():
            assert circuit.refuses(self.now_s) is None, agent

    @invariant()
    def counts_are_those_of_open_tickets(self) -> None:
        circuits = self.made.circuits.values()
        assert sum(circuit.active for circuit in circuits) == len(self.open)
        for circuit in circuits:
            assert circuit.probe == 0 or circuit.probe in self.open
            assert circuit.probe == 0 or circuit.open_until_s is not None
            assert circuit.open_until_s is not None or circuit.faults < 2


TestCircuits = CircuitMachine.TestCase
TestCircuits.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_long_sticky_keys_with_one_beginning_are_two() -> None:
    """If two entries of the context are long and differ at their end, then each has its own agent."""
    made = checked_rules("r", {"r": {"provider": "router", "agents": ["a"], "sticky": "user"}, "a": {}})
    keys = {checked_wish(made, None, "s", {"user": "x" * 2_000 + end}).sticky for end in "ab"}
    assert len(keys) == 2 and all(key and len(key) <= 512 for key in keys)
