"""Policies: what a run may use, as data; how several become one; what is refused before a run starts.

Rules of this file:

1. A policy is a value. ``LIMITS`` is the only list of limits: who adds one adds a row, and nothing else.
2. ``merged`` can only tighten: of two limits the lower one holds, all tool rules hold, the strictest action
   wins. So a layer that is added later, by whoever, never gives back what an earlier one took.
3. Names of tools are compared without case: ``Bash`` and ``bash`` are one tool, and a rule about one must
   not be evaded by the spelling of the other.
4. A rule that looks at arguments fails closed: where they are missing or of another shape, an ``allow`` does
   not match, a ``deny`` or ``ask`` does.

Source: spec of sessions 6.1 to 6.6; the differences (tighten only, ``pause``, ``ask``, scopes, arguments)
are on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, Self

from mesh.core import approval
from mesh.core.records import Record
from mesh.errors import InvalidArgument, RunError, shown

#: Layers of one stack, rules of one policy, tools of one rule.
LAYERS_MAX = 32
RULES_MAX = 256
TOOLS_MAX = 1_024


class Action(StrEnum):
    """What happens at a violation, mildest first. ``pause`` asks a human instead of killing the run."""

    WARN = "warn"
    REQUEST_APPROVAL = "request_approval"
    PAUSE = "pause"
    CANCEL = "cancel"


_STRICTNESS = {action: rank for rank, action in enumerate(Action)}


class LimitKind(NamedTuple):
    """One kind of limit: the name of what is counted, and what a policy may say."""

    metric: str
    whole: bool = True  #: an int; else any number
    refused_at_zero: bool = False  #: 0 leaves nothing to do: the run is refused before it starts
    event: str | None = None  #: each event of this type counts 1; None: told by clock, usage or cost


LIMITS: dict[str, LimitKind] = {
    "max_total_tokens": LimitKind("total_tokens", refused_at_zero=True),
    "max_duration_ms": LimitKind("duration_ms"),
    "max_tool_calls": LimitKind("tool_calls", refused_at_zero=True, event="tool_call_started"),
    "max_cost_usd": LimitKind("cost_usd", whole=False),
}


class Limit(Record, frozen=True):
    """At most so much of one metric, summed over a ``scope``: ``run``, ``session``, or ``tag:NAME``."""

    kind: str
    most: float
    scope: str = "run"

    @property
    def metric(self) -> str:
        """What is counted."""
        return LIMITS[self.kind].metric


class ToolPattern(Record, frozen=True):
    """Calls of one tool, or of several (``*``, ``?``, ``[...]``): all, or those whose arguments look so.

    ``args`` maps the name of an argument to patterns of its text; one of them has to fit.
    """

    tool: str
    args: dict[str, tuple[str, ...]] = {}


class Rule(Record, frozen=True):
    """``allow`` (and nothing else), ``deny``, or ``ask`` (a human decides) for some calls of tools."""

    effect: str
    tools: tuple[ToolPattern, ...]

    @property
    def plain(self) -> tuple[str, ...]:
        """The tools that it is about whatever their arguments."""
        return tuple(pattern.tool for pattern in self.tools if not pattern.args)


class Policy(Record, frozen=True):
    """Limits, tool rules, and what happens at a violation."""

    name: str = "default"
    limits: tuple[Limit, ...] = ()
    rules: tuple[Rule, ...] = ()
    on_violation: Action | None = None  #: None: not said; alone that is ``cancel``
    metadata: dict[str, Any] = {}
    approval_s: float | None = None  #: how long a question to a human waits; None: not said, ``LIMIT_S``
    approval_default: str | None = None  #: what holds then, ``deny`` or ``approve``; None: not said, ``deny``

    @property
    def action(self) -> Action:
        """What happens at a violation."""
        return self.on_violation or Action.CANCEL

    @property
    def asks(self) -> bool:
        """Whether it may ask a human."""
        return self.action == Action.PAUSE or any(rule.effect == "ask" for rule in self.rules)

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> Self:
        """Build from a map, checked.

        Raises:
            InvalidArgument: ``validation_error``; names the field.
        """
        if not isinstance(values, Mapping):
            raise _bad(f"a policy is a map, not {type(values).__name__}")
        unknown = set(values) - _FIELDS
        if unknown:
            raise _bad(f"a policy has no field {min(map(str, unknown))!r:.60}")
        name = values.get("name", "default")
        if not isinstance(name, str) or not name:
            raise _bad(f"name must be a non-empty str, not {shown(name)}")
        given = {key: value for key, value in values.items() if value is not None}
        metadata = given.get("metadata", {})
        if not isinstance(metadata, Mapping):
            raise _bad(f"metadata must be a map, not {type(metadata).__name__}")
        rules = _rules(given.get("tool_rules", given.get("rules", ())))
        action = _action(given.get("on_violation"))
        return cls(name, _limits(given.get("limits", ())), rules, action, dict(metadata), *_approval(given))


_FIELDS = frozenset(("rules", "tool_rules", *Policy.__struct_fields__))


def _approval(given: Mapping[str, Any]) -> tuple[float | None, str | None]:
    limit_s, default = given.get("approval_s"), given.get("approval_default")
    if limit_s is not None and not (type(limit_s) in (int, float) and 0 < limit_s < 10**9):
        raise _bad(f"approval_s must be a number of seconds more than 0, not {shown(limit_s)}")
    if default is not None and default not in approval.DEFAULTS:
        raise _bad(f"approval_default must be one of {', '.join(approval.DEFAULTS)}; not {shown(default)}")
    return limit_s, default


def _bad(message: str) -> InvalidArgument:
    return InvalidArgument(f"policy: {message}", code="validation_error")


def _action(value: Any) -> Action | None:
    if value is None or isinstance(value, Action):
        return value
    if value not in list(Action):
        raise _bad(f"on_violation must be one of {', '.join(Action)}; not {shown(value)}")
    return Action(value)


def _limits(given: Any) -> tuple[Limit, ...]:
    """Of a map ``kind -> most``, a list of pairs, or a list of maps with ``kind``, ``most`` and ``scope``."""
    if isinstance(given, Mapping):
        given = list(given.items())
    if not isinstance(given, list | tuple) or len(given) > RULES_MAX:
        raise _bad(f"limits must be a map or at most {RULES_MAX} pairs, not {shown(given)}")
    lowest: dict[tuple[str, str], Limit] = {}
    for item in given:
        limit = item if isinstance(item, Limit) else _limit(item)
        key = (limit.kind, limit.scope)
        if key not in lowest or limit.most < lowest[key].most:
            lowest[key] = limit
    return tuple(lowest.values())


def _limit(item: Any) -> Limit:
    kind: Any
    most: Any
    scope: Any
    if isinstance(item, Mapping):
        kind, most, scope = item.get("kind"), item.get("most"), item.get("scope", "run")
    elif isinstance(item, Sequence) and not isinstance(item, str) and len(item) == 2:
        kind, most = item
        bound = most if isinstance(most, Mapping) else {"most": most}
        most, scope = bound.get("most"), bound.get("scope", "run")
    else:
        raise _bad(f"a limit is a pair of kind and number, not {shown(item)}")
    row = LIMITS.get(kind) if isinstance(kind, str) else None
    if row is None:
        raise _bad(f"no limit {shown(kind)} (known: {', '.join(LIMITS)})")
    fits = type(most) is int or (type(most) is float and not row.whole)
    if not fits or not 0 <= most < float("inf"):
        wanted = "a whole number" if row.whole else "a number"
        raise _bad(f"{kind} must be {wanted} from 0, not {shown(most)}")
    tag = isinstance(scope, str) and scope.startswith("tag:") and len(scope) > len("tag:")
    if scope not in ("run", "session") and not tag:
        raise _bad(f"the scope of a limit is run, session or tag:NAME, not {shown(scope)}")
    return Limit(str(kind), most if row.whole else float(most), scope)


def _rules(given: Any) -> tuple[Rule, ...]:
    """Of a list of pairs ``effect, tools``, or of maps with ``effect``, ``tools`` and ``args``."""
    if not isinstance(given, list | tuple) or len(given) > RULES_MAX:
        raise _bad(f"tool_rules must be a list of at most {RULES_MAX} rules, not {shown(given)}")
    return tuple(item if isinstance(item, Rule) else _rule(item) for item in given)


def _rule(item: Any) -> Rule:
    if isinstance(item, Mapping):
        effect, tools = item.get("effect"), item.get("tools")
    elif isinstance(item, Sequence) and not isinstance(item, str) and len(item) == 2:
        effect, tools = item
    else:
        raise _bad(f"a tool rule is a pair of effect and tools, not {shown(item)}")
    if effect not in ("allow", "deny", "ask"):
        raise _bad(f"a tool rule is allow, deny or ask, not {shown(effect)}")
    if not isinstance(tools, list | tuple) or len(tools) > TOOLS_MAX:
        raise _bad(f"{effect} needs a list of at most {TOOLS_MAX} tools, not {shown(tools)}")
    patterns = [_pattern(tool) for tool in tools if tool and isinstance(tool, str | Mapping | ToolPattern)]
    unlike = [pattern for place, pattern in enumerate(patterns) if pattern not in patterns[:place]]
    return Rule(effect, tuple(unlike))


def _pattern(item: str | Mapping[str, Any] | ToolPattern) -> ToolPattern:
    if isinstance(item, ToolPattern):
        return item
    if isinstance(item, str):
        return ToolPattern(item)
    tool, args = item.get("tool"), item.get("args") or {}
    if not isinstance(tool, str) or not tool or not isinstance(args, Mapping) or len(item) > 2:
        raise _bad(f"a tool is a name, or a map of tool and args, not {shown(item)}")
    found: dict[str, tuple[str, ...]] = {}
    for name, given in args.items():
        patterns = (given,) if isinstance(given, str) else given
        fit = isinstance(patterns, list | tuple) and patterns and all(isinstance(p, str) for p in patterns)
        if not isinstance(name, str) or not fit:
            raise _bad(f"args of a tool maps names of arguments to patterns, not {shown(args)}")
        found[name] = tuple(patterns)
    return ToolPattern(tool, found)


def merged(layers: Sequence[Policy]) -> Policy:
    """One policy of a stack; it forbids all that any of its layers forbids.

    Raises:
        InvalidArgument: more than ``LAYERS_MAX`` layers.
    """
    if len(layers) > LAYERS_MAX:
        raise _bad(f"a stack has at most {LAYERS_MAX} layers, not {len(layers)}")
    if len(layers) == 1:
        return layers[0]
    actions = [layer.action for layer in layers]
    return Policy(
        " + ".join(dict.fromkeys(layer.name for layer in layers)) or "default",
        _limits([limit for layer in layers for limit in layer.limits]),
        tuple(rule for layer in layers for rule in layer.rules),
        max(actions, key=_STRICTNESS.__getitem__) if actions else None,
        {key: value for layer in layers for key, value in layer.metadata.items()},
        *_answered(layers),
    )


def _answered(layers: Sequence[Policy]) -> tuple[float | None, str | None]:
    """The shorter time, the stricter default. A layer that asks and says neither means what holds alone."""
    limits = [layer.approval_s or (approval.LIMIT_S if layer.asks else None) for layer in layers]
    defaults = [layer.approval_default or (approval.DENY if layer.asks else None) for layer in layers]
    strictest = approval.DENY if approval.DENY in defaults else approval.APPROVE
    return min((s for s in limits if s is not None), default=None), strictest if any(defaults) else None


def checked_stack(layers: Any) -> Policy:
    """The one policy of a run's ``policies``, each a map.

    Raises:
        InvalidArgument: ``validation_error`` names what is wrong.
    """
    if not isinstance(layers, list | tuple):
        raise _bad(f"policies must be a list of maps, not {shown(layers)}")
    return merged([Policy.from_map(layer) for layer in layers])


def check_tags(policies: Any, tags: Sequence[str]) -> None:
    """Refuse a limit over a tag that the session does not have: what its runs use would count for nobody.

    Raises:
        InvalidArgument: ``validation_error``; names the tag.
    """
    for limit in (limit for policy in policies or () for limit in policy["limits"]):
        scope, _, tag = limit["scope"].partition(":")
        if scope == "tag" and tag not in tags:
            raise _bad(f"a limit over the tag {shown(tag)}, which the session does not have")


def preflight(policy: Policy) -> None:
    """Refuse what cannot do anything, before anything of the run happens.

    Raises:
        RunError: ``policy_violation``; details hold the check that failed.
    """
    for rule in policy.rules:
        if rule.effect == "allow" and not rule.tools:
            raise _refused(policy, {"check": "empty_allow_list"}, "an allow list is empty")
    for limit in policy.limits:
        if not limit.most and LIMITS[limit.kind].refused_at_zero:
            raise _refused(policy, {"check": "zero_budget", "kind": limit.kind}, f"{limit.kind} is 0")
    allowed, denied = (
        {t.casefold() for rule in policy.rules if rule.effect == effect for t in rule.plain}
        for effect in ("allow", "deny")
    )
    both = sorted(allowed & denied)
    if both:
        details = {"check": "contradictory_rules", "tools": both}
        raise _refused(policy, details, f"{', '.join(both)} is allowed and denied")


def _refused(policy: Policy, details: dict[str, Any], why: str) -> RunError:
    return RunError(f"policy {policy.name!r:.80}: {why}", code="policy_violation",
                    details={"policy": policy.name, **details})


def provider_options(policy: Policy) -> dict[str, Any]:
    """What a provider that can enforce rules itself is told: allowed_tools or denied_tools, max_tokens, and
    max_cost_usd where more of it ends the run.

    A tool that may be called with some arguments only is allowed here: each call is judged, too.
    """
    denied = {t.casefold(): t for rule in policy.rules if rule.effect == "deny" for t in rule.plain}
    allows = [rule for rule in policy.rules if rule.effect == "allow"]
    options: dict[str, Any] = {}
    if allows:
        names = [{pattern.tool.casefold() for pattern in rule.tools} for rule in allows]
        options["allowed_tools"] = list(dict.fromkeys(
            pattern.tool for pattern in allows[0].tools
            if pattern.tool.casefold() in set.intersection(*names) - denied.keys()
        ))
    elif denied:
        options["denied_tools"] = list(denied.values())
    tokens = [
        limit.most for limit in policy.limits if limit.kind == "max_total_tokens" and limit.scope == "run"
    ]
    if tokens:
        options["max_tokens"] = int(min(tokens))
    costs = [limit.most for limit in policy.limits if limit.kind == "max_cost_usd"]
    if costs and policy.action is Action.CANCEL:
        options["max_cost_usd"] = min(costs)
    return options


__all__ = [
    "LAYERS_MAX", "LIMITS", "RULES_MAX", "TOOLS_MAX", "Action", "Limit", "LimitKind", "Policy", "Rule",
    "ToolPattern", "check_tags", "checked_stack", "merged", "preflight", "provider_options",
]
