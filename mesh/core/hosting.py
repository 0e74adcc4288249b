"""Which runner hosts whose sessions.

Rules of this file:

1. An agent with ``isolation = "process"`` has a runner of its own, behind the shared ones, in the order of
   the names. Its sessions live there and nowhere else, and nobody else's live there.
2. That follows from the settings that the node was started with. So supervisor, router, partitions and
   runners work it out, each for itself, and agree for the node's whole life; a reload does not change it.
3. A run executes where its session lives. Whoever executes other agents (a router, a recorder) does so in its
   own runner: an isolated agent cannot be one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mesh.errors import ConfigError, InvalidArgument, shown

SHARED, PROCESS = "shared", "process"
#: What an agent's problem says until its runner has read its file.
LOADING = "loading"
#: Agents of one node with a runner of their own: each is a process.
OWN_MAX = 64
#: Shared runners of a node at most.
SHARED_MAX = 64

Tables = Mapping[str, Mapping[str, Any]]


class Hosting:
    """The places of one node's runners: first the shared ones, then one for each isolated agent."""

    __slots__ = ("_agents", "own", "shared")

    def __init__(self, shared: int = SHARED_MAX, tables: Tables | None = None) -> None:
        isolated = sorted(name for name, table in (tables or {}).items() if is_isolated(table))
        self.shared = shared
        self.own = {name: shared + place for place, name in enumerate(isolated)}  #: agent -> its runner
        self._agents = dict(zip(self.own.values(), self.own, strict=True))

    @property
    def count(self) -> int:
        """All runners."""
        return self.shared + len(self.own)

    def agent_of(self, runner: int) -> str | None:
        """Whose own runner it is; None of a shared one."""
        return self._agents.get(runner)

    def host_of(self, agent: str) -> str | None:
        """The same of the runners that host an agent: itself, or None."""
        return agent if agent in self.own else None

    def among(self, runners: Iterable[int], agent: str) -> list[int]:
        """Those of these runners where sessions of the agent may live."""
        own = self.own.get(agent)
        return [runner for runner in runners if (runner < self.shared if own is None else runner == own)]

    def check_together(self, session_agent: str, agent: str) -> None:
        """Refuse a run that names another agent than its session's, which another runner hosts.

        Raises:
            InvalidArgument: names the one that is isolated.
        """
        if agent in self.own or session_agent in self.own:
            apart = agent if agent in self.own else session_agent
            raise InvalidArgument(
                f"a session of {shown(session_agent)} has no runs of {shown(agent)}: they would execute in "
                f'its runner, and {shown(apart)} has isolation = "process"',
                details={"agent": agent, "session_agent": session_agent},
            )

    def loaded(self, runner: int, tables: Tables) -> set[str]:
        """The agents that a runner loads: a shared one all that share; another one its own, and those that
        this one executes."""
        own = self.agent_of(runner)
        if own is None:
            return {name for name in tables if name not in self.own}
        found: set[str] = set()
        ways = [own]
        while ways:
            name = ways.pop()
            if name in tables and name not in found and (name == own or name not in self.own):
                found.add(name)
                ways += executed_by(tables[name])
        return found

    def listed(self, runner: int, tables: Tables) -> list[str]:
        """Of these the agents of which the runner tells the partitions."""
        own = self.agent_of(runner)
        return [name for name in sorted(self.loaded(runner, tables)) if own in (None, name)]

    def check_unchanged(self, name: str, tables: Tables) -> None:
        """Refuse an agent whose isolation is not what it was when the node started.

        Raises:
            ConfigError: says so.
        """
        now = is_isolated(tables[name])
        if now != (name in self.own):
            word = PROCESS if now else SHARED
            raise ConfigError(f'isolation = "{word}" holds after a restart of the node (mesh down, mesh up)')


def is_isolated(table: Mapping[str, Any]) -> bool:
    """Whether an agent wants a runner of its own."""
    return table.get("isolation") == PROCESS


def check_word(table: Mapping[str, Any]) -> None:
    """Refuse another isolation than there is.

    Raises:
        ConfigError: names both.
    """
    word = table.get("isolation", SHARED)
    if word not in (SHARED, PROCESS):
        raise ConfigError(f'isolation = {shown(word)}: expected "{SHARED}" (the default) or "{PROCESS}"')


def check_apart(name: str, tables: Tables) -> None:
    """Refuse an agent that would execute an isolated one in its own runner.

    Raises:
        ConfigError: says which, and what to do.
    """
    for other in executed_by(tables[name]):
        if other != name and is_isolated(tables.get(other, {})):
            raise ConfigError(
                f'agent {shown(other)} has isolation = "process", and would be executed by {shown(name)} in '
                f"another runner: write isolation in [agents.{name}] instead"
            )


def executed_by(table: Mapping[str, Any]) -> list[str]:
    """The agents that one executes in its place: a router's, or the one that is recorded."""
    provider = table.get("provider")
    named: Any = table.get("agents") if provider == "router" else ()
    if provider == "record":
        named = (table.get("agent"),)
    return [name for name in named if isinstance(name, str)] if isinstance(named, list | tuple) else []


__all__ = [
    "LOADING", "OWN_MAX", "PROCESS", "SHARED", "SHARED_MAX", "Hosting", "check_apart", "check_word",
    "executed_by", "is_isolated",
]
