"""Help is true and can be used: examples are commands that exist, every option says what it is for."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest

from mesh.cli import app, follow
from mesh.rendering import RENDERERS
from mesh.rendering.studio import TOOL_OUTPUTS

#: The width of a terminal for which help is written.
COLUMNS = 80
#: A line of help that is a command.
EXAMPLE = r"^(?: *Example: | +)((?:export )?(?:\w+=\$\(|\w+=\S+ )?mesh .*)$"


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command and group with its full name."""
    waiting: list[tuple[str, click.Command]] = [("", app.root)]
    while waiting:
        name, command = waiting.pop()
        yield name, command
        if isinstance(command, click.Group):
            ctx = click.Context(command)
            for sub in command.list_commands(ctx):
                found = command.get_command(ctx, sub)
                assert found is not None
                waiting.append((f"{name} {sub}".strip(), found))


ALL = list(commands())
each = pytest.mark.parametrize(("name", "command"), ALL, ids=[name or "mesh" for name, _ in ALL])


def examples(command: click.Command) -> list[str]:
    """Every ``mesh ...`` of a command's examples, also within ``$(...)`` and behind ``&&``."""
    lines = re.findall(EXAMPLE, command.help or "", re.MULTILINE)
    found = []
    for line in lines:
        for part in re.split(r"&& | [|>] |\$\((?=mesh )", line):
            text = part.partition("mesh ")[2].strip()
            if text:
                found.append(text.removesuffix(")") if text.count("(") < text.count(")") else text)
    return found


@each
def test_each_example_is_a_command_that_is_understood(
    name: str, command: click.Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a line of help is copied, then its command exists and takes these options and arguments."""
    monkeypatch.setenv("MESH_DRIVER", "k")  # one of them needs it
    for line in examples(command):
        words = shlex.split(line.partition("   ")[0])
        at: click.Command = app.root
        ctx = click.Context(app.root, info_name="mesh")
        while isinstance(at, click.Group):
            _, found, words = at.resolve_command(ctx, words)
            assert found is not None, line
            at = found
            ctx = click.Context(at, parent=ctx, info_name=at.name)
        at.make_context(at.name, words, parent=ctx.parent)


def test_examples_are_found() -> None:
    """If examples were written so that this test does not see them, then it would prove nothing."""
    without = [name for name, command in ALL if not examples(command)]
    assert without == [] and sum(len(examples(command)) for _, command in ALL) > 90


@each
def test_each_example_stands_on_one_line(name: str, command: click.Command) -> None:
    """If help is shown in 80 columns, then no example is broken into lines that are no commands."""
    ctx = click.Context(command, info_name=f"mesh {name}", terminal_width=COLUMNS, max_content_width=100)
    shown = command.get_help(ctx)
    for line in examples(command):
        assert line in shown, line


@each
def test_each_option_says_what_it_is_for(name: str, command: click.Command) -> None:
    """If an option has no help, then its user has to guess."""
    silent = [p.opts for p in command.params if isinstance(p, click.Option) and not p.hidden and not p.help]
    assert silent == []


@each
def test_a_list_of_commands_cuts_no_word(name: str, command: click.Command) -> None:
    """If a first sentence is too long for a list, then it ends where a part of it or a word does."""
    short = command.get_short_help_str(60)
    whole = " ".join((command.help or "").split())
    assert len(short) <= 60 and whole.startswith(short.removesuffix(" ..."))
    assert whole[len(short.removesuffix(" ..."))] in " .;:,"


def test_the_choices_of_help_are_those_there_are() -> None:
    """If a renderer is added, then the command line, which names them without importing them, has it too."""
    assert set(follow.RENDERERS) == set(RENDERERS) and follow.TOOL_OUTPUTS == TOOL_OUTPUTS
