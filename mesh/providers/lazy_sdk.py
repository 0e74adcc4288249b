"""An API's library, imported as far as an agent uses it.

These libraries import up to 2 900 modules, nearly all of them the types of requests that an agent never
makes, in 1 to 2.3 s of CPU (``tests/bench/providers.py --rows cold``). What a request needs is their client:
a tenth.

Rules of this file:

1. The library's top package begins empty: its ``__init__`` runs as it is when somebody asks for a name that
   it defines, or sets one. Its client is imported from the module where it stands.
2. A package of it whose ``__init__`` only re-exports names of its own modules imports each of these when it
   is asked for. One that does anything else is imported as it is.
3. So whoever imports the library in the same process finds the same names and the same objects, whole, at
   the time when the names are used.
4. What goes wrong here is mended by the plain import.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from threading import Event, RLock, get_ident
from time import monotonic
from types import ModuleType
from typing import Any

#: Functions that are imported when they are called. Anthropic's tracing imports 700 modules for a call that
#: is made only under OpenTelemetry, its table of errors 210, in 0.1 s, for an answer that is one.
LATE = frozenset((
    "anthropic.lib._tracing.finish_api_call_span", "anthropic._error_classes.make_status_error",
))
#: How long a thread waits for another one to run a library's ``__init__``, and how often it looks.
WAIT_S = 60.0
LOOK_S = 0.02


def client_module(name: str) -> ModuleType:
    """The module that has a library's clients (``AsyncAnthropic``) and its ``Timeout``: that of the client
    alone, or the whole library where it is there already or cannot be had in parts.

    Raises:
        ModuleNotFoundError: it is not installed, or something that it needs.
    """
    if name in sys.modules or f"{name.upper()}_LOG" in os.environ:  # what reads that would not run
        return import_module(name)
    _FINDER.begin(name)
    try:
        return import_module(f"{name}._client")
    except Exception:  # noqa: BLE001  another version of it may be built in any way
        _FINDER.names.discard(name)
        for module in [module for module in sys.modules if f"{module}.".startswith(f"{name}.")]:
            del sys.modules[module]
        return import_module(name)


def response_class(module: ModuleType) -> type[Any]:
    """A response of the HTTP library that a library is built on; what is asked for as one comes back so.

    Raises:
        ImportError: it is built on none that we know.
    """
    for name in ("httpx2", "httpx"):
        http = sys.modules.get(name)
        if http is not None and http.Timeout is module.Timeout:
            found: type[Any] = http.Response
            return found
    raise ImportError(f"{module.__name__} is built on another HTTP library than httpx2")


class _Finder:
    """Finds the packages of the libraries that were begun, and has them made by ``_Loader``."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def begin(self, name: str) -> None:
        """From here on this library is imported in parts."""
        self.names.add(name)
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)  # for good: taking it out would disturb imports of other threads

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None  # noqa: ARG002
    ) -> ModuleSpec | None:
        if name.partition(".")[0] not in self.names:
            return None
        spec = PathFinder.find_spec(name, path)
        lazily = spec is not None and (spec.submodule_search_locations or name in _LATE_MODULES)
        if spec is not None and lazily and hasattr(spec.loader, "get_source"):
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Makes a package that imports itself later; then the real loader has its place again."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        found: ModuleType | None = self._real.create_module(spec)
        return found

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._real
        if name in _FINDER.names:
            module.__class__ = _Whole
            return
        if name in _LATE_MODULES and not module.__spec__.submodule_search_locations:
            module.__class__ = _Asleep
            return
        names = re_exported(self._real.get_source(name) or "", name)
        if names is None:
            self._real.exec_module(module)
        else:
            _PARTS[name] = names
            module.__class__ = _Parts


