"""The agents of a node: what the config names, built into providers.

A provider with something to import (an agent's module, an SDK) is built in a thread of its own, so a node is
ready before a slow import is, and a hanging one harms nobody else. A run that comes early waits for it. A
broken agent stays listed, with its problem; it never stops the node.
"""

from __future__ import annotations

import asyncio
import importlib
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mesh.config import load_agents
from mesh.core.hosting import LOADING, Hosting, check_apart
from mesh.core.redact import Redactor
from mesh.errors import ConfigError, MeshError, RunError
from mesh.providers.base import Provider, checked, continuation_of, nearest_name
from mesh.providers.echo import EchoProvider
from mesh.providers.execution import Processes
from mesh.providers.kinds import KINDS, LOADED, Place, build
from mesh.providers.router import Router
from mesh.providers.shell import ShellProvider

PROVIDERS = tuple(sorted((*KINDS, Router.name)))
#: A problem's text is at most so long; a traceback keeps its end, where the cause stands.
PROBLEM_CHARS_MAX = 4_000


class Registry:
    """The agents that one runner hosts, on its loop. It knows the tables of the others, too."""

    def __init__(
        self, agents: Mapping[str, Mapping[str, Any]], *, processes: Processes,
        on_change: Callable[[], None] = lambda: None, source: str = "",
        mcp: Mapping[str, Mapping[str, Any]] | None = None, redactor: Redactor | None = None,
        hosting: Hosting | None = None, runner: int = 0,
    ) -> None:
        self._hosting, self._runner = hosting or Hosting(), runner
        self._processes = processes
        self._on_change = on_change
        self._tables = dict(agents)
        self._mcp = mcp or {}
        self._redactor = redactor or Redactor()
        self._source = source
        self._source_problem: str | None = None
        self._providers: dict[str, Provider] = {}
        self._routers: dict[str, Router] = {}
        self._problems: dict[str, str] = {}
        self._codes: dict[str, str] = {}  #: of problems that a run has a code for
        self._closing: set[asyncio.Task[None]] = set()
        self._continuations: dict[str, tuple[str | None, Mapping[str, Any]]] = {}
        self._loading: dict[str, asyncio.Future[None]] = {}

    def start(self) -> None:
        """Build what can be built at once, begin to load the rest; ``on_change`` tells when that is done.

        The config file is read as it is now: the successor of a runner that had reloaded it does not fall
        back to what the node was started with.
        """
        if self._source:
            self._read_source()
        for name in self._ours():
            self._build(name, fresh=False)

    def _ours(self) -> set[str]:
        return self._hosting.loaded(self._runner, self._tables)

    async def reload(self) -> None:
        """Read the config file's agents and every agent's module anew.

        Runs that are executing keep the function they began with. A broken config file changes no agent; it
        is listed with its problem, under its own name, until it is mended.
        """
        await self.loaded()
        if self._source:
            self._read_source()
        for name in self._ours():
            self._build(name, fresh=True)
        await self.loaded()

    def _read_source(self) -> None:
        try:
            tables, self._mcp = load_agents(self._source)
        except ConfigError as exc:
            self._source_problem = exc.message
            return
        self._source_problem = None
        former, self._tables = self._ours(), dict(tables)
        for name in former - self._ours():
            self._set(name, None)

    async def loaded(self, agents: Iterable[str] | None = None) -> None:
        """Return when nothing is being loaded, or none of these agents is."""
        names = None if agents is None else set(agents)
        while waiting := [done for name, done in self._loading.items() if names is None or name in names]:
            await asyncio.wait(waiting)

    def provider_name(self, agent: str) -> str:
        """The name of the provider behind an agent, whether it can be loaded or not."""
        return str(self._tables.get(agent, {}).get("provider") or agent)

    def continuation(self, agent: str) -> tuple[str | None, Mapping[str, Any]]:
        """How the agent's runs continue their session unless they say it themselves."""
        return self._continuations.get(agent, _NO_CONTINUATION)

    def ready(self, agent: str) -> Provider | None:
        """The agent's provider, when it is there."""
        return self._providers.get(agent)

    def router(self, agent: str) -> Router | None:
        """The agent, when it is one that has others do its runs."""
        return self._routers.get(agent)

    def _abilities(self, agent: str) -> list[dict[str, Any]] | None:
        """What an agent can do; None while it loads, nothing when it cannot be loaded."""
        router = self._routers.get(agent)
        if router is not None:
            return None if router.waits_for else router.capabilities
        provider = self._providers.get(agent)
        if provider is None:
            return None if agent in self._loading else []
        return provider.capabilities

    async def provider(self, agent: str) -> Provider:
        """The agent's provider, waited for while it loads.

        Raises:
            MeshError: ``unknown_agent``.
            RunError: ``provider_error``, the agent cannot be loaded; ``details["problem"]`` says why.
        """
        if agent in self._loading:
            await asyncio.wait([self._loading[agent]])
        if agent in self._providers:
            return self._providers[agent]
        if agent not in self._tables:
            raise MeshError(f"no agent {agent!r}{nearest_name(agent, self._tables)}", code="unknown_agent")
        if agent in self._routers:
            raise RunError(f"agent {agent!r} is a router: it has no provider of its own")
        problem = self._problems.get(agent, LOADING)
        raise RunError(
            f"agent {agent!r} cannot be loaded: {problem.strip().splitlines()[-1]}",
            code=self._codes.get(agent, "provider_error"), details={"problem": problem},
        )

    def catalogue(self) -> list[dict[str, Any]]:
        """One entry per agent: {name, provider, capabilities, problem, idempotent}; a router's says how its
        agents are."""
        listed = self._hosting.listed(self._runner, self._tables)
        entries = [self._entry(name, self._tables[name]) for name in listed]
        if self._source_problem is not None and self._hosting.agent_of(self._runner) is None:
            entries.append({
                "name": self._source, "provider": "config", "capabilities": [],
                "problem": self._source_problem, "idempotent": False,
            })
        return entries

    def _entry(self, name: str, table: Mapping[str, Any]) -> dict[str, Any]:
        router = self._routers.get(name)
        provider = router or self._providers.get(name)
        loading = name in self._loading and provider is None
        routing = {} if router is None else {"routing": router.view(), "partial": bool(router.waits_for)}
        return {
            "name": name,
            "provider": table.get("provider"),
            "capabilities": [] if provider is None else provider.capabilities,
            "problem": LOADING if loading else self._problems.get(name),
            "idempotent": table.get("idempotent") is True if provider is None else provider.idempotent,
            "native_process": table.get("native_process") is True,
            **routing,
        }

    def _build(self, name: str, *, fresh: bool) -> None:
        table = self._tables[name]
        try:
            self._hosting.check_unchanged(name, self._tables)
            check_apart(name, self._tables)
            self._prove_recorded(name)
            self._continuations[name] = continuation_of(self._with_recorded(table))
            checked(table, "native_process", (bool,), False)
        except ConfigError as exc:
            self._set(name, None, exc)
            return
        if table.get("provider") in LOADED:
            self._routers.pop(name, None)
            self._load(name, fresh)
            return
        try:
            if table.get("provider") == Router.name:
                self._set(name, None)
                self._routers[name] = Router(name, self._tables, self._abilities)
            else:
                self._set(name, self._built_in(table))
        except ConfigError as exc:
            self._set(name, None, exc)

    def _prove_recorded(self, name: str) -> None:
        """A recording agent is what the recorded one is; that must end somewhere."""
        chain = [name]
        while (table := self._tables.get(chain[-1], {})).get("provider") == "record":
            other = table.get("agent")
            if not isinstance(other, str):
                return
            if other in chain[1:] or (other == name and len(chain) > 1):
                raise ConfigError(f"agent = {chain[1]!r:.80}: these agents record one another in a circle")
            if other == name:
                return  # as its own table says
            chain.append(other)

    def _with_recorded(self, table: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is recorded continues as its agent does, unless it says itself how."""
        other = table.get("agent") if table.get("provider") == "record" else None
        return {**self._tables.get(other, {}), **table} if isinstance(other, str) else table

    def _built_in(self, table: Mapping[str, Any]) -> Provider:
        match table.get("provider"):
            case EchoProvider.name:
                return EchoProvider(table)
            case ShellProvider.name:
                return ShellProvider(table, self._processes)
            case other:
                raise ConfigError(f"unknown provider {other!r:.80}{nearest_name(str(other), PROVIDERS)}")

    def _load(self, name: str, fresh: bool) -> None:
        loop = asyncio.get_running_loop()
        done = self._loading[name] = loop.create_future()
        place = Place(self._processes, fresh, name, self.provider, self._mcp, self.ready, self._redactor)

        def load() -> None:
            outcome = _load(self._tables[name], place)
            try:
                loop.call_soon_threadsafe(self._loaded, name, done, outcome)
            except RuntimeError:  # the loop is closed: the node went down meanwhile
                return

        threading.Thread(target=load, name=f"load agent {name}", daemon=True).start()

    def _loaded(self, name: str, done: asyncio.Future[None], outcome: Provider | ConfigError) -> None:
        if isinstance(outcome, ConfigError):
            self._set(name, None, outcome)
        else:
            self._set(name, outcome)
        del self._loading[name]
        done.set_result(None)
        if not self._loading:
            self._on_change()

    def _set(self, name: str, provider: Provider | None, problem: ConfigError | None = None) -> None:
        """What an agent is from now on. What it was is closed; runs that execute keep it."""
        former = self._providers.pop(name, None)
        self._routers.pop(name, None)
        self._problems.pop(name, None)
        self._codes.pop(name, None)
        if provider is not None:
            self._providers[name] = provider
        if problem is not None:
            self._problems[name] = problem.message
            if problem.code.startswith("provider_"):  # a run fails with it
                self._codes[name] = problem.code
        close = getattr(former, "close", None)
        if close is not None:
            task = asyncio.get_running_loop().create_task(close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close what providers hold (connections); those that execute runs do so when these are over."""
        for name in list(self._providers):
            self._set(name, None)
        if self._closing:
            await asyncio.wait(list(self._closing))


def _load(table: Mapping[str, Any], place: Place) -> Provider | ConfigError:
    """The provider, or what is wrong with it."""
    try:
        return build(table, place)
    except ConfigError as exc:
        return exc
    except BaseException as exc:  # noqa: BLE001  an agent's module may raise anything, sys.exit included
        frames = [frame for frame in traceback.extract_tb(exc.__traceback__) if not _ours(frame.filename)]
        lines = traceback.format_list(frames) + traceback.format_exception_only(exc)
        text = ("Traceback (most recent call last):\n" + "".join(lines)).strip()
        return ConfigError(text[-PROBLEM_CHARS_MAX:])


_NO_CONTINUATION: tuple[str | None, Mapping[str, Any]] = (None, {})
_HERE = str(Path(__file__).parent)


def _ours(filename: str) -> bool:
    return filename.startswith(("<frozen importlib", _HERE)) or filename == importlib.__file__


__all__ = ["PROVIDERS", "Registry"]
