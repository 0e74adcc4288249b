"""Redaction of a text that comes in pieces: as exact as of the whole, however it is cut, and linear."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redact_cases import SECRETS, SPELLINGS, texts

from mesh.core import secrets
from mesh.core.redact import MARKER, Redactor
from mesh.core.redact_stream import OWN_CHARS_MAX, Stream
from mesh.core.secrets import SPACES_MAX, TOKEN_PART_MAX

PLAIN = Redactor()
CATEGORIZED = Redactor(replacement="categorized")
KEY = SECRETS["aws_access_key"]
SURROUNDINGS = (("", ""), ("key is ", " here"), ("x", "y"), ("a: ", "\nz"), ("the pass", ""), ("token-", " "))


def stream_of(redactor: Redactor = PLAIN) -> Stream:
    stream = redactor.stream()
    assert stream is not None
    return stream


def joined(text: str, cuts: Iterable[int], redactor: Redactor = PLAIN) -> str:
    """What comes out when the text goes in cut at these places."""
    stream, last, out = stream_of(redactor), 0, []
    for cut in cuts:
        out.append(stream.feed(text[last:cut]))
        last = cut
    return "".join([*out, stream.feed(text[last:]), stream.end()])


@pytest.mark.parametrize(("category", "secret"), [*SECRETS.items(), *SPELLINGS])
def test_secret_cut_anywhere_is_found(category: str, secret: str) -> None:
    """If a secret is cut anywhere, or into single characters, then the pieces give what the whole gives."""
    for before, after in SURROUNDINGS:
        text = before + secret + after
        whole = PLAIN.text(text)
        assert MARKER in whole
        for cut in range(len(text) + 1):
            assert joined(text, [cut]) == whole, (cut, text)
        assert joined(text, range(1, len(text))) == whole


@settings(max_examples=400)
@given(text=texts, cuts=st.lists(st.integers(0, 300), max_size=8))
def test_any_text_cut_anyhow_gives_what_the_whole_gives(text: str, cuts: list[int]) -> None:
    """If secrets begin, overlap and break off, then no cut makes a difference."""
    for redactor in (PLAIN, CATEGORIZED):
        whole = redactor.text(text)
        assert joined(text, sorted(c for c in cuts if c < len(text)), redactor) == whole
        assert joined(text, range(1, len(text)), redactor) == whole


def test_what_is_known_by_heart_was_shown_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """If pieces pass by, then only words are kept, none that is or may become a secret, and not too many."""
    words: set[str] = set()
    monkeypatch.setattr(secrets, "WORDS", words)
    monkeypatch.setattr(secrets, "WORDS_MAX", 3)
    for piece in (" password=hunter2", " AKIAIOSFODNN7EXAMPLE", " bearer abcdefghijklmnop", " ghp", " tail"):
        stream = stream_of()
        assert stream.feed("the") + stream.feed(piece) + stream.end() == PLAIN.text("the" + piece)
    assert words == {" tail"}
    stream = stream_of()
    for number in range(9):
        assert stream.feed(f" w{number}") == f" w{number}"
        assert f" w{number}" in words and len(words) <= 3


#: Heads that stand within what may become another secret.
_WITHIN = ("sk-ant-api", "xsk-ant-apikey=", "-", "_", "key", "=", "api", "x", "eyJ", "03", ".", " ", "glpat-")


@pytest.mark.parametrize(("text", "whole"), [
    ("xsk-ant-apikey=-sk-ant-a ", f"xsk-ant-{MARKER} "),
    ("xsk-ant-api_key=_1.2-3 ", f"xsk-ant-{MARKER} "),
])
def test_a_secret_within_what_is_undecided_is_shown_no_further_than_the_whole_shows_it(
    text: str, whole: str
) -> None:
    """If a secret stands within what may still become another one, then its own head waits, too."""
    assert PLAIN.text(text) == whole
    assert all(joined(text, cuts) == whole for cuts in ([n] for n in range(len(text))))
    assert joined(text, range(1, len(text))) == whole


@settings(max_examples=300)
@given(text=st.lists(st.sampled_from(_WITHIN), min_size=2, max_size=9).map("".join), cut=st.integers(0, 60))
def test_heads_within_heads_cut_anyhow_give_what_the_whole_gives(text: str, cut: int) -> None:
    """If heads of secrets stand in one another, then no cut makes a difference."""
    whole = PLAIN.text(text)
    assert joined(text, [min(cut, len(text))]) == joined(text, range(1, len(text))) == whole


def test_ordinary_words_are_not_held() -> None:
    """If a piece ends with words that begin no secret, then it is shown as it came."""
    stream = stream_of()
    for piece in ("The quick ", "brown", " fox; ", "so", " = 5\n", " jumps,", "words", "12", "密码", "x-y"):
        assert (stream.feed(piece), stream.held) == (piece, False)


@pytest.mark.parametrize(("pieces", "shown"), [
    (("my pass", "age"), ("my ", "passage")),
    (("a sk-pro", "ject "), ("a ", "sk-project ")),
    (("password", " hint"), ("", "password hint")),
    (("x=AKIA123", "!"), ("x=", "AKIA123!")),
    (("AKIAIOSFODNN7", "EXAMPLE"), ("", "[REDACTED]")),
    (("api_key=a", "b", " c"), ("[REDACTED]", "", " c")),
    (("userpass", "word=x y"), ("userpass", "word=[REDACTED] y")),
    (("the", " bearer abcdefghijklmnop", "qrstuvwxyz1234 x"), ("the", "", " [REDACTED] x")),
])
def test_what_may_become_a_secret_waits_for_the_next_piece(
    pieces: tuple[str, ...], shown: tuple[str, ...]
) -> None:
    """If the end of a piece begins like a secret, then that part leaves with what decides it."""
    stream = stream_of()
    assert tuple(stream.feed(piece) for piece in pieces) == shown
    assert not stream.held


def test_release_shows_a_head_and_never_a_body() -> None:
    """If nobody wants to wait, then what only begins like a name is shown; the value stays hidden."""
    stream = stream_of()
    assert stream.feed("Enter your pass") == "Enter your "
    assert stream.weak
    assert stream.release() == "pass"
    assert stream.feed("word: hunter2 ") == f"{MARKER} "
    assert stream.feed("AKIAIOSFODNN7") == ""
    assert (stream.weak, stream.release()) == (False, "")
    assert stream.feed("EXAMPLE!") == f"{MARKER}!"
    assert stream.feed("AK") + stream.release() + stream.feed("IAIOSFODNN7EXAMPLE") == f"AK{MARKER}"


def test_end_shows_what_became_no_secret_and_cut_hides_it() -> None:
    """If a text ends, then what is held is none; if it was broken off, then it may be half of one."""
    stream = stream_of()
    assert stream.feed("AKIAIOSF") + stream.end() == "AKIAIOSF"
    assert stream.feed("ODNN7EXAMPLE") + stream.end() == "ODNN7EXAMPLE"
    assert stream.feed("x AKIAIOSF") + stream.cut() == f"x {MARKER}"
    assert stream.feed("my pass") + stream.cut() == "my pass"
    assert CATEGORIZED.found.keys() <= {*SECRETS, "cut_off"}


def test_what_is_held_is_bounded() -> None:
    """If a text goes on and on like the beginning of a secret, then no more than the bound is held."""
    for endless in ("eyJ" + "a" * 99_999, "eyJ" + "abc." * 30_000, "password" + " " * 9_999, "-" * 9_999,
                    "Bearer" + "\n" * 9_999, 'password="' + "x" * 99_999):
        stream = stream_of()
        most = 0
        for at in range(0, len(endless), 97):
            stream.feed(endless[at:at + 97])
            most = max(most, len(stream._tail) - stream._shown)
        assert most <= 2 * TOKEN_PART_MAX + 200, endless[:20]
    assert joined("password" + " " * (SPACES_MAX + 1) + "=x", range(1, 40)).endswith("=x")


def test_own_patterns_are_found_over_a_cut() -> None:
    """If a pattern of one's own is cut, then the beginning waits; it is bounded too."""
    own = Redactor(patterns=[{"category": "staff", "regex": r"EMP-\d{4} [A-Z]+"}])
    text = f"so EMP-1234 RAVEN and {KEY} go"
    for cut in range(len(text) + 1):
        assert joined(text, [cut], own) == f"so {MARKER} and {MARKER} go"
    assert joined(text, range(1, len(text)), own) == f"so {MARKER} and {MARKER} go"
    stream = stream_of(Redactor(patterns=["EMP.*END"]))
    most = 0
    for _ in range(200):
        stream.feed("EMP" + "x" * 97)
        most = max(most, len(stream._tail))
    assert most <= OWN_CHARS_MAX + 200


