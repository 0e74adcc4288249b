"""``mesh config``, and the examples in ``configs/``."""

from __future__ import annotations

import asyncio
import json
import tomllib
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from mesh.cli.settings import sections
from mesh.config import NodeConfig, load

Cli = Callable[..., Result]
CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_each_example_is_right(cli: Cli, file: Path) -> None:
    """If an example of configs/ is checked, then it is accepted."""
    done = cli("config", "check", str(file))
    assert done.exit_code == 0, done.stderr


#: Sections that have no defaults: each key is a name that its user gives.
NAMED = ("agents", "mcp")


def test_config_show_hides_what_is_a_secret_by_name_or_by_its_looks(cli: Cli, tmp_path: Path) -> None:
    """If a value has a secret's name, or looks like one, also in a list or to a pattern of one's own, then it
    is hidden; names of variables and all else are shown."""
    key = "sk-proj-" + "a1" * 24
    (tmp_path / "m.toml").write_text(
        '[redaction]\npatterns = ["acme-[0-9]{6}"]\n[agents.a]\nprovider = "shell"\nenv = {PLAIN = "yes", '
        f'X = "{key}", Y = "acme-123456", DB_PASSWORD = "p", Z_KEY = "env:Z_KEY"}}\nargv = ["-k", "{key}"]\n'
    )
    shown = cli("config", "show", "--config", str(tmp_path / "m.toml"), "-o", "json")
    agent = json.loads(shown.stdout)["agents"]["a"]
    assert agent["argv"] == ["-k", "(hidden)"] and agent["env"] == {
        "PLAIN": "yes", "X": "(hidden)", "Y": "(hidden)", "DB_PASSWORD": "(hidden)", "Z_KEY": "env:Z_KEY"}


def test_default_toml_holds_every_default() -> None:
    """If a default changes or a key is added, then configs/default.toml must say so."""
    written = tomllib.loads((CONFIGS / "default.toml").read_text())
    assert written == {name: keys for name, keys in sections(NodeConfig()).items() if name not in NAMED}


def test_each_default_has_a_line_of_its_own() -> None:
    """If a reader looks for a key, then it stands at the beginning of a line."""
    lines = (CONFIGS / "default.toml").read_text().splitlines()
    keys = [key for name, keys in sections(NodeConfig()).items() if name not in NAMED for key in keys]
    assert [line.split(" = ")[0] for line in lines if " = " in line and not line.startswith("#")] == keys


def _agent(name: str) -> Callable[..., Any]:
    target = load(CONFIGS / "agents.toml", environ={}).agents[name]["target"]
    file, _, function = target.rpartition(":")
    spec = spec_from_file_location(f"example_{name}", file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)


def test_example_hello_streams_its_greeting() -> None:
    """If the example agent runs, then its pieces make the greeting."""

    async def pieces() -> list[str]:
        return [piece async for piece in _agent("hello")(SimpleNamespace(prompt="Ann"))]

    assert "".join(asyncio.run(pieces())) == "Hello, Ann!"


def test_example_summarize_counts_words() -> None:
    """If the plain function runs, then it returns the answer."""
    assert _agent("summarize")(SimpleNamespace(prompt="a bbb cc")) == "3 words, the longest is 'bbb'"


def test_show_prints_toml_that_means_the_same(cli: Cli) -> None:
    """If the settings are shown, then reading them back gives the settings."""
    assert tomllib.loads(cli("config", "show").stdout) == sections(load(environ={}))


def test_show_as_json_with_an_override(cli: Cli) -> None:
    """If the environment sets a key, then it is in force."""
    done = cli("config", "show", "-o", "json", env={"MESH_ROUTES_TTL_MS": "60000"})
    assert json.loads(done.stdout)["routes"]["ttl_ms"] == 60000


