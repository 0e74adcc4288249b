"""A whole node inside a program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from conditions import wait_for

from mesh.client.local_node import LocalNode
from mesh.errors import ConfigError, MeshError
from mesh.launch import find_node, runtime_dir
from mesh.proc import process_table, start_time

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 20.0
#: Wait for a condition, with this file's patience.
until = partial(wait_for, patience_s=WAIT_S)


def family(pid: int) -> list[int]:
    return [pid, *(stat.pid for stat in process_table() if stat.ppid == pid)]


def gone(pids: list[int]) -> bool:
    return all(start_time(pid) is None for pid in pids)


def test_node_serves_inside_the_block_and_leaves_nothing_after_it() -> None:
    """If a LocalNode is used in a with block, then its processes and temporary data end with the block."""
    with LocalNode() as node:
        pids, data_dir = family(node.pid), node.data_dir
        assert len(pids) == 5
        assert Path(node.address.removeprefix("ipc://")).is_socket()
        assert Path(node.feed_address.removeprefix("ipc://")).is_socket()
        assert node.tcp_address.startswith("tcp://127.0.0.1:")
        assert (data_dir / "node.db").exists()
    assert gone(pids)
    assert not data_dir.exists()
    assert not runtime_dir(data_dir).exists()


def test_node_is_not_found_by_name(tmp_path: Path) -> None:
    """If a program has a node of its own, then clients that look for one by name do not find it."""
    with LocalNode(tmp_path) as node:
        assert find_node("mesh") is None
        found = find_node(runtime_dir(node.data_dir))
        assert found is not None
        assert found["pid"] == node.pid


def test_own_data_dir_stays_and_can_be_used_again(tmp_path: Path) -> None:
    """If data_dir was given, then it outlives the node, and a node may start there again."""
    node = LocalNode(tmp_path, partitions=1)
    for _ in range(2):
        with node:
            assert len(family(node.pid)) == 4
    assert (tmp_path / "partition-0.db").exists()


def test_second_node_on_one_folder_is_refused(tmp_path: Path) -> None:
    """If a node runs on a folder, then another one there is a clear error, and the first serves on."""
    with LocalNode(tmp_path, partitions=1) as first:
        with pytest.raises(ConfigError, match=f"in use by the node with pid {first.pid}"):
            LocalNode(tmp_path, partitions=1).start()
        assert start_time(first.pid) is not None


def test_wrong_setting_is_refused_before_anything_starts() -> None:
    """If a setting is wrong, then the error names it and no process was started."""
    with pytest.raises(ConfigError, match=r"routes\.ttl_ms"):
        LocalNode(config={"routes": {"ttl_ms": -1}})


@pytest.mark.parametrize("config", ["mesh.toml", ["node"], {"node": 5}])
def test_config_of_another_kind_is_refused_before_anything_starts(config: object) -> None:
    """If a path is given where the map of settings belongs, then that is a typed error which says so."""
    with pytest.raises(ConfigError, match="must be a map"):
        LocalNode(config=config)  # type: ignore[arg-type]


def test_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    """If data_dir is a file, then the error names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"node\.data_dir"):
        LocalNode(tmp_path / "file").start()


def test_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    """If the port is taken, then start says so, and nothing is left running."""
    with LocalNode(partitions=1) as first:
        port = int(first.tcp_address.rpartition(":")[2])
        with pytest.raises(MeshError, match="cannot listen"):
            LocalNode(tmp_path, partitions=1, config={"node": {"port": port}}).start()
    assert not runtime_dir(tmp_path).exists()


def test_address_needs_a_running_node() -> None:
    """If the node does not run, then asking for its address says what to do."""
    node = LocalNode()
    for ask in (lambda: node.address, lambda: node.pid, lambda: node.data_dir):
        with pytest.raises(MeshError, match="not running"):
            ask()
    node.close()


def test_start_and_close_may_be_repeated(tmp_path: Path) -> None:
    """If start or close is called twice, then the second call changes nothing."""
    node = LocalNode(tmp_path, partitions=1)
    assert node.start() is node
    pid = node.pid
    assert node.start().pid == pid
    node.close()
    node.close()
    assert gone([pid])


def test_dropped_node_ends(tmp_path: Path) -> None:
    """If a program forgets its LocalNode, then the node ends with the object."""
    node = LocalNode(tmp_path, partitions=1).start()
    pid = node.pid
    del node
    until(lambda: gone([pid]), "the node ends")


def test_forked_copy_of_the_program_does_not_end_the_node(tmp_path: Path) -> None:
    """If the program forks, and the copy closes what it inherited, then the node serves on."""
    with LocalNode(tmp_path, partitions=1) as node:
        pid = os.fork()
        if pid == 0:
            node.close()
            os._exit(0)
        os.waitpid(pid, 0)
        assert start_time(node.pid) is not None


PROGRAM = """
import sys, time
from mesh.client.local_node import LocalNode
node = LocalNode(sys.argv[1], partitions=1).start()
print(node.pid, flush=True)
if sys.argv[2] == "sleep":
    time.sleep(1000)
"""


def program(data_dir: Path, then: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(data_dir), then],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_killed_program_takes_its_node_along(tmp_path: Path) -> None:
    """If the program is killed by SIGKILL, then its node ends, with all its children."""
    with program(tmp_path, "sleep") as process:
        assert process.stdout is not None
        pids = family(int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
        until(lambda: gone(pids), "the node ends")


def test_program_that_forgets_to_close_leaves_nothing(tmp_path: Path) -> None:
    """If the program just ends, then its node ends with it."""
    with program(tmp_path, "end") as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert process.wait() == 0
    assert gone([pid])


def test_killed_supervisor_takes_its_real_children_along(tmp_path: Path) -> None:
    """If the node's supervisor is killed by SIGKILL, then router, partitions and runners end too."""
    with LocalNode(tmp_path) as node:
        pids = family(node.pid)
        os.kill(node.pid, signal.SIGKILL)
        until(lambda: gone(pids), "all end")
