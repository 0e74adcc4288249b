"""The command line. Only ``click`` is imported until a command runs, so that ``mesh --help`` is quick."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with its code: 0 ok, 1 the operation failed, 2 usage, 3 no node,
    4 not found, 5 timeout, 130 interrupted."""
    try:
        _run()
    except KeyboardInterrupt:  # before a command could take care of it
        sys.exit(130)


def _run() -> None:
    from mesh.cli import ahead

    ahead.look(sys.argv[1:])
    from mesh.cli.app import root

    for stream in (sys.stdout, sys.stderr):
        # What an agent prints may not be encodable in this terminal; that must not end the command.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    root(prog_name=os.environ.get("_MESH_PROGRAM", "mesh"))


__all__ = ["main"]
