"""Tables, times and causes of death as people read them."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from typing import Any

import pytest

from mesh.cli import render


class Terminal(io.StringIO):
    """An output that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def plain(terminal: Terminal) -> str:
    """What was printed, without its colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "60")
    return Terminal()


def test_table_on_a_narrow_terminal_loses_nothing(terminal: Terminal) -> None:
    """If a row is wider than the terminal, then the terminal wraps it and nothing is cut off."""
    row = ("i" * 40, "j" * 20, "long text " * 10)
    with redirect_stdout(terminal):
        render.table(("id", "other", "text"), [row])
    text = plain(terminal)
    assert "i" * 40 in text and "j" * 20 in text and text.count("long text") == 10


def test_table_without_rows_is_its_header(terminal: Terminal) -> None:
    """If there is nothing, then the header says what there could be."""
    with redirect_stdout(terminal):
        render.table(("id", "text"), [])
    assert plain(terminal).split() == ["id", "text"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.9, "59s"), (60, "1m0s"), (3725, "1h2m"), (90061, "1d1h")]
)
def test_duration_has_two_units(seconds: float, text: str) -> None:
    """If a time is long, then its two largest units are enough."""
    assert render.duration(seconds) == text


@pytest.mark.parametrize(
    ("death", "text"),
    [
        (None, "-"),
        ({"signal": "SIGKILL", "exit_status": None, "stderr": ""}, "killed by SIGKILL"),
        ({"signal": None, "exit_status": 1, "stderr": "a\nb\n"}, "exit 1: b"),
    ],
)
def test_cause_of_death(death: dict[str, Any] | None, text: str) -> None:
    """If a child died, then signal or status and its last words are shown."""
    assert render.cause(death) == text


def test_json_of_odd_values_is_one_line() -> None:
    """If a value has bytes or sets, then it is still one line of JSON."""
    assert render.to_json({"a": b"x\xff", "b": {2, 1}}) == '{"a": "eP8=", "b": [1, 2]}'
