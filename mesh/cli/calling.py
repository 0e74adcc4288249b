"""How this command line was called: what help, hints and remarks say is to be copied, and must work then.

From a checkout the program is ``bin/mesh``, and no ``mesh`` is on PATH.
"""

from __future__ import annotations

import os
import re
import shlex
from functools import cache


def program() -> str:
    """How the user called us, for commands that are to be copied."""
    return shlex.quote(os.environ.get("_MESH_PROGRAM") or "mesh")


def as_called(text: str) -> str:
    """The text, its commands (``mesh up``) beginning with the program as it was called."""
    name = program()
    return text if name == "mesh" else _commands().sub(lambda _: name, text)


@cache
def _commands() -> re.Pattern[str]:
    from mesh.cli.app import COMMANDS

    return re.compile(rf"(?<![\w/.-])mesh(?= (?:{'|'.join(COMMANDS)})(?![\w-]))")


__all__ = ["as_called", "program"]
