"""What providers that start a coding program have in common: their table, how the program is found, and what
it is told of the past.

Keys that all of them take: ``program`` (a name on PATH, or a path), ``args`` (given to it as they are, before
the prompt), ``cwd``, ``env`` (a value ``env:NAME`` is taken from the node's environment), ``model``,
``start_timeout_s``. ``provider_opts`` of a call may hold ``cwd``, ``env`` and ``model``. A run with a
workspace works in that.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mesh.core.account import USED_BEFORE
from mesh.core.message import Message, Role
from mesh.errors import ConfigError
from mesh.providers.base import (
    ProviderFailure,
    RunContext,
    as_failure,
    check_keys,
    check_options,
    checked,
    from_environment,
    nearest_name,
    provider_error,
)
from mesh.providers.execution import Command
from mesh.providers.program import Facts

#: Every process of a run carries its id in this variable, whatever it does to its parent or group.
MARK = "MESH_RUN"
#: How long a program may be silent before its first word.
START_S = 60.0
KEYS = ("program", "args", "cwd", "env", "model", "start_timeout_s")
CALL_KEYS = ("cwd", "env", "model")


class Table:
    """An agent's table, its types proven."""

    def __init__(
        self, table: Mapping[str, Any], facts: Facts, own: Sequence[str], call: Sequence[str] = ()
    ) -> None:
        """``own``: the provider's further keys; ``call``: those that a call's ``provider_opts`` may hold too.

        Raises:
            ConfigError: an unknown key, or a value of another type.
        """
        check_keys(table, (*KEYS, *own))
        self.facts = facts
        self._call = (*CALL_KEYS, *call)
        self.program: str = checked(table, "program", (str,), facts.name) or facts.name
        self.args = texts(table, "args")
        self.start_timeout_s = float(checked(table, "start_timeout_s", (int, float), START_S))
        if self.start_timeout_s <= 0:
            raise ConfigError("start_timeout_s: expected a number more than 0")
        self._values = {key: table[key] for key in self._call if key in table}
        _placed(self._values)

    def of(self, run: RunContext) -> dict[str, Any]:
        """The settings of one run: the call's, else the table's.

        Raises:
            ProviderFailure: ``validation_error``; the call names something that there is not.
        """
        with as_failure():
            check_options(run.options, self._call)
            _placed(run.options)
            env = {**variables(self._values), **run.options.get("env", {})}
            return {**self._values, **run.options, "env": env}

    def missing(self) -> str | None:
        """What to do about a program that is not there; None when it is."""
        if shutil.which(self.program) is not None:
            return None
        return f"{self.program} is not installed: {self.facts.install}; then log in: {self.facts.login}"

    def command(
        self, provider: str, run: RunContext, settings: Mapping[str, Any], args: Sequence[str]
    ) -> Command:
        """The program with these arguments, in the run's folder.

        Raises:
            ProviderFailure: ``dependency_not_available``; the program is not there.
        """
        found = shutil.which(self.program)
        if found is None:
            message = self.missing() or self.program
            raise ProviderFailure(message, code="dependency_not_available", details={
                "program": self.program, "install": self.facts.install, "login": self.facts.login,
            }, provider_error=provider_error(provider, "cli_not_found", message))
        cwd = _folder(settings.get("cwd"), run.workspace, by_call="cwd" in run.options)
        env = {**os.environ, **settings.get("env", {}), MARK: run.run_id}
        return Command(
            argv=[found, *args], shown=self.program, cwd=cwd, env=env, timeout_s=self.start_timeout_s,
            direct=True, stdin=True,
        )


def _folder(asked: str | None, workspace: str | None, *, by_call: bool) -> str:
    """What the call says, seen from its workspace; else the workspace; else the agent's; else the node's."""
    if workspace is None:
        return str(Path(asked or Path.cwd()).expanduser())
    return str(Path(workspace, Path(asked).expanduser())) if asked and by_call else workspace


def _placed(table: Mapping[str, Any]) -> None:
    checked(table, "cwd", (str,), None)
    if "\0" in (checked(table, "model", (str,), None) or ""):
        raise ConfigError("model: expected a text without NUL")
    env = checked(table, "env", (dict,), {})
    if not all(isinstance(key, str) and isinstance(value, str) for key, value in env.items()) or any(
        "\0" in key + value or "=" in key for key, value in env.items()
    ):
        raise ConfigError("env: expected a table of texts")


def variables(table: Mapping[str, Any]) -> dict[str, str]:
    """The ``env`` of an agent's table; ``env:NAME`` is taken from the node's environment.

    Raises:
        ConfigError: it is no table of texts, or that one is not set.
    """
    _placed(table)
    return from_environment(table.get("env", {}), "env")


def texts(table: Mapping[str, Any], key: str) -> list[str]:
    """A list of texts.

    Raises:
        ConfigError: anything else.
    """
    values = checked(table, key, (list,), [])
    if not all(isinstance(value, str) and "\0" not in value for value in values):
        raise ConfigError(f"{key} = {values!r:.80}: expected a list of texts")
    return list(values)


def one_of(table: Mapping[str, Any], key: str, known: Sequence[str], default: str | None) -> str | None:
    """One of some words.

    Raises:
        ConfigError: another one; the nearest is named.
    """
    value = checked(table, key, (str,), default)
    if value is not None and value not in known:
        raise ConfigError(f"{key} = {value!r:.60}{nearest_name(value, known)}")
    return value  # type: ignore[no-any-return]


def used_before(run: RunContext, provider: str) -> dict[str, Any]:
    """What the resumed session had used when its last run ended, for who counts from its beginning."""
    sessions = run.session.metadata.get("provider_sessions")
    mine = sessions.get(provider) if run.resume is not None and isinstance(sessions, dict) else None
    used = mine.get(USED_BEFORE) if isinstance(mine, dict) else None
    return used if isinstance(used, dict) else {}


def prompt_of(run: RunContext, *, system: bool = True) -> str:
    """What the program is told: the conversation so far, when it does not know it itself, and the prompt.

    ``system``: the session's system prompt stands before it; else the program has another way to take it.

    Raises:
        ProviderFailure: ``validation_error``; there is nothing to say.
    """
    prompt = run.prompt
    if not prompt.strip():
        raise ProviderFailure("a prompt is needed", code="validation_error")
    parts = []
    said = run.context.get("system_prompt")
    if system and isinstance(said, str) and said and run.resume is None:
        parts.append(said)
    if run.resume is None and run.transcript.messages:
        past = "\n".join(_line(message) for message in run.transcript.messages)
        parts.append(f"The conversation so far:\n{past}")
    return "\n\n".join((*parts, prompt))


def _line(message: Message) -> str:
    if message.role is Role.TOOL or message.tool_name is not None:
        if message.tool_output is not None:
            return f"tool {message.tool_name or ''} gave: {message.tool_output}"
        return f"tool {message.tool_name or ''} called with: {message.tool_input}"
    return f"{message.role}: {message.content or ''}"


__all__ = ["CALL_KEYS", "KEYS", "MARK", "START_S", "Table", "one_of", "prompt_of", "texts", "used_before",
           "variables"]
