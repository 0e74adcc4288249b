"""What differs between two states of a folder, what is ignored, and the steps back."""

from __future__ import annotations

import pytest

from mesh.core.folder_state import Entry, Ignored, changed_paths, ref_of, steps_back

A, B, X = (Entry("f", 0o644, 1, digest) for digest in "abx")
D, L, P, Q = Entry("d", 0o755), Entry("l", 0, 0, "l"), Entry("p", 0o644), Entry("q", 0o644)


@pytest.mark.parametrize(("path", "ignored"), [
    ("node_modules", True), ("sub/node_modules", False), ("a.pyc", True), ("sub/a.pyc", True),
    ("sub/deep/a.pyc", True), ("out/x", True), ("out/deep/x", False), ("lib/x.o", True),
    ("lib/deep/er/x.o", True), ("libs/x.o", False), ("ax", True), ("abx", False), ("mine", True),
    ("sub/mine", False), ("some/place", True), ("[x]", True), ("x", False),
])
def test_globs_and_paths_ignore_as_the_specification_says(path: str, ignored: bool) -> None:
    """If a pattern has no slash it matches names; ** crosses folders; a path is a first component."""
    rules = Ignored(["mine", "some/place"], ["*.pyc", "out/*", "lib/**/*.o", "a?", "[x]"])
    assert (path in rules) is ignored


def test_a_mode_alone_is_a_change_of_a_file_and_not_of_a_folder() -> None:
    """If only permissions changed, then a file is listed, and both are set back."""
    before = {"a": A, "d": D}
    now = {"a": A._replace(mode=0o755), "d": D._replace(mode=0o700)}
    assert changed_paths(before, now) == ["a"]
    steps = steps_back(before, now)
    assert (steps.remove, steps.folders, steps.write, steps.modes) == ([], [], [], ["a", "d"])


def test_steps_go_from_the_leaves_up_and_from_the_root_down() -> None:
    """If a folder became a link and a file a folder, then obstacles go first, deepest first."""
    before = {"d": D, "d/e": D, "d/e/f": A, "x": B, "p": P, "q": Q}
    now = {"d": L, "x": D, "x/y": D, "x/y/z": X, "new": P, "p": A, "q": A}
    steps = steps_back(before, now)
    assert steps.remove == ["x/y/z", "x/y", "d", "new", "p", "x"]
    assert steps.folders == ["d", "d/e"] and steps.write == ["d/e/f", "x", "q"] and steps.lost == ["p"]
    assert steps_back(before, before) == ([], [], [], [], [])


def test_the_ref_depends_on_paths_and_contents_alone() -> None:
    """If order, folders or modes differ, then the ref is the same; with another content it is not."""
    assert ref_of({"a": A, "b": B}) == ref_of({"b": B._replace(mode=0), "d": D, "a": A})
    assert ref_of({"a": A}) != ref_of({"a": B})
