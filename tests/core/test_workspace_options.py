"""The workspace option of a run, proven without any folder."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.core import run as runs
from mesh.core.workspace import PATHS_CHARS_MAX, PATHS_MAX, checked_workspace, kept_paths
from mesh.errors import InvalidArgument


@pytest.mark.parametrize("option", [
    5, ["x"], {}, {"paht": "/x"}, {"path": 5}, {"path": ""}, {"path": "rel"}, {"path": "/a\0b"},
    *({"path": "/x", **wrong} for wrong in (
        {"strategy": "svn"}, {"strategy": None}, {"max_patch_bytes": -1}, {"max_patch_bytes": 10**9},
        {"max_patch_bytes": True}, {"rollback_on_failure": "yes"}, {"strategy": "hash", "worktree": True},
        {"lock_wait_s": 0}, {"lock_wait_s": 1e9}, {"lock_wait_s": float("nan")}, {"ignore": {"files": []}},
        {"ignore": {"globs": "*"}}, {"ignore": {"globs": [""]}}, {"ignore": {"paths": ["x"] * 1_001}},
        {"artifact_store": 1}, {"artifact_store": "rel"}, {"enabled": 1}, {5: 5},
    )),
])
def test_a_wrong_workspace_is_refused(option: Any) -> None:
    """If a key or a value is wrong, then the run's options are refused."""
    with pytest.raises(InvalidArgument):
        runs.checked_options({"workspace": option})


def test_a_workspace_that_is_not_enabled_asks_for_nothing() -> None:
    """If ``enabled`` is false, then the run has no workspace; a map without it is enabled."""
    assert runs.checked_options({"workspace": {"enabled": False}}) == {}
    given = {"path": "/x", "max_patch_bytes": 0, "artifact_store": True, "ignore": {"globs": ["*.o"]}}
    assert checked_workspace(given) == given
    assert runs.checked_options({"workspace": given}) == {"workspace": given}


def test_the_paths_of_a_diff_are_bounded_and_can_travel() -> None:
    """If there are too many paths, or too long ones, then the first are kept and it is said."""
    kept, about = kept_paths([f"{i:06}" for i in range(PATHS_MAX + 1)])
    assert len(kept) == PATHS_MAX and about == {"paths_truncated": True}
    kept, about = kept_paths(["b" * PATHS_CHARS_MAX, "a\udcff"])
    assert kept == ("a?",) and about == {"paths_truncated": True}
    assert kept_paths(["b", "a"]) == (("a", "b"), {})
