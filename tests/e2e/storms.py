"""Many storms, each with another seed: ``python tests/e2e/storms.py --seeds 10 --seconds 120``.

One line per seed, with what was done in it. A failed one leaves its folder (the node's logs, the history of
every call, pytest's report), and its seed repeats its choices. The exit status is 1 when one failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TEST = Path(__file__).with_name("test_storm.py")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="how many storms")
    parser.add_argument("--first", type=int, default=1, help="the first seed; the others follow it")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long each lasts")
    parser.add_argument("--parallel", type=int, default=1, help="how many at a time")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="storms-"))
    with ThreadPoolExecutor(asked.parallel) as pool:
        seeds = range(asked.first, asked.first + asked.seeds)
        failed = list(pool.map(lambda seed: storm(seed, asked.seconds, folder), seeds)).count(False)
    print(f"{asked.seeds - failed} of {asked.seeds} storms broke no promise")
    if not failed:
        shutil.rmtree(folder)
    return int(failed > 0)


def storm(seed: int, seconds: float, folder: Path) -> bool:
    """One storm; says how it went."""
    own = folder / str(seed)
    report = folder / f"{seed}.txt"
    with report.open("w") as out:
        status = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-s", str(TEST), f"--basetemp={own}"],
            stdout=out, stderr=subprocess.STDOUT, check=False, cwd=TEST.parents[2],
            env={**os.environ, "MESH_STORM_SEED": str(seed), "MESH_STORM_S": f"{seconds:g}"},
        ).returncode
    lines = report.read_text(errors="replace").splitlines()
    said = next((line.removeprefix("storm: ") for line in lines if line.startswith("storm: ")), "")
    print(f"seed {seed}: {'ok' if status == 0 else f'FAILED, see {report}'}: {said}", flush=True)
    if status == 0:
        shutil.rmtree(own, ignore_errors=True)
    return status == 0


if __name__ == "__main__":
    sys.exit(main())
