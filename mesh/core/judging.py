"""May this tool be called with this input? A policy's rules, made ready for each tool that is named.

Rules of this file:

1. A deny beats an ask, and both beat an allow; every allow list must hold the call.
2. Names are compared without case. Arguments that are missing or no text are decided against the call.
3. What depends on the name alone is found out once for each tool: an agent calls few tools, often.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import translate
from typing import Any, NamedTuple

from mesh.core.policy import Policy, Rule, ToolPattern

#: Names that are remembered; a model may make up any number of them.
NAMES_MAX = 1_024

Fits = Callable[[str], object]
#: The arguments that a rule looks at, each with what its text has to fit.
Args = list[tuple[str, Fits]]


class Verdict(NamedTuple):
    """What a policy says of one tool call: ``allow``, ``deny`` or ``ask``, and the rule that says so."""

    effect: str
    rule: Rule | None = None


ALLOWED = Verdict("allow")


class Look(NamedTuple):
    """What a rule has to look at in a call of one tool. No patterns: it is about every such call, or none."""

    rule: Rule
    allows: bool
    about: bool
    patterns: list[Args]


class Judge:
    """The rules of one policy."""

    def __init__(self, policy: Policy) -> None:
        self._rules = policy.rules
        self._by_tool: dict[str, tuple[Verdict, list[Look]]] = {}

    def __call__(self, tool: str, tool_input: Any) -> Verdict:
        """Judge one call."""
        found = self._by_tool.get(tool)
        if found is None:
            if len(self._by_tool) >= NAMES_MAX:
                self._by_tool.clear()
            found = self._by_tool[tool] = self._of(tool)
        verdict, looks = found
        return verdict if not looks else _decided(looks, tool_input)

    def _of(self, tool: str) -> tuple[Verdict, list[Look]]:
        """A tool's verdict; where arguments matter, what has to be looked at instead."""
        name = tool.casefold()
        looks = [_ready(rule, name) for rule in self._rules]
        # A rule that forbids and is not about this tool, like one that allows it in any case, says nothing.
        telling = [look for look in looks if look.patterns or look.about != look.allows]
        if any(look.patterns for look in telling):
            return ALLOWED, telling
        return _decided(telling, None), []


def judge(policy: Policy, tool: str, tool_input: Any) -> Verdict:
    """Judge one call, once."""
    return Judge(policy)(tool, tool_input)


def _ready(rule: Rule, name: str) -> Look:
    about = [pattern for pattern in rule.tools if _one_of([pattern.tool.casefold()])(name)]
    plain = any(not pattern.args for pattern in about)
    patterns = [] if plain else [_args(pattern) for pattern in about]
    return Look(rule, rule.effect == "allow", bool(about), patterns)


def _args(pattern: ToolPattern) -> Args:
    return [(name, _one_of(texts)) for name, texts in pattern.args.items()]


def _one_of(patterns: Sequence[str]) -> Fits:
    return re.compile("|".join(map(translate, patterns))).match


def _decided(looks: list[Look], tool_input: Any) -> Verdict:
    given = tool_input if type(tool_input) is dict or isinstance(tool_input, Mapping) else {}
    asks: Rule | None = None
    for rule, allows, about, patterns in looks:
        matches = _fit(patterns, given, not allows) if patterns else about
        if matches == allows:
            continue
        if allows or rule.effect == "deny":
            return Verdict("deny", rule)
        asks = asks or rule
    return Verdict("ask", asks) if asks is not None else ALLOWED


def _fit(patterns: list[Args], given: Mapping[str, Any], doubtful: bool) -> bool:
    """Whether one of the patterns fits; ``doubtful`` where an argument is missing or not a text."""
    for args in patterns:
        for name, fits in args:
            value = given.get(name)
            if not isinstance(value, str):
                if doubtful:
                    return True
                break
            if not fits(value):
                break
        else:
            return True
    return False


__all__ = ["ALLOWED", "NAMES_MAX", "Judge", "Look", "Verdict", "judge"]
