"""The log beside a database (``-wal``): does SQLite read all of it?

SQLite takes a wrong checksum in its log for the end of the log: what a power failure cut off looks so. A
flipped byte looks so too, and then commits behind it are gone without a word. The difference is what lies
behind: a frame is written only after all before it, so a commit behind the place where SQLite stopped is a
commit that was lost. (A flip in the very last commit of a log that is being overwritten cannot be told from a
write that a kill cut short.)
"""

from __future__ import annotations

import struct
from io import FileIO
from pathlib import Path
from typing import NamedTuple

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">4I8x")
_MAGIC = 0x377F0682


class Log(NamedTuple):
    """What stands in a log, told by its frames' headers alone."""

    sound: bool  #: its own header is
    commits: tuple[int, ...]  #: numbers, from 1, of the frames that end a transaction
    last: int  #: the last frame of this log's present life
    ends_there: bool  #: the file ends with it: that frame was written whole


def look(path: Path) -> Log | None:
    """The log of a database, before SQLite opens it; None when there is none."""
    file = path.with_name(f"{path.name}-wal")
    try:
        with file.open("rb", buffering=0) as log:
            header = log.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return None
            magic, _, page_bytes, _, *salts, first, second = _HEADER.unpack(header)
            if magic | 1 != _MAGIC | 1 or _sum(header[:24], big=bool(magic & 1)) != (first, second):
                return Log(False, (), 0, False)
            return _frames(log, file.stat().st_size, page_bytes + _FRAME.size, salts)
    except FileNotFoundError:
        return None


def _frames(log: FileIO, size: int, step: int, salts: list[int]) -> Log:
    commits, last = [], 0
    count = (size - _HEADER.size) // step
    for number in range(1, count + 1):
        log.seek(_HEADER.size + (number - 1) * step)
        _, pages, *found = _FRAME.unpack(log.read(_FRAME.size))
        if found == salts:
            last = number
            if pages:
                commits.append(number)
    return Log(True, tuple(commits), last, size == _HEADER.size + last * step)


def lost(log: Log | None, read: int) -> int:
    """How many commits SQLite passed over, when it read so many frames; -1: all, nobody knows how many."""
    if log is None:
        return 0
    if not log.sound:
        return -1
    end = log.last + log.ends_there
    return sum(1 for commit in log.commits if read < commit < end)


def _sum(data: bytes, *, big: bool) -> tuple[int, int]:
    """SQLite's checksum of a log's header."""
    first = second = 0
    words = struct.unpack(f"{'>' if big else '<'}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second


__all__ = ["Log", "look", "lost"]
