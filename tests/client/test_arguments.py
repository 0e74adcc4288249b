"""Arguments that would spoil a payload are refused before they travel with the calls of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mesh.client import _surface_sessions as plans
from mesh.client._surface import check_route
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
