"""Arguments that would spoil a payload are refused before they travel with the calls of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mesh.client import _surface_sessions as plans
from mesh.client._surface import check_route, check_timeout
from mesh.client._surface_export import lines_of
from mesh.core.run import checked_options
from mesh.errors import InvalidArgument

UNREADABLE = {"a": [{(1, 2): 3}]}


@pytest.mark.parametrize(
    "given",
    [
        lambda: plans.fields(None, UNREADABLE, None, None, None),
        lambda: plans.fields(None, None, UNREADABLE, None, None),
        lambda: plans.check_input(UNREADABLE),
        lambda: plans.execute_options(provider_opts=UNREADABLE),
        lambda: plans.error_form(UNREADABLE),
        lambda: check_route({"external_room_id": "1", "extra": UNREADABLE}),
        lambda: check_route({"external_room_id": "1", 2: "x"}),
    ],
)
def test_map_that_no_reader_takes_is_refused_at_once(given: Callable[[], Any]) -> None:
    """If a map of the caller's has a tuple as a key, then its call is refused alone, without the node."""
    with pytest.raises(InvalidArgument):
        given()


@pytest.mark.parametrize(("given", "said"), [
    (lambda: check_timeout(1e20), "seconds from above 0 to 2**53, or inf, not 1e+20"),
    (lambda: checked_options({"deadline_s": 1e20}), "seconds from above 0 to 10**9, not 1e+20"),
    (lambda: list(lines_of("/no/such/file")), "cannot read '/no/such/file': No such file or directory"),
])
def test_what_is_refused_is_said_with_its_bound_and_once(given: Callable[[], Any], said: str) -> None:
    """If an argument is out of bounds, or a file cannot be read, then the message says why, once."""
    with pytest.raises(InvalidArgument) as refused:
        given()
    assert refused.value.message.endswith(said)
