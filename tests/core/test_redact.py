"""Redaction of whole texts and of data: what is a secret, where it is looked for, what is set."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redact_cases import SECRETS, SPELLINGS, texts

from mesh.core.events import EVENT_TYPES, SCANNED
from mesh.core.redact import MARKER, Redactor
from mesh.core.secrets import CATEGORIES, PATTERNS, REACH
from mesh.errors import ConfigError

PLAIN = Redactor()
CATEGORIZED = Redactor(replacement="categorized")
KEY = SECRETS["aws_access_key"]
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | st.binary(max_size=9)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


def test_there_are_22_categories_and_each_has_a_case() -> None:
    """If a category is added, then it gets a case."""
    assert len(CATEGORIES) == 22
    assert set(CATEGORIES) == SECRETS.keys()


@pytest.mark.parametrize(("category", "secret"), [*SECRETS.items(), *SPELLINGS])
@pytest.mark.parametrize(("before", "after"), [("", ""), ("key is ", " here"), ("x\n", "\ny"), ("é: ", " ü")])
def test_secret_is_replaced_as_a_whole_and_nothing_else(
    category: str, secret: str, before: str, after: str
) -> None:
    """If a text holds a secret, then a marker stands in its place, with its category if that is wanted."""
    text = before + secret + after
    assert PLAIN.text(text) == before + MARKER + after
    assert CATEGORIZED.text(text) == f"{before}[REDACTED:{category}]{after}"
    assert Redactor(replacement="***").text(text) == f"{before}***{after}"


@pytest.mark.parametrize("text", [
    "", "ordinary words", "a password is needed", "ghp_short", "sk-short", "AKIA", "AKIAiosfodnn7example",
    "bearer of news", "task-force", "the api is fine: yes", "https://example.com/?q=1", "eyJ.eyJ.eyJ",
    "tokens: 12", "access denied: no", "-----BEGIN CERTIFICATE-----", "redis is at host:6379", "密码",
    "secret", "password", "postgres", "input_tokens=5", "x" * 100_000,
])
def test_what_is_no_secret_is_the_same_object(text: str) -> None:
    """If a text holds no secret, then it comes back uncopied."""
    assert PLAIN.text(text) is text


@pytest.mark.parametrize(("text", "shown"), [
    ('{"password": "hunter2", "n": 1}', '{"password": [REDACTED], "n": 1}'),
    ("{'api_key': 'x y', 'n': 1}", "{'api_key': [REDACTED], 'n': 1}"),
    (r'{\"password\":\"a b\",\"n\":1}', r'{\"password\":[REDACTED],\"n\":1}'),
    (r'{"password": "a\"b", "n": 1}', '{"password": [REDACTED], "n": 1}'),
    ('{"password": "", "n": null}', '{"password": "", "n": null}'),
    ("userpassword=hunter2 next", "userpassword=[REDACTED] next"),
    ("MY_API_KEY=hunter2 next", "MY_[REDACTED] next"),
    ("password=bearer abcdefghijklmnopqrstu!x y", "[REDACTED] y"),
    ("password: pwd = hunter2 y", "[REDACTED] y"),
    (f"AKIA{KEY} z", "[REDACTED] z"),
])
def test_secret_is_found_in_its_surroundings(text: str, shown: str) -> None:
    """If secrets stand in JSON, within a word, or overlap, then no body is left, and names of JSON stay."""
    assert PLAIN.text(text) == shown


def test_a_private_key_goes_with_all_its_lines() -> None:
    """If the header of a key is found, then its lines and its end belong to the secret."""
    lines = "\n".join(["MIIEpAIBAAKCAQEA75Ahi1zxJpLo" * 2] * 30 + ["short="])
    key = f"-----BEGIN RSA PRIVATE KEY-----\n{lines}\n-----END RSA PRIVATE KEY-----"
    assert PLAIN.text(f"a {key} b") == "a [REDACTED] b"
    escaped = key.replace("\n", "\\n")
    assert PLAIN.text(f'"private_key": "{escaped}", "x"') == '"private_key": [REDACTED], "x"'


@settings(max_examples=400)
@given(text=texts)
def test_redacting_twice_is_redacting_once(text: str) -> None:
    """If a text was redacted, then it holds no secret any more."""
    for redactor in (PLAIN, CATEGORIZED, Redactor(replacement="***")):
        once = redactor.text(text)
        assert redactor.text(once) == once


@settings(max_examples=150)
@given(before=texts, after=texts, category=st.sampled_from(sorted(SECRETS)))
def test_no_secret_survives_wherever_it_stands(before: str, after: str, category: str) -> None:
    """If a secret stands between anything, then its body is gone."""
    body = re.split(r"[=:] ?|Bearer ", SECRETS[category])[-1]
    assert body not in PLAIN.text(f"{before} {SECRETS[category]} {after}")


@settings(max_examples=150)
@given(value=VALUES)
def test_data_keeps_its_shape_and_is_redacted_once(value: Any) -> None:
    """If data of any shape is redacted, then its shape stays, and a second time changes nothing."""
    once = PLAIN.data(value)
    assert type(once) is type(value)
    assert PLAIN.data(once) == once
    if isinstance(value, dict):
        assert len(once) == len(value)


def test_texts_at_any_depth_are_searched_and_nothing_else_is_touched() -> None:
    """If secrets stand in maps, lists, keys and bytes, then they are replaced; the rest is not copied."""
    clean = {"list": [1, "x"], "none": None}
    deep: Any = f"is {KEY}"
    for _ in range(40):
        deep = {"d": [deep]}
    data = {"clean": clean, "deep": deep, "bytes": f"{KEY}!".encode(), f"{KEY}": 1, "n": 5, "b": True}
    shown = PLAIN.data(data)
    assert shown["clean"] is clean
    assert KEY not in repr(shown)
    assert (shown["bytes"], shown[MARKER], shown["n"], shown["b"]) == (b"[REDACTED]!", 1, 5, True)
    assert PLAIN.data({KEY: 1, f"AKIA{KEY[4:-1]}F": 2}) == {MARKER: 1, f"{MARKER}#2": 2}


@pytest.mark.parametrize(
    "key", ["api_key", "accessToken", "client-secret", "Password", "db_password", "API KEY"]
)
def test_text_under_a_secret_key_is_a_secret(key: str) -> None:
    """If a key names a secret, then the text under it is one at any depth; numbers and maps are not."""
    redactor = Redactor()
    assert redactor.data({"a": [{key: "x"}]}) == {"a": [{key: MARKER}]}
    assert redactor.data({key: 5}) == {key: 5}
    assert redactor.data({key: {"note": "x"}}) == {key: {"note": "x"}}
    assert redactor.data({key: MARKER, "token_count": "x"}) == {key: MARKER, "token_count": "x"}
    assert redactor.count == 1


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_events_are_searched_as_their_type_says(event_type: str) -> None:
    """If a type is searched, then its data and metadata are; else they are the same objects."""
    data, metadata = {"any": KEY}, {"m": KEY}
    shown = PLAIN.event(event_type, data, metadata)
    if event_type in SCANNED:
        assert shown == ({"any": MARKER}, {"m": MARKER})
    else:
        assert shown[0] is data and shown[1] is metadata


def test_settings_narrow_the_search() -> None:
    """If deep_scan or scan_metadata is false, then only the known fields, or only the data, are searched."""
    narrow = Redactor(deep_scan=False, scan_metadata=False)
    data = {"content": [KEY], "extra": KEY}
    assert narrow.event("message_received", data, {"m": KEY}) == (
        {"content": [MARKER], "extra": KEY}, {"m": KEY},
    )
    off = Redactor(enabled=False)
    assert off.text(KEY) == KEY
    assert off.data(data) is data
    assert off.stream() is None


def test_own_patterns_are_added_or_stand_alone() -> None:
    """If there are patterns of one's own, then they count beside the built-in ones, or instead of them."""
    own = [{"category": "staff", "regex": r"EMP-\d{4}"}, r"\bcodename \w+"]
    both = Redactor(patterns=own, replacement="categorized")
    text = f"EMP-1234 has codename raven and {KEY}"
    assert both.text(text) == "[REDACTED:staff] has [REDACTED:custom] and [REDACTED:aws_access_key]"
    alone = Redactor(patterns=own, replace_builtin=True)
    assert alone.text(text) == f"{MARKER} has {MARKER} and {KEY}"
    assert alone.data({"password": "x"}) == {"password": "x"}
    assert both.found == {"staff": 1, "custom": 1, "aws_access_key": 1}


