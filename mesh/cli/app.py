"""The root command, and what all commands share: options, lazy loading, errors as one line.

Rules of this file:

1. ``-o`` and ``--address`` are understood before and after the command's name.
2. A command raises ``MeshError`` and nothing else; here it becomes one line, a hint and an exit code.
3. Text for people may change; ``-o json`` and the exit codes do not. A command that answers once prints
   one JSON document; one that follows something prints one JSON document per line.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from mesh.cli import render
from mesh.cli.calling import as_called

if TYPE_CHECKING:
    import mesh

OUTPUTS = ("text", "json")
#: Where a sentence of a help text, or a part of it, ends.
_PART = re.compile(r"[.;:,](?=\s|\Z)")
#: name -> where its command stands. Read when the command is used, or listed by --help.
COMMANDS = {
    "up": "mesh.cli.node:up",
    "down": "mesh.cli.node:down",
    "status": "mesh.cli.node:status",
    "run": "mesh.cli.run:run",
    "session": "mesh.cli.session:session",
    "control": "mesh.cli.control:control",
    "search": "mesh.cli.search:search",
    "usage": "mesh.cli.search:usage",
    "approval": "mesh.cli.approval:approval",
    "workspace": "mesh.cli.workspace:workspace",
    "route": "mesh.cli.route:route",
    "partition": "mesh.cli.partition:partition",
    "runner": "mesh.cli.runner:runner",
    "agent": "mesh.cli.agent:agent",
    "listen": "mesh.cli.listen:listen",
    "logs": "mesh.cli.logs:logs",
    "backup": "mesh.cli.backup:backup",
    "maintenance": "mesh.cli.maintenance:maintenance",
    "audit": "mesh.cli.maintenance:audit",
    "repair": "mesh.cli.maintenance:repair",
    "config": "mesh.cli.settings:config",
    "doctor": "mesh.cli.doctor:doctor",
    "bench": "mesh.cli.bench:bench",
}


@dataclass(slots=True)
class Shell:
    """What the common options said."""

    output: str = "text"
    address: str | None = None
    timeout_s: float = 5.0
    traceback: bool = False

    @property
    def json(self) -> bool:
        """Whether the answer goes to a program."""
        return self.output == "json"

    @contextmanager
    def client(self) -> Iterator[mesh.Client]:
        """A client of the node at ``--address``, else of the local one."""
        with open_client(self.address, self.timeout_s) as client:
            yield client


def open_client(address: str | None, timeout_s: float) -> mesh.Client:
    """The one place where the command line makes its client. It shows $MESH_TOKEN and $MESH_DRIVER: not an
    option, since everybody sees the options of a process."""
    import mesh

    token, driver = os.environ.get("MESH_TOKEN") or None, os.environ.get("MESH_DRIVER") or None
    return mesh.Client(address, timeout_s=timeout_s, token=token, driver=driver)


def shell() -> Shell:
    """The common options of the command that runs now."""
    return click.get_current_context().find_root().ensure_object(Shell)


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None and param.name is not None:
        setattr(ctx.find_root().ensure_object(Shell), param.name, value)


def _common_options(*, local: bool = False) -> list[click.Parameter]:
    options: list[click.Parameter] = [
        click.Option(
            ["-o", "--output"],
            type=click.Choice(OUTPUTS),
            expose_value=False,
            callback=_remember,
            help="Answer as text (default) or as JSON.",
        ),
        click.Option(
            ["--address"],
            metavar="ADDRESS",
            expose_value=False,
            callback=_remember,
            help="The node, such as tcp://127.0.0.1:7400. Default: $MESH_ADDRESS, else the local one.",
        ),
    ]
    return options[:1] if local else options


def _short(text: str, limit: int) -> str:
    """The beginning of a help text for a list: to its full stop, else where a part of the sentence ends."""
    line = " ".join(text.partition("\n\n")[0].split())
    ends = [found.start() for found in _PART.finditer(line)]
    sentence = next((end for end in ends if line[end] == "."), len(line))
    if sentence < limit:
        return line[:sentence]
    fits = [end for end in ends if end <= limit and line.count("(", 0, end) == line.count(")", 0, end)]
    return line[: fits[-1]] if fits else line[: limit - 3].rpartition(" ")[0] + " ..."


class Command(click.Command):
    """A command with the common options whose errors are one line and an exit code. One that is ``local``
    works on this machine alone, and refuses an address instead of passing it over."""

    def __init__(self, *args: Any, local: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._local = local
        self.params.extend(_common_options(local=local))

    def get_short_help_str(self, limit: int = 45) -> str:
        """Its first sentence, or as much of it as is whole and fits."""
        return _short(self.help or "", limit)

    def get_help(self, ctx: click.Context) -> str:
        """Its help, with commands that can be copied."""
        return as_called(super().get_help(ctx))

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; see ``render.report``."""
        options = ctx.find_root().ensure_object(Shell)
        if self._local and options.address is not None:
            raise click.UsageError(f"{self.name} works on this machine alone, and takes no --address", ctx)
        with render.errors_reported(options):
            return super().invoke(ctx)


class Group(click.Group):
    """A group of such commands; those named in ``lazy`` are imported when they are used."""

    command_class = Command

    def __init__(self, *args: Any, lazy: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(_common_options())
        self._lazy = lazy or {}

    def get_short_help_str(self, limit: int = 45) -> str:
        """As of a command."""
        return _short(self.help or "", limit)

    def get_help(self, ctx: click.Context) -> str:
        """As of a command."""
        return as_called(super().get_help(ctx))

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        """In the order of the table, not of the alphabet: the first ones are needed first."""
        return [*self._lazy, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find a command, importing its module if need be."""
        if cmd_name not in self._lazy:
            return super().get_command(ctx, cmd_name)
        module, _, name = self._lazy[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; one that is interrupted while it is still imported or read is interrupted, too."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as exc:
            raise click.exceptions.Exit(render.INTERRUPTED) from exc

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command, or say which one was perhaps meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as exc:
            from difflib import get_close_matches

            near = get_close_matches(args[0], self.list_commands(ctx), n=1)
            if near and "did you mean" not in exc.message.lower():
                text = f"{exc.message.rstrip('.')}. Did you mean '{near[0]}'?"
                raise click.UsageError(text, ctx) from exc
            raise


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"mesh {version('mesh')}")
        except PackageNotFoundError:
            click.echo("mesh (not installed, run from its source)")
        ctx.exit()


@click.group(
    cls=Group,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    expose_value=False,
    callback=_remember,
    metavar="SECONDS",
    help="How long one request to the node may take (default 5).",
)
@click.option("--traceback", is_flag=True, default=None, expose_value=False, callback=_remember, hidden=True)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
def root() -> None:
    """mesh hosts AI-agent sessions: supervised, durable, behind one endpoint.

    \b
    Start here:
      mesh run shell "echo hello"      one run, no node needed
      mesh up                          a node, in the foreground
      mesh session start echo          a conversation on that node

    \b
    Exit codes: 0 ok, 1 the operation failed, 2 usage, 3 no node, 4 not found, 5 timeout,
    130 interrupted.
    """


def group(**attrs: Any) -> Callable[[Callable[..., Any]], Group]:
    """Decorator: a group of commands with the common options."""
    return click.group(cls=Group, **attrs)


def command(**attrs: Any) -> Callable[[Callable[..., Any]], Command]:
    """Decorator: a command with the common options."""
    return click.command(cls=Command, **attrs)


__all__ = ["COMMANDS", "Command", "Group", "Shell", "command", "group", "open_client", "root", "shell"]
