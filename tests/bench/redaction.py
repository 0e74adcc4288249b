"""What redaction costs: ``python tests/bench/redaction.py``. CPU time, with and without, in turns.

``rows()`` gives the same as records for a table: name, microseconds without, with, and their ratio.
"""

from __future__ import annotations

import json
import re
import time
from typing import NamedTuple

from mesh.core.events import TYPE_CODE, FragmentEncoder
from mesh.core.redact import Redactor
from mesh.core.runner import encode_event

ROUNDS = 7
REPEATS = 20
PROSE = (
    "The node keeps what was said in a log, and whoever reads it later gets the same words in this order. "
) * 40
CODE = (
    "def read(path: str, *, limit: int = 10) -> list[str]:\n"
    "    return [line.rstrip() for line in open(path)][:limit]\n"
) * 40
_CODE = TYPE_CODE["message_streamed"]


class Row(NamedTuple):
    """One measurement."""

    name: str
    without_us: float
    with_us: float

    @property
    def ratio(self) -> float:
        """How much longer it takes with redaction."""
        return self.with_us / self.without_us


def _pieces(text: str, size: int) -> list[str]:
    return [text[at:at + size] for at in range(0, len(text), size)]


def _streamed(pieces: list[str], redactor: Redactor) -> float:
    """Microseconds of CPU to make an event of a piece."""
    encoder = FragmentEncoder("ses_bench", "run_bench", "python", None)
    stream = redactor.stream()
    began_s = time.process_time()
    for _ in range(REPEATS):
        for piece in pieces:
            shown = piece if stream is None else stream.feed(piece)
            if shown:
                encode_event(_CODE, 1.0, encoder.encode("message_streamed", {"content": shown}, 1.0))
    return (time.process_time() - began_s) / REPEATS / len(pieces) * 1e6


def rows() -> list[Row]:
    """Events of streamed pieces, encoded with and without redaction."""
    on, off = Redactor(), Redactor(enabled=False)
    cases = {
        "prose, pieces of 30": _pieces(PROSE, 30),
        "prose, words": re.findall(r"\s*\S+", PROSE),
        "code, pieces of 30": _pieces(CODE, 30),
    }
    found = []
    for name, pieces in cases.items():
        turns = [(_streamed(pieces, off), _streamed(pieces, on)) for _ in range(ROUNDS)]
        found.append(Row(name, min(turn[0] for turn in turns), min(turn[1] for turn in turns)))
    return found


def megabytes() -> list[tuple[str, float]]:
    """Milliseconds of CPU for a megabyte of whole text."""
    items = [{"id": n, "name": f"item-{n}", "url": f"https://a.example/{n}", "n": 1} for n in range(15_000)]
    texts = {
        "prose": PROSE * 250, "code": CODE * 250, "JSON": json.dumps(items),
        "nothing but `pwd=`": "pwd=" * 250_000, "nothing but `eyJ`": "eyJ" * 340_000,
    }
    redactor = Redactor()
    found = []
    for name, text in texts.items():
        took = []
        for _ in range(3):
            began_s = time.process_time()
            redactor.text(text[:1_000_000])
            took.append((time.process_time() - began_s) * 1e3)
        found.append((name, min(took)))
    return found


def main() -> None:
    """Print both tables."""
    print(f"{'event of a streamed piece':<28} {'without us':>10} {'with us':>8} {'ratio':>6}")
    for row in rows():
        print(f"{row.name:<28} {row.without_us:>10.2f} {row.with_us:>8.2f} {row.ratio:>6.2f}")
    print(f"\n{'a megabyte of whole text':<28} {'ms':>10}")
    for name, took_ms in megabytes():
        print(f"{name:<28} {took_ms:>10.1f}")


if __name__ == "__main__":
    main()
