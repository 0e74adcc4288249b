"""Run the fuzz targets with atheris: ``python tests/fuzz/run.py --seconds 60 [target ...]``.

Prints executions, executions per second, coverage counters and findings of each target; a finding is written
to ``--out`` and makes the exit status 1. Needs the extra ``fuzz`` (Python 3.11 or 3.12). libFuzzer never
gives control back, so each target runs in a process of its own.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = ("header", "body", "key", "commandline", "redact", "protocol", "feed", "router", "partition")
INPUT_BYTES_MAX = 4096


def main() -> int:
    """The table of all asked targets; 1 when one of them has a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=list(NAMES), help=f"of {', '.join(NAMES)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--out", type=Path, default=None, help="folder for corpus and findings; it is kept")
    parser.add_argument("--child", metavar="TARGET", help=argparse.SUPPRESS)
    options, flags = parser.parse_known_args()
    if options.child:
        return child(options.child, flags)
    with tempfile.TemporaryDirectory(prefix="mesh-fuzz-") as folder:
        out = options.out or Path(folder)
        print(
            f"{'target':<12} {'executions':>11} {'exec/s':>8} {'coverage':>9} {'corpus':>7}  findings",
            flush=True,
        )
        return max(one(name, options.seconds, out) for name in options.targets)


def one(name: str, seconds: int, out: Path) -> int:
    """Fuzz one target and print its line."""
    corpus = out / name
    corpus.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [
            sys.executable,
            __file__,
            "--child",
            name,
            f"-max_total_time={seconds}",
            f"-max_len={INPUT_BYTES_MAX}",
            "-rss_limit_mb=2048",
            "-timeout=20",
            "-print_final_stats=1",
            f"-artifact_prefix={out / name}-",
            str(corpus),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    runs = int((re.findall(r"number_of_executed_units:\s*(\d+)", said) or [0])[-1])
    rate = int((re.findall(r"average_exec_per_sec:\s*(\d+)", said) or [0])[-1])
    covered = (re.findall(r"cov: (\d+)", said) or ["?"])[-1]
    kept = (re.findall(r"corp: (\d+)", said) or ["?"])[-1]
    trouble = "none" if done.returncode == 0 else _trouble(said)
    print(f"{name:<12} {runs:>11} {rate:>8} {covered:>9} {kept:>7}  {trouble}", flush=True)
    return 0 if done.returncode == 0 else 1


def _trouble(said: str) -> str:
    """What broke, and the input that broke it."""
    error = next(
        iter(re.findall(r"^\s*(\w+(?:\.\w+)*: .*)$", said.partition("Traceback")[2], re.M)), "no traceback"
    )
    written = (re.findall(r"Test unit written to (\S+)", said) or ["?"])[-1]
    return f"{error[:120]} in {written}\n{said[-3000:]}"


def child(name: str, flags: list[str]) -> int:
    """Hand the process to libFuzzer; it ends it."""
    import atheris

    sys.path[:0] = [str(HERE), str(HERE.parent.parent)]
    with atheris.instrument_imports(include=["mesh", "targets"]):
        from targets import TARGETS
    atheris.Setup([sys.argv[0], *flags], TARGETS[name])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
