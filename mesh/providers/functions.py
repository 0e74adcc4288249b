"""A Python function as a tool: its schema from type hints and docstring, its input checked, its call bounded.

The first paragraph of the docstring describes the tool, an ``Args:`` section its parameters. A parameter that
is annotated ``RunContext`` gets the run and is not the model's to give. A plain function runs in a thread, so
it may block; one that is given up is abandoned with its thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import re
import threading
import typing
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec

from mesh.errors import ConfigError, RunError
from mesh.providers.base import RunContext
from mesh.providers.python import THREADS, THREADS_MAX, load_function

#: What APIs take as a tool's name.
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
DESCRIPTION_CHARS_MAX = 4_000
_ARGUMENT = re.compile(r"\s*\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")


class Plan(NamedTuple):
    """A function, read once."""

    function: Callable[..., Any]
    name: str
    description: str
    schema: dict[str, Any]
    arguments: type[msgspec.Struct]
    run_name: str | None  #: the parameter that takes the run

    def bound(self, run: RunContext) -> Callable[[dict[str, Any]], Awaitable[Any]]:
        """The function as a tool's ``call``."""
        return functools.partial(_call, self, run)


#: By target: what a reload replaced is not kept.
_plans: dict[str, Plan] = {}


def plan_of(target: str, *, fresh: bool = False) -> Plan:
    """Load a function and read what a model has to know of it.

    Raises:
        ConfigError: no such function, or one whose parameters cannot be told as a JSON object.
        Exception: whatever its module raises while it is imported.
    """
    function = load_function(target, fresh=fresh)
    plan = _plans.get(target)
    if plan is None or plan.function != function:
        plan = _plans[target] = _read(function, target)
    return plan


def _read(function: Callable[..., Any], target: str) -> Plan:
    name = getattr(function, "__name__", "")
    if not NAME.fullmatch(name):
        raise ConfigError(f"tool {target[-120:]!r}: {name!r:.80} is no name that models take")
    summary, told = _documented(inspect.getdoc(function) or "")
    try:
        parameters = inspect.signature(function).parameters.values()
        hints = typing.get_type_hints(function, include_extras=True)
    except (TypeError, ValueError, NameError) as exc:
        raise ConfigError(f"tool {target[-120:]!r}: its parameters cannot be read: {exc}") from exc
    run_name, fields = None, []
    for parameter in parameters:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigError(f"tool {target[-120:]!r}: {parameter} cannot be given by name")
        hint = hints.get(parameter.name, Any)
        if hint is RunContext:
            run_name = parameter.name
            continue
        if parameter.name in told:
            hint = typing.Annotated[hint, msgspec.Meta(description=told[parameter.name])]
        fields.append((parameter.name, hint, *_default(parameter)))
    schema, arguments = _schema(name, fields, target)
    return Plan(function, name, summary[:DESCRIPTION_CHARS_MAX], schema, arguments, run_name)


def _default(parameter: inspect.Parameter) -> tuple[Any, ...]:
    """The default of a struct's field: the function's own, whatever it is."""
    value = parameter.default
    return () if value is parameter.empty else (msgspec.field(default_factory=lambda: value),)


def _schema(
    name: str, fields: list[Any], target: str
) -> tuple[dict[str, Any], type[msgspec.Struct]]:
    try:
        arguments = msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True)
        [found], parts = msgspec.json.schema_components([arguments], ref_template="#/$defs/{name}")
    except (TypeError, ValueError) as exc:
        why = str(exc).partition("\n")[0]
        raise ConfigError(f"tool {target[-120:]!r}: its parameters cannot be told as JSON: {why}") from exc
    schema = parts.pop(found["$ref"].rpartition("/")[2])
    kept = {"type": "object", "properties": schema.get("properties", {})}
    if schema.get("required"):
        kept["required"] = schema["required"]
    if parts:
        kept["$defs"] = parts
    return kept, arguments


def _documented(text: str) -> tuple[str, dict[str, str]]:
    """The docstring's first paragraph, and what its ``Args:`` say."""
    summary, told, last = text.strip().split("\n\n")[0], {}, ""
    lines = iter(text.splitlines())
    for line in lines:
        if line.strip() in ("Args:", "Arguments:"):
            break
    for line in lines:
        if line.strip() and not line.startswith((" ", "\t")):
            break
        found = _ARGUMENT.fullmatch(line)
        if found is not None:
            last = found[1]
            told[last] = found[2].strip()
        elif last and line.strip():
            told[last] += " " + line.strip()
    return summary, told


async def _call(plan: Plan, run: RunContext, tool_input: dict[str, Any]) -> Any:
    try:
        given = msgspec.convert(tool_input, plan.arguments, strict=False)
    except msgspec.ValidationError as exc:
        raise RunError(f"wrong input: {exc}", code="tool_error") from exc
    arguments = {name: getattr(given, name) for name in plan.arguments.__struct_fields__}
    if plan.run_name is not None:
        arguments[plan.run_name] = run
    if inspect.iscoroutinefunction(plan.function):
        return await plan.function(**arguments)
    return await _in_thread(functools.partial(plan.function, **arguments), plan.name)


async def _in_thread(call: Callable[[], Any], name: str) -> Any:
    """Call in a thread of its own; whoever stops waiting leaves the thread to end by itself."""
    if not THREADS.acquire(blocking=False):
        raise RunError(f"{THREADS_MAX} threads of plain functions are busy or were abandoned",
                       code="max_runs_exceeded")
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def serve() -> None:
        try:
            told: tuple[Any, BaseException | None] = (call(), None)
        except BaseException as exc:  # noqa: BLE001  told to whoever waits, whatever it is
            told = (None, exc)
        finally:
            THREADS.release()
        try:
            loop.call_soon_threadsafe(_tell, answer, *told)
        except RuntimeError:  # the loop is closed: the node went down meanwhile
            return

    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(serve,), name=f"tool {name}", daemon=True
    )
    try:
        thread.start()
    except RuntimeError as exc:
        THREADS.release()
        raise RunError(f"no thread for the tool: {exc}", code="max_runs_exceeded") from exc
    return await answer


def _tell(answer: asyncio.Future[Any], value: Any, exc: BaseException | None) -> None:
    if answer.done():
        return
    if exc is None:
        answer.set_result(value)
    elif isinstance(exc, Exception) and not isinstance(exc, StopIteration):
        answer.set_exception(exc)
    else:  # a future takes neither; nor may sys.exit() of a tool end the runner
        answer.set_exception(RunError(f"{type(exc).__name__}: {exc}", code="tool_execution_failed"))


__all__ = ["DESCRIPTION_CHARS_MAX", "NAME", "Plan", "plan_of"]
