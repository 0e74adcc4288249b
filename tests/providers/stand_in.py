"""Programs that stand in for those that need an account: they replay what the real ones said, and note what
they were told. Shell scripts, so that a hundred of them start in a second."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"


def recorded(name: str) -> list[dict[str, Any]]:
    """The objects of a recorded stdout."""
    return [json.loads(line) for line in (DATA / name).read_text().splitlines() if line]


class StandIn:
    """One program of a test, in a folder of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.path = folder / name

    def plays(self, objects: Iterable[Any] = (), *, before: str = "", after: str = "") -> StandIn:
        """Make it note its arguments and its stdin, then say these objects; the rest is shell."""
        said = self.folder / f"{self.path.name}.said"
        said.write_text("".join(
            (item if isinstance(item, str) else json.dumps(item)) + "\n" for item in objects
        ))
        here = shlex.quote(str(self.folder))
        self.path.write_text(
            f"#!/bin/sh\nprintf '%s\\n' \"$@\" >> {here}/args\npwd > {here}/cwd\ncat >> {here}/stdin\n"
            f"{before}\ncat {shlex.quote(str(said))}\n{after}\n"
        )
        self.path.chmod(0o755)
        return self

    def _noted(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    @property
    def args(self) -> list[str]:
        """All arguments of all its runs."""
        return self._noted("args").splitlines()

    @property
    def stdin(self) -> str:
        """All that its runs were told."""
        return self._noted("stdin")
