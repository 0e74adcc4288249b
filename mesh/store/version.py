"""Which SQLite this is."""

from __future__ import annotations

import apsw


def sqlite_version() -> str:
    """The version of the SQLite library that apsw brings, for ``mesh doctor``."""
    return apsw.sqlite_lib_version()


__all__ = ["sqlite_version"]
