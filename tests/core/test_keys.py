"""Session keys: one key, one text; and one derivation that everybody shares."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mesh.core.keys import (
    KEY_BYTES_MAX,
    SessionKey,
    check_text,
    encode,
    encode_field,
    parse,
    room_text,
    text_of,
    validate,
)
from mesh.errors import InvalidArgument

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
ugly = st.text(st.sampled_from(":%aA3F\x00\x1f\x7f\x80\x85\x9f\u00a0\u2028ä💬 2C"), min_size=1, max_size=12)
fields = texts | ugly
session_keys = st.builds(SessionKey, fields, fields, fields, st.none() | fields)

PLAIN = SessionKey("telegram", "bot_1", "chat_123")
THREAD = SessionKey("telegram", "bot_1", "chat_123", "t1")
MATRIX = SessionKey("matrix", "bot", "!a:srv")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (PLAIN, "telegram:bot_1:chat_123"),
        (THREAD, "telegram:bot_1:chat_123:t1"),
        (MATRIX, "matrix:bot:!a%3Asrv"),
        (MATRIX._replace(thread_id="$e:srv"), "matrix:bot:!a%3Asrv:$e%3Asrv"),
        (SessionKey("a", "100%", "\n\x7f\x85"), "a:100%25:%0A%7F%C2%85"),
        (SessionKey("a", "b", "ä 💬\u2028"), "a:b:ä 💬\u2028"),
        (SessionKey("a", "%3A", "b"), "a:%253A:b"),
    ],
)
def test_a_key_has_this_text(key: SessionKey, text: str) -> None:
    """If a key is formatted, then exactly ':', '%' and control characters are encoded (K01, K03, K05)."""
    assert str(key) == encode(key) == text
    assert parse(text) == SessionKey.parse(text) == key
    assert type(parse(text)) is SessionKey


@given(session_keys)
def test_parse_is_the_inverse_of_format(key: SessionKey) -> None:
    """If a key is valid, then its text is read back as the same key."""
    assert parse(encode(key)) == key
    assert check_text(encode(key)) == encode(key) == text_of(key) == text_of(list(key))
    assert validate(encode(key)) == validate(key) == validate(list(key)) == key


@given(st.lists(fields, min_size=1, max_size=6).map(":".join) | st.text(max_size=20))
@example("a:b:c%3a")
@example("a:b:c%2F")
@example("a:b:%85")
@example("a:b:%C2%41")
@example("a:b:%%2525")
@example("a:b:%C%252%85")
def test_each_key_has_one_text_only(text: str) -> None:
    """If a text is accepted, then it is the very text that its key is formatted to."""
    try:
        key = parse(text)
    except InvalidArgument as error:
        assert error.code == "invalid_format"
        with pytest.raises(InvalidArgument) as refused:
            check_text(text)
        assert refused.value.code == "invalid_session_key"
        with pytest.raises(InvalidArgument) as refused:
            text_of(text)
        assert refused.value.code == "invalid_format"
    else:
        assert encode(key) == text == check_text(text) == text_of(text)


@given(session_keys, session_keys)
def test_two_keys_have_two_texts(one: SessionKey, other: SessionKey) -> None:
    """If two keys differ, then so do their texts."""
    assert (encode(one) == encode(other)) == (one == other)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a:b",
        "a:b:",
        ":b:c",
        "a::c",
        "a:b:c:",
        "a:b:c:d:e",
        "x::",
        "a:b:c\n",
        "a:b:\x00",
        "a:b:c%",
        "a:b:c%4",
        "a:b:c%41",
        "a:b:\ud800",
        "a:b:" + "x" * (KEY_BYTES_MAX - 3),
        "a:b:" + "ä" * 511,
    ],
)
def test_what_is_no_text_of_a_key_is_refused(text: str) -> None:
    """If a text has not three or four fields, an empty one, or is not canonical, then invalid_format."""
    for call in (parse, validate, SessionKey.parse):
        with pytest.raises(InvalidArgument) as caught:
            call(text)
        assert caught.value.code == "invalid_format"
    with pytest.raises(InvalidArgument):
        check_text(text)


def test_the_longest_text_is_accepted() -> None:
    """If a text has exactly as many bytes as allowed, then it is a key."""
    for text in ("a:b:" + "x" * (KEY_BYTES_MAX - 4), "a:b:" + "ä" * (KEY_BYTES_MAX // 2 - 2)):
        assert encode(parse(text)) == check_text(text) == text_of(text) == text


@pytest.mark.parametrize("value", [None, 7, b"a:b:c", ["a:b:c"]])
def test_a_text_must_be_a_text(value: Any) -> None:
    """If something else than a str is parsed, then invalid_format; as a stored key, invalid_session_key."""
    with pytest.raises(InvalidArgument) as caught:
        parse(value)
    assert caught.value.code == "invalid_format"
    with pytest.raises(InvalidArgument) as caught:
        check_text(value)
    assert caught.value.code == "invalid_session_key"


@pytest.mark.parametrize(
    "key",
    [
        None,
        7,
        {},
        (),
        ("a", "b", "c"),
        ("a", "b", "c", None, None),
        (None, "b", "c", None),
        ("", "b", "c", None),
        ("a", "", "c", None),
        ("a", "b", "", None),
        ("a", "b", 5, None),
        ("a", "b", "c", ""),
        ("a", "b", "c", 5),
        ("a", "b", b"c", None),
        ("a", "b", "\ud800", None),
        ("a", "b", "x" * KEY_BYTES_MAX, None),
        SessionKey("a", "b", ""),
        ("a", "b", ":" * (KEY_BYTES_MAX // 3), None),
    ],
)
def test_an_invalid_key_is_refused(key: Any) -> None:
    """If a field is empty, missing, of another type or too long, then invalid_session_key (R06, 1.4)."""
    with pytest.raises(InvalidArgument) as caught:
        validate(key)
    assert caught.value.code == "invalid_session_key"


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        (
            {"channel_type": "telegram", "bridge_id": "b", "external_room_id": "chat_123"},
            ("telegram", "b", "chat_123", None),
        ),
        (
            {"channel_type": "t", "bridge_id": "b", "external_room_id": "x", "room_id": "r"},
            ("t", "b", "r", None),
        ),
        (
            {
                "channel_type": "t",
                "bridge_id": "b",
                "room_id": "r",
                "thread_id": None,
                "external_thread_id": "9",
            },
            ("t", "b", "r", "9"),
        ),
        (
            {
                "channel_type": "t",
                "bridge_id": "b",
                "room_id": "r",
                "thread_id": "in",
                "external_thread_id": "9",
            },
            ("t", "b", "r", "in"),
        ),
        (
            {"channel_type": "t", "bridge_id": 77, "external_room_id": -100123, "external_thread_id": 9},
            ("t", "77", "-100123", "9"),
        ),
    ],
)
def test_a_context_gives_its_key(context: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """If a context has resolved ids, they win over external ones; integers become text (K07, K09, K11)."""
    assert SessionKey.from_context(context) == expected
    assert SessionKey.from_context(SimpleNamespace(**context)) == expected


@pytest.mark.parametrize(
    "context",
    [
        {},
        None,
        {"channel_type": "t", "bridge_id": "b"},
        {"channel_type": True, "bridge_id": "b", "room_id": "r"},
        {"channel_type": "t", "bridge_id": "b", "room_id": "r", "thread_id": ""},
    ],
)
def test_a_context_without_a_room_is_refused(context: Any) -> None:
    """If a required field is missing or of a wrong type, then invalid_session_key."""
    with pytest.raises(InvalidArgument) as caught:
        SessionKey.from_context(context)
    assert caught.value.code == "invalid_session_key"


def test_same_room_ignores_threads() -> None:
    """If two keys differ in their thread only, then they are of one room; in both directions."""
    other = THREAD._replace(bridge_id="bot_2")
    assert PLAIN.same_room(THREAD)
    assert THREAD.same_room(PLAIN)
    assert not PLAIN.same_room(other)
    assert not other.same_room(PLAIN)


@given(session_keys)
def test_the_room_scope_is_the_key_without_its_thread(key: SessionKey) -> None:
    """If a key loses its thread, then so does its text; without one, it is its own room."""
    assert key.room_scope() == (*key[:3], None)
    assert room_text(encode(key)) == encode(key.room_scope())
    assert key.room_scope().room_scope() == key.room_scope()
    assert key.same_room(key.room_scope())


def test_keys_are_values() -> None:
    """If two keys are equal, then they are one dict key, and nobody changes them."""
    assert {PLAIN: 1}[SessionKey(*PLAIN)] == 1
    with pytest.raises(AttributeError):
        PLAIN.room_id = "x"  # type: ignore[misc]
    assert encode_field("a:b%") == "a%3Ab%25"
