"""Snapshots, diffs and rollbacks in git repositories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from workspace_folders import backend, git, head_of, repository, state

from mesh.errors import MeshError
from mesh.workspaces.git import GitBackend


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return repository(tmp_path / "repo")


def test_a_clean_tree_is_head_and_nothing_of_the_repository_moves(repo: Path, tmp_path: Path) -> None:
    """If nothing was changed, then the snapshot is HEAD itself, not a new commit."""
    before = head_of(repo)
    snapshot = backend(tmp_path / "b", repo).snapshot("before")
    assert snapshot.ref == git(repo, "rev-parse", "HEAD") and snapshot.metadata["dirty"] is False
    assert head_of(repo) == before


def test_a_dirty_tree_is_a_commit_that_no_branch_has(repo: Path, tmp_path: Path) -> None:
    """If files changed, staged or not, then the snapshot holds them, without what is ignored."""
    (repo / "file.txt").write_text("changed\n")
    (repo / "new.txt").write_text("new\n")
    (repo / "x.log").write_text("ignored\n")
    (repo / "staged.txt").write_text("staged\n")
    git(repo, "add", "staged.txt")

    before = head_of(repo)
    snapshot = backend(tmp_path / "b", repo).snapshot("before")
    names = git(repo, "ls-tree", "-r", "--name-only", snapshot.ref).split()
    assert snapshot.metadata["dirty"] and {"new.txt", "staged.txt"} < set(names) and "x.log" not in names
    assert git(repo, "show", f"{snapshot.ref}:file.txt") == "changed"
    assert git(repo, "rev-parse", f"{snapshot.ref}^") == git(repo, "rev-parse", "HEAD")
    assert git(repo, "branch", "--contains", snapshot.ref) == "" and head_of(repo) == before


def test_a_change_of_equal_size_in_the_tick_of_the_index_is_seen(repo: Path, tmp_path: Path) -> None:
    """If a file changes without its size and time changing, then the copied index does not hide it."""
    for i in range(20):
        text = f"{i:04}\n"
        (repo / "racy.txt").write_text("aaaa\n")
        git(repo, "add", "racy.txt")
        (repo / "racy.txt").write_text(text)
        snapshot = backend(tmp_path / "b", repo).snapshot("before")
        assert git(repo, "show", f"{snapshot.ref}:racy.txt") == text.strip()


def test_the_diff_counts_names_and_patches(repo: Path, tmp_path: Path) -> None:
    """If files are edited, added, removed, binary and oddly named, then all of it is told."""
    work = backend(tmp_path / "b", repo)
    before = work.snapshot("before")
    (repo / "file.txt").write_text("one\n2\nthree\n")
    (repo / "sub" / "deep.bin").write_bytes(b"\0other")
    (repo / "näme with space").write_text("x\n")
    (repo / "link").unlink()
    diff, patch = work.diff(before, work.snapshot("after"), patch_bytes=1 << 20)
    assert diff.changed_paths == ("file.txt", "link", "näme with space", "sub/deep.bin")
    assert (diff.files_changed, diff.insertions, diff.deletions) == (4, 3, 2)
    git(repo, "stash", "-q", "-u")
    (tmp_path / "p").write_bytes(patch)
    git(repo, "apply", "--check", str(tmp_path / "p"))


def test_a_patch_over_the_cap_is_dropped_and_says_its_size(repo: Path, tmp_path: Path) -> None:
    """If the patch is larger than allowed, then nothing of it is kept, and the counts are whole."""
    work = backend(tmp_path / "b", repo)
    before = work.snapshot("before")
    (repo / "big.txt").write_text("line\n" * 10_000)
    after = work.snapshot("after")
    small, patch = work.diff(before, after, patch_bytes=100)
    assert patch == b"" and small.patch_truncated and small.patch_bytes > 50_000
    assert small.insertions == 10_000 and small.changed_paths == ("big.txt",)
    whole, patch = work.diff(before, after, patch_bytes=small.patch_bytes)
    assert len(patch) == small.patch_bytes and not whole.patch_truncated


def _mess(repo: Path) -> None:
    """What a run may do to a tree."""
    (repo / "file.txt").write_text("overwritten")
    (repo / "dirty.txt").unlink()
    (repo / "fresh" / "a").mkdir(parents=True)
    (repo / "fresh" / "a" / "b.txt").write_text("new")
    (repo / "empty").rmdir()
    (repo / "hollow").mkdir()
    (repo / "sub" / "deep.bin").unlink()
    (repo / "sub").rmdir()
    (repo / "sub").symlink_to("/etc")
    (repo / "link").unlink()
    (repo / "link").mkdir()
    (repo / "link" / "inside").write_text("x")
    (repo / ".gitignore").write_text("fresh/\n")
    (repo / "clone").mkdir()
    git(repo / "clone", "init", "-q")
    (repo / "run.sh").chmod(0o644)


def test_a_dirty_tree_comes_back_exactly(repo: Path, tmp_path: Path) -> None:
    """If a run leaves a mess, then edits, new files, links and lost folders are as before, and HEAD too."""
    (repo / "file.txt").write_text("dirty edit\n")
    (repo / "dirty.txt").write_text("untracked\n")
    (repo / "run.sh").write_text("#!/bin/sh\n")
    (repo / "run.sh").chmod(0o755)
    (repo / "empty").mkdir()
    (repo / "kept.log").write_text("ignored, stays")
    git(repo, "add", "run.sh")
    exact, head = state(repo), head_of(repo)
    work = backend(tmp_path / "b", repo)
    before = work.snapshot("before", keep=True)
    _mess(repo)
    work.snapshot("after_failure")
    work.rollback(before)
    assert state(repo) == exact and head_of(repo) == head
    assert git(repo, "for-each-ref", "refs/mesh") == ""
    assert work.rollback(before)["restored"] == 0 and state(repo) == exact


def test_ignored_files_are_left_alone(repo: Path, tmp_path: Path) -> None:
    """If a run writes among ignored files, then a rollback touches none of them, also in a shared folder."""
    (repo / "logs").mkdir()
    (repo / "logs" / "old.log").write_text("old")
    work = backend(tmp_path / "b", repo)
    before = work.snapshot("before", keep=True)
    (repo / "logs" / "new.log").write_text("new")
    (repo / "logs" / "new.txt").write_text("new")
    work.rollback(before)
    assert {p.name for p in (repo / "logs").iterdir()} == {"old.log", "new.log"}


def test_a_workspace_in_a_subfolder_is_all_that_is_touched(repo: Path, tmp_path: Path) -> None:
    """If the workspace is a part of a repository, then paths are relative to it, nothing outside changes."""
    work = backend(tmp_path / "b", repo / "sub")
    before = work.snapshot("before", keep=True)
    (repo / "sub" / "deep.bin").write_bytes(b"x")
    (repo / "sub" / "new").write_text("n")
    (repo / "file.txt").write_text("outside")
    diff, patch = work.diff(before, work.snapshot("after"), patch_bytes=1 << 20)
    assert diff.changed_paths == ("deep.bin", "new") and b"file.txt" not in patch
    work.rollback(before)
    assert (repo / "sub" / "deep.bin").read_bytes() == bytes(range(256))
    assert not (repo / "sub" / "new").exists() and (repo / "file.txt").read_text() == "outside"


def test_submodules_are_never_written(repo: Path, tmp_path: Path) -> None:
    """If a repository inside changes, then its files stay as they are, also on rollback."""
    inner = repository(repo / "inner")
    work = backend(tmp_path / "b", repo)
    before = work.snapshot("before", keep=True)
    (inner / "file.txt").write_text("theirs")
    work.rollback(before)
    assert (inner / "file.txt").read_text() == "theirs"


def test_what_git_cannot_add_is_named_and_the_rest_is_told(repo: Path, tmp_path: Path) -> None:
    """If a run leaves a FIFO over a file and a repository without a commit, then the diff still comes."""
    work = backend(tmp_path / "b", repo)
    before = work.snapshot("before", keep=True)
    (repo / "file.txt").unlink()
    os.mkfifo(repo / "file.txt")
    os.mkfifo(repo / "fifo")
    (repo / "void").mkdir()
    git(repo / "void", "init", "-q")
    (repo / "z").write_text("z")
    after = work.snapshot("after")
    diff, _ = work.diff(before, after, patch_bytes=None)
    assert diff.changed_paths == ("file.txt", "z") and after.metadata["left_out"] == ["file.txt", "void"]
    work.rollback(before)
    assert (repo / "file.txt").read_text() == "one\ntwo\n" and not (repo / "void").exists()


@pytest.mark.parametrize("strategy", ["git", "auto"])
def test_a_repository_without_a_commit_is_refused(tmp_path: Path, strategy: str) -> None:
    """If there is no commit, then the code is storage_error and the message says what to do."""
    git(tmp_path, "init", "-q")
    with pytest.raises(MeshError, match="no commit yet") as caught:
        backend(tmp_path / "b", tmp_path, strategy)
    assert caught.value.code == "storage_error"


def test_a_plain_folder_is_hashed_unless_git_was_asked_for(tmp_path: Path) -> None:
    """If there is no repository, then auto hashes and git refuses."""
    (tmp_path / "plain").mkdir()
    assert backend(tmp_path / "b", tmp_path / "plain").name == "hash"
    with pytest.raises(MeshError) as caught:
        backend(tmp_path / "b", tmp_path / "plain", "git")
    assert caught.value.code == "storage_error"


def test_a_folder_that_its_repository_ignores_is_hashed(repo: Path, tmp_path: Path) -> None:
    """If git looks away from the workspace, then auto does not leave it to git."""
    (repo / "build").mkdir()
    assert backend(tmp_path / "b", repo / "build").name == "hash"


def test_a_garbage_collection_by_the_run_does_not_take_the_way_back(repo: Path, tmp_path: Path) -> None:
    """If a run prunes the repository, then its kept snapshot is still there."""
    (repo / "dirty.txt").write_text("untracked")
    work = backend(tmp_path / "b", repo, run_id="run_1")
    before = work.snapshot("before", keep=True)
    (repo / "dirty.txt").unlink()
    git(repo, "reflog", "expire", "--expire=now", "--all")
    git(repo, "gc", "-q", "--prune=now")
    work.rollback(before)
    assert (repo / "dirty.txt").read_text() == "untracked"


def test_the_environment_of_another_repository_is_not_followed(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If GIT_DIR and GIT_INDEX_FILE point elsewhere, then the workspace's own repository is used."""
    other = repository(tmp_path / "other")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    work = backend(tmp_path / "b", repo)
    assert isinstance(work, GitBackend) and work.place.top == os.path.realpath(repo)
