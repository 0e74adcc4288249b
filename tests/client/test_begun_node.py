"""A node's process that is begun before anybody knows what it shall be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conditions import wait_for

from mesh.client.local_node import LocalNode
from mesh.errors import MeshError
from mesh.launch import Begun, begin_node, wait_ready
from mesh.proc import start_time

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]


def fds() -> set[str]:
    return set(os.listdir("/dev/fd"))


def gone(begun: Begun) -> bool:
    return start_time(begun.spawned.process.pid) is None


def test_a_begun_process_becomes_the_node() -> None:
    """If a node's process was begun, then it is the node, in that folder, and nothing stays open."""
    before = fds()
    begun = begin_node()
    node = LocalNode(partitions=1, config={"agents": {"long": {"provider": "echo", "prefix": "x" * 300_000}}})
    with node.start(begun):
        assert node.pid == begun.spawned.process.pid
        assert node.data_dir == begun.data_dir
        with node.client() as client:
            assert client.run_once("echo", "hi").output["content"] == "hi"
    assert gone(begun)
    assert not begun.data_dir.exists()
    assert fds() == before


def test_a_process_that_is_told_nothing_ends_and_takes_its_folder() -> None:
    """If whoever began a node is gone before it says what the node shall be, then process and folder go."""
    script = ("from mesh.launch import begin_node; import os; begun = begin_node(); "
              "print(begun.spawned.process.pid, begun.data_dir, flush=True); os._exit(9)")
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    pid, folder = done.stdout.split()
    wait_for(lambda: start_time(int(pid)) is None and not Path(folder).exists(), "both are gone")


def test_a_dropped_process_leaves_nothing() -> None:
    """If a begun node is not wanted, then its process, folder and descriptors are gone at once."""
    before = fds()
    begun = begin_node()
    begun.drop()
    assert gone(begun)
    assert not begun.data_dir.exists()
    assert fds() == before


def test_a_node_with_a_folder_of_its_own_leaves_no_begun_process(tmp_path: Path) -> None:
    """If a node has a folder of its own, or runs already, then a process that was begun elsewhere ends."""
    before = fds()
    first, second = begin_node(), begin_node()
    with LocalNode(tmp_path / "data", partitions=1).start(first) as node:
        assert gone(first) and not first.data_dir.exists()
        assert node.pid != first.spawned.process.pid and node.data_dir == tmp_path / "data"
        node.start(second)
        assert gone(second) and not second.data_dir.exists()
    assert fds() == before


def test_a_begun_process_that_died_is_a_node_that_died(tmp_path: Path) -> None:
    """If a begun process was killed meanwhile, then the start says that the node died, and leaves nothing."""
    before = fds()
    begun = begin_node(tmp_path / "data")
    begun.spawned.process.kill()
    begun.spawned.process.wait()
    with pytest.raises(MeshError, match="the node died while starting"):
        wait_ready(begun.tell({"config": {}}))
    assert fds() == before


def test_a_node_whose_document_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    """If the disk is full when a begun process is told what to be, then it ends, and nothing stays open."""
    before = fds()
    begun = begin_node(tmp_path / "data")
    begun.document.close()
    full = Path("/dev/full").open("r+b")  # noqa: SIM115 - the begun node closes it
    with pytest.raises(OSError, match="No space left"):
        begun._replace(document=full).tell({"config": {}})
    assert gone(begun)
    assert fds() == before


def test_a_command_that_fails_before_its_node_leaves_nothing(tmp_path: Path) -> None:
    """If ``mesh run`` fails before it has a node, then that which it began is gone with it."""
    env = {**os.environ, "TMPDIR": str(tmp_path), "MESH_RUNTIME_DIR": str(tmp_path / "run")}
    env.pop("MESH_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-m", "mesh", "run", "--config", "/nowhere/mesh.toml", "echo", "hi"],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False,
    )
    assert (done.returncode, "/nowhere/mesh.toml: no such file" in done.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []
