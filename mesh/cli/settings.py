"""``mesh config``: the settings, where they come from, whether they are right."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mesh.cli import render
from mesh.cli.app import group, shell
from mesh.cli.targets import target_problem

if TYPE_CHECKING:
    from mesh.config import NodeConfig
    from mesh.core.redact import Redactor

F = TypeVar("F", bound=Callable[..., Any])
#: Keys of an agent's table that may hold a secret in clear; it is never printed.
SECRET_WORDS = ("key", "token", "secret", "password", "authorization", "cookie")


def config_path(given: str | None) -> Path | None:
    """The config file: the one given, else $MESH_CONFIG, else ./mesh.toml when it is there, else none."""
    named = given or os.environ.get("MESH_CONFIG")
    if named:
        return Path(named)
    local = Path("mesh.toml")
    return local if local.is_file() else None


def load(given: str | None, overrides: dict[str, Any] | None = None) -> NodeConfig:
    """The checked settings of a command that takes --config.

    Raises:
        ConfigError: names file or variable, key, and what is accepted.
    """
    from mesh.config import load as load_config

    return load_config(config_path(given), overrides=overrides)


def sections(settings: NodeConfig) -> dict[str, dict[str, Any]]:
    """The settings in the shape of the TOML file, agents included."""
    return {name: values for name, values in settings.to_map().items() if isinstance(values, dict)}


def config_option(command: F) -> F:
    """Decorator: ``--config FILE``."""
    return click.option(
        "--config",
        "config_file",
        metavar="FILE",
        help="Settings; default: $MESH_CONFIG, else ./mesh.toml if it exists.",
    )(command)


@group()
def config() -> None:
    """The node's settings.

    The defaults, then the file, then MESH_SECTION_KEY in the environment.

    \b
    Example:
      MESH_ROUTES_TTL_MS=60000 mesh config show
    """


@config.command("show", local=True)
@config_option
@click.option("--section", metavar="NAME", help="Only this section.")
@click.option("--defaults", is_flag=True, help="The defaults alone, whatever file and environment say.")
def show(config_file: str | None, section: str | None, defaults: bool) -> None:
    """Print the settings in force, as TOML or with -o json as JSON. Secrets are hidden.

    Example: mesh config show --section routes
    """
    loaded = _defaults() if defaults else load(config_file)
    hidden = _Hiding(loaded.redaction.redactor())
    settings = {name: hidden.secrets(values) for name, values in sections(loaded).items()}
    if section is not None:
        if section not in settings:
            raise click.UsageError(f"no section {section!r}; there are {', '.join(settings)}")
        settings = {section: settings[section]}
    if shell().json:
        return render.emit_json(settings)
    return click.echo("\n\n".join(_toml(name, values) for name, values in settings.items()))


def _defaults() -> NodeConfig:
    from mesh.config import load as load_config

    return load_config(None, environ={})


@config.command("check", local=True)
@click.argument("file", required=False)
@config_option
def check(file: str | None, config_file: str | None) -> None:
    """Check the settings and the agents' targets without executing anything; exit code 2 when wrong.

    What only shows when an agent is loaded is found by `mesh doctor`.

    Example: mesh config check configs/production.toml
    """
    from mesh.errors import ConfigError

    path = config_path(file or config_file)
    settings = load(file or config_file)
    missing = _missing_targets(settings.agents)
    if missing:
        raise ConfigError(f"{path or 'environment'}: {missing[0]}")
    if shell().json:
        return render.emit_json(
            {"ok": True, "file": str(path) if path else None, "agents": sorted(settings.agents),
             "isolated": sorted(settings.hosting().own)}
        )
    own = settings.hosting().own
    apart = f", with a runner of their own: {', '.join(own)}" if own else ""
    return click.echo(f"ok: {path or 'defaults and environment'} ({len(settings.agents)} agents{apart})")


def _missing_targets(agents: dict[str, dict[str, Any]]) -> list[str]:
    from mesh.core.hosting import check_apart
    from mesh.core.routing_rules import ROUTER
    from mesh.errors import ConfigError, shown
    from mesh.providers.base import nearest_name
    from mesh.providers.registry import PROVIDERS
    from mesh.providers.router import Router

    problems = []
    for name, table in agents.items():
        provider = table.get("provider")
        if provider not in PROVIDERS:
            near = nearest_name(str(provider), PROVIDERS)
            problems.append(f"agents.{name}: unknown provider {shown(provider)}{near}")
        try:
            check_apart(name, agents)
            if provider == ROUTER:
                Router(name, agents, lambda _: None)
        except ConfigError as exc:
            problems.append(f"agents.{name}: {exc.message}")
        wrong = target_problem(table.get("target")) if provider == "python" else None
        if wrong:
            problems.append(f"agents.{name}.target: {wrong}")
    return problems


class _Hiding:
    """Hides what is a secret by its name, or looks like one: to mesh in any case, and to ``[redaction]``."""

    def __init__(self, own: Redactor) -> None:
        from mesh.core.redact import Redactor

        self._redactors = (Redactor(), own)

    def secrets(self, values: Any, name: str = "") -> Any:
        """The values, those hidden that nobody is to read."""
        if isinstance(values, dict):
            return {key: self.secrets(value, key) for key, value in values.items()}
        if isinstance(values, list | tuple):
            return [self.secrets(value, name) for value in values]
        if not isinstance(values, str) or values.startswith("env:"):
            return values
        looks = any(redactor.text(values) != values for redactor in self._redactors)
        return "(hidden)" if looks or name.lower().endswith(SECRET_WORDS) else values


def _toml(name: str, values: dict[str, Any]) -> str:
    plain = [
        f"{_toml_key(key)} = {_toml_value(value)}"
        for key, value in values.items()
        if not isinstance(value, dict)
    ]
    tables = [
        _toml(f"{name}.{_toml_key(key)}", value) for key, value in values.items() if isinstance(value, dict)
    ]
    head = [f"[{name}]\n" + "\n".join(plain)] if plain or not tables else []
    return "\n\n".join([*head, *tables]).rstrip()


def _toml_key(key: str) -> str:
    import json

    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else json.dumps(key)


def _toml_value(value: Any) -> str:
    import json

    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items()) + "}"
    # A JSON text of ASCII is a TOML basic string too; booleans and numbers are the same in both.
    return json.dumps(value) if isinstance(value, str | bool | int | float) else json.dumps(str(value))


__all__ = ["config", "config_option", "config_path", "load", "sections"]
