"""``acp`` on a real agent process of the official package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contract import SECRET, Agent, Subject, add

PROGRAM = Path(__file__).with_name("acp_agent.py")


class Acp(Subject):
    name = "acp"
    requires = ("acp",)
    scenes = frozenset(("good", "bad", "slow", "silent", "tool", "usage", "secret", "resume"))
    tool = "execute"

    @contextmanager
    def opened(self, folder: Path) -> Iterator[None]:
        self._folder = folder
        yield

    def agent(self, scene: str, folder: Path) -> Agent:
        table = {"provider": "acp", "program": sys.executable, "args": [str(PROGRAM), str(folder)],
                 "cwd": str(folder), "permission_mode": "full_auto"}
        return Agent(table, f"and then? DO {scene} {SECRET if scene == 'secret' else ''}".strip())

    def executed(self) -> int:
        ran = self._folder / "ran"
        return len(ran.read_text()) if ran.exists() else 0

    def heard(self) -> str:
        return (self._folder / "heard").read_text()


add(Acp())
