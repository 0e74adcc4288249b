"""``mesh doctor``, of the programs that agents start: which is missing or logged out, and what to do."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh.cli.doctor import Check
from mesh.errors import ConfigError
from mesh.providers.cli import variables
from mesh.providers.kinds import KINDS, installing

if TYPE_CHECKING:
    from mesh.providers.program import Facts

#: Providers that start a program, and the library that each needs for it.
PROGRAMS = {"acp": "acp", "amp": None, "claude_code": "claude_agent_sdk", "codex": None}
#: How long a program may take to say whether it is logged in.
STATUS_S = 15.0


def programs(agents: Mapping[str, Mapping[str, Any]]) -> Iterator[Check]:
    """One finding for each agent that starts a program. None of them keeps a node from starting."""
    for name, table in sorted(agents.items()):
        if table.get("provider") in PROGRAMS:
            yield _found(f"agent {name}", str(table["provider"]), table)


def _found(name: str, provider: str, table: Mapping[str, Any]) -> Check:
    library = PROGRAMS[provider]
    if library is not None and importlib.util.find_spec(library) is None:
        fix = installing(KINDS[provider].extra or "")
        return Check(name, "warn", f"{provider} needs the library {library}", fix)
    facts = facts_of(provider, table)
    program = table.get("program") or _bundled(library, facts.name) or facts.name
    found = shutil.which(str(program))
    if found is None:
        fix = f"{facts.install}; then log in: {facts.login}"
        return Check(name, "warn", f"{program} is not installed", fix)
    if not facts.status:
        return Check(name, "ok", f"{found}; to log in: {facts.login}")
    try:
        env = variables(table)
    except ConfigError as exc:
        return Check(name, "warn", exc.message, "mend it in the config, or set it where the node is started")
    if not _logged_in([found, *facts.status], env):
        return Check(name, "warn", f"{found} says that nobody is logged in", facts.login)
    return Check(name, "ok", f"{found}, logged in")


def facts_of(provider: str, table: Mapping[str, Any]) -> Facts:
    """What people must know about the program of an agent."""
    module: Any = importlib.import_module(KINDS[provider].module)
    found: Facts = module.facts_of(table) if provider == "acp" else module.FACTS
    return found


def _bundled(library: str | None, program: str) -> str | None:
    """The program that a library brings along."""
    spec = importlib.util.find_spec(library) if library is not None else None
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / "_bundled" / program
    return str(file) if file.is_file() else None


def _logged_in(argv: list[str], env: Mapping[str, str]) -> bool:
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=STATUS_S, check=False,
            env={**os.environ, **env},
        )
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return False
    return done.returncode == 0


__all__ = ["PROGRAMS", "STATUS_S", "facts_of", "programs"]