class _Whole(ModuleType):
    """A package whose ``__init__`` runs at the first need of it."""

    def __getattr__(self, name: str) -> Any:
        if name[:1] == "_" != name[1:2]:  # a module of its own, for those that are beside it
            try:
                return import_module(f"{self.__name__}.{name}")
            except ModuleNotFoundError as exc:
                if exc.name != f"{self.__name__}.{name}":
                    raise
        self._run(name)
        if type(self) is ModuleType:
            return getattr(self, name)
        return _own(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and value.__name__ == f"{self.__name__}.{name}"):
            self._run()  # else it would undo this
        ModuleType.__setattr__(self, name, value)  # by now it may be a plain one

    def __dir__(self) -> list[str]:
        self._run()
        return sorted(self.__dict__)

    def _run(self, wanted: str = "") -> None:
        """Run it, once. The thread that runs it finds what is there; another one waits, at most ``WAIT_S``,
        until ``wanted`` is there: the first may need a module that the other one is importing."""
        me, until_s = (get_ident(), Event()), monotonic() + WAIT_S
        while type(self) is _Whole and wanted not in self.__dict__:
            who, over = running = _RUNNING.setdefault(self.__name__, me)
            if running is me:
                try:
                    self._run_here()
                finally:
                    del _RUNNING[self.__name__]
                    over.set()
                return
            if who == me[0] or monotonic() > until_s:
                return
            over.wait(LOOK_S)

    def _run_here(self) -> None:
        if type(self) is _Whole:  # nobody did meanwhile
            assert self.__spec__ is not None and self.__spec__.loader is not None
            self.__spec__.loader.exec_module(self)
            object.__setattr__(self, "__class__", ModuleType)


class _Asleep(ModuleType):
    """A module that runs when a function of ``LATE`` is called, or when it is asked for any other name."""

    def __getattr__(self, name: str) -> Any:
        if f"{self.__name__}.{name}" in LATE:
            return partial(_called, self, name)
        if name != "__path__":  # the import itself looks for that
            _wake(self)
        return _own(self, name)


def _called(module: ModuleType, function: str, *args: Any, **named: Any) -> Any:
    _wake(module)
    return _own(module, function)(*args, **named)


def _wake(module: ModuleType) -> None:
    with _WAKING:
        if type(module) is _Asleep:
            assert module.__spec__ is not None and module.__spec__.loader is not None
            module.__spec__.loader.exec_module(module)
            object.__setattr__(module, "__class__", ModuleType)


class _Parts(ModuleType):
    """A package that imports each module of its own when a name of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        names = _PARTS[self.__name__]
        if name in names:
            value = _late(self.__name__, name) or getattr(import_module(names[name][0]), names[name][1])
            self.__dict__.setdefault(name, value)
            return self.__dict__[name]
        if any(name == module.rpartition(".")[2] for module, _ in names.values()):
            return import_module(f"{self.__name__}.{name}")
        if name == "__all__":  # ``import *`` takes what is there
            self.__dir__()
        return _own(self, name)

    def __dir__(self) -> list[str]:
        for name in _PARTS[self.__name__]:
            getattr(self, name)
        return sorted(self.__dict__)


def _own(module: ModuleType, name: str) -> Any:
    try:
        return module.__dict__[name]
    except KeyError:
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}") from None


def _late(package: str, name: str) -> Any:
    """A function that stands for one of ``LATE``; None for any other name."""
    if f"{package}.{name}" not in LATE:
        return None
    module, own = _PARTS[package][name]

    def called(*args: Any, **named: Any) -> Any:
        return getattr(import_module(module), own)(*args, **named)

    return called


def re_exported(source: str, package: str) -> Mapping[str, tuple[str, str]] | None:
    """What a package's ``__init__`` takes from its own modules, as name: (module, name there); None when it
    does anything else."""
    names: dict[str, tuple[str, str]] = {}
    at = 0
    while not _NOTHING.fullmatch(source, at):
        found = _IMPORT.match(source, at)
        if found is None:
            return None
        at, module = found.end(), found[1]
        home = f"{package}{module}" if module[0] == "." else module
        for alias in (found[2] or found[3]).split(","):
            match alias.split():
                case [name]:
                    names[name] = home, name
                case [name, "as", own]:
                    names[own] = home, name
                case []:  # after the last comma
                    continue
                case _:
                    return None
    modules = {module.removeprefix(f"{package}.").partition(".")[0] for module, _ in names.values()}
    return None if modules & names.keys() else names  # which of the two it is would depend on the order


#: Of packages with 700 such statements: a parser of the whole language takes ten times as long.
_NOTHING = re.compile(r"(?:\s|#[^\n]*)*+")
_IMPORT = re.compile(
    r"(?:\s|#[^\n]*)*+from (\.\w[\w.]*|__future__) import (?:\(([\w\s,]+)\)|(\w[\w ,]*))"
    r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)"
)
_LATE_MODULES = frozenset(name.rpartition(".")[0] for name in LATE)
_WAKING = RLock()
_FINDER = _Finder()
_PARTS: dict[str, Mapping[str, tuple[str, str]]] = {}
_RUNNING: dict[str, tuple[int, Event]] = {}  #: whose ``__init__`` runs, in which thread

__all__ = ["LATE", "LOOK_S", "WAIT_S", "client_module", "re_exported", "response_class"]