def test_show_hides_secrets(cli: Cli, tmp_path: Path) -> None:
    """If a file holds a key in clear, then it is not printed; a reference is."""
    file = tmp_path / "c.toml"
    file.write_text(
        '[agents.a]\nprovider = "x"\napi_key = "sk-1"\nauth_token = "env:T"\nn = {password = "p9"}\n'
    )
    text = cli("config", "show", "--config", str(file)).stdout
    assert "sk-1" not in text and "p9" not in text and "env:T" in text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[route]\n", ("[route]", "routes")),
        ("[routes]\nttl_sm = 1\n", ("routes.ttl_sm", "ttl_ms")),
        ('[routes]\nttl_ms = "x"\n', ("routes.ttl_ms", "whole number")),
        ('[routes]\ndurability = "powr"\n', ("routes.durability", "power")),
        ("[routes\n", ("not valid TOML",)),
        ('[agents.a]\nprovider = "python"\n', ("agents.a.target",)),
        ('[agents.a]\nprovider = "python"\ntarget = "no.py:f"\n', ("agents.a.target", "no.py")),
        ('[agents.a]\nprovider = "router"\nagents = ["ecko"]\n', ("agents.a", "did you mean 'echo'")),
        ('[agents.a]\nprovider = "router"\nagents = ["a"]\n', ("agents.a", "a -> a")),
        ('[agents.a]\nprovider = "ecko"\n', ("agents.a", "did you mean 'echo'")),
        ('[agents.a]\nprovider = "router"\nagents = ["echo"]\nfailure = 2\n', ("agents.a", "'failures'")),
    ],
)
def test_check_names_file_key_and_nearest(
    cli: Cli, tmp_path: Path, text: str, parts: tuple[str, ...]
) -> None:
    """If a file is wrong, then one line names it, the key and what was perhaps meant; the code is 2."""
    file = tmp_path / "mesh.toml"
    file.write_text(text)
    done = cli("config", "check", str(file))
    assert done.exit_code == 2
    line = done.stderr.splitlines()[0]
    assert line.startswith("error: ") and str(file) in line and all(part in line for part in parts)


@pytest.mark.parametrize(
    ("target", "source", "part"),
    [
        ("agents.py", "", 'expected "module:function"'),
        ("agents.py:f", "def f(:\n", "agents.py, line 1: "),
        ("agents.py:f", "def g(run):\n    return 1\n", "agents.py has no 'f'"),
        ("agents.py:f.go", "class F: pass\n", "agents.py has no 'f'"),
        ("agents.py:f", b"\xff", "agents.py"),
    ],
)
def test_check_reads_the_files_of_agents(
    cli: Cli, tmp_path: Path, target: str, source: str | bytes, part: str
) -> None:
    """If a function's file cannot be read by Python or has no such name, then config check says so."""
    (tmp_path / "agents.py").write_bytes(source if isinstance(source, bytes) else source.encode())
    file = tmp_path / "mesh.toml"
    file.write_text(f'[agents.a]\nprovider = "python"\ntarget = "{target}"\n')
    done = cli("config", "check", str(file))
    assert done.exit_code == 2 and "agents.a.target: " in done.stderr and part in done.stderr


@pytest.mark.parametrize(
    "source",
    ["f = make()\n", "from x import *\n", "import f\n", "if x:\n    def f(): ...\n", "globals()[a] = 1\n",
     "locals()[a] = 1\n"],
)
def test_check_executes_nothing_and_lets_pass_what_it_cannot_tell(
    cli: Cli, tmp_path: Path, source: str
) -> None:
    """If a file may define the function in any way, then it is let pass, and not executed."""
    (tmp_path / "agents.py").write_text(source + "raise SystemExit(7)\n")
    file = tmp_path / "mesh.toml"
    file.write_text('[agents.a]\nprovider = "python"\ntarget = "agents.py:f"\n')
    assert cli("config", "check", str(file)).exit_code == 0


def test_defaults_are_shown_beside_a_broken_file(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the file is wrong, then the hint's command still shows every key with its default."""
    (tmp_path / "mesh.toml").write_text("[node]\nprot = 1\n")
    monkeypatch.chdir(tmp_path)
    assert "hint: every key with its default: mesh config show --defaults" in cli("config", "show").stderr
    assert "port = 7400" in cli("config", "show", "--defaults").stdout


def test_mesh_toml_of_this_folder_is_found(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no file is named, then ./mesh.toml is read."""
    (tmp_path / "mesh.toml").write_text("[node]\nport = 7500\n")
    monkeypatch.chdir(tmp_path)
    assert json.loads(cli("config", "show", "-o", "json").stdout)["node"]["port"] == 7500


def test_mesh_config_comes_before_mesh_toml(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If $MESH_CONFIG names a file, then ./mesh.toml is not read."""
    (tmp_path / "mesh.toml").write_text("[node]\nport = 7500\n")
    (tmp_path / "other.toml").write_text("[node]\nport = 7600\n")
    monkeypatch.chdir(tmp_path)
    done = cli("config", "show", "-o", "json", env={"MESH_CONFIG": "other.toml"})
    assert json.loads(done.stdout)["node"]["port"] == 7600


def test_unknown_section_is_a_usage_error(cli: Cli) -> None:
    """If a section does not exist, then the existing ones are named."""
    done = cli("config", "show", "--section", "rout")
    assert done.exit_code == 2 and "routes" in done.stderr
