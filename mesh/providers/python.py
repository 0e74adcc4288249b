"""``python``: an agent that is one function of yours.

``target = "module:function"`` or ``"file.py:function"``. The function takes one argument, the
``RunContext``, and may be

- an async generator: yields pieces (see ``base``),
- a coroutine: what it returns is the output,
- a plain function, or a generator: runs in a thread of its own, so it may block.

Or it is an agent of LangGraph, pydantic-ai or openai-agents (``adapters``).

What is returned: a text becomes ``output["content"]``, a map is the output, None stands for the joined text,
and any other value becomes ``output["content"]``.

A cancelled coroutine gets ``CancelledError``. A thread cannot be stopped: it is abandoned, its late words
are refused, and it ends by itself when it looks at ``run.cancelled``.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import importlib
import importlib.util
import inspect
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mesh.errors import ConfigError
from mesh.providers.adapters import adapted
from mesh.providers.base import (
    STREAMING,
    Output,
    Piece,
    ProviderFailure,
    RunContext,
    capabilities_of,
    check_keys,
    checked,
    usage_mode_of,
)

if TYPE_CHECKING:
    from mesh.providers.kinds import Place

#: Threads of plain functions at a time, the abandoned ones included.
THREADS_MAX = 256
#: One place for each, for agents and tools together.
THREADS = threading.Semaphore(THREADS_MAX)
#: Pieces that a thread may be ahead of the run.
HANDOVER_MAX = 64
_KEYS = ("target", "options")
#: Of ``tools``, which is loaded by agents that have some.
TOOL_KEYS = ("tools", "mcp", "mcp_allow", "mcp_deny", "tool_timeout_s")
#: One per file: agents of one file load at the same time, each in a thread of its own.
_files: dict[str, threading.RLock] = {}


class PythonProvider:
    """One agent function, loaded. Loading executes the agent's module: do it off the loop."""

    name = "python"
    CAPABILITIES = (STREAMING,)  #: of generators; a function that only returns has none
    enforces = frozenset(("tools_before", "tools_observed", "budget", "approvals"))
    tested = "functions of every kind; LangGraph, pydantic-ai and openai-agents with scripted models"

    def __init__(self, table: Mapping[str, Any], place: Place) -> None:
        """Load the target; ``place.fresh`` reads its file again even when it was loaded before.

        Raises:
            ConfigError: no such function, or it does not take one argument.
            Exception: whatever the agent's module raises while it is imported.
        """
        check_keys(table, (*_KEYS, *TOOL_KEYS))
        self.idempotent: bool = checked(table, "idempotent", (bool,), False)
        self.usage_mode = usage_mode_of(table)
        self._options: dict[str, Any] = dict(checked(table, "options", (dict,), {}))
        self._function = load_target(checked(table, "target", (str,), ""), fresh=place.fresh)
        self._tools = _tools(table, place)
        kind = _kind(self._function)
        self._call = _CALLS[kind]
        streams = kind in ("async generator", "generator")
        own = getattr(self._function, "capabilities", self.CAPABILITIES if streams else ())
        self.capabilities = capabilities_of(table, own)

    def started(self, run: RunContext) -> dict[str, Any]:  # noqa: ARG002
        """Nothing to add."""
        return {}

    def run(self, run: RunContext) -> AsyncIterator[Piece]:
        """Call the function and hand on what it yields and returns."""
        run.options = {**self._options, **run.options}
        run.tools = None if self._tools is None else functools.partial(self._tools, run)
        return self._call(self._function, run)


def _tools(table: Mapping[str, Any], place: Place) -> Callable[[RunContext], Any] | None:
    """What opens the tools that a table names, when it names any."""
    if not any(key in table for key in TOOL_KEYS):
        return None
    from mesh.providers.tools import Toolbox, check_tools

    return functools.partial(Toolbox.of, check_tools(table, place))


def load_target(target: str, *, fresh: bool = False) -> Callable[[RunContext], Any]:
    """The function of an agent, which takes one argument; made from a framework's object where that is one.

    Raises:
        ConfigError: as ``load_function``, or a wrong signature.
    """
    found = load_object(target, fresh=fresh)
    function = adapted(found) or _callable(found, target)
    name = target.rpartition(":")[2]
    try:
        inspect.signature(function).bind(None)
    except TypeError as exc:
        raise ConfigError(f"target = {target!r:.120}: {name} takes one argument, the run ({exc})") from exc
    except ValueError:  # a builtin without a signature: calling it will tell
        pass
    return function


def load_function(target: str, *, fresh: bool = False) -> Callable[..., Any]:
    """Import the module or file that a target names and find its function.

    Raises:
        ConfigError: the target's form, a missing file, module or function.
    """
    return _callable(load_object(target, fresh=fresh), target)


def _callable(found: Any, target: str) -> Callable[..., Any]:
    if not callable(found):
        place, _, name = target.rpartition(":")
        raise ConfigError(f"target = {target!r:.120}: {place} has no function {name!r}")
    function: Callable[..., Any] = found
    return function


def load_object(target: str, *, fresh: bool = False) -> Any:
    """Import the module or file that a target names and find what it names there; None: there is none."""
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise ConfigError(f'target = {target!r:.120}: expected "module:function" or "file.py:function"')
    module = _load_file(Path(place), fresh) if place.endswith(".py") else _load_module(place, fresh)
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _load_module(name: str, fresh: bool) -> ModuleType:
    if fresh and name in sys.modules:
        return importlib.reload(sys.modules[name])
    importlib.invalidate_caches()
    return importlib.import_module(name)


def _load_file(path: Path, fresh: bool) -> ModuleType:
    """A file is loaded under a name made from its path, so two files of one name do not meet."""
    path = path.expanduser().resolve()
    name = f"mesh_agent_{path.stem}_{blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    with _files.setdefault(name, threading.RLock()):  # nobody else sees a module that is half executed
        return _execute_file(path, name, fresh)


