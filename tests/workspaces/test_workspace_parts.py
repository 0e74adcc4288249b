"""Locks, the artifact store, and snapshots by hand."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from conditions import wait_for
from workspace_folders import plain, repository, state

from mesh.errors import MeshError
from mesh.workspaces import FileStore, open_workspace
from mesh.workspaces.locks import try_lock


def test_a_lock_excludes_the_folders_above_and_below_and_no_others(tmp_path: Path) -> None:
    """If somebody has a folder, then nobody gets it, one above or one below; beside it everybody does."""
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "x").mkdir()
    held = try_lock(tmp_path / "a" / "b")
    assert held is not None
    for busy in ("a", "a/b", "a/b/c"):
        assert try_lock(tmp_path / busy) is None
    beside = try_lock(tmp_path / "a" / "x")
    assert beside is not None
    held.release()
    assert try_lock(tmp_path / "a") is None
    beside.release()
    whole = try_lock(tmp_path / "a")
    assert whole is not None
    whole.release()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_the_death_of_a_holder_frees_the_lock(tmp_path: Path) -> None:
    """If the holder is killed, then the kernel gives the folder to the next."""
    pid = os.fork()
    if pid == 0:
        held = try_lock(tmp_path)
        (tmp_path / "held").touch()
        signal.pause()
        os._exit(held is None)
    wait_for((tmp_path / "held").exists, "the lock is held")
    assert try_lock(tmp_path) is None
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    held = try_lock(tmp_path)
    assert held is not None
    held.release()


def test_an_artifact_store_keeps_replaces_and_forgets(tmp_path: Path) -> None:
    """If a key is put twice, then the last counts; a key that is not there is not_found."""
    store = FileStore(tmp_path / "deep" / "store")
    key = "patch_a/../b ü" + "x" * 100
    store.put(key, b"1")
    store.put(key, b"\0\xff")
    store.put(key + "y", b"other")
    assert store.get(key) == b"\0\xff" and store.get(key + "y") == b"other"
    names = [path.name for path in (tmp_path / "deep" / "store").iterdir()]
    assert len(names) == 2 and all(name.startswith("patch_a____b__x") and len(name) == 49 for name in names)
    store.delete(key)
    store.delete(key)
    with pytest.raises(MeshError) as caught:
        store.get(key)
    assert caught.value.code == "not_found"


def test_a_store_that_cannot_write_says_storage_error(tmp_path: Path) -> None:
    """If the folder of a store is a file, then the code is storage_error."""
    (tmp_path / "file").touch()
    with pytest.raises(MeshError) as caught:
        FileStore(tmp_path / "file")
    assert caught.value.code == "storage_error"


@pytest.mark.parametrize("make", [repository, plain])
def test_a_script_can_go_back_by_hand(tmp_path: Path, make: object) -> None:
    """If a script opens a workspace, then it can look, compare and go back; another one is told to wait."""
    assert callable(make)
    folder: Path = make(tmp_path / "w")
    exact = state(folder)
    with open_workspace(folder) as work:
        before = work.snapshot("before", keep=True)
        (folder / "file.txt").write_text("x")
        after = work.snapshot("after")
        diff = work.diff(before, after)
        assert diff.changed_paths == ("file.txt",) and (diff.patch is not None) == (work.backend == "git")
        with pytest.raises(MeshError) as caught:
            work.rollback(after)
        assert caught.value.code == "invalid_operation"
        with pytest.raises(MeshError) as caught, open_workspace(folder):
            raise AssertionError
        assert caught.value.code == "session_busy"
        work.rollback(before)
    assert state(folder) == exact
