"""What ``mesh session delete|export`` and ``mesh search`` make of what a user typed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from mesh.errors import Unavailable

Cli = Callable[..., Result]
FakeClient = Any  # the fixture's class, tests/cli/conftest.py


@pytest.mark.parametrize("flags", [(), ("--hard",)])
def test_delete_of_an_unknown_session_is_an_error_in_both_forms(
    cli: Cli, fake: FakeClient, flags: tuple[str, ...]
) -> None:
    """If there is no such session, then delete exits with 4 and names the code, also in JSON."""
    fake.answers["sessions.delete"] = False
    plain = cli("session", "delete", "s1", *flags)
    assert plain.exit_code == 4 and "session_not_found" in plain.stderr and plain.stdout == ""
    told = cli("session", "delete", "s1", "-o", "json", *flags)
    assert told.exit_code == 4 and told.stdout == ""
    assert json.loads(told.stderr)["error"]["code"] == "session_not_found"


@pytest.mark.parametrize(("words", "method", "expected"), [
    ("search events --until 0", "events.search", {"until": 0.0}),
    ("search events --since 0 --count", "events.count", {"since": 0.0}),
    ("search runs --min-tokens 0 --started-before 0", "runs.search",
     {"min_tokens": 0, "started_before": 0.0}),
    ("search sessions --created-before 0", "sessions.search", {"created_before": 0.0}),
    ("usage --until 0", "usage.summary", {"until": 0.0}),
])
def test_a_filter_of_zero_is_one(
    cli: Cli, fake: FakeClient, words: str, method: str, expected: dict[str, Any]
) -> None:
    """If a filter is 0, then it is asked for; those that were not given are not."""
    fake.answers[method] = Unavailable("enough")
    assert cli(*words.split()).exit_code == 1
    [(_, given)] = fake.named(method)
    assert {name: given[name] for name in expected} == expected
    assert set(given) - set(expected) <= {"order", "limit", "include_deleted"}


def broken(lines: int) -> Iterator[str]:
    """An export that ends midway."""
    yield from ["{}"] * lines
    raise Unavailable("no partition")


@pytest.mark.parametrize("lines", [0, 3])
def test_an_export_that_fails_leaves_what_stood_there(
    cli: Cli, fake: FakeClient, tmp_path: Path, lines: int
) -> None:
    """If an export fails, then the file is as it was, and nothing is beside it."""
    file = tmp_path / "s.jsonl"
    file.write_text("former\n")
    fake.answers["sessions.export"] = lambda _id: broken(lines)
    assert cli("session", "export", "s1", str(file)).exit_code == 1
    assert cli("session", "export", "s1", str(tmp_path / "new")).exit_code == 1
    assert file.read_text() == "former\n" and os.listdir(tmp_path) == ["s.jsonl"]


def test_an_export_replaces_a_file_as_a_whole(cli: Cli, fake: FakeClient, tmp_path: Path) -> None:
    """If an export succeeds, then the file has its lines, and a link to it still is one."""
    file, link = tmp_path / "s.jsonl", tmp_path / "link"
    file.write_text("former\n" * 9)
    link.symlink_to(file)
    fake.answers["sessions.export"] = lambda _id: iter(["{}", "[]"])
    done = cli("session", "export", "s1", str(link), "-o", "json")
    assert json.loads(done.stdout)["lines"] == 2 and file.read_text() == "{}\n[]\n" and link.is_symlink()
    assert cli("session", "export", "s1", os.devnull).exit_code == 0 and not Path(os.devnull).is_file()
    for name in ("none/file", "x" * 300):
        refused = cli("session", "export", "s1", str(tmp_path / name))
        assert refused.exit_code == 1 and "storage_error" in refused.stderr
