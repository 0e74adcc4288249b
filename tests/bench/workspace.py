"""What a workspace costs: snapshots and diff of a large one against ``git status`` and ``git diff`` on it.

    python tests/bench/workspace.py [--files 10000] [--changes 10] [--rounds 7]

All in one run, in turns; the medians and their ratios are printed. The tree is clean before, and has the
changes after.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mesh.workspaces.base import Base
from mesh.workspaces.files import Stop

Times = dict[str, list[tuple[float, float]]]


def git(folder: Path, *args: str) -> None:
    """A git command; its output is read and thrown away, as a program would read it."""
    subprocess.run(["git", *args], cwd=folder, capture_output=True, check=True)


def make(folder: Path, files: int) -> None:
    """A repository of many small files in folders of a hundred."""
    for i in range(files):
        path = folder / f"dir{i // 100:03}" / f"file{i:05}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"file {i}\n" * 40)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=b", "-c", "user.email=b@b", "commit", "-q", "-m", "all")


def change(folder: Path, changes: int, salt: int) -> None:
    """Edit some files, all in other folders."""
    for i in range(changes):
        path = folder / f"dir{i * 7 % 100:03}" / f"file{i * 7 % 100 * 100 + i:05}.txt"
        path.write_text(f"changed {salt} {i}\n" * 40)


def cpu_s() -> float:
    """What we and the commands we waited for have computed, in all threads."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def timed(times: Times, name: str, work: Callable[[], object]) -> None:
    """Add the wall and CPU time of a piece of work to its lists."""
    began_s, spent_s = time.perf_counter(), cpu_s()
    work()
    times.setdefault(name, []).append((time.perf_counter() - began_s, cpu_s() - spent_s))


def one_round(base: Path, folder: Path, strategy: str, times: Times, changes: int, salt: int) -> None:
    """A run's snapshots and diff, and git's own commands on the same tree."""
    git(folder, "checkout", "-q", "--", ".")
    git(folder, "status", "--porcelain")
    scratch = base / f"{strategy}{salt}"
    scratch.mkdir()
    made: dict[str, Any] = {}
    work = Base(base, 10**6, 10**9).backend(str(folder), strategy, scratch, Stop())
    timed(times, f"{strategy}: before", lambda: made.update(before=work.snapshot("before")))
    change(folder, changes, salt)
    timed(times, "git status", lambda: git(folder, "--no-optional-locks", "status", "--porcelain"))
    timed(times, "git diff", lambda: git(folder, "--no-optional-locks", "diff"))
    timed(times, f"{strategy}: after", lambda: made.update(after=work.snapshot("after")))
    before, after = made["before"], made["after"]
    timed(times, f"{strategy}: diff", lambda: work.diff(before, after, patch_bytes=1 << 20))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--changes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    times: Times = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "repo")
        folder.mkdir()
        make(folder, options.files)
        for salt in range(options.rounds):
            for strategy in ("git", "hash"):
                one_round(Path(name), Path(os.path.realpath(folder)), strategy, times, options.changes, salt)
    for kind, name in enumerate(("wall", "CPU")):
        report(name, {what: statistics.median(v[kind] for v in values) for what, values in times.items()})


def report(kind: str, median_s: dict[str, float]) -> None:
    """Print the medians and the ratios."""
    theirs_s = median_s["git status"] + median_s["git diff"]
    print(f"{kind} time, ms: " + ", ".join(f"{name} {s * 1000:.0f}" for name, s in median_s.items()))
    for strategy in ("git", "hash"):
        once_s = median_s[f"{strategy}: after"] + median_s[f"{strategy}: diff"]
        both_s = once_s + median_s[f"{strategy}: before"]
        print(f"  {strategy}: snapshot + diff {once_s / theirs_s:.2f}x of git status + git diff; "
              f"with the snapshot before {both_s / theirs_s:.2f}x")


if __name__ == "__main__":
    main()
