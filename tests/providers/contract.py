"""The subjects of the contract suite (``test_contract.py``): how each provider is made to play each scene.

Adding a provider: a file ``subject_NAME.py`` beside this one with a ``Subject`` for it, handed to ``add``.
What stands behind it (a scripted server, a stand-in program) is opened by ``opened``.

| scene | what the provider has to do |
|---|---|
| good | say ``text``, in pieces when it streams, and end well |
| bad | say something or nothing, then fail with ``code`` |
| slow | say something, then no end |
| silent | say nothing, and no end |
| tool | call ``tool`` with ``tool_input`` as ``tool_call_id``; told ``tool_output``, say ``text`` |
| usage | as good, and report ``used`` |
| secret | say ``SECRET`` in an answer, torn over pieces where it streams |
| resume | as good; ``heard()`` tells what the provider's other side was told last |
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

SCENES = ("good", "bad", "slow", "silent", "tool", "usage", "secret", "resume")
SECRET = "AKIAIOSFODNN7EXAMPLE"


class Agent(NamedTuple):
    """One run to begin: the agent's table, the input, options of the run (``provider_opts`` ...)."""

    table: dict[str, Any]
    input: Any = "hello"
    options: dict[str, Any] = {}


class Subject:
    """One provider, or one way to use it."""

    name = ""
    requires: tuple[str, ...] = ()  #: libraries without which it is skipped
    scenes: frozenset[str] = frozenset(("good", "bad", "slow"))  #: what it can be made to play
    text = "hello"
    code = "provider_error"  #: of the scene ``bad``
    streams = True
    stop_reason = "end_turn"
    used = {"input_tokens": 7, "output_tokens": 3}
    tool = "add"  #: as policies know it
    tool_call_id = "call_1"
    tool_input: dict[str, Any] = {"a": 2, "b": 3}
    tool_output: Any = "5"

    @contextmanager
    def opened(self, folder: Path) -> Iterator[None]:
        """Bring up what stands behind the provider; nothing of it is left at the end."""
        yield

    def agent(self, scene: str, folder: Path) -> Agent:
        """What plays a scene."""
        raise NotImplementedError

    def executed(self) -> int:
        """How often the tool really ran since ``opened``."""
        return 0

    def heard(self) -> str:
        """All that the other side was told in its last request, as text."""
        return ""


SUBJECTS: dict[str, Subject] = {}


def add(subject: Subject) -> None:
    """Make a subject part of the suite."""
    assert subject.name not in SUBJECTS
    SUBJECTS[subject.name] = subject


def subjects() -> dict[str, Subject]:
    """All subjects whose libraries are installed."""
    for file in sorted(Path(__file__).parent.glob("subject_*.py")):
        importlib.import_module(file.stem)
    return {
        name: subject for name, subject in SUBJECTS.items()
        if all(importlib.util.find_spec(module) for module in subject.requires)
    }