@pytest.mark.parametrize(("wrong", "named"), [
    ({"patterns": ["("]}, "'('"), ({"patterns": ["x*"]}, "empty text"), ({"patterns": "abc"}, "a list"),
    ({"patterns": [5]}, "5"), ({"patterns": [{"regex": "a", "name": "b"}]}, "category and regex"),
    ({"patterns": [{"regex": "a", "category": "A B"}]}, "'A B'"), ({"patterns": ["x" * 1001]}, "1000"),
    ({"patterns": ["x"] * 101}, "100"), ({"replacement": ""}, "''"), ({"replacement": "two words"}, "spaces"),
    ({"replacement": "password=x"}, "'password=x'"), ({"replacement": "xxx"}, "first character"),
    ({"replacement": "[" + "x" * 64}, "64"), ({"replacement": "<pwd=x>"}, "redacted itself"),
])
def test_wrong_setting_is_refused_with_its_name(wrong: dict[str, Any], named: str) -> None:
    """If a setting cannot be, then the error names it and shows the value."""
    with pytest.raises(ConfigError) as caught:
        Redactor(**wrong)
    assert f"redaction.{next(iter(wrong))}" in caught.value.message
    assert named in caught.value.message


def test_no_pattern_reaches_further_than_it_says() -> None:
    """If a head and its least body were longer than REACH, then a stream would not hold what it must."""
    for pattern in PATTERNS:
        longest = 0
        for text in (SECRETS[pattern.category], *(t for c, t in SPELLINGS if c == pattern.category)):
            found = pattern.found.match(text, 0)
            longest = max(longest, 0 if found is None else found.end())
        assert longest <= REACH // 2
    name, spaces = "aws_secret_access_key", " " * 32
    assert len(f'{name}\\"{spaces}:{spaces}\\"x') <= REACH
    assert PLAIN.text(f"{name}{spaces}={spaces}x") == MARKER


def test_a_pattern_that_takes_too_long_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a pattern of one's own does not come to an end in time, then the text is as it was and that is
    counted."""
    monkeypatch.setattr("mesh.core.redact.OWN_TIMEOUT_S", 0.001)
    redactor = Redactor(patterns=["(x+x+)+y"])
    text = "x" * 5_000
    assert redactor.text(text) == text and redactor.gave_up > 0