HOSTILE = (
    "pwd=", "eyJ", "bearer ", "password" + " " * 30, 'password="', '"password":"a',
    "-----BEGIN RSA PRIVATE KEY-----\n", "sk-", "glpat-", "redis://", " ", "-", "\\", "AKIA",
    "aws_secret_access_key", "eyJabcdefghij.", "'\"", "\\\"",
)


def steps(text: str, size: int) -> int:
    """How many Python calls and C calls redacting takes, by pieces of that size."""
    count = 0

    def count_calls(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += 1

    stream = stream_of(Redactor())
    sys.setprofile(count_calls)
    try:
        for at in range(0, len(text), size):
            stream.feed(text[at:at + size])
        stream.end()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("part", HOSTILE)
def test_hostile_text_takes_steps_in_proportion_to_its_length(part: str) -> None:
    """If a text is made to be slow, then twice as much of it takes about twice the steps."""
    least = 3 * TOKEN_PART_MAX if part == "eyJ" else 3_000  # where the bound of a token is passed
    short, long = part * (least // len(part)), part * (2 * least // len(part))
    for size in (7, 10**9):
        assert steps(long, size) < 3 * steps(short, size) + 1_000


@pytest.mark.parametrize("part", HOSTILE)
def test_a_long_hostile_text_is_done(part: str) -> None:
    """If a long text is made to be slow, then it is searched all the same (in squares: for hours)."""
    text = part * (300_000 // len(part))
    assert isinstance(PLAIN.text(text), str)
