"""Short texts without a secret are known by heart; nothing else is, and the memory has a bound."""

from __future__ import annotations

from mesh.core.redact import CLEAN_CHARS_MAX, CLEAN_REMEMBERED, MARKER, Redactor

SECRET = "AKIAIOSFODNN7EXAMPLE"


def test_a_secret_is_found_each_time() -> None:
    """If a short secret comes again and again, then each time a marker stands in its place."""
    redactor = Redactor()
    for _ in range(3):
        assert redactor.text(SECRET) == MARKER
        assert redactor.data({SECRET: 1, "a": SECRET}) == {MARKER: 1, "a": MARKER}
    assert SECRET not in redactor._clean


def test_a_text_known_as_clean_is_still_a_secret_under_a_secret_key() -> None:
    """If a text was clean as a value and as a key, then under a key that names a secret it is one."""
    redactor = Redactor()
    assert redactor.data({"name": "hunter2", "hunter2": "x"}) == {"name": "hunter2", "hunter2": "x"}
    assert redactor.data({"password": "hunter2"}) == {"password": MARKER}


def test_the_users_own_patterns_are_searched_every_time() -> None:
    """If there are own patterns, then nothing is remembered, since their search may be given up once."""
    redactor = Redactor(patterns=["corp-[0-9]+"])
    assert redactor.text("plain") == "plain"
    assert [redactor.text("corp-17") for _ in range(2)] == [MARKER, MARKER]
    assert not redactor._clean


def test_the_memory_is_bounded() -> None:
    """If more different texts come than are remembered, and longer ones, then the memory stays small."""
    redactor = Redactor()
    for i in range(2 * CLEAN_REMEMBERED):
        redactor.text(f"word{i}")
        redactor.text("x" * CLEAN_CHARS_MAX + str(i))
    assert len(redactor._clean) <= CLEAN_REMEMBERED
    assert max(map(len, redactor._clean)) <= CLEAN_CHARS_MAX
