"""The providers there are: where each one's file is, and which extra brings the library it needs.

A provider's file is imported when an agent needs it, and its library by the provider's constructor, never
before: ``import mesh`` and a node without such agents load nothing of it. Adding a provider is one file and
one row here; its class says in ``CAPABILITIES``, ``enforces`` and ``tested`` what the README's table shows.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from mesh.core.redact import Redactor
from mesh.errors import ConfigError
from mesh.providers.base import Provider
from mesh.providers.execution import Processes

#: What a provider may do about policies (``enforces``): ask before each tool; wait for a human before a tool;
#: report each tool in an event; report usage while it works, so that budgets end it.
ENFORCED = ("tools_before", "approvals", "tools_observed", "budget")


class Kind(NamedTuple):
    """One provider."""

    module: str
    cls: str
    extra: str | None = None  #: of pyproject.toml


class Place(NamedTuple):
    """What a provider may be built with, beside its table."""

    processes: Processes
    fresh: bool  #: read functions' files anew
    agent: str  #: whose table it is
    find: Callable[[str], Awaitable[Provider]]  #: another agent's provider, waited for while it loads
    mcp: Mapping[str, Mapping[str, Any]] = {}  #: the config's ``[mcp.NAME]`` tables
    ready: Callable[[str], Provider | None] = lambda _: None  #: another agent's provider, when it is there
    redactor: Redactor = Redactor()  #: for what is written beside the log


#: Built at once, on the loop: they load nothing.
PLAIN: dict[str, Kind] = {
    "echo": Kind("mesh.providers.echo", "EchoProvider"),
    "shell": Kind("mesh.providers.shell", "ShellProvider"),
}
#: Built in a thread, since an import may take long: ``cls(table, place)``.
LOADED: dict[str, Kind] = {
    "acp": Kind("mesh.providers.acp", "AcpProvider", "acp"),
    "amp": Kind("mesh.providers.amp", "AmpProvider"),
    "anthropic": Kind("mesh.providers.anthropic", "AnthropicProvider", "anthropic"),
    "claude_code": Kind("mesh.providers.claude_code", "ClaudeCodeProvider", "claude"),
    "codex": Kind("mesh.providers.codex", "CodexProvider"),
    "openai": Kind("mesh.providers.openai", "OpenAIProvider", "openai"),
    "python": Kind("mesh.providers.python", "PythonProvider"),
    "record": Kind("mesh.providers.record", "RecordProvider"),
    "replay": Kind("mesh.providers.replay", "ReplayProvider"),
}
KINDS: dict[str, Kind] = PLAIN | LOADED


def load(name: str) -> type[Any]:
    """The class of a provider; its library is not imported."""
    kind = KINDS[name]
    found: type[Any] = getattr(import_module(kind.module), kind.cls)
    return found


def build(table: Mapping[str, Any], place: Place) -> Provider:
    """Build one of ``LOADED``. Off the loop.

    Raises:
        ConfigError: a wrong setting, or a library that is not installed.
        Exception: whatever an imported module raises.
    """
    found: Provider = load(table["provider"])(table, place)
    return found


def library(
    name: str, provider: str, importing: Callable[[str], ModuleType] = import_module
) -> Any:
    """Import the library that a provider needs, or what ``importing`` takes of it.

    Raises:
        ConfigError: it is not installed; says which extra brings it.
    """
    try:
        with _without_collections():
            return importing(name)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] != name.partition(".")[0]:
            raise
        how = installing(KINDS[provider].extra or "")
        raise ConfigError(f"provider {provider!r} needs the library {name!r}: {how}") from exc


def installing(extra: str) -> str:
    """The command that installs an extra for the interpreter that runs; in a checkout it names that, since an
    index may know another mesh."""
    root = Path(__file__).resolve().parents[2]
    what = f'-e "{root}[{extra}]"' if (root / "pyproject.toml").is_file() else f'"mesh[{extra}]"'
    return f"{sys.executable} -m pip install {what}"


@contextmanager
def _without_collections() -> Iterator[None]:
    """What an import makes is there to stay: looking through it for garbage again and again is a quarter of
    the time that these libraries, of up to 2 900 modules, take, and later 18 to 90 ms of every whole look."""
    with _importing:
        before, modules = gc.isenabled(), len(sys.modules)
        gc.disable()
        try:
            yield
        finally:
            if len(sys.modules) > modules:
                gc.freeze()
            if before:
                gc.enable()


_importing = threading.Lock()

__all__ = ["ENFORCED", "KINDS", "LOADED", "PLAIN", "Kind", "Place", "build", "installing", "library", "load"]
