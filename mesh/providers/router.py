"""``router``: an agent that has others do its runs.

The table names them, and how one is chosen (``core/routing_rules.py``). Whoever is chosen executes the run in
this same runner as if it had been asked itself: its provider's name, its prices and its own session stand in
the log; the run's policy, workspace and limits hold whoever it is (``node/routed.py``).

What a router learns of its agents is kept in memory: the next runner, or a reload, begins with closed
circuits.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from mesh.core.manifest import negotiate
from mesh.core.routing import Course, Routing
from mesh.core.routing_rules import KEYS, ROUTER, checked_rules, checked_wish
from mesh.errors import InvalidArgument
from mesh.providers.base import ProviderFailure, RunContext, capabilities_of, check_keys, checked

#: In ``provider_opts``: what a run wants of its router. The agent that executes it does not see it.
HINT = "routing"

#: An agent's capabilities; None while they are not known.
Abilities = Callable[[str], list[dict[str, Any]] | None]


class Router:
    """One router of one runner."""

    name = ROUTER

    def __init__(self, name: str, tables: Mapping[str, Mapping[str, Any]], abilities: Abilities) -> None:
        """Prove the table of that name.

        Raises:
            ConfigError: a wrong key, an agent that is not there, or a circle.
        """
        table = tables[name]
        check_keys(table, KEYS)
        self.idempotent: bool = checked(table, "idempotent", (bool,), False)
        self.rules = checked_rules(name, tables)
        self.routing = Routing(self.rules)
        self._own = capabilities_of(table, ()) if "capabilities" in table else None
        self._abilities = abilities

    @property
    def capabilities(self) -> list[dict[str, Any]]:
        """What its table says, else all that any of its agents can do."""
        if self._own is not None:
            return self._own
        found: list[dict[str, Any]] = []
        for agent in self.rules.agents:
            found += [one for one in self._abilities(agent) or () if not any(map(_same(one), found))]
        return found

    @property
    def waits_for(self) -> list[str]:
        """Its agents of which nobody knows yet what they can do."""
        return [agent for agent in self.rules.agents if self._abilities(agent) is None]

    def view(self) -> list[dict[str, Any]]:
        """How its agents are, for people."""
        return self.routing.view(time.monotonic())

    def course(self, run: RunContext, options: Mapping[str, Any]) -> Course:
        """The way of one run through the agents.

        Raises:
            ProviderFailure: ``validation_error``: what the run says about its routing is wrong.
        """
        try:
            wish = checked_wish(self.rules, run.options.get(HINT), run.session.id, run.context)
        except InvalidArgument as exc:
            raise ProviderFailure(exc.message, code=exc.code) from exc
        required = options.get("required_capabilities") or ()
        optional = options.get("optional_capabilities") or ()
        able = {} if not (required or optional) else {
            agent: negotiate(self._abilities(agent) or (), required, optional) for agent in wish.agents
        }
        return self.routing.course(wish, able, now_s=time.monotonic(), chance=random.random())


def _same(one: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], bool]:
    kind = [one.get(key) for key in ("name", "type", "enabled")]
    return lambda other: [other.get(key) for key in ("name", "type", "enabled")] == kind


__all__ = ["HINT", "Router"]
