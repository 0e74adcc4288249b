"""What all commands share: help, options, errors, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import click
import pytest
from click.testing import Result

from mesh.cli import app, render
from mesh.cli.calling import as_called
from mesh.errors import CODES, from_wire

Cli = Callable[..., Result]
LOCAL = {"up", "down", "logs", "repair", "config show", "config check"}


def _commands() -> Iterator[tuple[str, click.Command]]:
    ctx = click.Context(app.root)
    for name in app.root.list_commands(ctx):
        command = app.root.get_command(ctx, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {sub}", one) for sub, one in command.commands.items())


@pytest.mark.parametrize(
    ("name", "command"), list(_commands()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_each_command_has_help_with_an_example(name: str, command: click.Command) -> None:
    """If a command is asked for help, then it says what it does and shows a line to copy."""
    text = command.help or ""
    assert "Example" in text and f"mesh {name.split(maxsplit=1)[0]}" in text


@pytest.mark.parametrize(
    ("name", "command"), list(_commands()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_each_command_takes_the_common_options(name: str, command: click.Command) -> None:
    """If -o or --address stands behind any command, then it is understood; but an address by none that works
    on this machine alone."""
    options = {option for param in command.params for option in param.opts}
    assert "-o" in options and ("--address" in options) == (name not in LOCAL)


@pytest.mark.parametrize("name", sorted(LOCAL))
def test_an_address_is_refused_by_what_works_on_this_machine_alone(cli: Cli, name: str) -> None:
    """If `mesh --address elsewhere down` is typed, then the local node is not stopped instead."""
    done = cli("--address", "tcp://127.0.0.1:9", *name.split())
    assert done.exit_code == 2 and "works on this machine alone" in done.stderr


def test_commands_to_copy_begin_with_the_program_as_it_was_called(
    cli: Cli, fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If mesh was called as bin/mesh, then examples and hints say so; words beside them are left alone."""
    monkeypatch.setenv("_MESH_PROGRAM", "bin/mesh")
    assert as_called("mesh up starts a mesh node; `mesh session list`, ./mesh up, mesh upper") == (
        "bin/mesh up starts a mesh node; `bin/mesh session list`, ./mesh up, mesh upper"
    )
    assert "Example: bin/mesh down" in cli("down", "--help").stdout
    fake.answers["status"] = from_wire("node_unreachable", "nobody")
    assert "hint: start one with: bin/mesh up" in cli("status").stderr
    monkeypatch.setenv("_MESH_PROGRAM", "/my files/mesh")
    assert as_called("mesh up") == "'/my files/mesh' up"


