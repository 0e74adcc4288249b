"""What a terminal shows of a node."""

from __future__ import annotations

import io
import os

import pytest

from mesh.launch_view import CLEAR, LINE_COLUMNS, Screen, banner, status_line

INFO = {
    "name": "mesh",
    "pid": 7,
    "address": "tcp://127.0.0.1:7400",
    "feed": "tcp://127.0.0.1:7401",
    "data_dir": "/d",
    "partitions": 2,
    "runners": 1,
}
CHILDREN = [
    {"name": "router", "kind": "router", "state": "ready", "restarts": 0},
    {"name": "partition-0", "kind": "partition", "state": "ready", "restarts": 2},
    {"name": "partition-1", "kind": "partition", "state": "down", "restarts": 15},
    {"name": "runner-0", "kind": "runner", "state": "ready", "restarts": 0},
]


def test_banner_names_endpoints_data_partitions_and_three_commands() -> None:
    """If a node serves, then its banner says where it is and what to try next."""
    text = banner(INFO)
    assert all(
        part in text for part in ("tcp://127.0.0.1:7400", "tcp://127.0.0.1:7401", "/d", "partitions 2")
    )
    assert sum(line.startswith("  mesh ") for line in text.splitlines()) == 3


def test_banner_of_a_named_node_gives_commands_that_reach_it() -> None:
    """If a node has another name, then its commands carry its address."""
    assert "mesh --address tcp://127.0.0.1:7400 status" in banner(INFO | {"name": "other"})


def test_banner_uses_the_name_the_user_typed() -> None:
    """If mesh was called by a path, then the commands to copy have that path."""
    assert "  bin/mesh status" in banner(INFO, "bin/mesh")


def test_status_line_counts_and_names_the_unwell() -> None:
    """If a partition is down, then the one line says which."""
    line = status_line({"uptime_s": 65, "children": CHILDREN})
    assert (
        line
        == "up 1m05s | partitions 1/2 | runners 1/1 | restarts 17 | partition-1 down | Ctrl-C stops"[
            :LINE_COLUMNS
        ]
    )


def test_screen_shows_the_banner_once() -> None:
    """If the state is shown again, then the banner is not."""
    out = io.StringIO()
    screen = Screen(out, line=True, facts={"partitions": 2, "runners": 1})
    for serving in (False, True, True):
        screen.show(INFO | {"serving": serving, "uptime_s": 1, "children": CHILDREN, "note": "p.db: 2 s"})
    assert out.getvalue().count("starting ... p.db: 2 s") == 1
    assert out.getvalue().count("requests") == 1 and out.getvalue().count("\n\n") >= 1


def test_status_line_is_cut_to_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the terminal has 40 columns, then the line has fewer: a broken one could not be begun anew."""
    monkeypatch.setattr("os.get_terminal_size", lambda _: os.terminal_size((40, 20)))
    with open(os.devnull, "w") as nowhere:
        out = io.StringIO()
        monkeypatch.setattr(out, "fileno", nowhere.fileno)
        Screen(out, line=True, facts={}).show(INFO | {"serving": True, "children": CHILDREN})
    assert len(out.getvalue().rpartition(CLEAR)[2]) == 39


def test_screen_without_a_terminal_writes_the_banner_alone() -> None:
    """If the output is a file, then no control characters and no status lines get there."""
    out = io.StringIO()
    screen = Screen(out, line=False, facts={})
    screen.show(INFO | {"serving": False, "children": []})
    screen.show(INFO | {"serving": True, "children": CHILDREN})
    screen.show(INFO | {"serving": True, "children": CHILDREN})
    assert out.getvalue() == banner(INFO)
