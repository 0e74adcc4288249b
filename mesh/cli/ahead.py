"""A node that is begun before the command which needs it is there.

``mesh run`` has a node of its own when none is up. The node takes as long to import what it needs as
the command line does; so it is begun first, and both import at the same time.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mesh.launch import Begun

#: Arguments of a command that needs no node of its own.
NONE_NEEDED = frozenset(("--address", "--help", "-h"))
_begun: list[Begun] = []  #: at most one


def look(arguments: Sequence[str]) -> None:
    """Begin a node if a command of these arguments needs one, most likely. What fails here fails again, and
    is reported, when the command begins one itself."""
    given = {argument.partition("=")[0] for argument in arguments}
    if list(arguments[:1]) != ["run"] or os.environ.get("MESH_ADDRESS") or given & NONE_NEEDED:
        return
    from mesh.errors import MeshError
    from mesh.launch import address_file, begin_node

    with suppress(MeshError, OSError, RuntimeError):  # the last: a ~ of nobody in a path
        if address_file(os.environ.get("MESH_NODE_NAME") or "mesh").exists():
            return
        _begun.append(begin_node())
        atexit.register(_drop)


def take() -> Begun:
    """The node that was begun, else a new one."""
    from mesh.launch import begin_node

    return _begun.pop() if _begun else begin_node()


def _drop() -> None:
    """Nobody took it: the command needed none, or never came so far."""
    while _begun:
        _begun.pop().drop()


__all__ = ["NONE_NEEDED", "look", "take"]
