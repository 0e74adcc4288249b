"""Repositories in unusual states: a rollback is exact in all of them, and nothing of theirs is executed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from workspace_folders import backend, git, repository, state


def _plain(_folder: Path) -> None:
    """Nothing special."""


def _without_index(folder: Path) -> None:
    (folder / ".git" / "index").unlink()


def _sparse(folder: Path) -> None:
    git(folder, "sparse-checkout", "set", "--no-cone", "/file.txt", "/.gitignore")


def _in_conflict(folder: Path) -> None:
    git(folder, "checkout", "-q", "-b", "other")
    (folder / "file.txt").write_text("theirs\n")
    git(folder, "commit", "-q", "-a", "-m", "theirs")
    git(folder, "checkout", "-q", "main")
    (folder / "file.txt").write_text("ours\n")
    git(folder, "commit", "-q", "-a", "-m", "ours")
    subprocess.run(["git", "merge", "-q", "other"], cwd=folder, capture_output=True, check=False)


def _locked(folder: Path) -> None:
    (folder / ".git" / "index.lock").touch()


def _split(folder: Path) -> None:
    git(folder, "config", "core.splitIndex", "true")
    git(folder, "update-index", "--split-index")


def _oddly_named(folder: Path) -> None:
    for name in ("we\nird\t\"x", "-dash", ":(top)x", "*", "näme"):
        (folder / name).write_text("odd")


@pytest.mark.parametrize(
    "make", [_plain, _without_index, _sparse, _in_conflict, _locked, _split, _oddly_named]
)
def test_a_rollback_is_exact_in(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """If the repository is in an unusual state, then files are back and its status is the same."""
    folder = repository(tmp_path / "w")
    make(folder)
    exact, status = state(folder), git(folder, "status", "--porcelain")
    work = backend(tmp_path / "b", folder, "git")
    before = work.snapshot("before", keep=True)
    for path in [path for path in folder.iterdir() if path.is_file()]:
        path.write_text("by the run")
    (folder / "new").write_text("new")
    diff, _ = work.diff(before, work.snapshot("after"), patch_bytes=None)
    assert {"file.txt", "new"} <= set(diff.changed_paths)
    work.rollback(before)
    assert state(folder) == exact and git(folder, "status", "--porcelain") == status


def test_a_linked_worktree_is_a_workspace_of_its_own(tmp_path: Path) -> None:
    """If the workspace is a linked worktree, then its own index and HEAD count; the main one is as it was."""
    main = repository(tmp_path / "main")
    git(main, "worktree", "add", "-q", str(tmp_path / "linked"))
    exact, untouched = state(tmp_path / "linked"), state(main)
    work = backend(tmp_path / "b", tmp_path / "linked", "git")
    before = work.snapshot("before", keep=True)
    (tmp_path / "linked" / "file.txt").unlink()
    work.rollback(before)
    assert state(tmp_path / "linked") == exact and state(main) == untouched


@pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
def test_what_git_was_told_not_to_look_at_is_left_alone(tmp_path: Path, flag: str) -> None:
    """If a file with local edits is hidden from git, then a rollback does not overwrite them."""
    folder = repository(tmp_path / "w")
    git(folder, "update-index", flag, "file.txt")
    (folder / "file.txt").write_text("my own settings\n")
    work = backend(tmp_path / "b", folder, "git")
    before = work.snapshot("before", keep=True)
    (folder / "new").write_text("new")
    work.rollback(before)
    assert (folder / "file.txt").read_text() == "my own settings\n" and not (folder / "new").exists()


def test_hooks_monitors_and_diff_programs_of_a_repository_are_not_executed(tmp_path: Path) -> None:
    """If a repository names programs for hooks, file monitors or diffs, then none of them runs."""
    folder = repository(tmp_path / "w")
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    for name in ("post-checkout", "post-index-change", "pre-commit", "reference-transaction"):
        os.link(program, folder / ".git" / "hooks" / name)
    git(folder, "config", "core.fsmonitor", str(program))
    git(folder, "config", "diff.external", str(program))
    (tmp_path / "ran").unlink(missing_ok=True)
    work = backend(tmp_path / "b", folder, "git")
    before = work.snapshot("before", keep=True)
    (folder / "file.txt").write_text("x")
    work.diff(before, work.snapshot("after"), patch_bytes=1 << 20)
    work.rollback(before)
    assert not (tmp_path / "ran").exists()
