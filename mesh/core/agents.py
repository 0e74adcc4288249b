"""The agents of the node as a partition knows them: the config, until a runner told what it loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from mesh.core import wire
from mesh.core.hosting import LOADING
from mesh.core.live import NoRunner, no_runner
from mesh.core.manifest import negotiate
from mesh.core.routing_rules import ROUTER
from mesh.core.state import State
from mesh.errors import InvalidArgument, NotFound, Unavailable, shown

RELOAD_S = 30.0


class Part(Protocol):
    """The place of one answer."""

    def resolve(self, answer: bytes) -> None:
        """Give the answer."""


class Reload(NamedTuple):
    """A reload that waits for runners."""

    part: Part
    missing: dict[int, int]  #: runner -> the incarnation that was told
    until_s: float


class Agents:
    """The catalogue, and the reloads that wait for the runners."""

    def __init__(self, state: State, configured: dict[str, dict[str, Any]]) -> None:
        self.state = state
        self.configured = configured
        self.catalogue: dict[str, dict[str, Any]] = {}
        self.routing: dict[int, dict[str, Any]] = {}  #: by runner: how the agents of its routers are
        self.reloads: dict[str, Reload] = {}
        self._tokens = 0
        state.provider_of = self.provider

    def check(self, agent: Any, *, ready: bool = False) -> None:
        """Refuse an agent that nobody knows; with ``ready`` also one that cannot run now.

        Raises:
            NotFound: ``unknown_agent``.
            NoRunner: it is loading.
            Unavailable: ``provider_unavailable``, it cannot be loaded; the message says why.
        """
        known = self.catalogue or self.configured
        if agent not in known:
            raise NotFound(f"no agent {shown(agent, 60)}; this node has: {', '.join(sorted(known))}",
                           code="unknown_agent", details={"known": sorted(known)})
        if not ready:
            return
        problem = self.catalogue[agent]["problem"] if self.catalogue else LOADING
        if problem == LOADING:
            raise no_runner(self.state, agent)
        if problem:
            raise Unavailable(f"agent {agent!r} cannot start: {problem}", code="provider_unavailable",
                              details={"agent": agent})

    def check_capabilities(self, agent: str, options: dict[str, Any]) -> None:
        """Refuse a run that requires a type of capability which its agent has not; call ``check`` before.

        Raises:
            InvalidArgument: ``missing_required_capability``.
            NoRunner: it is a router, and some of its agents are loading.
        """
        wanted = options.get("required_capabilities") or ()
        entry = self.catalogue.get(agent)
        if not wanted or entry is None or entry["problem"]:
            return
        missing = negotiate(entry["capabilities"], wanted).missing
        if missing and entry.get("partial"):
            raise NoRunner
        if missing:
            have = {c["type"] for c in entry["capabilities"] if c.get("enabled", True)}
            raise InvalidArgument(
                f"agent {agent!r} has no {missing[0]!r}", code="missing_required_capability",
                details={"missing": list(missing), "has": sorted(have)},
            )

    def check_named(self, agent: str, name: str) -> None:
        """Refuse what needs a capability of that name which the agent has not.

        Raises:
            InvalidArgument: ``capability_not_supported``.
            NoRunner: nobody said yet what the agent can do.
        """
        entry = self.catalogue.get(agent) or {}
        if not self.catalogue or entry.get("problem") == LOADING:
            raise no_runner(self.state, agent)
        if not any(c["name"] == name and c.get("enabled", True) for c in entry.get("capabilities", ())):
            raise InvalidArgument(f"agent {agent!r} has no capability {name!r}",
                                  code="capability_not_supported", details={"agent": agent, "needs": name})

    def provider(self, agent: str) -> str:
        """The provider behind an agent, for events."""
        entry = self.catalogue.get(agent) or self.configured.get(agent) or {}
        return str(entry.get("provider") or agent)

    def rows(self) -> list[dict[str, Any]]:
        """The agents of the node, sorted by name; with routers, how each runner finds their agents."""
        rows = self.catalogue or self._untold()
        return [self._row(name, row) for name, row in sorted(rows.items())]

    def _untold(self) -> dict[str, dict[str, Any]]:
        """What is known while no runner said anything."""
        return {
            name: {
                "name": name, "provider": table.get("provider", ""), "capabilities": [], "problem": LOADING,
                "idempotent": table.get("idempotent") is True,
                "native_process": table.get("native_process") is True,
            }
            for name, table in self.configured.items()
        }

    def _row(self, name: str, row: dict[str, Any]) -> dict[str, Any]:
        if row.get("provider") != ROUTER:
            return row
        ready = self.state.ready_runners()
        seen = [{"runner": runner, "agents": self.routing[runner][name]} for runner in sorted(ready)
                if name in self.routing.get(runner, ())]
        shown = {key: value for key, value in row.items() if key != "partial"}
        return {**shown, "routing": seen}

    def reload(self, part: Part) -> None:
        """Have every runner load its agents anew; the answer comes when all have.

        Raises:
            NoRunner: there is none.
        """
        ready = self.state.ready_runners()
        if not ready:
            raise no_runner(self.state)
        self._tokens += 1
        token = f"{self.state.epoch}.{self._tokens}"
        told = {runner: self.state.runners[runner].incarnation for runner in ready}
        self.reloads[token] = Reload(part, told, self.state.mono + RELOAD_S)
        self.state.undo.append(lambda: self.reloads.pop(token, None))
        self.state.commands.extend((runner, ["reload", token]) for runner in ready)

    def on_catalogue(self, runner: int, token: str | None, entries: Sequence[dict[str, Any]]) -> bool:
        """A runner says what it can run (all that it hosts); whether that is news."""
        # What changes with every run is kept apart: it is no news for calls that wait for an agent.
        self.routing[runner] = {e["name"]: e.pop("routing") for e in entries if "routing" in e}
        former, self.catalogue = self.catalogue, {entry["name"]: entry for entry in entries}
        hosting = self.state.hosting
        if hosting.own:
            host = hosting.agent_of(runner)
            others = former or self._untold()
            kept = {name: row for name, row in others.items() if hosting.host_of(name) != host}
            self.catalogue = kept | self.catalogue
        waiting = self.reloads.get(token) if token is not None else None
        if waiting is not None and token is not None:
            waiting.missing.pop(runner, None)
            self._answer(token)
        return former != self.catalogue

    def on_roster(self) -> None:
        """The runners changed: who takes the place of one that did not answer is told anew; one that stays
        down is not waited for."""
        for token, reload in list(self.reloads.items()):
            for runner, told in list(reload.missing.items()):
                entry = self.state.runners.get(runner)
                if entry is None or entry.state in ("down", "stopped"):
                    del reload.missing[runner]
                elif entry.reachable and entry.incarnation != told:
                    reload.missing[runner] = entry.incarnation
                    self.state.commands.append((runner, ["reload", token]))
            self._answer(token)

    def _answer(self, token: str) -> None:
        if not self.reloads[token].missing:
            self.reloads.pop(token).part.resolve(wire.ok(self.rows()))

    def expire(self) -> None:
        """Answer the reloads whose time is over."""
        now = self.state.mono
        for token in [token for token, reload in self.reloads.items() if reload.until_s <= now]:
            reload = self.reloads.pop(token)
            reload.part.resolve(wire.failure(Unavailable(
                f"runners {sorted(reload.missing)} did not reload their agents in {RELOAD_S:g} s",
                code="provider_timeout",
            )))


__all__ = ["RELOAD_S", "Agents", "Part"]