def _execute_file(path: Path, name: str, fresh: bool) -> ModuleType:
    if not fresh and name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise ConfigError(f"target: no such file: {path}")
    if str(path.parent) not in sys.path:  # an agent may import its neighbours
        sys.path.append(str(path.parent))
    module = ModuleType(name)
    module.__file__ = str(path)
    # Not through importlib's loader: its cached bytecode is trusted by mtime and size, and an edit within the
    # same second that keeps the size would be missed.
    code = compile(path.read_bytes(), str(path), "exec")
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        exec(code, module.__dict__)  # noqa: S102  the owner of the node named this file
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


def _kind(function: Callable[..., Any]) -> str:
    plain: Any = function
    while isinstance(plain, functools.partial):
        plain = plain.func
    for candidate in (plain, getattr(plain, "__call__", None)):  # noqa: B004  an object with a coroutine __call__
        if inspect.isasyncgenfunction(candidate):
            return "async generator"
        if inspect.iscoroutinefunction(candidate):
            return "coroutine"
        if inspect.isgeneratorfunction(candidate):
            return "generator"
    return "plain"


def _async_generator(function: Callable[[RunContext], Any], run: RunContext) -> AsyncIterator[Piece]:
    stream: AsyncIterator[Piece] = function(run)
    return stream


async def _coroutine(function: Callable[[RunContext], Any], run: RunContext) -> AsyncIterator[Piece]:
    returned = output_of(await function(run))
    if returned is not None:
        yield returned


async def _thread(function: Callable[[RunContext], Any], run: RunContext) -> AsyncIterator[Piece]:
    if not THREADS.acquire(blocking=False):
        raise ProviderFailure(
            f"{THREADS_MAX} threads of plain functions are busy or were abandoned", code="max_runs_exceeded"
        )
    loop = asyncio.get_running_loop()
    handover = _Handover(loop, run.late)
    run.blocking.begin(loop)
    context = contextvars.copy_context()  # so that what the thread prints is known to be this run's
    thread = threading.Thread(
        target=context.run, args=(_serve, handover, function, run), name=f"run {run.run_id}", daemon=True
    )
    try:
        thread.start()
    except RuntimeError as exc:
        THREADS.release()
        raise ProviderFailure(f"no thread for the function: {exc}", code="max_runs_exceeded") from exc
    try:
        while True:
            kind, value = await handover.get()
            if kind == "piece":
                yield value
            elif kind == "raised":
                raise value
            else:
                async for piece in _returned(value):
                    yield piece
                return
    finally:
        handover.close()
        run.blocking.end()


async def _returned(value: Any) -> AsyncIterator[Piece]:
    """What a plain function returned: a value, or something that has to be awaited or iterated here."""
    if isinstance(value, AsyncIterator):
        async for piece in value:
            yield piece
        return
    returned = output_of(await value if inspect.isawaitable(value) else value)
    if returned is not None:
        yield returned


_CALLS: dict[str, Callable[[Callable[[RunContext], Any], RunContext], AsyncIterator[Piece]]] = {
    "async generator": _async_generator, "coroutine": _coroutine, "generator": _thread, "plain": _thread,
}


def _serve(handover: _Handover, function: Callable[[RunContext], Any], run: RunContext) -> None:
    """The thread of one plain function, from its call to its last word."""
    try:
        result = function(run)
        if isinstance(result, Iterator):
            result = _iterate(handover, result)
        last: tuple[str, Any] = ("returned", result)
    except BaseException as exc:  # noqa: BLE001  the run's failure is told to the run, whatever it is
        last = ("raised", exc)
    finally:
        THREADS.release()
    handover.put(last)


def _iterate(handover: _Handover, pieces: Iterator[Any]) -> Any:
    """Hand over what a generator yields until it ends or nobody wants more; its return value."""
    while True:
        try:
            piece = next(pieces)
        except StopIteration as stop:
            return stop.value
        if not handover.put(("piece", piece)):
            if inspect.isgenerator(pieces):
                pieces.close()
            return None


class _Handover:
    """A bounded way from a thread to the loop. Once closed it refuses, and nobody waits in it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, late: Callable[[], None]) -> None:
        self._loop = loop
        self._late = late
        self._items: deque[tuple[str, Any]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._slots = threading.Semaphore(HANDOVER_MAX)
        self._closed = False

    def put(self, item: tuple[str, Any]) -> bool:
        """From the thread: wait for a free place. False when nobody will take it."""
        self._slots.acquire()
        closed = self._closed
        try:
            if closed:
                self._slots.release()  # for the next put
                self._loop.call_soon_threadsafe(self._late)
            else:
                self._loop.call_soon_threadsafe(self._arrive, item)
        except RuntimeError:  # the loop is closed: the node went down meanwhile
            return False
        return not closed

    def _arrive(self, item: tuple[str, Any]) -> None:
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> tuple[str, Any]:
        """On the loop: the next item."""
        while not self._items:
            self._waiter = self._loop.create_future()
            await self._waiter
        self._slots.release()
        return self._items.popleft()

    def close(self) -> None:
        """On the loop: take nothing more."""
        self._closed = True
        self._slots.release()


def output_of(returned: Any) -> Piece | None:
    """What a function's return value stands for."""
    if returned is None or isinstance(returned, Output):
        return returned
    if isinstance(returned, dict):
        return Output(data=returned)
    return Output(data={"content": returned})


__all__ = [
    "HANDOVER_MAX", "THREADS", "THREADS_MAX", "TOOL_KEYS", "PythonProvider", "load_function", "load_object",
    "load_target", "output_of",
]