def test_help_imports_nothing_heavy() -> None:
    """If only help is wanted, then neither sockets nor databases nor tables are imported."""
    script = (
        "import sys; from mesh.cli.app import root; root(['--help'], standalone_mode=False); "
        "print(*{'zmq', 'apsw', 'rich', 'asyncio', 'msgpack'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.split() == []


def test_ctrl_c_while_a_command_is_imported_is_an_interrupt(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If Ctrl-C comes before a command has begun, then the exit code is 130 as well, and nothing is said."""

    def interrupted(_name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app.importlib, "import_module", interrupted)
    done = cli("run", "echo", "hi")
    assert (done.exit_code, done.output) == (130, "")


def test_unknown_command_names_the_nearest(cli: Cli) -> None:
    """If a command is misspelt, then the exit code is 2 and the nearest name is shown."""
    done = cli("sttus")
    assert done.exit_code == 2 and "status" in done.stderr


def test_unknown_option_is_a_usage_error(cli: Cli) -> None:
    """If an option does not exist, then nothing runs and the exit code is 2."""
    assert cli("status", "--jsn").exit_code == 2


@pytest.mark.parametrize("place", ["before", "after"])
def test_output_option_is_understood_before_and_after(cli: Cli, fake, place: str) -> None:
    """If -o json stands before or behind the command, then the answer is JSON."""
    fake.answers["partitions.of"] = 1
    words = ("partition", "of", "a:b:c")
    done = cli("-o", "json", *words) if place == "before" else cli(*words, "-o", "json")
    assert json.loads(done.stdout) == {"key": "a:b:c", "partition": 1}


def test_address_and_timeout_reach_the_client(cli: Cli, fake) -> None:
    """If --address and --timeout are given, then the client is made with them."""
    fake.answers["partitions.of"] = 1
    assert cli("--timeout", "2", "partition", "of", "a:b:c", "--address", "tcp://h:1").exit_code == 0
    assert fake.opened == [("tcp://h:1", 2.0)]


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("node_unreachable", 3),
        ("not_found", 4),
        ("session_not_found", 4),
        ("unknown_agent", 4),
        ("no_route", 4),
        ("timeout", 5),
        ("invalid_session_key", 2),
        ("config_error", 2),
        ("overloaded", 1),
        ("session_paused", 1),
        ("provider_error", 1),
        ("partition_unavailable", 1),
        ("a_code_of_tomorrow", 1),
    ],
)
def test_error_is_one_line_with_its_exit_code(cli: Cli, fake, code: str, exit_code: int) -> None:
    """If the node refuses, then stderr holds one error line, never a traceback, and the code is stable."""
    fake.answers["partitions.of"] = from_wire(code, "it is\nso")
    done = cli("partition", "of", "a:b:c")
    assert done.exit_code == exit_code
    first, *rest = done.stderr.splitlines()
    assert first == f"error: it is ({code})"
    assert all(line.startswith("hint: ") for line in rest)
    assert done.stdout == ""


def test_error_as_json_has_code_and_details(cli: Cli, fake) -> None:
    """If -o json is wanted, then the error is JSON on stderr too."""
    fake.answers["partitions.of"] = from_wire("overloaded", "full", {"retry_after_ms": 5})
    done = cli("partition", "of", "a:b:c", "-o", "json")
    error = json.loads(done.stderr)["error"]
    assert (error["code"], error["details"]) == ("overloaded", {"retry_after_ms": 5})


def test_an_unexpected_exception_is_one_line(cli: Cli, fake) -> None:
    """If a command meets a bug, then the user sees one line that says how to report it."""
    fake.answers["partitions.of"] = KeyError("x")
    done = cli("partition", "of", "a:b:c")
    assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1 and "KeyError" in done.stderr


def test_the_traceback_of_an_agent_is_shown(cli: Cli, fake) -> None:
    """If an agent's file cannot be imported, then its author sees where."""
    trace = 'Traceback (most recent call last):\n  File "a.py", line 1\nSyntaxError: no'
    fake.answers["sessions.start"] = from_wire("provider_error", "cannot import a.py", {"traceback": trace})
    assert 'File "a.py", line 1' in cli("session", "start", "mine").stderr


def test_a_file_that_cannot_be_imported_is_named_by_its_last_line(cli: Cli, fake) -> None:
    """If an agent cannot start, then the error's line says what Python said, and where stands below."""
    trace = 'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\nKeyError: x'
    fake.answers["sessions.start"] = from_wire("provider_unavailable", f"agent 'a' cannot start: {trace}")
    first, *rest = cli("session", "start", "a").stderr.splitlines()
    assert first == "error: agent 'a' cannot start: KeyError: x (provider_unavailable)"
    assert rest == trace.splitlines()


def test_no_node_says_how_to_start_one(cli: Cli, fake) -> None:
    """If no node answers, then the hint is the command that starts one."""
    fake.answers["status"] = from_wire("node_unreachable", "nobody")
    assert "hint: start one with: mesh up" in cli("status").stderr


def test_each_hint_belongs_to_a_code() -> None:
    """If a hint is written for a code, then that code exists."""
    assert set(render.HINTS) <= set(CODES)


def test_version(cli: Cli) -> None:
    """If --version is given, then the version is printed and nothing else happens."""
    assert cli("--version").stdout.startswith("mesh ")
