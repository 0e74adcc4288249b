"""Prints what an interpreter is worth to mesh: minor version, us for a fixed piece of work, its real path.

An interpreter built without profile-guided optimisation, as version managers build by default, takes 1.3 to 1.5
times as long as a distribution's; nothing that it says about itself tells them apart, so it is timed.
Ends with an error when it is too old, or cannot make virtual environments.
"""

import os
import sys
import time

if sys.version_info < (3, 11):
    sys.exit(1)
import ensurepip  # noqa: F401
import venv  # noqa: F401

#: The least of so many is taken: other work on the machine only ever adds.
ROUNDS = 7


class Counter:
    """What mesh does most: calls of methods, small objects, dicts."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[int, str]] = {}

    def add(self, number: int) -> None:
        self.seen[number & 255] = (number, str(number))


def took_us() -> int:
    """CPU time of one round."""
    began_ns = time.process_time_ns()
    counter = Counter()
    for number in range(15_000):
        counter.add(number)
    return (time.process_time_ns() - began_ns) // 1000


print(sys.version_info[1], min(took_us() for _ in range(ROUNDS)), os.path.realpath(sys.executable))
