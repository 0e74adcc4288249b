"""Which commands have a node begun before they are read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import Result

import mesh
from mesh import launch
from mesh.cli import ahead
from mesh.errors import ConfigError, MeshError


class Fake:
    def __init__(self) -> None:
        self.dropped = False

    def drop(self) -> None:
        self.dropped = True


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Fake]]:
    """What was begun."""
    made: list[Fake] = []

    def begin() -> Fake:
        made.append(Fake())
        return made[-1]

    monkeypatch.setattr(launch, "begin_node", begin)
    monkeypatch.setenv("MESH_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("MESH_ADDRESS", raising=False)
    yield made
    ahead._drop()


@pytest.mark.parametrize(("arguments", "count"), [
    ("run echo hi", 1), ("run --config mesh.toml echo hi", 1), ("run shell -", 1),
    ("run --address tcp://h:1 echo hi", 0), ("run --address=tcp://h:1 echo hi", 0), ("run --help", 0),
    ("run -h", 0), ("session list", 0), ("-o json run echo hi", 0), ("", 0),
])
def test_a_node_is_begun_for_a_run_without_an_address(begun: list[Fake], arguments: str, count: int) -> None:
    """If a run will need a node of its own, then it is begun; for other commands none is."""
    ahead.look(arguments.split())
    assert len(begun) == count


def test_no_node_is_begun_beside_one_that_is_up(
    begun: list[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the environment or an address file names a node, then a run takes that one."""
    (tmp_path / "mesh.json").write_text(json.dumps({"pid": os.getpid()}))
    ahead.look(["run", "echo", "hi"])
    (tmp_path / "mesh.json").unlink()
    monkeypatch.setenv("MESH_ADDRESS", "tcp://h:1")
    ahead.look(["run", "echo", "hi"])
    assert begun == []


def test_the_command_takes_what_was_begun_once(begun: list[Fake]) -> None:
    """If a node was begun, then it is the command's, and nobody drops it; a second one is begun anew."""
    ahead.look(["run", "echo", "hi"])
    taken = ahead.take()
    ahead._drop()
    assert taken is begun[0]
    assert not begun[0].dropped
    assert ahead.take() is begun[1]


def test_what_no_command_took_is_dropped(begun: list[Fake]) -> None:
    """If the command needs no node after all, then the begun one is dropped at the end."""
    ahead.look(["run", "echo", "hi"])
    ahead._drop()
    assert begun[0].dropped


def test_a_node_that_cannot_be_begun_is_no_error_yet(
    begun: list[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a node cannot be begun ahead, then the command finds that out itself, where errors are reported."""

    def refused() -> Fake:
        raise ConfigError("node.data_dir: no space")

    monkeypatch.setattr(launch, "begin_node", refused)
    ahead.look(["run", "echo", "hi"])
    assert begun == []
    with pytest.raises(ConfigError, match="no space"):
        ahead.take()


@pytest.mark.parametrize(("name", "value"), [
    ("MESH_NODE_NAME", "x" * 300), ("MESH_RUNTIME_DIR", "~no_such_user_here/run"),
])
def test_a_place_that_cannot_be_looked_at_is_no_error_yet(
    begun: list[Fake], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """If the address file cannot be looked at, then there is no traceback: the command says what is wrong."""
    monkeypatch.setenv(name, value)
    ahead.look(["run", "echo", "hi"])
    assert begun == []


@pytest.mark.parametrize("output", ["text", "json"])
def test_what_a_run_says_of_its_own_node_is_for_people(
    begun: list[Fake], cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    """If a run on a terminal has a node of its own, then it says so, unless its answer goes to a program; and
    what was begun is dropped when the node cannot be."""

    def refused(**_settings: object) -> None:
        raise MeshError("no", code="internal_error")

    monkeypatch.setattr(mesh, "LocalNode", refused)
    monkeypatch.setattr("mesh.cli.run.sys", SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True)))
    lines = cli("run", "echo", "hi", "-o", output).stderr.splitlines()
    assert [line[:8] for line in lines] == (['{"error"'] if output == "json" else ["running ", "error: n"])
    assert begun[0].dropped
