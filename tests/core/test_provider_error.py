"""The payload of a provider's failure: stable keys, bounded stderr, a message in any case."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.error_map import checked_error, failure_data, with_provider_error
from mesh.core.provider_error import (
    KINDS,
    NO_MESSAGE,
    STDERR_BYTES_MAX,
    STDERR_LINES_MAX,
    ProviderError,
    cut_stderr,
    details_left,
)
from mesh.errors import InvalidArgument

anything = (
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.lists(st.text(), max_size=2)
)


@given(st.text() | st.builds(lambda line, count: line * count, st.text(), st.integers(0, 40_000)))
def test_stderr_is_cut_to_its_bounds(text: str) -> None:
    """If stderr is longer than 200 lines or 16 384 bytes, then a beginning is kept, of whole characters."""
    cut = cut_stderr(text)
    assert cut.count("\n") <= STDERR_LINES_MAX and len(cut.encode()) <= STDERR_BYTES_MAX
    assert text.encode(errors="replace").decode().startswith(cut)
    short = text.count("\n") < STDERR_LINES_MAX and len(text.encode(errors="replace")) <= STDERR_BYTES_MAX
    assert not short or cut == text.encode(errors="replace").decode()


@pytest.mark.parametrize(
    ("stderr", "kept"),
    [
        ("x\n" * 500, "x\n" * 200),
        ("x" * 50_000, "x" * 16_384),
        ("x" + "ä" * 10_000, "x" + "ä" * 8_191),
        ("\U0001f600" * 5_000, "\U0001f600" * 4_096),
    ],
)
def test_a_cut_is_said(stderr: str, kept: str) -> None:
    """If stderr was cut, then truncated is True; it is never False."""
    error = ProviderError.of("amp", "transport_exit", "m", stderr=stderr)
    assert (error.stderr, error.truncated) == (kept, True)
    assert ProviderError.of("amp", "transport_exit", "m", stderr=kept).truncated is None


@given(anything, anything, anything, anything, anything, st.dictionaries(st.text(), anything, max_size=3))
def test_whatever_is_given_a_payload_comes_of_it(
    provider: Any, kind: Any, message: Any, code: Any, stderr: Any, details: dict[str, Any]
) -> None:
    """If the parts of a failure are of any type, then its payload is one that can be read back."""
    error = ProviderError.of(provider, kind, message, exit_code=code, stderr=stderr, details=details)
    assert error.kind in KINDS and error.provider and error.message
    assert error.truncated in (True, None)
    assert ProviderError.from_map(error.to_map()) == error


@pytest.mark.parametrize(
    ("given_code", "details", "code"),
    [
        (17, {}, 17),
        ("17", {}, 17),
        (" -1 ", {}, -1),
        ("x", {"exit_code": 3}, 3),
        (None, {"exit_status": "4"}, 4),
        (None, {"exit_code": "no", "exit_status": 5}, 5),
        (0, {"exit_code": 9}, 0),
        (True, {}, None),
        ("", {}, None),
        (1.0, {}, None),
        ("\u0661", {}, None),
        ("9" * 50, {}, None),
    ],
)
def test_the_exit_code_is_found(given_code: Any, details: dict[str, Any], code: Any) -> None:
    """If an exit code is a number, or a text that is one, then the first of its places counts."""
    assert ProviderError.of("amp", exit_code=given_code, details=details).exit_code == code


@pytest.mark.parametrize(
    ("message", "details", "stderr", "found"),
    [
        ("m", {"message": "d"}, "s", "m"),
        (None, {"message": "d"}, "s", "d"),
        ("  ", {"message": ""}, "\n  \n first \nsecond", "first"),
        (7, {}, None, NO_MESSAGE),
        (None, {"stderr": "in details"}, None, "in details"),
    ],
)
def test_the_message_is_the_first_that_says_something(
    message: Any, details: dict[str, Any], stderr: Any, found: str
) -> None:
    """If a failure has no message, then the details, stderr, or a fixed text give one."""
    assert ProviderError.of("amp", "timeout", message, stderr=stderr, details=details).message == found


@pytest.mark.parametrize(("kind", "found"), [("timeout", "timeout"), ("odd", "unknown"), (None, "unknown")])
def test_unknown_kinds_are_unknown(kind: Any, found: str) -> None:
    """If a kind is not of the list, then it is unknown."""
    assert ProviderError.of("amp", kind, "m").kind == found


def test_details_keep_what_the_payload_does_not_say() -> None:
    """If details moved into the payload, then they are not said twice."""
    details = {"stderr": "x", "stderr_truncated?": True, "exit_code": 1, "exit_status": 1, "request": "r"}
    assert details_left(details) == {"request": "r"}
    assert ProviderError.of("amp", details={"stderr_truncated": True}).truncated is True


def test_an_error_of_a_provider_says_so_and_others_do_not() -> None:
    """If an error's code is a provider's, then it has the payload; any other has one only when given."""
    error = {"code": "provider_timeout", "message": "slow", "details": {"stderr": "x", "a": 1}}
    found = with_provider_error(error, "amp")
    assert found["details"] == {"a": 1}
    assert found["provider_error"] == ProviderError.of("amp", None, "slow", stderr="x").to_map()
    other = {"code": "validation_error", "message": "m", "details": {}}
    assert with_provider_error(other, "amp") is other
    given = with_provider_error({**other, "provider_error": {"kind": "timeout", "exit_code": "3"}}, "amp")
    assert given["provider_error"] == ProviderError.of("amp", "timeout", "m", exit_code=3).to_map()


def test_a_failed_session_says_why_in_its_event() -> None:
    """If a session is failed with a provider's error, then the event has its code, message and payload."""
    about = {"provider": "amp", "kind": "transport_exit", "exit_code": 17}
    error = checked_error({"code": "provider_error", "message": "m", "provider_error": about})
    data = failure_data(error)
    assert (data["error_code"], data["error_message"], "details" in data) == ("provider_error", "m", False)
    payload = data["provider_error"]
    assert (payload["provider"], payload["kind"], payload["exit_code"]) == ("amp", "transport_exit", 17)


@pytest.mark.parametrize(
    "error",
    [
        None,
        7,
        [],
        {},
        {"code": 7},
        {"code": ""},
        {"code": "x", "message": 7},
        {"code": "x", "details": [1]},
        {"code": "x", "details": {1: 2}},
        {"code": "x", "provider_error": "y"},
        {"code": "x", "cause": "y"},
    ],
)
def test_a_wrong_error_is_refused(error: Any) -> None:
    """If the error of a session has a wrong field, then validation_error."""
    with pytest.raises(InvalidArgument) as caught:
        checked_error(error)
    assert caught.value.code == "validation_error"


def test_a_text_is_an_error_too() -> None:
    """If the error of a session is a text, then its code is run_failed."""
    assert checked_error("x") == {"code": "run_failed", "message": "x", "details": {}}
