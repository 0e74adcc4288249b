"""The ``workspace`` option of a run, from what a caller may write to what travels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mesh.core.plain import plain_map
from mesh.core.workspace import checked_workspace


def workspace_option(given: Any) -> dict[str, Any]:
    """The option as it travels: a folder, True (here), or a map; paths are seen from the caller's folder.

    Raises:
        InvalidArgument: names what is wrong.
    """
    if given is True:
        given = {}
    elif isinstance(given, str | os.PathLike):
        given = {"path": given}
    if isinstance(given, Mapping):
        given = {"path": os.curdir, **given}
        given |= {name: _absolute(given[name]) for name in ("path", "artifact_store") if name in given}
    option = plain_map(given, "workspace")
    checked_workspace(option)
    return option


def _absolute(place: Any) -> Any:
    if isinstance(place, str | os.PathLike) and place:
        return os.path.abspath(os.path.expanduser(place))  # noqa: PTH100, PTH111  no link is resolved here
    return place


__all__ = ["workspace_option"]
