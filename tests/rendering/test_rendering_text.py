"""Nothing of an agent's text commands the terminal, however it is cut; lengths are those a person sees."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.rendering.text import HELD_CHARS_MAX, Cleaner, clean, columns, fitted, preview

SIGNS = "ab\n\t\r\x00\x07\x08\x1b\x7f\x90\x9b\x9c\x9d[]PX^_;0m?\\c(\u202e\u2028漢"
ODD = st.text(st.sampled_from(SIGNS), max_size=40)


@pytest.mark.parametrize(
    ("given_", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "alink"),
        ("\x1b[2J\x1b[H\x1b[?1049hgone\x1bc", "gone"),
        ("\x9b31mred\x9d0;t\x9cx", "redx"),
        ("\x1bP+q\x1b\\a\x1b_x\x07b", "ab"),
        ("10 %\r20 %\r\nend", "10 %\n20 %\nend"),
        ("a\x08b\x00\x7f\x1b", "a␈b␀␡␛"),
        ("\x1b\x1b[31m[32mx", "␛[32mx"),
        ("user\u202etxt.exe", "user\ufffdtxt.exe"),
        ("\x1b]0;never ended", "0;never ended"),
    ],
)
def test_control_is_removed_or_made_visible(given_: str, shown: str) -> None:
    """If a text holds control, then sequences are gone, the rest is visible, and all words are there."""
    assert clean(given_) == shown


@given(pieces=st.lists(ODD, max_size=6))
def test_a_cut_changes_nothing(pieces: list[str]) -> None:
    """If a text comes in pieces, cut anywhere, then what is shown is what the whole gives, and is clean."""
    cleaner = Cleaner()
    shown = "".join(map(cleaner.feed, pieces)) + cleaner.flush()
    assert shown == clean("".join(pieces))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown)


@pytest.mark.parametrize("part", ["\x1b]", "\x9d", "\x90a", "\r", "\x1b[0", "\x9b;", "\x1b ", "\x1bP\x1b"])
def test_no_text_is_slow_to_clean(part: str) -> None:
    """If a text is made of beginnings of sequences, then the time to clean it grows with its length."""
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", clean(part * 200_000 + "x"))


def test_a_sequence_that_never_ends_is_not_held_for_ever() -> None:
    """If a sequence is longer than any is, then it is shown as text instead of kept."""
    cleaner = Cleaner()
    assert cleaner.feed("\x1b]" + "x" * HELD_CHARS_MAX) == "x" * HELD_CHARS_MAX
    assert cleaner.flush() == ""


@pytest.mark.parametrize(
    ("text", "width"), [("abc", 3), ("漢字", 4), ("e\u0301", 1), ("👍", 2), ("a\u200bb", 2)]
)
def test_columns_are_what_a_terminal_takes(text: str, width: int) -> None:
    """If characters are wide or have no width, then the places are counted, not the characters."""
    assert columns(text) == width


@given(st.text(st.sampled_from("ab漢\u0301"), max_size=30), st.integers(2, 20))
def test_a_fitted_line_fits(text: str, width: int) -> None:
    """If a line is too wide, then what is left of it fits, with a mark that something is missing."""
    line = fitted(text, width)
    assert columns(line) <= width and (line == text or line.endswith("…"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        ("a\n b\x1b[1m", "a b"),
        ("x" * 11, "x" * 10 + "..."),
        ({"a": [1]}, '{"a": [1]}'),
        ("\x1b[1m" * 100 + "a", "..."),
        (b"\xff", "/w=="),
    ],
)
def test_a_preview_is_one_short_line(value: object, shown: str) -> None:
    """If a value is long, has lines or is no text, then its preview is a short clean line that says so."""
    assert preview(value, 10).strip('"') == shown
