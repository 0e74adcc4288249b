"""Prints the interpreter to take, of those named: the first one, or one that is clearly faster.

A Python built without profile-guided optimisation, as version managers build it unless told otherwise,
takes 1.1 to 1.4 times as long for mesh as a distribution's. Nothing that it says about itself tells the
two apart, so they are timed, in turns, since all else on the machine changes their speed as well. One that
is older than the first, or cannot make virtual environments, is not taken. Two words are for its own use:
``facts``, ``time``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

#: Rounds of each interpreter, in turns; the median of their ratios counts.
ROUNDS = 7
#: What another one may need of the first one's time to be taken: the first is what its user calls Python.
CLEARLY = 0.88
#: An interpreter that does not answer by then is not taken.
ANSWER_S = 10.0
#: On a Mac this is too old, or a stand-in that asks on the screen whether it is to be installed.
APPLES = "/usr/bin/python3"


class Counter:
    """What mesh's time goes into: calls of methods, attributes, small objects, steps of generators."""

    __slots__ = ("last", "total")

    def __init__(self) -> None:
        self.total = 0
        self.last = (0, 0.0)

    def add(self, number: int) -> int:
        """One step."""
        self.total += number
        self.last = (number, self.total * 0.5)
        return self.total

    def run(self, count: int) -> int:
        """All steps."""
        return max(self.add(number) for number in range(count))


def round_us() -> float:
    """CPU time of one round."""
    Counter().run(10_000)
    began_s = time.process_time()
    Counter().run(40_000)
    return (time.process_time() - began_s) * 1e6


def ask(command: str, *arguments: str) -> str:
    """What this file prints, run by another interpreter; nothing when that fails."""
    try:
        words = [command, "-I", __file__, *arguments]
        done = subprocess.run(words, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def facts() -> str:
    """This interpreter: version and real path, if it can make virtual environments."""
    import ensurepip
    import venv

    assert ensurepip and venv
    return json.dumps([sys.version_info[:2], os.path.realpath(sys.executable)])


def ratio(one: str, other: str) -> float:
    """The median time of the other interpreter, as a part of the first one's."""
    ratios = []
    for _ in range(ROUNDS):
        times = ask(one, "time"), ask(other, "time")
        if not all(times):
            return 1.0
        ratios.append(float(times[1]) / float(times[0]))
    return sorted(ratios)[ROUNDS // 2]


def pick(first: str, others: list[str]) -> str:
    """The command to take; a line on stderr when it is not the first."""
    said = ask(first, "facts")
    if not said:
        return first  # what it lacks is told by who makes the environment
    version, path = json.loads(said)
    seen, chosen, least = {path}, first, CLEARLY
    for command in others:
        said = "" if command == APPLES and sys.platform == "darwin" else ask(command, "facts")
        if not said:
            continue
        other_version, other = json.loads(said)
        if other in seen or other_version < version:
            continue
        seen.add(other)
        part = ratio(path, other)
        if part < least:
            chosen, least = other, part
    if chosen != first:
        sys.stderr.write(
            f"mesh: takes {chosen}, which needs {least:.0%} of the time of {first} ({path}); "
            f"to have that one, remove .venv and set MESH_PYTHON={first}\n"
        )
    return chosen


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["time"]:
            sys.stdout.write(f"{round_us()}\n")
        case ["facts"]:
            sys.stdout.write(f"{facts()}\n")
        case [first, *others]:
            sys.stdout.write(f"{pick(first, others)}\n")


__all__ = ["pick"]
