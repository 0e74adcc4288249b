"""Tables, times and causes of death as people read them."""

from __future__ import annotations

import io
import json
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


def test_table_that_is_too_wide_leaves_out_what_says_nothing(terminal: Terminal) -> None:
    """If a table does not fit, then columns of dashes go and gaps shrink; else nothing goes."""
    names = ("process", "death", "state", "number")
    rows = [("p" * 20, None, "s" * 18, "7" * 20), ("q", None, "ready", "8")]
    with redirect_stdout(terminal):
        render.table(names, rows)
        render.table(names, rows[1:])
    wide, header, *_, fits, last = plain(terminal).splitlines()
    assert wide.split() == ["process", "state", "number"] and len(header) == 60
    assert fits.split() == list(names) and last.split() == ["q", "-", "ready", "8"]


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


def test_words_of_others_have_no_control_on_a_terminal(terminal: Terminal) -> None:
    """If a table or a line holds an agent's text, then a terminal gets it clean, and a pipe as it is."""
    bad = "a\x1b]0;pwned\x07b\x9b2Jc"
    with redirect_stdout(terminal):
        render.table(("text",), [[bad]])
        render.fields([("name", bad)])
        render.echo(bad)
    assert plain(terminal).count("abc") == 3 and "pwned" not in plain(terminal)
    pipe = io.StringIO()
    with redirect_stdout(pipe):
        render.table(("text",), [[bad]])
    assert pipe.getvalue() == f"{bad}\n"


def test_json_has_no_control_at_all() -> None:
    """If a text holds control characters that JSON allows, then they are escaped, and read back the same."""
    text = render.to_json({"a": "\x9b2J\x7f\u202e\n漢"})
    assert text == '{"a": "\\u009b2J\\u007f\\u202e\\n漢"}' and json.loads(text)["a"] == "\x9b2J\x7f\u202e\n漢"
