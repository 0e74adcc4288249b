"""What a router's table says, and what one run wants of it: proven before anything is tried.

A router names agents; among them may be other routers, as long as none leads back to itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

from mesh.errors import ConfigError, InvalidArgument, shown

ROUTER = "router"
STRATEGIES = ("prefer", "weighted")
AGENTS_MAX = 64
KEYS = (
    "agents", "strategy", "weights", "max_attempts", "sticky", "sticky_ttl_s", "failures", "cooldown_s",
    "first_word_s",
)
#: ``provider_opts["routing"]`` of one run.
HINTS = ("prefer", "exclude", "strategy", "weights", "max_attempts", "sticky", "options")
_SECONDS_MAX = 10**9
_COUNT_MAX = 1_000
_KEY_CHARS_MAX = 512


class Rules(NamedTuple):
    """One router's table."""

    agents: tuple[str, ...]  #: in the order in which they are preferred
    strategy: str = "prefer"
    weights: Mapping[str, float] = {}
    max_attempts: int = 3
    #: False; True, by session; or the name of an entry of the session's context, by its value
    sticky: str | bool = False
    sticky_ttl_s: float = 300.0
    failures: int = 3  #: faults in a row that open an agent's circuit
    cooldown_s: float = 30.0  #: for so long
    first_word_s: float | None = None  #: how long an agent may take to its first word, until another is tried


class Wish(NamedTuple):
    """What one run wants."""

    agents: tuple[str, ...]
    strategy: str
    weights: Mapping[str, float]
    max_attempts: int
    sticky: str | None  #: who comes with the same key gets the same agent
    options: Mapping[str, Mapping[str, Any]]  #: ``provider_opts`` of one agent, beside those of all


def checked_rules(name: str, tables: Mapping[str, Mapping[str, Any]]) -> Rules:
    """The rules of the router of that name.

    Raises:
        ConfigError: names the key that is wrong; an agent that is not there; the circle it is in.
    """
    table = tables[name]
    agents = table.get("agents")
    if not isinstance(agents, list | tuple) or not agents:
        raise ConfigError(f'agents = {shown(agents)}: a router needs a list of agents, such as ["a", "b"]')
    if len(agents) > AGENTS_MAX:
        raise ConfigError(f"agents: {len(agents)} of them; a router has at most {AGENTS_MAX}")
    for agent in agents:
        _check_known(agent, tables, "agents")
        if agents.count(agent) > 1:
            raise ConfigError(f"agents: {agent!r:.60} is there twice")
    circle = circle_of(name, tables)
    if circle:
        raise ConfigError(f"agents: the router leads back to itself: {' -> '.join(circle)}")
    given = {key: table[key] for key in KEYS if key in table and key != "agents"}
    for key, value in given.items():
        _check(key, value, agents)
    return Rules(tuple(agents), **given)


def circle_of(name: str, tables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How a router leads back to itself: the names on that way, both ends the router; or nothing."""
    ways = [[name]]
    seen = set()
    while ways:
        way = ways.pop()
        table = tables.get(way[-1], {})
        named = table.get("agents") if table.get("provider") == ROUTER else None
        for agent in named if isinstance(named, list | tuple) else ():
            if agent == name:
                return [*way, name]
            if isinstance(agent, str) and agent not in seen:
                seen.add(agent)
                ways.append([*way, agent])
    return []


def checked_wish(rules: Rules, hints: Any, session_id: str, context: Mapping[str, Any]) -> Wish:
    """The rules with what one run says beside them.

    Raises:
        InvalidArgument: names the hint that is wrong.
    """
    hints = {} if hints is None else hints
    if not isinstance(hints, Mapping):
        raise InvalidArgument(f"routing must be a map, not {shown(hints)}")
    try:
        for key, value in hints.items():
            if key not in HINTS:
                raise ConfigError(f"unknown key {shown(key)}{_near(str(key), HINTS)}")
            _check(key, value, rules.agents)
    except ConfigError as exc:
        raise InvalidArgument(f"routing: {exc.message}") from exc
    first = tuple(dict.fromkeys(hints.get("prefer", ())))
    without = hints.get("exclude", ())
    return Wish(
        tuple(a for a in (*first, *(a for a in rules.agents if a not in first)) if a not in without),
        hints.get("strategy", rules.strategy), {**rules.weights, **hints.get("weights", {})},
        hints.get("max_attempts", rules.max_attempts),
        _sticky_key(hints.get("sticky", rules.sticky), session_id, context), hints.get("options", {}),
    )


def _sticky_key(sticky: str | bool, session_id: str, context: Mapping[str, Any]) -> str | None:
    """A number and a text that look the same are two keys; who has no such entry stays with nobody."""
    if sticky is True:
        return f"session {session_id}"
    value = context.get(sticky) if isinstance(sticky, str) else None
    if type(value) not in (str, int):
        return None
    key = f"{sticky} {value!r}"
    return key if len(key) <= _KEY_CHARS_MAX else blake2b(key.encode(errors="surrogatepass")).hexdigest()


def _check(key: str, value: Any, agents: Collection[str]) -> None:
    if key in ("prefer", "exclude"):
        _check_list(key, value, agents)
    elif key == "weights":
        _check_map(key, value, agents)
        for agent, weight in value.items():
            if type(weight) not in (int, float) or not 0 < weight < _SECONDS_MAX:
                raise ConfigError(f"weights.{agent} = {shown(weight)}: expected a number more than 0")
    elif key == "options":
        _check_map(key, value, agents)
        for agent, opts in value.items():
            if not isinstance(opts, Mapping):
                raise ConfigError(f"options.{agent} = {shown(opts)}: expected a map")
    elif key == "strategy":
        if value not in STRATEGIES:
            raise ConfigError(f"strategy = {shown(value)}: expected prefer or weighted")
    elif key in ("max_attempts", "failures"):
        if type(value) is not int or not 0 < value <= _COUNT_MAX:
            raise ConfigError(f"{key} = {shown(value)}: expected a whole number from 1 to {_COUNT_MAX}")
    elif key == "sticky":
        if type(value) is not bool and (type(value) is not str or not value):
            raise ConfigError(
                f"sticky = {shown(value)}: expected true (by session) or the name of an entry of the "
                "session's context"
            )
    elif type(value) not in (int, float) or not 0 < value < _SECONDS_MAX:
        raise ConfigError(f"{key} = {shown(value)}: expected a number of seconds more than 0")


def _check_list(key: str, value: Any, agents: Collection[str]) -> None:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{key} = {shown(value)}: expected a list of agents")
    for agent in value:
        _check_known(agent, agents, key)


def _check_map(key: str, value: Any, agents: Collection[str]) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} = {shown(value)}: expected a map by agent")
    for agent in value:
        _check_known(agent, agents, key)


def _check_known(agent: Any, known: Collection[str], key: str) -> None:
    if type(agent) is not str or agent not in known:
        raise ConfigError(f"{key}: no agent {shown(agent)}{_near(str(agent), known)}")


def _near(word: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(sorted(names))})"


__all__ = [
    "AGENTS_MAX", "HINTS", "KEYS", "ROUTER", "STRATEGIES", "Rules", "Wish", "checked_rules", "checked_wish",
    "circle_of",
]
